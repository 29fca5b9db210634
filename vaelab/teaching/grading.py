"""Marks: ``vaelab grade`` runs a class's notebooks, and judges what their answers returned.

A submission is read as data. Its answers go into the trusted edition, which runs in a sandbox with
inputs that nobody has seen; there ``vaelab.check`` only takes down what an answer gives. The
verdict is formed here, from those values and the oracles, which the run never meets. Nothing that
a notebook prints, stores or says about itself earns a point.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import hmac
import json
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from py_compile import PycInvalidationMode
from threading import Event

from .._internal.machine import write_atomically
from . import exercises
from .exercises.calls import Outcome
from .exercises.core import Verdict
from .exercises.graded import pack, unpack
from .report import write
from .sandbox import Limits, Sandbox, protected, read_untrusted
from .submissions import Cell, GradingError, Submission, collect, mark_of, printable, source_of

__all__ = ["GradingError", "grade"]

TEACHING = Path(__file__).parent
PACKAGE = TEACHING.parent
EVIDENCE = PACKAGE.parent / "course" / "evidence"
KEPT = {  # a submission gets nothing else of these folders
    TEACHING: {"__init__.py", "evidence.py", "exercises", "recipes.py"},
    TEACHING / "exercises": {"calls.py"},
}
LARGEST_OUTCOMES = 2_000_000  # bytes of what an exercise's answer gave; right ones have 10,000
LARGEST_WORD = 500  # characters of a word that an answer gave
LARGEST_RESULT = 5_000_000  # bytes of a row that was kept
LEFT_OUT = "not-in-grading"  # the tag of a lesson's cells that are long and that no answer needs
MARKER = re.compile(r"^([ \t]*)#[# \t]*(NBVAL_|PYTEST_VALIDATE_)\w+[ \t]*$", re.M)
KINDS = {"value", "undone", "raised", "endless", "foreign"}
DEPENDS_ON = ("torch", "numpy", "scipy", "scikit-learn", "mpmath")  # of verdicts
ENDED = {
    "died": "Python itself ended while this answer ran. Does it call os._exit, or take more memory "
    "than the machine has?",
    "hung": "This answer did not end within {cell_seconds:g} s and could not be interrupted.",
    "memory": "This answer took more than {memory:g} GB of memory.",
    "processes": "This answer started too many processes.",
    "output": "This answer printed more than {output:g} million characters.",
    "disk": "This answer wrote more than {disk:g} MB.",
    "seconds": "The {seconds:g} s for this notebook were over before this answer ended.",
    "failed": "The run broke off while this answer ran.",
    "large": "This answer gave far more values than any exercise asks for.",
}
UNCHECKED = PycInvalidationMode.UNCHECKED_HASH  # whenever the sources are copied
NOT_FOR_EVER = {"seconds", "failed", "hung"}  # the machine may have been slow, or ill
ADDS_UP = {"memory", "processes", "output", "disk"}  # earlier answers may have used most of it


@dataclass(frozen=True)
class Edition:
    """A learner's edition as it was released: what a submission is rebuilt from."""

    lesson: str
    release: str
    notebook: dict = field(repr=False)
    exercises: tuple[str, ...] = ()
    title: str = ""

    @classmethod
    def read(cls, path: Path) -> Edition:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        about = notebook["metadata"].get("vaelab", {})
        marks = [mark_of(cell) for cell in notebook["cells"]]
        names = tuple(name for name, kind in marks if kind == "answer")
        lesson = about.get("lesson") or path.stem.partition("_")[0]
        text = "\n".join(source_of(cell) or "" for cell in notebook["cells"])
        title = re.search(r"^# (?:\d+ · )?(.+)$", text, re.M)
        return cls(
            lesson=lesson,
            release=str(about.get("release", "")),
            notebook=notebook,
            exercises=names,
            title=title[1] if title else "",
        )

    def placed(self, cells: Sequence[Cell], own: bool) -> dict[int, list[tuple[str, str]]]:
        """Where a learner's cells go in this edition: before which of its cells, by position.

        Answers go where theirs stands. With ``own``, so does all else that the learner wrote: a
        cell of the learner's own before the cell of the edition that follows it there, and a
        cell of the edition that was changed behind its original.

        Returns
        -------
        Pairs (unit, source) by their position; the unit is an exercise, or "own" and a number.
        """
        marks = [mark_of(cell) for cell in self.notebook["cells"]]
        sources = [source_of(cell) or "" for cell in self.notebook["cells"]]
        code = [i for i, cell in enumerate(self.notebook["cells"]) if cell["cell_type"] == "code"]
        by_mark = {marks[i]: i for i in code if marks[i][0]}
        by_id = {self.notebook["cells"][i].get("id"): i for i in code}
        by_source = {sources[i].strip(): i for i in reversed(code)}
        placed, waiting, last = defaultdict(list), [], 0
        for n, cell in enumerate(cells):
            at = by_mark.get((cell.name, cell.kind))
            if at is None and cell.name is None:
                at = by_id.get(cell.id) if cell.id else None
                at = by_source.get(cell.source.strip()) if at is None else at
            if at is None:
                waiting.append((f"own {n}", cell.source))
                continue
            placed[at] += waiting
            waiting, last = [], at + 1
            if cell.kind == "answer":
                placed[at].append((cell.name, cell.source))
            elif cell.kind is None and cell.source.strip() != sources[at].strip():
                placed[at + 1].append((f"own {n}", cell.source))
        placed[last] += waiting
        return {
            at: kept
            for at, units in placed.items()
            if (kept := [u for u in units if u[1].strip() and (own or not u[0].startswith("own"))])
        }

    def rebuilt(
        self, placed: dict[int, list[tuple[str, str]]], without: Iterable[str] = ()
    ) -> tuple[dict, list[str | None], list[str | None]]:
        """The notebook with these cells of the learner's, up to its last check.

        Returns
        -------
        notebook
            Cells of code alone.
        owners
            For each cell the exercise that it is part of, or that stands before it; None for the
            learner's own.
        units
            For each cell the unit that the learner wrote, or None.
        """
        marks = [mark_of(cell) for cell in self.notebook["cells"]]
        end = 1 + max(i for i, (_, kind) in enumerate(marks) if kind == "check")
        cells, owners, units, owner, without = [], [], [], None, {*without}

        def add(cell, owned, unit):
            cells.append(cell | {"outputs": [], "execution_count": None})
            owners.append(owned)
            units.append(unit)

        for at, (cell, (name, kind)) in enumerate(zip(self.notebook["cells"], marks, strict=True)):
            if at >= end:
                break
            if cell["cell_type"] != "code":
                continue
            owner = name or owner
            written = [unit for unit in placed.get(at, ()) if unit[0] not in without]
            for unit, source in written:
                blank = {key: value for key, value in cell.items() if key != "id"}
                source = MARKER.sub(r"\1#", source)
                own = unit.startswith("own")
                add(blank | {"source": source, "metadata": {}}, None if own else owner, unit)
            answered = kind == "answer" and any(unit == name for unit, _ in written)
            if not answered and LEFT_OUT not in cell["metadata"].get("tags", ()):
                add(copy.deepcopy(cell), owner, None)
        notebook = {k: copy.deepcopy(v) for k, v in self.notebook.items() if k != "cells"}
        if notebook.get("nbformat_minor", 0) > 4:
            notebook["nbformat_minor"] = 4  # without ids
            cells = [{k: v for k, v in cell.items() if k != "id"} for cell in cells]
        return notebook | {"cells": cells}, owners, units


# ------------------------------------------------------------------------------ one submission


@dataclass
class _Run:
    """What came of a submission's runs.

    Parameters
    ----------
    outcomes
        Outcomes of each exercise: {"seen": [...], "hidden": [...]}.
    errors
        The error that stopped the cells of each exercise.
    ended
        The reason for which each unit ended a run: a key of ENDED.
    over
        True if the time was over before the last check.
    seconds
        Seconds of wall-clock time.
    """

    outcomes: dict = field(default_factory=dict)
    errors: dict = field(default_factory=dict)
    ended: dict = field(default_factory=dict)
    over: bool = False
    seconds: float = 0.0


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
        A copy of this package without the right answers: its files by path.
    seed, salt
        Hidden inputs are drawn from these and from the answers themselves: whoever changes an
        answer meets other inputs.
    version
        Hash of everything else that a mark depends on.
    """

    edition: Edition
    sandbox: Sandbox
    package: dict[str, bytes]
    seed: int
    salt: str
    version: str

    def key(self, submission: Submission) -> str:
        """The same for the same submission, graded in the same way."""
        edition = json.dumps(self.edition.notebook, sort_keys=True)
        way = self.sandbox.contained.name if self.sandbox.contained else ""
        how = [self.version, edition, self.seed, asdict(self.sandbox.limits), way]
        return self._digest(json.dumps([*how, submission.digest]).encode())[:32]

    def hidden_seed(self, exercise: str, submission: Submission) -> int:
        written = [cell.source for cell in submission.cells]
        answers = json.dumps([submission.answers, written], sort_keys=True)
        drawn = self._digest(f"{self.seed} {exercise} {answers}".encode())
        return int(drawn, 16) + exercises.SEED + 1  # never the one that learners have

    def _digest(self, content: bytes) -> str:
        return hmac.new(self.salt.encode(), content, hashlib.sha256).hexdigest()

    def grade(self, submission: Submission, number: int = 0, stop: Event | None = None) -> dict:
        """Run a submission and judge it.

        The answers run with the edition's other cells as they were handed out. If something is
        not right then, they run again with all that the learner wrote, and the better counts: so
        nobody loses by a cell that was only tried out.

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
        limit = self.sandbox.limits.seconds
        placed = self.edition.placed(submission.cells, own=False)
        first = self._run(placed, cases, limit, number, stop)
        marks = {name: self._mark(name, cases, first, submission) for name in names}
        runs, helped = [first], []
        everything = self.edition.placed(submission.cells, own=True)
        wrong = [name for name in names if not marks[name]["points"]]
        if wrong and everything != placed and limit > first.seconds:
            try:
                second = self._run(everything, cases, limit - first.seconds, number, stop)
            except GradingError:
                second = _Run(over=True)
            runs.append(second)
            for name in wrong:
                mark = self._mark(name, cases, second, submission)
                if mark["points"]:
                    helped.append(name)
                if mark["points"] or name in second.outcomes or name in second.errors:
                    marks[name] = mark
        notes = [*submission.notes]
        if submission.release and submission.release != self.edition.release:
            notes.append(
                f"This notebook is of release {submission.release}, not {self.edition.release}: "
                "it was graded by the names of the exercises."
            )
        if absent := [n for n in names if n not in submission.answers and not marks[n]["points"]]:
            notes.append(f"No answer cell: {', '.join(absent)}.")
            for name in absent:  # not "in place of the line that raises": there is no line
                if marks[name]["unanswered"]:
                    marks[name]["message"] = "Your notebook has no cell for this answer."
        if helped:
            notes.append(f"Right with the learner's other cells: {', '.join(helped)}.")
        for run in runs:
            for unit, reason in run.ended.items():
                whose = unit
                if unit.startswith("own"):
                    source = submission.cells[int(unit.split()[1])].source
                    whose = f"The cell that begins {source.strip().splitlines()[0][:60]!r}"
                notes.append(f"{whose}: {self._ending(reason)}")
        notes = list(dict.fromkeys(notes))
        reasons = {reason for run in runs for reason in run.ended.values()}
        row = _row(submission, marks, " ".join(notes)[:2000], time.monotonic() - began)
        unsure = reasons & NOT_FOR_EVER or any(run.over for run in runs)
        return row | {"lasting": row["total"] == row["max"] or not unsure}

    def _ending(self, reason: str) -> str:
        limits = self.sandbox.limits
        return ENDED[reason].format(
            memory=limits.memory / 1e9,
            output=limits.output / 1e6,
            disk=limits.disk / 1e6,
            cell_seconds=limits.cell_seconds,
            seconds=limits.seconds,
        )

    def _mark(self, name: str, cases: dict, run: _Run, submission: Submission) -> dict:
        exercise = exercises.find(name)
        given = run.outcomes.get(name, {"seen": [], "hidden": []})
        verdict = _judged(exercise, cases[name]["hidden"], given["hidden"])
        answer = "\n\n".join(submission.answers.get(name, ()))
        reached = given["seen"] or given["hidden"] or name in run.errors
        if name in run.ended and not given["hidden"]:
            message = self._ending(run.ended[name])
        elif run.over and not reached:
            message = (
                f"Not graded: the {self.sandbox.limits.seconds:g} s for this notebook were over "
                "before this answer was reached."
            )
        else:
            seen = _judged(exercise, cases[name]["seen"], given["seen"])
            message = _explained(verdict, seen, given, run.errors.get(name))
        undone = [outcome.kind for outcome in given["seen"][:1]] == ["undone"]
        undone |= str(run.errors.get(name)).startswith("stopped with NotImplementedError: Exercise")
        return {
            "title": exercise.title,
            "points": verdict.points,
            "max": exercise.points,
            "message": message[:2000],
            "misconception": verdict.misconception,
            "unanswered": not verdict.points and (undone or not (answer or reached)),
            "answer": answer[:20_000],
        }

    def _run(self, placed: dict, cases: dict, seconds: float, number: int, stop) -> _Run:
        """Collect all outcomes; a unit that ends the run is left out of the next run.

        Where earlier units may have used most of what was too much, the unit runs once more
        alone. If that ends well, it is not charged: the unit before it is left out instead.
        """
        run, left, tries = _Run(), seconds, 0
        without, alone, before = set(), None, []
        everyone = {unit for placed_here in placed.values() for unit, _ in placed_here}
        while True:
            leave_out = everyone - {alone} if alone else without
            notebook, owners, units = self.edition.rebuilt(placed, leave_out)
            with _scratch() as scratch:
                folder = scratch / "run"
                for path, content in self.package.items():
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (folder / path).write_bytes(content)
                lesson = folder / "course" / "exercises" / "lesson.ipynb"
                lesson.parent.mkdir(parents=True)
                lesson.write_text(json.dumps(notebook))
                for name, drawn in cases.items():
                    inputs = _inputs(exercises.find(name), drawn)
                    (folder / f"{name}.inputs").write_text(json.dumps(inputs))
                path = str(lesson.relative_to(folder))
                ending = self.sandbox.run(folder, path, left, number, stop)
                for name in () if alone else cases:
                    if name not in run.outcomes and name not in run.ended:
                        try:
                            found = _outcomes(folder, name)
                        except _TooLarge:
                            run.ended[name] = "large"
                            without.add(name)
                            continue
                        if found:
                            run.outcomes[name] = found
            left -= ending.seconds
            run.seconds = seconds - left
            for cell, error in ending.errors.items():
                owner = owners[cell] if cell < len(owners) else None
                if owner and owner not in run.errors and not alone:
                    late = error.startswith("KeyboardInterrupt")
                    after = f"was still running after {self.sandbox.limits.cell_seconds:g} s."
                    run.errors[owner] = after if late else f"stopped with {error}"
            if alone:
                innocent = ending.reason == "done" and run.ended.pop(alone)
                without.add(before[-2] if innocent else alone)
                alone = None
            elif ending.reason == "done":
                return run
            elif ending.cell is None:
                tries += 1
                if tries < 2 and left > 0:  # a kernel that was too slow to start, perhaps
                    continue
                raise GradingError(f"It could not be run ({ending.reason}). {ending.said[-300:]}")
            else:
                before = [unit for unit in units[: ending.cell + 1] if unit]
                if not before:
                    raise GradingError(
                        f"The edition's own cells ended the run ({ending.reason}), or a cell that "
                        "stands before every answer."
                    )
                last = before[-1]
                run.ended[last] = ending.reason
                if last in cases and len(before) > 1 and ending.reason in ADDS_UP:
                    alone = last
                else:
                    without.add(last)
            if left <= 0:
                run.over = True
                return run


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
    how = {key: getattr(exercise, key) for key in ("call", "seconds", "returns")}
    return how | packed


class _TooLarge(Exception):
    pass


def _outcomes(folder: Path, name: str) -> dict[str, list[Outcome]] | None:
    """What an answer gave, if it is there and makes sense."""
    try:
        written = json.loads(read_untrusted(folder / f"{name}.outcomes", LARGEST_OUTCOMES))
        outcomes = {
            kind: [
                Outcome(
                    kind=what,
                    value=_short(unpack(it)),
                    message=str(why)[:500],
                    form=_words(form) or ("none",),  # so that no type goes unjudged
                    reached=_words(reached),
                )
                for what, it, why, form, reached in given
            ]
            for kind, given in written.items()
        }
        known = all(outcome.kind in KINDS for given in outcomes.values() for outcome in given)
        return {"seen": [], "hidden": [], **outcomes} if known else None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _TooLarge from None
        return None
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _words(said) -> tuple[str, ...]:
    """Types or names that a run wrote down."""
    return tuple(str(word)[:60] for word in list(said)[:40])


def _short(value):
    """Without the rest of a word that no exercise has asked for."""
    if isinstance(value, tuple):
        return tuple(_short(part) for part in value)
    return value[:LARGEST_WORD] if isinstance(value, str) else value


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
        return f"There is no answer: its cell {error}"
    if not seen.passed:
        return seen.message
    kinds = {outcome.kind for outcome in given["hidden"]}
    return {
        "raised": "It passes the check, but raises an error for new inputs.",
        "endless": "It passes the check, but is still running after its time for new inputs.",
    }.get(
        (kinds - {"value"} or {""}).pop(),
        "It passes the check, but gives a wrong result for new inputs. Does something in it only "
        "work for the numbers of the check?",
    )


def _row(submission: Submission, marks: dict, note: str, seconds: float = 0.0) -> dict:
    return {
        "name": submission.name,
        "file": str(submission.path),
        "lesson": submission.lesson,
        "marks": marks,
        "total": sum(mark["points"] for mark in marks.values()),
        "max": sum(mark["max"] for mark in marks.values()),
        "note": printable(note),
        "seconds": round(seconds, 1),
    }


# ------------------------------------------------------------------------------------- a class


def grade(
    submissions: Iterable[Path],
    out: Path,
    editions: Path,
    *,
    lesson: str | None = None,
    seed: int = 1,
    salt: str = "",
    jobs: int | None = None,
    limits: Limits | None = None,
    contain: bool = True,
    progress: bool = False,
    uncontained: bool = False,
    tell=None,
) -> tuple[list[dict], bool]:
    """Grade notebooks of one lesson, and write grades, feedback and a report.

    What was graded before, in the same way, is taken from ``out``: so an interrupted class goes on
    where it stopped, and what could not be graded is tried again.

    Parameters
    ----------
    submissions
        Files, zips, and folders of them.
    out
        A folder for the results; it is made where it does not exist.
    editions
        The folder of the learner's editions, ``course/exercises``.
    lesson
        "05"; by default the lesson that most learners hand in. Others get no points.
    seed, salt
        Seed and secret of the hidden inputs. The salt is kept nowhere.
    jobs
        Number of notebooks at a time; by default as many as there are cores, and memory for.
        Always 1 where they are not contained, so that none can reach another.
    contain
        Whether to use the containment that the operating system offers. False is for tests, and
        implies ``uncontained``.
    uncontained
        Whether to run notebooks where nothing contains them.
    tell
        Called with a sentence for each file that was not taken.

    Returns
    -------
    A row for each submission, in the order of the submissions, and whether they ran contained.

    Raises
    ------
    GradingError
        No submission was found, or no edition to rebuild it from; or nothing would contain the
        notebooks; or files changed that no notebook may change.
    KeyboardInterrupt
        It was interrupted; all that was graded so far is kept.
    """
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise GradingError(f"jobs is {jobs!r}; it is a whole number of notebooks, 1 or more.")
    submissions, out, editions = [Path(path) for path in submissions], Path(out), Path(editions)
    released = _released(editions)
    files, left = collect(submissions, out, [path.stem for path in released])
    for sentence in left if tell else ():
        tell(sentence)
    read = [Submission.read(file) for file in files]
    edition = _edition(editions, read, lesson)
    hidden = [PACKAGE, editions, out, *(p if p.is_dir() else p.parent for p in submissions)]
    sandbox = _sandbox(limits, hidden, contain)
    contained = sandbox.contained is not None
    if contain and not (contained or uncontained):
        raise GradingError(
            "Nothing was graded: on this machine nothing would keep a notebook from this user's "
            f"files and the network ({'; '.join(sandbox.why)}). If you trust all notebooks, "
            "--uncontained runs them all the same."
        )
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    grader = Grader(
        edition=edition,
        sandbox=sandbox,
        package=_stripped(),
        seed=seed,
        salt=salt,
        version=_version(),
    )
    rows, todo, fresh = {}, [], []
    for submission in read:
        problem = submission.problem
        if not problem and submission.lesson != edition.lesson:
            there = f"; `--lesson {submission.lesson}` grades it" if submission.lesson else ""
            problem = (
                f"This is a notebook of lesson {submission.lesson or '?'}; lesson "
                f"{edition.lesson} is being graded{there}."
            )
        if problem:
            rows[submission.name] = _refused(submission, edition, problem)
        elif kept := _kept(results / f"{grader.key(submission)}.json", edition):
            about = {"name": submission.name, "file": str(submission.path)}
            rows[submission.name] = kept | about
        else:
            todo.append(submission)
    handed_in = {next(p for p in (s.path, *s.path.parents) if p.exists()) for s in read}
    watched = _Watched([] if contained else [PACKAGE, editions, *handed_in])
    try:
        with protected(not contained):
            one_by_one = jobs if contained else 1
            for submission, row in _all(grader, todo, one_by_one, progress, len(rows)):
                rows[submission.name] = row
                if row.pop("lasting"):
                    path = results / f"{grader.key(submission)}.json"
                    write_atomically({path: json.dumps(row).encode()})
                    fresh.append(path)
        if changed := watched.changed():
            for path in fresh:
                path.unlink(missing_ok=True)
            raise GradingError(
                "These files changed while notebooks ran without containment, so the marks of "
                f"this call can't be trusted and are not kept: {', '.join(changed[:10])}."
            )
    finally:
        done = [rows[s.name] for s in read if s.name in rows]
        write(
            out,
            lesson=edition.lesson,
            names=edition.exercises,
            rows=done,
            contained=contained,
            title=edition.title,
            left=left,
        )
    return done, contained


def _all(grader: Grader, todo: list[Submission], jobs: int | None, progress: bool, before: int):
    """Each submission and its row, as they come: every learner's first one, then the others."""
    from tqdm import tqdm

    stop = Event()

    def one(number: int, submission: Submission) -> dict:
        try:
            return grader.grade(submission, number, stop)
        except Exception as error:  # of one submission: the others go on
            why = f"Not graded: {type(error).__name__}: {error}"[:1000]
            return _refused(submission, grader.edition, why) | {"lasting": False}

    many: Counter = Counter()
    turns = []
    for submission in todo:
        turns.append(many[submission.learner])
        many[submission.learner] += 1
    todo = [s for _, s in sorted(zip(turns, todo, strict=True), key=lambda pair: pair[0])]
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
    return int(max(1, min(cores, psutil.virtual_memory().available // limits.memory)))


def _kept(path: Path, edition: Edition) -> dict | None:
    """A row that was written before; None if it is not there, or not whole."""
    try:
        row = json.loads(read_untrusted(path, LARGEST_RESULT))
        marks = [row["marks"][name] for name in edition.exercises]
        known = {*_mark_of_nothing(exercises.find(edition.exercises[0]))}
        whole = all({*mark} == known for mark in marks)
        whole = whole and {*row} == {*_row(Submission("", Path()), {}, "")}
        return row if whole else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


class _Watched:
    """Files that no run may change, and whether one has."""

    def __init__(self, paths: Iterable[Path]):
        self.paths = list(paths)
        self.before = self._digests()

    def changed(self) -> list[str]:
        now = self._digests()
        return sorted(p for p in self.before.keys() | now if self.before.get(p) != now.get(p))

    def _digests(self) -> dict[str, str]:
        found = {}
        for top in self.paths:
            for path in [top, *top.rglob("*")] if top.is_dir() else [top]:
                if path.suffix != ".pyc" and path.is_file():
                    try:
                        with open(path, "rb") as file:
                            found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
                    except OSError:
                        found[str(path)] = "unreadable"
        return found


def _released(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.ipynb"))


def _edition(folder: Path, read: list[Submission], lesson: str | None) -> Edition:
    """The lesson that was asked for, or the one that most learners hand in."""
    editions = {e.lesson: e for e in map(Edition.read, _released(folder))}
    if not editions:
        raise GradingError(f"There is no learner's edition in {folder}: vaelab release makes them.")
    votes: dict = defaultdict(Counter)  # one each, however many files a learner has
    for submission in read:
        if submission.lesson in editions:
            votes[submission.learner][submission.lesson] += 1
    claimed = Counter(of.most_common(1)[0][0] for of in votes.values())
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
    return Sandbox(limits=limits, hidden=hidden, lent=lent, contain=contain)


def _stripped() -> dict[str, bytes]:
    """This package without oracles, misconceptions and grader: what a submission runs with.

    The numbers of the evidence are added, because lessons read them. All is held in memory, where
    no submission can change it for the next.
    """
    import compileall

    def ignore(where: str, names: list[str]) -> set[str]:
        return {*names} - KEPT.get(Path(where), {*names} - {"__main__.py", "__pycache__"})

    with _scratch() as scratch:
        folder = scratch / PACKAGE.name
        shutil.copytree(PACKAGE, folder, ignore=ignore)
        check = folder / "teaching" / "exercises" / "__init__.py"
        shutil.copy(TEACHING / "exercises" / "graded.py", check)
        compileall.compile_dir(folder, quiet=2, invalidation_mode=UNCHECKED)
        files = (path for path in folder.rglob("*") if path.is_file())
        held = {str(path.relative_to(scratch)): path.read_bytes() for path in files}
    for path in EVIDENCE.glob("*.json"):
        held[f"course/evidence/{path.name}"] = path.read_bytes()
    return held


def _version() -> str:
    """Of all that a verdict depends on here: this package, Python, and what both compute with."""
    files = sorted(path for path in PACKAGE.rglob("*.py"))
    content = b"".join(str(f.relative_to(PACKAGE)).encode() + f.read_bytes() for f in files)
    others = [platform.python_version(), platform.machine(), *map(version, DEPENDS_ON)]
    return hashlib.sha256(content + json.dumps(others).encode()).hexdigest()


def _mark_of_nothing(exercise) -> dict:
    return {
        "title": exercise.title,
        "points": 0,
        "max": exercise.points,
        "message": "Not graded.",
        "misconception": None,
        "unanswered": True,
        "answer": "",
    }


def _refused(submission: Submission, edition: Edition, why: str) -> dict:
    marks = {name: _mark_of_nothing(exercises.find(name)) for name in edition.exercises}
    return _row(submission, marks, why)
