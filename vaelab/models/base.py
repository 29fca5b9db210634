"""What a model must do, and what all models share.

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
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .._internal.arguments import require, require_library, require_size
from ..bounds import Bound
from ..cells import Cells
from ..likelihoods import NormalLikelihood
from ..networks import evaluating
from ..reparametrization import seeded
from ._names import other_genes
from ._predicting import Predicting
from ._saving import Savable

__all__ = ["Model"]


class Model(Savable, Predicting, nn.Module):
    """Base of all models; the list above says what a subclass must define.

    Attributes
    ----------
    configuration
        The constructor's arguments by name.
    gene_names, batch_names, label_names
        Names in the cells that the model was fitted to; None before the fit, and if the model does
        not use batches or labels.
    new_batches
        Names of the batches that ``extend`` added; None without any.
    card
        The card of a loaded model; None if the model was not loaded.
    """

    domain = "real"
    new_batches: tuple[str, ...] | None = None

    def __new__(cls, *args, **kwargs):
        model = super().__new__(cls)
        try:
            arguments = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{cls.__name__}: {error}. Give n_genes first and every other option by keyword, "
                "such as n_latent=10."
            ) from None
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
        self.register_buffer("typical_library", torch.ones(()))  # median over the fitted cells

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
        """log(1 + x) for counts, x for other data; shape (n_cells, n_genes).

        Raises
        ------
        TypeError
            The cells are not dense tensors of the model's dtype on its device.
        """
        x = cells.x
        if not (isinstance(x, Tensor) and (x.dtype, x.device) == (self.dtype, self.device)):
            where = f", {x.dtype}, on {x.device}" if isinstance(x, Tensor) else ""
            raise TypeError(
                f"The model needs cells as dense tensors, {self.dtype}, on {self.device}; these "
                f"hold a {type(x).__name__}{where}. Call cells.to(model.device, model.dtype)."
            )
        return torch.log1p(cells.x) if self.domain == "counts" else cells.x

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
        with seeded(seed):
            return self._over_minibatches(
                cells, lambda minibatch: self.elbo(minibatch).per_cell(), of_bound=True
            )

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

    def blank_cells(self, n_cells: int, library=None, batch: Tensor | int = 0) -> Cells:
        """Cells without counts, which tell ``decode`` the library sizes and batches.

        Parameters
        ----------
        n_cells
            Number of cells.
        library
            Library size ℓ, one number or one per cell; None for the median over the cells to which
            the model was fitted.
        batch
            Index of the batch, one number or one per cell.

        Returns
        -------
        Cells on the model's device, whose x is 0.
        """
        n_genes = self.configuration["n_genes"]
        if library is None:
            library = self.typical_library
        elif not isinstance(library, Tensor):  # ``decode`` may need gradients or infinite values
            library = torch.as_tensor(require_library(library, n_cells))
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
    def n_values(self) -> int:
        """Numbers for one cell and one draw of the largest tensors, which set how much memory.

        They are the genes, and for each type a hidden layer with its one-hot type.
        """
        types, n_hidden = (self.configuration.get(name, 0) for name in ("n_labels", "n_hidden"))
        return self.configuration["n_genes"] + types * (n_hidden + types)

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

    def _over_minibatches(
        self,
        cells: Cells,
        compute: Callable[[Cells], Tensor],
        batch_size: int = 1024,
        of_bound: bool = False,
    ) -> np.ndarray:
        """``compute(minibatch)`` of each minibatch in evaluation mode, joined along the cells.

        Only bounds (``of_bound``) read labels: the cells may have other ones for other questions.
        """
        if not of_bound and isinstance(cells, Cells):
            cells = cells.unlabelled()
        self.require_compatible(cells)
        never_fitted = self.gene_names is None and all(p.grad is None for p in self.parameters())
        if never_fitted and not of_bound:
            warnings.warn(
                "This model was never fitted: the results are those of its random initial "
                "weights. Call vaelab.fit(model, cells) first, or load a saved model.",
                stacklevel=3,
            )
        with evaluating(self):
            for start in range(0, max(1, cells.n_cells), batch_size):  # without cells, once
                minibatch = cells[start : start + batch_size].to(self.device, self.dtype)
                values = compute(minibatch).cpu().numpy()
                if start == 0:  # one array: a list of arrays would fragment the memory
                    joined = np.empty((cells.n_cells, *values.shape[1:]), values.dtype)
                joined[start : start + batch_size] = values
            return joined

    # Cells that fit the model.

    def require_compatible(self, cells: Cells) -> None:
        """Refuse cells that the model cannot read.

        Raises
        ------
        TypeError
            ``cells`` are not ``Cells``.
        ValueError
            The values are outside the model's domain, the genes are not those of the model, or the
            model holds half-precision numbers.
        """
        self.require_precision()
        if not isinstance(cells, Cells):
            raise TypeError(
                f"A model reads Cells, not {type(cells).__name__}: make them with "
                "Cells.from_anndata(adata)."
            )
        n_genes = self.configuration["n_genes"]
        if self.gene_names is not None and cells.gene_names != self.gene_names:
            raise ValueError(other_genes(self.gene_names, cells.gene_names))
        if cells.n_genes != n_genes:
            raise ValueError(
                f"The model has {n_genes:,} genes, these cells have {cells.n_genes:,}: make the "
                "model with n_genes=cells.n_genes, or select the same genes."
            )
        cells.require_domain(self.domain)

    def require_precision(self) -> None:
        """Refuse to compute in half precision: the likelihoods need float32 or float64."""
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The model holds {self.dtype}; it needs float32 or float64. Call model.float()."
            )

    def prepare(self, cells: Cells) -> None:
        """Check the cells before the fit, and keep their gene names and median library size."""
        self.require_compatible(cells)
        if self.gene_names is None:  # later fits keep the scale, and with it σ
            for module in self.modules():
                if isinstance(module, NormalLikelihood):
                    module.set_scale(cells.standard_deviations())
        self.gene_names = cells.gene_names
        self.typical_library.copy_(cells.library.median())

    def after_step(self) -> None:
        """Called by ``fit`` after each optimiser step."""
