"""Slides and answers for teachers are made from the lessons, and need no network."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat import v4
from typer.testing import CliRunner

from vaelab import __main__ as cli
from vaelab.teaching import slides

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "course").glob("[0-9]*.ipynb"))
PICTURE = '<img alt="A hill." width="640" style="max-width: 100%" src="data:image/png;base64,AA==">'
SMALL = [
    v4.new_markdown_cell(
        "# 99 · A small lesson\n\nWhat is **it**?\n\n**Objectives.** After it you can\n\n"
        "- be small\n- , and know it.\n\n**You need** $x$."
    ),
    v4.new_markdown_cell(
        "## 1 · First\n\nSome prose.\n\n$$a = \\mathbb E[x]$$\n\n"
        "They are two. **Predict first:** which\nis $q_1$?\n\n"
        "Look at the picture.\n\n<details><summary>Hint</summary>No answer.</details>"
    ),
    v4.new_code_cell("draw()", outputs=[v4.new_output("display_data", {"text/html": PICTURE})]),
    v4.new_markdown_cell(
        "<details><summary>Answer</summary>\n\nThe `first_one` of $a_b$.\n\n</details>"
    ),
    v4.new_markdown_cell(
        "## 2 · Second\n\n> **Predict first.** Up or [down](other.ipynb)?\n> Or not?\n>\n"
        "> <details><summary>Answer</summary>Down.</details>\n\n"
        "<details><summary>Predict first: how many?</summary>\n\nNine.</details>"
    ),
    v4.new_markdown_cell("**Predict first.** What is next?"),
    v4.new_code_cell("draw()"),
    v4.new_markdown_cell("It is the figure.\n\nMore prose.\n\n## 3 · Third"),
    v4.new_markdown_cell("A solution: $$x = 1$$", metadata={"tags": ["solution"]}),
]  # fmt: skip


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "99_small.ipynb"
    nbformat.write(v4.new_notebook(cells=SMALL), path)
    return path


class Text(HTMLParser):
    """The sections of a page: their words, pictures and folded texts."""

    def __init__(self, page: str):
        super().__init__()
        self.slides, self.inside, self.links = [], False, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.links += [v for k, v in attributes if k in ("src", "href")]
        if tag == "section":
            self.slides.append({"text": "", "alt": [], "tags": []})
            self.inside = True
        elif self.inside:
            self.slides[-1]["tags"].append(tag)
            self.slides[-1]["alt"] += [v for k, v in attributes if k == "alt"]

    def handle_endtag(self, tag):
        self.inside &= tag != "section"

    def handle_data(self, data):
        if self.inside:
            self.slides[-1]["text"] += data


def test_the_questions_of_a_lesson(small):
    questions = slides.questions_in(nbformat.read(small, as_version=4))
    assert [(q.section, q.text, q.answer) for q in questions] == [
        ("1 · First", "They are two. Which\nis $q_1$?", "The `first_one` of $a_b$."),
        ("2 · Second", "Up or [down](other.ipynb)?\nOr not?", "Down."),
        ("2 · Second", "How many?", "Nine."),
        ("2 · Second", "What is next?", "It is the figure."),
    ]


def test_the_slides_of_a_lesson(small):
    page = Text(slides.deck(small))
    texts = [" ".join(slide["text"].split()) for slide in page.slides]
    assert texts[0] == "99 · A small lesson What is it?"
    assert texts[1] == "Objectives. After it you can be small , and know it."
    page.slides, texts = page.slides[1:], texts[1:]
    assert texts[1].startswith("1 · First") and "𝔼" in texts[1]
    assert "They are two. Which is q1? AnswerThe first_one of" in texts[2]
    assert page.slides[3]["alt"] == ["A hill."]
    assert [t.split("Predict")[0] for t in texts[4:]] == ["2 · Second"] * 4 + ["3 · Third"]
    assert [slide["tags"].count("details") for slide in page.slides] == [0, 0, 1, 0, 0, 1, 1, 1, 0]
    assert not [link for link in page.links if not link.startswith("data:")]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_its_slides(lesson):
    notebook = nbformat.read(lesson, as_version=4)
    page = slides.deck(lesson)
    body = page[page.index("<body>") : page.index("<script>")]
    asked = sum(
        len(re.findall(r"Predict\s+first[.:]", cell.source))
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    )
    questions = slides.questions_in(notebook)
    assert body.count("<strong>Objectives.</strong>") == 1
    assert len(questions) == asked == body.count("<h2>Predict first</h2>")
    assert all(question.text and question.answer for question in questions)
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "".join(output.get("data", {}).get("text/html", "")).startswith("<img ")
    ]
    assert body.count("<img ") == len(pictures) and len(page) < 4e6
    parsed = Text(page)
    assert all(all(slide["alt"]) for slide in parsed.slides)
    assert not [x for x in parsed.links if not x.startswith(("data:", "http"))]
    assert not re.search(r"(src|href)=.?(?!data:)\w+:[^ >]+\.(js|css|png|svg)", page)
    # Formulas were read whole: nothing of LaTeX or of Markdown's marks is left.
    formulas = re.findall(r"<math.*?</math>", body, re.S)
    left = [f for f in formulas if re.search(r"\\|<mi>&</mi>|mathvariant=.double-struck", f)]
    assert not left
    prose = re.sub(r"<math.*?</math>|<code>.*?</code>|<[^>]*>", "", body, flags=re.S)
    assert not re.search(r"\$|\*\*|\\[a-z]|\x02|\x03", prose)


def test_the_command_writes_a_page_for_each_lesson_and_the_answers(small, tmp_path):
    result = CliRunner().invoke(cli.app, ["slides", str(small), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"99_small.html", "answers.html"}
    answers = (tmp_path / "out" / "answers.html").read_text(encoding="utf-8")
    assert "Nine." in answers and "99 · A small lesson" in answers and "<script>" not in answers
