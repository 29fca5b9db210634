"""The README's first page does what it says."""

import re
from pathlib import Path

import matplotlib
import pytest

import vaelab

from . import readme_picture

README = readme_picture.ROOT / "README.md"


def test_its_picture_is_that_of_lesson_06():
    assert readme_picture.PICTURE.read_bytes() == readme_picture.picture()


def test_its_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (readme_picture.ROOT / link).exists(), link


@pytest.mark.filterwarnings("ignore")
def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    vaelab.simulate.dataset(n_cells=200, n_genes=150, n_batches=2).write_h5ad("mine.h5ad")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    code = "".join(blocks)
    monkeypatch.setattr(vaelab.training, "EPOCHS", (2, 2))
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["adata"].obsm["X_vae"].shape == (200, 10)
    assert Path("mine.safetensors").exists()
    assert names["gmvae"].cluster(names["cells"]).shape == (200, 8)
    assert names["scanvi"].predict(names["cells"]).shape == (200, 5)
    assert names["mapped"].predict(names["query"]).shape == (200, 5)
