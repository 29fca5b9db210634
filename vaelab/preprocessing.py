"""Selection of genes and normalisation, both with scanpy."""

from __future__ import annotations

from ._internal.machine import steady_threads

__all__ = ["log_normalize", "select_genes"]


def select_genes(adata, n_genes: int = 2000, min_cells: int = 3):
    """Select the most variable genes, from raw counts.

    Genes seen in fewer than ``min_cells`` cells are left out. Of the others, the ``n_genes`` that
    vary most beyond what their mean explains are kept, by scanpy's default method on
    log(1 + counts per 10,000).

    Parameters
    ----------
    adata
        AnnData of cells × genes with raw counts in ``X``. It is not changed.
    n_genes
        Number of genes to keep; if there are fewer, all are kept.
    min_cells
        Smallest number of cells in which a gene must be seen.

    Returns
    -------
    A new AnnData with counts in ``X`` and in the layer "counts", and the layers of
    :func:`log_normalize`.

    Raises
    ------
    ValueError
        ``X`` does not hold raw counts, or no gene is left.
    """
    import scanpy as sc

    if not n_genes >= 1:
        raise ValueError(f"n_genes is {n_genes}; it must be at least 1.")

    _require_counts(adata)
    adata = adata.copy()
    sc.pp.filter_genes(adata, min_cells=min_cells)
    if adata.n_vars == 0:
        raise ValueError(f"No gene is seen in {min_cells} cells or more; lower min_cells.")
    log_normalize(adata)
    if adata.n_vars > n_genes:
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, layer="log_normalized")
        adata = adata[:, adata.var["highly_variable"]].copy()
    adata.layers["counts"] = adata.X.copy()
    return adata


def log_normalize(adata, target: float = 1e4) -> None:
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
        ``X`` does not hold raw counts.
    """
    import numpy as np
    import scanpy as sc
    from scipy import sparse

    _require_counts(adata)
    log_normalized = adata.copy()
    with steady_threads():
        sc.pp.normalize_total(log_normalized, target_sum=target)
    sc.pp.log1p(log_normalized)
    x = sparse.csr_matrix(log_normalized.X)
    largest = np.maximum(x.max(axis=0).toarray().ravel(), np.finfo(x.dtype).tiny)
    adata.layers["log_normalized"] = x
    unit = x.copy()
    unit.data = x.data / largest[x.indices]  # by division the largest is exactly 1
    adata.layers["unit_interval"] = unit


def _require_counts(adata) -> None:
    import numpy as np
    from scipy import sparse

    x = np.asarray(adata.X.data if sparse.issparse(adata.X) else adata.X, dtype=float)
    wrong = ~((x >= 0) & (x == np.round(x)) & np.isfinite(x))
    if wrong.any():
        raise ValueError(
            f"Raw counts (0, 1, 2, …) are needed in adata.X, but it holds {x[wrong][0]:.6g}. Put "
            "them there, for example adata.X = adata.layers['counts']."
        )
