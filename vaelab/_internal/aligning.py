"""Cells of a query in the order of a model's genes, batches and labels: ``Cells.aligned_to``."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import torch

from . import matrices

__all__ = ["aligned"]


def aligned(cells, model, stacklevel: int):
    """The cells as a model reads them: see ``Cells.aligned_to``. ``stacklevel`` is for warnings."""
    if model.gene_names is None:
        raise ValueError("The model has no gene names: fit it before you align cells to it.")
    cells = _renumbered(cells, model)
    if cells.gene_names == model.gene_names:
        return cells
    place = {name: i for i, name in enumerate(cells.gene_names)}
    columns = np.array([place.get(name, -1) for name in model.gene_names])
    known, n_genes = columns >= 0, len(columns)
    n_missing, n_others = int((~known).sum()), cells.n_genes - int(known.sum())
    if n_missing == n_genes:
        raise ValueError(
            f"None of the model's {n_genes:,} genes ({model.gene_names[0]!r}, …) is among these "
            f"{cells.n_genes:,} ({cells.gene_names[0]!r}, …): give both the same kind of names."
        )
    kept = _share_of_columns(cells, columns)
    observed = cells.observed
    if observed is not None:
        observed = matrices.take(observed, columns)
    elif n_missing:  # one row, seen by every cell
        observed = torch.from_numpy(known).to(cells.library.device).expand(cells.n_cells, -1)
    x = matrices.take(cells.x, columns)
    cells = replace(cells, x=x, observed=observed, gene_names=model.gene_names)
    if model.domain == "counts" and n_others:
        cells = replace(cells, library=cells.library * kept.to(cells.library))
    if n_missing:
        name = model.gene_names[int(np.argmin(known))]
        warnings.warn(
            f"{n_missing:,} of the model's {n_genes:,} genes are not among these ({name!r} is the "
            f"first): they are masked. {n_others:,} other genes are left out.",
            stacklevel=stacklevel,
        )
        if model.domain == "counts":
            cells = replace(cells, library=cells.library / _typical_share(model, known))
    return cells


def _renumbered(cells, model):
    """The cells with the model's numbers of batches and labels, if it knows all of theirs."""
    for kind in ("batch", "label"):
        known, own = getattr(model, f"{kind}_names"), getattr(cells, f"{kind}_names")
        used = {own[i] for i in getattr(cells, kind).unique().tolist() if i >= 0}
        if known is not None and used <= {*known}:
            cells = cells.named(**{f"{kind}_names": known})
    return cells


def _share_of_columns(cells, columns: np.ndarray) -> torch.Tensor:
    """The share of each cell's values that these columns have; refuses cells with only zeros."""
    share = np.empty(cells.n_cells)
    for start, part in cells.parts():
        chosen, rows = matrices.take(part.x, columns), slice(start, start + part.n_cells)
        if (empty := matrices.n_nonzero(chosen) == 0).any():
            raise ValueError(
                f"The cell in row {start + int(np.argmax(empty))} has only zeros in the "
                f"{int((columns >= 0).sum()):,} genes that it shares with the model. Leave out "
                "cells with few counts in these genes, or use a model with more of them."
            )
        total, of_chosen = (np.asarray(x.sum(1, dtype=float)).ravel() for x in (part.x, chosen))
        with np.errstate(divide="ignore", invalid="ignore"):  # values that are not counts
            share[rows] = of_chosen / total
    return torch.from_numpy(share)


def _typical_share(model, known: np.ndarray) -> float:
    """The share of these genes in the counts of cells that the model generates."""
    in_batches = "n_batches" in model.configuration and model.batch_names
    options = [{"batch": name} for name in in_batches or ()] or [{}]
    counts = sum(model.generate(500, library=1e4, **option).sum(0) for option in options)
    return float(max(counts[known].sum(), 1) / counts.sum())
