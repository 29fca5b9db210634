"""vaelab: variational autoencoders for single-cell RNA-seq, to learn from and to use.

Five rooms, from the ground up. A module imports only from those before it.

- The mathematics: ``distributions``, ``likelihoods``, ``bounds``, ``reparametrization``,
  ``networks``.
- The data: ``cells``, ``datasets``, ``preprocessing``, ``simulate``.
- The models: ``models``.
- Use: ``plotting``, ``metrics``, ``baselines``, ``history``, ``training``,
  ``differential_expression``, ``interop``.
- The course's tools: ``teaching``.

``_internal`` supports all of them, and ``__main__`` is the command ``vaelab``.
"""

from . import baselines, datasets, interop, metrics, plotting, simulate
from .bounds import Bound, Term
from .cells import Cells
from .differential_expression import differential_expression
from .likelihoods import LIKELIHOODS
from .models import GMVAE, SCANVI, SCVI, VAE, Autoencoder
from .networks import MLP
from .preprocessing import log_normalize, select_genes, to_counts
from .teaching.exercises import check, solution
from .training import History, fit

__all__ = [
    "GMVAE",
    "LIKELIHOODS",
    "MLP",
    "SCANVI",
    "SCVI",
    "VAE",
    "Autoencoder",
    "Bound",
    "Cells",
    "History",
    "Term",
    "baselines",
    "check",
    "datasets",
    "differential_expression",
    "fit",
    "interop",
    "log_normalize",
    "metrics",
    "plotting",
    "select_genes",
    "simulate",
    "solution",
    "to_counts",
]
