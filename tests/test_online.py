"""Links to Colab and Binder, which exist only where the repository's address is known."""

import os
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from test_editions import MINI

from vaelab.teaching import editions, my_course, online

ROOT = Path(__file__).parents[1]
URL = "https://github.com/some/where"


@pytest.fixture
def repository(tmp_path) -> Path:
    """A course of one lesson, with an address."""
    root = tmp_path / "published"
    (root / "course" / "exercises").mkdir(parents=True)
    (root / "course" / "05_mini.py").write_text(MINI, encoding="utf-8")
    (root / "pyproject.toml").write_text(
        f'[project]\nname = "mini"\n[project.urls]\nRepository = "{URL}"\n', encoding="utf-8"
    )
    return root


def colab_cells(notebook) -> list:
    return [c for c in notebook.cells if online.TAG in c.metadata.get("tags", ())]


# ----------------------------------------------------------------------------- the address


def test_an_address_is_read_where_packages_state_it(repository):
    assert online.repository(repository) == URL
    project = repository / "pyproject.toml"
    project.write_text(project.read_text().replace("where", "where/"))
    assert online.repository(repository) == URL
    project.write_text('[project]\nname = "mini"\n')
    assert online.repository(repository) == ""


@pytest.mark.parametrize("wrong", ["github.com/some/where", "https://github.com/some", URL + "/x"])
def test_another_form_of_address_is_refused(repository, wrong):
    project = repository / "pyproject.toml"
    project.write_text(project.read_text().replace(URL, wrong))
    with pytest.raises(ValueError, match="must be https"):
        online.repository(repository)


def test_links_lead_to_editions_that_exist():
    assert online.links("", "05_count_likelihoods") == {}
    for edition in (ROOT / "course" / "exercises").glob("*.ipynb"):
        path = edition.relative_to(ROOT).as_posix()
        assert online.links(URL, edition.stem) == {
            "Colab": f"https://colab.research.google.com/github/some/where/blob/main/{path}",
            "Binder": f"https://mybinder.org/v2/gh/some/where/main?urlpath=lab/tree/{path}",
        }


# ------------------------------------------------------------------------------ Colab's cell


def test_an_edition_has_the_cell_only_with_an_address(repository):
    lesson = repository / "course" / "05_mini.py"
    published = editions.release(lesson)
    [cell] = colab_cells(published)
    assert cell is next(c for c in published.cells if c.cell_type == "code")
    assert URL in cell.source
    nbformat.validate(published)
    (repository / "pyproject.toml").write_text('[project]\nname = "mini"\n')
    plain = editions.release(lesson)
    assert plain.cells == [c for c in published.cells if c is not cell]
    assert plain.metadata == published.metadata  # the same release: nobody is told of a new one


def test_a_learner_who_works_at_home_does_not_see_the_cell(repository, monkeypatch):
    for name in ("README.md", "course/START.py"):
        (repository / name).write_bytes((ROOT / name).read_bytes())
    edition = editions.release(repository / "course" / "05_mini.py")
    path = repository / "course" / "exercises" / "05_mini.ipynb"
    path.write_text(editions.to_text(edition), encoding="utf-8")
    work = repository / "my-course"
    assert my_course.bring(repository, work) == []
    brought = nbformat.read(work / "lessons" / "05_mini.ipynb", as_version=4)
    assert colab_cells(brought) == [] and len(brought.cells) == len(edition.cells) - 1
    assert editions.is_untouched(work / "lessons" / "05_mini.ipynb")
    assert my_course.bring(repository, work, update=True) == []


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """What the cell starts. git really clones; pip is only noted."""
    started, run = [], subprocess.run

    def note(command, **options):
        started.append(command)
        return None if "pip" in command else run(command, **options)

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return started


def test_elsewhere_the_cell_does_nothing(ran, tmp_path):
    before = [*sys.path]
    exec(online.colab_cell(URL).source, {})
    assert ran == [] and sys.path == before and Path.cwd() == tmp_path
    assert [*tmp_path.iterdir()] == []


def test_on_colab_the_cell_gets_the_course_once(ran, repository, tmp_path, monkeypatch):
    (repository / "course" / "exercises" / "05_mini.ipynb").touch()
    git = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    ran.clear()
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    content = tmp_path / "content"
    content.mkdir()
    source = online.colab_cell(repository.as_uri()).source.replace("/content", str(content))
    for _ in range(2):
        exec(source, {})
        assert Path.cwd() == content / "vaelab" / "course" / "exercises"
        assert Path("05_mini.ipynb").exists()
    assert sys.path[0] == str(content / "vaelab")
    clone, pip = ran
    assert clone[:2] == ["git", "clone"]
    assert pip[0] == sys.executable and pip[-1] == str(content / "vaelab") + "[course]"


def test_a_failed_download_is_not_passed_over(ran, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    nowhere = (tmp_path / "nowhere").as_uri()
    source = online.colab_cell(nowhere).source.replace("/content", str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        exec(source, {})
    assert not os.path.exists(tmp_path / "vaelab")
