"""The models, each a page or two."""

from .base import Model
from .saving import ParameterFileError
from .vae import VAE

__all__ = ["VAE", "Model", "ParameterFileError"]
