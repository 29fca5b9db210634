"""A zoo: models of the literature, each composed from the parts of the others on a page or two."""

from .sisua import SISUALike
from .totalvi import TotalVILike

__all__ = ["SISUALike", "TotalVILike"]
