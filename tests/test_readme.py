"""The README's first page does what it says."""

import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

import vaelab
from vaelab.teaching import online
from vaelab.teaching.map import LESSONS, PATHS

from . import readme_picture

README = readme_picture.ROOT / "README.md"


def test_its_picture_is_that_of_lesson_06():
    assert readme_picture.PICTURE.read_bytes() == readme_picture.picture()


def words(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_its_map_is_that_of_the_course():
    """Its words are compared: other versions of matplotlib draw the same map in other bytes."""
    matplotlib.use("Agg")
    drawn = words(readme_picture.map_of_the_course())
    assert drawn == words(readme_picture.MAP.read_bytes())
    assert {*LESSONS} <= {*drawn} and len(LESSONS) == 14


def test_its_map_has_the_text_that_replaces_it():
    assert f"![{readme_picture.map.alt()}](course/figures/map.svg)" in README.read_text("utf-8")


@pytest.mark.parametrize("moving", [True, False])
def test_its_moving_check_shows_what_a_check_prints_today(moving):
    path = readme_picture.CHECK[moving]
    assert path.read_text("utf-8") == readme_picture.check_as_svg(moving)
    svg = ElementTree.parse(path).getroot()
    shown = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    steps = readme_picture.check_in_steps()
    assert shown == [line for _, text in steps for line in text.splitlines()]
    assert [kind for kind, _ in steps] == ["code", "code", "wrong", "code", "code", "right"]
    assert path.stat().st_size < 500e3


def test_its_moving_check_has_a_text_and_a_still_picture():
    """The still one is for readers who have asked for less motion."""
    text = README.read_text("utf-8")
    still = (
        '<source media="(prefers-reduced-motion: reduce)" srcset="course/figures/check-still.svg">'
    )
    assert still in text
    assert f'src="course/figures/check.svg" alt="{readme_picture.check_alt()}"' in text
    assert "animation" not in readme_picture.CHECK[False].read_text("utf-8")


def test_its_badges_say_what_the_project_says():
    text = README.read_text("utf-8")
    assert text == readme_picture.with_address(text, online.repository(readme_picture.ROOT))
    for label, value in readme_picture.badges().items():
        path = readme_picture.FIGURES / f"badge-{label.lower()}.svg"
        assert path.read_text("utf-8") == readme_picture.badge(label, value)
        ElementTree.parse(path)


def test_without_an_address_nothing_leads_to_one():
    text = readme_picture.with_address(README.read_text("utf-8"), "")
    assert not re.search("colab|mybinder|/actions/", text)
    assert "git clone <this repository> vaelab" in text


def test_an_address_gives_badges_that_lead_somewhere():
    text, root = README.read_text("utf-8"), readme_picture.ROOT
    with_one = readme_picture.with_address(text, "https://github.com/some/where")
    assert "git clone https://github.com/some/where vaelab && cd vaelab" in with_one
    [tests] = re.findall(r"https://github.com/some/where/actions/(\S+)/badge.svg", with_one)
    assert (root / ".github" / tests).exists()
    notebooks = re.findall(r"(?:blob/main|lab/tree)/([^)]+\.ipynb)\)", with_one)
    assert len(notebooks) == 2
    assert all((root / notebook).exists() for notebook in notebooks)
    assert readme_picture.with_address(with_one, "") == readme_picture.with_address(text, "")


def test_the_map_has_the_minutes_of_the_lessons():
    rows = re.findall(r"^\| (\d\d) \|.*\| ([\d +]+) min \|$", README.read_text("utf-8"), re.M)
    listed = {number: sum(map(int, minutes.split("+"))) for number, minutes in rows}
    assert {n: one.minutes for n, one in LESSONS.items() if one.minutes} == listed
    course = readme_picture.ROOT / "course"
    assert {path.name[:2] for path in course.glob("[0-9]*.py")} == {*listed}
    for number in listed:
        [path] = course.glob(f"{number}_*.py")
        said = re.search(r"\*\*Time:\*\*\s+(?:#\s+)?about (\d+) minutes", path.read_text("utf-8"))
        later = re.search(r"minutes to a marked stop, and (\d+) more", path.read_text("utf-8"))
        if said:
            assert int(said[1]) + int(later[1] if later else 0) == listed[number], path.name


def everything_before(number: str) -> set[str]:
    found = {*LESSONS[number].needs}
    return found.union(*map(everything_before, found))


def test_the_map_leads_to_what_a_lesson_says_it_needs():
    for path in (readme_picture.ROOT / "course").glob("[0-9]*.py"):
        text, number = path.read_text("utf-8"), path.name[:2]
        needs = re.search(r"\*\*You need\*\*(.*?)\*\*Time", text, re.S)[1]
        linked = {*re.findall(r"\((\d\d)_\w+\.ipynb\)", needs)} - {*LESSONS[number].helps}
        assert linked <= everything_before(number), path.name


def test_a_path_takes_no_longer_than_its_lessons():
    for path in PATHS.values():
        for number, minutes in (path.minutes or {}).items():
            assert minutes <= LESSONS[number].minutes


def test_its_files_exist():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    assert len(links) > 20
    for link in links:
        assert (readme_picture.ROOT / link).exists(), link


@pytest.mark.filterwarnings("ignore")
def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    vaelab.simulate.dataset(n_cells=200, n_genes=150, n_batches=2).write_h5ad("mine.h5ad")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    code = "".join(blocks)
    monkeypatch.setattr(vaelab.training, "EPOCHS", (2, 2))
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["adata"].obsm["X_vae"].shape == (200, 10)
    assert Path("mine.safetensors").exists()
    assert names["gmvae"].cluster(names["cells"]).shape == (200, 8)
    assert names["scanvi"].predict(names["cells"]).shape == (200, 5)
    assert names["mapped"].predict(names["query"]).shape == (200, 5)
