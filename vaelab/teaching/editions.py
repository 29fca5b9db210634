"""The learner's edition of a lesson: stubs where the lesson has solutions.

The lesson's ``.py`` is the master; its markers and the metadata of its cells are nbgrader's.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path

from . import exercises, online

__all__ = ["EditionError", "is_untouched", "release", "to_text"]

PREFACE = """\
This is the learner's edition of lesson {number}. Shift+Enter runs a cell. Write your answers in \
place of the lines that raise `NotImplementedError`. Then run the cell below your answer: its \
check says at once whether it is right, and if not, what went wrong. You may leave an exercise \
open: only cells that use its answer stop. Hints are folded. The model solution opens when the \
check has passed; before that, ask twice for it with `vaelab.solution("{number}.1")`."""
MARKER = re.compile(r"(BEGIN|END) SOLUTION")  # nbgrader looks for the same words
SOLUTION = re.compile(r"^([ \t]*)[^\n]*BEGIN SOLUTION.*?END SOLUTION[^\n]*", re.M | re.S)
UPWARDS = re.compile(r"""(["'])\.\./""")  # a path in a string, relative to the lesson's folder
LINK = re.compile(r"""(\]\(|(?:src|href)=["'])([^)"'#\s]+)""")


class EditionError(ValueError):
    """Raised if the exercise cells of a lesson are inconsistent."""


def release(lesson: Path):
    """Make the learner's edition of a lesson; the same lesson always gives the same edition.

    A stub takes the place of everything from ``### BEGIN SOLUTION`` to ``### END SOLUTION``, and
    markdown cells tagged "solution" are left out. Relative paths go up by one folder more, but a
    link to a lesson with exercises leads to its edition. If the repository's address is known, the
    first code cell installs the course on Colab, and does nothing elsewhere.
    ``metadata.vaelab`` holds the number of the lesson, the data that it needs, and a hash of the
    cells that names the release.

    Parameters
    ----------
    lesson
        The master, ``course/NN_name.py``.

    Returns
    -------
    A notebook node; None for a lesson without exercises.

    Raises
    ------
    EditionError
        A solution, a check or an id is wrong. The message names the cell and the problem.
    """
    import jupytext
    from nbformat import v4

    lesson = Path(lesson)
    master = jupytext.read(lesson)
    number = lesson.stem.partition("_")[0]
    if not _exercises_in(lesson.name, number, master.cells):
        return None
    preface = PREFACE.format(number=number)
    cells = [v4.new_markdown_cell(preface, id=f"{number}-000")]
    for cell in master.cells:
        metadata = {k: v for k, v in cell.metadata.items() if k != "lines_to_next_cell"}
        grade_id = metadata.get("nbgrader", {}).get("grade_id", "")
        own = (grade_id or f"{number}-{len(cells):03d}").replace(".", "-")
        if cell.cell_type == "code":
            stub = rf'\1raise NotImplementedError("Exercise {_name(grade_id)}")'
            source = UPWARDS.sub(r"\1../../", SOLUTION.sub(stub, cell.source))
            cells.append(v4.new_code_cell(source, id=own, metadata=metadata))
        elif "solution" not in metadata.get("tags", ()):
            source = LINK.sub(lambda link: _from_below(link, lesson.parent), cell.source)
            cells.append(v4.new_markdown_cell(source, id=own, metadata=metadata))
    root = lesson.resolve().parents[1]
    if (root / "pyproject.toml").exists() and (url := online.repository(root)):
        cells.insert(1, online.colab_cell(url))
    about = {"lesson": number, "data": master.metadata.get("vaelab", {}).get("data", [])}
    return notebook_of(cells, about)


def notebook_of(cells, about: dict):
    """A notebook of these cells; ``metadata.vaelab`` holds ``about``, and the release."""
    from nbformat import v4

    notebook = v4.new_notebook(cells=cells, nbformat_minor=5)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "vaelab": about | {"release": _hash_of(cells)},
    }
    return notebook


def to_text(edition) -> str:
    """The text of an edition's file."""
    import nbformat

    return nbformat.writes(edition) + "\n"


def is_untouched(path: Path) -> bool:
    """True if nobody has written into an edition's file since its release."""
    import nbformat

    return release_in(path) == _hash_of(nbformat.read(path, as_version=4).cells)


def release_in(path: Path) -> str | None:
    """The release that an edition's file names, if any."""
    import nbformat

    return nbformat.read(path, as_version=4).metadata.get("vaelab", {}).get("release")


def _hash_of(cells) -> str:
    """Hash of the cells' types, sources and marks, without outputs and other metadata.

    A cell tagged "practice" is there to be changed, and does not count; nor does Colab's, which
    ``vaelab course`` leaves out.
    """
    kept = [
        cell for cell in cells if not {"practice", online.TAG} & {*cell.metadata.get("tags", ())}
    ]
    parts = [(c.cell_type, c.source, c.metadata.get("nbgrader")) for c in kept]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _from_below(link: re.Match, folder: Path) -> str:
    """A link in the lesson, changed to work from the folder of the editions."""
    target = folder / link[2]
    upwards = target.exists() and not _has_edition(target)
    return link[1] + ("../" if upwards else "") + link[2]


def _has_edition(notebook: Path) -> bool:
    """True if a file is the notebook of a lesson with exercises."""
    master = notebook.with_suffix(".py")
    is_lesson = notebook.suffix == ".ipynb" and master.exists()
    return is_lesson and bool(MARKER.search(master.read_text(encoding="utf-8")))


def _name(grade_id: str) -> str:
    """The name 05.1 of a grade_id 05-1 or 05-1-check; nbgrader allows no dots there."""
    return grade_id.removesuffix("-check").replace("-", ".", 1)


def _exercises_in(file: str, lesson: str, cells) -> list[str]:
    """The names of a lesson's exercises; raises an error if its cells are inconsistent."""
    answers, checked, ids = [], [], set()
    for position, cell in enumerate(cells, start=1):
        marked = cell.metadata.get("nbgrader", {})
        grade_id = str(marked.get("grade_id", ""))
        kind = tuple(bool(marked.get(key)) for key in ("solution", "grade", "task"))
        name, problem = _name(grade_id), None
        if grade_id and grade_id in ids:
            problem = "an earlier cell has the same grade_id"
        elif kind == (True, False, False) and cell.cell_type == "code":
            problem = _problem_of_answer(cell.source, lesson, grade_id)
            answers.append(name)
        elif kind == (False, True, False) and cell.cell_type == "code":
            if not grade_id.endswith("-check"):
                problem = "the grade_id of a check must be that of its answer and -check"
            elif name not in answers:
                problem = f"no answer cell {name} comes before this check"
            else:
                problem = _problem_of_check(cell.source, name, marked)
            checked.append(name)
        elif any(kind):
            problem = "a marked cell must be code, for an answer (solution) or a check (grade)"
        elif MARKER.search(cell.source):
            problem = "solution markers are only allowed in an answer cell"
        if problem:
            raise EditionError(f"{file}, cell {position} ({grade_id or 'no grade_id'}): {problem}.")
        ids.add(grade_id)
    if unchecked := [name for name in answers if name not in checked]:
        raise EditionError(f"{file}: no check cell follows the answer to {', '.join(unchecked)}.")
    return answers


def _problem_of_answer(source: str, lesson: str, grade_id: str) -> str | None:
    if not re.fullmatch(rf"{lesson}-\d+", grade_id):
        return f"the grade_id of this lesson's answers must be {lesson}-1 and so on"
    marks = MARKER.findall(source)
    if not marks:
        return "an answer cell must have ### BEGIN SOLUTION and ### END SOLUTION"
    if marks != ["BEGIN", "END"] * (len(marks) // 2):
        return f"solution markers must come in pairs; these are {', '.join(marks)}"
    return None


def _problem_of_check(source: str, name: str, marked: dict) -> str | None:
    if _checked(source) != name:
        return f'a check cell must hold one call and nothing else, vaelab.check("{name}", …)'
    try:
        points = exercises.find(name).points
    except KeyError as error:
        return error.args[0].rstrip(".")
    if marked.get("points") != points:
        return f"it has points {marked.get('points')}, but vaelab.teaching.exercises has {points}"
    return None if marked.get("locked") else 'a check cell must have "locked": true'


def _checked(source: str) -> str | None:
    """The exercise that a cell checks; None if the cell does anything else."""
    try:
        match ast.parse(source).body:
            case [ast.Expr(ast.Call(function, [ast.Constant(str(name)), _], []))]:
                return name if ast.unparse(function) == "vaelab.check" else None
    except SyntaxError:
        pass
    return None
