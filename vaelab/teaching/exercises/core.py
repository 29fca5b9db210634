"""What an exercise is, and how an answer to it is judged.

Each exercise has one declaration: how inputs are drawn from a seed, an oracle that shares no code
with the solution, a tolerance, points, and the common wrong answers by name, each with its hint.
The learner's check, the grader and the tests of the exercise all use this declaration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .calls import ADDS, GIVES_ARRAYS, SHOWN, WITH_GRADIENT, Data, Outcome, apply, gradient_inputs

__all__ = ["Exercise", "Misconception", "Verdict", "plain"]

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
    extreme
        How many of the last cases are extreme for the computer. A mistake that fits all other
        cases is named even if it rounds in another way there.
    rtol, atol
        An answer agrees if it is within atol + rtol · |right|.
    rtol32, atol32
        The same tolerances for an answer, or a case, in float32. The larger of the two pairs holds.
    call
        How inputs are passed: a name in ``calls.CALLS``.
    returns
        What the lesson's later cells need the answer to be. "" takes right numbers in any form:
        a tensor, an array, a list, a tuple, a Series, in float32 or float64. Otherwise one of

        - "tensor";
        - "tensor with gradient": a gradient flows back to every input of real numbers, or to those
          named, as in "tensor with gradient in W, sigma" (with the call "numbers"); names for each
          of several results stand apart by ";": "tensor with gradient in W; W, V";
        - "tensor without gradient": later cells call ``.numpy()``;
        - "array".

        The calls "slope", "slopes" and "gradient" imply "tensor with gradient", because the check
        compares the gradient; that later cells need it is said only if ``returns`` says so. Of
        several results each has to be so. Extreme cases are not asked: a loss of no cells may be
        a plain 0.
    results
        Names of the results for messages, for example ("mean of the gradient", …).
    at_most
        Names of the results whose right value is a limit: every smaller value is right too.
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
    extreme: int = 0
    rtol: float = 1e-6
    atol: float = 1e-9
    rtol32: float = 1e-3
    atol32: float = 1e-4
    call: str = "numbers"
    returns: str = ""
    results: tuple[str, ...] = ()
    at_most: tuple[str, ...] = ()
    picture: Callable | None = None
    seconds: float = 10.0

    def __post_init__(self):
        forms = ("", "tensor", WITH_GRADIENT, "tensor without gradient", "array")
        if self.returns not in forms and not self.returns.startswith(WITH_GRADIENT + " in "):
            raise ValueError(f"{self.name}: returns is {self.returns!r}, which is not one of them.")
        if unknown := {*self.at_most} - {*self.results}:
            raise ValueError(f"{self.name}: at_most names {unknown}, which results does not.")

    def cases(self, seed) -> list[Case]:
        """The cases of a seed; the same seed always gives the same cases."""
        return list(self.draw(np.random.default_rng(seed)))

    def outcomes(self, answer, cases: Sequence[Case]) -> list[Outcome]:
        """The answer's outcomes, up to the first case without a value."""
        outcomes = []
        for case in cases:
            outcomes.append(apply(answer, case, self.call, self.seconds, self.returns))
            if outcomes[-1].kind != "value":
                break
        return outcomes

    def judge(self, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> Verdict:
        """The verdict on an answer's outcomes: whether they are right, and if not, why.

        This is a pure function of data: the grader calls it in a process that runs no answer.
        """
        if len(outcomes) == 0:
            return Verdict(self, False, "There is no answer.")
        for done, (case, outcome) in enumerate(zip(cases, outcomes, strict=False)):
            if outcome.kind != "value":
                usual = outcome.kind == "raised" and 0 < len(cases) - self.extreme <= done
                if usual and (
                    known := self._known(self._triples(cases[:done], outcomes), len(cases))
                ):
                    return Verdict(self, False, known.hint, known.name, case)
                message = _without_value(outcome, self._inputs(self._shown(case)), done)
                return Verdict(self, False, message, case=case, undone=outcome.kind == "undone")
        if len(outcomes) != len(cases):
            return Verdict(self, False, "Some of the inputs have no answer.")
        triples = self._triples(cases, outcomes)
        agree = [self._agree(*triple) for triple in triples]
        unfit = _lacking(self, triples, outcomes)
        if all(agree):
            return Verdict(self, not unfit, unfit or self.verified)
        first = agree.index(False)
        case, expected, answered = triples[first]
        if known := self._known(triples, len(cases)):
            return Verdict(self, False, known.hint, known.name, case, expected, answered)
        if unfit and all(self._agree(c, *_own(self.call, r, g)) for c, r, g in triples):
            return Verdict(self, False, unfit, None, case, expected, answered)
        message = self._difference(triples, first)
        return Verdict(self, False, message, None, case, expected, answered)

    def _triples(self, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[tuple]:
        """Each case with the right outcome and the answer's."""
        right = [self.oracle(**case) for case in cases]
        got = [_like(r, o.value) for r, o in zip(right, outcomes, strict=False)]
        return list(zip(cases, right, got, strict=True))

    def _known(self, triples, n_cases: int) -> Misconception | None:
        """The mistake that fits, if any: everywhere, or else in all cases that are not extreme."""
        for part in (triples, triples[: n_cases - self.extreme]):
            for known in self.misconceptions:
                if self._fits(known, part):
                    return known
        return None

    def _fits(self, misconception: Misconception, triples) -> bool:
        """True if the answer agrees with the mistake in all cases, and the mistake is not right."""
        distinct = False
        for case, right, got in triples:
            with np.errstate(all="ignore"):
                wrong = misconception.wrong(**case)
            if not self._agree(case, wrong, _like(wrong, got)):
                return False
            distinct = distinct or not self._agree(case, wrong, right)
        return distinct

    def _close(self, right, got, single: bool, name: str = "") -> np.ndarray:
        rtol = max(self.rtol, self.rtol32) if single else self.rtol
        atol = max(self.atol, self.atol32) if single else self.atol
        with np.errstate(all="ignore"):
            close = np.isclose(got, right, rtol=rtol, atol=atol, equal_nan=True)
            return close | (got <= right) if name in self.at_most else close

    def _agree(self, case: Case, right: Data, got: Data) -> bool:
        single = _is_single((*case.values(), got))
        return self._same(right, got, single, self._name(0, 1))

    def _same(self, right: Data, got: Data, single: bool, name: str = "") -> bool:
        if isinstance(right, tuple) or isinstance(got, tuple):
            both = isinstance(right, tuple) and isinstance(got, tuple) and len(right) == len(got)
            return both and all(
                self._same(r, g, single, self._name(i, len(right)))
                for i, (r, g) in enumerate(zip(right, got, strict=True))
            )
        if isinstance(right, str) or isinstance(got, str):
            return type(right) is type(got) and right.strip().lower() == got.strip().lower()
        right, got = np.asarray(right), np.asarray(got)
        return right.shape == got.shape and bool(self._close(right, got, single, name).all())

    def _name(self, i: int, n: int) -> str:
        return self.results[i] if len(self.results) == n else ""

    def _shown(self, case: Case) -> Case:
        """What the answer was given, by the names of its own arguments."""
        return SHOWN.get(self.call, dict)(case)

    def _inputs(self, shown: Case) -> str:
        return _text_of(shown, "an array" if self.call in GIVES_ARRAYS else "a tensor")

    def _difference(self, triples, first: int) -> str:
        """A sentence on the smallest part of a case that shows the difference."""
        inputs = [self._shown(case) for case, _, _ in triples]
        case, expected, got = triples[first]
        single = _is_single((*case.values(), got))
        if not isinstance(expected, tuple) and not isinstance(got, tuple):
            rows = _rows(inputs, [right for _, right, _ in triples])
            alone = self._alone(case, rows, lambda result: result)
            return self._sentence(
                inputs[first], rows, alone, expected, got, single, self._name(0, 1)
            )
        n_expected, n_got = (len(d) if isinstance(d, tuple) else 1 for d in (expected, got))
        if n_expected != n_got:
            many = f"{n_expected} results" if n_expected > 1 else "one result"
            return f"Expected {many}, but your answer returned {n_got}."
        for i, (e, g) in enumerate(zip(expected, got, strict=True)):
            rows = _rows(inputs, [right[i] for _, right, _ in triples])
            name = self._name(i, n_expected)
            alone = self._alone(case, rows, lambda result, i=i: result[i])
            part = self._sentence(inputs[first], rows, alone, e, g, single, name)
            if part:
                lead = name[:1].upper() + name[1:] if name else f"Result {i + 1} of {n_expected}"
                return f"{lead}: {part}"
        return ""

    def _alone(self, case: Case, rows: set[str], part: Callable) -> Callable:
        """A test: True if one row of the inputs gives its row of the result by itself.

        A silhouette, for example, has a number per cell, but depends on all cells.
        """

        def alone(expected: np.ndarray, row: int) -> bool:
            own = {k: v[row : row + 1] if k in rows else v for k, v in case.items()}
            try:
                with np.errstate(all="ignore"):
                    found = np.asarray(part(self.oracle(**own)))
                return bool(np.allclose(found[0], expected[row], equal_nan=True))
            except Exception:  # an oracle that one row is not enough for
                return False

        return alone

    def _sentence(
        self, shown: Case, rows: set[str], alone: Callable, expected, got, single: bool, name: str
    ) -> str:
        """A sentence on one result; empty if it is right."""
        if isinstance(expected, str) or isinstance(got, str):
            if type(expected) is not type(got):
                if isinstance(expected, str):
                    return f"Expected a word, but your answer gave {got!r}."
                return f"Expected numbers, but your answer gave the word {got!r}."
            if self._same(expected, got, single):
                return ""
            return f"For {self._inputs(shown)} {got!r} is not the right word. Look again."
        expected, got = np.asarray(expected), np.asarray(got)
        if expected.shape != got.shape:
            wanted = f"have {expected.shape}" if expected.shape else "be a single number"
            return (
                f"Your answer has shape {got.shape}; it should {wanted}. Its inputs were "
                f"{self._inputs(shown)}."
            )
        wrong = ~self._close(expected, got, single, name)
        if not wrong.any():
            return ""
        lost = wrong & ~np.isfinite(got) & np.isfinite(expected)
        n_nan = int(lost.sum())
        at = _smallest(shown, rows, lost if n_nan else wrong)
        rows = rows if rows and alone(expected, at[0]) else set()
        here = {k: _part(v, at, k in rows, wrong.shape) for k, v in shown.items()}
        lead = f"{n_nan} of {got.size} values are NaN or infinite. " if n_nan else ""
        many = f" ({int(wrong.sum())} of {wrong.size} differ.)" if wrong.size > 1 else ""
        plain_row = wrong.size == 1 or (wrong.ndim == 1 and rows)
        entry = "" if plain_row else f"entry {list(map(int, at))} of "
        right, yours = _apart(expected[at], got[at])
        if name in self.at_most:
            said = f"{entry}yours is {yours}; allowed is {right} at most"
        else:
            said = f"{entry}the answer should be {right}; yours is {yours}"
        return f"{lead}For {self._inputs(here)} {said}.{many}"


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
    undone
        True if the answer's stub is still there.
    """

    exercise: Exercise = field(repr=False)
    passed: bool = False
    message: str = ""
    misconception: str | None = None
    case: Case | None = None
    expected: Data | None = None
    got: Data | None = None
    undone: bool = False

    @property
    def comparable(self) -> bool:
        """True if ``got`` can be drawn next to ``expected``: both are arrays of equal shape."""
        pair = self.expected, self.got
        arrays = all(isinstance(data, (np.ndarray, np.number)) for data in pair)
        return arrays and np.shape(self.expected) == np.shape(self.got)

    @property
    def points(self) -> int:
        return self.exercise.points if self.passed else 0

    @property
    def heading(self) -> str:
        mark = "✔" if self.passed else "○" if self.undone else "✘"
        points = "1 point" if self.exercise.points == 1 else f"{self.exercise.points} points"
        worth = f" ({points})" if self.points else ""  # practice counts for nothing
        return f"{mark} {self.exercise.name} {self.exercise.title}{worth}"

    def __str__(self) -> str:
        return f"{self.heading}\n{plain(self.message)}"


EMPHASIS = re.compile(r"(?<!\w)\*(\w[\w ,-]*\w|\w)\*(?!\w)")


def _lacking(exercise: Exercise, triples, outcomes: Sequence[Outcome]) -> str:
    """What later cells, or the check, would lack; empty if nothing or if no types are known."""
    returns, who = exercise.returns, "later cells need"
    if not returns and exercise.call in ("slope", "slopes", "gradient"):
        returns, who = WITH_GRADIENT, "this exercise needs"
    usual = len(triples) - exercise.extreme
    for (case, right, _), outcome in zip(triples[:usual], outcomes[:usual], strict=True):
        if not returns or not outcome.form:
            continue
        several = isinstance(right, tuple) and exercise.call not in ADDS
        top, *inside = outcome.form
        found = inside if several and inside else [top]
        if returns.startswith(WITH_GRADIENT):
            given = next((form for form in found if not form.startswith("tensor")), None)
            if not given and exercise.call == "numbers":
                wanted = gradient_inputs(returns, case)
                if lost := [name for name in wanted if name not in outcome.reached]:
                    return _no_gradient(", ".join(lost), outcome.message, who)
            elif not given and any(form != WITH_GRADIENT for form in found):
                return _no_gradient("", "", who)
        elif returns == "tensor":
            given = next((form for form in found if not form.startswith("tensor")), None)
        elif returns == "tensor without gradient":
            if WITH_GRADIENT in found:
                return (
                    "The numbers are right. But your tensor still asks for gradients, and a "
                    "later cell calls .numpy(), which then fails. Nothing is trained here: "
                    "compute it inside `with torch.no_grad():`."
                )
            given = next((form for form in found if form != "tensor"), None)
        else:
            given = next((form for form in found if form != returns), None)
        if given:
            kind = "numpy array" if returns == "array" else "torch tensor"
            needed = "numpy's" if returns == "array" else "torch's"
            given = f"{'an' if given[0] in 'aeiou' else 'a'} {given}"
            why = ", through which gradients flow back" if "with gr" in returns else ""
            return (
                f"The numbers are right. But your answer gave {given}, and {who} a {kind}{why}. "
                f"Compute it with {needed} functions."
            )
    return ""


def _without_value(outcome: Outcome, inputs: str, done: int) -> str:
    """A sentence on an answer that gave no numbers, after so many cases that it answered."""
    inputs = f"Its inputs were {inputs}."
    if outcome.kind == "undone":
        return (
            "This exercise is still to be done: write your answer in place of the line that "
            "raises NotImplementedError."
        )
    if outcome.kind == "raised":
        return f"Your answer raised {outcome.message}. {inputs}"
    if outcome.kind == "endless":
        # Nobody can tell in general. But an answer that ended before most likely ends.
        slow = (
            "compute all cells in one tensor operation instead of a Python loop over cells, "
            "draws or pairs"
        )
        before = "inputs" if done == 1 else f"{done} inputs"
        which = (
            f"It was in time for the {before} before, so it is probably too slow: {slow}."
            if done
            else f"Either it is too slow (then {slow}), or a loop in it never ends."
        )
        return f"Your answer was still running after {outcome.message}. {which} {inputs}"
    return (
        "Expected numbers (a tensor, an array or a number), but your answer gave a "
        f"{outcome.message}." + (" Is the return missing?" if outcome.message == "NoneType" else "")
    )


def plain(message: str) -> str:
    """A message without Markdown's marks of emphasis and code."""
    parts = message.split("`")
    return "".join(p if i % 2 else EMPHASIS.sub(r"\1", p) for i, p in enumerate(parts))


def _like(right: Data, got: Data) -> Data:
    """An answer in the build of the right one: several results as one array, or the reverse."""
    if isinstance(right, tuple):
        if isinstance(got, np.ndarray) and got.shape[:1] == (len(right),):
            got = tuple(got)
        if isinstance(got, tuple) and len(got) == len(right):
            return tuple(_like(r, g) for r, g in zip(right, got, strict=True))
    elif isinstance(got, tuple) and got and not isinstance(right, str) and np.ndim(right):
        shape = np.shape(right)[1:]
        if all(isinstance(part, np.ndarray) and part.shape == shape for part in got):
            return np.stack(got)
    return got


def _own(call: str, right: Data, got: Data) -> tuple[Data, Data]:
    """The result that the answer gave, without those that the call added."""
    both = isinstance(right, tuple) and isinstance(got, tuple)
    return (right[0], got[0]) if call in ADDS and both else (right, got)


def _is_single(value) -> bool:
    """True if anything in it is in single precision: then so may all be that was computed."""
    if isinstance(value, tuple):
        return any(map(_is_single, value))
    return getattr(value, "dtype", None) == np.float32


def _no_gradient(names: str, error: str, who: str) -> str:
    to = f" to {names}" if names else ""
    if error:
        return (
            "The numbers are right. But later cells train through this function, and with inputs "
            f"that ask for a gradient it raised {error}. Use torch's functions instead of numpy's."
        )
    return (
        f"The numbers are right. But no gradient flows back{to}, and {who} one. Look "
        "for a detach, item, float, no_grad, or a torch.tensor(…) around a tensor."
    )


def _rows(inputs: Sequence[Case], right: Sequence) -> set[str]:
    """The inputs that have a row for each row of the result, in every case."""

    def of(case: Case, result) -> set[str]:
        n = np.shape(result)[:1]
        return {k for k, v in case.items() if n and isinstance(v, np.ndarray) and v.shape[:1] == n}

    return set.intersection(*map(of, inputs, right))


def _part(value, at: tuple[int, ...], is_row: bool, shape: tuple[int, ...]):
    """What of an input belongs to an entry of the result: its row, or the entry in a long one."""
    if not is_row:
        return value
    row = value[at[0]]
    return value[at] if row.size > MOST_SHOWN and value.shape == shape else row


def _smallest(shown: Case, rows: set[str], wrong: np.ndarray) -> tuple[int, ...]:
    """The index of the wrong entry with the smallest inputs."""
    size = np.zeros(wrong.shape)
    for name in rows:
        value = shown[name]
        if value.dtype.kind not in "buif":
            continue
        with np.errstate(all="ignore"):
            if value.shape != wrong.shape:  # the whole row
                value = np.abs(value.reshape(len(value), -1)).sum(1)
                value = value.reshape(-1, *[1] * (wrong.ndim - 1))
            size = size + np.abs(value)
    found = np.flatnonzero(wrong)  # not the least of all sizes: where inputs are −∞, all are ∞
    return np.unravel_index(found[size.ravel()[found].argmin()], wrong.shape)


def _apart(right, got) -> tuple[str, str]:
    """Two numbers as text, with as many digits as it takes to tell them apart."""
    for digits in range(6, 18):
        texts = f"{right:.{digits}g}", f"{got:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


MOST_SHOWN = 12  # numbers of an array in a message


def _text_of(case: Case, kind: str) -> str:
    """The inputs of a case as text; ``kind`` is what the answer got in place of an array."""
    if not case:
        return "no inputs"
    parts = []
    many = sum(np.size(value) for value in case.values()) > 4 * MOST_SHOWN
    for name, value in case.items():
        if isinstance(value, np.ndarray) and value.size > (3 if many else MOST_SHOWN):
            parts.append(f"{name}, {kind} of shape {value.shape}")
            continue
        if isinstance(value, np.ndarray) and value.ndim:
            shorter = {"float_kind": "{:.6g}".format}
            value = np.array2string(value, separator=", ", max_line_width=10**6, formatter=shorter)
            value = re.sub(r"\s*\n\s*", " ", value)
        elif isinstance(value, (float, np.floating)) or _is_float(value):
            value = f"{float(value):.6g}"
        parts.append(f"`{name} = {value}`")
    return ", ".join(parts)


def _is_float(value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
