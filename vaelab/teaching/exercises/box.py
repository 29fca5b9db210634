"""How a verdict is shown: a box in a notebook, lines of text in a terminal.

The colour of a box is never the only sign: its heading begins with ✔, ✘ or ○. Its text takes the
notebook's own colours, so that it can be read on a dark page too.
"""

from __future__ import annotations

import base64
import inspect
import io
import re
import sys
import textwrap
from html import escape
from pathlib import Path

import numpy as np

from .core import EMPHASIS, Verdict

__all__ = ["as_html", "as_text", "html_of", "notebook", "picture_of"]

COURSE = Path(__file__).parents[3] / "course"
COLOURS = {"right": "#009e73", "wrong": "#d55e00", "undone": "#888888"}
BOX = (
    '<div style="border: 1px solid {colour}; border-left-width: 6px; border-radius: 4px; '
    "padding: 0.5em 1em; max-width: 46em; font-family: system-ui, sans-serif; line-height: 1.5; "
    'overflow-wrap: break-word">\n<p style="margin: 0.2em 0"><b>{heading}</b></p>\n{body}\n</div>'
)
PARAGRAPH = '<p style="margin: 0.4em 0">{}</p>'
MARKED = re.compile(r"^# %%(?P<about>[^\n]*)\n(?P<source>.*?)(?=^# %%|\Z)", re.M | re.S)


def notebook() -> str:
    """ "attended" or "unattended" in a notebook's kernel; "" elsewhere.

    A front end that has nobody to ask (nbgrader, nbval, nbconvert) says so with each cell.
    """
    interactive = sys.modules.get("IPython")
    kernel = getattr(interactive and interactive.get_ipython(), "kernel", None)
    if kernel is None:
        return ""
    return "attended" if getattr(kernel, "_allow_stdin", False) else "unattended"


def as_html(message: str) -> str:
    """A message as HTML: escaped, with Markdown's emphasis and code as elements."""
    parts = message.split("`")
    for i, part in enumerate(parts):
        part = escape(part)
        parts[i] = f"<code>{part}</code>" if i % 2 else EMPHASIS.sub(r"<em>\1</em>", part)
    return "".join(parts)


def as_text(verdict: Verdict, width: int = 88) -> str:
    """A verdict for a terminal; lines break between words."""
    lines = f"{verdict}\n{_next(verdict)}".splitlines()
    return "\n".join(
        "\n".join(textwrap.wrap(line, width, break_on_hyphens=False)) for line in lines
    )


def html_of(verdict: Verdict, answer=None) -> str:
    """A verdict as a box: the sentence, then the picture, then what to do next."""
    state = "right" if verdict.passed else "undone" if verdict.undone else "wrong"
    body = [PARAGRAPH.format(as_html(verdict.message))]
    figure = picture_of(verdict)
    if figure is not None:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=160)  # twice as many pixels as shown
        content = base64.b64encode(file.getvalue()).decode()
        width, alt = round(80 * figure.get_figwidth()), escape(_alt(verdict))
        body.append(
            f'<img alt="{alt}" style="width: {width}px; max-width: 100%" '
            f'src="data:image/png;base64,{content}">'
        )
    body.append(PARAGRAPH.format(as_html(_next(verdict))))
    solution = solution_of(verdict.exercise.name) if verdict.passed else ""
    if solution and not _is_same(answer, solution):
        body.append(
            "<details><summary>Model solution</summary>\n"
            f'<pre style="overflow-x: auto">{escape(solution)}</pre></details>'
        )
    heading = escape(verdict.heading)
    return BOX.format(colour=COLOURS[state], heading=heading, body="\n".join(body))


def _next(verdict: Verdict) -> str:
    from . import PRACTICE, find, names_in

    if verdict.undone:
        return "You may go on reading: only cells that use your answer stop."
    if not verdict.passed:
        return (
            "Next: change your answer, then run its cell and this one again. The exercise has a "
            "folded hint."
        )
    name = verdict.exercise.name
    if name.startswith(PRACTICE):
        return "This is how a check answers. Go on with the text below."
    names = names_in(name.partition(".")[0])
    later = names[names.index(name) + 1 :] if name in names else []
    if not later:
        return "This was the last exercise of the lesson."
    title = find(later[0]).title
    return f"Next exercise: {later[0]} {title}{'' if title[-1] in '?!' else '.'}"


def picture_of(verdict: Verdict):
    """The right outcome and the answer's in a figure; None if the two can't be drawn."""
    exercise = verdict.exercise
    if verdict.passed or exercise.picture is None or not verdict.comparable:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    exercise.picture(axes, verdict.case, verdict.expected, verdict.got)
    axes.legend(frameon=False)
    if not axes.get_title():
        axes.set_title(_of(verdict) or exercise.title, fontsize="medium")
    return figure


def _of(verdict: Verdict) -> str:
    """What is the same in a whole case: "mean = 2.5, theta = 0.5"."""
    same = {}
    for name, value in (verdict.case or {}).items():
        values = np.unique(value)
        if values.size == 1 and values.dtype.kind in "iuf" and name != "seed":
            same[name] = f"{name} = {values[0]:.4g}"
    return ", ".join(same.values())


def _alt(verdict: Verdict) -> str:
    where = _of(verdict)
    of = f"{verdict.exercise.title}, {where}" if where else verdict.exercise.title
    return f"A chart of the right answer and of yours: {of}. The sentence above has two values."


def solution_of(name: str) -> str:
    """The lesson's own answer, if the lesson is there: the package alone has none."""
    for path in sorted(COURSE.glob(f"{name.partition('.')[0]}_*.py")):
        for cell in MARKED.finditer(path.read_text(encoding="utf-8")):
            ids = (f'"grade_id": "{name}"', f'"grade_id": "{name.replace(".", "-")}"')
            if any(grade_id in cell["about"] for grade_id in ids):
                lines = cell["source"].strip().splitlines()
                return "\n".join(line for line in lines if " SOLUTION" not in line)
    return ""


def _is_same(answer, solution: str) -> bool:
    """True if an answer was written as the model solution: then it stands just above."""
    try:
        source = inspect.getsource(answer)
    except (TypeError, OSError):
        return False
    lines = [line.strip() for line in source.splitlines() if " SOLUTION" not in line]
    return "".join(filter(None, lines)) in "".join(line.strip() for line in solution.splitlines())
