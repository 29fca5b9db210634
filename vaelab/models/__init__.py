"""The models, each a page or two."""

from .._internal.saving import ParameterFileError
from .autoencoder import Autoencoder
from .base import Model
from .gmvae import GMVAE
from .scanvi import SCANVI
from .scvi import SCVI
from .trainable import Trainable
from .vae import VAE

__all__ = [
    "GMVAE",
    "SCANVI",
    "SCVI",
    "VAE",
    "Autoencoder",
    "Model",
    "ParameterFileError",
    "Trainable",
]
