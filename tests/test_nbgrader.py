"""A lesson's exercises in nbgrader's hands: released, validated and graded by nbgrader itself.

For an environment with the extra "nbgrader"; nothing else in the course needs it.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from vaelab.teaching.editions import release
from vaelab.teaching.exercises import find

nbgrader = pytest.importorskip("nbgrader", reason="nbgrader is not installed")

ROOT = Path(__file__).parents[1]
CONFIG = """\
from nbconvert.preprocessors import TagRemovePreprocessor

c = get_config()
c.CourseDirectory.course_id = "vaelab"
c.TagRemovePreprocessor.enabled = True
c.TagRemovePreprocessor.remove_cell_tags = {"solution"}
c.GenerateAssignment.preprocessors.insert(0, TagRemovePreprocessor)
c.Execute.timeout = 120  # seconds a cell; nbgrader gives 30, and 4 for a word from the kernel
c.Execute.iopub_timeout = 60
"""
WARNING = """

import warnings

silent = {function}


def {function}(*inputs):
    warnings.warn("This may be slow.")
    return silent(*inputs)
"""


def grade_id(cell) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def is_answer(cell) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("solution"))


def lesson() -> Path:
    return next(
        path
        for path in sorted((ROOT / "course").glob("[0-9]*.py"))
        if '"grade_id"' in path.read_text(encoding="utf-8")
    )


def short(notebook):
    """A lesson's imports and exercises: what lies between takes a minute, and grades nothing."""
    imports = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    notebook = copy.deepcopy(notebook)
    notebook.cells = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "markdown" or cell.source == imports or grade_id(cell)
    ]
    return notebook


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course folder of nbgrader's after release, three submissions, and autograde.

    "right" answers all in vaelab's edition, with warnings from the first answer; "wrong" has the
    first answer wrong; "undone" hands in what nbgrader released.
    """
    folder = tmp_path_factory.mktemp("course")
    (folder / "nbgrader_config.py").write_text(CONFIG)
    master = short(jupytext.read(lesson()))
    master.cells.append(
        nbformat.v4.new_markdown_cell("The trick.", metadata={"tags": ["solution"]})
    )
    save(master, folder / "source/ps/lesson.ipynb")
    call(folder, "generate_assignment", "ps")

    answers = {grade_id(cell): cell.source for cell in master.cells if grade_id(cell)}
    right = short(release(lesson()))
    for cell in right.cells:
        cell.source = answers.get(grade_id(cell), cell.source)
    wrong = copy.deepcopy(right)
    first, wrong_first = (next(cell for cell in n.cells if is_answer(cell)) for n in (right, wrong))
    function = first.source.partition("def ")[2].partition("(")[0]
    first.source += WARNING.format(function=function)
    wrong_first.source = f"def {function}(*inputs):\n    return 7.0"
    save(right, folder / "submitted/right/ps/lesson.ipynb")
    save(wrong, folder / "submitted/wrong/ps/lesson.ipynb")
    undone = nbformat.read(folder / "release/ps/lesson.ipynb", as_version=4)
    save(undone, folder / "submitted/undone/ps/lesson.ipynb")
    call(folder, "autograde", "ps")
    return folder


def save(notebook, path: Path) -> None:
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


def call(folder: Path, *words: str) -> str:
    home = {"HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder), "IPYTHONDIR": str(folder)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of its alembic
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words],
        cwd=folder,
        env=os.environ | home | {"PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def exercises(folder: Path) -> list[str]:
    cells = nbformat.read(folder / "source/ps/lesson.ipynb", as_version=4).cells
    return [grade_id(cell).replace("-", ".") for cell in cells if is_answer(cell)]


def test_its_release_holds_no_solution(course):
    text = (course / "release/ps/lesson.ipynb").read_text(encoding="utf-8")
    assert text.count("raise NotImplementedError()") == len(exercises(course))
    assert "SOLUTION" not in text and "The trick." not in text


def test_its_gradebook_holds_the_points_earned(course):
    from nbgrader.api import Gradebook

    points = {name: find(name).points for name in exercises(course)}
    first, *others = points
    expected = {
        "right": points,
        "wrong": {first: 0} | {name: points[name] for name in others},
        "undone": dict.fromkeys(points, 0),
    }
    with Gradebook(f"sqlite:///{course}/gradebook.db") as book:
        assert book.find_assignment("ps").max_score == sum(points.values())
        for student, earned in expected.items():
            submission = book.find_submission("ps", student)
            (notebook,) = submission.notebooks
            grades = {grade.name: grade.score for grade in notebook.grades}
            marks = {f"{name.replace('.', '-')}-check": score for name, score in earned.items()}
            assert grades == marks, student
            assert submission.score == sum(earned.values())


def test_it_validates_what_is_right_and_only_that(course):
    first, *others = exercises(course)
    said = {
        student: call(course, "validate", f"submitted/{student}/ps/lesson.ipynb")
        for student in ("right", "wrong", "undone")
    }
    assert "Success! Your notebook passes all the tests." in said["right"]
    assert "VALIDATION FAILED ON 1 CELL(S)" in said["wrong"]
    assert f'vaelab.check("{first}"' in said["wrong"] and f"✘ {first}" in said["wrong"]
    assert f"VALIDATION FAILED ON {1 + len(others)} CELL(S)" in said["undone"]
