"""Arguments that do not fit get one sentence."""

from __future__ import annotations

__all__ = ["require"]


def require(name: str, value, kind: type, fits, what: str) -> None:
    """Refuse an argument that is not a number of a kind, or that does not fit.

    Raises
    ------
    ValueError
        With the argument's name and value, and ``what`` it must be.
    """
    if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
        raise ValueError(f"{name} is {value!r}; it must be {what}.")
