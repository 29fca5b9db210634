"""Evidence: a claim of a lesson, the condition under which it holds, and what was measured.

A claim is a function in ``course/evidence/NN_name.py`` that takes a seed and returns numbers::

    @claim("E04.short_name", "One plain sentence.", holds=more("without", "with"))
    def short_name(seed: int) -> dict[str, float]:
        ...
        return {"with": ..., "without": ...}

``vaelab evidence 04`` calls it with every seed and writes the numbers to
``course/evidence/NN_name.json`` (see ``experiments.py``). The lesson reads that file with
:func:`read`, and ends with :func:`table`.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["Claim", "Condition", "claim", "every", "more", "near", "read", "share", "table"]

CHECKOUT = Path(__file__).parents[2] / "course"
FEWEST_SEEDS = 5


# --------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Condition:
    """What the numbers of all seeds must satisfy.

    Parameters
    ----------
    words
        The condition in plain words, for the table.
    names
        The numbers that it reads.
    test
        A function of the numbers, a mapping from names to arrays with one value per seed.
    """

    words: str
    names: tuple[str, ...]
    test: Callable[[Mapping[str, np.ndarray]], bool] = field(repr=False)

    def is_met(self, numbers: Mapping) -> bool:
        """True if the numbers satisfy the condition.

        Raises
        ------
        ValueError
            A number that the condition reads is missing.
        """
        if missing := [name for name in self.names if name not in numbers]:
            raise ValueError(
                f"The condition reads {', '.join(missing)}, but the claim returns "
                f"{', '.join(numbers)}."
            )
        return bool(self.test({name: np.asarray(numbers[name], float) for name in self.names}))


def more(a: str, b: str, by: float = 0.0) -> Condition:
    """``a`` exceeds ``b`` by more than ``by``, in pairs with the same seed.

    The mean over seeds of a − b − by must be above twice its standard error.
    """

    def test(numbers) -> bool:
        excess = numbers[a] - numbers[b] - by
        return excess.mean() > 2 * excess.std(ddof=1) / math.sqrt(len(excess))

    words = f"{a} − {b} is above {by:g}, by more than twice its standard error"
    return Condition(words, (a, b), test)


def near(a: str, value: float, tolerance: float) -> Condition:
    """``a`` is within ``tolerance`` of ``value`` for every seed."""
    words = f"{a} is within {tolerance:g} of {value:g} for every seed"
    return Condition(words, (a,), lambda numbers: np.abs(numbers[a] - value).max() <= tolerance)


def share(a: str, at_least: float = 0.8) -> Condition:
    """``a``, which is 0 or 1, is 1 for at least this share of the seeds."""

    def test(numbers) -> bool:
        if not np.isin(numbers[a], (0, 1)).all():
            raise ValueError(f"share reads {a}, which must be 0 or 1 for each seed.")
        return numbers[a].mean() >= at_least

    return Condition(f"{a} for at least {at_least:.0%} of the seeds", (a,), test)


def every(*conditions: Condition) -> Condition:
    """All of these conditions."""
    if not conditions:
        raise ValueError("every needs at least one condition.")
    names = tuple(dict.fromkeys(name for one in conditions for name in one.names))
    words = "; ".join(one.words for one in conditions)
    return Condition(words, names, lambda numbers: all(one.is_met(numbers) for one in conditions))


# ------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """A function from seed to numbers, with what :func:`claim` was told about it."""

    id: str
    sentence: str
    holds: Condition
    seeds: tuple[int, ...]
    tolerance: float | Mapping[str, float] | None
    function: Callable[[int], dict[str, float]] = field(repr=False)

    def __call__(self, seed: int) -> dict[str, float]:
        return self.function(seed)


def claim(
    id: str,
    sentence: str,
    *,
    holds: Condition,
    seeds: Iterable[int] = range(5),
    tolerance: float | Mapping[str, float] | None = None,
) -> Callable[[Callable], Claim]:
    """Declare a function as the evidence for a claim.

    Parameters
    ----------
    id
        The claim as lessons cite it: "E04.name" for the function ``name`` in lesson 04's file.
    sentence
        The claim as one plain sentence.
    holds
        The condition under which the claim holds: ``more``, ``near``, ``share`` or ``every``.
    seeds
        The seeds, at least five, on which no setting was chosen.
    tolerance
        The largest difference that another machine may make in a number, or a mapping from the
        numbers' names to such differences. None for the default: one standard deviation over seeds,
        or a thousandth of the largest value where that is more.

    Raises
    ------
    ValueError
        The id does not fit the function, there are too few seeds, or the sentence has no end.
    """
    seeds = tuple(seeds)
    if len({*seeds}) < max(FEWEST_SEEDS, len(seeds)):
        raise ValueError(f"{id} has seeds {[*seeds]}: give at least {FEWEST_SEEDS} different ones.")
    if not sentence.rstrip().endswith("."):
        raise ValueError(f"{id}: the claim must be a sentence that ends with a full stop.")

    def declare(function: Callable[[int], dict[str, float]]) -> Claim:
        if not re.fullmatch(rf"E\d\d\.{function.__name__}", id):
            raise ValueError(
                f"The id {id!r} does not fit its function: for lesson 04 write "
                f"E04.{function.__name__}."
            )
        return Claim(id, sentence, holds, seeds, tolerance, function)

    return declare


# ----------------------------------------------------------------------------- what was measured


class Measured(dict):
    """The numbers of each claim of a lesson, by its id: DataFrames with one row per seed."""

    def __missing__(self, id: str):
        raise KeyError(f"There is no claim {id!r} here; the claims are {', '.join(self)}.")


def read(lesson: str) -> Measured:
    """The numbers behind the claims of a lesson.

    Parameters
    ----------
    lesson
        The number of the lesson, "04".

    Returns
    -------
    For each id, a pandas DataFrame: one row per seed, one column per number.

    Raises
    ------
    FileNotFoundError
        Neither the notebook's folder nor the checkout has evidence for this lesson.
    """
    import pandas as pd

    return Measured(
        {
            id: pd.DataFrame(entry["numbers"], index=pd.Index(entry["seeds"], name="seed"))
            for id, entry in _entries(lesson).items()
        }
    )


def table(lesson: str) -> Table:
    """All claims of a lesson: what was measured, and whether each claim holds.

    Parameters
    ----------
    lesson
        The number of the lesson, "04".

    Raises
    ------
    FileNotFoundError
        Neither the notebook's folder nor the checkout has evidence for this lesson.
    """
    return Table(_entries(lesson))


class Table:
    """The claims of a lesson, as a notebook or a terminal shows them."""

    def __init__(self, entries: Mapping[str, dict]):
        self.entries = entries

    def __repr__(self) -> str:
        return "\n\n".join(in_words(id, entry) for id, entry in self.entries.items())

    def _repr_html_(self) -> str:
        left = '<td style="text-align: left; vertical-align: top">'
        names = ("claim", "mean ± sd over seeds", "holds if", "holds")
        head = "".join(f'<th style="text-align: left">{name}</th>' for name in names)
        unbroken = '<span style="white-space: nowrap">{}</span>'
        rows = []
        for id, entry in self.entries.items():
            lines = [html.escape(line) for line in (*_spreads(entry), _seeds(entry))]
            cells = (
                f"{html.escape(entry['sentence'])}<br><code>{html.escape(id)}</code>",
                "<br>".join(unbroken.format(line) for line in lines),
                html.escape(entry["condition"]),
                "yes" if entry["holds"] else "<b>no</b>",
            )
            rows.append("<tr>" + "".join(f"{left}{cell}</td>" for cell in cells) + "</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def in_words(id: str, entry: Mapping) -> str:
    """A claim on three lines: the sentence, what was measured, and whether it holds."""
    return (
        f"{id}: {entry['sentence']}\n"
        f"    {', '.join(_spreads(entry))} (mean ± sd, {_seeds(entry)})\n"
        f"    {'Holds' if entry['holds'] else 'DOES NOT HOLD'}: {entry['condition']}."
    )


def _seeds(entry: Mapping) -> str:
    return f"{len(entry['seeds'])} seeds"


def _spreads(entry: Mapping) -> list[str]:
    return [f"{n} {_rounded(m, entry['sd'][n])}" for n, m in entry["mean"].items()]


def _rounded(mean: float, sd: float) -> str:
    """The standard deviation with two significant digits, and the mean with as many decimals."""
    if sd <= 1e-9 * abs(mean):  # a constant, up to rounding
        return f"{mean:.4g} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(sd)))
    if decimals > 6:
        return f"{mean:.3g} ± {sd:.2g}"
    return f"{mean:,.{decimals}f} ± {sd:,.{decimals}f}"


def _entries(lesson: str) -> dict[str, dict]:
    here = Path.cwd()
    for folder in (here, here.parent, CHECKOUT):
        for path in sorted((folder / "evidence").glob(f"{lesson}_*.json")):
            return json.loads(path.read_text(encoding="utf-8"))["claims"]
    raise FileNotFoundError(
        f"There is no evidence for lesson {lesson}: expected a file evidence/{lesson}_….json next "
        f"to the lessons. In a checkout, `vaelab evidence {lesson}` makes it."
    )
