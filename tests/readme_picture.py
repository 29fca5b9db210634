"""The README's pictures and badges, and its lines that depend on the repository's address:
python tests/readme_picture.py
"""

import ast
import base64
import io
import re
import tomllib
from html import escape
from pathlib import Path

import jupytext
import matplotlib
import nbformat
import numpy as np

from vaelab.teaching import map, online
from vaelab.teaching.exercises import box, find

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIGURES = ROOT / "course" / "figures"
PICTURE, MAP = FIGURES / "pancreas.png", FIGURES / "map.svg"
CHECK = {True: FIGURES / "check.svg", False: FIGURES / "check-still.svg"}  # moving or not
BADGES = re.compile(r"(?<=<!-- badges -->\n).*?(?=<!-- end of badges -->)", re.S)
CLONED = re.compile(r"(?<=^git clone )\S.*?(?= vaelab && cd vaelab$)", re.M)
LED_TO = {"Python": "#start", "Licence": "LICENSE"}  # by the badges
NOWHERE = "<this repository>"
MISTAKE, RIGHT = "len(counts)", "counts.size"  # in the exercise on the START page


def picture() -> bytes:
    """The map of cells that lesson 06 draws, as PNG."""
    lesson = nbformat.read(ROOT / "course" / "06_pancreas.ipynb", as_version=4)
    (cell,) = [cell for cell in lesson.cells if "in the VAE's latent space" in cell.source]
    data = cell.outputs[0].data  # by plotting.show, or by IPython
    found = re.search('src="data:image/png;base64,([^"]+)"', data.get("text/html", ""))
    return base64.b64decode(found[1] if found else data["image/png"])


def map_of_the_course() -> bytes:
    """The map as SVG, whose text stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "map"}):
        map.draw().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


# ------------------------------------------------------------------------------------ badges


def badges() -> dict[str, str]:
    """What the badges say that need no address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    licence = (ROOT / "LICENSE").read_text("utf-8").splitlines()[0].removesuffix(" License")
    return {
        "Python": project["requires-python"].removeprefix(">=") + " or newer",
        "Licence": licence,
    }


def badge(label: str, value: str) -> str:
    """A badge as SVG."""
    left, right = (round(6.1 * len(text)) + 12 for text in (label, value))
    style = 'font-family="Verdana, sans-serif" font-size="11" fill="#fff"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img">
<title>{label}: {value}</title>
<rect width="{left + right}" height="20" rx="3" fill="#444"/>
<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right - 3}z" fill="#0072b2"/>
<text x="6" y="14" textLength="{left - 12}" {style}>{label}</text>
<text x="{left + 6}" y="14" textLength="{right - 12}" {style}>{value}</text>
</svg>
"""


def with_address(readme: str, url: str) -> str:
    """The README with the badges of a repository's address, or of none."""
    shown = [
        f"[![{label}: {value}](course/figures/badge-{label.lower()}.svg)]({LED_TO[label]})"
        for label, value in badges().items()
    ]
    if url:
        tests = f"{url}/actions/workflows/test.yml"
        opens = online.links(url, min((ROOT / "course" / "exercises").glob("*.ipynb")).stem)
        shown += [
            f"[![Tests]({tests}/badge.svg)]({tests})",
            "[![Open lesson 01 in Colab](https://colab.research.google.com/assets/"
            f"colab-badge.svg)]({opens['Colab']})",
            f"[![Open lesson 01 in Binder](https://mybinder.org/badge_logo.svg)]({opens['Binder']})",
        ]
    return CLONED.sub(url or NOWHERE, BADGES.sub("\n".join([*shown, ""]), readme))


# ------------------------------------------------------------------- a check, as a moving picture

STYLE = """\
text { font: 13px/1 "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #222; }
.says { font: 14px/1 "DejaVu Sans", Verdana, system-ui, sans-serif; }
.bold { font-weight: bold; }
"""
MOVES = """\
.step { animation: 18s linear 3 both; }
"""
STARTS = (0, 12, 26, 48, 62, 76)  # of each step, in per cent of the time
WIDTH, LINE = 760, 19


def check_in_steps() -> list[tuple[str, str]]:
    """What a reader sees on the START page: code, or what the check prints today, in order."""
    cells = [c.source for c in jupytext.read(ROOT / "course" / "START.py").cells]
    (answer,) = [source for source in cells if source.startswith("def share_of_zeros")]
    (call,) = [source for source in cells if source.startswith("vaelab.check(")]
    name = ast.parse(call, mode="eval").body.args[0].value
    exercise, steps = find(name), []
    for source in (answer, answer.replace(MISTAKE, RIGHT)):
        names = {"np": np}
        exec(source, names)
        cases = exercise.cases(0)
        verdict = exercise.judge(cases, exercise.outcomes(names["share_of_zeros"], cases))
        kind = "right" if verdict.passed else "wrong"
        # the second time, only the line that was changed
        steps += [("code", source.splitlines()[-1] if steps else source), ("code", call)]
        steps += [(kind, box.as_text(verdict))]
    return steps


def check_alt() -> str:
    """What the moving picture shows, in words that replace it."""
    steps = check_in_steps()
    (wrong,) = [text for kind, text in steps if kind == "wrong"]
    hint = wrong.splitlines()[1]
    return (
        f"An exercise is answered with a mistake. Its check says: “{hint}” The line is corrected, "
        "and the check passes."
    )


def check_as_svg(moving: bool) -> str:
    """The steps below each other; if moving, one after another, three times, and then all stay."""
    body, style, y = [], STYLE + moving * MOVES, 10
    for i, ((kind, text), start) in enumerate(zip(check_in_steps(), STARTS, strict=True)):
        lines = text.splitlines()
        height = LINE * len(lines) + 14
        colour = {"code": "#bbb"}.get(kind) or box.COLOURS[kind]
        fill = "#f7f7f7" if kind == "code" else "#fff"
        shapes = [
            f'<rect x="10" y="{y}" width="{WIDTH - 20}" height="{height}" rx="4" fill="{fill}" '
            f'stroke="{colour}"/>'
        ]
        if kind != "code":
            shapes.append(f'<rect x="10" y="{y}" width="6" height="{height}" fill="{colour}"/>')
        for n, line in enumerate(lines):
            look = "" if kind == "code" else ' class="says bold"' if n == 0 else ' class="says"'
            at = f'x="26" y="{y + LINE * (n + 1)}"'
            shapes.append(f'<text {at}{look} xml:space="preserve">{escape(line)}</text>')
        body.append(f'<g class="step s{i}">\n' + "\n".join(shapes) + "\n</g>")
        if moving and start:
            appears = f"0%, {start}% {{ opacity: 0; }} {start + 2}%, 100% {{ opacity: 1; }}"
            style += f".s{i} {{ animation-name: s{i}; }} @keyframes s{i} {{ {appears} }}\n"
        y += height + (14 if kind == "wrong" else 6)
    size = f'width="{WIDTH}" height="{y + 4}" viewBox="0 0 {WIDTH} {y + 4}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(check_alt())}</title>",
            f"<style>\n{style}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    matplotlib.use("Agg")
    FIGURES.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture())
    MAP.write_bytes(map_of_the_course())
    for moving, path in CHECK.items():
        path.write_text(check_as_svg(moving), "utf-8")
    for label, value in badges().items():
        (FIGURES / f"badge-{label.lower()}.svg").write_text(badge(label, value), "utf-8")
    text = README.read_text("utf-8")
    README.write_text(with_address(text, online.repository(ROOT)), "utf-8")
