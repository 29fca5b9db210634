"""Likelihoods: the last layer of a decoder, ending in the distribution p(x | z).

``LIKELIHOODS[name](n_in, n_genes)`` is a module that takes the decoder's last hidden layer h and
the library size ℓ and returns the distribution of all genes of a cell:

======================  ================================================  ===================
name                    p(x_g | z)                                        data
======================  ================================================  ===================
normal                  Normal(f_g(h), σ_g)                               any real number
continuous_bernoulli    ContinuousBernoulli(logits f_g(h))                in [0, 1]
poisson                 Poisson(ℓ ρ_g)                                    counts
zip                     the same, zero-inflated with logits g_g(h)        counts
nb                      NegativeBinomial(ℓ ρ_g, θ_g)                      counts
zinb                    the same, zero-inflated with logits g_g(h)        counts
======================  ================================================  ===================

with ρ = softmax f(h): the share of each gene in the cell's counts (Lopez et al. 2018).
To add a likelihood, write its class here, and its distribution in :mod:`vaelab.distributions`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from .distributions import ContinuousBernoulli, NegativeBinomial, Poisson, ZeroInflated

__all__ = ["LIKELIHOODS", "Likelihood", "make_likelihood"]


class Likelihood(nn.Module):
    """p(x | z) for all genes of a cell.

    Parameters
    ----------
    n_in
        Width of the decoder's last hidden layer.
    n_genes
        G, number of genes.
    dispersion
        Negative binomials only: "gene" (one θ a gene, the field's default), "gene-batch" (one a
        gene in each batch) or "gene-cell" (θ from the decoder, as Grønbech et al. 2020 have it).
    n_batches
        For "gene-batch".
    """

    domain = "counts"  # what the data must be: see vaelab.cells.Cells.check
    n_outputs = 1  # numbers a gene that the decoder gives
    dispersions: tuple[str, ...] = ("gene",)

    def __init__(self, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0):
        super().__init__()
        if dispersion not in self.dispersions:
            raise ValueError(f"dispersion is {dispersion!r}; choose from {[*self.dispersions]}")
        if dispersion == "gene-batch" and n_batches < 1:
            raise ValueError("dispersion 'gene-batch' is for models of batches: see vaelab.SCVI.")
        self.n_genes, self.dispersion = int(n_genes), dispersion
        self.output = nn.Linear(n_in, n_genes * (self.n_outputs + (dispersion == "gene-cell")))

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        """The distribution of x.

        Parameters
        ----------
        h
            Decoder's last hidden layer, shape (…, n_in).
        library
            ℓ, expected total count of a cell, shape (…); unused where data are not counts.
        batch
            Index of each cell's batch, shape (n_cells,); for the dispersion "gene-batch".

        Returns
        -------
        A distribution with ``batch_shape`` (…, G).
        """
        raise NotImplementedError

    def outputs(self, h: Tensor) -> tuple[Tensor, ...]:
        """The output layer, cut into pieces of shape (…, G)."""
        return self.output(h).split(self.n_genes, dim=-1)


def count_mean(logits: Tensor, library: Tensor) -> Tensor:
    """μ = ℓρ with ρ = softmax(logits).

    A share that float32 would round to 0 stays at 1e-30: a count of such a gene is then all but
    impossible, and its gradient still a number. Shares above 1e-22 are not changed by a bit.
    """
    return library.unsqueeze(-1) * (torch.softmax(logits, dim=-1) + 1e-30)


class NormalLikelihood(Likelihood):
    domain = "real"

    def __init__(self, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0):
        super().__init__(n_in, n_genes, dispersion, n_batches)
        self.log_std = nn.Parameter(torch.zeros(n_genes))

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        (mean,) = self.outputs(h)
        # A gene that is nearly constant would drive σ to 0 and the density to ∞.
        return Normal(mean, self.log_std.clamp(min=-5).exp(), validate_args=False)


class ContinuousBernoulliLikelihood(Likelihood):
    domain = "unit interval"

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        (logits,) = self.outputs(h)
        return ContinuousBernoulli(logits, validate_args=False)


class PoissonLikelihood(Likelihood):
    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        (logits,) = self.outputs(h)
        return Poisson(count_mean(logits, library), validate_args=False)


class ZeroInflatedPoissonLikelihood(Likelihood):
    n_outputs = 2

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        logits, dropout_logits = self.outputs(h)
        base = Poisson(count_mean(logits, library), validate_args=False)
        return ZeroInflated(base, dropout_logits, validate_args=False)


class NegativeBinomialLikelihood(Likelihood):
    dispersions = ("gene", "gene-batch", "gene-cell")

    def __init__(self, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0):
        super().__init__(n_in, n_genes, dispersion, n_batches)
        if dispersion == "gene":
            self.log_inverse_dispersion = nn.Parameter(torch.zeros(n_genes))
        elif dispersion == "gene-batch":
            self.log_inverse_dispersion = nn.Parameter(torch.zeros(n_batches, n_genes))

    def negative_binomial(self, logits: Tensor, log_θ: list[Tensor], library: Tensor, batch):
        """NB(ℓρ, θ); ``log_θ`` is empty where θ is not the cell's own."""
        if not log_θ:
            of_genes = self.log_inverse_dispersion
            log_θ = [of_genes if self.dispersion == "gene" else of_genes[batch]]
        (log_θ,) = log_θ
        # Beyond e^12 the NB is a Poisson to float32, and its gradient in θ is rounding error.
        θ = log_θ.clamp(-12, 12).exp()
        return NegativeBinomial(count_mean(logits, library), θ, validate_args=False)

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        logits, *log_θ = self.outputs(h)
        return self.negative_binomial(logits, log_θ, library, batch)


class ZeroInflatedNegativeBinomialLikelihood(NegativeBinomialLikelihood):
    n_outputs = 2

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        logits, dropout_logits, *log_θ = self.outputs(h)
        base = self.negative_binomial(logits, log_θ, library, batch)
        return ZeroInflated(base, dropout_logits, validate_args=False)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "normal": NormalLikelihood,
    "continuous_bernoulli": ContinuousBernoulliLikelihood,
    "poisson": PoissonLikelihood,
    "zip": ZeroInflatedPoissonLikelihood,
    "nb": NegativeBinomialLikelihood,
    "zinb": ZeroInflatedNegativeBinomialLikelihood,
}


def make_likelihood(
    name: str, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0
) -> Likelihood:
    """The likelihood of that name.

    Raises
    ------
    ValueError
        The name is not in ``LIKELIHOODS``, or the likelihood has no such dispersion.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood is {name!r}; choose from {[*LIKELIHOODS]}")
    return LIKELIHOODS[name](n_in, n_genes, dispersion, n_batches)
