"""Selected genes and scaled layers, against scanpy called by hand and against arithmetic."""

import os
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from vaelab import Cells, log_normalize, select_genes, simulate

LAYERS = {"counts", "log_normalized", "unit_interval"}


@pytest.fixture
def adata():
    """Genes 0 to 2 are seen in 0, 1 and 2 cells."""
    adata = simulate.dataset(n_cells=120, n_genes=80, library=300.0, seed=3)
    x = adata.X.toarray()
    x[:, :3] = 0
    x[0, 1] = x[1, 2] = x[2, 2] = 50
    adata.X = sparse.csr_matrix(x)
    return adata


def assert_same(a, b):
    np.testing.assert_array_equal(as_array(a.X), as_array(b.X))
    assert type(a.X) is type(b.X)
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    assert set(a.layers) == set(b.layers)
    assert set(a.uns) == set(b.uns)


def as_array(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


@pytest.mark.parametrize("n_genes", [1, 15, 50])  # not between equal genes
def test_the_genes_are_those_that_scanpy_selects(adata, n_genes):
    by_hand = adata.copy()
    sc.pp.filter_genes(by_hand, min_cells=3)
    sc.pp.normalize_total(by_hand, target_sum=1e4)
    sc.pp.log1p(by_hand)
    sc.pp.highly_variable_genes(by_hand, n_top_genes=n_genes)
    chosen = by_hand.var_names[by_hand.var["highly_variable"]]
    assert len(chosen) == n_genes
    selected = select_genes(adata, n_genes)
    assert selected.var_names.tolist() == chosen.tolist()
    np.testing.assert_array_equal(as_array(selected.X), as_array(adata[:, chosen].X))
    # Normalised by the total over all genes, not over those selected.
    np.testing.assert_allclose(
        as_array(selected.layers["log_normalized"]), as_array(by_hand[:, chosen].X), rtol=1e-6
    )


def test_genes_in_too_few_cells_are_left_out_and_all_others_kept_if_there_are_no_more(adata):
    assert select_genes(adata, 2000).var_names.tolist() == adata.var_names[3:].tolist()
    assert select_genes(adata, 2000, min_cells=1).var_names.tolist() == adata.var_names[1:].tolist()
    assert select_genes(adata, 77).n_vars == 77


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_every_kind_of_matrix_gives_the_same_layers(adata, stored_as, dtype):
    reference = select_genes(adata, 30)
    adata.X = stored_as(adata.X.toarray().astype(dtype))
    selected = select_genes(adata, 30)
    assert set(selected.layers) >= LAYERS
    assert selected.var_names.tolist() == reference.var_names.tolist()
    np.testing.assert_array_equal(as_array(selected.X), as_array(selected.layers["counts"]))
    for layer in LAYERS:
        np.testing.assert_allclose(
            as_array(selected.layers[layer]), as_array(reference.layers[layer]), rtol=1e-5
        )
    unit = as_array(selected.layers["unit_interval"])
    assert unit.min() >= 0
    assert (unit.max(0) == 1).all()
    Cells.from_anndata(selected, layer="counts").require_domain("counts")
    Cells.from_anndata(selected, layer="unit_interval").require_domain("unit interval")


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
def test_what_is_given_to_selection_is_not_changed(adata, stored_as):
    adata.X = stored_as(adata.X.toarray())
    before = adata.copy()
    selected = select_genes(adata, 30)
    assert_same(adata, before)
    for matrix in (selected.X, selected.layers["counts"]):
        values = matrix.data if sparse.issparse(matrix) else matrix
        values[:] = 0
    assert_same(adata, before)


def test_counts_of_the_selection_are_its_own(adata):
    selected = select_genes(adata, 30)
    before = as_array(selected.layers["counts"]).copy()
    selected.X.data[:] = 0
    np.testing.assert_array_equal(as_array(selected.layers["counts"]), before)


def test_a_view_is_selected_from_as_it_is_seen(adata):
    view = adata[::2]
    selected = select_genes(view, 30)
    assert view.is_view
    assert selected.n_obs == 60
    assert selected.var_names.tolist() == select_genes(view.copy(), 30).var_names.tolist()


def test_log_normalisation_by_hand():
    adata = anndata.AnnData(np.array([[1, 0, 3], [0, 5, 5]], dtype=np.float32))
    log_normalize(adata, target=8)
    by_hand = np.log([[1 + 2, 1, 1 + 6], [1, 1 + 4, 1 + 4]])
    np.testing.assert_allclose(as_array(adata.layers["log_normalized"]), by_hand, rtol=1e-6)
    np.testing.assert_allclose(
        as_array(adata.layers["unit_interval"]), by_hand / by_hand.max(0), rtol=1e-6
    )
    np.testing.assert_array_equal(adata.X, [[1, 0, 3], [0, 5, 5]])
    assert not adata.uns


def test_each_cell_has_ten_thousand_counts_by_default(adata):
    log_normalize(adata)
    totals = np.expm1(as_array(adata.layers["log_normalized"]).astype(np.float64)).sum(1)
    np.testing.assert_allclose(totals, 1e4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
def test_silent_genes_and_empty_cells_stay_zero(adata):
    x = adata.X.toarray()
    x[5] = 0
    adata.X = x
    log_normalize(adata)
    for layer in ("log_normalized", "unit_interval"):
        values = as_array(adata.layers[layer])
        assert np.isfinite(values).all()
        assert not values[5].any()
        assert not values[:, 0].any()


def test_the_largest_value_of_each_gene_is_exactly_one():
    x = np.random.default_rng(0).poisson(5, size=(200, 300)).astype(np.float32)
    adata = anndata.AnnData(x)
    log_normalize(adata)
    assert (as_array(adata.layers["unit_interval"]).max(0) == 1).all()


@pytest.mark.parametrize("prepare", [select_genes, log_normalize])
@pytest.mark.parametrize(
    ("value", "seen"), [(-1, "-1"), (0.5, r"0\.5"), (np.nan, "nan"), (np.inf, "inf")]
)
@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
def test_what_is_no_raw_count_is_refused(adata, prepare, value, seen, stored_as):
    x = adata.X.toarray()
    x[4, 5] = value
    adata.X = stored_as(x)
    with pytest.raises(ValueError, match=rf"Raw counts .* needed in adata\.X, but it holds {seen}"):
        prepare(adata)
    assert not LAYERS & set(adata.layers)


def test_log_normalised_data_are_not_normalised_again(adata):
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    with pytest.raises(ValueError, match=r"adata\.X = adata\.layers\['counts'\]"):
        log_normalize(adata)


def test_an_anndata_without_matrix_is_refused(adata):
    adata.X = None
    with pytest.raises(ValueError, match=r"no matrix X; its layers are \['mean'\]"):
        select_genes(adata)


@pytest.mark.parametrize("n_genes", [0, -1, np.nan])
def test_a_number_of_genes_that_is_none_is_refused(adata, n_genes):
    with pytest.raises(ValueError, match=r"n_genes is .* at least 1"):
        select_genes(adata, n_genes)


def test_a_selection_without_any_gene_is_refused(adata):
    with pytest.raises(ValueError, match="No gene is seen in 1000 cells or more"):
        select_genes(adata, 10, min_cells=1000)


def test_torch_keeps_its_number_of_threads():
    """numba's, inside scanpy, would be all cores of the machine."""
    code = (
        "import torch, vaelab; torch.set_num_threads(1); adata = vaelab.simulate.dataset(50, 20);"
        "vaelab.log_normalize(adata); vaelab.metrics.leiden(adata.obsm['z']);"
        "print(torch.get_num_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.split() == [b"1"], done.stderr.decode()
