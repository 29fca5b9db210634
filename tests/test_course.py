"""The learner's folder: what is copied, what is never written over, and what is remembered."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import vaelab
from vaelab.teaching import exercises, my_course, progress
from vaelab.teaching.exercises import box

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"""(?:\]\(|(?:src|href)=["'])([^)"'#\s]+)""")


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository with the course only, so that new versions can be made of it."""
    root = tmp_path / "repository"
    for folder in ("exercises", "figures", "evidence"):
        shutil.copytree(ROOT / "course" / folder, root / "course" / folder)
    shutil.copy(ROOT / "README.md", root)
    shutil.copy(ROOT / "course" / "START.py", root / "course")
    return root


@pytest.fixture
def work(root) -> Path:
    work = root / "my-course"
    assert my_course.bring(root, work) == []
    return work


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def type_into(notebook: Path, text: str, cell: int = -1) -> None:
    content = nbformat.read(notebook, as_version=4)
    content.cells[cell].source = text
    nbformat.write(content, notebook)


def release_again(edition: Path) -> None:
    """A new version of a lesson, as the next release of the course brings it."""
    content = nbformat.read(edition, as_version=4)
    content.cells[1].source += "\n\nOne sentence more."
    from vaelab.teaching.editions import _hash_of

    content.metadata["vaelab"]["release"] = _hash_of(content.cells)
    nbformat.write(content, edition)


# --------------------------------------------------------------------------- the one table


def test_the_table_is_that_of_the_lessons():
    lessons = my_course.lessons_in(ROOT)
    masters = sorted((ROOT / "course").glob("[0-9]*.py"))
    assert [lesson.stem for lesson in lessons] == [path.stem for path in masters]
    for lesson, path in zip(lessons, masters, strict=True):
        heading = re.search(r"^# # (\d\d) · (.+)$", path.read_text(encoding="utf-8"), re.M)
        assert heading.groups() == (lesson.number, lesson.title)


@pytest.mark.parametrize("lesson", my_course.lessons_in(ROOT), ids=lambda lesson: lesson.number)
def test_the_minutes_are_those_of_the_lesson(lesson):
    text = (ROOT / "course" / f"{lesson.stem}.py").read_text(encoding="utf-8")
    text = re.search(r"\*\*Time:\*\*(.*?)(\n#\n|\n\n|\*\*Data)", text.replace("\n# ", " "), re.S)[1]
    said = {*map(int, re.findall(r"\d+", text))} - {0}
    *first, last = lesson.minutes
    assert {*first} <= said  # each stop
    assert last in said or sum(lesson.minutes) in said  # and the rest, or all


# --------------------------------------------------------------------------------- bringing


def test_every_edition_and_a_start_page_are_brought(work, root):
    editions = {path.name for path in (root / "course" / "exercises").iterdir()}
    assert {path.name for path in (work / "lessons").iterdir()} == editions
    assert (work / "START.ipynb").exists()


def test_no_link_leads_nowhere(work):
    for path in [work / "START.ipynb", *(work / "lessons").iterdir()]:
        links = 0
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for target in LINK.findall(cell.source):
                    if not re.match(r"https?:|data:", target):
                        links += 1
                        there = (path.parent / target).resolve()
                        assert there.is_file() and work in there.parents, f"{path.name}: {target}"
        assert links or path.name != "START.ipynb"


def test_the_practice_is_worth_nothing_and_leads_on():
    practice = exercises.find("00.1")
    cases = practice.cases(exercises.SEED)
    verdict = practice.judge(cases, practice.outcomes(lambda counts: (counts == 0).mean(), cases))
    text = box.as_text(verdict)
    assert text.startswith("✔ 00.1 The share of zeros\n") and "Go on" in text and "last" not in text


def test_run_all_goes_on_from_the_first_answer(work):
    """JupyterLab ends "Run All" at an error in a cell without this tag."""
    for path in (work / "lessons").iterdir():
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        goes_on = ["raises-exception" in c.metadata.get("tags", ()) for c in code]
        answers = [bool(c.metadata.get("nbgrader", {}).get("solution")) for c in code]
        assert goes_on == [any(answers[: i + 1]) for i in range(len(code))] and not goes_on[0]


def test_paths_of_the_code_lead_to_the_repository(work):
    """A copy lies as deep as the edition, so the trained models are found from both."""
    text = (work / "lessons" / "06_pancreas.ipynb").read_text(encoding="utf-8")
    path = re.search(r"(\.\./)+saved_model_parameters", text)[0]
    assert (work / "lessons" / path).resolve() == work.parent / "saved_model_parameters"


def test_bringing_again_changes_nothing(work, root):
    before = everything_in(work)
    assert my_course.bring(root, work) == [] == my_course.bring(root, work, update=True)
    assert everything_in(work) == before


def test_work_is_never_written_over(work, root):
    mine, other = (work / "lessons" / f"{x}.ipynb" for x in ("02_elbo", "04_vae"))
    type_into(mine, "my answer")
    (work / "lessons" / "08_gmvae_pbmc.ipynb").write_text("this is no notebook any more")
    for name in ("02_elbo", "04_vae", "08_gmvae_pbmc"):
        release_again(root / "course" / "exercises" / f"{name}.ipynb")
    before = everything_in(work)
    (said,) = my_course.bring(root, work)
    assert "02_elbo.ipynb, 04_vae.ipynb, 08_gmvae_pbmc.ipynb" in said and "--update" in said
    assert everything_in(work) == before

    says = my_course.bring(root, work, update=True)
    new = work / "lessons" / "02_elbo.new.ipynb"
    assert mine.read_bytes() == before[mine]
    assert "One sentence more." in new.read_text(encoding="utf-8")
    assert any(mine.name in s and new.name in s for s in says)
    assert "One sentence more." in other.read_text(encoding="utf-8")  # nobody had changed it
    broken = work / "lessons" / "08_gmvae_pbmc.ipynb"
    assert broken.read_text() == "this is no notebook any more"

    after = everything_in(work)
    my_course.bring(root, work, update=True)
    assert everything_in(work) == after

    type_into(new, "I go on here")
    release_again(root / "course" / "exercises" / "02_elbo.ipynb")
    my_course.bring(root, work, update=True)
    assert "I go on here" in new.read_text(encoding="utf-8")
    assert (work / "lessons" / "02_elbo.new2.ipynb").exists()


def test_a_renamed_notebook_is_brought_fresh(work, root):
    mine = work / "lessons" / "02_elbo.ipynb"
    type_into(mine, "my answer")
    mine.rename(mine.with_name("first try.ipynb"))
    my_course.bring(root, work)
    assert "my answer" not in mine.read_text(encoding="utf-8")
    assert "my answer" in mine.with_name("first try.ipynb").read_text(encoding="utf-8")


def test_start_follows_the_course_although_its_practice_was_answered(work, root):
    start = work / "START.ipynb"
    cells = nbformat.read(start, as_version=4).cells
    (practice,) = (i for i, c in enumerate(cells) if "practice" in c.metadata.get("tags", ()))
    type_into(start, "share_of_zeros = ...", practice)
    readme = (root / "README.md").read_text(encoding="utf-8")
    (root / "README.md").write_text(readme.replace("[Nine zeros in ten]", "[Another title]"))
    my_course.bring(root, work)
    assert "Another title" in start.read_text(encoding="utf-8")
    type_into(start, "My notes", 0)
    (root / "README.md").write_text(readme)
    my_course.bring(root, work)
    assert "My notes" in start.read_text(encoding="utf-8")


def test_the_map_is_shown(root):
    assert "(figures/map.svg)" in my_course.editions.to_text(my_course.start_page(root))


def test_it_looks_as_if_jupyterlab_had_saved_it(work):
    """Else a notebook that was only opened looks changed."""
    from ipykernel.ipkernel import IPythonKernel

    saved = json.loads((work / "lessons" / "02_elbo.ipynb").read_text(encoding="utf-8"))["metadata"]
    assert saved["language_info"] == IPythonKernel.language_info
    assert saved["kernelspec"]["display_name"] == "Python 3 (ipykernel)"


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs git")
def test_git_does_not_see_the_work():
    for path in ("my-course/START.ipynb", "my-course/.progress.jsonl", "my-course/lessons/a.ipynb"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0


# --------------------------------------------------------------------------------- practice


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs git")
def test_git_does_not_see_what_learners_handed_in():
    """The folders of the grading walk-through: names and marks of people."""
    page = (ROOT / "course" / "INSTRUCTORS.md").read_text(encoding="utf-8")
    folders = {f for pair in re.findall(r"vaelab grade (\w+)/? --out ([\w-]+)", page) for f in pair}
    assert {"submissions", "marks", "trial"} <= folders
    for folder in folders:
        seen = subprocess.run(["git", "check-ignore", "-q", f"{folder}/ada.ipynb"], cwd=ROOT)
        assert seen.returncode == 0, folder


def test_the_practice_on_start_is_wrong_in_a_known_way(work):
    cells = nbformat.read(work / "START.ipynb", as_version=4).cells
    (source,) = (c.source for c in cells if "practice" in c.metadata.get("tags", ()))
    names = {}
    exec(source, names)
    with pytest.raises(vaelab.teaching.exercises.CheckFailed) as failed:
        vaelab.check("00.1", names["share_of_zeros"])
    assert failed.value.verdict.misconception == "divided by the number of rows"
    hint = next(c.source for c in cells if "<summary>Hint" in c.source)
    assert "counts.size" in hint
    vaelab.check("00.1", lambda counts: (counts == 0).sum() / counts.size)
    vaelab.check("00.1", lambda counts: (counts == 0).mean())


def test_each_mistake_of_the_practice_has_its_hint():
    exercise = exercises.find("00.1")
    cases = exercise.cases(0)
    for known in exercise.misconceptions:
        verdict = exercise.judge(cases, exercise.outcomes(lambda c, k=known: k.wrong(c), cases))
        assert verdict.misconception == known.name
    assert "00" not in exercises.lessons()


# --------------------------------------------------------------------------------- progress


@pytest.fixture
def here(work, monkeypatch):
    """A person works in a notebook of a learner's folder."""
    monkeypatch.chdir(work / "lessons")
    monkeypatch.setattr(box, "notebook", lambda: "attended")
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: None)
    monkeypatch.setattr(exercises, "OPEN", set())
    return work


def record_in(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / progress.FILE).read_text().splitlines()]


def answer(name: str, outcome: str) -> None:
    """Check a right answer, a known mistake, another mistake, or a stub."""
    exercise = exercises.find(name)
    by_name = {m.name: m.wrong for m in exercise.misconceptions}

    def given(*args):
        if outcome == "open":
            raise NotImplementedError
        if outcome == "other":
            return 12345.678
        case = dict(zip(exercise.cases(0)[0], args, strict=True))
        return by_name.get(outcome, exercise.oracle)(**case)

    try:
        vaelab.check(name, given)
    except exercises.CheckFailed:
        assert outcome != "right"


NAME = "06.1"  # takes arrays, so the oracle itself is an answer


def test_a_check_is_remembered(here):
    mistake = exercises.find(NAME).misconceptions[0].name
    for outcome in ("open", "other", mistake, mistake, "right"):
        answer(NAME, outcome)
    kept = record_in(here)
    assert [(line["passed"], line["misconception"]) for line in kept] == [
        (False, None), (False, mistake), (False, mistake), (True, None),
    ]  # fmt: skip
    assert {*kept[0]} == {"exercise", "passed", "misconception", "day"}  # nothing of the person
    found = progress.page()
    assert found.passed == {NAME} and found.misconceptions == [(NAME, mistake)]
    assert found.to_repeat == {NAME: "passed after 3 wrong answers"}
    text, html = str(found), found._repr_html_()
    for shown in (text, html):
        assert mistake in shown or mistake.replace("'", "&#x27;") in shown
    assert re.search(r"^06 +■□□□□$", text, re.M) and "<td>1 of 5</td>" in html


def test_what_was_begun_is_to_be_repeated(here):
    answer(NAME, "other")
    assert progress.page().to_repeat == {NAME: "begun, not passed yet"}
    answer(NAME, "right")
    assert progress.page().to_repeat == {}


@pytest.mark.parametrize("where", ["unattended", ""])
def test_nbval_and_the_grader_leave_no_trace(here, monkeypatch, where):
    monkeypatch.setattr(box, "notebook", lambda: where)
    answer(NAME, "right")
    answer(NAME, "other")
    assert record_in(here) == []


def test_outside_a_learners_folder_nothing_is_written(here, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    answer(NAME, "right")
    assert not [*elsewhere.iterdir()] and record_in(here) == []
    with pytest.raises(FileNotFoundError, match="vaelab course"):
        progress.page()


@pytest.mark.parametrize("broken", ["open", "write"])
def test_a_disk_that_takes_nothing_breaks_no_check(here, monkeypatch, broken):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, broken, refuse)
    try:
        answer(NAME, "right")
    finally:
        monkeypatch.undo()
    assert record_in(here) == []


def test_damaged_lines_are_skipped(here):
    answer(NAME, "right")
    with (here / progress.FILE).open("ab") as file:
        file.write(b'[1]\n{"exercise": "77.1", "passed": true, "misconception": null}\n\xff{"exe')
    assert progress.read(here).passed == {NAME}


def test_two_notebooks_write_whole_lines(here):
    code = (
        "from vaelab.teaching import progress, exercises\n"
        "v = exercises.core.Verdict(exercises.find('06.2'), misconception='x' * 200)\n"
        "for _ in range(300): progress.record(v)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=here / "lessons") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(record_in(here)) == 600


def test_the_command_says_it(here, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from vaelab import __main__ as cli

    answer(NAME, "right")
    assert "■□□□□" in CliRunner().invoke(cli.app, ["progress"]).output
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "WORK", here)
    assert "■□□□□" in CliRunner().invoke(cli.app, ["progress"]).output
    monkeypatch.setattr(cli, "WORK", tmp_path / "none")
    result = CliRunner().invoke(cli.app, ["progress"])
    assert result.exit_code == 1 and "vaelab course" in result.stderr


# -------------------------------------------------------------------------------- solutions


def test_a_solution_opens_when_asked_twice(here, capsys):
    vaelab.solution(NAME)
    first = capsys.readouterr().out
    assert "hint" in first and "def " not in first and "return" not in first
    vaelab.solution(NAME)
    assert "def " in capsys.readouterr().out


def test_a_solution_opens_after_the_check(here, capsys, monkeypatch):
    answer(NAME, "other")
    vaelab.solution(NAME)
    assert "def " not in capsys.readouterr().out
    monkeypatch.setattr(exercises, "OPEN", set())
    answer(NAME, "right")
    vaelab.solution(NAME)
    assert "def " in capsys.readouterr().out
    monkeypatch.setattr(exercises, "OPEN", set())  # another day
    vaelab.solution(NAME)
    assert "def " in capsys.readouterr().out


def test_without_the_lessons_there_is_no_solution(here, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(box, "COURSE", tmp_path)
    vaelab.solution(NAME)
    vaelab.solution(NAME)
    assert "repository" in capsys.readouterr().out
    with pytest.raises(KeyError):
        vaelab.solution("06.99")


# ------------------------------------------------------------------------------ for teachers


def test_the_plans_have_the_minutes_of_the_lessons():
    text = (ROOT / "course" / "INSTRUCTORS.md").read_text(encoding="utf-8")
    minutes = {}
    for lesson in my_course.lessons_in(ROOT):
        first, *rest = lesson.minutes
        minutes[lesson.number, "to the first stop"] = first if rest else None
        minutes[lesson.number, "after the first stop"] = sum(rest)
        minutes[lesson.number, "whole"] = first + sum(rest)
    planned = re.findall(r"(\d\d), (to the first stop|after the first stop|whole) \| (\d+)", text)
    assert len(planned) > 20
    for number, part, said in planned:
        assert minutes[number, part] == int(said), (number, part)
    term = text[text.index("**A term") : text.index("## Before")]
    weeks = re.findall(r"^\| \d+ \| (\d\d)", term, re.M)
    assert weeks == [lesson.number for lesson in my_course.lessons_in(ROOT)]
