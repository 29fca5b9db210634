"""The models, each a page or two."""

from .base import Model, ParameterFileError
from .vae import VAE

__all__ = ["VAE", "Model", "ParameterFileError"]
