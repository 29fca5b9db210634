"""Compare the printed outputs of lessons: text exactly, numbers within a tolerance.

Another processor adds the same numbers in another order, and 0.655 becomes 0.656. So a tolerance
is counted in units of the last printed digit. It applies to numbers with a decimal point; integers
are compared exactly. A cell that needs more has it in its metadata, ``# %% tolerance=2``.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from nbval.plugin import IPyNbCell

TOLERANCE = 1
PICTURE = 'src="data:image/'

# A number stands alone: in z1, CD8, #1f77b4, 0x7f and 1.2.3 every digit is text. A minus belongs to
# the number unless a word or a bracket stands before it, as in 2015-2016.
NUMBER = re.compile(
    r"((?<![\w.#])(?:(?<![)\]])[-−])?"
    r"(?>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?>\.[0-9]+)?(?>[eE][-+]?[0-9]+)?(?!\w|\.[0-9])"
    r"|(?<!\w)[-−]?(?:nan|NaN|inf)(?!\w))"
)


@dataclass(frozen=True)
class Pair:
    """A number in a notebook's output, and the one that the cell prints now."""

    expected: str
    seen: str

    @property
    def same_form(self) -> bool:
        """True if both have the same number of decimals, or are the same nan or infinity."""
        return _form(self.expected) == _form(self.seen)

    @property
    def is_integer(self) -> bool:
        return "." not in self.expected

    @property
    def difference(self) -> float:
        return abs(_value(self.seen) - _value(self.expected))

    @property
    def relative(self) -> float:
        largest = max(abs(_value(self.seen)), abs(_value(self.expected)))
        return self.difference / largest if self.difference else 0.0

    @property
    def unit(self) -> float:
        """One unit of the last digit of the notebook's number."""
        mantissa, _, exponent = _plain(self.expected).partition("e")
        return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))

    @property
    def units(self) -> float:
        if self.seen == self.expected:
            return 0.0
        return round(self.difference / self.unit, 3) if self.same_form else float("inf")

    def allowed(self, tolerance: float | None) -> float:
        """The units by which the two may differ; ``tolerance`` is the cell's, or None."""
        if tolerance is not None:
            return tolerance
        return 0 if self.is_integer else TOLERANCE

    def complaint(self, tolerance: float | None) -> str:
        """What is wrong with the number seen; empty if it is right."""
        allowed = self.allowed(tolerance)
        if self.units <= allowed:
            return ""
        found = f"{self.seen} where the notebook has {self.expected}"
        if not self.same_form:
            return f"{found}: its form (decimals, exponent, nan) differs, which no tolerance allows"
        return (
            f"{found}: they differ by {self.difference:.6g}, "
            f"{self.units:g} units of the last digit; the tolerance is {allowed:g}"
        )

    def record(self, tolerance: float | None) -> dict:
        """The entry for the table of tests/portable.py."""
        return asdict(self) | {
            "units": self.units,
            "relative": self.relative,
            "tolerance": self.allowed(tolerance),
        }


def _plain(number: str) -> str:
    return number.replace(",", "").replace("−", "-").lower()


def _value(number: str) -> float:
    return float(_plain(number))


def _form(number: str) -> tuple:
    """A point or none, the number of decimals, and the exponent's e; nan and inf as they are."""
    plain = _plain(number)
    if plain[-1].isalpha():
        return (plain,)
    mantissa, e, _ = plain.partition("e")
    return "." in mantissa, len(mantissa.partition(".")[2]), e


class TextDiffers(Exception):
    """Raised if the text between the numbers is not the same."""


def pairs(expected: str, seen: str) -> list[Pair]:
    """Pair the numbers of two texts.

    Blanks next to a number may differ, because a table is aligned by its widest number.

    Raises
    ------
    TextDiffers
        Anything else differs. The message has the difference and its line.
    """
    theirs, ours = NUMBER.split(expected), NUMBER.split(seen)
    for place in range(0, max(len(theirs), len(ours)), 2):
        old, new = theirs[place : place + 1], ours[place : place + 1]
        if [text.strip(" ") for text in old] != [text.strip(" ") for text in new]:
            old, new = "".join(theirs[place:]), "".join(ours[place:])
            line = 1 + "".join(theirs[:place]).count("\n")
            raise TextDiffers(f"from line {line} on, {new!r} where the notebook has {old!r}")
    return [Pair(old, new) for old, new in zip(theirs[1::2], ours[1::2], strict=True)]


class Cell(IPyNbCell):
    """A cell of nbval that accepts a number within the tolerance, and any picture.

    A picture's alternative text is compared, as the plain text that comes with it.
    """

    def compare_outputs(self, test, ref, skip_compare=None):
        for output in (*test, *ref):
            data = output.get("data", {})
            if PICTURE in data.get("text/html", ""):
                data["text/html"] = PICTURE
        tolerance = self.cell.metadata.get("tolerance")
        compared, complaints = [], []
        theirs = _texts(ref)
        for kind, ours in _texts(test).items():
            for (output, key), (reference, _) in zip(ours, theirs.get(kind, ()), strict=False):
                try:
                    found = pairs(reference[key], output[key])
                except TextDiffers as difference:
                    complaints.append(str(difference))
                    continue
                wrong = [complaint for pair in found if (complaint := pair.complaint(tolerance))]
                complaints += wrong
                compared += found
                if not wrong:
                    output[key] = reference[key]
        if path := self.config.getoption("record_numbers"):
            line = {
                "cell": self.cell_num,
                "numbers": [pair.record(tolerance) for pair in compared],
                "complaints": complaints,
            }
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        same = super().compare_outputs(test, ref, skip_compare)
        self.comparison_traceback[:0] = complaints
        return same


def _texts(outputs) -> dict[str, list[tuple[dict, str]]]:
    """The texts of a cell's outputs by their kind, as pairs (output, key): what nbval compares."""
    found = {}
    for output in outputs:
        if "text" in output:
            found.setdefault(output.name, []).append((output, "text"))
        for kind in output.get("data", {}):
            if kind.startswith("text/"):
                found.setdefault(kind, []).append((output.data, kind))
    return found
