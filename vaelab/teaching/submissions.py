"""What a class hands in, read as data: files, folders and zips, each of them a stranger's.

Nothing here runs. A file that can't be read is one learner's matter: the others are read all the
same, and what was not taken is named.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .sandbox import read_untrusted

__all__ = ["Cell", "GradingError", "Submission", "collect", "mark_of", "printable", "source_of"]

LARGEST = 20_000_000  # bytes of a submission
LARGEST_TEXT = 1_000_000  # characters that a learner may write in all cells
LARGEST_ZIP = 500_000_000
LARGEST_INDEX = 2_000_000  # bytes of a zip's list of files
MOST_VALUES = 2_000_000  # in the JSON of a notebook
MOST_IN_A_ZIP = 1000
DEEPEST = 20
NOT_HANDED_IN = {".ipynb_checkpoints", "__MACOSX"}  # Jupyter and macOS make these
ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz")
CHECK = re.compile(r"""\s*vaelab\.check\(["'](\d\d\.\d{1,2})["']""")
SURROGATE = re.compile("[\ud800-\udfff]")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class GradingError(ValueError):
    """Something that has to be corrected before anything, or this submission, can be graded."""


@dataclass(frozen=True)
class Cell:
    """A code cell of a submission; ``name`` is the exercise that it belongs to, if it does, and
    ``kind`` what it is there: "answer" or "check"."""

    source: str
    name: str | None = None
    kind: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Submission:
    """One learner's notebook, as data.

    Parameters
    ----------
    name
        Nobody else in the class has it.
    path
        Where it lies; for a file in a zip, the zip's path comes first.
    digest
        Hash of its whole content.
    answers
        For each exercise, the sources of the cells that are marked as its answer, in order.
    lesson, release
        What it says it is of.
    problem
        Why it can't be graded.
    notes
        What is not graded as it stands.
    learner
        The same for all that one learner handed in, as far as folders tell.
    cells
        All code cells, in their order.
    """

    name: str
    path: Path
    digest: str = ""
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    lesson: str = ""
    release: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()
    learner: str = ""
    cells: tuple[Cell, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, file: File) -> Submission:
        """Read a file; whatever is wrong with it stands in ``problem``."""
        about = {"name": file.name, "path": file.path, "learner": file.learner}
        try:
            content = file.read()
            return cls(**about, digest=hashlib.sha256(content).hexdigest(), **_parsed(content))
        except GradingError as error:
            return cls(**about, problem=str(error))
        except OSError as error:
            return cls(**about, problem=f"This file can't be read: {error.strerror or error}.")
        except Exception as error:  # a stranger's file: it must not stop the class
            return cls(**about, problem=f"This file can't be read ({type(error).__name__}).")


def _parsed(content: bytes) -> dict:
    """The fields of a submission that its content gives."""
    if len(content) > LARGEST:
        raise GradingError(
            f"This file has more than {LARGEST / 1e6:.0f} MB, the most that is read. Clear the "
            "outputs and save it again."
        )
    if not content.strip():
        raise GradingError("This file is empty.")
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > MOST_VALUES:
        raise GradingError("This file holds too many values for a notebook. Clear the outputs.")
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise GradingError("This is not a notebook: the file holds no JSON.") from None
    listed = _get(notebook, "cells")
    if not isinstance(listed, list):
        raise GradingError("This is not a notebook of Jupyter's format 4: it has no cells.")
    cells, notes, answers, size = [], [], defaultdict(list), 0
    for cell in listed:
        source = source_of(cell)
        if source is None:
            continue
        name, kind = mark_of(cell)
        if _get(cell, "cell_type") != "code":
            if kind == "answer":
                notes.append(f"{name}: its cell is not a code cell, so it did not run.")
            continue
        size += len(source)
        if found := sorted({f"U+{ord(half):X}" for half in SURROGATE.findall(source)}):
            source = SURROGATE.sub("\ufffd", source)
            notes.append(
                f"{name or 'A cell'}: it has half a character ({', '.join(found[:3])}), which "
                "Python can't read; \ufffd stands for it."
            )
        cells.append(Cell(source, name, kind, _id_of(cell)))
        if kind == "answer":
            answers[name].append(source)
    if size > LARGEST_TEXT:
        raise GradingError(
            f"The cells hold {size / 1e6:.1f} million characters of code; up to "
            f"{LARGEST_TEXT / 1e6:.0f} million are read."
        )
    for name, pieces in answers.items():
        if len(pieces) > 1:
            notes.append(f"{name}: {len(pieces)} cells are its answer; all ran, in their order.")
    lessons = Counter(cell.name.partition(".")[0] for cell in cells if cell.name)
    lesson = str(_get(notebook, "metadata", "vaelab", "lesson") or "")[:8]
    return {
        "answers": {name: tuple(pieces) for name, pieces in answers.items()},
        "lesson": lessons.most_common(1)[0][0] if lessons else lesson,
        "release": str(_get(notebook, "metadata", "vaelab", "release") or "")[:40],
        "problem": "" if lessons else "There is no answer cell of any exercise in this notebook.",
        "notes": tuple(notes[:20]),
        "cells": tuple(cells),
    }


def _get(data, *keys):
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def source_of(cell) -> str | None:
    """The text of a cell; None if it has none."""
    source = _get(cell, "source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    return source if isinstance(source, str) else None


def _id_of(cell) -> str | None:
    """Colab keeps it among the metadata."""
    found = (_get(cell, "id"), _get(cell, "metadata", "id"))
    return next((one for one in found if isinstance(one, str)), None)


def mark_of(cell) -> tuple[str | None, str | None]:
    """Which exercise a cell belongs to, and as what: "answer" or "check".

    nbgrader's metadata say so. Programs that drop them may keep the cell's id, which is the same in
    our editions; and a check says itself what it checks.
    """
    for said in (_get(cell, "metadata", "nbgrader", "grade_id"), _id_of(cell)):
        if isinstance(said, str) and (
            found := re.fullmatch(r"(\d\d)[.-](\d{1,2})(-check)?", said, re.ASCII)
        ):
            lesson, number, check = found.groups()
            return f"{lesson}.{number}", "check" if check else "answer"
    if _get(cell, "cell_type") == "code" and (found := CHECK.match(source_of(cell) or "")):
        return found[1], "check"
    return None, None


# --------------------------------------------------------------------------------- the files


@dataclass
class File:
    """A notebook among what was handed in.

    ``folders`` are those above it: the name of what was given first, then those below.
    """

    path: Path
    stem: str
    folders: tuple[str, ...]
    read: Callable[[], bytes] = field(repr=False)
    name: str = ""
    learner: str = ""


def collect(
    paths: Iterable[Path], out: Path, released: Iterable[str] = ()
) -> tuple[list[File], list[str]]:
    """All notebooks in files, folders and zips, named, and what was not taken, each with a reason.

    Parameters
    ----------
    out
        A folder to leave out: the results.
    released
        The names of the lessons' own files, which tell nobody's name.

    Raises
    ------
    GradingError
        A path does not exist, or there is no notebook at all.
    """
    search, paths = _Search(out), list(map(Path, paths))
    for path in paths:
        if not os.path.lexists(path):
            raise GradingError(f"There is no file or folder {path}.")
        search.look_at(path, (path.absolute().parent.name,), given=True)
    files = list({os.path.abspath(file.path): file for file in search.found}.values())
    if not files:
        raise GradingError(
            "There is no notebook to grade: no .ipynb in what was given. "
            + " ".join(f"Not taken: {told}" for told in search.left)
        )
    _name(files, {name.lower() for name in released}, len(paths) > 1)
    return files, search.left


class _Search:
    """Goes through what was given, and never through a link."""

    def __init__(self, out: Path):
        self.found: list[File] = []
        self.left: list[str] = []
        self.out = os.path.realpath(out)

    def leave(self, path, why: str) -> None:
        self.left.append(f"{printable(str(path))}: {why}.")

    def look_at(self, path: Path, folders: tuple[str, ...], given: bool = False) -> None:
        name = path.name.lower()
        if name in {n.lower() for n in NOT_HANDED_IN} or name.startswith("._"):
            return
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            self.leave(path, error.strerror)
            return
        if stat.S_ISLNK(mode):
            self.leave(path, "a link; hand in what it leads to")
        elif stat.S_ISDIR(mode):
            self.look_into(path, (path.absolute().name,) if given else (*folders, path.name))
        elif not stat.S_ISREG(mode):
            self.leave(path, "not a file")
        elif name.endswith(".zip"):
            self.unpack(path, folders)
        elif name.endswith(".ipynb") or (given and ".ipynb" not in name):
            self.found.append(
                File(path, path.stem, folders, lambda: read_untrusted(path, LARGEST, cut=True))
            )
        elif ".ipynb" in name or name.endswith(ARCHIVES):
            self.leave(path, "its name does not end in .ipynb or .zip")

    def look_into(self, folder: Path, folders: tuple[str, ...]) -> None:
        if os.path.realpath(folder) == self.out:
            return
        if len(folders) > DEEPEST:
            self.leave(folder, f"more than {DEEPEST} folders deep")
            return
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.leave(folder, f"this folder can't be read ({error.strerror})")
            return
        for name in names:
            self.look_at(folder / name, folders)

    def unpack(self, path: Path, folders: tuple[str, ...]) -> None:
        """The notebooks of a zip. Nothing is written anywhere."""
        n = len(self.found)
        try:
            with _opened_zip(path) as archive:
                entries = archive.infolist()
        except (OSError, GradingError, *ZIP_ERRORS) as error:
            why = str(error) if isinstance(error, GradingError) else "This zip can't be read."
            self.found.append(File(path, path.stem, folders, lambda: _refuse(why)))
            return
        for entry in entries:
            *above, name = [part for part in re.split(r"[/\\]", entry.filename) if part] or [""]
            where = Path(path, *above, name)
            if NOT_HANDED_IN & {*above} or name.startswith("._") or entry.is_dir():
                continue
            if name.lower().endswith(ARCHIVES):
                self.leave(where, "an archive within an archive")
            elif ".ipynb" in name.lower() and not name.lower().endswith(".ipynb"):
                self.leave(where, "its name does not end in .ipynb")
            elif not name.lower().endswith(".ipynb"):
                continue
            elif stat.S_ISLNK(entry.external_attr >> 16):
                self.leave(where, "a link; hand in what it leads to")
            elif len(self.found) - n >= MOST_IN_A_ZIP:
                self.leave(path, f"it holds more than {MOST_IN_A_ZIP} notebooks; these were taken")
                break
            else:
                inside = (*folders, path.stem, *(part for part in above if part not in "."))
                self.found.append(
                    File(where, Path(name).stem, inside, lambda entry=entry: _member(path, entry))
                )
        if len(self.found) == n:
            self.found.append(
                File(path, path.stem, folders, lambda: _refuse("There is no notebook in this zip."))
            )


ZIP_ERRORS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, RuntimeError, NotImplementedError),
    *(struct.error, EOFError, KeyError, IndexError, OverflowError),
)


def _refuse(why: str) -> bytes:
    raise GradingError(why)


@contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise GradingError("This is not a file.")
        if about.st_size > LARGEST_ZIP:
            raise GradingError(f"This zip has more than {LARGEST_ZIP / 1e6:.0f} MB.")
        file.seek(-min(about.st_size, 66_000), io.SEEK_END)
        end = file.read()
        at = end.rfind(b"PK\5\6")  # before zipfile reads the index: how long is it?
        if at < 0 or len(end) < at + 22:
            raise GradingError("This is not a zip, or only a part of one.")
        if struct.unpack_from("<I", end, at + 12)[0] > LARGEST_INDEX:
            raise GradingError("This zip holds too many files.")
        with zipfile.ZipFile(file) as archive:
            yield archive


def _member(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """One file of a zip, and no more of it than a notebook may have."""
    if entry.flag_bits & 1:
        raise GradingError("This zip has a password. Hand it in without.")
    try:
        with _opened_zip(path) as archive, archive.open(entry) as file:
            return file.read(LARGEST + 1)
    except GradingError:
        raise
    except (*ZIP_ERRORS, zlib.error):
        raise GradingError("This file can't be unpacked from its zip.") from None


# --------------------------------------------------------------------------------- the names


def _name(files: list[File], released: set[str], several: bool) -> None:
    """Give each file a name that no other has, and that does not depend on who else hands in:
    its own, or where that is the lesson's or several have it, its folder's."""
    stems = Counter(file.stem.lower() for file in files)
    folders = {id(file): _telling(file, several) for file in files}
    nested = {tuple(told) for told in folders.values() if told}
    shared = 0  # folders that all have, above the one that tells
    while shared + 1 < min(map(len, nested), default=0) and len({t[shared] for t in nested}) == 1:
        shared += 1
    for file in files:
        told = folders[id(file)]
        told = told[shared:]
        file.learner = told[0] if told else ""
        base = re.sub(r"[ _-]*(copy\d*|\(\d+\)|-\d+)$", "", file.stem.lower(), flags=re.I)
        if told and base in released:
            file.name = told[0]
        elif told and stems[file.stem.lower()] > 1:
            file.name = f"{told[0]} {file.stem}"
        else:
            file.name = file.stem
    longer = (
        lambda file: f"{file.learner} {file.stem}".strip(),
        lambda file: " ".join([*folders[id(file)], file.stem]),
        lambda file: f"{file.name} ({hashlib.sha256(os.fsencode(file.path)).hexdigest()[:6]})",
    )
    for file in files:
        file.name = printable(file.name) or "unnamed"
    for rename in longer:
        taken = Counter(file.name.lower() for file in files)
        for file in files:
            if taken[file.name.lower()] > 1:
                file.name = printable(rename(file)) or "unnamed"
    for file in files:
        file.learner = file.learner or file.name


def _telling(file: File, several: bool) -> list[str]:
    """The folders above a file that may tell whose it is; ``several`` were given."""
    empty = {"submitted", file.stem.lower()}
    given, *below = file.folders
    telling = [name for name in below if name.lower() not in empty]
    return telling or ([given] if below or several else [])


def printable(text: str) -> str:
    """Without what a terminal or a table would take for an order, and without half characters."""
    text = CONTROL.sub(" ", text.encode("utf-8", "replace").decode())
    return text.strip()
