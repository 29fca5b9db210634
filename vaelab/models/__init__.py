"""The models, each a page or two."""

from ._saving import ParameterFileError
from .base import Model
from .gmvae import GMVAE
from .scanvi import SCANVI
from .scvi import SCVI
from .vae import VAE

__all__ = ["GMVAE", "SCANVI", "SCVI", "VAE", "Model", "ParameterFileError"]
