"""Draws that gradients pass through, and the estimator for draws that they do not pass through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["gaussian", "gumbel_softmax", "score_function", "seeded"]


def gaussian(mean: Tensor, std: Tensor, n_samples: int | None = None) -> Tensor:
    """z = m + s·ε with ε ~ N(0, I): a draw from N(m, s²) that is differentiable in m and s.

    Kingma & Welling (2014), section 2.4.

    Parameters
    ----------
    mean, std
        m and s, of one shape (…). s is a standard deviation, not a variance.
    n_samples
        S independent draws in a new first dimension; None for one draw without it.

    Returns
    -------
    z, shape (…) or (S, …).
    """
    shape = mean.shape if n_samples is None else (n_samples, *mean.shape)
    ε = torch.randn(shape, dtype=mean.dtype, device=mean.device)
    return mean + std * ε


def gumbel_softmax(
    logits: Tensor, temperature: float, hard: bool = False, n_samples: int | None = None
) -> Tensor:
    """y = softmax((log π + g)/τ): a draw from Cat(π), relaxed until a gradient passes through it.

    The largest entry of log π + g, with g = −log e and e ~ Exponential(1), is k with probability
    π_k, at any temperature (Gumbel-max). But E[y] ≠ π for τ > 0, so that its gradients are biased.

    Jang, Gu & Poole (2017), equation 2; Maddison, Mnih & Teh (2017), definition 1.

    Parameters
    ----------
    logits
        log π up to a constant, shape (…, K); −inf for what is never drawn.
    temperature
        τ. As τ → 0, y becomes one-hot and the variance of its gradient grows without limit.
    hard
        One-hot, an exact draw from Cat(π), with the gradient of the relaxation (straight-through).
    n_samples
        S independent draws in a new first dimension; None for one draw without it.

    Returns
    -------
    y, shape (…, K) or (S, …, K); sums to 1 over the last dimension.

    Raises
    ------
    ValueError
        The temperature is not a positive number that the logits' precision can hold.
    """
    if not torch.finfo(logits.dtype).tiny <= temperature < float("inf"):
        raise ValueError(
            f"The temperature is {temperature}; it must be positive and finite. For draws that are "
            "one-hot, as at temperature 0, pass hard=True."
        )
    shape = logits.shape if n_samples is None else (n_samples, *logits.shape)
    exponential = torch.empty(shape, dtype=logits.dtype, device=logits.device).exponential_()
    scores = logits - exponential.log()  # exponential_ never gives 0, so nothing is infinite
    scores = scores - scores.detach().amax(-1, keepdim=True)  # nothing overflows if τ is small
    y = (scores / temperature).softmax(-1)
    if not hard:
        return y
    # Not the largest of y, whose entries are all the same to float32 if τ is large.
    one_hot = torch.nn.functional.one_hot(scores.argmax(-1), logits.shape[-1]).to(y.dtype)
    return one_hot + (y - y.detach())  # the bracket is 0 and has the gradient of y


def score_function(
    f: Callable[[Tensor], Tensor], q: Distribution, n_samples: int = 1, baseline: bool = False
) -> Tensor:
    """The mean of f(z) over draws from q, with the gradient E_q[f(z) ∇log q(z)].

    For any q that can be drawn from, discrete ones too, and any f: z itself has no gradient.
    Without bias, but of larger variance than :func:`gaussian` gives where both can be used.

    Williams (1992), theorem 1; the baseline: Kool, van Hoof & Welling (2019).

    Parameters
    ----------
    f
        Of z, shape (S, …) as ``q.sample`` gives it; its values' dimensions are the first ones of
        z. Their gradient in parameters that f has of its own is kept.
    q
        Its dimensions that f's values do not have are independent, and summed over.
    n_samples
        S.
    baseline
        Subtract from each value the mean of the others' in the gradient: the expected gradient is
        the same, its variance as a rule much smaller.

    Returns
    -------
    Of the shape of f's values without their first dimension.

    Raises
    ------
    ValueError
        A baseline from a single draw.
    """
    if baseline and n_samples < 2:
        raise ValueError(
            f"A baseline is the mean of the other draws, but n_samples is {n_samples}; "
            "draw at least two."
        )
    z = q.sample((n_samples,))
    values, log_q = f(z), q.log_prob(z)
    if log_q.ndim > values.ndim:
        log_q = log_q.flatten(values.ndim).sum(-1)
    weight = values.detach()
    if baseline:
        weight = (weight - weight.mean(0)) * n_samples / (n_samples - 1)
    return (values + weight * (log_q - log_q.detach())).mean(0)  # the bracket is 0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from ``seed``; afterwards it goes on as if nothing had happened."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
