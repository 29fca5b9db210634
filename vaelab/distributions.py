"""Distributions of one gene in one cell, in the form of ``torch.distributions``.

======================  ============================================  =========================
distribution            parameters                                    other parametrisations
======================  ============================================  =========================
Poisson                 rate μ
NegativeBinomial        mean μ, inverse dispersion θ                  r and p, torch's, DESeq's
ZeroInflated            a count distribution, dropout logits g        dropout probability π
ContinuousBernoulli     logits η                                      λ = σ(η)
SideBySide              distributions of sections of the columns
======================  ============================================  =========================

Counts are mostly zero, and ``log p(0)`` needs no log-gamma. A count distribution therefore has two
methods: ``log_prob_zero`` for every entry, and ``log_prob_positive`` for the few entries above
zero. :class:`CountDistribution` combines them. Models spend their time on the negative binomials,
whose ``log_prob`` has a gradient written by hand. ``log_prob_textbook`` is the formula as books
print it: it is slower, and exact only if nothing in it cancels. No formula here adds an epsilon
inside a logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from ._internal.negative_binomial import log_rising_factorial, negative_binomial_log_prob

__all__ = [
    "ContinuousBernoulli",
    "CountDistribution",
    "NegativeBinomial",
    "Poisson",
    "SideBySide",
    "ZeroInflated",
]


class CountDistribution(Distribution):
    """A distribution on 0, 1, 2, … that computes its zeros apart from the other counts.

    A subclass lists its parameters in ``arg_constraints``; each is a tensor of ``batch_shape``. It
    defines :meth:`log_prob_zero` and :meth:`log_prob_positive`, from which :meth:`log_prob` is
    computed. The negative binomial has a faster ``log_prob`` of its own, which training runs.
    """

    support = constraints.nonnegative_integer

    def __init__(self, batch_shape: torch.Size, validate_args: bool | None = None):
        super().__init__(batch_shape, validate_args=validate_args)

    def log_prob_zero(self) -> Tensor:
        """log p(0) for every entry; shape ``batch_shape``."""
        raise NotImplementedError

    def log_prob_positive(self, value: Tensor) -> Tensor:
        """log p(value) of values that are all above zero; ``value`` broadcasts with the batch."""
        raise NotImplementedError

    def log_prob_textbook(self, value: Tensor) -> Tensor:
        """log p(value) by the formula in the docstring of the class, for every entry."""
        raise NotImplementedError

    def posterior_mean(self, value: Tensor) -> Tensor:
        """E[λ | x = value], for a count that is a Poisson with a random rate λ.

        It is (x + 1) p(x + 1) / p(x), whatever the distribution of λ is (Robbins 1956). ``value``
        broadcasts with the batch.
        """
        raise NotImplementedError

    def take(self, index: Tensor) -> CountDistribution:
        """The distributions at flat positions ``index`` of the batch, as one flat batch."""
        new = object.__new__(type(self))
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).reshape(-1)[index])
        Distribution.__init__(new, index.shape, validate_args=False)
        return new

    def expand(self, batch_shape, _instance=None) -> CountDistribution:
        """The same distributions with their parameters broadcast to ``batch_shape``."""
        new = object.__new__(type(self))
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), in nats; ``value`` broadcasts with the batch.

        Raises
        ------
        ValueError
            Arguments are validated, and a value is negative or fractional.
        """
        here, value = self._together(value)
        shape, value = value.shape, value.reshape(-1)
        positive = value.nonzero().squeeze(1)
        log_prob = here.log_prob_zero().reshape(-1)
        value = value[positive].to(log_prob.dtype)  # as precise as the parameters
        log_prob_positive = here.take(positive).log_prob_positive(value)
        return log_prob.index_put((positive,), log_prob_positive).reshape(shape)

    def _together(self, value: Tensor) -> tuple[CountDistribution, Tensor]:
        """These distributions and ``value``, both broadcast to one shape."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape)
        return self if shape == self.batch_shape else self.expand(shape), value.expand(shape)


class Poisson(CountDistribution):
    """Poisson(x; μ) = μ^x e^{−μ} / x!"""

    arg_constraints = {"rate": constraints.nonnegative}

    def __init__(self, rate: Tensor, validate_args: bool | None = None):
        (self.rate,) = broadcast_all(rate)
        super().__init__(self.rate.shape, validate_args)

    @property
    def mean(self) -> Tensor:
        return self.rate

    @property
    def variance(self) -> Tensor:
        return self.rate

    def log_prob_zero(self) -> Tensor:
        return -self.rate

    def log_prob_positive(self, value: Tensor) -> Tensor:
        return value * self.rate.log() - self.rate - torch.lgamma(value + 1)

    log_prob_textbook = log_prob_positive

    def posterior_mean(self, value: Tensor) -> Tensor:
        """μ: the rate is not random."""
        here, _ = self._together(value)
        return here.rate

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        rate = self.rate.expand(self._extended_shape(torch.Size(sample_shape)))
        return _draw(torch.poisson, rate)


class NegativeBinomial(CountDistribution):
    """NB(x; μ, θ) = Γ(x+θ) / (Γ(θ) x!) · (θ/(θ+μ))^θ · (μ/(θ+μ))^x

    A Poisson whose rate is drawn from a Gamma with mean μ and shape θ. Its variance is μ + μ²/θ,
    larger than the Poisson's (overdispersion). θ → ∞ gives the Poisson.

    Parameters
    ----------
    mean
        The expected count, μ ≥ 0.
    inverse_dispersion
        The inverse dispersion, θ > 0. DESeq2's dispersion is 1/θ: see :meth:`from_dispersion`.

    Notes
    -----
    Other books and packages write the NB with a number of events r = θ and a probability. Ask
    which outcome the probability belongs to: it is the only difference between :meth:`from_r_p`
    and :meth:`from_total_count`.

    Training runs :meth:`log_prob`, which has a gradient written by hand.
    """

    arg_constraints = {"mean": constraints.nonnegative, "inverse_dispersion": constraints.positive}
    mean: Tensor = None  # a parameter here, but a property in the base class

    def __init__(self, mean: Tensor, inverse_dispersion: Tensor, validate_args: bool | None = None):
        self.mean, self.inverse_dispersion = broadcast_all(mean, inverse_dispersion)
        super().__init__(self.mean.shape, validate_args)

    @classmethod
    def from_r_p(cls, r: Tensor, p: Tensor) -> NegativeBinomial:
        """The form of scipy and of Grønbech et al. (2020): NB ∝ p^r (1−p)^x, mean r(1−p)/p."""
        r, p = broadcast_all(r, p)
        return cls(r * (1 - p) / p, r)

    @classmethod
    def from_total_count(
        cls, total_count: Tensor, probs: Tensor | None = None, logits: Tensor | None = None
    ) -> NegativeBinomial:
        """The form of torch: ``probs`` is 1 − p of :meth:`from_r_p`; ``logits`` = log μ − log θ.

        Raises
        ------
        ValueError
            Both or neither of ``probs`` and ``logits`` are given.
        """
        if (probs is None) == (logits is None):
            both = "both" if probs is not None else "neither"
            raise ValueError(f"Give one of probs and logits; this call gives {both}.")
        if logits is not None:
            total_count, logits = broadcast_all(total_count, logits)
            return cls(total_count * logits.exp(), total_count)
        total_count, probs = broadcast_all(total_count, probs)
        return cls(total_count * probs / (1 - probs), total_count)

    @classmethod
    def from_dispersion(cls, mean: Tensor, dispersion: Tensor) -> NegativeBinomial:
        """The form of DESeq2: variance = mean + dispersion · mean².

        Raises
        ------
        ValueError
            A dispersion is 0: the distribution is then a Poisson.
        """
        mean, dispersion = broadcast_all(mean, dispersion)
        if (dispersion == 0).any():
            raise ValueError(
                "A dispersion is 0; it must be above 0. A negative binomial of dispersion 0 is a "
                "Poisson: use Poisson(mean)."
            )
        return cls(mean, 1 / dispersion)

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean**2 / self.inverse_dispersion

    # Not run in training (see log_prob): written for comparison, and for second derivatives.

    def log_prob_zero(self) -> Tensor:
        return -self.inverse_dispersion * torch.log1p(self.mean / self.inverse_dispersion)

    def log_prob_positive(self, value: Tensor) -> Tensor:
        θ, μ = self.inverse_dispersion, self.mean
        return (
            log_rising_factorial(θ, value)
            - torch.lgamma(value + 1)
            - θ * torch.log1p(μ / θ)
            + value * logsigmoid(μ.log() - θ.log())
        )

    def log_prob_textbook(self, value: Tensor) -> Tensor:
        θ, μ = self.inverse_dispersion, self.mean
        return (
            torch.lgamma(value + θ) - torch.lgamma(θ) - torch.lgamma(value + 1)
            + θ * torch.log(θ / (θ + μ)) + value * torch.log(μ / (θ + μ))
        )  # fmt: skip

    def log_prob(self, value: Tensor) -> Tensor:
        """What training runs: the same formula, with its derivative written by hand."""
        here, value = self._together(value)
        return negative_binomial_log_prob(value, here.mean, here.inverse_dispersion)

    def posterior_mean(self, value: Tensor) -> Tensor:
        """μ (x+θ) / (μ+θ), between μ and x: the rate λ given x is Gamma(x+θ) with rate 1 + θ/μ."""
        here, x = self._together(value)
        θ, μ = here.inverse_dispersion, here.mean
        return μ * ((x + θ) / (μ + θ))

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        w = _draw(torch._standard_gamma, self.inverse_dispersion.expand(shape))
        return _draw(torch.poisson, w * (self.mean / self.inverse_dispersion))


class ZeroInflated(CountDistribution):
    """A count that is zero with probability π (dropout) and is drawn from ``base`` otherwise.

    p(0) = π + (1−π) base(0),  p(x) = (1−π) base(x) for x > 0, with π = σ(g).

    Parameters
    ----------
    base
        Any :class:`CountDistribution`. A Poisson gives ZIP, a negative binomial gives ZINB. With a
        :class:`ContinuousBernoulli` every zero is a dropout: p(0) = π, and above 0 p is a density.
    logits
        The logits g of the dropout probability, any real number; −∞ gives the base alone.
    """

    arg_constraints = {"logits": constraints.real}  # refuses NaN, allows ±∞

    def __init__(self, base: CountDistribution, logits: Tensor, validate_args: bool | None = None):
        logits = logits if isinstance(logits, Tensor) else base.mean.new_tensor(logits)
        shape = torch.broadcast_shapes(base.batch_shape, logits.shape)
        self.base = base if base.batch_shape == shape else base.expand(shape)
        self.logits = logits.expand(shape)
        super().__init__(shape, validate_args)

    @classmethod
    def from_probs(cls, base: CountDistribution, probs: Tensor) -> ZeroInflated:
        """The same distribution, from the dropout probability π instead of its logits."""
        return cls(base, torch.logit(probs))

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        keep = torch.sigmoid(-self.logits)
        return keep * (self.base.variance + torch.sigmoid(self.logits) * self.base.mean**2)

    def log_prob_zero(self) -> Tensor:
        log_π, log_1_minus_π = logsigmoid(self.logits), logsigmoid(-self.logits)
        return torch.logaddexp(log_π, log_1_minus_π + self.base.log_prob_zero())

    def log_prob_positive(self, value: Tensor) -> Tensor:
        return logsigmoid(-self.logits) + self.base.log_prob_positive(value)

    def log_prob_textbook(self, value: Tensor) -> Tensor:
        π, p = torch.sigmoid(self.logits), self.base.log_prob_textbook(value).exp()
        return torch.log(torch.where(value == 0, π + (1 - π) * p, (1 - π) * p))

    def log_prob(self, value: Tensor) -> Tensor:
        if not isinstance(self.base, NegativeBinomial):
            return super().log_prob(value)
        here, value = self._together(value)
        base = here.base
        return negative_binomial_log_prob(value, base.mean, base.inverse_dispersion, here.logits)

    def posterior_mean(self, value: Tensor) -> Tensor:
        """That of the base, times P(not dropped | x): 1 if x > 0, and σ(log base(0) − g) at 0."""
        here, x = self._together(value)
        kept = torch.sigmoid(here.base.log_prob_zero() - here.logits)
        return here.base.posterior_mean(x) * kept.where(x == 0, 1.0)

    def take(self, index: Tensor) -> ZeroInflated:
        return ZeroInflated(self.base.take(index), self.logits.reshape(-1)[index], False)

    def expand(self, batch_shape, _instance=None) -> ZeroInflated:
        return ZeroInflated(self.base.expand(batch_shape), self.logits.expand(batch_shape), False)

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        count = self.base.sample(sample_shape)
        return count * torch.bernoulli(torch.sigmoid(-self.logits).expand(count.shape))


class SideBySide(CountDistribution):
    """Two measurements of the same cells, side by side: columns of genes, then of proteins.

    The parts are distributions of shapes (…, number of columns).
    """

    arg_constraints = {}

    def __init__(self, *parts: Distribution):
        self.parts, self.widths = parts, [part.batch_shape[-1] for part in parts]
        shape = (*parts[0].batch_shape[:-1], sum(self.widths))
        super().__init__(torch.Size(shape), validate_args=False)

    mean = property(lambda self: torch.cat([part.mean for part in self.parts], -1))
    variance = property(lambda self: torch.cat([part.variance for part in self.parts], -1))

    def log_prob(self, value: Tensor) -> Tensor:
        sections = zip(self.parts, value.split(self.widths, -1), strict=True)
        return torch.cat([part.log_prob(section) for part, section in sections], -1)

    def posterior_mean(self, value: Tensor) -> Tensor:
        sections = zip(self.parts, value.split(self.widths, -1), strict=True)
        return torch.cat([part.posterior_mean(section) for part, section in sections], -1)

    def sample(self, sample_shape=()) -> Tensor:
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)


def _draw(sampler, parameter: Tensor) -> Tensor:
    """A draw on the parameter's device; MPS lacks these samplers, so there the CPU draws."""
    if parameter.device.type == "mps":
        return sampler(parameter.cpu()).to(parameter.device)
    return sampler(parameter)


class ContinuousBernoulli(Distribution):
    """CB(x; η) = η e^{ηx} / (e^η − 1) on [0, 1] (Loaiza-Ganem & Cunningham 2019).

    Its density is proportional to λ^x (1−λ)^{1−x}, with η = logit λ. Minus the binary cross-entropy
    is the logarithm of this density without the constant log C(λ) ≥ log 2. The mean is not λ.

    Parameters
    ----------
    logits
        The natural parameter η, any real number; 0 gives the uniform distribution.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        (self.logits,) = broadcast_all(logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    @classmethod
    def from_probs(cls, probs: Tensor) -> ContinuousBernoulli:
        """The form of the source, with λ in the open interval (0, 1).

        Raises
        ------
        ValueError
            A λ is 0 or 1 or beyond. At 0 and 1 there is no density: all the mass is in one point.
        """
        if not ((probs > 0) & (probs < 1)).all():
            outside = probs[~((probs > 0) & (probs < 1))][0].item()
            raise ValueError(f"A λ is {outside:g}; it must be above 0 and below 1.")
        return cls(torch.logit(probs))

    @property
    def mean(self) -> Tensor:
        """1/(1 − e^{−η}) − 1/η = ½ + ½ coth(η/2) − 1/η, the derivative of the log-normaliser."""
        η = self.logits
        series = 0.5 + η / 12 - η**3 / 720 + η**5 / 30240 - η**7 / 1209600
        η = self._away_from_zero()
        return torch.where(self._near_zero, series, 0.5 + 0.5 / torch.tanh(η / 2) - 1 / η)

    @property
    def variance(self) -> Tensor:
        """1/η² − 1/(4 sinh²(η/2)), the second derivative of the log-normaliser."""
        η = self.logits
        series = 1 / 12 - η**2 / 240 + η**4 / 6048 - η**6 / 172800
        a = self._away_from_zero().abs()
        closed = 1 / a**2 - torch.exp(-a) / torch.expm1(-a) ** 2
        return torch.where(self._near_zero, series, closed)

    def log_normalizer(self) -> Tensor:
        """log ((e^η − 1)/η): the log-density at x is ηx minus this."""
        η = self.logits
        series = η / 2 + η**2 / 24 - η**4 / 2880 + η**6 / 181440 - η**8 / 9676800
        η = self._away_from_zero()
        closed = η.clamp(min=0) + torch.log(-torch.expm1(-η.abs()) / η.abs())
        return torch.where(self._near_zero, series, closed)

    def log_prob(self, value: Tensor) -> Tensor:
        """log-density at ``value``, in nats.

        Raises
        ------
        ValueError
            Arguments are validated, and a value is outside [0, 1].
        """
        if self._validate_args:
            self._validate_sample(value)
        return value * self.logits - self.log_normalizer()

    def log_prob_zero(self) -> Tensor:
        """log P(x = 0) = −∞, for ``ZeroInflated``: a density gives no probability to one point."""
        return torch.full_like(self.logits, -torch.inf)

    log_prob_positive, take, expand = log_prob, CountDistribution.take, CountDistribution.expand

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        η = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        u = torch.rand_like(η)
        a = -η.abs().clamp(min=1e-6)
        x = torch.log1p(u * torch.expm1(a)) / a  # the inverse of the distribution function
        return torch.where(η > 0, 1 - x, x)

    # Near η = 0 the closed forms are 0/0. Both branches of a `where` must be finite, or the
    # gradient is NaN. So one branch uses a series, and the other replaces a small η by 1.
    @property
    def _near_zero(self) -> Tensor:
        return self.logits.abs() < 0.25

    def _away_from_zero(self) -> Tensor:
        return torch.where(self._near_zero, 1.0, self.logits)
