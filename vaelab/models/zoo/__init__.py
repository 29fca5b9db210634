"""Models of other papers, each made from the parts of the package on a page: one box changes."""

from .vasc import VASC
from .vega import VEGA

__all__ = ["VASC", "VEGA"]
