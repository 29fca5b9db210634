"""Draws that gradients pass through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["gaussian", "seeded"]


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from ``seed``; afterwards it goes on as if nothing had happened."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
