"""Arguments that do not fit get one sentence."""

from __future__ import annotations

from numbers import Integral

__all__ = ["given", "require", "size"]


def require(name: str, value, kind: type, fits, what: str) -> None:
    """Refuse an argument that is not a number of a kind, or that does not fit.

    Raises
    ------
    ValueError
        With the argument's name and value, and ``what`` it must be.
    """
    if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
        raise ValueError(f"{name} is {value!r}; it must be {what}.")


def size(name: str, value) -> None:
    """Refuse what is not a whole number, at least 1."""
    require(name, value, Integral, lambda n: n >= 1, "a whole number, at least 1")


def given(local: dict) -> dict:
    """The arguments of a constructor, if its first line hands over its ``locals()``."""
    return {name: value for name, value in local.items() if name not in ("self", "__class__")}
