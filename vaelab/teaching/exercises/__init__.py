"""Exercises: ``vaelab.check("05.2", answer)`` tells at once what is right or wrong."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr
from importlib import import_module
from pkgutil import iter_modules

__all__ = ["CheckFailed", "check", "find", "lessons"]

SEED = 0  # for the inputs that learners see; the grader uses other seeds


class CheckFailed(AssertionError):
    """Raised if an answer is not right yet; the message says why."""

    def __init__(self, verdict):
        super().__init__(str(verdict))
        self.verdict = verdict

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows: the message, without the lines of code that led to it."""
        return str(self).splitlines()


def lessons() -> list[str]:
    """The numbers of the lessons that have exercises: "05", …"""
    names = [module.name for module in iter_modules(__path__)]
    return sorted(name.removeprefix("lesson_") for name in names if name.startswith("lesson_"))


def find(name: str):
    """The exercise with this name.

    Raises
    ------
    KeyError
        No exercise has this name.
    """
    lesson = str(name).partition(".")[0]
    if lesson not in lessons():
        raise KeyError(
            f"There is no exercise {name!r}. The lessons with exercises are {', '.join(lessons())}."
        )
    exercises = import_module(f".lesson_{lesson}", __name__).EXERCISES
    if name not in exercises:
        raise KeyError(f"There is no exercise {name!r}. This lesson has {', '.join(exercises)}.")
    return exercises[name]


def check(name: str, answer) -> None:
    """Try an answer on inputs drawn from a fixed seed, and print the verdict.

    Parameters
    ----------
    name
        The exercise as the lesson names it, for example "05.2".
    answer
        The function, or the value, that the exercise asks for.

    Raises
    ------
    CheckFailed
        The answer is not right yet. The message has the hint for a known mistake, or else the
        smallest input for which the answer differs.
    KeyError
        No exercise has this name.
    """
    exercise = find(name)
    with redirect_stderr(sys.stdout):  # a warning is not a failure; to nbgrader, stderr is one
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
