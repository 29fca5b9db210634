"""vaelab: variational autoencoders for single-cell RNA-seq, to learn from and to use.

From the ground up: ``distributions``, ``reparametrization``, ``networks``, ``plotting``;
``likelihoods``, ``bounds``, ``cells``; ``models``; ``training`` and the questions asked of a
fitted model. A module imports only from those before it.
"""

from . import datasets, interop, metrics, plotting, simulate
from .bounds import Bound, Term
from .cells import Cells
from .exercises import check
from .likelihoods import LIKELIHOODS
from .models import GMVAE, SCANVI, SCVI, VAE
from .networks import MLP
from .preprocessing import log_normalize, select_genes
from .training import History, fit

__all__ = [
    "GMVAE",
    "LIKELIHOODS",
    "MLP",
    "SCANVI",
    "SCVI",
    "VAE",
    "Bound",
    "Cells",
    "History",
    "Term",
    "check",
    "datasets",
    "fit",
    "interop",
    "log_normalize",
    "metrics",
    "plotting",
    "select_genes",
    "simulate",
]
