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

    q(z | x, γ) q(ℓ | x, γ) = N(z; m, diag v) · LogNormal(ℓ; m_ℓ, v_ℓ)

Bound (Lopez et al. 2018, supplementary note 3):

    log p(x | γ) ≥ E_q[log p(x | z, ℓ, γ)] − KL(q(z | x, γ) ‖ p(z)) − KL(q(ℓ | x, γ) ‖ p(ℓ | γ))

================  =============================================================
symbol            where
================  =============================================================
p(z)              ``prior()``
m_γ, √v_γ         ``library_log_mean``, ``library_log_std``: of the cells fitted to
m, v              ``encode(cells)``, from ``encoder``
m_ℓ, v_ℓ          ``encode_library(cells)``, from ``library_encoder``
p(x | z, ℓ, γ)    ``decode(z, library, batch)``, from ``decoder`` and ``likelihood``
the bound         ``elbo(cells)``
================  =============================================================

scVI-simplified, of MCB128, is ``SCVI(library="observed", likelihood="nb")``: three of the six
networks are left out, the two of ℓ and that of π. With ℓ observed the bound is on log p(x | ℓ, γ).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence
from torch.nn.functional import one_hot

from .._internal.arguments import given, size
from ..bounds import Bound, Term
from ..cells import Cells
from ..likelihoods import make_likelihood
from ..networks import MLP
from ..reparametrization import gaussian, seeded
from ._names import check_names, index_of
from .base import Model

__all__ = ["SCVI"]

SOURCE = "Lopez et al. 2018, suppl. note 3"


class SCVI(Model):
    """Variational autoencoder for counts from several batches.

    Parameters
    ----------
    n_genes, n_latent, n_hidden, n_layers, dropout_rate, likelihood, normalization
        As of :class:`vaelab.VAE`.
    n_batches
        B, number of batches γ; the decoder is told which. ``len(cells.batch_names)``.
    library
        "observed" (``cells.library``, as released) or "latent" (ℓ log-normal, with the mean and
        variance of each batch, as published).
    dispersion
        "gene", "gene-batch" or "gene-cell".
    encode_batch
        Whether the encoders are told the batch too.
    seed
        Of the initial weights.

    Raises
    ------
    ValueError
        An unknown likelihood, dispersion, library or normalisation, or a size out of range.
    """

    graph = {  # for plotting.graphical_model
        "z": {"at": (0, 1.2), "q": ("x_g", "γ"), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "p": ("γ",), "q": ("x_g", "γ"), "plates": ("cells",)},
        "γ": {"at": (2, 1.2), "observed": True, "plates": ("cells",)},
        "x_g": {
            "at": (0, 0), "p": ("z", "ℓ", "γ"), "observed": True, "plates": ("cells", "genes"),
        },
    }  # fmt: skip

    def __init__(
        self,
        n_genes: int,
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
        super().__init__(**given(locals()))
        for name in ("n_genes", "n_batches", "n_latent"):
            size(name, self.configuration[name])
        if library not in ("observed", "latent"):
            raise ValueError(f"library is {library!r}; choose from ['observed', 'latent']")
        n_conditions = n_batches if n_batches > 1 else 0  # one batch tells nothing
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

    def prior(self) -> Distribution:
        """p(z) = N(0, I), of shape (n_latent,)."""
        zero = torch.zeros(self.configuration["n_latent"], dtype=self.dtype, device=self.device)
        return Normal(zero, 1.0, validate_args=False)

    def prior_library(self, batch: Tensor) -> Distribution:
        """p(log ℓ | γ), of shape (n_cells,)."""
        mean, std = self.library_log_mean[batch], self.library_log_std[batch]
        return Normal(mean, std, validate_args=False)

    def encode(self, cells: Cells) -> Distribution:
        """q(z | x, γ) = N(m, diag v), of shape (n_cells, n_latent)."""
        m, v = self.encoder(self.encoder_input(cells), self._one_hot(cells.batch)).chunk(2, dim=-1)
        return normal_of_log_variance(m, v)

    def encode_library(self, cells: Cells) -> Distribution:
        """q(log ℓ | x, γ) = N(m_ℓ, v_ℓ), of shape (n_cells,)."""
        m, v = self.library_encoder(self.encoder_input(cells), self._one_hot(cells.batch)).unbind(
            -1
        )
        return normal_of_log_variance(m, v)

    def decode(self, z: Tensor, library: Tensor, batch: Tensor) -> Distribution:
        """p(x | z, ℓ, γ); z (…, n_cells, n_latent), library (…, n_cells), batch (n_cells,)."""
        return self.likelihood(self.decoder(z, self._one_hot(batch)), library, batch)

    def elbo(self, cells: Cells, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        """The bound of each cell, from ``n_samples`` draws of z and ℓ: see VAE.elbo."""
        size("n_samples", n_samples)
        q_z, p_z = self.encode(cells), self.prior()
        z = gaussian(q_z.mean, q_z.stddev, n_samples)  # (n_samples, n_cells, n_latent)
        library, library_terms = self._library_terms(cells, n_samples, analytic_kl)
        if analytic_kl:
            kl_z = kl_divergence(q_z, p_z).sum(-1)  # (n_cells,)
        else:
            kl_z = (q_z.log_prob(z) - p_z.log_prob(z)).sum(-1)  # (n_samples, n_cells)
        return Bound(
            self._reconstruction(cells, z, library),
            Term("kl_z", "−KL(q(z|x,γ)‖p(z))", SOURCE, -kl_z, warm_up=True),
            *library_terms,
        )

    # The two terms that SCANVI has too.

    def _reconstruction(self, cells: Cells, z: Tensor, library: Tensor) -> Term:
        log_px = self.log_likelihood(self.decode(z, library, cells.batch), cells)  # (S, n_cells)
        return Term("reconstruction", "E_q[log p(x|z,ℓ,γ)]", SOURCE, log_px)

    def _library_terms(
        self, cells: Cells, n_samples: int, analytic_kl: bool
    ) -> tuple[Tensor, list[Term]]:
        """ℓ, shape (n_cells,) or drawn (n_samples, n_cells), and −KL_ℓ where ℓ is latent."""
        if self.configuration["library"] == "observed":
            return cells.library, []
        q, p = self.encode_library(cells), self.prior_library(cells.batch)
        log_library = gaussian(q.mean, q.stddev, n_samples)  # (n_samples, n_cells)
        if analytic_kl:
            kl = kl_divergence(q, p)
        else:
            kl = q.log_prob(log_library) - p.log_prob(log_library)
        term = Term("kl_library", "−KL(q(ℓ|x,γ)‖p(ℓ|γ))", SOURCE, -kl, warm_up=True)
        return log_library.exp(), [term]

    # Questions.

    def normalized_expression(
        self,
        cells: Cells,
        batch: str | Sequence[str] | None = None,
        n_samples: int = 25,
        library: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """E_q[ρ | x]: each gene's share of a cell's counts, free of library size and noise.

        Parameters
        ----------
        batch
            Expression as if in this batch, or on average over these; None for each cell's own.
        n_samples
            Draws of z a cell.
        library
            1 for shares that sum to 1; 1e4 for counts per ten thousand.
        seed
            Of the draws.

        Returns
        -------
        Shape (n_cells, n_genes).

        Raises
        ------
        ValueError
            No batch, or one that the model does not know.
        """
        size("n_samples", n_samples)
        asked = [batch] if batch is None or isinstance(batch, str) else [*batch]
        if not asked:
            raise ValueError("batch names no batch; give one or more, or None for each cell's own.")

        def shares(part: Cells) -> Tensor:
            q, total = self.encode(part), 0.0
            ones = torch.ones_like(part.library)
            for z in gaussian(q.mean, q.stddev, n_samples):
                for name in asked:
                    γ = part.batch if name is None else self._batch(name, len(part))
                    p = self.decode(z, ones, γ)
                    total = total + getattr(p, "base", p).mean  # ρ, without zero inflation
            return library * total / (n_samples * len(asked))

        with seeded(seed):
            return self._over_minibatches(cells, shares)

    def generate(
        self,
        n_cells: int,
        library: float | np.ndarray | None = None,
        seed: int = 0,
        batch: str | None = None,
        **of_prior,
    ) -> np.ndarray:
        """New cells of one batch, of the first where none is named: see ``VAE.generate``.

        With ℓ latent and none given, it is drawn from p(ℓ | γ).
        """
        γ = self._batch(batch, n_cells)
        if library is None and self.configuration["library"] == "latent":
            with seeded(seed + 1):
                library = self.prior_library(γ).sample().exp().cpu().numpy()
        decode = functools.partial(self.decode, batch=γ)
        return self._generate(decode, n_cells, library, seed, **of_prior)

    def decode_as(self, z: Tensor, cells: Cells, draw: bool = False) -> Distribution:
        """p(x | z) at each cell's own batch and ℓ; a latent ℓ is drawn, or at its median."""
        library = cells.library
        if self.configuration["library"] == "latent":
            q = self.encode_library(cells)
            library = (q.sample() if draw else q.mean).exp()
        return self.decode(z, library, cells.batch)

    # Cells that fit the model.

    def check(self, cells: Cells) -> None:
        super().check(cells)
        n_batches = self.configuration["n_batches"]
        check_names("batch", self.batch_names, n_batches, cells.batch_names)

    def adopt(self, cells: Cells) -> None:
        """Keep the names of the batches, and mean and spread of log ℓ in each."""
        super().adopt(cells)
        self.batch_names = cells.batch_names
        for γ in cells.batch.unique() if self.configuration["library"] == "latent" else ():
            log_library = cells.library[cells.batch == γ].log()
            self.library_log_mean[γ] = log_library.mean()
            self.library_log_std[γ] = log_library.std(unbiased=False).clamp(min=0.01)

    def _batch(self, name: str | None, n_cells: int) -> Tensor:
        index = 0 if name is None else index_of("batch", name, self.batch_names)
        return torch.full((n_cells,), index, device=self.device)

    def _one_hot(self, batch: Tensor) -> Tensor | None:
        """Shape (n_cells, n_batches); None where there is one batch, which tells nothing."""
        n_batches = self.configuration["n_batches"]
        return one_hot(batch, n_batches).to(self.dtype) if n_batches > 1 else None


def normal_of_log_variance(mean: Tensor, log_variance: Tensor) -> Distribution:
    """N(m, v) with v = exp(log_variance) + 10⁻⁴: scVI's floor since its release 0.6.8."""
    return Normal(mean, (log_variance.exp() + 1e-4).sqrt(), validate_args=False)
