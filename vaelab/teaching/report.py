"""What comes of grading: a table, a page for each learner, and one for the instructor.

A learner's name, code and errors are a stranger's text: all of it is escaped.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections import Counter
from html import escape
from pathlib import Path
from statistics import median
from urllib.parse import quote

from .._internal.machine import write_atomically
from ..plotting import COLOURS
from .exercises.box import as_html

__all__ = ["write"]

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .3rem }}
.right {{ color: #00694d }} .wrong {{ color: #a33f00 }}
.open {{ color: #555 }}
code {{ background: #f4f4f4; padding: 0 .2em; font-size: .85rem }}
pre {{ background: #f4f4f4; padding: .8rem; overflow-x: auto; font-size: .85rem }}
p {{ white-space: pre-line; overflow-wrap: anywhere }} img {{ width: 100% }}
table {{ border-collapse: collapse; font-size: .9rem }}
td, th {{ border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
HOW = (
    "<p>Your answers ran with the rest of the notebook as it was handed out, and met inputs that "
    "nobody has seen. Where something was not right then, they ran again with every cell that you "
    "added or changed, in your order, and the better result counts.</p>"
)


def write(
    out: Path, lesson: str, names, rows: list[dict], contained: bool, title: str = "", left=()
) -> None:
    """Write ``grades.csv``, ``feedback/NAME.html`` and ``report.html`` into a folder.

    Parameters
    ----------
    title
        The lesson's title.
    left
        Sentences on what was not taken.
    """
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    heading = f"Lesson {lesson}" + (f" · {title}" if title else "")
    places = {row["name"]: _file_name(row["name"]) for row in rows}
    pages = {
        out / "grades.csv": _table(names, rows),
        out / "report.html": _report(heading, names, rows, contained, places, left),
    }
    for row in rows:
        pages[out / "feedback" / places[row["name"]]] = _feedback(heading, row)
    write_atomically({path: page.encode(errors="replace") for path, page in pages.items()})


def _file_name(name: str) -> str:
    """The name of a learner's page: the learner's, as far as a file can be called so."""
    safe = name.replace("/", "_").replace("\\", "_").encode(errors="replace")
    if len(safe) > 120 or safe.startswith(b"."):
        digest = hashlib.sha256(safe).hexdigest()[:12]
        safe = safe[:100].strip(b".") + f" {digest}".encode()
    return safe.decode(errors="ignore") + ".html"


def _table(names, rows: list[dict]) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["name", *names, "total", "max", "seconds", "note", "file"])
    for row in rows:
        points = [row["marks"][name]["points"] for name in names]
        words = [_harmless(row[key]) for key in ("name", "note", "file")]
        numbers = [row[key] for key in ("total", "max", "seconds")]
        table.writerow([words[0], *points, *numbers, *words[1:]])
    return file.getvalue()


def _harmless(text: str) -> str:
    """A spreadsheet takes what begins so for a formula."""
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") else text


def _points(n: float, most: int) -> str:
    return f"{n:g} of {most} point{'' if most == 1 else 's'}"


def _feedback(heading: str, row: dict) -> str:
    body = [f"<p><b>{_points(row['total'], row['max'])}</b></p>"]
    if row["note"]:
        body.append(f"<p>{as_html(row['note'])}</p>")
    for name, mark in row["marks"].items():
        kind, sign = _state(mark)
        body.append(
            f'<h2><span class="{kind}">{sign}</span> '
            f"{escape(name)} · {escape(mark['title'])} · {_points(mark['points'], mark['max'])}"
            f"</h2>\n<p>{as_html(mark['message'])}</p>"
        )
        body.append(f"<p>{_next(name, mark)}</p>")
        if mark["answer"]:
            body.append(
                f"<details><summary>Your answer</summary><pre>{escape(mark['answer'])}</pre>"
                "</details>"
            )
    body.append(HOW)
    return PAGE.format(title=f"{escape(heading)} · {escape(row['name'])}", body="\n".join(body))


def _next(name: str, mark: dict) -> str:
    """What to do next. The page names the section: where the notebook lies is not known here."""
    if mark["points"]:
        return "Next: compare yours with the solution in the lesson."
    where = f"the section <b>Exercise {escape(name)} · {escape(mark['title'])}</b>"
    if mark["unanswered"]:
        return f"Next: open {where} of your notebook and write your answer there."
    return f"Next: open {where} of your notebook, change your answer and run its check again."


def _state(mark: dict) -> tuple[str, str]:
    if mark["points"]:
        return "right", "✔"
    return ("open", "–") if mark["unanswered"] else ("wrong", "✘")


def _report(heading: str, names, rows: list[dict], contained: bool, places: dict, left) -> str:
    n = len(rows)
    best = rows[0]["max"] if rows else 0
    middle = median(row["total"] for row in rows) if rows else 0
    body = [
        f"<p>{n} notebook{'' if n == 1 else 's'}; the median has {_points(middle, best)}. "
        f'{"They ran contained." if contained else NOT_CONTAINED} <a href="grades.csv">The table '
        "as a file</a></p>"
    ]
    if left:
        body.append("<h2>Not taken</h2><ul>")
        body += [f"<li>{escape(sentence)}</li>" for sentence in left]
        body.append("</ul>")
    if rows:
        picture = base64.b64encode(_figure(names, rows)).decode()
        body.append(
            f'<img src="data:image/png;base64,{picture}" alt="{escape(_alt(names, rows))}">'
        )
    body.append("<h2>Notebooks</h2><table><tr><th>name</th>")
    body += [f"<th>{escape(name)}</th>" for name in names]
    body.append("<th>total</th><th>seconds</th><th>note</th></tr>")
    for row in sorted(rows, key=lambda row: -row["total"]):
        page = quote(f"feedback/{places[row['name']]}")
        marks = [row["marks"][name] for name in names]
        points = ["–" if mark["unanswered"] else mark["points"] for mark in marks]
        cells = [*points, row["total"], row["seconds"], row["note"]]
        body.append(
            f'<tr><td><a href="{escape(page)}">{escape(row["name"])}</a></td>'
            + "".join(f"<td>{escape(str(c))}</td>" for c in cells)
            + "</tr>"
        )
    body.append("</table><p>A dash stands for an exercise without an answer.</p>")
    return PAGE.format(title=f"{escape(heading)} · report", body="\n".join(body))


NOT_CONTAINED = (
    "They ran without containment: time, memory, processes, output and disk were limited, but a "
    "notebook could read files of this machine and reach the network."
)


def _counts(names, rows: list[dict]) -> list[tuple[int, int, int]]:
    """Of each exercise, how many are right, wrong, unanswered."""
    states = ([_state(row["marks"][name])[0] for row in rows] for name in names)
    return [tuple(s.count(kind) for kind in ("right", "wrong", "open")) for s in states]


def _misconceptions(rows: list[dict]) -> list[tuple[str, int]]:
    wrong: Counter = Counter()
    for row in rows:
        for name, mark in row["marks"].items():
            if mark["misconception"]:
                wrong[f"{name}  {mark['misconception']}"] += 1
    return wrong.most_common(8)


def _alt(names, rows: list[dict]) -> str:
    """The picture in words."""
    parts = [
        f"{name}: {right} right, {wrong} wrong, {open_} without an answer"
        for name, (right, wrong, open_) in zip(names, _counts(names, rows), strict=True)
    ]
    said = f"Three charts. Answers to each exercise: {'; '.join(parts)}."
    if common := _misconceptions(rows):
        said += f" Commonest misconceptions: {'; '.join(f'{what} ({n})' for what, n in common)}."
    seconds = [row["seconds"] for row in rows if row["seconds"]]
    if seconds:
        said += f" A notebook took {min(seconds):g} to {max(seconds):g} seconds."
    return said


def _figure(names, rows: list[dict]) -> bytes:
    """Difficulty, misconceptions and time, as a PNG."""
    from matplotlib.figure import Figure

    common = _misconceptions(rows)[::-1]
    height = 1.2 + 0.32 * max(len(names), 3), 1.2 + 0.32 * max(len(common), 2), 2.0
    figure = Figure(figsize=(8, sum(height)), layout="constrained")
    items, mistakes, times = figure.subplots(3, gridspec_kw={"height_ratios": height})

    counts = _counts(names, rows)
    bars = items.barh(range(len(names)), [c[0] / len(rows) for c in counts], color=COLOURS[0])
    start = [c[0] / len(rows) for c in counts]
    labels = [f"{right} right, {wrong} wrong, {open_} open" for right, wrong, open_ in counts]
    items.barh(range(len(names)), [c[1] / len(rows) for c in counts], left=start, color="0.75")
    for y, label in enumerate(labels):
        items.annotate(label, (1.02, y), va="center", fontsize=8)
    titles = [rows[0]["marks"][name]["title"] for name in names]
    labels = [f"{n}  {_short(t)}" for n, t in zip(names, titles, strict=True)]
    items.set_yticks(range(len(names)), labels)
    items.invert_yaxis()
    items.set(xlim=(0, 1.45), xticks=(0, 0.5, 1))
    items.set(xlabel="share of the notebooks: right, wrong (grey)", title="Difficulty")

    bars = mistakes.barh(range(len(common)), [count for _, count in common], color=COLOURS[5])
    mistakes.bar_label(bars, padding=4)
    mistakes.set_yticks(range(len(common)), [_short(name) for name, _ in common])
    mistakes.set(xlabel="notebooks", title="Commonest misconceptions", xticks=())
    mistakes.margins(x=0.1)
    if not common:
        mistakes.text(0.5, 0.5, "none was recognised", ha="center", transform=mistakes.transAxes)

    seconds = [row["seconds"] for row in rows if row["seconds"]]
    times.hist(seconds, bins=20, color=COLOURS[2])
    times.set(xlabel="seconds", ylabel="notebooks", title="Time to run a notebook")
    times.yaxis.get_major_locator().set_params(integer=True)
    for axes in (items, mistakes, times):
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _short(text: str, n: int = 44) -> str:
    text = re.sub(r"\$", r"\\$", text)  # no mathematics out of a title
    return text if len(text) <= n else text[: n - 1] + "…"
