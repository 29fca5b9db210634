"""What all models share: the questions one asks of a fitted model, and the cells that fit it.

A model adds the four words of its mathematics, ``prior``, ``encode``, ``decode`` and ``elbo``.
``elbo(cells) -> Bound`` is the whole contract: training and the bounds need nothing else.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .._internal.arguments import require, size
from ..bounds import Bound
from ..cells import Cells
from ..networks import evaluating
from ..reparametrization import seeded
from ._names import other_genes
from ._saving import Savable

__all__ = ["Model"]


class Model(Savable, nn.Module):
    """Base of all models.

    A subclass hands its ``__init__`` arguments to ``super().__init__(**configuration)``, and
    builds its networks inside ``with seeded(seed)``.
    """

    domain = "real"  # what the data must be: see Cells.check

    def __init__(self, **configuration):
        super().__init__()
        self.configuration = configuration
        self.gene_names: tuple[str, ...] | None = None  # of the cells it was fitted to
        self.batch_names: tuple[str, ...] | None = None  # where the model knows batches
        self.label_names: tuple[str, ...] | None = None  # where it knows labels
        self.register_buffer("typical_library", torch.ones(()))

    # The model's mathematics: see the subclass.

    def prior(self) -> Distribution:
        raise NotImplementedError

    def encode(self, cells: Cells) -> Distribution:
        raise NotImplementedError

    def decode(self, z: Tensor, library: Tensor) -> Distribution:
        raise NotImplementedError

    def elbo(self, cells: Cells, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        raise NotImplementedError

    # What several models have in them.

    def encoder_input(self, cells: Cells) -> Tensor:
        """log(1 + x) of counts, and x of other data; shape (n_cells, n_genes)."""
        return torch.log1p(cells.x) if self.domain == "counts" else cells.x

    @staticmethod
    def log_likelihood(p: Distribution, cells: Cells) -> Tensor:
        """log p(x | z) of each cell, over the genes observed in it; shape (…, n_cells)."""
        log_px = p.log_prob(cells.x)  # (…, n_cells, n_genes)
        return (log_px if cells.observed is None else log_px.where(cells.observed, 0.0)).sum(-1)

    # Questions.

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
            cells, lambda part: self.decode_as(self.encode(part).mean, part).mean
        )

    def replicate(self, cells: Cells, seed: int = 0) -> np.ndarray:
        """The cells measured anew: x from p(x | z) with z from q(z | x), the posterior predictive.

        Returns
        -------
        In the units of x, shape (n_cells, n_genes), dense.
        """
        with seeded(seed):
            return self._over_minibatches(
                cells, lambda part: self.decode_as(self.encode(part).sample(), part, True).sample()
            )

    def decode_as(self, z: Tensor, cells: Cells, draw: bool = False) -> Distribution:
        """p(x | z) at each cell's own library size; ``draw`` is for models that infer it."""
        return self.decode(z, cells.library)

    def bound(self, cells: Cells, seed: int = 0) -> np.ndarray:
        """The ELBO of each cell with one draw of z; nats, shape (n_cells,)."""
        with seeded(seed):
            return self._over_minibatches(cells, lambda part: self.elbo(part).per_cell())

    def log_marginal(self, cells: Cells, n_samples: int = 100, seed: int = 0) -> np.ndarray:
        """log p(x) of each cell by importance sampling from q (Burda et al. 2016, equation 8).

        A lower bound in expectation, closer to log p(x) the more samples are drawn.

        Returns
        -------
        Nats, shape (n_cells,).
        """
        size("n_samples", n_samples)
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
        self, n_cells: int, library: float | np.ndarray | None = None, seed: int = 0, **of_prior
    ) -> np.ndarray:
        """New cells: z from the prior, x from p(x | z).

        Parameters
        ----------
        n_cells
            How many.
        library
            ℓ, one number or one a cell; None for the median of the cells it was fitted to.
        seed
            The same seed gives the same cells.
        of_prior
            Arguments of the model's ``draw_prior``: which cells.

        Returns
        -------
        x, shape (n_cells, n_genes), in the units of the data.
        """
        return self._generate(self.decode, n_cells, library, seed, **of_prior)

    def _generate(self, decode, n_cells: int, library, seed: int, **of_prior) -> np.ndarray:
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
            z = self.draw_prior(n_cells, **of_prior)
            library = self.typical_library if library is None else library
            library = torch.as_tensor(library).to(z).expand(n_cells)
            return decode(z, library).sample().cpu().numpy()

    def draw_prior(self, n_cells: int, **of_prior) -> Tensor:
        """z from the prior; shape (n_cells, n_latent)."""
        return self.prior(**of_prior).sample((n_cells,))

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def device(self) -> torch.device:
        return self.typical_library.device

    @property
    def dtype(self) -> torch.dtype:
        return self.typical_library.dtype

    def _over_minibatches(self, cells: Cells, question, batch_size: int = 1024) -> np.ndarray:
        self.check(cells)
        with evaluating(self):
            for start in range(0, max(1, cells.n_cells), batch_size):  # no cells: one empty part
                part = cells[start : start + batch_size].to(self.device, self.dtype)
                answer = question(part).cpu().numpy()
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

    def adopt(self, cells: Cells) -> None:
        """Check cells that the model is about to be fitted to, and keep what it needs of them."""
        self.check(cells)
        self.gene_names = cells.gene_names
        self.typical_library.copy_(cells.library.median())
