"""Each picture of the course has a text that stands for it, and no other picture has the same."""

import json
import re
from collections import defaultdict
from html import unescape
from pathlib import Path

import nbformat
import pytest

from vaelab.teaching import map, my_course

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "course").glob("[0-9]*.ipynb"))
PAGES = [ROOT / "README.md", *(ROOT / "course").glob("*.md"), *(ROOT / "course/site").glob("*.md")]
WIDGETS = sorted((ROOT / "course/site/static/widgets").glob("*/widget.json"))
MARKDOWN = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)")
HTML = re.compile(r"<img\b[^>]*>")


def pictures_in(text: str, where: str) -> list[tuple[str, str]]:
    """For each picture its alternative text, and the file, or what else tells it from others."""
    found = [(alt, Path(file).name) for alt, file in MARKDOWN.findall(text)]
    for n, image in enumerate(HTML.findall(text)):
        alt = re.search(r'\balt="([^"]*)"', image)
        source = re.search(r'\bsrc="(?!data:)([^"]+)"', image)
        name = Path(source[1]).name if source else f"{where}, picture {n + 1}"
        found.append((unescape(alt[1]) if alt else "", name))
    return found


def pictures() -> list[tuple[str, str]]:
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8").replace("{map_alt}", map.alt())
        found += pictures_in(text, path.name)
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    for name, notebook in {**notebooks, "START": my_course.start_page(ROOT)}.items():
        for i, cell in enumerate(notebook.cells, start=1):
            if cell.cell_type == "markdown":
                found += pictures_in(cell.source, f"{name}, cell {i}")
            for output in cell.get("outputs", ()):
                html = "".join(output.get("data", {}).get("text/html", ""))
                found += pictures_in(html, f"{name}, cell {i}")
    return found


def test_no_picture_is_without_a_text():
    found = pictures()
    assert len(found) > 150
    assert not [where for alt, where in found if not alt.strip()]


def test_no_two_pictures_have_the_same_text():
    by_text = defaultdict(set)
    for alt, picture in pictures():
        by_text[" ".join(alt.split())].add(picture)
    assert not {alt: those for alt, those in by_text.items() if len(those) > 1}


@pytest.mark.parametrize("path", WIDGETS, ids=lambda path: path.parent.name)
def test_a_widget_has_on_the_site_the_text_of_its_lesson(path):
    alt = json.loads(path.read_text(encoding="utf-8"))["alt"]
    lesson = path.parent.name.rpartition("_")[0]
    texts = [" ".join(text.split()) for text, where in pictures() if where.startswith(lesson)]
    assert " ".join(alt.split()) in texts
