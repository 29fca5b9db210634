"""Each lesson's pair of files: the .py is the master, the .ipynb what it gave when run.

That a notebook runs, and gives the same again, is nbval's part: pytest --nbval course.
"""

import json
import re
from pathlib import Path

import jupytext
import nbformat
import printed
import pytest
import site_frames
from jupytext.compare import compare_notebooks

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "course").glob("[0-9]*.py"))
UNCOMPARED = {"nbval-ignore-output", "nbval-skip"}
A_MACHINES_OWN = re.compile(
    r"/(?:home|Users|root|tmp|private|var|opt|mnt)/|[A-Za-z]:\\|" + re.escape(str(ROOT))
)

pytestmark = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


def notebook_of(lesson: Path):
    path = lesson.with_suffix(".ipynb")
    assert path.exists(), f"{path.name} is missing; make it with: make lessons"
    return nbformat.read(path, as_version=4)


def outputs_of(lesson: Path):
    cells = [cell for cell in notebook_of(lesson).cells if cell.cell_type == "code"]
    return [(cell, output) for cell in cells for output in cell.outputs]


def test_the_pair_agrees(lesson):
    compare_notebooks(
        notebook_of(lesson), jupytext.read(lesson), "py:percent", allow_expected_differences=True
    )


def test_every_cell_was_run(lesson):
    """nbval compares no output of a cell without a number."""
    for cell in notebook_of(lesson).cells:
        if cell.cell_type == "code" and not UNCOMPARED & {*cell.metadata.get("tags", ())}:
            assert cell.execution_count is not None, f"not run; make lessons:\n{cell.source}"


def test_outputs_hold_no_error_and_no_warning(lesson):
    for cell, output in outputs_of(lesson):
        assert output.output_type != "error", f"{output.ename} from:\n{cell.source}"
        assert output.get("name") != "stderr", f"{output.text}\nfrom:\n{cell.source}"


def test_equal_rows_keep_one_order_on_each_processor(lesson):
    """numpy's default sort puts ties in an order that depends on the processor's instructions."""
    calls = re.findall(r"\.sort_values\([^()]*\)", lesson.read_text(encoding="utf-8"))
    assert not [call for call in calls if 'kind="stable"' not in call]


def test_outputs_hold_no_path_of_one_machine(lesson):
    for cell, output in outputs_of(lesson):
        data = {"text/plain": output.get("text", ""), **output.get("data", {})}
        for kind, text in data.items():
            found = kind.startswith("text/") and A_MACHINES_OWN.search("".join(text))
            assert not found, f"{found[0]!r} printed by:\n{cell.source}"


def test_the_notebook_is_small(lesson):
    size = lesson.with_suffix(".ipynb").stat().st_size
    assert size < 3e6, f"{size / 1e6:.1f} MB; figures as PNG at a low dpi take less"


def test_it_opens_with_its_objectives(lesson):
    opening = notebook_of(lesson).cells[:6]  # a picture or a puzzle may come first
    assert opening[0].cell_type == "markdown"
    assert any("**objectives.**" in c.source.lower() for c in opening if c.cell_type == "markdown")


def test_a_formula_in_a_quote_stands_on_one_line(lesson):
    """JupyterLab reads the > of a quoted second line into the formula (jupyterlab#16755)."""
    for cell in jupytext.read(lesson).cells:
        for formula in re.findall(r"\$\$.*?\$\$", cell.source, re.S):
            assert "\n>" not in formula, formula


def test_colours_are_imported_by_their_names(lesson):
    for line in lesson.read_text(encoding="utf-8").splitlines():
        assert not re.search(r",.*=\s*plotting\.COLOURS\s*$", line), (
            f"{line}\nthe order may change: from vaelab.plotting import BLUE"
        )


# --------------------------------------------------------------------------------- their form


def test_each_picture_has_alternative_text(lesson):
    for cell, output in outputs_of(lesson):
        data = output.get("data", {})
        assert "image/png" not in data, f"no plotting.show(alt) at the end of:\n{cell.source}"
        html = data.get("text/html", "")
        if printed.PICTURE in html:
            assert re.search(r'<img alt="[^"]+"', html), f"no alternative text:\n{cell.source}"
        elif "application/vnd.jupyter.widget-view+json" in data:
            pytest.fail(
                f"where no kernel runs, no picture stands for the widget of:\n{cell.source}"
            )


def test_pictures_come_from_plotting_show(lesson):
    text = lesson.read_text(encoding="utf-8")
    assert "plt.show(" not in text, "use plotting.show(alt), which has alternative text"


def test_figures_fit_the_page(lesson):
    text = lesson.read_text(encoding="utf-8")
    widths = [float(width) for width in re.findall(r"figsize=\(\s*([\d.]+)", text)]
    assert max(widths, default=0) <= 9.5, f"the widest figsize is {max(widths)}; 9.5 fits"


def test_the_state_of_widgets_is_not_stored(lesson):
    """Viewers without a kernel would try to show it instead of the picture."""
    assert "widgets" not in notebook_of(lesson).metadata, (
        "delete metadata.widgets and run: make lessons"
    )


def test_it_ends_with_what_comes_next(lesson):
    last = notebook_of(lesson).cells[-1]
    assert last.cell_type == "markdown" and re.search(r"(?m)^[#*> ]*Next\b", last.source)


def test_the_site_moves_the_widgets_of_today(lesson):
    """The site has a picture for each position of a widget: tests/site_frames.py draws them."""
    drawn = sorted(site_frames.FRAMES.glob(f"{lesson.stem}_*/widget.json"))
    keys = [json.loads(path.read_text(encoding="utf-8"))["key"] for path in drawn]
    assert keys == site_frames.keys(notebook_of(lesson))
