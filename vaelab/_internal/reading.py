"""Reads the matrix and columns that a user gives, and refuses values that no model can use."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import matrices
from .on_disk import OnDisk, is_on_disk

__all__ = ["column", "layer_of", "read_cells", "refuse_outside"]

OUTSIDE = {  # which values are outside a domain
    "counts": lambda v: (v < 0) | (v != np.round(v)),
    "unit interval": lambda v: (v < 0) | (v > 1),
}


def read_cells(
    x, label, batch, library, observed, unlabelled, gene_names, cell_names, stacklevel: int
) -> dict:
    """The fields of ``Cells``: see ``Cells.from_array``. ``stacklevel`` is for warnings."""
    from scipy import sparse

    # A copy: later changes to the AnnData must not change these cells.
    if is_on_disk(x):
        x = OnDisk(x)
    else:
        x = sparse.csr_matrix(x, copy=True) if sparse.issparse(x) else np.asarray(x).copy()
    if x.ndim != 2 or x.dtype.kind not in "buif":
        raise ValueError(
            f"x must be a matrix of numbers, cells × genes, but has shape {x.shape} and dtype "
            f"{x.dtype}."
        )
    x = x if isinstance(x, OnDisk) else matrices.floats(x)
    n_cells, n_genes = x.shape
    if n_cells == 0 or n_genes == 0:
        raise ValueError(
            f"x has {n_cells} cells × {n_genes} genes; it must have at least one of each."
        )
    for name, values, n, rows_or_columns in (
        ("label", label, n_cells, "cells"),
        ("batch", batch, n_cells, "cells"),
        ("library", library, n_cells, "cells"),
        ("cell_names", cell_names, n_cells, "cells"),
        ("gene_names", gene_names, n_genes, "genes"),
    ):
        if values is not None and np.shape(values) != (n,):
            raise ValueError(
                f"{name} has shape {np.shape(values)}; it must hold one value for each of the "
                f"{n:,} {rows_or_columns}."
            )
    gene_names = tuple(map(str, range(n_genes) if gene_names is None else gene_names))
    cell_names = range(n_cells) if cell_names is None else cell_names
    name, times = Counter(gene_names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"{times} genes are called {name!r}; each needs its own name. Call "
            "adata.var_names_make_unique()."
        )
    if observed is not None:
        observed = matrices.mask(observed, x.shape, may_stay=isinstance(x, OnDisk))
    survey = _survey(x, observed, gene_names, cell_names)
    if survey.n_silent:
        warnings.warn(
            f"{survey.n_silent} of {n_genes:,} genes are zero in every cell: a model cannot learn "
            "from them. vaelab.select_genes leaves them out.",
            stacklevel=stacklevel,
        )
    if observed is not None and not isinstance(x, OnDisk):
        x = matrices.hide(x, observed)
    library = survey.library if library is None else _library(library, cell_names)
    label, label_names = _encode(label, n_cells, unlabelled)
    batch_index, batch_names = _encode(batch, n_cells)
    if batch is not None and (batch_index < 0).any():
        row = int(batch_index.argmin())
        raise ValueError(
            f"Cell {cell_names[row]!r} has no batch ({int((batch_index < 0).sum())} cells in all "
            "have none). Fill in their batches, or leave these cells out."
        )
    return {
        "x": x,
        "library": library,
        "batch": batch_index.clamp(min=0),
        "label": label,
        "observed": observed,
        "gene_names": gene_names,
        "batch_names": batch_names or ("all",),
        "label_names": label_names,
        "_passed": frozenset(survey.passed),
    }


@dataclass
class _Survey:
    """Results of reading all values once."""

    library: Tensor
    n_silent: int
    passed: set[str]


def _survey(x, observed, gene_names, cell_names) -> _Survey:
    """Read all values once; refuse NaN, infinite values, and cells with only zeros."""
    n_nonzero, total = np.zeros(x.shape[0], dtype=int), np.zeros(x.shape[0])
    n_expressing, gene_total = np.zeros(x.shape[1], dtype=int), np.zeros(x.shape[1])
    n_observed = np.zeros(x.shape[1], dtype=int)
    passed = set(OUTSIDE)
    for rows in matrices.parts(x):
        part = matrices.read(x[rows])
        if not np.isfinite(matrices.values(part)).all():
            row, column, value = matrices.first(part, lambda v: ~np.isfinite(v))
            raise ValueError(
                f"x holds {value} (cell {cell_names[rows.start + row]!r}, gene "
                f"{gene_names[column]!r}); values must be finite. If nothing was measured there, "
                "set the value to 0 and mark it as False in `observed`."
            )
        if observed is not None:
            mask = matrices.mask(observed[rows], part.shape)
            part = matrices.hide(part, mask)
            n_observed += mask.sum(0).numpy()
        n_nonzero[rows] = matrices.n_nonzero(part)
        n_expressing += matrices.n_nonzero(part, axis=0)
        total[rows] = np.asarray(part.sum(1)).ravel()
        gene_total += np.asarray(part.sum(0)).ravel()
        passed = {domain for domain in passed if not OUTSIDE[domain](matrices.values(part)).any()}
    if (n_nonzero == 0).any():
        row = int(np.argmin(n_nonzero))
        raise ValueError(
            f"Cell {cell_names[row]!r} is empty: all its {x.shape[1]:,} values are zero or not "
            f"observed ({int((n_nonzero == 0).sum())} cells in all are empty). Leave such cells "
            "out, for example with scanpy.pp.filter_cells(adata, min_counts=1)."
        )
    if observed is not None:
        # Divide each total by the share of the counts that the observed genes have on average.
        gene_total /= n_observed.clip(min=1)  # mean over the cells in which it was observed
        for rows in matrices.parts(x):
            mask = matrices.mask(observed[rows], (len(total[rows]), x.shape[1]))
            total[rows] /= mask.double().numpy() @ gene_total / gene_total.sum()
    return _Survey(torch.as_tensor(total).float(), int((n_expressing == 0).sum()), passed)


def layer_of(adata, name: str):
    names = [key for key in adata.layers if key is not None]  # anndata 0.13 has X under None
    if name not in names:
        raise KeyError(f"No layer {name!r}: this AnnData has {names or 'none'}.")
    return adata.layers[name]


def column(adata, name: str | None):
    if name is None:
        return None
    if name not in adata.obs:
        raise KeyError(f"No column {name!r} in adata.obs; it has {list(adata.obs.columns)}.")
    return adata.obs[name]


def _encode(values, n_cells: int, missing: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """The index of each name, −1 for a missing value, and the names in order."""
    import pandas as pd

    if values is None:
        return torch.full((n_cells,), -1), ()
    values = pd.Series(np.asarray(values, dtype=object))
    names = values.map(str, na_action="ignore")
    # Numbers are sorted as numbers; 1 and "1" are one name.
    order = dict.fromkeys(map(str, values.astype("category").cat.categories))
    if missing is not None:
        order.pop(str(missing), None)
    codes = pd.Index(list(order), dtype=object).get_indexer(names)  # −1 for any other
    return torch.as_tensor(codes.astype(np.int64)), tuple(order)


def _library(values, cell_names) -> Tensor:
    try:
        library = torch.as_tensor(np.array(values, dtype=np.float64)).to(torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"library must hold a number for each cell: {error}.") from None
    wrong = ~(library.isfinite() & (library > 0))
    if wrong.any():
        row = int(wrong.int().argmax())
        raise ValueError(
            f"The library of cell {cell_names[row]!r} is {library[row]:g} ({int(wrong.sum())} "
            "cells in all have a library that is not a number above 0); it must be the cell's "
            "expected total of counts."
        )
    return library


def refuse_outside(domain: str, cells) -> None:
    """Refuse cells that have a value outside a domain: see ``Cells.require_domain``."""
    outside, seen, lowest, highest = OUTSIDE[domain], None, np.inf, -np.inf
    for start, part in cells.parts():
        values = matrices.values(part.x)
        if seen is None and outside(values).any():
            row, column, value = matrices.first(part.x, outside)
            seen = f"x holds {value:.6g} (row {start + row}, gene {cells.gene_names[column]!r})"
        lowest = min(lowest, values.min(initial=np.inf))
        highest = max(highest, values.max(initial=-np.inf))
    if seen:
        raise ValueError(_refusal(domain, seen, lowest, highest))


def _refusal(domain: str, seen: str, lowest: float, highest: float) -> str:
    if domain == "unit interval":
        return (
            f"This likelihood needs values between 0 and 1, but {seen}. Scale each gene first: "
            "vaelab.log_normalize(adata) makes the layer 'unit_interval'."
        )
    if lowest < 0:
        reason = "negative values, as after centring"
    elif highest < 20:
        reason = "fractions, as after log-normalisation"
    else:
        reason = "fractions, as after scaling all cells to the same total"
    return (
        f"A count likelihood needs raw counts (0, 1, 2, …), but {seen}: {reason}. Give the raw "
        "counts, for example Cells.from_anndata(adata, layer='counts'), or choose "
        "likelihood='normal'."
    )
