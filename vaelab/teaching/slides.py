"""Slides for the room: a lesson's figures, formulas and predict-first questions, in one HTML file.

A page asks the network for nothing. Formulas are MathML, which browsers draw by themselves, and the
pictures are those of the committed notebook.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

__all__ = ["Question", "answers_page", "deck", "questions_in"]

MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$]+?)\$", re.S)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
FOLDED = re.compile(
    r"<details>\s*<summary>(?P<title>.*?)</summary>(?P<text>.*?)</details>", re.S | re.I
)
SECTION = re.compile(r"^## (?P<title>[^\n]+)$", re.M)
OBJECTIVES = re.compile(
    r"^\*\*Objectives\.\*\*.*?(?=\n\s*\n(?![-*\d] )|\n\*\*You|\Z)", re.S | re.M | re.I
)
ASKED = re.compile(r"\*\*Predict\s+first[.:]\*\*\s*(?P<begins>\w?)", re.I)
# Where a question's own paragraph ends: a blank line, a heading, or something folded.
PARAGRAPH = re.compile(r"\n\s*\n|\n(?=#|<details)")
UNREAD = {  # what latex2mathml does not read, or turns into MathML that browsers do not
    r"\\[bB]igg?[lr]?(?=\\[{}])": "",
    r"\{aligned\}": "{align*}",
    r"(\\mathbb|\\mathcal|\\mathbf) (\w)": r"\1{\2}",
}

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; font: 1.5rem/1.45 system-ui, sans-serif; }}
section {{ box-sizing: border-box; min-height: 100vh; padding: 3vh 6vw; display: flex;
  flex-direction: column; justify-content: center; gap: 1rem; }}
.show section {{ display: none; }} .show section.now {{ display: flex; }}
h1 {{ font-size: 3rem; margin: 0; }} h2 {{ font-size: 2.2rem; margin: 0; line-height: 1.2; }}
.of {{ font-size: 1.1rem; opacity: 0.75; margin: 0; }}
p, ul, ol {{ margin: 0; max-width: 44em; }}
figure {{ margin: 0; text-align: center; }}
img {{ max-width: 100%; max-height: 76vh; width: auto; height: auto; min-width: 50%;
  object-fit: contain; background: white; }}
summary {{ cursor: pointer; color: #0072b2; font-weight: bold; }}
details {{ max-width: 44em; }} details p {{ margin: 0.5em 0; }}
math[display=block] {{ font-size: 1.15em; overflow-x: auto; }}
mtd[columnalign=right] {{ text-align: right; }} mtd[columnalign=left] {{ text-align: left; }}
table {{ border-collapse: collapse; font-size: 1.1rem; }} td, th {{ padding: 0.2em 0.8em; }}
@media (prefers-color-scheme: dark) {{ summary {{ color: #56b4e9; }} }}
@media print {{ .show section {{ display: flex; break-after: page; }} }}
</style>
<body>
{slides}
<script>
const slides = [...document.querySelectorAll("section")];
let at = Math.min(Math.max(parseInt(location.hash.slice(1)) || 1, 1), slides.length) - 1;
function go(to) {{
  at = Math.min(Math.max(to, 0), slides.length - 1);
  slides.forEach((slide, i) => slide.classList.toggle("now", i === at));
  history.replaceState(null, "", "#" + (at + 1));
  scrollTo(0, 0);
}}
addEventListener("keydown", (event) => {{
  if (event.target.tagName === "SUMMARY" && [" ", "Enter"].includes(event.key)) return;
  const folded = slides[at].querySelector("details:not([open])");
  if (["ArrowRight", "PageDown", " ", "Enter"].includes(event.key))
    folded && event.key !== "PageDown" ? (folded.open = true) : go(at + 1);
  else if (["ArrowLeft", "PageUp"].includes(event.key)) go(at - 1);
  else if (event.key === "Home") go(0);
  else if (event.key === "End") go(slides.length - 1);
  else return;
  event.preventDefault();
}});
addEventListener("hashchange", () => go(parseInt(location.hash.slice(1)) - 1 || 0));
document.body.classList.add("show");
go(at);
</script>
</body>
</html>
"""


@dataclass(frozen=True)
class Question:
    """A predict-first question of a lesson.

    Parameters
    ----------
    section
        The heading under which it stands.
    text
        The question, in Markdown.
    answer
        The folded answer, or else what the lesson says next, in Markdown.
    """

    section: str
    text: str
    answer: str


def questions_in(notebook) -> list[Question]:
    """The predict-first questions of a lesson's notebook, in their order."""
    return [part for part in _parts(notebook) if isinstance(part, Question)]


def deck(path: Path) -> str:
    """The slides of a lesson, as one HTML page.

    Parameters
    ----------
    path
        The lesson's notebook with its outputs.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    title = _title(notebook)
    of, slides = title, []
    for part in _parts(notebook):
        if isinstance(part, Question):
            answer = f"<details><summary>Answer</summary>{_html(part.answer)}</details>"
            question = f"<h2>Predict first</h2>{_html(part.text)}"
            slides.append(f"<p class=of>{_line(of)}</p>{question}{answer}")
            continue
        kind, content = part
        if kind == "opening":
            slides.append(_html(content))
        elif kind == "section":
            of = content[0]
            slides.append(f"<h2>{_line(of)}</h2>" + "".join(_html(f) for f in content[1:]))
        else:
            slides.append(f"<p class=of>{_line(of)}</p><figure>{content}</figure>")
    body = "\n".join(f"<section>{slide}</section>" for slide in slides)
    return PAGE.format(title=escape(title), slides=body)


def answers_page(paths: list[Path]) -> str:
    """All predict-first questions of some lessons with their answers, as one HTML page to print."""
    import nbformat

    parts = ["<h1>Predict first: questions and answers</h1>"]
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        parts.append(f"<h2>{_line(_title(notebook))}</h2>")
        for question in questions_in(notebook):
            parts.append(f"<p class=of>{_line(question.section)}</p>{_html(question.text)}")
            parts.append(f"<blockquote>{_html(question.answer)}</blockquote>")
    page = PAGE.format(title="Predict first", slides="\n".join(parts))
    return re.sub(r"<script>.*?</script>\n", "", page, flags=re.S)


# ----------------------------------------------------------------------- what a lesson consists of


def _title(notebook) -> str:
    return re.search(r"^# (.+)$", notebook.cells[0].source, re.M)[1]


def _parts(notebook) -> list:
    """A lesson's opening, sections with their formulas, figures, and questions, in order."""
    parts: list = [
        ("opening", re.split(r"\*\*(?:Objectives|You need)", notebook.cells[0].source)[0])
    ]
    section, heading = None, _title(notebook)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            parts += [("figure", figure) for figure in _figures(cell)]
            continue
        if goals := OBJECTIVES.search(cell.source):
            parts.append(("opening", goals[0]))
        if i == 0 or "solution" in cell.metadata.get("tags", ()):
            continue
        ends = [m.start() for m in SECTION.finditer(cell.source)] + [len(cell.source)]
        for start, end in zip([0, *ends], ends, strict=False):
            text = cell.source[start:end]
            if found := SECTION.match(text):
                heading = found["title"]
                section = [heading]
                parts.append(("section", section))
            asked = _asked(text, notebook.cells[i + 1 :])
            parts += [Question(heading, question, answer) for question, answer in asked]
            if section is not None:
                plain = FOLDED.sub("", text)
                section += [m[0] for m in MATH.finditer(plain) if m["block"]]
    return parts


def _figures(cell) -> list[str]:
    found = []
    for output in cell.outputs:
        html = output.get("data", {}).get("text/html", "")
        html = html if isinstance(html, str) else "".join(html)
        if html.startswith("<img "):
            found.append(re.sub(r' (width|style)="[^"]*"', "", html))
    return found


def _asked(text: str, later: list) -> list[tuple[str, str]]:
    """The questions in a piece of Markdown, each with its answer."""
    found = []
    text = re.sub(r"^> ?", "", text, flags=re.M)  # a question may be quoted
    for folded in FOLDED.finditer(text):
        title = " ".join(folded["title"].split())
        if asked := re.match(r"Predict first[.:] *(.*)", title, re.I):
            question = asked[1][:1].upper() + asked[1][1:]
            found.append((folded.start(), question, folded["text"].strip()))
    for mark in ASKED.finditer(text):
        before = [m.end() for m in PARAGRAPH.finditer(text, 0, mark.start())]
        end = PARAGRAPH.search(text, mark.end())
        stop = end.start() if end else len(text)
        question = text[max(before, default=0) : stop].strip()
        question = ASKED.sub(lambda m: m["begins"].upper(), question)
        found.append((mark.start(), question, _answer(text[stop:], later)))
    return [(question, answer) for _, question, answer in sorted(found)]


def _answer(rest: str, later: list) -> str:
    """The next folded text if it is an answer, before the next heading; else the next paragraph."""
    texts = [rest, *(cell.source for cell in later if cell.cell_type == "markdown")]
    for text in texts:
        stop = re.search(r"^#|\*\*Predict", text, re.M)
        folded = FOLDED.search(text, 0, stop.start() if stop else len(text))
        if folded and re.match("Answer", folded["title"].strip(), re.I):
            return folded["text"].strip()
        if stop:
            break
    for text in texts:
        plain = FOLDED.sub("", text).strip()
        first = PARAGRAPH.split(plain)[0]
        if first and not first.startswith(("#", ">")):
            return first
    return ""


# -------------------------------------------------------------------------------------- to HTML


def _html(markdown: str) -> str:
    """Markdown with formulas as HTML with MathML."""
    import mistune

    kept: list[str] = []

    def keep(html: str) -> str:
        kept.append(html)
        return f"\x02{len(kept) - 1}\x03"

    text = re.sub(r"\]\((?!https?:)[^)]*\)", "]()", markdown)  # other pages are not there
    text = CODE.sub(lambda m: keep(f"<code>{escape(m[0].strip('`'))}</code>"), text)
    text = MATH.sub(lambda m: keep(_mathml(m["block"] or m["inline"], bool(m["block"]))), text)
    html = mistune.create_markdown(escape=False, plugins=["table"])(text)
    html = re.sub(r'<a href="">(.*?)</a>', r"\1", html, flags=re.S)
    return re.sub("\x02(\\d+)\x03", lambda m: kept[int(m[1])], html)


def _line(markdown: str) -> str:
    return re.sub(r"^<p>(.*)</p>\s*$", r"\1", _html(markdown).strip(), flags=re.S)


def _mathml(formula: str, block: bool) -> str:
    from latex2mathml.converter import convert

    for pattern, better in UNREAD.items():
        formula = re.sub(pattern, better, formula)
    return convert(" ".join(formula.split()), display="block" if block else "inline")
