"""scVI: a variational autoencoder of counts, library sizes and batches (Lopez et al. 2018).

Generative model, for each cell with batch γ:

    z ~ N(0, I)                             n_latent dimensions
    log ℓ ~ N(m_γ, v_γ)                     library size, or observed
    w_g ~ Gamma(mean ρ_g, shape θ_g)        ρ = softmax f(z, γ)
    y_g ~ Poisson(ℓ w_g)
    h_g ~ Bernoulli(π_g)                    logits of π from the decoder
    x_g = y_g (1 − h_g)

With w, y and h integrated out, x_g ~ ZINB(mean ℓρ_g, inverse dispersion θ_g, dropout π_g).

Variational model:

    q(z | x) q(ℓ | x) = N(z; m, diag v) · LogNormal(ℓ; m_ℓ, v_ℓ)

The encoders receive γ as well if ``encode_batch``: q(z | x, γ) and q(ℓ | x, γ).

Bound (Lopez et al. 2018, supplementary note 3):

    log p(x | γ) ≥ E_q[log p(x | z, ℓ, γ)] − KL(q(z | x) ‖ p(z)) − KL(q(ℓ | x) ‖ p(ℓ | γ))

================  =============================================================
symbol            where
================  =============================================================
p(z)              ``prior()``
m_γ, √v_γ         ``library_log_mean``, ``library_log_std``, set by ``prepare``
m, v              ``encode(cells)``, from ``encoder``
m_ℓ, v_ℓ          ``encode_log_library(cells)``, from ``library_encoder``
p(x | z, ℓ, γ)    ``decode(z, cells)``, from ``decoder`` and ``likelihood``
the bound         ``elbo(cells)``
================  =============================================================

The batch γ enters the decoder (every hidden layer), p(ℓ | γ), and θ if ``dispersion="gene-batch"``.
It enters the encoders only if ``encode_batch``. With one batch it enters nothing.

scVI-simplified, from the course MCB128, is ``SCVI(library="observed", likelihood="nb")``. It leaves
out three of the six networks: the two for ℓ and the one for π. If ℓ is observed, the bound is on
log p(x | ℓ, γ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence
from torch.nn.functional import one_hot

from .._internal.arguments import require_library, require_seed, require_size
from .._internal.names import gene_columns, index_of, require_names, to_frame
from ..bounds import Bound, Term
from ..cells import Cells
from ..likelihoods import LIKELIHOODS, bounded, make_likelihood
from ..networks import MLP
from ..reparametrization import gaussian, seeded
from ._surgery import Extensible
from .base import Model

__all__ = ["SCVI"]

SOURCE = "Lopez et al. 2018, suppl. note 3"


class SCVI(Extensible, Model):
    """Variational autoencoder for counts from several batches.

    Parameters
    ----------
    n_genes, n_latent, n_hidden, n_layers, dropout_rate, likelihood, normalization
        Same as in :class:`vaelab.VAE`.
    n_batches
        Number of batches, B: ``len(cells.batch_names)``. The decoder receives the batch as input.
    library
        "observed" for ℓ = ``cells.library``, as in the released code. "latent" for a log-normal ℓ
        with the mean and variance of each batch, as published; it needs a count likelihood.
    dispersion
        What the inverse dispersion of a negative binomial depends on: "scalar", "gene",
        "gene-batch" or "gene-cell".
    encode_batch
        True if the encoders, q(z | x) and q(ℓ | x), receive the batch as input too.
    seed
        Random seed for the initial weights.

    Raises
    ------
    ValueError
        The likelihood, dispersion, library or normalisation is unknown, a size is out of range, or
        the library size is latent and the likelihood is not of counts.
    """

    graph = {  # for plotting.graphical_model
        "z": {"at": (0, 1.2), "q": ("x_g",), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "p": ("γ",), "q": ("x_g",), "plates": ("cells",)},
        "γ": {"at": (2, 1.2), "observed": True, "plates": ("cells",)},
        "x_g": {
            "at": (0, 0), "p": ("z", "ℓ", "γ"), "observed": True, "plates": ("cells", "genes"),
        },
    }  # fmt: skip

    def __init__(
        self,
        n_genes: int,
        *,
        n_batches: int = 1,
        n_latent: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        likelihood: str = "zinb",
        dispersion: str = "gene",
        library: str = "observed",
        encode_batch: bool = False,
        normalization: str | None = "batch",
        seed: int = 0,
    ):
        super().__init__()
        for name in ("n_genes", "n_batches", "n_latent"):
            require_size(name, self.configuration[name])
        if library not in ("observed", "latent"):
            raise ValueError(f"library is {library!r}; choose from ['observed', 'latent']")
        n_conditions = n_batches if n_batches > 1 else 0  # a single batch carries no information
        with seeded(seed):
            hidden = {"n_hidden": n_hidden, "normalization": normalization}
            encoder = {**hidden, "dropout_rate": dropout_rate,
                       "n_conditions": n_conditions if encode_batch else 0}  # fmt: skip
            self.encoder = MLP(n_genes, 2 * n_latent, n_layers=n_layers, **encoder)
            if library == "latent":
                self.library_encoder = MLP(n_genes, 2, n_layers=1, **encoder)
                self.register_buffer("library_log_mean", torch.zeros(n_batches))
                self.register_buffer("library_log_std", torch.ones(n_batches))
            decoder = {**hidden, "dropout_rate": 0.0, "n_conditions": n_conditions}
            self.decoder = MLP(n_latent, n_layers=n_layers, **decoder)
            self.likelihood = make_likelihood(
                likelihood, self.decoder.n_out, n_genes, dispersion, n_batches
            )
        self.domain = self.likelihood.domain
        if library == "latent" and self.domain != "counts":
            count_likelihoods = [n for n, kind in LIKELIHOODS.items() if kind.domain == "counts"]
            raise ValueError(
                f"library='latent' needs a count likelihood, but likelihood is {likelihood!r}: "
                f"choose from {count_likelihoods}, or library='observed'."
            )

    def prior(self) -> Distribution:
        """p(z) = N(0, I), of shape (n_latent,)."""
        zero = torch.zeros(self.configuration["n_latent"], dtype=self.dtype, device=self.device)
        return Normal(zero, 1.0, validate_args=False)

    def prior_log_library(self, batch: Tensor) -> Distribution:
        """p(log ℓ | γ), of shape (n_cells,)."""
        mean, std = self.library_log_mean[batch], self.library_log_std[batch]
        return Normal(mean, std, validate_args=False)

    def encode(self, cells: Cells) -> Distribution:
        """q(z | x) = N(m, diag v), of shape (n_cells, n_latent)."""
        h = self.encoder(self.encoder_input(cells), self.encoder_conditions(cells))
        m, log_v = h.chunk(2, dim=-1)  # each (n_cells, n_latent)
        return normal_of_log_variance(m, log_v)

    def encode_log_library(self, cells: Cells) -> Distribution:
        """q(log ℓ | x) = N(m_ℓ, v_ℓ), of shape (n_cells,)."""
        h = self.library_encoder(self.encoder_input(cells), self.encoder_conditions(cells))
        m, log_v = h.unbind(-1)  # each (n_cells,)
        return normal_of_log_variance(m, log_v)

    def encoder_conditions(self, cells: Cells) -> Tensor | None:
        """γ one-hot if the encoders receive it, None if not."""
        return self.one_hot_batch(cells) if self.configuration["encode_batch"] else None

    def one_hot_batch(self, cells: Cells) -> Tensor | None:
        """γ one-hot, shape (n_cells, n_batches); None if there is only one batch."""
        n_batches = self.configuration["n_batches"]
        return one_hot(cells.batch, n_batches).to(self.dtype) if n_batches > 1 else None

    def decode(self, z: Tensor, cells: Cells) -> Distribution:
        """p(x | z, ℓ, γ) at ℓ = cells.library and γ = cells.batch: see VAE.decode."""
        h = self.decoder(z, self.one_hot_batch(cells))
        return self.likelihood(h, cells.library, cells.batch)

    def elbo(self, cells: Cells, *, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        """The bound of each cell, from ``n_samples`` draws of z and ℓ: see VAE.elbo."""
        require_size("n_samples", n_samples)
        q_z, p_z = self.encode(cells), self.prior()
        z = gaussian(q_z.mean, q_z.stddev, n_samples)  # (n_samples, n_cells, n_latent)
        drawn, kl_library = self._draw_library(cells, n_samples, analytic_kl)  # with ℓ (S, n_cells)
        if analytic_kl:
            kl_z = kl_divergence(q_z, p_z).sum(-1)  # (n_cells,)
        else:
            kl_z = (q_z.log_prob(z) - p_z.log_prob(z)).sum(-1)  # (n_samples, n_cells)
        return Bound(
            self._reconstruction(drawn, z),
            Term("kl_z", "KL(q(z|x)‖p(z))", -1, kl_z, SOURCE, warm_up=True),
            *kl_library,
        )

    # The two terms that SCANVI shares.

    def _reconstruction(self, cells: Cells, z: Tensor) -> Term:
        log_px = self.log_likelihood(self.decode(z, cells), cells)  # (S, n_cells)
        return Term("reconstruction", "E_q[log p(x|z,ℓ,γ)]", +1, log_px, SOURCE)

    def _draw_library(
        self, cells: Cells, n_samples: int, analytic_kl: bool
    ) -> tuple[Cells, list[Term]]:
        """The cells with a drawn ℓ, (n_samples, n_cells), and its KL term, if ℓ is latent."""
        if self.configuration["library"] == "observed":
            return cells, []
        q, p = self.encode_log_library(cells), self.prior_log_library(cells.batch)
        log_library = gaussian(q.mean, q.stddev, n_samples)  # (n_samples, n_cells)
        if analytic_kl:
            kl = kl_divergence(q, p)  # (n_cells,)
        else:
            kl = q.log_prob(log_library) - p.log_prob(log_library)  # (n_samples, n_cells)
        term = Term("kl_library", "KL(q(ℓ|x)‖p(ℓ|γ))", -1, kl, SOURCE, warm_up=True)
        return replace(cells, library=log_library.exp()), [term]

    # Using a fitted model.

    def normalized_expression(
        self,
        cells: Cells,
        *,
        batch: str | Sequence[str] | None = None,
        n_samples: int = 25,
        library: float | np.ndarray = 1.0,
        genes: Sequence[str] | None = None,
        as_frame: bool = False,
        seed: int = 0,
    ) -> np.ndarray:
        """E_q[ρ | x]: each gene's share of a cell's counts, without library size and noise.

        Parameters
        ----------
        cells
            The cells.
        batch
            Batch in which to predict the expression of all cells, or several batches to average
            over; None for each cell's own batch.
        n_samples
            Number of draws of z per cell.
        library
            Library size ℓ for all cells, or one for each cell: 1 for shares that sum to 1, 1e4 for
            counts per ten thousand, ``cells.library`` for each cell's own.
        genes
            Names of the genes to return, in their order; None for all.
        as_frame
            True for a pandas DataFrame whose columns are the genes.
        seed
            Random seed for the draws.

        Returns
        -------
        Expression, shape (n_cells, number of genes).

        Raises
        ------
        ValueError
            ``batch`` is an empty list, the model does not know a batch or gene, or ``library`` is
            not a number above 0 or one for each cell.
        """
        require_size("n_samples", n_samples)
        super().require_compatible(cells)
        asked = [batch] if np.ndim(batch) == 0 else [*batch]
        if not asked:
            raise ValueError("batch is empty; name one or more, or None for each cell's own.")
        columns, names = gene_columns(genes, cells.gene_names)
        size = torch.tensor(require_library(library, len(cells)), dtype=self.dtype)
        cells = replace(cells, library=size.expand(len(cells)))

        def shares(minibatch: Cells) -> Tensor:
            q, total = self.encode(minibatch), 0.0
            in_batches = [
                minibatch if b is None else replace(minibatch, batch=self._batch(b, len(minibatch)))
                for b in asked
            ]
            for z in gaussian(q.mean, q.stddev, n_samples):
                for cells_in_batch in in_batches:
                    p = self.decode(z, cells_in_batch)
                    total = total + getattr(p, "base", p).mean[:, columns]  # ℓρ, not zero-inflated
            return total / (n_samples * len(asked))

        with seeded(seed):
            expression = self._over_minibatches(cells, shares)
        return to_frame(expression, names) if as_frame else expression

    def generate(
        self, n_cells: int, *, batch: str | None = None,
        library: float | np.ndarray | None = None, seed: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """New cells of one batch, the first by default: see ``VAE.generate``.

        If ℓ is latent and ``library`` is None, ℓ is drawn from p(ℓ | γ).
        """
        return self._generate_in_batch(
            n_cells, lambda: self.prior().sample((n_cells,)), library, seed, batch
        )

    def _generate_in_batch(self, n_cells: int, draw_z, library, seed: int, batch: str | None):
        γ = self._batch(batch, n_cells)
        if library is None and self.configuration["library"] == "latent":
            require_seed(seed)
            with seeded(seed + 1):
                library = self.prior_log_library(γ).sample().exp().cpu().numpy()
        return self._generate(n_cells, draw_z, library, seed, γ)

    def infer_library(self, cells: Cells, *, draw: bool = False) -> Cells:
        if self.configuration["library"] == "observed":
            return cells
        q = self.encode_log_library(cells)
        return replace(cells, library=(q.sample() if draw else q.mean).exp())

    # Cells that fit the model.

    def require_compatible(self, cells: Cells) -> None:
        super().require_compatible(cells)
        n_batches = self.configuration["n_batches"]
        require_names("batch", self.batch_names, n_batches, cells.batch_names)

    def prepare(self, cells: Cells) -> None:
        """Keep the batch names, and the mean and standard deviation of log ℓ in each batch."""
        super().prepare(cells)
        self.batch_names = cells.batch_names
        self.prepare_library_prior(cells)

    def prepare_library_prior(self, cells: Cells) -> None:
        """Set p(ℓ | γ) of each batch that has cells here."""
        if self.configuration["library"] == "latent":
            for index in cells.batch.unique():
                log_library = cells.library[cells.batch == index].log()
                self.library_log_mean[index] = log_library.mean()
                self.library_log_std[index] = log_library.std(unbiased=False).clamp(min=0.01)

    def _batch(self, name: str | None, n_cells: int) -> Tensor:
        index = 0 if name is None else index_of("batch", name, self.batch_names)
        return torch.full((n_cells,), index, device=self.device)


def normal_of_log_variance(mean: Tensor, log_variance: Tensor) -> Distribution:
    """N(m, v) with v = exp(log_variance) + 10⁻⁴, as in scVI since its release 0.6.8."""
    return Normal(mean, (exp_within_limits(log_variance) + 1e-4).sqrt(), validate_args=False)


def exp_within_limits(log_variance: Tensor) -> Tensor:
    """The variance, within e⁻¹⁵ and e¹⁰.

    Without limits one cell far from the others can make the variance overflow in a single step.
    """
    return bounded(log_variance, -15, 10).exp()
