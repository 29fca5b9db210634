"""Genes and scales, through scanpy."""

from __future__ import annotations

from ._internal.machine import steady_threads

__all__ = ["log_normalize", "select_genes"]


def select_genes(adata, n_genes: int = 2000, min_cells: int = 3):
    """The most variable genes, on raw counts.

    Genes seen in at least ``min_cells`` cells; of these the ``n_genes`` that vary most beyond
    what their mean explains, on log(1 + counts per 10,000) (scanpy's default).

    Parameters
    ----------
    adata
        Cells × genes, raw counts in ``X``. Not changed.
    n_genes
        How many to keep; all are kept where there are no more.

    Returns
    -------
    A new AnnData with counts in ``X`` and in the layer "counts", and the layers of
    :func:`log_normalize`.

    Raises
    ------
    ValueError
        ``X`` holds no raw counts, or no gene is left.
    """
    import scanpy as sc

    if not n_genes >= 1:
        raise ValueError(f"n_genes is {n_genes}; it must be at least 1.")

    _require_counts(adata)
    adata = adata.copy()
    sc.pp.filter_genes(adata, min_cells=min_cells)
    if adata.n_vars == 0:
        raise ValueError(f"No gene is seen in {min_cells} cells or more: lower min_cells.")
    log_normalize(adata)
    if adata.n_vars > n_genes:
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, layer="log_normalized")
        adata = adata[:, adata.var["highly_variable"]].copy()
    adata.layers["counts"] = adata.X.copy()
    return adata


def log_normalize(adata, target: float = 1e4) -> None:
    """Add two layers to an AnnData with raw counts in ``X``.

    "log_normalized"
        log(1 + x · target / total of the cell).
    "unit_interval"
        The same, divided by its largest value in each gene: between 0 and 1.

    Raises
    ------
    ValueError
        ``X`` holds no raw counts.
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
    unit.data = x.data / largest[x.indices]  # divided, the largest is exactly 1
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
