"""Likelihoods: the last layer of a decoder, which returns the distribution p(x | z).

``LIKELIHOODS[name](n_in, n_genes)`` is a module that takes the decoder's last hidden layer h and
the library size ℓ. It returns the distribution of all genes of a cell:

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

with ρ = softmax f(h), the share of each gene in the cell's counts (Lopez et al. 2018).

To add a likelihood:

1. Write its distribution, if torch has none: in :mod:`vaelab.distributions`, with ``log_prob``,
   ``mean``, ``variance`` and ``sample``.
2. Write its class here: a :class:`Likelihood` with the ``domain`` of its data, its own parameters,
   and ``forward(h, library, batch)``, which returns the distribution.
3. Add it to ``LIKELIHOODS`` at the end of this file, and to the table above.

Nothing else changes: models know likelihoods by name and domain only.
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
        Number of genes, G.
    dispersion
        What the inverse dispersion θ of a negative binomial depends on: "gene" (one θ per gene, the
        field's default), "gene-batch" (one per gene and batch) or "gene-cell" (the decoder gives θ
        for each gene of each cell, as in Grønbech et al. 2020).
    n_batches
        Number of batches; only the dispersion "gene-batch" uses it.

    Raises
    ------
    ValueError
        This likelihood does not have that dispersion, or "gene-batch" comes without batches.
    """

    domain = "counts"  # what the data must be: see Cells.require_domain
    n_outputs = 1  # how many numbers the decoder gives per gene
    dispersions: tuple[str, ...] = ("gene",)
    learning_rate = 0.1  # of its own parameters (log θ), which have far to go from their start

    def __init__(self, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0):
        super().__init__()
        if dispersion not in self.dispersions:
            raise ValueError(f"dispersion is {dispersion!r}; choose from {[*self.dispersions]}")
        if dispersion == "gene-batch" and n_batches < 1:
            raise ValueError(
                f"dispersion 'gene-batch' needs batches, but n_batches is {n_batches}. Of the "
                "models, those with batches have it: see vaelab.SCVI."
            )
        self.n_genes, self.dispersion = int(n_genes), dispersion
        self.output = nn.Linear(n_in, n_genes * (self.n_outputs + (dispersion == "gene-cell")))

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        """The distribution of x.

        Parameters
        ----------
        h
            The decoder's last hidden layer, shape (…, n_in).
        library
            Library size ℓ, the expected total count of each cell, shape (…). Only count likelihoods
            use it.
        batch
            Index of each cell's batch, shape (n_cells,). Only the dispersion "gene-batch" uses it.

        Returns
        -------
        A distribution with ``batch_shape`` (…, G).
        """
        raise NotImplementedError

    def outputs(self, h: Tensor) -> tuple[Tensor, ...]:
        """The output layer applied to h, split into tensors of shape (…, G)."""
        return self.output(h).split(self.n_genes, dim=-1)


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x, low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad):
        x, low, high = ctx.saved_tensors
        outwards = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))
        return grad.masked_fill(outwards, 0.0), None, None


def bounded(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """x within [low, high], for a parameter that gradient descent can bring back.

    The gradient of ``clamp`` is 0 outside, so that a parameter that once left would stay there for
    ever. Here a gradient that leads back passes, and only one that leads further out is 0.
    """
    return _Bounded.apply(x, torch.as_tensor(low).to(x), torch.as_tensor(high).to(x))


def count_mean(logits: Tensor, library: Tensor) -> Tensor:
    """μ = ℓρ with ρ = softmax(logits).

    A share that float32 would round to 0 stays at 1e-30. A count of such a gene is then almost
    impossible, and its gradient is still a number. Shares above 1e-22 do not change by a bit.
    """
    return library.unsqueeze(-1) * (torch.softmax(logits, dim=-1) + 1e-30)


class NormalLikelihood(Likelihood):
    """Normal(f_g(h), σ_g), with σ_g = s_g exp(``log_std``_g).

    s_g is the gene's standard deviation over the cells that the model is fitted to: σ starts there,
    in the units of the gene, and stays above 0.7 % (e⁻⁵) of it. Without a limit an almost constant
    gene would drive σ to 0 and the density to ∞. Before the fit, s_g is 1.
    """

    domain = "real"
    learning_rate = 0.0025  # faster, σ becomes too narrow for cells that were not seen

    def __init__(self, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0):
        super().__init__(n_in, n_genes, dispersion, n_batches)
        self.log_std = nn.Parameter(torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))

    def set_scale(self, std: Tensor) -> None:
        """Set s_g from standard deviations, shape (n_genes,); constant genes get the smallest."""
        varying = std[std > 0]
        self.scale.copy_(std.where(std > 0, varying.min() if len(varying) else 1.0))

    @property
    def std(self) -> Tensor:
        """σ of each gene, shape (n_genes,)."""
        return self.scale * bounded(self.log_std, -5, torch.inf).exp()

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        (mean,) = self.outputs(h)
        return Normal(mean, self.std, validate_args=False)


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

    def negative_binomial(self, logits: Tensor, from_decoder: list[Tensor], library: Tensor, batch):
        """NB(ℓρ, θ); ``from_decoder`` holds log θ for the dispersion "gene-cell", else nothing."""
        if from_decoder:
            (log_θ,) = from_decoder
        elif self.dispersion == "gene-batch":
            log_θ = self.log_inverse_dispersion[batch]
        else:
            log_θ = self.log_inverse_dispersion
        # In float32 the NB equals a Poisson for θ above e^12; its gradient in θ is rounding error.
        θ = bounded(log_θ, -12, 12).exp()
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
    """The likelihood of that name; the other arguments are those of :class:`Likelihood`.

    Raises
    ------
    ValueError
        The name is not in ``LIKELIHOODS``, or the likelihood does not have that dispersion.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood is {name!r}; choose from {[*LIKELIHOODS]}")
    return LIKELIHOODS[name](n_in, n_genes, dispersion, n_batches)
