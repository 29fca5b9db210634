"""Data, labels, arguments and calls as users bring them: the right answer, or one sentence."""

import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from scipy import sparse

import vaelab
from vaelab import SCANVI, SCVI, VAE, Cells, fit, metrics, select_genes, simulate, to_counts
from vaelab._internal import checkpoints, matrices
from vaelab._internal.on_disk import OnDisk
from vaelab.training import TrainingError

N_CELLS, N_GENES = 60, 20


def some_adata(seed=0, n_cells=N_CELLS):
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n_cells)
    x = rng.poisson(rng.gamma(1, 2, (3, N_GENES))[types]).astype(np.float32)
    x[:, 0] += 1
    obs = pd.DataFrame(
        {"type": [f"t{k}" for k in types], "batch": [f"b{i % 2}" for i in range(n_cells)]},
        index=[f"c{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return anndata.AnnData(sparse.csr_matrix(x), obs, var)


def of(adata=None, **columns):
    return Cells.from_anndata(some_adata() if adata is None else adata, **columns)


def fitted(kind=SCVI, cells=None, **options):
    cells = of(batch="batch", label="type") if cells is None else cells
    if issubclass(kind, SCVI):
        options |= {"n_batches": len(cells.batch_names)}
    if kind is SCANVI:
        options |= {"n_labels": len(cells.label_names)}
    model = kind(N_GENES, n_latent=2, n_hidden=8, **options)
    fit(model, cells, epochs=1, progress=False)
    return model, cells


# ---------------------------------------------------------------------- columns of obs and names


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 1, 2],
        [1.0, 2.0, 1.0, 2.0],
        ["1", "2", "1", "2"],
        [1, "2", 1.0, b"2"],
        pd.Categorical([1.0, 2.0, 1.0, 2.0], categories=[3.0, 2.0, 1.0]),
        pd.array([1, 2, 1, 2], dtype="Int64"),
        pd.array(["1", "2", "1", "2"], dtype="string"),
    ],
)
def test_one_and_its_text_are_one_name(values):
    assert Cells.from_array(np.ones((4, 3)), batch=values).batch_names == ("1", "2")


@pytest.mark.parametrize("n_missing", [0, 1])
def test_a_missing_value_does_not_change_the_names_of_the_others(n_missing):
    label = pd.Series([1, 2, 1, 2][: 4 - n_missing] + [None] * n_missing)
    cells = Cells.from_array(np.ones((4, 3)), label=label)
    assert cells.label_names == ("1", "2")
    assert (cells.label < 0).sum() == n_missing


def test_masked_entries_of_a_column_are_missing():
    masked = np.ma.array(["a", "b", "a", "b"], mask=[0, 0, 1, 0])
    assert Cells.from_array(np.ones((4, 3)), label=masked).label.tolist() == [0, 1, -1, 1]
    with pytest.raises(ValueError, match="Cell 2 has no batch"):
        Cells.from_array(np.ones((4, 3)), batch=masked)
    with pytest.raises(ValueError, match="The library of cell 2 is nan"):
        Cells.from_array(np.ones((4, 3)), library=np.ma.array([1.0] * 4, mask=[0, 0, 1, 0]))


@pytest.mark.parametrize("argument", ["label", "batch", "library"])
@pytest.mark.parametrize("columns", [["batch", "type"], ("batch", "type"), pd.Series(["a"] * 60)])
def test_several_columns_are_refused_with_the_way_to_join_them(argument, columns):
    with pytest.raises(TypeError, match=r"one column of adata\.obs is needed, not a .*Join"):
        of(**{argument: columns})


@pytest.mark.parametrize("names", [0, [0], [0, 1], np.array([0, 1]), 0.0, "0", pd.Index(["1"])])
def test_a_batch_may_be_asked_for_as_it_is_in_the_column(names):
    adata = some_adata()
    adata.obs["batch"] = np.arange(N_CELLS) % 2
    model, cells = fitted(cells=of(adata, batch="batch"))
    as_text = [str(int(n)) for n in np.atleast_1d(np.asarray(names, dtype=object))]
    np.testing.assert_array_equal(
        model.normalized_expression(cells, batch=names, n_samples=1),
        model.normalized_expression(cells, batch=as_text, n_samples=1),
    )
    np.testing.assert_array_equal(model.generate(3, batch=1), model.generate(3, batch="1"))
    assert cells.named([1, 0]).batch.tolist() == (1 - cells.batch).tolist()


# -------------------------------------------------------------------------------------- labels

MARKS = ["Unknown", "UNKNOWN", " unknown", "NA", "nan", "", "Unassigned", "unlabeled", "None"]


@pytest.mark.parametrize("mark", MARKS)
def test_a_label_that_looks_like_no_label_is_not_taken_in_silence(mark):
    adata = some_adata()
    adata.obs["type"] = np.where(np.arange(N_CELLS) < 20, adata.obs["type"], mark)
    with pytest.raises(ValueError, match=f"No label is called 'unknown', but there is {mark!r}"):
        of(adata, label="type", unlabelled="unknown")
    with pytest.warns(UserWarning, match=rf"{mark!r} is taken as a cell type\. .*={mark!r}"):
        assert mark in of(adata, label="type").label_names
    cells = of(adata, label="type", unlabelled=mark)
    assert cells.label_names == ("t0", "t1", "t2")
    assert (cells.label < 0).sum() == 40


def test_several_names_may_mean_unlabelled():
    label = ["a", "Unknown", "NA", "b", None]
    cells = Cells.from_array(np.ones((5, 3)), label=label, unlabelled=["Unknown", "NA", "?"])
    assert cells.label.tolist() == [0, -1, -1, 1, -1]
    with pytest.warns(UserWarning, match=r"'NA' is taken .*unlabelled=\['Unknown', 'NA'\]"):
        Cells.from_array(np.ones((5, 3)), label=label, unlabelled="Unknown")


def test_a_mark_that_no_cell_has_is_said():
    with pytest.raises(ValueError, match="No label is called 'T0', but there is 't0'"):
        Cells.from_array(np.ones((2, 3)), label=["t0", "neuron"], unlabelled="T0")
    with pytest.warns(UserWarning, match="every cell with a value counts as labelled"):
        assert of(label="type", unlabelled="unknown").label_names == ("t0", "t1", "t2")
    Cells.from_array(np.ones((2, 3)), label=[None, None], unlabelled="unknown")  # says nothing


def test_a_batch_called_nan_is_said():
    batch = pd.Series(["a", np.nan, "b"], dtype=object).map(str)  # as after astype(str)
    with pytest.warns(UserWarning, match="One of the batches is called 'nan'"):
        Cells.from_array(np.ones((3, 3)), batch=batch)


def partly(adata, share=0.6):
    known = np.random.default_rng(0).random(adata.n_obs) < share
    adata.obs["partly"] = np.where(known, None, adata.obs["type"].to_numpy(object))
    return adata


def test_unknown_cells_are_never_scored_as_a_type():
    adata = partly(some_adata(n_cells=300))
    number = adata.obs["type"].str[1].astype(int)
    z = np.eye(3)[number] + np.random.default_rng(0).normal(0, 0.05, (300, 3))
    cells = of(adata, label="partly")
    known = (cells.label >= 0).numpy()
    clusters = np.where(known, number, np.arange(300))
    masked = np.ma.array(cells.labels, mask=~known)
    for labels in (
        cells.labels,
        adata.obs["partly"],
        adata.obs["partly"].astype("category"),
        masked,
    ):
        assert metrics.clustering_scores(z, labels)["asw"] > 0.9
        assert metrics.average_silhouette_width(z, labels) > 0.9
        assert metrics.adjusted_rand_index(labels, clusters) == 1
        assert metrics.normalized_mutual_information(labels, clusters) == pytest.approx(1)
    with pytest.warns(UserWarning, match="'Unknown' is scored as a cell type"):
        metrics.clustering_scores(z, np.where(known, cells.labels, "Unknown"))
    with pytest.raises(ValueError, match="3 labels for 300 cells"):
        metrics.average_silhouette_width(z, ["a", "b", "c"])


def test_scanvi_keeps_the_names_of_its_types(tmp_path):
    model, _ = fitted(SCANVI, of(label="type"))
    query = of(some_adata(seed=2))
    fit(model, query, epochs=1, progress=False)
    assert model.label_names == ("t0", "t1", "t2")
    other = of(some_adata(seed=3), label="type")
    other = replace(other, label_names=("astrocyte", "neuron", "t0"))
    fit(model, other.unlabelled(), epochs=1, progress=False)
    loaded = SCANVI.load(model.save(tmp_path / "m"))
    for kept in (model, loaded):
        assert kept.label_names == ("t0", "t1", "t2")
        with pytest.raises(ValueError, match="does not know 'astrocyte'"):
            fit(kept, other, epochs=1, progress=False)
        with pytest.raises(ValueError, match="does not know 'astrocyte'"):
            kept.elbo(other.to())
        with pytest.raises(ValueError, match="does not know 'astrocyte'"):
            kept.elbo_per_cell(other)


@pytest.mark.parametrize("question", ["predict", "embed", "reconstruct", "normalized_expression"])
def test_a_question_that_reads_no_label_takes_cells_of_any_label(question):
    model, cells = fitted(SCANVI, of(label="type"))
    other = replace(cells, label_names=("astrocyte", "neuron", "t0"))
    np.testing.assert_array_equal(getattr(model, question)(other), getattr(model, question)(cells))


def test_scanvi_without_any_label_is_refused():
    cells = of(label="type").unlabelled()
    model = SCANVI(N_GENES, n_labels=3, n_latent=2, n_hidden=8)
    with pytest.raises(ValueError, match="None of these cells has a label"):
        fit(model, cells, epochs=1, progress=False)
    scvi, _ = fitted(cells=cells)
    with pytest.raises(ValueError, match="None of these cells has a label"):
        SCANVI.from_scvi(scvi, cells)


@pytest.mark.parametrize("share", [0.82, 0.95])
def test_unequal_labels_are_no_unused_types(share):
    rng = np.random.default_rng(0)
    types = np.where(rng.random(600) < share, 0, rng.integers(1, 10, 600))
    x = rng.poisson(rng.gamma(1, 2, (10, N_GENES))[types]).astype(np.float32) + 1
    cells = Cells.from_array(x, label=[f"t{k}" for k in types])
    fitted(SCANVI, cells)  # warnings are errors here


def test_types_that_lost_their_cells_are_said():
    rng = np.random.default_rng(0)
    cells = Cells.from_array(rng.poisson(3, (100, N_GENES)) + 1, label=list("abcde") * 20)
    model = SCANVI(N_GENES, n_labels=5, n_hidden=8, classifier_weight=0.0, label_bound=False)
    with torch.no_grad():
        model.classifier[-1].bias[0] = 50.0
    with pytest.warns(UserWarning, match=r"uses 1 of the 5 values of c: each .* at most 1%"):
        fit(model, cells, epochs=1, progress=False)


# ------------------------------------------------------------------------------------ matrices


def test_a_masked_matrix_is_read_with_its_mask():
    x = some_adata().X.toarray()
    mask = np.random.default_rng(0).random(x.shape) < 0.1
    x_wrong = np.where(mask, -999, x)
    masked = Cells.from_array(np.ma.array(x_wrong, mask=mask))
    by_hand = Cells.from_array(x, observed=~mask)
    assert torch.equal(masked.to().x, by_hand.to().x)
    assert torch.equal(masked.observed, by_hand.observed)
    assert torch.equal(masked.library, by_hand.library)
    with pytest.raises(ValueError, match="masked array, and `observed` is given too"):
        Cells.from_array(np.ma.array(x_wrong, mask=mask), observed=~mask)
    assert Cells.from_array(np.ma.array(x)).observed is None


def test_the_names_of_a_data_frame_are_kept():
    frame = some_adata().to_df()
    assert Cells.from_array(frame).gene_names[:2] == ("g0", "g1")
    label = some_adata().obs["type"]
    assert Cells.from_array(frame, label=label).label_names == ("t0", "t1", "t2")
    with pytest.raises(ValueError, match="The rows of x and of label have different names"):
        Cells.from_array(frame, label=label[::-1])


@pytest.mark.parametrize(
    "stored_as",
    [sparse.csc_array, sparse.coo_array, sparse.lil_matrix, np.matrix, lambda x: x.astype(bool)],
)
def test_a_matrix_of_any_kind_gives_the_same_cells(stored_as):
    x = (some_adata().X.toarray() > 1).astype(np.float32) + np.eye(N_CELLS, N_GENES) * 0
    x[:, 0] = 1
    assert torch.equal(Cells.from_array(stored_as(x)).to().x, torch.as_tensor(x).float())


def test_an_anndata_without_x_names_its_layers():
    adata = some_adata()
    adata.layers["raw counts"] = adata.X
    adata.X = None
    with pytest.raises(ValueError, match=r"no matrix X; its layers are \['raw counts'\]"):
        of(adata)
    adata = some_adata()
    adata.raw = adata
    with pytest.raises(KeyError, match=r"adata\.raw\.to_adata\(\)"):
        of(adata, layer="raw")


@pytest.mark.parametrize(
    "rows", [pd.array([True, None] * 30, dtype="boolean"), ["c1"], np.array([0.0, 1.0])]
)
def test_rows_that_cannot_select_cells_are_refused_in_a_sentence(rows):
    with pytest.raises(IndexError, match="Cells are selected by numbers, a slice"):
        of()[rows]


# -------------------------------------------------------------------------- nearly whole counts


def undone_logarithm(x):
    log = anndata.AnnData(x.copy())
    sc.pp.normalize_total(log, target_sum=1e4)
    sc.pp.log1p(log)
    return (np.expm1(log.X) * x.sum(1, keepdims=True) / 1e4).astype(np.float32)


@pytest.mark.parametrize("stored_as", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_rounding_errors_of_a_logarithm_are_named_and_undone(stored_as):
    counts = some_adata().X.toarray()
    counts[3, 3] = 123_456
    x = stored_as(undone_logarithm(counts))
    said = r"holds (\d+\.\d{7,}|\d+\.9{4,}\d*).*whole up to rounding.*vaelab\.to_counts"
    with pytest.raises(ValueError, match=said):
        Cells.from_array(x).require_domain("counts")
    with pytest.raises(ValueError, match=said):
        select_genes(anndata.AnnData(x))
    before, rounded = x.copy(), to_counts(x)
    assert type(rounded) is type(x) and rounded.dtype == x.dtype
    np.testing.assert_array_equal(Cells.from_array(rounded).to().x, counts)
    assert abs(x - before).max() == 0


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda x: x * np.random.default_rng(0).uniform(0.9, 1, x.shape), r"ambient .*numpy\.rint"),
        (lambda x: x * np.linspace(0.5, 0.9, len(x))[:, None], "as after scaling"),
        (lambda x: np.log1p(x / x.sum(1, keepdims=True) * 1e4)[:, 2:9] + 0, "log-normalisation"),
        (lambda x: x - 1, "negative values"),
    ],
)
def test_fractions_are_told_apart_and_not_rounded(change, seen):
    x = change(some_adata().X.toarray()).astype(np.float32)
    x = x[(x != 0).any(1)]
    with pytest.raises(ValueError, match=seen):
        Cells.from_array(x).require_domain("counts")
    with pytest.raises(ValueError, match=r"not a whole number up to 0.01"):
        to_counts(x)


@pytest.mark.parametrize("x", [some_adata(), [["a"]], np.ones(3), None])
def test_what_cannot_be_counts_is_refused(x):
    with pytest.raises(TypeError, match="to_counts takes a matrix of numbers"):
        to_counts(x)


# ----------------------------------------------------------------------------- selection of genes


def as_array(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def many_genes(n_cells=150, n_genes=400):
    adata = simulate.dataset(n_cells, n_genes, n_batches=3, library=500.0, seed=4)
    x = adata.X.toarray() * (np.random.default_rng(0).random(n_genes) < 0.9)
    return anndata.AnnData(sparse.csr_matrix(x), adata.obs, adata.var[[]])


def by_scanpy(adata, n_genes, batch=None):
    by_hand = anndata.AnnData(adata.X.copy(), adata.obs.copy(), adata.var.copy())
    sc.pp.filter_genes(by_hand, min_cells=3)
    sc.pp.normalize_total(by_hand, target_sum=1e4)
    sc.pp.log1p(by_hand)
    sc.pp.highly_variable_genes(by_hand, n_top_genes=n_genes, batch_key=batch)
    return by_hand.var_names[by_hand.var["highly_variable"]].tolist()


@pytest.mark.parametrize("batch", [None, "batch"])
@pytest.mark.parametrize("n_genes", [30, 100, 200])
def test_genes_are_those_of_scanpy_also_in_batches(n_genes, batch):
    adata = many_genes()
    assert select_genes(adata, n_genes, batch=batch).var_names.tolist() == by_scanpy(
        adata, n_genes, batch
    )


@pytest.mark.parametrize("base", [None, 2, 10])
def test_an_old_note_of_a_logarithm_changes_no_gene(base, capsys):
    adata = many_genes()
    right = select_genes(adata, 50).var_names.tolist()
    adata.uns["log1p"] = {"base": base}
    assert select_genes(adata, 50).var_names.tolist() == right
    assert "log" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("batch", [None, "batch"])
@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("lazy", [False, True])
def test_genes_of_a_file_are_those_in_memory(tmp_path, monkeypatch, stored_as, batch, lazy):
    adata = many_genes()
    adata.X = stored_as(adata.X.toarray())
    adata.write_h5ad(tmp_path / "cells.h5ad")
    right = select_genes(adata, 50, batch=batch)
    monkeypatch.setattr(matrices, "AT_ONCE", 40 * adata.n_vars)  # read in four parts
    if lazy:
        pytest.importorskip("dask")
        pytest.importorskip("xarray")
        there = anndata.experimental.read_lazy(tmp_path / "cells.h5ad")
    else:
        there = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    read, n_read = OnDisk.read, []
    monkeypatch.setattr(OnDisk, "read", lambda x: n_read.append(len(x.rows)) or read(x))
    selected = select_genes(there, 50, batch=batch)
    assert max(n_read, default=0) <= 40  # rows in memory at once
    assert selected.var_names.tolist() == right.var_names.tolist()
    with pytest.raises(ValueError, match=r"in a file.*to_memory\(\)|dask"):
        vaelab.log_normalize(there)
    if lazy:
        return
    cells = Cells.from_anndata(selected, label="cell_type")
    assert isinstance(cells.x, OnDisk)
    assert cells.gene_names == tuple(right.var_names)
    np.testing.assert_array_equal(cells.to().x, as_array(right.X))
    half = select_genes(there[:100], 50)
    assert half.var_names.tolist() == select_genes(adata[:100], 50).var_names.tolist()
    half = Cells.from_anndata(half, label="cell_type")
    np.testing.assert_array_equal(half.to().x, as_array(adata[:100, list(half.gene_names)].X))
    model = VAE(50, n_latent=2, n_hidden=8, likelihood="nb")
    fit(model, cells, epochs=1, progress=False)
    assert model.embed(cells).shape == (150, 2)


@pytest.mark.parametrize("n_genes", [20.0, "20", None, 0, -3, True, np.nan])
def test_an_odd_number_of_genes_is_refused(n_genes):
    with pytest.raises(ValueError, match=r"n_genes is .*; it must be a whole number, at least 1"):
        select_genes(many_genes(), n_genes)


def test_genes_of_which_none_varies_are_refused():
    with pytest.raises(ValueError, match="No gene varies more than the others"):
        select_genes(anndata.AnnData(np.ones((20, 50), np.float32)), 10)


def test_a_matrix_of_half_precision_gives_the_same_genes_and_objects_are_refused():
    adata = many_genes()
    right = select_genes(adata, 50).var_names.tolist()
    x = adata.X.toarray()
    half = anndata.AnnData(x.astype(np.float16), var=adata.var)
    assert select_genes(half, 50).var_names.tolist() == right
    with pytest.raises(ValueError, match=r"dtype is object\. Convert it first"):
        select_genes(anndata.AnnData(x.astype(object)), 50)
    with pytest.raises(TypeError, match="Expected an AnnData, got a str"):
        select_genes("cells.h5ad", 50)


@pytest.mark.parametrize("min_cells", [2.5, "3", -1, None])
def test_an_odd_number_of_cells_is_refused(min_cells):
    with pytest.raises(ValueError, match=r"min_cells is .*; it must be a whole number, 0 or more"):
        select_genes(many_genes(), 10, min_cells=min_cells)


@pytest.mark.parametrize("target", [-1, 0, np.nan, np.inf, "1e4", None])
def test_an_odd_target_is_refused(target):
    with pytest.raises(ValueError, match=r"target is .*; it must be a number above 0"):
        vaelab.log_normalize(some_adata(), target=target)


# ---------------------------------------------------------------------------------- questions


@pytest.mark.parametrize("as_array", [np.asarray, torch.as_tensor, list, pd.Series])
def test_expression_at_a_library_per_cell_sums_to_it(as_array):
    model, cells = fitted(cells=of(some_adata(n_cells=N_GENES), batch="batch"))
    size = as_array(cells.library.numpy())
    expression = model.normalized_expression(cells, library=size, n_samples=2)
    np.testing.assert_allclose(expression.sum(1), cells.library, rtol=1e-5)
    shares = model.normalized_expression(cells, n_samples=2)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(expression, shares * cells.library.numpy()[:, None], rtol=1e-5)


@pytest.mark.parametrize("library", ["latent", None, -1.0, 0, np.nan, [1.0, 2.0], np.inf])
def test_a_library_that_is_none_is_refused(library):
    model, cells = fitted()
    with pytest.raises(ValueError, match=r"library is .*must be a number above 0, or one for each"):
        model.normalized_expression(cells, library=library)
    if library is not None:
        with pytest.raises(ValueError, match=r"library is .*must be a number above 0, or one for"):
            model.blank_cells(3, library=library)


def test_expression_of_some_genes_as_a_table():
    model, cells = fitted()
    whole = model.normalized_expression(cells, n_samples=2)
    table = model.normalized_expression(cells, genes=["g7", "g2"], as_frame=True, n_samples=2)
    assert table.columns.tolist() == ["g7", "g2"]
    np.testing.assert_array_equal(table, whole[:, [7, 2]])
    assert model.normalized_expression(cells, as_frame=True).columns.tolist() == [*cells.gene_names]
    with pytest.raises(ValueError, match=r"1 of the 2 genes are not among .* 'g99'"):
        model.normalized_expression(cells, genes=["g1", "g99"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
def test_log_marginal_of_many_types_stays_under_a_gigabyte():
    code = (
        "import numpy as np, vaelab; r = np.random.default_rng(0);"
        "c = vaelab.Cells.from_array(r.poisson(2, (128, {G})) + 1);"
        "vaelab.SCANVI({G}, n_labels=20).log_marginal(c, n_samples={S});"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    for G, S in ((50, 200), (2000, 30)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(G=G, S=S)], capture_output=True, check=True
        )
        assert int(done.stdout) < 1e6  # kilobytes


# ------------------------------------------------------------------------ precision and devices


def test_training_inside_autocast_and_no_grad_is_training():
    def run(context):
        model = VAE(N_GENES, n_latent=2, n_hidden=8)
        with context:
            fit(model, of(), epochs=2, progress=False)
            return model.embed(of())

    right = run(torch.enable_grad())
    for context in (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.no_grad(),
        torch.inference_mode(),
    ):
        with torch.inference_mode(False):
            np.testing.assert_array_equal(run(context), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    model, cells = fitted()
    model.to(dtype)
    for ask in (model.embed, model.elbo_per_cell, lambda _: model.generate(2)):
        with pytest.raises(ValueError, match=r"it needs float32 or float64\. Call model\.float"):
            ask(cells)


@pytest.mark.skipif(torch.cuda.is_available(), reason="device 0 is there")
def test_a_device_that_is_a_number_is_not_the_cpu():
    with pytest.raises(ValueError, match="device is 0, which cannot be used here"):
        fit(VAE(N_GENES, n_hidden=8), of(), epochs=1, progress=False, device=0)


# ----------------------------------------------------------------------------- careless calls


def test_cells_that_are_not_dense_tensors_are_refused_with_the_call():
    model, cells = fitted()
    for wrong in (cells, cells.to(dtype=torch.float64)):
        with pytest.raises(TypeError, match=r"Call cells\.to\(model\.device, model\.dtype\)"):
            model.elbo(wrong)
    model.elbo(cells.to())


@pytest.mark.parametrize("seed", [None, -1, 1.5, "0", True])
def test_a_seed_that_is_none_is_refused(seed):
    model, cells = fitted(library="latent")
    for call in (
        lambda: VAE(5, seed=seed),
        lambda: model.generate(2, seed=seed),
        lambda: model.elbo_per_cell(cells, seed=seed),
    ):
        with pytest.raises(ValueError, match=r"seed is .*; it must be a whole number from 0"):
            call()


@pytest.mark.parametrize("kind", [VAE, SCVI, vaelab.GMVAE])
@pytest.mark.parametrize("options", [{"n_layers": 0}, {"n_layers": 1.5}, {"n_hidden": 2.0}])
def test_a_size_that_is_none_is_refused(kind, options):
    options = options | ({"n_clusters": 2} if kind is vaelab.GMVAE else {})
    with pytest.raises(ValueError, match=r"(n_layers|n_hidden) is .*; it must be "):
        kind(5, **options)


def test_options_without_their_name_are_refused_in_a_sentence():
    with pytest.raises(TypeError, match=r"SCVI: .*every other option by keyword"):
        SCVI(20, 2)


def test_a_model_that_was_never_fitted_says_so():
    model = SCANVI(N_GENES, n_labels=3, n_latent=2, n_hidden=8)
    cells = of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ask in (model.embed, model.predict, model.normalized_expression):
            with pytest.raises(UserWarning, match="never fitted"):
                ask(cells)
        model.elbo_per_cell(cells)
        model.elbo(cells.to()).loss().backward()  # trained by hand
        model.predict(cells)


def test_one_seed_gives_one_result_also_in_threads():
    def run(results, k):
        model = VAE(N_GENES, n_latent=2, n_hidden=8, seed=1)
        fit(model, of(), epochs=5, progress=False, seed=3)
        results[k] = model.embed(of())

    results = {}
    threads = [threading.Thread(target=run, args=(results, k)) for k in range(3)]
    run(results, "alone")
    n = torch.get_num_threads()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(n)
    for k in range(3):
        np.testing.assert_array_equal(results[k], results["alone"])


def test_save_does_not_replace_a_model_unless_told(tmp_path, monkeypatch):
    model, _ = fitted()
    path = model.save(tmp_path / "m")
    before = path.read_bytes()
    other = SCVI(N_GENES, n_hidden=4)
    for name in ("m", "m.safetensors", "m.json"):
        with pytest.raises(FileExistsError, match="overwrite=True"):
            other.save(tmp_path / name)
    assert path.read_bytes() == before
    other.save(path, overwrite=True)
    assert SCVI.load(path).configuration["n_hidden"] == 4
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save("~/mine")
    assert (tmp_path / "mine.json").exists()
    assert SCVI.load("~/mine").gene_names == model.gene_names


# -------------------------------------------------------------------------------- going on


def test_a_finished_run_goes_on_with_more_epochs(tmp_path):
    options = {"progress": False, "checkpoint": tmp_path / "run", "kl_warmup": 3}
    model = VAE(N_GENES, n_latent=2, n_hidden=8)
    first = fit(model, of(), epochs=3, **options)
    history = fit(VAE(N_GENES, n_latent=2, n_hidden=8), of(), epochs=5, **options)
    again = fit(VAE(N_GENES, n_latent=2, n_hidden=8), of(), epochs=7, **options)
    assert [len(h.records) for h in (first, history, again)] == [3, 5, 7]
    assert again.records[:5] == history.records  # the same epochs, not trained again
    assert again.frame["kl_weight"].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1])
    with pytest.raises(TrainingError, match="epochs was 7 there and is 6 here"):
        fit(VAE(N_GENES, n_latent=2, n_hidden=8), of(), epochs=6, **options)


def test_going_on_is_as_if_it_had_not_stopped(tmp_path):
    def run(epochs, **options):
        model = VAE(N_GENES, n_latent=2, n_hidden=8)
        fit(model, of(), epochs=epochs, kl_warmup=0, progress=False, **options)
        return model.embed(of())

    run(2, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(run(5, checkpoint=tmp_path / "run"), run(5))


def test_a_full_disk_at_a_checkpoint_keeps_the_model_and_its_history(tmp_path, monkeypatch):
    write, n_written = checkpoints.write, []

    def full(run, path):
        n_written.append(1)
        if len(n_written) == 3:
            raise OSError(28, "No space left on device")
        write(run, path)

    monkeypatch.setattr(checkpoints, "write", full)
    model = VAE(N_GENES, n_latent=2, n_hidden=8)
    with pytest.raises(TrainingError, match=r"checkpoint .* cannot be written.*No space") as error:
        fit(model, of(), epochs=9, checkpoint=tmp_path / "run", progress=False)
    assert len(error.value.history.records) == 3
    assert np.isfinite(model.embed(of())).all()
