"""What a probabilistic model must do, and what such models share.

A new model is a subclass of :class:`Model` with

1. ``__init__(self, n_genes, *, …)``: call ``super().__init__()``, then build the networks inside
   ``with seeded(seed)``. The arguments are kept as ``configuration`` and saved with the model, so
   JSON must be able to hold each of them.
2. ``domain``: which data the model takes, "counts", "unit interval" or "real" (the default). Most
   models set it to the domain of their likelihood.
3. ``prior()``: p(z), of shape (n_latent,).
4. ``encode(cells)``: q(z | x), of shape (n_cells, n_latent).
5. ``decode(z, cells)``: p(x | z), at the library size and in the batch of each cell.
6. ``elbo(cells, *, n_samples=1, analytic_kl=True)``: a :class:`vaelab.Bound` of named terms. With
   ``analytic_kl=False`` every term is drawn, so that ``Bound.iwae`` can weight the draws.

That is enough for ``fit``, ``save`` and ``load``, ``embed``, ``reconstruct``, ``impute``,
``denoise``, ``replicate``, ``elbo_per_cell``, ``log_marginal``, ``generate``, and the ledger. A
model may also override

7. ``prepare(cells)``: called once by ``fit``, before the first step; keeps what the model needs to
   know about the cells. Call ``super().prepare(cells)`` first.
8. ``require_compatible(cells)``: refuses cells that the model cannot read. Call
   ``super().require_compatible(cells)`` first.
9. ``after_step()``: called by ``fit`` after each optimiser step, for what changes during training
   and is not a parameter.
10. ``graph``: nodes and arrows for ``plotting.graphical_model``.

If several processes train a model, each calls ``elbo`` on its part of a minibatch. A term of one
cell needs no care. What a model sums over cells, such as the number of those with a label, must be
the sum over all parts: ``_internal.processes.total``.

A model without a prior and a likelihood, such as an autoencoder, is a :class:`Trainable`: it
replaces 3 to 6 by what ``trainable.py`` asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .._internal.arguments import require, require_size
from ..bounds import Bound
from ..cells import Cells
from ..networks import evaluating
from ..reparametrization import seeded
from ._predicting import Predicting
from .trainable import Trainable

__all__ = ["Model"]


class Model(Predicting, Trainable):
    """Base of all probabilistic models; the list above says what a subclass must define."""

    # The mathematics: see the subclass.

    def prior(self) -> Distribution:
        raise NotImplementedError

    def encode(self, cells: Cells) -> Distribution:
        raise NotImplementedError

    def decode(self, z: Tensor, cells: Cells) -> Distribution:
        raise NotImplementedError

    def elbo(self, cells: Cells, *, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        raise NotImplementedError

    # Shared by several models.

    def objective(self, cells: Cells, *, n_samples: int = 1, weighted: bool = False) -> Bound:
        """What ``fit`` maximises: the ELBO, or the importance-weighted bound if ``weighted``."""
        bound = self.elbo(cells, n_samples=n_samples, analytic_kl=not weighted)
        return bound.weighted() if weighted else bound

    def objective_per_cell(
        self, cells: Cells, *, seed: int = 0, n_samples: int = 1, weighted: bool = False
    ) -> np.ndarray:
        """The ELBO of each cell with one draw of z, or its importance-weighted bound with all."""
        if weighted:
            return self.log_marginal(cells, n_samples=n_samples, seed=seed)
        return super().objective_per_cell(cells, seed=seed)

    @staticmethod
    def log_likelihood(p: Distribution, cells: Cells) -> Tensor:
        """log p(x | z) of each cell, over the genes observed in it; shape (…, n_cells)."""
        log_px = p.log_prob(cells.x)  # (…, n_cells, n_genes)
        return (log_px if cells.observed is None else log_px.where(cells.observed, 0.0)).sum(-1)

    # Using a fitted model.

    def embed(self, cells: Cells) -> np.ndarray:
        """The posterior mean E_q[z | x] of each cell; shape (n_cells, n_latent)."""
        return self._over_minibatches(cells, lambda minibatch: self.encode(minibatch).mean)

    def infer_library(self, cells: Cells, *, draw: bool = False) -> Cells:
        """The cells with the library sizes for ``decode``; by default, their own.

        A model whose library size is latent overrides this: it gives the median of q(ℓ | x), or a
        draw from it if ``draw`` is True.
        """
        return cells

    def elbo_per_cell(self, cells: Cells, *, seed: int = 0) -> np.ndarray:
        """The ELBO of each cell with one draw of z; nats, shape (n_cells,).

        If the model reads labels (SCANVI with ``label_bound``), it is a bound on log p(x, c) for
        each cell that has one. ``elbo_per_cell(cells.unlabelled())`` is a bound on log p(x) for all
        cells.
        """
        return self.objective_per_cell(cells, seed=seed)

    def log_marginal(self, cells: Cells, *, n_samples: int = 100, seed: int = 0) -> np.ndarray:
        """log p(x) of each cell by importance sampling from q (Burda et al. 2016, equation 8).

        In expectation it is a lower bound, and it comes closer to log p(x) with more samples. If
        the model reads labels (SCANVI with ``label_bound``), it is log p(x, c) for each cell that
        has one;
        ``log_marginal(cells.unlabelled())`` is log p(x) for all of them.

        Returns
        -------
        Nats, shape (n_cells,).
        """
        require_size("n_samples", n_samples)
        self.require_compatible(cells)
        at_once = max(1, 2**22 // (128 * self.n_values))  # draws: 16 MiB for each float32 tensor
        sizes = [len(draws) for draws in torch.arange(n_samples).split(at_once)]

        def log_mean_weight(minibatch: Cells) -> Tensor:
            pieces = [
                self.elbo(minibatch, n_samples=n, analytic_kl=False).iwae() + np.log(n)
                for n in sizes
            ]
            return torch.stack(pieces).logsumexp(0) - np.log(n_samples)

        with seeded(seed):
            return self._over_minibatches(cells, log_mean_weight, batch_size=128, of_bound=True)

    def generate(
        self, n_cells: int, *, library: float | np.ndarray | None = None, seed: int = 0
    ) -> np.ndarray:
        """New cells: z from the prior, x from p(x | z).

        Parameters
        ----------
        n_cells
            Number of cells.
        library
            Library size ℓ, one number or one per cell; None for the median over the cells to which
            the model was fitted.
        seed
            Random seed; the same seed gives the same cells.

        Returns
        -------
        Drawn values x in the units of the data, shape (n_cells, n_genes).
        """
        return self._generate(n_cells, lambda: self.prior().sample((n_cells,)), library, seed)

    def _generate(
        self, n_cells: int, draw_z: Callable[[], Tensor], library, seed: int, batch=0
    ) -> np.ndarray:
        require("n_cells", n_cells, Integral, lambda n: n >= 0, "a whole number, 0 or more")
        self.require_precision()
        with seeded(seed), evaluating(self):
            z = draw_z()
            return self.decode(z, self.blank_cells(n_cells, library, batch)).sample().cpu().numpy()

    @property
    def n_values(self) -> int:
        """Numbers for one cell and one draw of the largest tensors, which set how much memory.

        They are the genes, and for each type a hidden layer with its one-hot type.
        """
        types, n_hidden = (self.configuration.get(name, 0) for name in ("n_labels", "n_hidden"))
        return self.configuration["n_genes"] + types * (n_hidden + types)
