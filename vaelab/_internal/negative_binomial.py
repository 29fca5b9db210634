"""The negative binomial's log-probability, with derivatives written by hand.

Training spends most of its time here; :mod:`vaelab.distributions` builds on these functions.
Autograd would give the same derivatives more slowly, and the tests compare the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

__all__ = ["log_rising_factorial", "negative_binomial_log_prob"]

# Stirling's series: log Γ(a) = (a − ½) log a − a + ½ log 2π + Σ_n c_n / a^(2n−1), with
# c_n = B_2n / (2n (2n − 1)).
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def log_rising_factorial(theta: Tensor, x: Tensor) -> Tensor:
    """log Γ(x+θ) − log Γ(θ) = log θ(θ+1)…(θ+x−1), for θ > 0 and x ≥ 0.

    The two log-gammas cancel if θ is large: float32 loses half a nat at θ = 1e6. So both arguments
    are first raised by Γ(a+1) = a Γ(a), until Stirling's series is accurate. The two series are
    then subtracted on paper, before any number is computed.
    """
    n_steps, coefficients = _precision(theta)
    low, high = theta + n_steps, x + theta + n_steps
    value = (low - 0.5) * torch.log1p(x / low) + x * torch.log(high) - x
    for i in range(0, n_steps, 5):  # five at once: a product of ten exceeds the range of float32
        ratio = (theta + i) / (x + theta + i)
        for j in range(i + 1, i + 5):
            ratio = ratio * ((theta + j) / (x + theta + j))
        value = value + torch.log(ratio)

    def series(a: Tensor) -> Tensor:
        square, total = 1 / (a * a), 0.0
        for c in reversed(coefficients):
            total = total * square + c
        return total / a

    return value + series(high) - series(low)


def rising_factorial_slope(theta: Tensor, x: Tensor) -> Tensor:
    """∂/∂θ of :func:`log_rising_factorial`: ψ(x+θ) − ψ(θ), computed in the same way."""
    n_steps, coefficients = _precision(theta)
    low, high = theta + n_steps, x + theta + n_steps
    steps = sum(1 / ((theta + i) * (x + theta + i)) for i in range(n_steps))

    def series(a: Tensor) -> Tensor:
        square, total = 1 / (a * a), 0.0
        for n, c in reversed([*enumerate(coefficients)]):
            total = (total + (2 * n + 1) * c) * square
        return total + 0.5 / a

    return torch.log1p(x / low) + x * steps + series(low) - series(high)


def _precision(theta: Tensor) -> tuple[int, tuple[float, ...]]:
    """Number of steps, and the series' coefficients: the error is below 1e-8 (float64: 3e-17)."""
    return (10, STIRLING) if theta.dtype == torch.float64 else (5, STIRLING[:3])


class _LogProb(torch.autograd.Function):
    """log ZINB(x; μ, θ, g) and its derivatives; log NB(x; μ, θ) if g is None.

    With r = log(1+μ/θ), log NB(0) = −θr and u = log NB(0) − g:

    =====  ===========================================  =====================================
    .      x = 0                                        x > 0
    =====  ===========================================  =====================================
    log p  logaddexp(log σ(g), log σ(−g) + log NB(0))   log σ(−g) + log NB(x)
    ∂/∂μ   −θ/(θ+μ) · σ(u)                              (x/μ − 1) θ/(θ+μ)
    ∂/∂θ   (μ/(θ+μ) − r) · σ(u)                         (μ−x)/(θ+μ) − r + ψ(x+θ) − ψ(θ)
    ∂/∂g   σ(−u) σ(−g) − σ(u) σ(g)                      −σ(g)
    =====  ===========================================  =====================================

    σ(u) = P(not dropped | x = 0), which is 1 for the NB. Most counts are zero. So the left column
    is computed for all entries and then replaced where x > 0. No zero costs an lgamma.
    """

    @staticmethod
    def forward(ctx, x, mean, inverse_dispersion, logits):
        μ, θ, g = mean, inverse_dispersion, logits
        r = torch.log1p(μ / θ)
        log_p = (θ * r).neg_()
        if g is not None:
            u = log_p - g
            # logaddexp is the larger + log(1 + e^−|u|), and log σ(±g) has the same form. The two
            # logs are joined into one: with s = σ(−|·|), the log of (1 − s_g)/(1 − s_u).
            s_u, s_g = u.abs_().neg_().sigmoid_(), g.abs().neg_().sigmoid_()
            log_p = torch.maximum(g.clamp(max=0), log_p.sub_(g.clamp(min=0)))
            log_p += (s_u - s_g).div_(s_u.neg_().add_(1)).log1p_()
        k = (x.reshape(-1) != 0).nonzero().squeeze(1)
        x, μ, θ, r_k = _at(k, x, μ, θ, r)
        x = x.to(μ.dtype)  # as precise as the parameters
        log_p_k = log_rising_factorial(θ, x) - torch.lgamma(x + 1) - θ * r_k
        log_p_k += x * logsigmoid(μ.log() - θ.log())
        if g is not None:
            log_p_k += logsigmoid(-_at(k, g)[0])
        ctx.save_for_backward(mean, inverse_dispersion, logits, r, k, x)
        return log_p.view(-1).scatter_(0, k, log_p_k).view(mean.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        μ, θ, g, r, k, x = ctx.saved_tensors
        both = θ + μ
        by_μ, by_θ, by_g = (θ / both).neg_(), (μ / both).sub_(r), None
        μ_k, θ_k, both_k, by_θ_k = _at(k, μ, θ, both, by_θ)
        if g is not None:
            u = (θ * r).add_(g).neg_()
            kept, dropped = torch.sigmoid(u), u.neg_().sigmoid_()
            by_g = dropped.mul_(torch.sigmoid(-g)).addcmul_(kept, torch.sigmoid(g), value=-1)
            by_g.view(-1).scatter_(0, k, _at(k, g)[0].sigmoid_().neg_())
            by_g *= grad
            by_μ *= kept
            by_θ *= kept
        by_μ.view(-1).scatter_(0, k, (x / μ_k - 1) * θ_k / both_k)
        by_θ_k += rising_factorial_slope(θ_k, x) - x / both_k
        by_θ.view(-1).scatter_(0, k, by_θ_k)
        return None, by_μ.mul_(grad), by_θ.mul_(grad), by_g


def _at(k: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The entries at flat positions k."""
    return [tensor.reshape(-1).index_select(0, k) for tensor in tensors]


def negative_binomial_log_prob(
    x: Tensor, mean: Tensor, inverse_dispersion: Tensor, logits: Tensor | None = None
) -> Tensor:
    """log NB(x; μ, θ) in nats, or log ZINB(x; μ, θ, g) with dropout logits g; all of one shape.

    It can be differentiated once in μ, θ and g. ``CountDistribution.log_prob`` leaves the gradient
    to autograd: use it for derivatives of higher order, or to compare.
    """
    return _LogProb.apply(x, mean, inverse_dispersion, logits)
