"""Reads the matrix and columns that a user gives, and refuses values that no model can use."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from . import matrices
from .on_disk import OnDisk, is_on_disk

__all__ = [
    "UNKNOWN",
    "column",
    "encode_names",
    "layer_of",
    "looks_missing",
    "matrix_of",
    "name_of",
    "not_counts",
    "read_cells",
    "refuse_outside",
    "shown",
    "some_genes",
    "unmasked",
]

UNKNOWN = "unknown"  # how ``Cells.labels`` writes that a cell has no label

MISSING = {"", "<na>", "n/a", "na", "nan", "none", "null"}  # in lower case, without spaces
UNLABELLED = MISSING | {
    UNKNOWN,
    "?",
    "not available",
    "not known",
    "unannotated",
    "unassigned",
    "undefined",
    "unlabeled",
    "unlabelled",
}

OUTSIDE = {  # which values are outside a domain
    "counts": lambda v: (v < 0) | (v != np.round(v)),
    "unit interval": lambda v: (v < 0) | (v > 1),
    "nonnegative": lambda v: v < 0,
}


def read_cells(
    x, label, batch, library, observed, unlabelled, gene_names, cell_names, stacklevel: int
) -> dict:
    """The fields of ``Cells``: see ``Cells.from_array``. ``stacklevel`` is for warnings."""
    from scipy import sparse

    gene_names, cell_names = _names_of_frame(x, label, batch, library, gene_names, cell_names)
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        if observed is not None:
            raise ValueError(
                "x is a masked array, and `observed` is given too: give only one of them. A masked "
                "value counts as not observed."
            )
        x, observed = x.filled(0), ~np.ma.getmaskarray(x)
    # A copy: later changes to the AnnData must not change these cells.
    if isinstance(x, OnDisk) or is_on_disk(x):
        x = x if isinstance(x, OnDisk) else OnDisk(x)
    else:
        x = sparse.csr_matrix(x, copy=True) if sparse.issparse(x) else np.asarray(x).copy()
    if x.ndim != 2 or x.dtype.kind not in "buif":
        raise ValueError(
            f"x must be a matrix of numbers, cells × genes, but has shape {x.shape} and dtype "
            f"{x.dtype}.{' Convert it first: x.astype(float).' if x.dtype == object else ''}"
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
    label, label_names = encode_names(label, n_cells)
    label, label_names = _without(label, label_names, unlabelled, stacklevel + 1)
    batch_index, batch_names = encode_names(batch, n_cells)
    if mark := next((name for name in batch_names if looks_missing(name, MISSING)), None):
        warnings.warn(
            f"One of the batches is called {mark!r}, as missing values are when they become text. "
            "If it is not a batch, fill in the batches of its cells, or leave them out.",
            stacklevel=stacklevel,
        )
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


def matrix_of(adata):
    """``adata.X``; some rows and columns of a matrix in a file stay in the file."""
    if not hasattr(adata, "layers"):
        raise TypeError(
            f"Expected an AnnData, got a {type(adata).__name__}. anndata.read_h5ad reads one from "
            "a file, and anndata.AnnData(x) makes one from a matrix."
        )
    if getattr(adata, "is_view", False) and is_on_disk(whole := adata._adata_ref.X):
        return OnDisk(whole).part(adata._oidx, adata._vidx)
    if adata.X is None:
        names = [key for key in adata.layers if key is not None]
        raise ValueError(
            f"This AnnData has no matrix X; its layers are {names or 'none'}. Set X to the counts, "
            "adata.X = adata.layers[…], or name their layer, Cells.from_anndata(adata, layer=…)."
        )
    return adata.X


def some_genes(adata, genes):
    """``adata[:, genes]``, also for a selection from a file, of which anndata selects only once."""
    if not adata.is_view:
        return adata[:, genes]
    whole = adata._adata_ref
    return whole[adata._oidx, np.arange(whole.n_vars)[adata._vidx][genes]]


def layer_of(adata, name: str):
    names = [key for key in adata.layers if key is not None]  # anndata 0.13 has X under None
    if name == "raw" and name not in names and getattr(adata, "raw", None) is not None:
        raise KeyError("adata.raw is not a layer. Make the cells from adata.raw.to_adata().")
    if name not in names:
        raise KeyError(f"No layer {name!r}: this AnnData has {names or 'none'}.")
    return adata.layers[name]


def column(adata, name: str | None):
    if name is None:
        return None
    if not isinstance(name, str | int):  # a pandas column may be called by a number
        raise TypeError(
            f"The name of one column of adata.obs is needed, not a {type(name).__name__}. Join "
            "several columns into one first: adata.obs['both'] = adata.obs['donor'].astype(str) + "
            "' ' + adata.obs['plate'].astype(str). Cells.from_array takes values."
        )
    if name not in adata.obs:
        raise KeyError(f"No column {name!r} in adata.obs; it has {list(adata.obs.columns)}.")
    return adata.obs[name]


def unmasked(values) -> np.ndarray:
    """The values as an array of objects, with None where a masked array has none."""
    plain = np.asarray(values, dtype=object).copy()
    plain[np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else []] = None
    return plain


def name_of(value) -> str:
    """The name of a batch or label as text: 1, 1.0 and "1" are one name."""
    if isinstance(value, bytes):  # as h5py reads text
        return value.decode()
    whole = isinstance(value, Real) and not isinstance(value, bool) and value == value // 1
    return str(int(value)) if whole else str(value)


def looks_missing(name: str, marks: set[str] = UNLABELLED) -> bool:
    """True if a name looks like a mark for a missing value: "Unknown", "NA", " nan"."""
    return name.strip().lower() in marks


def encode_names(values, n_cells: int) -> tuple[Tensor, tuple[str, ...]]:
    """The index of each name, −1 for a missing value, and the names in order."""
    import pandas as pd

    if values is None:
        return torch.full((n_cells,), -1), ()
    values = pd.Series(unmasked(values))
    names = values.map(name_of, na_action="ignore")
    # Numbers are sorted as numbers.
    order = dict.fromkeys(map(name_of, values.astype("category").cat.categories))
    codes = pd.Index(list(order), dtype=object).get_indexer(names)  # −1 for any other
    return torch.as_tensor(codes.astype(np.int64)), tuple(order)


def _without(label: Tensor, names: tuple[str, ...], unlabelled, stacklevel: int):
    """The labels and their names without the names that mean "not known"."""
    import pandas as pd

    given = [unlabelled] if np.ndim(unlabelled) == 0 else [*unlabelled]
    marks = [name_of(mark) for mark in given if not pd.isna(mark)]
    left = [name for name in names if name not in marks]
    suspects = [name for name in left if looks_missing(name)]
    if marks and names and len(left) == len(names):
        plain = {name.strip().lower(): name for name in left}
        close = get_close_matches(marks[0].strip().lower(), plain, n=3, cutoff=0.8)
        near = suspects or [plain[name] for name in close]
        seen = f"No label is called {' or '.join(map(repr, marks))}"
        if near:
            raise ValueError(
                f"{seen}, but there is {' and '.join(map(repr, near))}. If this means that a "
                f"cell has no label, write unlabelled={near[0]!r}; upper and lower case and spaces "
                "matter."
            )
        warnings.warn(
            f"{seen}, so that every cell with a value counts as labelled. The labels are "
            f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}.",
            stacklevel=stacklevel,
        )
    elif suspects:
        written = repr([*marks, *suspects] if marks or suspects[1:] else suspects[0])
        warnings.warn(
            f"The label {suspects[0]!r} is taken as a cell type. If it means that a cell has no "
            f"label, write unlabelled={written}.",
            stacklevel=stacklevel,
        )
    index = torch.tensor([left.index(name) if name in left else -1 for name in names] + [-1])
    return index[label], tuple(left)


def _names_of_frame(x, label, batch, library, gene_names, cell_names):
    """The names of genes and cells, from a pandas DataFrame if it has them.

    Raises
    ------
    ValueError
        A pandas column of the cells has other row names than x, or the same in another order.
    """
    rows, columns = getattr(x, "index", None), getattr(x, "columns", None)
    if rows is None or columns is None:
        return gene_names, cell_names
    for name, values in (("label", label), ("batch", batch), ("library", library)):
        index = getattr(values, "index", None)
        if hasattr(index, "equals") and len(index) == len(rows) and not index.equals(rows):
            raise ValueError(
                f"The rows of x and of {name} have different names, such as {rows[0]!r} and "
                f"{index[0]!r}. Put them into one order, {name}.loc[x.index], or give only the "
                f"values, {name}.to_numpy()."
            )
    return (
        columns if gene_names is None else gene_names,
        rows if cell_names is None else cell_names,
    )


def _library(values, cell_names) -> Tensor:
    if isinstance(values, np.ma.MaskedArray):
        values = values.astype(float).filled(np.nan)
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
    for start, part in cells.parts():
        if not OUTSIDE[domain](matrices.values(part.x)).any():
            continue
        row, column, value = matrices.first(part.x, OUTSIDE[domain])
        seen = f"x holds {shown(value)} (row {start + row}, gene {cells.gene_names[column]!r})"
        if domain == "unit interval":
            raise ValueError(
                f"This likelihood or output needs values between 0 and 1, but {seen}. Scale each "
                "gene first: vaelab.log_normalize(adata) makes the layer 'unit_interval'."
            )
        if domain == "nonnegative":
            raise ValueError(
                f"A softmax output needs counts or shares, 0 or more, but {seen}. For values of "
                "any sign, choose output='linear'."
            )
        reason, cure = not_counts(part.x for _, part in cells.parts())
        raise ValueError(
            f"A count likelihood needs raw counts (0, 1, 2, …), but {seen}: {reason}. {cure}, or "
            "choose likelihood='normal'."
        )


def not_counts(parts) -> tuple[str, str]:
    """What values are that are not counts, and what to do, as two phrases for a message."""
    counts = "Give the raw counts, for example Cells.from_anndata(adata, layer='counts')"
    nearly_whole, first, lowest, highest = True, None, np.inf, -np.inf
    for part in parts:
        values = matrices.values(part)
        nearly_whole &= bool(matrices.nearly_whole(values).all())
        lowest = min(lowest, values.min(initial=np.inf))
        highest = max(highest, values.max(initial=-np.inf))
        first = part if first is None else first
    if nearly_whole:
        return (
            "every value is whole up to rounding, as after a logarithm was undone",
            "Round them, adata.X = vaelab.to_counts(adata.X)",
        )
    if lowest < 0:
        return "negative values, as after centring", counts
    if highest < 20 and _have_a_unit(first, np.expm1):
        return "fractions, as after log-normalisation", counts
    if _have_a_unit(first, lambda v: v):
        return "fractions, as after scaling all cells to the same total", counts
    return (
        "fractions that are not scaled counts or their logarithms, as in counts corrected for "
        "ambient RNA (SoupX, CellBender) or estimated from reads (salmon, RSEM)",
        "Round them to whole counts, adata.X = numpy.rint(adata.X), give the raw counts",
    )


def _have_a_unit(x, undo) -> bool:
    """True if in most cells ``undo(x)`` is a multiple of its smallest value, as scaled counts are.

    The smallest count of a cell is usually 1. 100 cells are looked at.
    """
    have = []
    for row in x[:100]:
        values = undo(matrices.values(row).ravel().astype(np.float64))
        values = values[values > 0]
        if len(values):
            multiples = values / values.min()
            # float32 has seven digits, of which a logarithm and its inverse leave about five.
            have.append(np.mean(np.abs(multiples - np.rint(multiples)) < 1e-4 * multiples) > 0.9)
    return bool(have) and np.mean(have) > 0.5


def shown(value: float) -> str:
    """A number in six digits, or in all its digits if it would seem whole and is not."""
    short = f"{value:.6g}"
    return repr(value) if float(short).is_integer() and not value.is_integer() else short
