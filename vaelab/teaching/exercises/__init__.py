"""Exercises: ``vaelab.check("05.2", answer)`` says at once what is right, and what went wrong."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr
from importlib import import_module
from pkgutil import iter_modules

__all__ = ["CheckFailed", "check", "find", "lessons"]

SEED = 0  # of the inputs that learners see; the grader draws others


class CheckFailed(AssertionError):
    """An answer is not right yet; the message says why."""

    def __init__(self, verdict):
        super().__init__(str(verdict))
        self.verdict = verdict

    def _render_traceback_(self) -> list[str]:
        """For Jupyter: the sentence, without the lines of code that lead to it."""
        return str(self).splitlines()


def lessons() -> list[str]:
    """The lessons that have exercises: "05", …"""
    names = [module.name for module in iter_modules(__path__)]
    return sorted(name.removeprefix("lesson_") for name in names if name.startswith("lesson_"))


def find(name: str):
    """The exercise of that name.

    Raises
    ------
    KeyError
        There is none.
    """
    lesson = str(name).partition(".")[0]
    if lesson not in lessons():
        raise KeyError(f"There is no exercise {name!r}: lessons {', '.join(lessons())} have some.")
    exercises = import_module(f".lesson_{lesson}", __name__).EXERCISES
    if name not in exercises:
        raise KeyError(f"There is no exercise {name!r}: this lesson has {', '.join(exercises)}.")
    return exercises[name]


def check(name: str, answer) -> None:
    """Try an answer on inputs drawn from a fixed seed, and say what came of it.

    Parameters
    ----------
    name
        "05.2", as the lesson has it.
    answer
        The function that the exercise asks for, or the value.

    Raises
    ------
    CheckFailed
        It is not right yet: with the hint that fits a known mistake, or else the smallest input
        for which it differs.
    KeyError
        There is no such exercise.
    """
    exercise = find(name)
    with redirect_stderr(sys.stdout):  # a right answer may warn: for nbgrader, stderr means wrong
        cases = exercise.cases(SEED)
        verdict = exercise.judge(cases, exercise.outcomes(answer, cases))
    if verdict.passed:
        print(verdict)
        return
    if exercise.picture is not None and verdict.comparable:
        _draw(verdict)
    raise CheckFailed(verdict)


def _draw(verdict) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    verdict.exercise.picture(axes, verdict.case, verdict.expected, verdict.got)
    axes.legend(frameon=False)
    plt.show()
    plt.close(figure)
