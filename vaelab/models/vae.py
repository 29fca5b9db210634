"""The variational autoencoder (Kingma & Welling 2014; Rezende et al. 2014).

Generative model, for each cell with library size ℓ:

    z ~ N(0, I)                        n_latent dimensions
    x_g ~ p(x_g | z, ℓ)                a likelihood of vaelab.likelihoods, genes independent given z

Variational model:

    q(z | x) = N(m(x), diag s(x)²)

Bound (Kingma & Welling 2014, equation 3):

    log p(x) ≥ E_q[log p(x | z)] − KL(q(z | x) ‖ p(z))

=============  ================================================================
symbol         where
=============  ================================================================
p(z)           ``prior()``
m, s           ``encode(cells)``, from ``encoder``
p(x | z, ℓ)    ``decode(z, cells)``, from ``decoder`` and ``likelihood``
the bound      ``elbo(cells)``
=============  ================================================================

ℓ is ``cells.library``: it is observed and not modelled, so that the bound is on log p(x | ℓ). With
``library="none"`` the decoder does not use it.

The models of Sarkar (2019) are x ~ Poisson(μ(z) u) with random effects u whose parameters are not
outputs of the decoder: PVAE, NBVAE and ZINBVAE are ``VAE(…, library="none")`` with the likelihoods
"poisson", "nb" and "zinb", ``dispersion="scalar"`` and ``zero_inflation="scalar"``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence
from torch.nn.functional import softplus

from .._internal.arguments import require_size
from ..bounds import Bound, Term
from ..cells import Cells
from ..likelihoods import make_likelihood
from ..networks import MLP
from ..reparametrization import gaussian, seeded
from .base import Model

__all__ = ["VAE"]

SOURCE = "Kingma & Welling 2014, eq. 3"


class VAE(Model):
    """Variational autoencoder with a Gaussian latent space and any likelihood.

    Parameters
    ----------
    n_genes
        Number of genes, G.
    n_latent
        Number of latent dimensions.
    n_hidden, n_layers
        Width and number of hidden layers of encoder and decoder.
    dropout_rate
        Dropout rate of the encoder while training. The decoder has no dropout.
    likelihood
        Name of a likelihood in ``vaelab.LIKELIHOODS``.
    dispersion
        What the inverse dispersion of a negative binomial depends on: "scalar" (one for all),
        "gene" or "gene-cell" (the decoder gives it).
    zero_inflation
        What the dropout of a zero-inflated likelihood depends on: "scalar", "gene" or "gene-cell".
    library
        "observed" for a mean that is ℓ times the share of each gene. "none" for a decoder that
        gives the mean of each count itself; it needs a count likelihood.
    normalization
        "batch", "layer" or None: see :class:`vaelab.networks.MLP`.
    seed
        Random seed for the initial weights.

    Raises
    ------
    ValueError
        The likelihood, one of its options or the normalisation is unknown, or a size is out of
        range.
    """

    graph = {  # for plotting.graphical_model
        "z": {"at": (0, 1.2), "q": ("x_g",), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "observed": True, "plates": ("cells",)},
        "x_g": {
            "at": (0, 0), "p": ("z", "ℓ"), "observed": True, "plates": ("cells", "genes"),
        },
    }  # fmt: skip

    def __init__(
        self,
        n_genes: int,
        *,
        n_latent: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        likelihood: str = "zinb",
        dispersion: str = "gene",
        zero_inflation: str = "gene-cell",
        library: str = "observed",
        normalization: str | None = "batch",
        seed: int = 0,
    ):
        super().__init__()
        require_size("n_genes", n_genes)
        require_size("n_latent", n_latent)
        self.n_latent = n_latent
        with seeded(seed):
            hidden = {"n_hidden": n_hidden, "n_layers": n_layers, "normalization": normalization}
            self.encoder = MLP(n_genes, 2 * n_latent, dropout_rate=dropout_rate, **hidden)
            self.decoder = MLP(n_latent, dropout_rate=0.0, **hidden)
            self.likelihood = make_likelihood(
                likelihood, self.decoder.n_out, n_genes, dispersion,
                zero_inflation=zero_inflation, library=library,
            )  # fmt: skip
        self.domain = self.likelihood.domain

    def prior(self) -> Distribution:
        """p(z) = N(0, I), of shape (n_latent,)."""
        zero = torch.zeros(self.n_latent, dtype=self.dtype, device=self.device)
        return Normal(zero, 1.0, validate_args=False)

    def encode(self, cells: Cells) -> Distribution:
        """q(z | x) = N(m(x), s(x)²), of shape (n_cells, n_latent)."""
        return self.posterior(self.encoder_input(cells))

    def posterior(self, inputs: Tensor) -> Distribution:
        """q(z | x) of what the encoder reads, shape (n_cells, n_genes)."""
        m, s = self.encoder(inputs).chunk(2, dim=-1)  # each (n_cells, n_latent)
        return Normal(m, softplus(s) + 1e-4, validate_args=False)

    def decode(self, z: Tensor, cells: Cells) -> Distribution:
        """p(x | z, ℓ) at ℓ = cells.library, of shape (…, n_cells, n_genes).

        z has shape (…, n_cells, n_latent). ``blank_cells`` makes cells for any z.
        """
        return self.likelihood(self.decoder(z), cells.library)

    def elbo(self, cells: Cells, *, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        """The bound of each cell, from ``n_samples`` draws of z.

        Parameters
        ----------
        cells
            Dense cells on the model's device: ``cells.to(device)``.
        n_samples
            Number of draws of z per cell, S.
        analytic_kl
            True for the KL in closed form. False estimates it from the same draws of z: the signed
            terms of one draw then sum to its log importance weight, as ``Bound.iwae`` needs.
        """
        require_size("n_samples", n_samples)
        q = self.encode(cells)
        z = gaussian(q.mean, q.stddev, n_samples)  # (n_samples, n_cells, n_latent)
        log_px = self.log_likelihood(self.decode(z, cells), cells)  # (n_samples, n_cells)
        return Bound(
            Term("reconstruction", "E_q[log p(x|z)]", +1, log_px, SOURCE),
            *self.prior_terms(q, z, analytic_kl),
        )

    def prior_terms(self, q: Distribution, z: Tensor, analytic_kl: bool) -> list[Term]:
        """The bound's terms that hold the prior, for draws z of q."""
        p = self.prior()
        if analytic_kl:
            kl_z = kl_divergence(q, p).sum(-1)  # (n_cells,)
        else:
            kl_z = (q.log_prob(z) - p.log_prob(z)).sum(-1)  # (n_samples, n_cells)
        return [Term("kl_z", "KL(q(z|x)‖p(z))", -1, kl_z, SOURCE, warm_up=True)]
