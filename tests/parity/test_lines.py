"""The lines of scvi-tools that the site names hold what it says of them."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

scvi = pytest.importorskip("scvi")
sys.path.insert(0, str(Path(__file__).parents[2] / "course" / "site"))
import terms  # noqa: E402

LINES = [line for lines in terms.SCVI_TOOLS.values() for line in lines.values()]


@pytest.mark.parametrize(("file", "line", "says"), LINES)
def test_the_line_says_it(file, line, says):
    if importlib.metadata.version("scvi-tools") != terms.TAG:
        pytest.skip(f"the lines are those of scvi-tools {terms.TAG}")
    module = Path(scvi.__file__).parent / "module" / file
    assert says in module.read_text(encoding="utf-8").splitlines()[line - 1]


def test_every_term_of_both_models_has_a_line():
    page = terms.page()
    assert page.count("github.com/scverse/scvi-tools/blob") == len(LINES)
