"""Exercises: ``vaelab.check("05.2", answer)`` tells at once what is right or wrong."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr
from importlib import import_module
from pkgutil import iter_modules

__all__ = ["CheckFailed", "check", "find", "lessons", "solution"]

SEED = 0  # for the inputs that learners see; the grader uses other seeds
PRACTICE = "00"  # its exercise stands on the START page, and counts for no lesson
OPEN: set[str] = set()  # exercises that passed here, or whose solution was asked for once


class CheckFailed(AssertionError):
    """Raised if an answer is not right yet; the message says why."""

    def __init__(self, verdict, shown: bool = False):
        from .box import as_text

        super().__init__(as_text(verdict))
        self.verdict = verdict
        self.shown = shown

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows: the message, without the lines of code that led to it.

        Of a message that stands in a box above, the heading is enough.
        """
        return str(self).splitlines()[: 1 if self.shown else None]


def lessons() -> list[str]:
    """The numbers of the lessons that have exercises: "05", …"""
    names = [module.name for module in iter_modules(__path__)]
    return sorted(name.removeprefix("lesson_") for name in names if name.startswith("lesson_"))


def _declared(lesson: str) -> dict:
    module = "practice" if lesson == PRACTICE else f"lesson_{lesson}"
    return import_module(f".{module}", __name__).EXERCISES


def names_in(lesson: str) -> list[str]:
    """The names of a lesson's exercises, in their order."""
    return [*_declared(lesson)]


def find(name: str):
    """The exercise with this name.

    Raises
    ------
    KeyError
        No exercise has this name.
    """
    lesson = str(name).partition(".")[0]
    if lesson not in (PRACTICE, *lessons()):
        raise KeyError(
            f"There is no exercise {name!r}. The lessons with exercises are {', '.join(lessons())}."
        )
    exercises = _declared(lesson)
    if name not in exercises:
        raise KeyError(f"There is no exercise {name!r}. This lesson has {', '.join(exercises)}.")
    return exercises[name]


def check(name: str, answer) -> None:
    """Try an answer on inputs drawn from a fixed seed, and show the verdict.

    In a notebook the verdict stands in a box, and an exercise that is still to be done raises
    nothing there: "Run All" goes on to the cells that don't need it.

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
    from .. import progress
    from . import box

    exercise = find(name)
    with redirect_stderr(sys.stdout):  # a warning is not a failure; to nbgrader, stderr is one
        cases = exercise.cases(SEED)
        verdict = exercise.judge(cases, exercise.outcomes(answer, cases))
        where = box.notebook()
        # nbgrader and nbval need an error to see that an exercise is open or wrong. They run
        # notebooks unattended; only a reader's own run goes on.
        shown = where == "attended" or (where and verdict.passed)
        if shown:
            from IPython.display import display

            both = {"text/plain": box.as_text(verdict), "text/html": box.html_of(verdict, answer)}
            display(both, raw=True)
        elif verdict.passed:
            print(box.as_text(verdict))
    if verdict.passed:
        OPEN.add(name)
    if where == "attended":
        progress.record(verdict)
    if not verdict.passed and not (verdict.undone and shown):
        raise CheckFailed(verdict, shown)


def solution(name: str) -> None:
    """Print the model solution of an exercise: once its check has passed, or if you ask twice.

    Parameters
    ----------
    name
        The exercise as the lesson names it, for example "05.2".

    Raises
    ------
    KeyError
        No exercise has this name.
    """
    from .. import progress
    from . import box

    exercise = find(name)
    text = box.solution_of(name)
    if not text:
        print(f"The solution of {name} is in the repository, whose course folder is not here.")
    elif name in OPEN or progress.has_passed(name):
        print(text)
    else:
        OPEN.add(name)
        print(
            f"{name} {exercise.title}: the check has not passed yet. The task has a folded hint. "
            "To see the solution all the same, run this cell again."
        )
