"""What all models share, with or without probabilities.

``fit``, ``save`` and ``load`` need of a model

1. ``__init__`` and ``domain``, and if need be the methods 7 to 10, as ``base.py`` says.
2. ``objective(cells)``: a :class:`vaelab.bounds.Objective` of named terms.
3. ``embed(cells)`` and ``reconstruct(cells)``, for the use of the fitted model.

A model with a prior and a likelihood gets 2 and 3 from :class:`vaelab.models.Model`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .._internal.arguments import require_library
from .._internal.names import other_genes
from .._internal.saving import Savable
from ..bounds import Objective
from ..cells import Cells
from ..likelihoods import NormalLikelihood
from ..networks import evaluating
from ..reparametrization import seeded

__all__ = ["Trainable"]


class Trainable(Savable, nn.Module):
    """What ``fit`` trains; the list above says what a subclass must define.

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
    sums_over_genes = True  # False if the objective is a mean over genes: see ``fit``'s epsilon
    new_batches: tuple[str, ...] | None = None

    def __new__(cls, *args, **kwargs):
        model = super().__new__(cls)
        try:
            arguments = signature(cls).bind_partial(model, *args, **kwargs)
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

    # What a model defines: see the list above.

    def objective(self, cells: Cells) -> Objective:
        raise NotImplementedError

    def embed(self, cells: Cells) -> np.ndarray:
        raise NotImplementedError

    def reconstruct(self, cells: Cells) -> np.ndarray:
        raise NotImplementedError

    # Shared by all models.

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

    def objective_per_cell(self, cells: Cells, *, seed: int = 0) -> np.ndarray:
        """The objective of each cell in evaluation mode, with one draw; shape (n_cells,)."""
        with seeded(seed):
            return self._over_minibatches(
                cells, lambda minibatch: self.objective(minibatch).per_cell(), of_bound=True
            )

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


def signature(kind: type) -> inspect.Signature:
    """The constructor's; ``**options`` stands for the options of the next class in line."""
    named: dict[str, inspect.Parameter] = {}
    for each in (each for each in kind.__mro__ if "__init__" in vars(each)):
        own = inspect.signature(each.__init__)
        fixed = {name: p for name, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        named = fixed | named
        if len(fixed) == len(own.parameters):
            break
    return inspect.Signature([*named.values()])
