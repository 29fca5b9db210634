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

A count is a Poisson with a random effect: x_g ~ Poisson(μ_g u_g), with μ_g = ℓ ρ_g. The effect u is
1 (poisson), Gamma with mean 1 and shape θ (nb), or one of them times a Bernoulli (zip, zinb). What
the parameters of u depend on is said by ``dispersion`` and ``zero_inflation``. Without "gene-cell"
u is noise without structure, because the decoder does not give its parameters (Sarkar 2019).

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
from torch.nn.functional import softplus

from .distributions import (
    ContinuousBernoulli,
    CountDistribution,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)

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
        for each gene of each cell, as in Grønbech et al. 2020), or "scalar" (one θ for all).
    n_batches
        Number of batches; only the dispersion "gene-batch" uses it.
    zero_inflation
        What the dropout logits of a zero-inflated likelihood depend on: "gene-cell" (they are
        outputs of the decoder), "gene" or "scalar".
    library
        "observed" for μ = ℓ softmax f(h). "none" for μ = softplus f(h): the decoder then gives the
        mean of each count itself, and ℓ is not used (Sarkar 2019).

    Raises
    ------
    ValueError
        This likelihood does not have that dispersion, zero inflation or library, or "gene-batch"
        comes without batches.
    """

    domain = "counts"  # what the data must be: see Cells.require_domain
    dispersions: tuple[str, ...] = ("gene",)
    zero_inflations: tuple[str, ...] = ("gene-cell",)
    learning_rate = 0.1  # of its own parameters (log θ), which have far to go from their start

    def __init__(
        self, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0, *,
        zero_inflation: str = "gene-cell", library: str = "observed",
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (
            ("dispersion", dispersion, self.dispersions),
            ("zero_inflation", zero_inflation, self.zero_inflations),
            (
                "library",
                library,
                ("observed", "none") if self.domain == "counts" else ("observed",),
            ),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} is {value!r}; choose from {[*known]} for this likelihood."
                )
        if dispersion == "gene-batch" and n_batches < 1:
            raise ValueError(
                f"dispersion 'gene-batch' needs batches, but n_batches is {n_batches}. Of the "
                "models, those with batches have it: see vaelab.SCVI."
            )
        self.n_genes, self.dispersion, self.library = int(n_genes), dispersion, library
        inflated = len(self.zero_inflations) > 1
        if inflated and zero_inflation != "gene-cell":
            self.dropout_logits = nn.Parameter(
                torch.zeros(() if zero_inflation == "scalar" else n_genes)
            )
        n_outputs = 1 + (inflated and zero_inflation == "gene-cell") + (dispersion == "gene-cell")
        self.output = nn.Linear(n_in, n_genes * n_outputs)

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

    def count_mean(self, logits: Tensor, library: Tensor) -> Tensor:
        """μ = ℓ softmax(logits), or softplus(logits) without ℓ.

        A share that float32 would round to 0 stays at 1e-30. A count of such a gene is then almost
        impossible, and its gradient is still a number. Shares above 1e-22 do not change by a bit.
        """
        if self.library == "none":
            return softplus(logits) + 1e-30
        return library.unsqueeze(-1) * (torch.softmax(logits, dim=-1) + 1e-30)

    def zero_inflated(self, base: CountDistribution, from_decoder: list[Tensor]) -> ZeroInflated:
        """The base with dropout; ``from_decoder`` has the logits for "gene-cell", else nothing."""
        (logits,) = from_decoder or [self.dropout_logits]
        return ZeroInflated(base, logits, validate_args=False)


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


class NormalLikelihood(Likelihood):
    """Normal(f_g(h), σ_g), with σ_g = s_g exp(``log_std``_g).

    s_g is the gene's standard deviation over the cells that the model is fitted to: σ starts there,
    in the units of the gene, and stays above 0.7 % (e⁻⁵) of it. Without a limit an almost constant
    gene would drive σ to 0 and the density to ∞. Before the fit, s_g is 1.
    """

    domain = "real"
    learning_rate = 0.0025  # faster, σ becomes too narrow for cells that were not seen

    def __init__(self, n_in: int, n_genes: int, *options, **more):
        super().__init__(n_in, n_genes, *options, **more)
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
        return Poisson(self.count_mean(logits, library), validate_args=False)


class ZeroInflatedPoissonLikelihood(Likelihood):
    zero_inflations = ("scalar", "gene", "gene-cell")

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        logits, *dropout_logits = self.outputs(h)
        base = Poisson(self.count_mean(logits, library), validate_args=False)
        return self.zero_inflated(base, dropout_logits)


class NegativeBinomialLikelihood(Likelihood):
    dispersions = ("scalar", "gene", "gene-batch", "gene-cell")

    def __init__(
        self, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0, **options
    ):
        super().__init__(n_in, n_genes, dispersion, n_batches, **options)
        shapes = {"scalar": (), "gene": (n_genes,), "gene-batch": (n_batches, n_genes)}
        if dispersion in shapes:
            self.log_inverse_dispersion = nn.Parameter(torch.zeros(shapes[dispersion]))

    def negative_binomial(self, logits: Tensor, from_decoder: list[Tensor], library: Tensor, batch):
        """NB(μ, θ); ``from_decoder`` holds log θ for the dispersion "gene-cell", else nothing."""
        if from_decoder:
            (log_θ,) = from_decoder
        elif self.dispersion == "gene-batch":
            log_θ = self.log_inverse_dispersion[batch]
        else:
            log_θ = self.log_inverse_dispersion
        # In float32 the NB equals a Poisson for θ above e^12; its gradient in θ is rounding error.
        θ = bounded(log_θ, -12, 12).exp()
        return NegativeBinomial(self.count_mean(logits, library), θ, validate_args=False)

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        logits, *log_θ = self.outputs(h)
        return self.negative_binomial(logits, log_θ, library, batch)


class ZeroInflatedNegativeBinomialLikelihood(NegativeBinomialLikelihood):
    zero_inflations = ("scalar", "gene", "gene-cell")

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        logits, *rest = self.outputs(h)
        n_theta = self.dispersion == "gene-cell"  # log θ is the last of the outputs, if it is one
        dropout_logits, log_θ = rest[: len(rest) - n_theta], rest[len(rest) - n_theta :]
        base = self.negative_binomial(logits, log_θ, library, batch)
        return self.zero_inflated(base, dropout_logits)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "normal": NormalLikelihood,
    "continuous_bernoulli": ContinuousBernoulliLikelihood,
    "poisson": PoissonLikelihood,
    "zip": ZeroInflatedPoissonLikelihood,
    "nb": NegativeBinomialLikelihood,
    "zinb": ZeroInflatedNegativeBinomialLikelihood,
}


def make_likelihood(
    name: str, n_in: int, n_genes: int, dispersion: str = "gene", n_batches: int = 0, **options
) -> Likelihood:
    """The likelihood of that name; the other arguments are those of :class:`Likelihood`.

    Raises
    ------
    ValueError
        The name is not in ``LIKELIHOODS``, or the likelihood does not have one of the options.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood is {name!r}; choose from {[*LIKELIHOODS]}")
    return LIKELIHOODS[name](n_in, n_genes, dispersion, n_batches, **options)
