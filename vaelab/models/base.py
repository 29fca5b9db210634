"""What a model must do, and what all models share.

A new model is a subclass of :class:`Model` with

1. ``__init__(self, n_genes, *, …)``: call ``super().__init__()``, then build the networks inside
   ``with seeded(seed)``. The arguments are kept as ``configuration`` and saved with the model, so
   each of them is something that JSON can hold.
2. ``domain``: which data the model takes, "counts", "unit interval" or "real" (the default). Most
   models set it to the domain of their likelihood.
3. ``prior()``: p(z), of shape (n_latent,).
4. ``encode(cells)``: q(z | x), of shape (n_cells, n_latent).
5. ``decode(z, cells)``: p(x | z), at the library size and in the batch of each cell.
6. ``elbo(cells, *, n_samples=1, analytic_kl=True)``: a :class:`vaelab.Bound` of named terms. With
   ``analytic_kl=False`` every term is drawn, so that ``Bound.iwae`` can weight the draws.

That is enough for ``fit``, ``save`` and ``load``, ``embed``, ``reconstruct``, ``replicate``,
``elbo_per_cell``, ``log_marginal``, ``generate``, and the ledger. A model may also override

7. ``prepare(cells)``: called once by ``fit``, before the first step; keeps what the model needs to
   know of the cells. Call ``super().prepare(cells)`` first.
8. ``check(cells)``: refuses cells that the model cannot read. Call ``super().check(cells)`` first.
9. ``after_step()``: called by ``fit`` after each optimiser step, for what changes during training
   and is not a parameter.
10. ``graph``: nodes and arrows for ``plotting.graphical_model``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .._internal.arguments import require, require_size
from ..bounds import Bound
from ..cells import Cells
from ..networks import evaluating
from ..reparametrization import seeded
from ._names import other_genes
from ._saving import Savable

__all__ = ["Model"]


class Model(Savable, nn.Module):
    """Base of all models; the list above says what a subclass must define.

    Attributes
    ----------
    configuration
        The constructor's arguments by name.
    gene_names, batch_names, label_names
        The names in the cells that the model was fitted to; None before, and where the model does
        not use batches or labels.
    card
        The card of a loaded model, else None.
    """

    domain = "real"

    def __new__(cls, *args, **kwargs):
        model = super().__new__(cls)
        arguments = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs)
        arguments.apply_defaults()
        _, *named = arguments.arguments.items()  # the first is self
        model.__dict__["configuration"] = dict(named)
        return model

    def __init__(self):
        super().__init__()
        self.gene_names: tuple[str, ...] | None = None
        self.batch_names: tuple[str, ...] | None = None
        self.label_names: tuple[str, ...] | None = None
        self.card: dict | None = None
        self.register_buffer("typical_library", torch.ones(()))  # median of the cells fitted to

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

    def encoder_input(self, cells: Cells) -> Tensor:
        """log(1 + x) of counts, and x of other data; shape (n_cells, n_genes)."""
        return torch.log1p(cells.x) if self.domain == "counts" else cells.x

    @staticmethod
    def log_likelihood(p: Distribution, cells: Cells) -> Tensor:
        """log p(x | z) of each cell, over the genes observed in it; shape (…, n_cells)."""
        log_px = p.log_prob(cells.x)  # (…, n_cells, n_genes)
        return (log_px if cells.observed is None else log_px.where(cells.observed, 0.0)).sum(-1)

    # Using a fitted model.

    def embed(self, cells: Cells) -> np.ndarray:
        """The posterior mean E_q[z | x] of each cell; shape (n_cells, n_latent)."""
        return self._over_minibatches(cells, lambda part: self.encode(part).mean)

    def reconstruct(self, cells: Cells) -> np.ndarray:
        """The mean of p(x | z) at z = E_q[z | x], at each cell's own library size.

        Returns
        -------
        Expected values in the units of x, shape (n_cells, n_genes), dense.
        """
        return self._over_minibatches(
            cells, lambda part: self.decode(self.encode(part).mean, self.infer_library(part)).mean
        )

    def replicate(self, cells: Cells, *, seed: int = 0) -> np.ndarray:
        """The cells sampled again: x from p(x | z) with z from q(z | x), the posterior predictive.

        Returns
        -------
        In the units of x, shape (n_cells, n_genes), dense.
        """

        def draw(part: Cells) -> Tensor:
            z = self.encode(part).sample()
            return self.decode(z, self.infer_library(part, draw=True)).sample()

        with seeded(seed):
            return self._over_minibatches(cells, draw)

    def infer_library(self, cells: Cells, *, draw: bool = False) -> Cells:
        """The cells with the library sizes at which they are decoded: here, their own.

        A model in which the library size is latent overrides this; ``draw`` then asks for a draw
        from q(ℓ | x) in place of its median.
        """
        return cells

    def elbo_per_cell(self, cells: Cells, *, seed: int = 0) -> np.ndarray:
        """The ELBO of each cell with one draw of z; nats, shape (n_cells,).

        If the model reads labels (SCANVI), it is a bound on log p(x, c) for each cell that has
        one. ``elbo_per_cell(cells.unlabelled())`` is a bound on log p(x) for all of them.
        """
        with seeded(seed):
            return self._over_minibatches(cells, lambda part: self.elbo(part).per_cell())

    def log_marginal(self, cells: Cells, *, n_samples: int = 100, seed: int = 0) -> np.ndarray:
        """log p(x) of each cell by importance sampling from q (Burda et al. 2016, equation 8).

        A lower bound in expectation, closer to log p(x) the more samples are drawn. If the model
        reads labels (SCANVI), it is log p(x, c) for each cell that has one;
        ``log_marginal(cells.unlabelled())`` is log p(x) for all of them.

        Returns
        -------
        Nats, shape (n_cells,).
        """
        require_size("n_samples", n_samples)
        at_once = max(1, 2**24 // (128 * cells.n_genes))  # draws: 64 MiB for each float32 tensor
        sizes = [len(draws) for draws in torch.arange(n_samples).split(at_once)]

        def log_mean_weight(part: Cells) -> Tensor:
            pieces = [
                self.elbo(part, n_samples=n, analytic_kl=False).iwae() + np.log(n) for n in sizes
            ]
            return torch.stack(pieces).logsumexp(0) - np.log(n_samples)

        with seeded(seed):
            return self._over_minibatches(cells, log_mean_weight, batch_size=128)

    def generate(
        self, n_cells: int, *, library: float | np.ndarray | None = None, seed: int = 0
    ) -> np.ndarray:
        """New cells: z from the prior, x from p(x | z).

        Parameters
        ----------
        n_cells
            Number of cells.
        library
            ℓ, one number or one per cell; None for the median of the cells it was fitted to.
        seed
            Random seed; the same seed gives the same cells.

        Returns
        -------
        x, shape (n_cells, n_genes), in the units of the data.
        """
        return self._generate(n_cells, lambda: self.prior().sample((n_cells,)), library, seed)

    def _generate(
        self, n_cells: int, draw_z: Callable[[], Tensor], library, seed: int, batch=0
    ) -> np.ndarray:
        require("n_cells", n_cells, Integral, lambda n: n >= 0, "a whole number, 0 or more")
        if library is not None:
            library = np.array(library)  # a copy: what pandas lends may be read-only
            fits = library.dtype.kind in "uif" and library.shape in ((), (n_cells,))
            if not (fits and np.isfinite(library).all() and (library > 0).all()):
                raise ValueError(
                    f"library is {library} (shape {library.shape}); it must be a number above 0, "
                    f"or one for each of the {n_cells:,} cells."
                )
        with seeded(seed), evaluating(self):
            z = draw_z()
            return self.decode(z, self.blank_cells(n_cells, library, batch)).sample().cpu().numpy()

    def blank_cells(self, n_cells: int, library=None, batch: Tensor | int = 0) -> Cells:
        """Cells without counts: the library sizes and batches at which ``decode`` is wanted.

        Parameters
        ----------
        n_cells
            Number of cells.
        library
            ℓ, one number or one per cell; None for the median of the cells it was fitted to.
        batch
            Index of the batch, one number or one per cell.
        """
        n_genes = self.configuration["n_genes"]
        library = self.typical_library if library is None else torch.as_tensor(library)
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return Cells(
            x=zero.expand(n_cells, n_genes),
            library=library.to(zero).expand(n_cells),
            batch=torch.as_tensor(batch, device=self.device).expand(n_cells),
            label=torch.full((n_cells,), -1, device=self.device),
            observed=None,
            gene_names=self.gene_names or tuple(map(str, range(n_genes))),
            batch_names=self.batch_names or ("all",),
            label_names=self.label_names or (),
        )

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _over_minibatches(self, cells: Cells, answer_of, batch_size: int = 1024) -> np.ndarray:
        self.check(cells)
        with evaluating(self):
            for start in range(0, max(1, cells.n_cells), batch_size):  # no cells: one empty part
                part = cells[start : start + batch_size].to(self.device, self.dtype)
                answer = answer_of(part).cpu().numpy()
                if start == 0:  # all at once: answers kept one by one would scatter the memory
                    answers = np.empty((cells.n_cells, *answer.shape[1:]), answer.dtype)
                answers[start : start + batch_size] = answer
            return answers

    # Cells that fit the model.

    def check(self, cells: Cells) -> None:
        """Refuse cells that the model can't read.

        Raises
        ------
        TypeError
            They are not ``Cells``.
        ValueError
            The likelihood can't hold the values, or the genes are not those the model has.
        """
        if not isinstance(cells, Cells):
            raise TypeError(
                f"A model reads Cells, not {type(cells).__name__}: make them with "
                "Cells.from_anndata(adata)."
            )
        n_genes = self.configuration["n_genes"]
        if cells.n_genes != n_genes:
            raise ValueError(
                f"The model has {n_genes:,} genes, these cells have {cells.n_genes:,}."
            )
        if self.gene_names is not None and cells.gene_names != self.gene_names:
            raise ValueError(other_genes(self.gene_names, cells.gene_names))
        cells.check(self.domain)

    def prepare(self, cells: Cells) -> None:
        """Check the cells that the model is about to be fitted to, and keep what it needs of them.

        Here: the names of the genes, and the median library size.
        """
        self.check(cells)
        self.gene_names = cells.gene_names
        self.typical_library.copy_(cells.library.median())

    def after_step(self) -> None:
        """Called by ``fit`` after each optimiser step."""
