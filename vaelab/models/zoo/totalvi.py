"""RNA, and proteins over a background, from one latent space, as in totalVI.

Generative model, for each cell with RNA total ℓ:

    z ~ N(0, I)                             n_latent dimensions
    x_g ~ NB(ℓ ρ_g(z), θ_g)                 RNA
    log β_t ~ N(c_t, d_t²)                  background: antibodies that are in each droplet,
                                            in units of s_t, as in sisua.py
    v_t ~ Bernoulli(π_t(z))                 1 if the cell has background only
    y_t ~ NB(s_t β_t, φ_t) if v_t = 1, else NB(α_t(z) s_t β_t, φ_t), with α_t > 1

v is summed out: p(y_t | z, β_t) is a mixture of two negative binomials.

Variational model; β_t is a latent variable of each cell and protein:

    q(z | x, y) = N(m, diag s²),    q(log β_t | z) = N(c_t + b_t(z), r_t(z)²)

Bound (Gayoso et al. 2021, methods; the user guide of scvi-tools 1.5.0.post1 has the equations):

    log p(x, y) ≥ E_q[log p(x | z)] + E_q[log p(y | z, β)]
                  − KL(q(z | x, y) ‖ p(z)) − E_q[KL(q(β | z) ‖ p(β))]

A hidden protein needs no β: with q = p its KL is 0, and the bound leaves it out.

======================  =======================================================
symbol                  where
======================  =======================================================
p(z), q(z | x, y)       ``prior()``, ``encode(cells)``
c_t, d_t                ``proteins.prior()``
b_t, r_t                ``proteins.background(h)``
α_t, π_t, φ_t           ``proteins(h, log_background)``
p(x | z), p(y | z, β)   ``decode(latents, cells)``
P(v = 0 | y)            ``foreground(cells)``
the bound               ``elbo(cells)``
======================  =======================================================

``decode`` reads z, or z and log β next to each other. From z alone it takes β = exp(c + b(z)), the
median of q(β | z); so do ``reconstruct``, ``impute``, ``denoise`` and ``replicate``. ``generate``
draws β from p(β).

Our likelihoods share one hidden layer, where the released code has one for each. It also adds terms
that are not in the bound (as of 1.5.0.post1, a preference for background and, per batch, the
efficiency of the antibodies), and reports 1 − π as the probability of the foreground. Ours is
P(v = 0 | y), which uses the count once more.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)
from torch.nn.functional import softplus

from ...bounds import Term
from ...cells import Cells
from ...distributions import NegativeBinomial, SideBySide
from ...likelihoods import Likelihood, bounded
from ...reparametrization import gaussian, seeded
from .sisua import SISUALike

__all__ = ["OverBackground", "ProteinLikelihood", "TotalVILike"]

SOURCE = "Gayoso et al. 2021, methods"


class OverBackground(MixtureSameFamily):
    """NB(β, φ) with probability π = σ(logits), and else NB(α β, φ)."""

    def __init__(self, background: Tensor, fold: Tensor, inverse_dispersion: Tensor, logits):
        means = torch.stack([background, background * fold], -1)
        prior = Categorical(logits=torch.stack([logits, torch.zeros_like(logits)], -1))
        counts = NegativeBinomial(means, inverse_dispersion.unsqueeze(-1), validate_args=False)
        super().__init__(prior, counts, validate_args=False)

    def posterior(self, value: Tensor) -> Tensor:
        """P(background | y) and P(foreground | y), of shape (…, n_proteins, 2)."""
        log_prob = self.component_distribution.log_prob(value.unsqueeze(-1))
        return (self.mixture_distribution.logits + log_prob).softmax(-1)

    def posterior_mean(self, value: Tensor) -> Tensor:
        """E[λ | y]: that of each negative binomial, weighed by its posterior probability."""
        rate = self.component_distribution.posterior_mean(value.unsqueeze(-1))
        return (self.posterior(value) * rate).sum(-1)


class ProteinLikelihood(Likelihood):
    """p(y | z, β), with p(log β) and q(log β | z)."""

    def __init__(self, n_in: int, n_proteins: int):
        super().__init__(n_in, n_proteins)
        self.output = nn.Linear(n_in, 4 * n_proteins)  # b, r, α and the logits of π
        self.log_inverse_dispersion = nn.Parameter(torch.ones(n_proteins))
        self.log_background = nn.Parameter(-torch.ones(n_proteins))  # c
        self.log_background_std = nn.Parameter(torch.full((n_proteins,), -0.7))  # log d

    def prior(self) -> Distribution:
        """p(log β) = N(c, d²), of shape (n_proteins,)."""
        d = bounded(self.log_background_std, -5, 3).exp()
        return Normal(self.log_background, d, validate_args=False)

    def background(self, h: Tensor) -> Distribution:
        """q(log β | z) = N(c + b, r²), of shape (…, n_proteins)."""
        b, r, *_ = self.outputs(h)
        return Normal(self.log_background + b, softplus(r) + 1e-4, validate_args=False)

    def forward(self, h: Tensor, log_background: Tensor) -> OverBackground:
        _, _, a, logits = self.outputs(h)
        φ = bounded(self.log_inverse_dispersion, -12, 12).exp()
        return OverBackground(log_background.exp(), 1 + softplus(a + 2), φ, logits)


class TotalVILike(SISUALike):
    """Variational autoencoder for RNA and proteins, which are counted over a background.

    Parameters
    ----------
    n_genes, n_proteins, n_latent, n_hidden, n_layers, dropout_rate, dispersion, normalization, seed
        Same as in :class:`SISUALike`.
    likelihood
        Name of the likelihood of the RNA, one of counts.
    """

    graph = {  # for plotting.graphical_model
        "ℓ": {"at": (-1.2, 1.2), "observed": True, "plates": ("cells",)},
        "z": {"at": (0, 1.2), "q": ("x_g", "y_t"), "plates": ("cells",)},
        "β_t": {"at": (1.6, 1.2), "q": ("z",), "plates": ("cells", "proteins")},
        "x_g": {"at": (-0.7, 0), "p": ("z", "ℓ"), "observed": True, "plates": ("cells", "genes")},
        "y_t": {
            "at": (1.6, 0), "p": ("z", "β_t"), "observed": True, "plates": ("cells", "proteins"),
        },
    }  # fmt: skip

    def __init__(
        self, n_genes: int, *, n_proteins: int, n_latent: int = 10, n_hidden: int = 128,
        n_layers: int = 1, dropout_rate: float = 0.1, likelihood: str = "nb",
        dispersion: str = "gene", normalization: str | None = "batch", seed: int = 0,
    ):  # fmt: skip
        super().__init__(
            n_genes, n_proteins=n_proteins, n_latent=n_latent, n_hidden=n_hidden,
            n_layers=n_layers, dropout_rate=dropout_rate, likelihood=likelihood,
            dispersion=dispersion, normalization=normalization, encode_proteins=True, seed=seed,
        )  # fmt: skip
        with seeded(seed):
            self.proteins = ProteinLikelihood(self.decoder.n_out, n_proteins)

    def decode(self, z: Tensor, cells: Cells) -> Distribution:
        """p(x | z, ℓ) and p(y | z, β) side by side; log β may follow z in the last dimension."""
        n_latent = self.configuration["n_latent"]
        h, log_background = self.decoder(z[..., :n_latent]), z[..., n_latent:]
        if log_background.shape[-1] == 0:
            log_background = self.proteins.background(h).mean
        y = self.proteins(h, log_background + self.protein_scale.log())
        return SideBySide(self.likelihood(h, cells.library), y)

    def other_latents(self, z: Tensor, cells: Cells, analytic_kl: bool) -> tuple[Tensor, list]:
        """z next to a draw of log β from q(β | z), and its KL; all of shape (n_samples, …)."""
        q, p = self.proteins.background(self.decoder(z)), self.proteins.prior()
        log_β = gaussian(q.mean, q.stddev)  # (n_samples, n_cells, n_proteins)
        kl = kl_divergence(q, p) if analytic_kl else q.log_prob(log_β) - p.log_prob(log_β)
        if cells.observed is not None:
            kl = kl.where(cells.observed[:, self.widths[0] :], 0.0)
        symbol = "E_q[KL(q(β|z)‖p(β))]"
        term = Term("kl_background", symbol, -1, kl.sum(-1), SOURCE, warm_up=True)
        return torch.cat([z, log_β], -1), [term]

    def foreground(
        self, cells: Cells, *, n_samples: int | None = None, seed: int = 0
    ) -> np.ndarray:
        """P(v = 0 | y): how probable it is that a count is not background alone.

        The parameters mean the same as in ``reconstruct``. Where a protein was not observed, it is
        1 − π. The shape is (n_cells, n_proteins).
        """

        def probability(p: SideBySide, minibatch: Cells) -> Tensor:
            y, n_rna = p.parts[1], self.widths[0]
            after = y.posterior(minibatch.x[:, n_rna:])[..., 1]
            if minibatch.observed is None:
                return after
            before = y.mixture_distribution.probs[..., 1]
            return after.where(minibatch.observed[:, n_rna:], before)

        with seeded(seed):
            return self._over_minibatches(cells, self._expectation(probability, n_samples))

    def generate(self, n_cells: int, *, library=None, seed: int = 0) -> np.ndarray:
        """New cells: z from p(z), β from p(β), then RNA and proteins: see ``VAE.generate``."""

        def draw() -> Tensor:
            z = self.prior().sample((n_cells,))
            return torch.cat([z, self.proteins.prior().sample((n_cells,))], -1)

        return self._generate(n_cells, draw, library, seed)
