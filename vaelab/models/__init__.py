"""The models, each a page or two."""

from .base import Model
from .gmvae import GMVAE
from .saving import ParameterFileError
from .vae import VAE

__all__ = ["GMVAE", "VAE", "Model", "ParameterFileError"]
