"""Cells in a file: the same answers as in memory, in memory that does not grow with the file."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata.io import read_elem, sparse_dataset
from scipy import sparse

from vaelab import VAE, Cells, fit, training
from vaelab._internal import matrices, on_disk
from vaelab._internal.on_disk import OnDisk, UnreadableError
from vaelab.training import TrainingError

# anndata 0.12 writes version 2 unless told otherwise, and 0.13 deprecates the way to tell it.
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data")

N_CELLS, N_GENES = 300, 12
KINDS = ["h5ad sparse", "h5ad dense", "h5ad gzip", "zarr sparse", "zarr dense"]


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    """Files are read in many parts, epochs in many mixtures, runs of rows apart."""
    monkeypatch.setattr(matrices, "AT_ONCE", 70 * N_GENES)
    monkeypatch.setattr(training, "MIXED", 64)
    monkeypatch.setattr(on_disk, "NEAR", 150)


def some_counts():
    x = np.random.default_rng(0).poisson(0.3, size=(N_CELLS, N_GENES)).astype(np.float32)
    x[:, 0] += 1
    return x


def write(path, kind, x, **layers):
    """A file, an AnnData that leaves its matrix there, and the same in memory."""
    suffix, how = kind.split()
    store = np.asarray if how == "dense" else sparse.csr_matrix
    obs = pd.DataFrame(
        {"type": list("ab") * (len(x) // 2), "experiment": list("cdd") * (len(x) // 3)},
        index=[f"cell {i}" for i in range(len(x))],
    )
    adata = anndata.AnnData(store(x), obs=obs, layers={n: store(m) for n, m in layers.items()})
    path = Path(tempfile.mkdtemp(dir=path)) / f"cells.{suffix}"
    if suffix == "h5ad":
        adata.write_h5ad(path, compression="gzip" if how == "gzip" else None)
        return path, anndata.read_h5ad(path, backed="r"), adata
    adata.write_zarr(path, chunks=(50, 5))
    return path, left_there(zarr.open(path, mode="r")), adata


def left_there(file):
    def matrix(stored):
        return stored if isinstance(stored, zarr.Array | h5py.Dataset) else sparse_dataset(stored)

    return anndata.AnnData(
        X=matrix(file["X"]),
        obs=read_elem(file["obs"]),
        var=read_elem(file["var"]),
        layers={name: matrix(file["layers"][name]) for name in file["layers"]},
    )


def both(path, kind, **arguments):
    """The same cells in a file and in memory."""
    _, adata, here = write(path, kind, some_counts())
    there = Cells.from_anndata(adata, label="type", batch="experiment", **arguments)
    assert isinstance(there.x, OnDisk)
    return there, Cells.from_anndata(here, label="type", batch="experiment", **arguments)


def assert_same_cells(a, b):
    a, b = a.to(dtype=torch.float64), b.to(dtype=torch.float64)
    for name in ("x", "library", "batch", "label"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.observed is None) == (b.observed is None)
    assert a.observed is None or torch.equal(a.observed, b.observed)
    assert (a.gene_names, a.batch_names, a.label_names) == (
        b.gene_names, b.batch_names, b.label_names,
    )  # fmt: skip


def some_model(**configuration):
    configuration = {"n_latent": 2, "n_hidden": 6, "likelihood": "nb"} | configuration
    return VAE(N_GENES, **configuration)


def quick(model, cells, **arguments):
    return fit(model, cells, **{"epochs": 3, "batch_size": 16, "progress": False} | arguments)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def at_step(model, step, do):
    elbo, steps = model.elbo, []

    def changed(cells, **arguments):
        steps.extend([None] * model.training)
        if model.training and len(steps) == step:
            do()
        return elbo(cells, **arguments)

    model.elbo = changed
    return model


def ctrl_c():
    raise KeyboardInterrupt


# --------------------------------------------------------------------------- the same as in memory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(2, 9),
        slice(None, None, -7),
        slice(295, 400),
        slice(400, 500),
        -1,
        [250, 3, 3, -2, 120],
        np.array([]),
        np.arange(N_CELLS) % 5 == 0,
        np.zeros(N_CELLS, dtype=bool),
        torch.arange(N_CELLS) > 280,
        torch.tensor([17]),
        np.random.default_rng(0).permutation(N_CELLS),
    ],
    ids=lambda rows: str(rows)[:20],
)
def test_rows_of_a_file_are_those_in_memory(tmp_path, kind, rows):
    there, here = both(tmp_path, kind)
    part = there[rows]
    assert isinstance(part.x, OnDisk)
    assert_same_cells(part, here[rows])
    assert_same_cells(part.in_memory(), here[rows])
    assert_same_cells(part[1:][::-1], here[rows][1:][::-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_one_sampler_gives_the_same_minibatches_and_parameters(tmp_path, kind, block_size):
    there, here = both(tmp_path, kind)
    rows = np.arange(N_CELLS)[np.arange(N_CELLS) % 10 > 0]
    epochs = [
        training.minibatches(x, rows, 16, block_size, np.random.default_rng(5))
        for x in (there, here)
    ]
    for a, b in zip(*epochs, strict=True):
        assert_same_cells(a, b)
    runs = []
    for x in (there, here):
        model = some_model(dropout_rate=0.2)
        history = quick(model, x, block_size=block_size)
        runs.append((history.frame.drop(columns="seconds"), state(model)))
    assert runs[0][0].equals(runs[1][0])
    assert same(runs[0][1], runs[1][1])


@pytest.mark.parametrize(("kind", "block_size"), [("h5ad sparse", 16), ("zarr sparse", 64)])
def test_a_file_is_read_in_blocks_unless_told_otherwise(tmp_path, kind, block_size):
    there, here = both(tmp_path, kind)
    models = some_model(), some_model()
    quick(models[0], there)
    quick(models[1], here, block_size=block_size)
    assert same(state(models[0]), state(models[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_alike_of_cells_in_a_file(tmp_path, kind):
    there, here = both(tmp_path, kind)
    model = some_model()
    for question in (model.embed, model.reconstruct, model.elbo_per_cell):
        np.testing.assert_array_equal(question(there), question(here))


@pytest.mark.parametrize("kind", ["h5ad sparse", "h5ad dense", "zarr sparse", "zarr dense"])
def test_a_mask_may_be_in_the_file_or_in_memory(tmp_path, kind):
    x = some_counts()
    mask = np.random.default_rng(1).random(x.shape) < 0.8
    mask[:, 0] = True
    path, adata, here = write(tmp_path, kind, x, seen=mask)
    here = Cells.from_anndata(here, observed="seen")
    if kind.startswith("h5ad"):
        assert_same_cells(Cells.from_anndata(adata, observed="seen"), here)
        adata = left_there(h5py.File(path))
    there = Cells.from_anndata(adata, observed="seen")
    assert isinstance(there.observed, OnDisk)
    assert_same_cells(there, here)
    part = there[[200, 3]].in_memory().x
    part = part.numpy() if isinstance(part, torch.Tensor) else part.toarray()
    np.testing.assert_array_equal(part, (x * mask)[[200, 3]])
    for wrong in (adata.X, adata[:9].layers["seen"]):
        with pytest.raises(ValueError, match="True and False of x's shape"):
            Cells.from_array(adata.X, observed=wrong)


def test_numbers_of_any_kind_become_the_same_floats(tmp_path):
    for dtype in ("uint8", "int64", "float64"):
        _, adata, here = write(tmp_path, "h5ad sparse", some_counts().astype(dtype))
        there = Cells.from_anndata(adata)
        assert_same_cells(there, Cells.from_anndata(here))
        expected = np.float64 if dtype == "float64" else np.float32
        assert there[:3].in_memory().x.dtype == expected


def test_entries_in_pieces_and_out_of_order_are_added_up(tmp_path):
    x = some_counts()
    whole = sparse.csr_matrix(x)
    pieces = np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), whole.indptr * 2
    with h5py.File(tmp_path / "x.h5", "w") as file:
        anndata.io.write_elem(file, "X", sparse.csr_matrix(pieces, shape=x.shape))
    there = Cells.from_array(sparse_dataset(h5py.File(tmp_path / "x.h5")["X"]))
    there.require_domain("counts")
    np.testing.assert_array_equal(there.to().x, x)


# ------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ["h5ad sparse", "zarr dense"])
def test_choosing_cells_reads_nothing(tmp_path, kind, monkeypatch):
    there, _ = both(tmp_path, kind)
    monkeypatch.setattr(on_disk, "_take", lambda *_: pytest.fail("it was read"))
    part = there[::2][[5, 3, 1]]
    assert (part.n_cells, part.n_genes, len(part.labels)) == (3, N_GENES, 3)
    part.require_domain("counts")  # known since the cells were made
    assert "3 cells" in repr(part)


def test_an_epoch_reads_whole_blocks_and_not_cell_by_cell(tmp_path, monkeypatch):
    there, _ = both(tmp_path, "h5ad dense")
    take, runs = on_disk._take, []
    monkeypatch.setattr(on_disk, "_take", lambda s, r: (runs.append(r), take(s, r))[1])
    quick(some_model(), there, epochs=1)
    # 270 cells in five mixtures of four blocks at most, whose first and last may be cut in two;
    # the held-out cells between them are read over, or would each begin a reading.
    assert len(runs) == 6
    assert all(len(r) <= 6 for r in runs[:5])


CHILD = """
import resource, sys, h5py
from vaelab import VAE, Cells, fit, training
from vaelab._internal import matrices

def train(x):
    model = VAE(1000, n_hidden=8, likelihood="poisson")
    fit(model, x, epochs=1, batch_size=256, progress=False)
    return model.embed(x)

def peak():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)

matrices.AT_ONCE, training.MIXED = 2**20, 512
x = h5py.File(sys.argv[1])["X"]
train(Cells.from_array(x[:2000]))
before = peak()
train(Cells.from_array(x))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts memory otherwise")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """60,000 cells, 60 MiB as they are stored and 240 MiB as floats."""
    part = np.random.default_rng(0).poisson(0.1, size=(2000, 1000)).astype(np.uint8)
    part[:, 0] = 1
    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("X", (60_000, 1000), "uint8")
        for start in range(0, len(x), len(part)):
            x[start : start + len(part)] = part
    folder = str(Path(__file__).parent.parent)
    child = [sys.executable, "-c", CHILD, str(tmp_path / "x.h5")]
    out = subprocess.run(child, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert float(out) < 100  # 27 to 37 in five runs


# -------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_refused_with_its_place_in_the_file(tmp_path, kind):
    x = some_counts()
    x[211, 3] = np.inf
    _, adata, _ = write(tmp_path, kind, x)
    with pytest.raises(ValueError, match=r"x holds inf \(cell 'cell 211', gene '3'\)"):
        Cells.from_anndata(adata)
    x[211, 3], x[250, 4] = 1.5, -2
    _, adata, _ = write(tmp_path, kind, x)
    there = Cells.from_anndata(adata)
    there[:200].require_domain("counts")
    with pytest.raises(ValueError, match=r"1\.5 \(row 211, gene '3'\): negative values"):
        there.require_domain("counts")
    with pytest.raises(ValueError, match=r"between 0 and 1, but x holds .* \(row \d+, gene"):
        there.require_domain("unit interval")
    x[[150, 211]] = 0
    _, adata, _ = write(tmp_path, kind, x)
    with pytest.raises(ValueError, match=r"Cell 'cell 150' is empty.*2 cells in all"):
        Cells.from_anndata(adata)


def test_silent_genes_of_a_file_are_warned_of(tmp_path):
    x = some_counts()
    x[:, 2] = 0
    x[10:, 3] = 0
    x[0, 3] = 1
    _, adata, _ = write(tmp_path, "h5ad sparse", x)
    with pytest.warns(UserWarning, match="1 of 12 genes are zero in every cell"):
        Cells.from_anndata(adata)


def test_a_file_of_genes_and_a_matrix_of_dask_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        anndata.io.write_elem(file, "X", sparse.csc_matrix(some_counts()))
        with pytest.raises(ValueError, match=r"gene by gene \(CSC\).*to_memory"):
            Cells.from_anndata(anndata.AnnData(X=sparse_dataset(file["X"])))
    matrix = type("Array", (), {"__module__": "dask.array.core", "shape": (3, 2)})()
    with pytest.raises(ValueError, match=r"computed by dask.*compute"):
        Cells.from_array(matrix)


def test_a_part_of_a_backed_anndata_is_taken_as_it_comes(tmp_path):
    _, adata, _ = write(tmp_path, "h5ad sparse", some_counts())
    part = Cells.from_anndata(adata[20:40, [3, 0]])
    np.testing.assert_array_equal(part.to().x, some_counts()[20:40][:, [3, 0]])


# ------------------------------------------------------------- stops, checkpoints, dying files


@pytest.mark.parametrize("step", [1, 10, 18, 25])
def test_an_interrupted_run_on_a_file_ends_as_the_uninterrupted_one_in_memory(tmp_path, step):
    there, here = both(tmp_path, "h5ad sparse")
    whole = some_model(dropout_rate=0.2)
    quick(whole, here, block_size=16)
    checkpoint = tmp_path / "run"
    stopped = quick(
        at_step(some_model(dropout_rate=0.2), step, ctrl_c), there, checkpoint=checkpoint
    )
    assert "Ctrl-C" in stopped.stopped
    model = some_model(dropout_rate=0.2)
    quick(model, there, checkpoint=checkpoint)
    assert same(state(model), state(whole))


def test_the_checkpoint_of_other_cells_in_a_file_is_refused(tmp_path):
    there, _ = both(tmp_path, "h5ad sparse")
    quick(some_model(), there, checkpoint=tmp_path / "run")
    with pytest.raises(TrainingError, match="cells was"):
        quick(some_model(), there[::-1], checkpoint=tmp_path / "run")
    x = some_counts()
    x[-1, 3] += 1
    _, adata, _ = write(tmp_path, "h5ad sparse", x)
    others = Cells.from_anndata(adata, label="type", batch="experiment")
    with pytest.raises(TrainingError, match="cells was"):
        quick(some_model(), others, checkpoint=tmp_path / "run")


def close(path, adata):
    adata.file.close()


def truncate(path, adata):
    for file in (path / "X").rglob("*"):
        if file.is_file() and not file.name.startswith((".z", "zarr.")):
            file.write_bytes(file.read_bytes()[:9])


def remove(path, adata):
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("kind", "lose"),
    [
        ("h5ad sparse", close),
        ("h5ad dense", close),
        ("zarr sparse", truncate),
        ("zarr dense", truncate),
        ("zarr sparse", remove),
        ("zarr dense", remove),
    ],
)
def test_a_file_that_dies_ends_training_with_the_model_so_far(tmp_path, kind, lose):
    path, adata, here = write(tmp_path, kind, some_counts())
    there, here = Cells.from_anndata(adata), Cells.from_anndata(here)
    model, before = some_model(), state(some_model())
    at_step(model, 30, lambda: lose(path, adata))  # the second epoch: 17 steps each
    with pytest.raises(
        TrainingError, match=r"(cannot be read|changed).* in epoch 2 of 3; the model"
    ) as caught:
        quick(model, there)
    assert len(caught.value.history.records) == 1
    assert not model.training
    assert not same(state(model), before)
    assert np.isfinite(model.elbo_per_cell(here)).all()
    with pytest.raises(UnreadableError, match=r"cells.* cannot be read|The file has changed"):
        there[:3].to()


def test_indices_that_lead_outside_are_refused_and_do_not_end_the_process(tmp_path):
    path, adata, _ = write(tmp_path, "h5ad sparse", some_counts())
    adata.file.close()
    with h5py.File(path, "a") as file:
        file["X"]["indices"][700] = 10**9
    with pytest.raises(UnreadableError, match=r"cells\.h5ad cannot be read \("):
        Cells.from_anndata(anndata.read_h5ad(path, backed="r"))
