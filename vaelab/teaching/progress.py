"""A learner's own record: exercises done, misconceptions met, what to repeat.

It stays on this machine, in the hidden file ``.progress.jsonl`` of the folder that ``vaelab
course`` makes. A line holds an exercise, whether its check passed, the name of the misconception,
and the day; nothing about the person. Delete the file to begin again. A check writes only if a
person runs it, in a notebook below that folder: the grader, nbval and nbconvert leave no trace.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import date
from html import escape
from pathlib import Path

from . import exercises
from .exercises.core import plain

__all__ = ["FILE", "Progress", "page", "read"]

FILE = ".progress.jsonl"
MANY = 3  # wrong answers after which an exercise is worth a second look


def folder_of(start: Path | None = None) -> Path | None:
    """The learner's folder in or above ``start`` (default: the current folder), if any."""
    start = (start or Path.cwd()).absolute()
    return next((f for f in (start, *start.parents) if (f / FILE).is_file()), None)


def record(verdict) -> None:
    """Append a verdict to the learner's record. It never fails: a full disk breaks no check."""
    if verdict.undone or verdict.exercise.name.startswith(exercises.PRACTICE):
        return
    try:
        folder = folder_of()
        if folder is None:
            return
        line = {
            "exercise": verdict.exercise.name,
            "passed": verdict.passed,
            "misconception": verdict.misconception,
            "day": date.today().isoformat(),
        }
        # One write of one line, appended: two notebooks at a time do not mix their lines.
        file = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, (json.dumps(line) + "\n").encode())
        finally:
            os.close(file)
    except OSError:
        return


def has_passed(name: str) -> bool:
    """True if the record here says that the check of an exercise has passed."""
    folder = folder_of()
    return folder is not None and name in read(folder).passed


@dataclass(frozen=True)
class Progress:
    """What a record holds.

    Parameters
    ----------
    tries
        The verdicts on each exercise, in their order: None if it passed, else the name of the
        misconception, or "" for a mistake that has no name.
    """

    tries: dict[str, list[str | None]]

    @property
    def passed(self) -> set[str]:
        """The names of the exercises whose check passed."""
        return {name for name, tries in self.tries.items() if None in tries}

    @property
    def misconceptions(self) -> list[tuple[str, str]]:
        """The misconceptions met, each once: the exercise and the name of the mistake."""
        return [(name, m) for name, tries in self.tries.items() for m in dict.fromkeys(tries) if m]

    @property
    def to_repeat(self) -> dict[str, str]:
        """The exercises worth a second look, each with the reason."""
        reasons = {}
        for name, tries in self.tries.items():
            wrong = tries.index(None) if None in tries else len(tries)
            if None not in tries:
                reasons[name] = "begun, not passed yet"
            elif wrong >= MANY:
                reasons[name] = f"passed after {wrong} wrong answers"
        return reasons

    def lessons(self) -> list[tuple[str, list[str], list[str]]]:
        """Each lesson with its exercises, and with those of them that passed."""
        rows = []
        for lesson in exercises.lessons():
            names = exercises.names_in(lesson)
            rows.append((lesson, names, [name for name in names if name in self.passed]))
        return rows

    def __str__(self) -> str:
        lines = ["lesson  exercises done"]
        for lesson, names, done in self.lessons():
            lines.append(f"{lesson:8}{'■' * len(done)}{'□' * (len(names) - len(done))}")
        for title, items in self._lists():
            lines += ["", f"{title}:", *(f"  {item}" for item in items or ["none"])]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{lesson}</td><td>{len(done)} of {len(names)}</td><td><progress max="
            f'"{len(names)}" value="{len(done)}" aria-label="lesson {lesson}"></progress></td></tr>'
            for lesson, names, done in self.lessons()
        )
        lists = "".join(
            f"<p><b>{title}</b></p><ul>{''.join(f'<li>{escape(i)}</li>' for i in items)}</ul>"
            if items
            else f"<p><b>{title}</b>: none</p>"
            for title, items in self._lists()
        )
        head = "<tr><th>lesson</th><th>exercises done</th><th></th></tr>"
        return f"<table>{head}{rows}</table>{lists}"

    def _lists(self) -> list[tuple[str, list[str]]]:
        met = []
        for name, mistake in self.misconceptions:
            known = {m.name: m.hint for m in exercises.find(name).misconceptions}
            hint = f". Hint: {plain(known[mistake])}" if mistake in known else ""
            met.append(f"{_title(name)}: {mistake}{hint}")
        repeat = [f"{_title(name)}: {why}" for name, why in self.to_repeat.items()]
        return [("Misconceptions met", met), ("Worth a second look", repeat)]


def _title(name: str) -> str:
    return f"{name} {exercises.find(name).title}"


def read(folder: Path) -> Progress:
    """What the record in a learner's folder holds; lines that are damaged are skipped."""
    tries: dict[str, list[str | None]] = {}
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            entry = json.loads(line)
            name, passed, mistake = (entry[key] for key in ("exercise", "passed", "misconception"))
            exercises.find(name)
        except (ValueError, KeyError, TypeError):
            continue
        tries.setdefault(name, []).append(None if passed else str(mistake or ""))
    return Progress(dict(sorted(tries.items())))


def page() -> Progress:
    """The progress of the learner whose folder this notebook is in.

    Raises
    ------
    FileNotFoundError
        No learner's folder is here.
    """
    folder = folder_of()
    if folder is None:
        raise FileNotFoundError(
            f"No record is in or above {Path.cwd()}. `vaelab course` makes a folder with one."
        )
    return read(folder)
