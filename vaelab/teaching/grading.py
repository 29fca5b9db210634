"""Marks: ``vaelab grade`` runs a class's notebooks, and judges what their answers returned.

A submission is read as data. Its answers go into the trusted edition, which runs in a sandbox with
inputs that nobody has seen; there ``vaelab.check`` only takes down what an answer gives. The
verdict is formed here, from those values and the oracles, which the run never meets. Nothing that
a notebook prints, stores or says about itself earns a point.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event

from .._internal.machine import write_atomically
from . import exercises
from .exercises.calls import Outcome
from .exercises.core import Verdict
from .exercises.graded import pack, unpack
from .report import write
from .sandbox import Limits, Sandbox, read_untrusted

__all__ = ["GradingError", "grade"]

TEACHING = Path(__file__).parent
PACKAGE = TEACHING.parent
KEPT = {  # a submission gets nothing else of these folders
    TEACHING: {"__init__.py", "exercises", "recipes.py"},
    TEACHING / "exercises": {"calls.py"},
}
LARGEST = 20_000_000  # bytes of a submission
LARGEST_OUTCOMES = 32_000_000  # bytes of what an exercise's answer gave
LEFT_OUT = "not-in-grading"  # the tag of a lesson's cells that are long and that no answer needs
MARKER = re.compile(r"^([ \t]*)#[# \t]*(NBVAL_|PYTEST_VALIDATE_)\w+[ \t]*$", re.M)
KINDS = {"value", "undone", "raised", "endless", "foreign"}
ENDED = {
    "died": "Python itself ended while this answer ran. Does it call os._exit, or take more memory "
    "than there is?",
    "hung": "This answer did not end, and could not be interrupted.",
    "memory": "This answer took more than {memory:g} GB of memory.",
    "processes": "This answer started too many processes.",
    "output": "This answer printed more than {output:g} million characters.",
    "disk": "This answer wrote more than {disk:g} MB.",
    "seconds": "The {seconds:g} s for this notebook were over before this answer had ended.",
    "failed": "The run broke off while this answer ran.",
}


class GradingError(ValueError):
    """Something that has to be put right before anything can be graded, or a submission be."""


@dataclass(frozen=True)
class Edition:
    """A learner's edition as it was released: what a submission is rebuilt from."""

    lesson: str
    release: str
    notebook: dict = field(repr=False)
    exercises: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Edition:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        about = notebook["metadata"].get("vaelab", {})
        names = tuple(name for name, kind, _ in _marked(notebook) if kind == "answer")
        lesson = about.get("lesson") or path.stem.partition("_")[0]
        return cls(lesson, str(about.get("release", "")), notebook, names)

    def rebuilt(self, answers: dict[str, str]) -> tuple[dict, list[str | None]]:
        """The notebook with these answers, up to its last check; and for each cell the exercise
        that it is part of, or that stands before it."""
        notebook = copy.deepcopy(self.notebook)
        marks = [_mark_of(cell) for cell in notebook["cells"]]
        end = 1 + max(i for i, (_, kind) in enumerate(marks) if kind == "check")
        cells, owners, owner = [], [], None
        for cell, (name, kind) in list(zip(notebook["cells"], marks, strict=True))[:end]:
            if cell["cell_type"] != "code" or LEFT_OUT in cell["metadata"].get("tags", ()):
                continue
            owner = name or owner
            if kind == "answer" and name in answers:
                cell["source"] = MARKER.sub(r"\1#", answers[name])
                cell["metadata"] = {}
            cells.append(cell | {"outputs": [], "execution_count": None})
            owners.append(owner)
        return notebook | {"cells": cells}, owners


@dataclass(frozen=True)
class Submission:
    """One learner's notebook, as data."""

    name: str
    path: Path
    content: bytes = field(default=b"", repr=False)
    answers: dict[str, str] = field(default_factory=dict, repr=False)
    lesson: str = ""
    release: str = ""
    problem: str = ""

    @classmethod
    def read(cls, name: str, path: Path) -> Submission:
        try:
            with open(path, "rb") as file:
                content = file.read(LARGEST + 1)
            if len(content) > LARGEST:
                size = path.stat().st_size / 1e6
                raise GradingError(
                    f"This file has {size:.0f} MB; up to {LARGEST / 1e6:.0f} MB are read. "
                    "Clear the outputs and save it again."
                )
            if not content.strip():
                raise GradingError("This file is empty.")
            try:
                notebook = json.loads(content.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                raise GradingError("This is not a notebook: the file holds no JSON.") from None
            marked = _marked(notebook)
        except (OSError, GradingError) as error:
            return cls(name, path, problem=str(error))
        answers = {name: source for name, kind, source in marked if kind == "answer"}
        about = _get(notebook, "metadata", "vaelab")
        lessons = Counter(name.partition(".")[0] for name in answers)
        lesson = lessons.most_common(1)[0][0] if lessons else str(_get(about, "lesson") or "")[:8]
        release = str(_get(about, "release") or "")[:40]
        problem = "" if answers else "There is no answer cell of any exercise in this notebook."
        return cls(name, path, content, answers, lesson, release, problem)


def _get(data, *keys):
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _mark_of(cell) -> tuple[str | None, str | None]:
    """Which exercise a cell belongs to, and as what."""
    grade_id = _get(cell, "metadata", "nbgrader", "grade_id")
    found = (
        re.fullmatch(r"(\d\d)[.-](\d{1,2})(-check)?", grade_id)
        if isinstance(grade_id, str)
        else None
    )
    if found is None:
        return None, None
    lesson, number, check = found.groups()
    return f"{lesson}.{number}", "check" if check else "answer"


def _marked(notebook) -> list[tuple[str, str, str]]:
    """The cells of exercises: (exercise, "answer" or "check", source).

    Raises
    ------
    GradingError
        This is no notebook.
    """
    cells = _get(notebook, "cells")
    if not isinstance(cells, list):
        raise GradingError("This is not a notebook of Jupyter's format 4: it has no cells.")
    found = []
    for cell in cells:
        name, kind = _mark_of(cell)
        source = _get(cell, "source")
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = "".join(source)
        if name and isinstance(source, str) and _get(cell, "cell_type") == "code":
            found.append((name, kind, source))
    return found


# ------------------------------------------------------------------------------ one submission


@dataclass(frozen=True)
class Grader:
    """Grades the submissions of one lesson.

    Parameters
    ----------
    edition
        What was handed out.
    sandbox
        Where submissions run.
    package
        A copy of this package that knows no right answer.
    seed, salt
        Hidden inputs are drawn from these and from the answers themselves: whoever changes an
        answer meets other inputs.
    """

    edition: Edition
    sandbox: Sandbox
    package: Path
    seed: int
    salt: str
    version: str

    def key(self, submission: Submission) -> str:
        """The same for the same submission, graded in the same way."""
        edition = json.dumps(self.edition.notebook, sort_keys=True)
        how = [self.version, edition, self.seed, asdict(self.sandbox.limits), submission.name]
        return self._digest(json.dumps(how).encode() + submission.content)[:32]

    def hidden_seed(self, exercise: str, submission: Submission) -> int:
        answers = json.dumps(submission.answers, sort_keys=True)
        drawn = self._digest(f"{self.seed} {exercise} {answers}".encode())
        return int(drawn, 16) + exercises.SEED + 1  # never the one that learners have

    def _digest(self, content: bytes) -> str:
        return hmac.new(self.salt.encode(), content, hashlib.sha256).hexdigest()

    def grade(self, submission: Submission, number: int = 0, stop: Event | None = None) -> dict:
        """Run a submission and judge it.

        Raises
        ------
        GradingError
            It could not be run, for a reason that lies here and not with the submission.
        """
        began = time.monotonic()
        names = self.edition.exercises
        cases = {
            name: {
                "seen": exercises.find(name).cases(exercises.SEED),
                "hidden": exercises.find(name).cases(self.hidden_seed(name, submission)),
            }
            for name in names
        }
        outcomes, errors, ended = self._run(submission, cases, number, stop)
        marks = {}
        for name in names:
            given = outcomes.get(name, {"seen": [], "hidden": []})
            exercise = exercises.find(name)
            verdict = _judged(exercise, cases[name]["hidden"], given["hidden"])
            if name in ended and not given["hidden"]:
                message = ended[name]
            else:
                seen = _judged(exercise, cases[name]["seen"], given["seen"])
                message = _explained(verdict, seen, given, errors.get(name))
            marks[name] = {
                "title": exercise.title,
                "points": verdict.points,
                "max": exercise.points,
                "message": message,
                "misconception": verdict.misconception,
                "answer": submission.answers.get(name, "")[:20_000],
            }
        notes = []
        if submission.release and submission.release != self.edition.release:
            notes.append(
                f"Of release {submission.release}, not {self.edition.release}: graded by the "
                "names of the exercises."
            )
        if absent := [name for name in names if name not in submission.answers]:
            notes.append(f"No answer cell: {', '.join(absent)}.")
        notes += [f"{name}: {why}" for name, why in ended.items()]
        return _row(submission, marks, " ".join(notes), time.monotonic() - began)

    def _run(self, submission: Submission, cases: dict, number: int, stop: Event | None):
        """All outcomes that are to be had: an exercise that ends the run is left out of the next.

        Returns
        -------
        outcomes
            By exercise: {"seen": [...], "hidden": [...]}.
        errors
            By exercise, what stopped its cells.
        ended
            By exercise, why it ended a run.
        """
        outcomes, errors, ended = {}, {}, {}
        answers = dict(submission.answers)
        left = self.sandbox.limits.seconds
        while left > 0:
            notebook, owners = self.edition.rebuilt(answers)
            with _scratch() as scratch:
                folder = scratch / "run"
                (folder / "course" / "exercises").mkdir(parents=True)
                shutil.copytree(self.package, folder / "vaelab")
                lesson = folder / "course" / "exercises" / "lesson.ipynb"
                lesson.write_text(json.dumps(notebook))
                for name, drawn in cases.items():
                    inputs = _inputs(exercises.find(name), drawn)
                    (folder / f"{name}.inputs").write_text(json.dumps(inputs))
                path = str(lesson.relative_to(folder))
                ending = self.sandbox.run(folder, path, left, number, stop)
                for name in cases:
                    known = outcomes.keys() | ended.keys()
                    if name not in known and (found := _outcomes(folder, name)):
                        outcomes[name] = found
                said = (folder / "pytest.log").read_text(errors="replace")[-300:]
            left -= ending.seconds
            for cell, error in ending.errors.items():
                if cell < len(owners) and owners[cell] not in errors:
                    if error.startswith("KeyboardInterrupt"):
                        error = f"the end of the {self.sandbox.limits.cell_seconds:g} s it has."
                    errors[owners[cell]] = error
            if ending.reason == "done":
                break
            if ending.cell is None:
                raise GradingError(f"It could not be run ({ending.reason}). {said}")
            limits = self.sandbox.limits
            before = [n for n in owners[: ending.cell + 1] if n in answers]
            if not before:
                raise GradingError(
                    f"The edition's own cells ended the run ({ending.reason}), or a cell that "
                    "stands before every answer."
                )
            guilty = before[-1]
            ended[guilty] = ENDED[ending.reason].format(
                memory=limits.memory / 1e9,
                output=limits.output / 1e6,
                disk=limits.disk / 1e6,
                seconds=limits.seconds,
            )
            del answers[guilty]
        return outcomes, errors, ended


class _scratch:
    """A folder of its own, gone afterwards, however deep it has become."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="vaelab-grade-"))
        return self.path

    def __exit__(self, *_):
        subprocess.run(["chmod", "-R", "u+rwx", self.path], stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", self.path], stderr=subprocess.DEVNULL)


def _inputs(exercise, drawn: dict) -> dict:
    packed = {
        kind: [{name: pack(value) for name, value in case.items()} for case in cases]
        for kind, cases in drawn.items()
    }
    return {"call": exercise.call, "seconds": exercise.seconds, **packed}


def _outcomes(folder: Path, name: str) -> dict[str, list[Outcome]] | None:
    """What an answer gave, if it is there and makes sense."""
    try:
        written = json.loads(read_untrusted(folder / f"{name}.outcomes", LARGEST_OUTCOMES))
        outcomes = {
            kind: [Outcome(what, unpack(value), str(why)[:500]) for what, value, why in given]
            for kind, given in written.items()
        }
        known = all(outcome.kind in KINDS for given in outcomes.values() for outcome in given)
        return {"seen": [], "hidden": [], **outcomes} if known else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _judged(exercise, cases, outcomes) -> Verdict:
    try:
        return exercise.judge(cases, outcomes)
    except Exception as error:  # values of a kind that no honest answer gives
        return Verdict(exercise, False, f"This can't be compared: {type(error).__name__}.")


def _explained(hidden: Verdict, seen: Verdict, given: dict, error: str | None) -> str:
    """What a learner is told: nothing in it shows a hidden input."""
    if hidden.passed or hidden.misconception:
        return hidden.message
    if not given["seen"] and error:
        return f"There is no answer: its cell stopped with {error}"
    if not seen.passed:
        return seen.message
    kinds = {outcome.kind for outcome in given["hidden"]}
    return {
        "raised": "It passes the check, but raises an error for inputs that were drawn anew.",
        "endless": "It passes the check, but does not end for inputs that were drawn anew.",
    }.get(
        (kinds - {"value"} or {""}).pop(),
        "It passes the check, but not with inputs that were drawn anew: is something in it made "
        "for the numbers of the check?",
    )


def _row(submission: Submission, marks: dict, note: str, seconds: float = 0.0) -> dict:
    return {
        "name": submission.name,
        "file": str(submission.path),
        "lesson": submission.lesson,
        "marks": marks,
        "total": sum(mark["points"] for mark in marks.values()),
        "max": sum(mark["max"] for mark in marks.values()),
        "note": note,
        "seconds": round(seconds, 1),
    }


# ------------------------------------------------------------------------------------- a class


def grade(
    submissions: Iterable[Path],
    out: Path,
    editions: Path,
    lesson: str | None = None,
    seed: int = 1,
    salt: str = "",
    jobs: int | None = None,
    limits: Limits | None = None,
    contain: bool = True,
    progress: bool = False,
) -> tuple[list[dict], bool]:
    """Grade notebooks of one lesson, and write grades, feedback and a report.

    What was graded before, in the same way, is taken from ``out``: so an interrupted class goes on
    where it stopped.

    Parameters
    ----------
    submissions
        Files, and folders of them.
    out
        A folder; made.
    editions
        The folder of the learner's editions, ``course/exercises``.
    lesson
        "05"; by default the lesson that most submissions are of. Others get no points.
    seed, salt
        Of the hidden inputs. The salt is kept nowhere.
    jobs
        Notebooks at a time; by default as many as there are cores, and memory for.
    contain
        Use the containment that the operating system gives, where it does.

    Returns
    -------
    A row a submission, in the order of the submissions, and whether they ran shut in.

    Raises
    ------
    GradingError
        There is no submission, or no edition to rebuild it from.
    KeyboardInterrupt
        It was interrupted; all that was graded so far is kept.
    """
    out, editions = Path(out), Path(editions)
    read = [Submission.read(name, path) for name, path in _collect(submissions, out)]
    edition = _edition(editions, read, lesson)
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    rows, todo = {}, []
    with _scratch() as scratch:
        hidden = [PACKAGE, editions, out, *(s.path.parent for s in read)]
        sandbox = _sandbox(limits, hidden, contain)
        contained = sandbox.contained is not None
        grader = Grader(
            edition,
            sandbox,
            _stripped(scratch / "vaelab"),
            seed,
            salt,
            _version(),
        )
        for submission in read:
            if not submission.problem and submission.lesson != edition.lesson:
                there = "; `--lesson {0}` grades it" if submission.lesson else ""
                rows[submission.name] = _refused(
                    submission,
                    edition,
                    f"This is a notebook of lesson {submission.lesson or '?'}; lesson "
                    f"{edition.lesson} is being graded{there.format(submission.lesson)}.",
                )
            elif submission.problem:
                rows[submission.name] = _refused(submission, edition, submission.problem)
            else:
                try:
                    kept = results / f"{grader.key(submission)}.json"
                    rows[submission.name] = json.loads(kept.read_text()) | {
                        "file": str(submission.path)
                    }
                except (OSError, ValueError):
                    todo.append(submission)
        try:
            for submission, row in _all(grader, todo, jobs, progress, len(rows)):
                rows[submission.name] = row
                if row.pop("lasting"):
                    path = results / f"{grader.key(submission)}.json"
                    write_atomically({path: json.dumps(row).encode()})
        finally:
            done = [rows[s.name] for s in read if s.name in rows]
            write(out, edition.lesson, edition.exercises, done, contained)
    return done, contained


def _all(grader: Grader, todo: list[Submission], jobs: int | None, progress: bool, before: int):
    """Each submission and its row, as they come."""
    from tqdm import tqdm

    stop = Event()

    def one(number: int, submission: Submission) -> dict:
        try:
            return grader.grade(submission, number, stop) | {"lasting": True}
        except Exception as error:  # of one submission: the others go on
            why = f"Not graded: {type(error).__name__}: {error}"
            return _refused(submission, grader.edition, why) | {"lasting": False}

    bar = tqdm(total=len(todo) + before, initial=before, unit="notebook", disable=not progress)
    with bar, ThreadPoolExecutor(jobs or _jobs(grader.sandbox.limits)) as pool:
        running = {pool.submit(one, i, submission): submission for i, submission in enumerate(todo)}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
                bar.update()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _jobs(limits: Limits) -> int:
    import psutil

    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 2
    return max(1, min(cores, psutil.virtual_memory().available // limits.memory))


def _collect(paths: Iterable[Path], out: Path) -> list[tuple[str, Path]]:
    """The files, and for each a name that no other has."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(path.rglob("*.ipynb"))
            inside = [file for file in found if ".ipynb_checkpoints" not in file.parts]
            files += [file for file in inside if out.resolve() not in file.resolve().parents]
        elif path.is_file():
            files.append(path)
        else:
            raise GradingError(f"There is no file or folder {path}.")
    if not files:
        raise GradingError("There is no notebook to grade: no .ipynb in what was given.")
    files = list({file.resolve(): file for file in files}.values())
    named, taken = [], set()
    for file in files:
        name, n = file.stem, 1
        while name.lower() in taken:
            n += 1
            name = f"{file.stem} ({n})"
        taken.add(name.lower())
        named.append((name, file))
    return named


def _edition(folder: Path, read: list[Submission], lesson: str | None) -> Edition:
    editions = {e.lesson: e for e in map(Edition.read, sorted(folder.glob("[0-9]*.ipynb")))}
    if not editions:
        raise GradingError(f"There is no learner's edition in {folder}: vaelab release makes them.")
    claimed = Counter(s.lesson for s in read if s.lesson in editions)
    chosen = lesson or (claimed.most_common(1)[0][0] if claimed else "")
    if chosen not in editions:
        of = f"of lesson {lesson}" if lesson else "that these notebooks are of"
        there = ", ".join(editions)
        raise GradingError(f"There is no edition {of} in {folder}; there are {there}.")
    return editions[chosen]


def _sandbox(limits: Limits | None, hidden: list[Path], contain: bool) -> Sandbox:
    from .. import datasets

    lent = {
        "data": datasets.cache_folder(),
        "saved_model_parameters": PACKAGE.parent / "saved_model_parameters",
    }
    return Sandbox(limits, hidden, lent, contain)


def _stripped(folder: Path) -> Path:
    """This package without oracles, misconceptions and grader: what a submission runs with."""
    import compileall

    def ignore(where: str, names: list[str]) -> set[str]:
        return {*names} - KEPT.get(Path(where), {*names} - {"__main__.py", "__pycache__"})

    shutil.copytree(PACKAGE, folder, ignore=ignore)
    check = folder / "teaching" / "exercises" / "__init__.py"
    shutil.copy(TEACHING / "exercises" / "graded.py", check)
    compileall.compile_dir(folder, quiet=2)
    return folder


def _version() -> str:
    """Of all that a verdict depends on here."""
    files = [Path(__file__), *sorted((TEACHING / "exercises").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _refused(submission: Submission, edition: Edition, why: str) -> dict:
    known = [exercises.find(name) for name in edition.exercises]
    marks = {
        e.name: {
            "title": e.title,
            "points": 0,
            "max": e.points,
            "message": "Not graded.",
            "misconception": None,
            "answer": "",
        }
        for e in known
    }
    return _row(submission, marks, why)
