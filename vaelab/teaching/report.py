"""What comes of grading: a table, a page for each learner, and one for the instructor.

A learner's name, code and errors are a stranger's text: all of it is escaped.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections import Counter
from html import escape
from pathlib import Path

from .._internal.machine import write_atomically
from ..plotting import COLOURS

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
pre {{ background: #f4f4f4; padding: .8rem; overflow-x: auto; font-size: .85rem }}
p {{ white-space: pre-line; overflow-wrap: anywhere }} img {{ width: 100% }}
table {{ border-collapse: collapse; font-size: .9rem }}
td, th {{ border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
OWN_CELLS = """<p>Only the answer cells were run, with the rest of the notebook as it was handed
out: whatever an answer needs has to stand in its own cell, or in one of the lesson's.</p>"""


def write(out: Path, lesson: str, names, rows: list[dict], contained: bool) -> None:
    """Write ``grades.csv``, ``feedback/NAME.html`` and ``report.html`` into a folder."""
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    pages = {
        out / "grades.csv": _table(names, rows),
        out / "report.html": _report(lesson, names, rows, contained),
    }
    for row in rows:
        pages[out / "feedback" / f"{row['name']}.html"] = _feedback(lesson, row)
    write_atomically({path: page.encode(errors="replace") for path, page in pages.items()})


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
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


def _points(n: int, most: int) -> str:
    return f"{n} of {most} point{'' if most == 1 else 's'}"


def _feedback(lesson: str, row: dict) -> str:
    body = [f"<p><b>{_points(row['total'], row['max'])}</b></p>"]
    if row["note"]:
        body.append(f"<p>{escape(row['note'])}</p>")
    for name, mark in row["marks"].items():
        right = mark["points"] > 0
        body.append(
            f'<h2><span class="{"right" if right else "wrong"}">{"✔" if right else "✘"}</span> '
            f"{escape(name)} · {escape(mark['title'])} · {_points(mark['points'], mark['max'])}"
            f"</h2>\n<p>{escape(mark['message'])}</p>"
        )
        if mark["answer"]:
            body.append(
                f"<details><summary>Your answer</summary><pre>{escape(mark['answer'])}</pre>"
                "</details>"
            )
    body.append(OWN_CELLS)
    return PAGE.format(title=f"Lesson {lesson} · {escape(row['name'])}", body="\n".join(body))


def _report(lesson: str, names, rows: list[dict], contained: bool) -> str:
    n = len(rows)
    best = rows[0]["max"] if rows else 0
    middle = sorted(row["total"] for row in rows)[n // 2] if rows else 0
    body = [
        f"<p>{n} notebook{'' if n == 1 else 's'}; the median has {_points(middle, best)}. "
        f"{'They ran shut in.' if contained else NOT_CONTAINED}</p>"
    ]
    if rows:
        picture = base64.b64encode(_figure(names, rows)).decode()
        body.append(
            f'<img src="data:image/png;base64,{picture}" alt="Share passed of each exercise, '
            'commonest misconceptions, seconds a notebook; the table below has the numbers.">'
        )
    body.append("<h2>Notebooks</h2><table><tr><th>name</th>")
    body += [f"<th>{escape(name)}</th>" for name in names]
    body.append("<th>total</th><th>seconds</th><th>note</th></tr>")
    for row in sorted(rows, key=lambda row: -row["total"]):
        cells = [row["name"], *(row["marks"][name]["points"] for name in names)]
        cells += [row["total"], row["seconds"], row["note"]]
        body.append("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in cells) + "</tr>")
    body.append("</table>")
    return PAGE.format(title=f"Lesson {lesson} · report", body="\n".join(body))


NOT_CONTAINED = (
    "This system offers no containment (namespaces of Linux): time, memory, processes, output and "
    "disk were limited, but a notebook could read this user's files and reach the network."
)


def _figure(names, rows: list[dict]) -> bytes:
    """Difficulty, misconceptions and time, as a PNG."""
    from matplotlib.figure import Figure

    wrong: Counter = Counter()
    for row in rows:
        for name, mark in row["marks"].items():
            if mark["misconception"]:
                wrong[f"{name}  {mark['misconception']}"] += 1
    common = wrong.most_common(8)[::-1]
    height = 1.2 + 0.32 * max(len(names), 3), 1.2 + 0.32 * max(len(common), 2), 2.0
    figure = Figure(figsize=(8, sum(height)), layout="constrained")
    items, mistakes, times = figure.subplots(3, gridspec_kw={"height_ratios": height})

    passed = [sum(row["marks"][name]["points"] > 0 for row in rows) for name in names]
    bars = items.barh(range(len(names)), [p / len(rows) for p in passed], color=COLOURS[0])
    items.bar_label(bars, [f"{p} of {len(rows)}" for p in passed], padding=4)
    titles = [rows[0]["marks"][name]["title"] for name in names]
    labels = [f"{n}  {_short(t)}" for n, t in zip(names, titles, strict=True)]
    items.set_yticks(range(len(names)), labels)
    items.invert_yaxis()
    items.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), xlabel="share that passed", title="Difficulty")

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
