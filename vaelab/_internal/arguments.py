"""Argument checks. Each raises a ValueError with one clear sentence."""

from __future__ import annotations

from numbers import Integral

__all__ = ["require", "require_size"]


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
