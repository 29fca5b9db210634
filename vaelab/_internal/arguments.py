"""Argument checks. Each raises a ValueError with one clear sentence."""

from __future__ import annotations

from numbers import Integral

import numpy as np

__all__ = ["require", "require_library", "require_seed", "require_size"]


def require(name: str, value, kind: type, fits, expected: str) -> None:
    """Refuse an argument that is not of a kind, or for which ``fits(value)`` is False.

    Raises
    ------
    ValueError
        The argument is refused. The message has its name, its value, and what was ``expected``.
    """
    if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
        raise ValueError(f"{name} is {value!r}; it must be {expected}.")


def require_size(name: str, value) -> None:
    """Refuse an argument that is not a whole number, at least 1."""
    require(name, value, Integral, lambda n: n >= 1, "a whole number, at least 1")


def require_seed(value, bits: int = 63) -> None:
    """Refuse a random seed that is not a whole number of so many bits."""
    expected = f"a whole number from 0 to 2{'⁶³' if bits == 63 else '³²'} − 1"
    require("seed", value, Integral, lambda n: 0 <= n < 2**bits, expected)


def require_library(library, n_cells: int) -> np.ndarray:
    """The library sizes as an array; refuses what is not a number above 0, or one per cell."""
    try:
        sizes = np.asarray(library).astype(float)  # a copy: what pandas lends may be read-only
        fits = sizes.shape in ((), (n_cells,)) and not np.ma.is_masked(library)
    except (TypeError, ValueError):  # text, for example
        fits = False
    if not (fits and np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(
            f"library is {library!r} (shape {np.shape(library)}); it must be a number above 0, or "
            f"one for each of the {n_cells:,} cells."
        )
    return sizes
