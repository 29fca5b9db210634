"""What an exercise is, and how an answer to it is judged.

Each exercise has one declaration: how inputs are drawn from a seed, an oracle that shares no code
with the solution, a tolerance, points, and the common wrong answers by name, each with its hint.
The learner's check, the grader and the tests of the exercise all use this declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .calls import Data, Outcome, apply

__all__ = ["Exercise", "Misconception", "Verdict"]

Case = dict[str, object]


@dataclass(frozen=True)
class Misconception:
    """A common wrong answer.

    Parameters
    ----------
    name
        A name for the mistake; reports count answers by it.
    wrong
        The answer that this mistake leads to, a function of the same inputs as the oracle.
    hint
        A hint for the learner: it says where to look, never the solution.
    """

    name: str
    wrong: Callable[..., Data]
    hint: str


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Parameters
    ----------
    name
        The lesson and a number, for example "05.2".
    title
        The title, same as in the lesson.
    points
        The points for a right answer.
    draw
        A function of a random generator that returns the cases. A case holds inputs by name, in
        the order of the answer's arguments. The simplest case comes first, because the first case
        that goes wrong is shown.
    oracle
        A function of a case's inputs that returns the right outcome, computed in another way than
        the solution (scipy, mpmath, quadrature, enumeration).
    verified
        What a passed check has shown, for example "Agrees with … at 200 points".
    misconceptions
        The known mistakes, in the order in which they are tried.
    rtol, atol
        An answer agrees if it is within atol + rtol · |right|.
    rtol32, atol32
        The same tolerances for a case that holds float32.
    call
        How inputs are passed: a name in ``calls.CALLS``.
    picture
        A function that draws a case, the right outcome and the answer's:
        (axes, case, expected, got) -> None.
    seconds
        The time limit of one call.
    """

    name: str
    title: str
    points: int
    draw: Callable[[np.random.Generator], Sequence[Case]]
    oracle: Callable[..., Data]
    verified: str
    misconceptions: tuple[Misconception, ...] = ()
    rtol: float = 1e-6
    atol: float = 1e-9
    rtol32: float = 1e-3
    atol32: float = 1e-4
    call: str = "numbers"
    picture: Callable | None = None
    seconds: float = 10.0

    def cases(self, seed) -> list[Case]:
        """The cases of a seed; the same seed always gives the same cases."""
        return list(self.draw(np.random.default_rng(seed)))

    def outcomes(self, answer, cases: Sequence[Case]) -> list[Outcome]:
        """The answer's outcomes, up to the first case without a value."""
        outcomes = []
        for case in cases:
            outcomes.append(apply(answer, case, self.call, self.seconds))
            if outcomes[-1].kind != "value":
                break
        return outcomes

    def judge(self, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> Verdict:
        """The verdict on an answer's outcomes: whether they are right, and if not, why.

        This is a pure function of data: the grader calls it in a process that runs no answer.
        """
        if len(outcomes) == 0:
            return Verdict(self, False, "There is no answer.")
        for case, outcome in zip(cases, outcomes, strict=False):
            if outcome.kind != "value":
                return Verdict(self, False, self._message_without_value(outcome, case), case=case)
        if len(outcomes) != len(cases):
            return Verdict(self, False, "Some of the inputs have no answer.")
        right = [self.oracle(**case) for case in cases]
        got = [outcome.value for outcome in outcomes]
        agree = [self._agree(case, r, g) for case, r, g in zip(cases, right, got, strict=True)]
        if all(agree):
            return Verdict(self, True, self.verified)
        first = agree.index(False)
        case, expected, answered = cases[first], right[first], got[first]
        for misconception in self.misconceptions:
            if self._fits(misconception, cases, right, got):
                return Verdict(
                    self, False, misconception.hint, misconception.name, case, expected, answered
                )
        message = _difference(case, expected, answered, self._closeness(case))
        return Verdict(self, False, message, None, case, expected, answered)

    def _fits(self, misconception: Misconception, cases, right, got) -> bool:
        """True if the answer agrees with the mistake in all cases, and the mistake is not right."""
        distinct = False
        for case, r, g in zip(cases, right, got, strict=True):
            with np.errstate(all="ignore"):
                wrong = misconception.wrong(**case)
            if not self._agree(case, wrong, g):
                return False
            distinct = distinct or not self._agree(case, wrong, r)
        return distinct

    def _closeness(self, case: Case) -> Callable:
        single = any(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in case.values())
        rtol, atol = (self.rtol32, self.atol32) if single else (self.rtol, self.atol)

        def close(right, got):
            with np.errstate(all="ignore"):
                return np.isclose(got, right, rtol=rtol, atol=atol, equal_nan=True)

        return close

    def _agree(self, case: Case, right: Data, got: Data) -> bool:
        if isinstance(right, tuple) or isinstance(got, tuple):
            same = isinstance(right, tuple) and isinstance(got, tuple) and len(right) == len(got)
            return same and all(self._agree(case, r, g) for r, g in zip(right, got, strict=True))
        if isinstance(right, str) or isinstance(got, str):
            return type(right) is type(got) and right.strip().lower() == got.strip().lower()
        right, got = np.asarray(right), np.asarray(got)
        return right.shape == got.shape and bool(self._closeness(case)(right, got).all())

    def _message_without_value(self, outcome: Outcome, case: Case) -> str:
        return {
            "undone": "This exercise is still to be done: write your answer in place of the line "
            "that raises NotImplementedError.",
            "raised": f"Your answer raised {outcome.message}. Its inputs were {_text_of(case)}.",
            "endless": f"Your answer had not returned after {outcome.message}. Look for a loop "
            f"that does not end. Its inputs were {_text_of(case)}.",
            "foreign": "Expected numbers (a tensor, an array or a number), but your answer gave a "
            f"{outcome.message}."
            + (" Is the return missing?" if outcome.message == "NoneType" else ""),
        }[outcome.kind]


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer.

    Parameters
    ----------
    passed
        True if the answer is right.
    message
        What was verified, or what went wrong.
    misconception
        The name of the mistake that fits, if any.
    case, expected, got
        The first case that went wrong, its right outcome and the answer's.
    """

    exercise: Exercise = field(repr=False)
    passed: bool = False
    message: str = ""
    misconception: str | None = None
    case: Case | None = None
    expected: Data | None = None
    got: Data | None = None

    @property
    def comparable(self) -> bool:
        """True if ``got`` can be drawn next to ``expected``: both are arrays of equal shape."""
        pair = self.expected, self.got
        arrays = all(isinstance(data, (np.ndarray, np.number)) for data in pair)
        return arrays and np.shape(self.expected) == np.shape(self.got)

    @property
    def points(self) -> int:
        return self.exercise.points if self.passed else 0

    def __str__(self) -> str:
        mark = "✔" if self.passed else "✘"
        points = "1 point" if self.exercise.points == 1 else f"{self.exercise.points} points"
        worth = f" ({points})" if self.passed else ""
        return f"{mark} {self.exercise.name} {self.exercise.title}{worth}\n{self.message}"


def _difference(case: Case, expected: Data, got: Data, close: Callable) -> str:
    """A sentence on the smallest part of a case that shows the difference; empty if none does."""
    if isinstance(expected, tuple) or isinstance(got, tuple):
        n_expected, n_got = (len(d) if isinstance(d, tuple) else 1 for d in (expected, got))
        if n_expected != n_got:
            return f"Expected {n_expected} results, but your answer returned {n_got}."
        for i, (e, g) in enumerate(zip(expected, got, strict=True), start=1):
            part = _difference(case, e, g, close)
            if part:
                return f"Result {i} of {n_expected}: {part}"
        return ""
    if isinstance(expected, str) or isinstance(got, str):
        if type(expected) is not type(got):
            if isinstance(expected, str):
                return f"Expected a word, but your answer gave {got!r}."
            return f"Expected numbers, but your answer gave the word {got!r}."
        return "" if got == expected else f"{got!r} is not the right word. Look again."
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        return (
            f"Your answer has shape {got.shape}; it should have {expected.shape}. Its inputs were "
            f"{_text_of(case)}."
        )
    wrong = ~close(expected, got)
    if not wrong.any():
        return ""
    n_nan = int((~np.isfinite(got) & np.isfinite(expected)).sum())
    at = _smallest(case, wrong)
    here = {
        name: v[at] if isinstance(v, np.ndarray) and v.shape == wrong.shape else v
        for name, v in case.items()
    }
    lead = f"{n_nan} of {got.size} values are NaN or infinite. " if n_nan else ""
    many = f" ({int(wrong.sum())} of {wrong.size} differ.)" if wrong.size > 1 else ""
    return (
        f"{lead}For {_text_of(here)} the answer should be {expected[at]:.6g}; yours is "
        f"{got[at]:.6g}.{many}"
    )


def _smallest(case: Case, wrong: np.ndarray) -> tuple[int, ...]:
    """The index of the wrong entry with the smallest inputs."""
    size = np.zeros(wrong.shape)
    for value in case.values():
        numbers = isinstance(value, np.ndarray) and value.dtype.kind in "buif"
        if numbers and value.shape == wrong.shape:
            size = size + np.abs(value)
    return np.unravel_index(np.argmin(np.where(wrong, size, np.inf)), wrong.shape)


def _text_of(case: Case) -> str:
    """The inputs of a case as text."""
    if not case:
        return "no inputs"
    parts = []
    for name, value in case.items():
        if isinstance(value, np.ndarray) and value.size > 6:
            value = f"an array of shape {value.shape}"
        elif isinstance(value, np.ndarray):
            value = np.array2string(value, precision=4, separator=", ")
        elif isinstance(value, (float, np.floating)):
            value = f"{value:.6g}"
        parts.append(f"{name} = {value}")
    return ", ".join(parts)
