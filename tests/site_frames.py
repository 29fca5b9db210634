"""Draw each widget of the lessons at a grid of its controls' values, for the site: no kernel there.

Run it after a change of a widget (its lessons are run up to their last widget: some minutes):

    .venv/bin/python tests/site_frames.py [course/02_elbo.ipynb ...]
"""

import ast
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
FRAMES = ROOT / "course" / "site" / "static" / "widgets"
POSITIONS = {1: 13, 2: 7, 3: 4}  # of a slider, by the number of sliders beside each other
WIDTH = 900  # pixels
START = """
import sys
sys.path.insert(0, {tests!r})
import site_frames
import vaelab.plotting
vaelab.plotting.interactive = site_frames.Recorder({lesson!r})
"""


def keys(lesson) -> list[str]:
    """Of each widget's cell and the lesson's functions behind it: are its pictures today's?"""
    functions, found = {}, []
    for cell in lesson.cells:
        if is_widget(cell):
            named, todo = {}, [cell.source]
            while todo:
                tree = ast.parse(todo.pop())
                names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & {*functions}
                todo += [functions[name] for name in names - {*named}]
                named |= {name: functions[name] for name in names}
            text = "\n".join([cell.source, *(named[name] for name in sorted(named))])
            found.append(hashlib.sha256(text.encode()).hexdigest()[:12])
        elif cell.cell_type == "code" and not cell.source.startswith("%"):
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    functions[node.name] = ast.get_source_segment(cell.source, node)
    return found


class Recorder:
    """Stands in for ``plotting.interactive`` and writes a picture for each of its positions."""

    def __init__(self, lesson: str):
        self.lesson, self.n = lesson, 0

    def __call__(self, draw, *, alt: str, **controls) -> None:
        folder = FRAMES / f"{self.lesson}_{self.n}"
        self.n += 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        sliders = sum(not hasattr(control, "options") for control in controls.values())
        grids = {name: _grid(control, sliders) for name, control in controls.items()}
        for at in itertools.product(*(range(len(grid)) for grid in grids.values())):
            values = {name: grid[i][0] for (name, grid), i in zip(grids.items(), at, strict=True)}
            _write(draw(**values), folder / f"{'-'.join(map(str, at))}.webp")
        about = [
            {
                "name": controls[name].description or name,
                "words": [words for _, words in grid],
                "start": [value for value, _ in grid].index(controls[name].value),
                "slides": not hasattr(controls[name], "options"),
            }
            for name, grid in grids.items()
        ]
        (folder / "widget.json").write_text(json.dumps({"alt": alt, "controls": about}))


def _grid(control, sliders: int) -> list[tuple]:
    """Values of a control, its own among them, and how each is written."""
    if hasattr(control, "options"):
        pairs = [pair if isinstance(pair, tuple) else (str(pair), pair) for pair in control.options]
        return [(value, words) for words, value in pairs]
    if isinstance(control.value, bool):
        return [(False, "no"), (True, "yes")]
    values = np.linspace(control.min, control.max, POSITIONS[sliders])
    if hasattr(control, "base"):  # its limits are exponents
        values = control.base**values
    elif isinstance(control.value, int):
        values = np.unique(values.round().astype(int))
    else:
        values = control.min + control.step * np.round((values - control.min) / control.step)
    values = [value.item() for value in values]
    nearest = int(np.argmin([abs(value - control.value) for value in values]))
    values[nearest] = control.value
    return [(value, f"{value:.3g}") for value in values]


def _write(figure, path: Path) -> None:
    import matplotlib.pyplot as plt
    from PIL import Image

    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=WIDTH / figure.get_figwidth())
    plt.close(figure)
    Image.open(buffer).convert("RGB").save(path, quality=70, method=6)


def record(notebook: Path) -> None:
    """Run a lesson up to its last widget, and keep each widget's pictures."""
    import nbformat
    from nbclient import NotebookClient

    lesson = nbformat.read(notebook, as_version=4)
    at = [i for i, cell in enumerate(lesson.cells) if is_widget(cell)]
    if not at:
        return
    of_today, start = keys(lesson), START.format(tests=str(ROOT / "tests"), lesson=notebook.stem)
    cells = [nbformat.v4.new_code_cell(start), *lesson.cells[: at[-1] + 1]]
    lesson.cells = [cell for cell in cells if cell.cell_type == "code"]
    NotebookClient(lesson, timeout=600, resources={"metadata": {"path": notebook.parent}}).execute()
    for n, key in enumerate(of_today):
        folder = FRAMES / f"{notebook.stem}_{n}"
        about = json.loads((folder / "widget.json").read_text()) | {"key": key}
        (folder / "widget.json").write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n")


def is_widget(cell) -> bool:
    return cell.cell_type == "code" and "plotting.interactive(" in cell.source


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [Path(path).resolve() for path in sys.argv[1:]]
    for notebook in chosen or sorted((ROOT / "course").glob("[0-9]*.ipynb")):
        print(notebook.stem, flush=True)
        record(notebook)
