"""Learners' editions: what is taken out of a lesson, what stays, and that it runs."""

import os
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from typer.testing import CliRunner

import vaelab
from vaelab import __main__ as cli
from vaelab import datasets
from vaelab.teaching import online
from vaelab.teaching.editions import EditionError, is_untouched, release, to_text

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "course" / "exercises"
MINI = '''\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vaelab:
#     data: [paper]
# ---

# %% [markdown]
# # 05 · Counts
# ![](counts.png), and [theirs](https://example.org/counts.png), [see](#counts.png)

# %% tags=["nbval-ignore-output"]
import torch

import vaelab

# %% [markdown]
# ### Exercise 05.1
# <details><summary>Hint</summary>To whom does p belong?</details>

# %% nbgrader={"grade_id": "05-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def nb_log_prob(x, mean, theta):
    """log NB(x; μ, θ)."""
    ### BEGIN SOLUTION
    chosen = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)

    logits = mean.log() - theta.log()
    log_prob = chosen - theta * torch.nn.functional.softplus(logits)
    log_prob = log_prob - x * torch.nn.functional.softplus(-logits)
    ### END SOLUTION
    return log_prob


# %% nbgrader={"grade_id": "05-1-check", "solution": false, "grade": true, "locked": true, "points": POINTS, "task": false, "schema_version": 3}
vaelab.check("05.1", nb_log_prob)

# %% [markdown] tags=["solution"]
# The logit is the log of a ratio.

# %%
print("On we go.", "../counts.csv")
'''.replace("POINTS", str(vaelab.teaching.exercises.find("05.1").points))  # noqa: E501
MARKED = re.compile(r"^# %% nbgrader=.*$", re.M)


def write(folder: Path, text: str = MINI) -> Path:
    lesson = folder / "05_mini.py"
    lesson.write_text(text, encoding="utf-8")
    return lesson


def cell_of(notebook, grade_id: str):
    (cell,) = (
        c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id
    )
    return cell


def run(notebook, folder: Path):
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def broken(executed) -> dict[str, str]:
    """Cells that fail without saying which exercise is still to be done, and how they fail."""
    found, undone = {}, set()
    for cell in executed.cells:
        marked = cell.metadata.get("nbgrader", {})
        exercise = marked.get("grade_id", "").removesuffix("-check")
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                expected = {"NotImplementedError"}
                if marked.get("grade"):
                    expected = {"CheckFailed"} | ({"NameError"} if exercise in undone else set())
                if output.ename not in expected:
                    found[cell.id] = f"{output.ename}: {output.evalue}"
                elif marked.get("solution"):
                    undone.add(exercise)  # the answer has no name yet
            elif marked.get("grade") and output.get("name") == "stderr":
                found[cell.id] = output.text  # nbgrader would give no points
    return found


# ------------------------------------------------------------------------- what an edition is


def test_a_stub_stands_where_the_solution_stood(tmp_path):
    edition = release(write(tmp_path))
    assert cell_of(edition, "05-1").source == (
        'def nb_log_prob(x, mean, theta):\n    """log NB(x; μ, θ)."""\n'
        '    raise NotImplementedError("Exercise 05.1")\n    return log_prob'
    )
    assert cell_of(edition, "05-1-check").source == 'vaelab.check("05.1", nb_log_prob)'


def test_no_word_of_a_solution_is_left(tmp_path):
    text = to_text(release(write(tmp_path)))
    assert "lgamma" not in text and "SOLUTION" not in text and "log of a ratio" not in text


def test_two_solutions_in_a_cell_give_way_to_two_stubs(tmp_path):
    halves = "    ### END SOLUTION\n    kept = 1\n    ### BEGIN SOLUTION\n    logits ="
    source = cell_of(release(write(tmp_path, MINI.replace("    logits =", halves))), "05-1").source
    assert source.count("raise NotImplementedError") == 2
    assert "kept = 1" in source and "lgamma" not in source and "softplus" not in source


def test_the_rest_stays_as_it_is(tmp_path):
    (tmp_path / "counts.png").touch()
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "05_mini.py").touch()
    cited = MINI.replace("# 05 · Counts", "# 05 · Counts, [E05.zeros](evidence/05_mini.py)")
    preface, opening, imports, task, *_, last = release(write(tmp_path, cited)).cells
    assert "lesson 05" in preface.source and "05_mini.ipynb" not in preface.source  # has solutions
    assert "![](../counts.png)" in opening.source  # an edition lies in a folder below
    assert "[E05.zeros](../evidence/05_mini.py)" in opening.source
    assert "(https://example.org/counts.png), [see](#counts.png)" in opening.source
    assert imports.source == "import torch\n\nimport vaelab"
    assert imports.metadata.tags == ["nbval-ignore-output"]
    assert "<details><summary>Hint</summary>To whom" in task.source
    assert last.source == 'print("On we go.", "../../counts.csv")'


def test_a_link_to_a_lesson_leads_to_its_edition_if_there_is_one(tmp_path):
    (tmp_path / "06_next.py").write_text(MINI, encoding="utf-8")
    plain = MARKED.sub("# %%", MINI).replace("### BEGIN", "").replace("### END", "")
    (tmp_path / "07_plain.py").write_text(plain, encoding="utf-8")
    for name in ("06_next.ipynb", "07_plain.ipynb"):
        (tmp_path / name).touch()
    links = "[a](06_next.ipynb), [b](06_next.ipynb#counts), [c](07_plain.ipynb), [d](06_next.py)"
    edition = release(write(tmp_path, MINI.replace("# 05 · Counts", f"# {links}")))
    assert "[a](06_next.ipynb), [b](06_next.ipynb#counts)" in edition.cells[1].source
    assert "[c](../07_plain.ipynb), [d](../06_next.py)" in edition.cells[1].source


def test_metadata_say_which_lesson_and_release(tmp_path):
    metadata = release(write(tmp_path)).metadata
    assert {*metadata} == {"kernelspec", "language_info", "vaelab"}  # jupytext must not pair it
    assert (metadata.vaelab.lesson, metadata.vaelab.data) == ("05", ["paper"])
    for old, new in (
        ("On we", "Off we"),
        ("To whom", "To what"),
        ('"locked": true', '"locked": 1'),
    ):
        assert release(write(tmp_path, MINI.replace(old, new))).metadata.vaelab.release != (
            metadata.vaelab.release
        )
    other_solution = MINI.replace("chosen", "coefficient")
    assert release(write(tmp_path, other_solution)).metadata.vaelab == metadata.vaelab


def test_a_release_is_the_same_byte_for_byte(tmp_path):
    lesson = write(tmp_path)
    code = (
        "import sys; from pathlib import Path;"
        "from vaelab.teaching.editions import release, to_text;"
        "sys.stdout.buffer.write(to_text(release(Path(sys.argv[1]))).encode())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code, str(lesson)],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    ).stdout
    text = to_text(release(lesson))
    assert elsewhere.decode() == text
    assert text.startswith('{\n "cells": [\n  {\n   "cell_type"') and text.endswith("}\n")


def test_it_is_a_valid_notebook_with_an_id_for_each_cell(tmp_path):
    edition = nbformat.reads(to_text(release(write(tmp_path))), as_version=nbformat.NO_CONVERT)
    nbformat.validate(edition)
    ids = [cell.id for cell in edition.cells]
    assert (edition.nbformat, edition.nbformat_minor) == (4, 5) and len({*ids}) == len(ids)
    assert ids[4:6] == ["05-1", "05-1-check"]


def test_a_lesson_without_exercises_has_no_edition(tmp_path):
    plain = (
        MARKED.sub("# %%", MINI).replace("### BEGIN SOLUTION", "").replace("### END SOLUTION", "")
    )
    assert release(write(tmp_path, plain)) is None


ANSWER, CHECK = MARKED.findall(MINI)
DISORDER = {
    "no end": ("    ### END SOLUTION\n", "", "come in pairs; these are BEGIN"),
    "no beginning": ("    ### BEGIN SOLUTION\n", "", "come in pairs; these are END"),
    "nested": ("    logits", "    ### BEGIN SOLUTION\n    logits", "are BEGIN, BEGIN, END"),
    "no markers": (
        MINI[MINI.index("    ### BEGIN") : MINI.index("    return log_prob")],
        "",
        r"\(05-1\): an answer cell must have ### BEGIN SOLUTION",
    ),
    "markers elsewhere": (
        'print("On',
        '### BEGIN SOLUTION\nprint("On',
        "only allowed in an answer cell",
    ),
    "markers in prose": ("The logit is", "END SOLUTION", "only allowed in an answer cell"),
    "no answer": (ANSWER, "# %% tags=[]", "only allowed in an answer cell"),
    "answer after check": (
        MINI,
        MINI[: MINI.index(ANSWER)]
        + MINI[MINI.index(CHECK) :]
        + MINI[MINI.index(ANSWER) : MINI.index(CHECK)],
        "no answer cell 05.1 comes before",
    ),
    "no check": (CHECK, "# %%", "no check cell follows the answer to 05.1"),
    "check of another": ('check("05.1"', 'check("05.2"', "one call and nothing else"),
    "check does more": ("nb_log_prob)\n", "nb_log_prob)\nprint(1)\n", "one call and nothing else"),
    "check of another module": ("vaelab.check(", "my.check(", "one call and nothing else"),
    "check that is none": ('vaelab.check("05.1"', "vaelab.check(", "one call and nothing else"),
    "check's own name": ("05-1-check", "05-1-test", "and -check"),
    "not declared": (
        MINI,
        MINI.replace("05.1", "05.99").replace("05-1", "05-99"),
        r"\(05-99-check\): There is no exercise '05.99'",
    ),
    "points": (
        CHECK,
        re.sub(r'"points": \d+', '"points": 50', CHECK),
        r"\(05-1-check\): it has points 50, but vaelab.teaching.exercises has \d",
    ),
    "unlocked": ('"locked": true', '"locked": false', 'must have "locked": true'),
    "another lesson": (
        "05-1",
        "06-1",
        r"\(06-1\): the grade_id of this lesson's answers must be 05-1",
    ),
    "a number for a name": ('"grade_id": "05-1",', '"grade_id": 51,', r"\(51\): the grade_id of"),
    "twice": (
        "# %%\nprint",
        MINI[MINI.index(ANSWER) : MINI.index(CHECK)] + "\n# %%\nprint",
        r"cell 7 \(05-1\): an earlier cell has the same grade_id",
    ),
    "answer and check in one": (
        '"grade": false',
        '"grade": true',
        "must be code, for an answer",
    ),
    "a task": ('"task": false', '"task": true', "must be code, for an answer"),
}


@pytest.mark.parametrize("name", DISORDER)
def test_disorder_is_named(name, tmp_path):
    old, new, sentence = DISORDER[name]
    assert old in MINI
    with pytest.raises(EditionError, match=sentence) as caught:
        release(write(tmp_path, MINI.replace(old, new)))
    assert str(caught.value).startswith("05_mini.py") and "\n" not in str(caught.value)


# ------------------------------------------------------------------------- that it runs


def test_undone_exercises_stop_nothing_else(tmp_path):
    executed = run(release(write(tmp_path)), tmp_path)
    assert broken(executed) == {}
    (failed,) = cell_of(executed, "05-1-check").outputs
    assert failed.ename == "CheckFailed" and "still to be done" in failed.evalue
    assert executed.cells[-1].outputs[0].text == "On we go. ../../counts.csv\n"


def test_with_solutions_put_back_it_runs_through(tmp_path):
    lesson = write(tmp_path)
    edition = release(lesson)
    cell_of(edition, "05-1").source = cell_of(jupytext.read(lesson), "05-1").source
    executed = run(edition, tmp_path)
    outputs = [o for cell in executed.cells if cell.cell_type == "code" for o in cell.outputs]
    assert [o.output_type for o in outputs] == ["display_data", "stream"]
    assert outputs[0].data["text/plain"].startswith("✔ 05.1") and outputs[1].name == "stdout"


def test_a_cell_that_needs_more_than_a_solution_is_named(tmp_path):
    uses = "one = torch.ones(1)\nlog_prob = nb_log_prob(one, one, one)\n\n# %%\nprint(log_prob)\n"
    executed = run(release(write(tmp_path, MINI + uses)), tmp_path)
    uses, needs = executed.cells[-2:]
    assert uses.outputs[-1].evalue == "Exercise 05.1"
    assert broken(executed) == {needs.id: "NameError: name 'log_prob' is not defined"}


def test_an_undone_value_is_no_fault_of_its_check(tmp_path):
    value = "### BEGIN SOLUTION\nnb_log_prob = 1\n### END SOLUTION\n\n"
    text = MINI[: MINI.index("def nb")] + value + MINI[MINI.index(CHECK) :]
    executed = run(release(write(tmp_path, text)), tmp_path)
    assert cell_of(executed, "05-1-check").outputs[0].ename == "NameError"
    assert broken(executed) == {}


LOUD = """
import sys, warnings
import vaelab
from vaelab.teaching.exercises import find

def loud(x, mean, theta):
    warnings.warn("this may be slow")
    print("and it is", file=sys.stderr)
    return find("05.1").oracle(x, mean, theta)

vaelab.check("05.1", loud)
"""


def test_a_check_writes_nothing_to_stderr():
    """A right answer's warnings would cost all points in nbgrader."""
    done = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert all(said in done.stdout for said in ("may be slow", "and it is", "✔ 05.1"))


# ------------------------------------------------------------------------- the course's own


@cache
def edition_of(lesson: Path):
    return release(lesson)


LESSONS = [
    lesson
    for lesson in sorted((ROOT / "course").glob("[0-9]*.py"))
    if '"grade_id"' in lesson.read_text(encoding="utf-8")
]
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


@each_lesson
def test_what_is_committed_is_what_the_lesson_gives(lesson):
    path = COMMITTED / f"{lesson.stem}.ipynb"
    assert path.exists(), f"{path.name} is missing; make it with: vaelab release"
    same = path.read_text(encoding="utf-8") == to_text(edition_of(lesson))
    assert same, f"{path.name} differs from its lesson; make it anew with: vaelab release"


def test_no_edition_is_left_over():
    lessons = {lesson.stem for lesson in LESSONS}
    assert {path.name for path in COMMITTED.iterdir() if path.stem not in lessons} <= {
        ".ipynb_checkpoints"
    }


@each_lesson
def test_each_declared_exercise_stands_in_its_lesson(lesson):
    number = lesson.stem.partition("_")[0]
    declared = import_module(f"vaelab.teaching.exercises.lesson_{number}").EXERCISES
    ids = [c.metadata.get("nbgrader", {}).get("grade_id", "") for c in edition_of(lesson).cells]
    stand = [grade_id.replace("-", ".", 1) for grade_id in ids]
    assert [name for name in stand if name in declared] == [*declared]


@each_lesson
def test_nbgrader_takes_its_ids(lesson):
    """Its schema knows no dots."""
    ids = [c.metadata.get("nbgrader", {}).get("grade_id", "") for c in edition_of(lesson).cells]
    assert [grade_id for grade_id in ids if not re.fullmatch(r"[a-zA-Z0-9_\-]*", grade_id)] == []


@each_lesson
def test_between_the_solutions_it_is_the_lesson(lesson):
    """So with the solutions put back it runs as nbval sees the lesson run."""
    master = [cell for cell in jupytext.read(lesson).cells if cell.cell_type == "code"]
    learners = [cell for cell in edition_of(lesson).cells if cell.cell_type == "code"]
    learners = [cell for cell in learners if online.TAG not in cell.metadata.get("tags", ())]
    for theirs, ours in zip(learners, master, strict=True):
        kept, inside = [], False
        for line in ours.source.split("\n"):
            inside |= "### BEGIN SOLUTION" in line
            kept += [] if inside else [line]
            inside &= "### END SOLUTION" not in line
        lines = theirs.source.split("\n")
        stubs = [line for line in lines if line.lstrip().startswith("raise NotImplementedError")]
        deeper = [re.sub(r"""(["'])\.\./""", r"\1../../", line) for line in kept]
        assert [line for line in lines if line not in stubs] == deeper
        assert len(stubs) == ours.source.count("### BEGIN SOLUTION")


@each_lesson
def test_it_runs_around_its_stubs(lesson):
    edition = edition_of(lesson)
    absent = [n for n in edition.metadata.vaelab.data if "source" in datasets.locate(n).values()]
    if absent:
        pytest.skip(f"needs data; get them with: vaelab data fetch {' '.join(absent)}")
    executed = run(nbformat.from_dict(edition), COMMITTED)
    failed = broken(executed)
    lines = [
        f"{cell.source.strip().splitlines()[0]} …: {failed[cell.id]}"
        for cell in executed.cells
        if cell.id in failed
    ]
    if failed:
        pytest.fail(
            "\n".join(["Cells that fail and don't say which exercise is undone:", *lines]), False
        )


# ------------------------------------------------------------------------- the command


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one lesson, and one without exercises; called in its folder."""
    (tmp_path / "course").mkdir()
    write(tmp_path / "course")
    (tmp_path / "course" / "07_plain.py").write_text("# %%\nprint(1)\n")
    monkeypatch.setattr(cli, "REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "course"


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["release", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_releases_all_lessons(course):
    assert call("--out", "given") == (0, f"Wrote {Path('given/05_mini.ipynb')}.\n")
    assert [path.name for path in Path("given").iterdir()] == ["05_mini.ipynb"]
    text = Path("given/05_mini.ipynb").read_text(encoding="utf-8")
    assert text == to_text(release(course / "05_mini.py"))
    assert call("--out", "given", "--check") == (0, "")
    assert call("--out", "given")[0] == 0


def test_the_command_says_of_a_named_lesson_that_it_has_none(course):
    code, said = call(course / "07_plain.py", "--out", "given")
    assert code == 0 and said.endswith("07_plain.py has no exercises.\n")


def test_check_names_what_differs_and_writes_nothing(course):
    code, said = call("--out", "given", "--check")
    assert (code, Path("given").exists()) == (1, False) and "05_mini.ipynb is missing." in said
    call("--out", "given")
    Path("given/04_old.ipynb").touch()
    write(course, MINI.replace("On we go", "Off we go"))
    before = Path("given/05_mini.ipynb").read_bytes()
    code, said = call("--out", "given", "--check")
    assert code == 1 and said.count("\n") == 1
    assert "05_mini.ipynb differs, 04_old.ipynb belongs to no lesson (remove it)." in said
    assert Path("given/05_mini.ipynb").read_bytes() == before
    code, said = call(course / "05_mini.py", "--out", "given", "--check")
    assert code == 1 and "04_old" not in said


def test_answers_are_not_written_over(course):
    call("--out", "given")
    path = Path("given/05_mini.ipynb")
    notebook = nbformat.read(path, as_version=4)
    run(notebook, course)
    nbformat.write(notebook, path)
    assert is_untouched(path) and call("--out", "given")[0] == 0  # it was run, no more
    cell_of(notebook, "05-1").source += "\n# mine"
    nbformat.write(notebook, path)
    code, said = call("--out", "given")
    assert code == 1 and "was changed since its release" in said and not is_untouched(path)
    assert "# mine" in path.read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["course/05_mini.py", "--out", "file"], "file is a file"),
        (["course/05_none.py", "--out", "given"], "course/05_none.py"),
        (["disorder/05_mini.py", "--out", "given"], "cell 5 (05-1-check): a check cell must have"),
    ],
)
def test_the_command_refuses_in_a_sentence(course, words, sentence):
    Path("file").touch()
    Path("disorder").mkdir()
    write(Path("disorder"), MINI.replace('"locked": true', '"locked": false'))
    code, said = call(*words)
    assert code == 1 and sentence in said and said.count("\n") == 1
    assert not Path("given").exists()
