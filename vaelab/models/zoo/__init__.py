"""Models of the literature, each composed from the parts of this package.

``from vaelab.models import zoo``, and then ``zoo.M2(…)``: see lesson 14.
"""

from .fair import FairVAE
from .m2 import M2

__all__ = ["M2", "FairVAE"]
