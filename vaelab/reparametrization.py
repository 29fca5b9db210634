"""Draws that pass gradients on, and the score-function estimator for draws that do not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

from ._internal.arguments import require_seed

__all__ = ["gaussian", "gumbel_softmax", "score_function", "seeded"]

ONE_AT_A_TIME = threading.RLock()


def gaussian(mean: Tensor, std: Tensor, n_samples: int | None = None) -> Tensor:
    """z = m + s·ε with ε ~ N(0, I): a draw from N(m, s²) that is differentiable in m and s.

    Kingma & Welling (2014), section 2.4.

    Parameters
    ----------
    mean, std
        Mean m and standard deviation s (not a variance), both of shape (…).
    n_samples
        Number of independent draws S, in a new first dimension; None for one draw without it.

    Returns
    -------
    The draws z, shape (…) or (S, …).
    """
    shape = mean.shape if n_samples is None else (n_samples, *mean.shape)
    ε = torch.randn(shape, dtype=mean.dtype, device=mean.device)
    return mean + std * ε


def gumbel_softmax(
    logits: Tensor, temperature: float, hard: bool = False, n_samples: int | None = None
) -> Tensor:
    """y = softmax((log π + g)/τ): a draw from Cat(π), relaxed so that it has a gradient.

    The largest entry of log π + g, with g = −log e and e ~ Exponential(1), is k with probability
    π_k, at any temperature (Gumbel-max). But E[y] ≠ π for τ > 0, so that its gradients are biased.

    Jang, Gu & Poole (2017), equation 2; Maddison, Mnih & Teh (2017), definition 1.

    Parameters
    ----------
    logits
        log π up to a constant, shape (…, K); −inf for a category that is never drawn.
    temperature
        Temperature τ. As τ → 0, y becomes one-hot and the variance of its gradient grows without
        limit.
    hard
        True for a one-hot y, an exact draw from Cat(π), with the gradient of the relaxed y
        (straight-through).
    n_samples
        Number of independent draws S, in a new first dimension; None for one draw without it.

    Returns
    -------
    The draws y, shape (…, K) or (S, …, K); they sum to 1 over the last dimension.

    Raises
    ------
    ValueError
        The temperature is not finite, or not a positive number in the precision of the logits.
    """
    if not torch.finfo(logits.dtype).tiny <= temperature < float("inf"):
        raise ValueError(
            f"The temperature is {temperature}; it must be positive and finite. For one-hot draws, "
            "as at temperature 0, pass hard=True."
        )
    shape = logits.shape if n_samples is None else (n_samples, *logits.shape)
    exponential = torch.empty(shape, dtype=logits.dtype, device=logits.device).exponential_()
    scores = logits - exponential.log()  # exponential_ never gives 0, so nothing is infinite
    scores = scores - scores.detach().amax(-1, keepdim=True)  # nothing overflows if τ is small
    y = (scores / temperature).softmax(-1)
    if not hard:
        return y
    # The argmax of the scores, not of y, whose entries float32 rounds to one value if τ is large.
    one_hot = torch.nn.functional.one_hot(scores.argmax(-1), logits.shape[-1]).to(y.dtype)
    return one_hot + (y - y.detach())  # the bracket is 0 but has the gradient of y


def score_function(
    f: Callable[[Tensor], Tensor], q: Distribution, n_samples: int = 1, baseline: bool = False
) -> Tensor:
    """The mean of f(z) over draws from q, with the gradient E_q[f(z) ∇log q(z)].

    This is the score-function estimator, also called REINFORCE. It works for any q that can be
    sampled, also a discrete one, and for any f, because z itself needs no gradient. It has no bias,
    but a larger variance than :func:`gaussian` if both can be used.

    Williams (1992), theorem 1. Kool, van Hoof & Welling (2019) for the leave-one-out baseline
    (RLOO).

    Parameters
    ----------
    f
        Function of z, which has shape (S, …) as from ``q.sample``. The dimensions of its values
        are the first ones of z. The gradient in f's own parameters is kept.
    q
        Distribution of z. Its dimensions beyond those of f's values must be independent; their
        log-probabilities are summed.
    n_samples
        Number of draws, S.
    baseline
        True to subtract from each value, in the gradient, the mean of the other draws' values. The
        expected gradient stays the same, and its variance is usually much smaller.

    Returns
    -------
    The mean, in the shape of f's values without their first dimension.

    Raises
    ------
    ValueError
        ``baseline`` is True and there is only one draw.
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
    """Inside, torch draws from ``seed``; afterwards its random state is what it was before.

    All threads share torch's random state. So one thread at a time is inside, and others wait.

    Raises
    ------
    ValueError
        ``seed`` is not a whole number from 0 to 2⁶³ − 1.
    """
    require_seed(seed)
    with ONE_AT_A_TIME, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
