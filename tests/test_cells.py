"""Cells: what is taken from an AnnData, what is refused, and how cells are sliced."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from vaelab import Cells, simulate

N_CELLS, N_GENES = 40, 12


@pytest.fixture
def counts():
    """No empty cell, no silent gene, and zeros."""
    x = np.random.default_rng(0).poisson(1.0, size=(N_CELLS, N_GENES)).astype(np.float32)
    x[:, 0] += 1
    x[0] += 1
    return x


@pytest.fixture
def adata(counts):
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(["B", "T", "A", "B"] * 10),
            "experiment": ["second", "first"] * 20,
            "size": counts.sum(1) * 2,
        },
        index=[f"cell {i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame(index=[f"gene {g}" for g in range(N_GENES)])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


def dense(cells):
    return cells.to().x.numpy()


# ------------------------------------------------------------------------------ what is taken


@pytest.mark.parametrize(
    "stored_as",
    [
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.coo_matrix,
        sparse.csr_array,
        np.asarray,
        np.asfortranarray,
        torch.as_tensor,
        pd.DataFrame,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.uint16),
        lambda x: x.astype(np.float16),
        lambda x: sparse.csr_matrix(x, dtype=np.int32),
        lambda x: sparse.csr_matrix(x, dtype=np.float64),
    ],
)
def test_every_kind_of_matrix_gives_the_same_cells(counts, stored_as):
    cells = Cells.from_array(stored_as(counts))
    assert (cells.n_cells, cells.n_genes, len(cells)) == (N_CELLS, N_GENES, N_CELLS)
    np.testing.assert_array_equal(dense(cells), counts)
    np.testing.assert_array_equal(cells.library, counts.sum(1))
    cells.require_domain("counts")
    part = cells[3:7].to(dtype=torch.float64)
    assert part.x.dtype == part.library.dtype == torch.float64
    np.testing.assert_array_equal(part.x, counts[3:7])


def test_entries_that_a_sparse_matrix_holds_in_pieces_are_added_up(counts):
    whole = sparse.csr_matrix(counts)
    halves = np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), whole.indptr * 2
    cells = Cells.from_array(sparse.csr_matrix(halves, shape=counts.shape))
    cells.require_domain("counts")
    np.testing.assert_array_equal(dense(cells), counts)


def test_names_indices_and_library_come_from_the_anndata(adata, counts):
    cells = Cells.from_anndata(adata, label="cell_type", batch="experiment", library="size")
    assert cells.gene_names == tuple(adata.var_names)
    assert cells.label_names == ("A", "B", "T")
    assert cells.batch_names == ("first", "second")
    assert cells.label.tolist() == [1, 2, 0, 1] * 10
    assert cells.batch.tolist() == [1, 0] * 20
    assert cells.labels.tolist() == adata.obs["cell_type"].tolist()
    np.testing.assert_array_equal(cells.library, counts.sum(1) * 2)
    assert "40 cells × 12 genes" in repr(cells)


def test_without_columns_there_is_one_batch_and_no_label(adata):
    cells = Cells.from_anndata(adata)
    assert (cells.batch_names, cells.label_names) == (("all",), ())
    assert cells.batch.eq(0).all()
    assert cells.label.eq(-1).all()
    assert set(cells.labels) == {"unknown"}


def test_a_layer_and_a_view_are_read_as_they_are(adata, counts):
    adata.layers["twice"] = 2 * counts
    view = adata[5:20:3, [4, 0, 1]]
    cells = Cells.from_anndata(view, layer="twice", label="cell_type")
    np.testing.assert_array_equal(dense(cells), 2 * counts[5:20:3][:, [4, 0, 1]])
    assert cells.gene_names == ("gene 4", "gene 0", "gene 1")
    assert type(Cells.from_anndata(view).x) is sparse.csr_matrix


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
def test_cells_do_not_change_with_the_anndata_that_they_were_made_from(adata, counts, stored_as):
    adata.X = stored_as(counts.copy())
    cells = Cells.from_anndata(adata)
    held = adata.X.data if sparse.issparse(adata.X) else adata.X
    held[:] = 0.5
    np.testing.assert_array_equal(dense(cells), counts)


def test_making_cells_does_not_change_the_anndata(adata):
    before = adata.copy()
    Cells.from_anndata(adata, label="cell_type").require_domain("counts")
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(adata.obs, before.obs)


@pytest.mark.parametrize(
    ("values", "codes", "names"),
    [
        (["b", np.nan, "a", None], [1, -1, 0, -1], ("a", "b")),
        (pd.Categorical(["b", None, "a", "b"]), [1, -1, 0, 1], ("a", "b")),
        (pd.array(["b", pd.NA, "a", "b"], dtype="string"), [1, -1, 0, 1], ("a", "b")),
        ([10, 9, 10, 2], [2, 1, 2, 0], ("2", "9", "10")),
        ([True, False, True, True], [1, 0, 1, 1], ("False", "True")),
        ([1, "1", "b", 2], [0, 0, 2, 1], ("1", "2", "b")),
        ([np.nan] * 4, [-1] * 4, ()),
        (torch.tensor([3, 1, 3, 1]), [1, 0, 1, 0], ("1", "3")),
    ],
)
def test_labels_become_indices_in_order_and_missing_ones_minus_one(counts, values, codes, names):
    cells = Cells.from_array(np.ones((4, 3)), label=values)
    assert cells.label.tolist() == codes
    assert cells.label_names == names
    assert cells.label.dtype == torch.int64


@pytest.mark.parametrize(("values", "unlabelled"), [(list("b?ab"), "?"), ([2, -1, 1, 2], -1)])
def test_the_name_that_means_unlabelled_is_no_label(values, unlabelled):
    cells = Cells.from_array(np.ones((4, 3)), label=values, unlabelled=unlabelled)
    assert cells.label.tolist() == [1, -1, 0, 1]
    assert len(cells.label_names) == 2
    assert cells.labels[1] == "unknown"


def test_a_categorys_absent_levels_are_no_labels(adata):
    cells = Cells.from_anndata(adata[adata.obs["cell_type"] != "A"], label="cell_type")
    assert cells.label_names == ("B", "T")


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("argument", ["label", "batch", "library"])
def test_a_missing_column_is_named_beside_those_there_are(adata, argument):
    with pytest.raises(KeyError, match=r"'typ'.*'cell_type', 'experiment', 'size'"):
        Cells.from_anndata(adata, **{argument: "typ"})


@pytest.mark.parametrize("argument", ["layer", "observed"])
def test_a_missing_layer_is_named_beside_those_there_are(adata, argument):
    with pytest.raises(KeyError, match=r"'raw'.*none"):
        Cells.from_anndata(adata, **{argument: "raw"})
    adata.layers["counts"] = adata.X
    with pytest.raises(KeyError, match=r"'raw'.*'counts'"):
        Cells.from_anndata(adata, **{argument: "raw"})


def test_what_is_no_anndata_is_refused(counts):
    with pytest.raises(TypeError, match=r"Expected an AnnData, got a ndarray.*from_array"):
        Cells.from_anndata(counts)


@pytest.mark.parametrize(
    ("x", "seen"),
    [
        (np.ones(3), r"\(3,\)"),
        (np.ones((2, 3, 4)), r"\(2, 3, 4\)"),
        (None, "object"),
        ([["a", "b"]], "<U1"),
        (np.ones((2, 2)) + 1j, "complex"),
        (np.ones((2, 2), dtype=object), "object"),
        ("counts.csv", "<U10"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(x, seen):
    with pytest.raises(ValueError, match=f"matrix of numbers.*{seen}"):
        Cells.from_array(x)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_is_refused(shape):
    with pytest.raises(ValueError, match="x has {} cells × {} genes; it must".format(*shape)):
        Cells.from_array(np.ones(shape))


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(adata, counts, stored_as, value):
    counts[7, 3] = value
    adata.X = stored_as(counts)
    with pytest.raises(ValueError, match=rf"x holds {value} \(cell 'cell 7', gene 'gene 3'\)"):
        Cells.from_anndata(adata)


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
def test_an_empty_cell_is_refused_by_name(adata, counts, stored_as):
    counts[[11, 30]] = 0
    adata.X = stored_as(counts)
    with pytest.raises(ValueError, match=r"Cell 'cell 11' is empty.*2 cells in all.*filter_cells"):
        Cells.from_anndata(adata)


def test_genes_that_are_zero_in_every_cell_are_warned_of(counts):
    counts[:, [2, 5]] = 0
    with pytest.warns(UserWarning, match="2 of 12 genes are zero in every cell"):
        Cells.from_array(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Cells.from_array(np.delete(counts, [2, 5], axis=1))


@pytest.mark.parametrize("argument", ["label", "batch", "library", "cell_names"])
@pytest.mark.parametrize("wrong", [[1.0] * (N_CELLS - 1), [1.0] * (N_CELLS + 1), 1.0, []])
def test_one_value_a_cell_is_asked_for(counts, argument, wrong):
    with pytest.raises(ValueError, match=rf"{argument} has shape .*each of the 40 cells"):
        Cells.from_array(counts, **{argument: wrong})


def test_one_name_a_gene_is_asked_for_and_no_name_twice(counts):
    with pytest.raises(ValueError, match=r"gene_names has shape \(2,\).*12 genes"):
        Cells.from_array(counts, gene_names=["a", "b"])
    with pytest.raises(ValueError, match=r"3 genes are called 'c'.*var_names_make_unique"):
        Cells.from_array(counts, gene_names=list("abcdefghijcc"))


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, 1e-60, 1e60])
def test_a_library_that_is_not_above_zero_is_refused(adata, value):
    adata.obs["size"] = adata.obs["size"].astype(float)
    adata.obs.loc["cell 9", "size"] = value
    with pytest.raises(ValueError, match=r"library of cell 'cell 9' is .*1 cells in all"):
        Cells.from_anndata(adata, library="size")


def test_read_only_values_are_taken_without_a_warning(counts):
    """pandas 3 lends its columns like this."""
    library, mask = counts.sum(1, dtype=np.float64), np.ones(counts.shape, dtype=bool)
    x = sparse.csr_matrix(counts)
    for values in (counts, library, mask, x.data, x.indices, x.indptr):
        values.flags.writeable = False
    for matrix in (counts, x):
        cells = Cells.from_array(matrix, library=library, observed=mask)
        np.testing.assert_array_equal(cells.to().library, library)


def test_a_library_that_is_no_number_is_refused(adata):
    with pytest.raises(ValueError, match=r"library must hold a number.*second"):
        Cells.from_anndata(adata, library="experiment")


def test_a_cell_without_batch_is_refused_rather_than_put_into_the_first(adata):
    adata.obs.loc["cell 4", "experiment"] = None
    with pytest.raises(ValueError, match=r"Cell 'cell 4' has no batch.*1 cells"):
        Cells.from_anndata(adata, batch="experiment")


# --------------------------------------------------------------------- values and likelihoods


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda x: x - 1, "negative values, as after centring"),
        (
            lambda x: np.log1p(x / x.sum(1, keepdims=True) * 1e4),
            "fractions, as after log-normalisation",
        ),
        (lambda x: x / x.sum(1, keepdims=True) * 1e4, "as after scaling all cells"),
        (lambda x: x + 0.25 * (x == 3), r"3\.25 .*fractions"),
    ],
)
def test_what_is_no_count_is_refused_with_what_it_looks_like(counts, stored_as, change, seen):
    cells = Cells.from_array(stored_as(change(counts)))
    with pytest.raises(ValueError, match=f"needs raw counts .*but x holds .*{seen}"):
        cells.require_domain("counts")
    cells.require_domain("real")


def test_a_refused_value_is_given_with_its_place(counts):
    counts[6, 2] = 1.5
    for x in (counts, sparse.csr_matrix(counts)):
        with pytest.raises(ValueError, match=r"1\.5 \(row 6, gene '2'\)"):
            Cells.from_array(x).require_domain("counts")


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_what_lies_outside_the_unit_interval_is_refused(counts, value):
    x = counts / counts.max()
    Cells.from_array(x).require_domain("unit interval")
    x[3, 4] = value
    with pytest.raises(ValueError, match=rf"between 0 and 1, but x holds {value}.*log_normalize"):
        Cells.from_array(x).require_domain("unit interval")


def test_what_holds_for_some_cells_is_not_taken_to_hold_for_all(counts):
    counts[30, 2] = 0.5
    cells = Cells.from_array(counts)
    cells[:10].require_domain("counts")
    cells[:10].to().require_domain("counts")
    with pytest.raises(ValueError, match="row 30"):
        cells.require_domain("counts")


# ------------------------------------------------------------------------------------- slicing


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize(
    "rows",
    [
        slice(2, 9),
        slice(None, None, 3),
        slice(None, None, -1),
        slice(30, 10, -4),
        slice(-5, None),
        slice(50, 60),
        [3, 1, 1, -2],
        [],
        np.array([]),
        np.arange(5),
        np.arange(N_CELLS) % 3 == 0,
        [True, False] * (N_CELLS // 2),
        np.zeros(N_CELLS, dtype=bool),
        torch.tensor([4, 0]),
        torch.arange(N_CELLS) > 20,
        pd.Series([True, False] * (N_CELLS // 2)),
    ],
    ids=str,
)
def test_rows_are_taken_as_numpy_takes_them(counts, stored_as, rows):
    observed = np.arange(counts.size).reshape(counts.shape) % 5 > 0
    cells = Cells.from_array(
        stored_as(counts),
        label=np.arange(N_CELLS),
        batch=np.arange(N_CELLS),
        library=1 + np.arange(N_CELLS),
        observed=observed,
    )
    part = cells[rows]
    kept = np.arange(N_CELLS)[np.asarray(rows, dtype=int) if np.size(rows) == 0 else rows]
    assert len(part) == len(kept)
    np.testing.assert_array_equal(dense(part), (counts * observed)[kept])
    np.testing.assert_array_equal(part.label, kept)
    np.testing.assert_array_equal(part.batch, kept)
    np.testing.assert_array_equal(part.library, 1 + kept)
    np.testing.assert_array_equal(part.observed, observed[kept])
    assert part.gene_names == cells.gene_names
    np.testing.assert_array_equal(dense(part[:2]), (counts * observed)[kept[:2]])


@pytest.mark.parametrize("i", [0, 7, -1, -N_CELLS, np.int64(3)])
def test_a_number_gives_one_cell(counts, i):
    cell = Cells.from_array(counts)[i]
    assert len(cell) == 1
    np.testing.assert_array_equal(cell.x[0], counts[i])


@pytest.mark.parametrize(
    "rows",
    [N_CELLS, -N_CELLS - 1, [0, 99], "cell 1", [0.5], np.ones(3, bool), (slice(1, 3), 2), None],
    ids=str,
)
def test_rows_that_there_are_not_are_refused(counts, rows):
    with pytest.raises(IndexError):
        Cells.from_array(counts)[rows]


def test_a_loop_over_cells_ends(counts):
    assert sum(len(cell) for cell in Cells.from_array(counts)) == N_CELLS


# ------------------------------------------------------------------------------------- observed


@pytest.mark.parametrize("stored_as", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("mask_as", [sparse.csr_matrix, np.asarray, lambda m: m.astype(int)])
def test_what_was_not_observed_is_neither_shown_nor_counted(adata, counts, stored_as, mask_as):
    mask = np.random.default_rng(1).random(counts.shape) < 0.7
    mask[:, 0] = True
    adata.X, adata.layers["seen"] = stored_as(counts), mask_as(mask)
    cells = Cells.from_anndata(adata, observed="seen")
    np.testing.assert_array_equal(cells.observed, mask)
    np.testing.assert_array_equal(dense(cells), counts * mask)
    share = (counts * mask).sum(0) / mask.sum(0)
    expected = (counts * mask).sum(1) / (mask @ (share / share.sum()))
    np.testing.assert_allclose(cells.library, expected, rtol=1e-6)
    given = Cells.from_anndata(adata, observed="seen", library="size")
    np.testing.assert_array_equal(given.library, counts.sum(1) * 2)


@pytest.mark.parametrize(
    ("mask", "seen"), [(np.ones((3, 3), bool), r"\(3, 3\)"), (np.full((4, 3), np.nan), "float64")]
)
def test_a_mask_of_another_shape_or_kind_is_refused(mask, seen):
    with pytest.raises(ValueError, match=f"True and False of x's shape.*{seen}"):
        Cells.from_array(np.ones((4, 3)), observed=mask)


def test_a_cell_of_which_only_zeros_were_observed_is_empty(counts):
    mask = np.ones(counts.shape, dtype=bool)
    mask[8] = counts[8] == 0
    assert not mask[8].all()
    for x in (counts, sparse.csr_matrix(counts)):
        with pytest.raises(ValueError, match="Cell 8 is empty"):
            Cells.from_array(x, observed=mask)


def test_the_library_of_half_observed_cells_is_that_of_all_their_genes():
    """Else ρ, which sums to 1 over all genes, would make means that are half as large."""
    adata = simulate.dataset(n_cells=400, n_genes=60, library=3000.0, seed=0)
    observed = np.random.default_rng(0).random(adata.shape) < 0.5
    cells = Cells.from_array(adata.X, observed=observed)
    total = np.asarray(adata.X.sum(1)).ravel()
    assert np.median(cells.library.numpy() / total) == pytest.approx(1, abs=0.1)


def test_hidden_values_are_not_judged():
    x = np.array([[3.0, -1.0], [2.0, 5.0]])
    Cells.from_array(x, observed=x > 0).require_domain("counts")


def test_cells_without_their_labels_are_the_same_cells_otherwise(adata):
    cells = Cells.from_anndata(adata, label="cell_type", batch="experiment")
    hidden = cells.unlabelled()
    assert (hidden.label == -1).all()
    assert (cells.label >= 0).any()
    assert hidden.label_names == cells.label_names
    for name in ("library", "batch"):
        assert torch.equal(getattr(hidden, name), getattr(cells, name))
    assert hidden.x is cells.x


@pytest.mark.parametrize("kind", ["dense", "sparse", "masked"])
def test_standard_deviations_of_genes(kind, monkeypatch):
    monkeypatch.setattr("vaelab._internal.matrices.AT_ONCE", 40)  # ten cells at a time
    rng = np.random.default_rng(0)
    x = rng.poisson(2, size=(57, 4)) + 1e4 * np.arange(4)  # a large mean hides nothing
    x[:, 3] = 0.1  # not exactly a number of float32
    observed = rng.random(x.shape) < 0.7 if kind == "masked" else np.ones(x.shape, bool)
    observed[:, 0] = True
    cells = Cells.from_array(x, observed=observed if kind == "masked" else None)
    if kind == "sparse":
        cells = Cells.from_anndata(anndata.AnnData(sparse.csr_matrix(x.astype(np.float64))))
    expected = np.std(x, axis=0, where=observed)
    found = cells.standard_deviations().numpy()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert found[3] == 0
