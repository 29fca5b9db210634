"""Selection of genes and normalisation, both as scanpy does them."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real

import numpy as np

from ._internal import matrices
from ._internal.arguments import require, require_size
from ._internal.machine import steady_threads
from ._internal.on_disk import OnDisk, is_on_disk
from ._internal.reading import column, encode_names, matrix_of, not_counts, shown, some_genes

__all__ = ["log_normalize", "select_genes", "to_counts"]

TARGET = 1e4  # total to which the counts of each cell are scaled


def select_genes(adata, n_genes: int = 2000, min_cells: int = 3, *, batch: str | None = None):
    """Select the most variable genes, from raw counts.

    Genes seen in fewer than ``min_cells`` cells are left out. Of the others, the ``n_genes`` that
    vary most beyond what their mean explains are kept, by scanpy's default method on
    log(1 + counts per 10,000); of equal genes, the first. The matrix is read in parts, so that it
    may be larger than memory.

    Parameters
    ----------
    adata
        AnnData of cells × genes with raw counts in ``X``, in memory or in a file, as from
        ``anndata.read_h5ad(path, backed="r")``. It is not changed.
    n_genes
        Number of genes to keep; if there are fewer, all are kept.
    min_cells
        Smallest number of cells in which a gene must be seen.
    batch
        Column of ``adata.obs``. The genes are then selected in each batch, and those are kept that
        are selected in most batches, as by scanpy's ``batch_key``; None for all cells together.

    Returns
    -------
    A new AnnData with counts in ``X`` and in the layer "counts", and the layers of
    :func:`log_normalize`. If the matrix is in a file, it is a view ``adata[:, genes]`` without new
    layers: ``Cells.from_anndata`` reads it from the file. ``view.write_h5ad(path)`` writes a
    smaller file, which is faster to train on.

    Raises
    ------
    ValueError
        ``X`` does not hold raw counts, an argument is out of range, or no gene is left or varies.
    """
    require_size("n_genes", n_genes)
    require("min_cells", min_cells, Integral, lambda n: n >= 0, "a whole number, 0 or more")
    x = matrix_of(adata)
    n_expressing = _count_cells(adata)
    codes, names = encode_names(column(adata, batch), adata.n_obs)
    if batch is not None and (codes < 0).any():
        raise ValueError(
            f"{int((codes < 0).sum())} cells have no {batch!r}. Fill it in, or leave them out."
        )
    codes = codes.clamp(min=0).numpy()

    seen = n_expressing >= min_cells
    if not seen.any():
        raise ValueError(f"No gene is seen in {min_cells} cells or more; lower min_cells.")
    chosen = np.flatnonzero(seen)
    if len(chosen) > n_genes:
        in_batches = _dispersions(x, seen, codes, max(1, len(names)))
        if np.isnan(in_batches).all():
            raise ValueError(
                "No gene varies more than the others: each has the same share of the counts in "
                f"all {adata.n_obs:,} cells. Give counts of cells that differ."
            )
        order = adata.var_names[chosen]
        chosen = chosen[np.sort(_most_variable(in_batches, n_genes, order))]
    if is_on_disk(x) or isinstance(x, OnDisk):
        return some_genes(adata, chosen)
    kept = adata[:, seen].copy()
    kept.var["n_cells"] = n_expressing[seen]
    log_normalize(kept)  # by the total over all genes that are seen
    kept = kept[:, np.isin(np.flatnonzero(seen), chosen)].copy()
    kept.layers["counts"] = kept.X.copy()
    return kept


def _parts(x) -> Iterator[tuple[slice, object]]:
    """Rows of a matrix, as a CSR matrix or an array, as many at a time as fit in memory."""
    from scipy import sparse

    x = x if isinstance(x, OnDisk) or not is_on_disk(x) or hasattr(x, "compute") else OnDisk(x)
    x = x.tocsr() if sparse.issparse(x) and x.format != "csr" else x
    for rows in matrices.parts(x):
        part = x[rows]
        if isinstance(part, OnDisk):
            part = part.read()
        elif hasattr(part, "compute"):  # dask, as from anndata.experimental.read_lazy
            part = part.compute()
        yield rows, sparse.csr_matrix(part) if sparse.issparse(part) else np.asarray(part)


def _dispersions(x, genes: np.ndarray, codes: np.ndarray, n_batches: int) -> np.ndarray:
    """Each gene's log(variance / mean), standardised among genes of a similar mean.

    This is scanpy's flavour "seurat" (Satija et al. 2015): 20 bins of log(1 + mean); from each
    value the mean of its bin is taken away, and the rest is divided by the bin's standard
    deviation. The only gene of a bin gets 1. NaN for a gene that does not vary.

    Returns
    -------
    Shape (n_batches, number of genes).
    """
    import pandas as pd
    from scipy import sparse

    total, squares = np.zeros((2, n_batches, genes.sum()))
    for rows, part in _parts(x):
        part, codes_of_part = _log_normalized(part[:, genes], TARGET), codes[rows]
        part = np.expm1(part).astype(np.float64)  # float32 until here, as in scanpy
        for k in np.unique(codes_of_part):
            own = part[codes_of_part == k]
            total[k] += np.asarray(own.sum(0)).ravel()
            own = own.power(2) if sparse.issparse(own) else own**2
            squares[k] += np.asarray(own.sum(0)).ravel()
    standardised = np.full((n_batches, genes.sum()), np.nan)
    for k, n in enumerate(np.bincount(codes, minlength=n_batches)):
        expressed = (total[k] > 0) | (n_batches == 1)
        mean = total[k, expressed] / n
        variance = (squares[k, expressed] / n - mean**2) * n / max(1, n - 1)
        variance[variance <= 1e-10 * mean**2] = np.nan  # the rounding errors of float32
        table = pd.DataFrame({"dispersion": np.log(variance / np.maximum(mean, 1e-12))})
        if not len(table):
            continue
        of_bin = table.groupby(pd.cut(np.log1p(mean), bins=20), observed=True)["dispersion"]
        centre, scale = of_bin.transform("mean"), of_bin.transform("std")
        alone = scale.isna()
        scale, centre = scale.where(~alone, centre), centre.where(~alone, 0)
        standardised[k, expressed] = (table["dispersion"] - centre) / scale
    # Equal values, such as those of a bin with two genes, must not differ by rounding errors.
    return np.round(standardised, 5)


def _most_variable(standardised: np.ndarray, n_genes: int, names) -> np.ndarray:
    """The indices of the ``n_genes`` genes that are selected in most batches."""
    if len(standardised) == 1:
        return np.argsort(-np.nan_to_num(standardised[0], nan=-np.inf), kind="stable")[:n_genes]
    selected = np.zeros(standardised.shape, dtype=bool)
    for own, row in zip(selected, standardised, strict=True):
        if n_of_batch := min(n_genes, (~np.isnan(row)).sum()):
            threshold = np.sort(row[~np.isnan(row)])[-n_of_batch]
            own[:] = np.nan_to_num(row, nan=-np.inf) >= threshold
    mean = np.nan_to_num(standardised).mean(0)
    return np.lexsort((names.to_numpy(dtype=str), -mean, -selected.sum(0)))[:n_genes]


def log_normalize(adata, target: float = TARGET) -> None:
    """Add two layers to an AnnData with raw counts in ``X``.

    The layer "log_normalized" is log(1 + x · target / total of the cell). The layer "unit_interval"
    is the same, divided by its largest value in each gene, so that it is between 0 and 1.

    Parameters
    ----------
    adata
        AnnData of cells × genes. It gets the two layers; ``X`` is not changed.
    target
        Total to which the counts of each cell are scaled.

    Raises
    ------
    ValueError
        ``X`` does not hold raw counts or is in a file, or ``target`` is not a number above 0.
    """
    from scipy import sparse

    require("target", target, Real, lambda t: 0 < t < np.inf, "a number above 0")
    if is_on_disk(x := matrix_of(adata)) or isinstance(x, OnDisk):
        raise ValueError(
            "The matrix of this AnnData is in a file, and the two new layers would be in memory. "
            "Read it first, adata = adata.to_memory(), after the selection of genes."
        )
    _count_cells(adata)
    x = sparse.csr_matrix(_log_normalized(x, target))
    largest = np.maximum(x.max(axis=0).toarray().ravel(), np.finfo(x.dtype).tiny)
    adata.layers["log_normalized"] = x
    unit = x.copy()
    unit.data = x.data / largest[x.indices]  # by division the largest is exactly 1
    adata.layers["unit_interval"] = unit


def _log_normalized(x, target: float):
    """log(1 + x · target / total of the cell), of the same kind of matrix."""
    import anndata
    import scanpy as sc

    # An AnnData of its own: uns["log1p"] of the user's may be of another matrix.
    half = x.dtype == np.float16  # for which scipy has no sparse matrix
    normalized = anndata.AnnData(x.astype(np.float32) if half else x.copy())
    with steady_threads():
        sc.pp.normalize_total(normalized, target_sum=target)
    sc.pp.log1p(normalized)
    return normalized.X


def to_counts(x):
    """Round values that are counts up to rounding errors, as after a logarithm was undone.

    Parameters
    ----------
    x
        A matrix, dense or scipy-sparse, such as ``adata.X``. Every value must be at most 0.01, or a
        millionth of itself, away from 0, 1, 2, … It is not changed.

    Returns
    -------
    The matrix of whole numbers, of the same kind and dtype.

    Raises
    ------
    TypeError
        ``x`` is not a matrix of numbers.
    ValueError
        A value is farther away from a whole number, below 0, or not finite.
    """
    from scipy import sparse

    if not (sparse.issparse(x) or isinstance(x, np.ndarray)):
        raise TypeError(
            "to_counts takes a matrix of numbers, such as adata.X, not a value of type "
            f"{type(x).__name__}."
        )
    x = x.copy()
    if x.dtype.kind not in "buif" or x.ndim != 2:
        raise TypeError(
            f"to_counts takes a matrix of numbers, such as adata.X, but got shape {x.shape} and "
            f"dtype {x.dtype}."
        )
    values = x.data if sparse.issparse(x) else x
    wrong = ~matrices.nearly_whole(values)
    if wrong.any():
        reason, _ = not_counts([matrices.floats(x.tocsr() if sparse.issparse(x) else x)])
        raise ValueError(
            f"x holds {shown(float(values[wrong][0]))}, which is not a whole number up to 0.01: "
            f"{reason}. Rounding would change the data; give the raw counts."
        )
    if values.dtype.kind == "f":
        values[:] = np.rint(values) + 0.0  # −0 becomes 0
    if sparse.issparse(x):
        x.eliminate_zeros()
    return x


def _count_cells(adata) -> np.ndarray:
    """The number of cells in which each gene is seen; refuses values that are not counts."""
    x, n_expressing = matrix_of(adata), np.zeros(adata.n_vars, dtype=int)
    for _, part in _parts(x):
        values = part.data if hasattr(part, "tocsr") else part
        if values.dtype.kind not in "buif":
            raise ValueError(
                f"Raw counts (0, 1, 2, …) are needed in adata.X, but its dtype is {values.dtype}. "
                "Convert it first: adata.X = adata.X.astype(float)."
            )
        wrong = ~((values >= 0) & (values == np.round(values)) & np.isfinite(values))
        if wrong.any():
            value = float(values[wrong][0])
            reason, cure = "", "Put them there, for example adata.X = adata.layers['counts']"
            if np.isfinite(values).all():
                reason, other = not_counts(matrices.floats(p) for _, p in _parts(x))
                reason, cure = f": {reason}", cure if "layer=" in other else other
            raise ValueError(
                f"Raw counts (0, 1, 2, …) are needed in adata.X, but it holds {shown(value)}"
                f"{reason}. {cure}."
            )
        n_expressing += matrices.n_nonzero(part, axis=0)
    return n_expressing
