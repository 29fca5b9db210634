"""Comparison of names: the genes, batches and labels of a model and those of cells."""

from __future__ import annotations

from .reading import name_of

__all__ = ["gene_columns", "index_of", "other_genes", "require_labels", "require_names", "to_frame"]


def require_names(
    kind: str, known: tuple[str, ...] | None, n_known: int, seen: tuple[str, ...]
) -> None:
    """Refuse cells whose batches or labels are not those of the model, in the same order.

    Parameters
    ----------
    kind
        "batch" or "label".
    known
        Names that the model has; None before it is fitted.
    n_known
        Number of names for which the model was made.
    seen
        Names that the cells have.

    Raises
    ------
    ValueError
        The names, or their numbers, differ.
    """
    single_batch = n_known == 1 and kind == "batch"  # its name does not matter
    if seen == known or (len(seen) == n_known and (known is None or single_batch)):
        return
    if known is None:
        raise ValueError(
            f"The model was made for {n_known} {kind} names, these cells have {len(seen)}: make it "
            f"with {'n_batches' if kind == 'batch' else 'n_labels'}=len(cells.{kind}_names)."
        )
    if seen == ("all",):
        raise ValueError(
            f"The model was fitted to cells of {kind} {', '.join(known)}, and these cells have no "
            f"{kind}: name their column, Cells.from_anndata(adata, {kind}=…)."
        )
    if new := [name for name in seen if name not in known]:
        weights = f" Or add weights: model.extend(batches=[{new[0]!r}])." if kind == "batch" else ""
        raise ValueError(
            f"The model was fitted to cells of {kind} {', '.join(known)}; it does not know "
            f"{new[0]!r}. Leave these cells out, or fit a model to all cells.{weights}"
            f"{' Or leave out their labels: cells.unlabelled().' if kind == 'label' else ''}"
        )
    raise ValueError(
        f"These cells have {kind} {', '.join(seen)}, the model {', '.join(known)}: number them in "
        "the model's order, cells.named(model.batch_names, model.label_names)."
    )


def require_labels(cells, known: tuple[str, ...] | None = None) -> None:
    """Refuse cells of which none has a label, unless the model knows its types already."""
    if known is None and not (cells.label >= 0).any():
        raise ValueError(
            "None of these cells has a label, and this model learns types from labelled cells: "
            "name their column, Cells.from_anndata(adata, label=…), or use a model without types."
        )


def index_of(kind: str, name: str, known: tuple[str, ...] | None) -> int:
    """The index of a batch or label in the model."""
    if known is None:
        raise ValueError(f"{kind} is {name!r}, but the model has no {kind} names: fit it first.")
    name = name_of(name)
    if name not in known:
        raise ValueError(f"{kind} is {name!r}; choose from those of the model: {', '.join(known)}.")
    return known.index(name)


def gene_columns(genes, known: tuple[str, ...]) -> tuple[list[int] | slice, list[str]]:
    """Where the genes of these names are, and their names; all for None."""
    if genes is None:
        return slice(None), [*known]
    genes = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if absent := [gene for gene in genes if gene not in known]:
        raise ValueError(
            f"{len(absent)} of the {len(genes)} genes are not among those of the model, for "
            f"example {absent[0]!r}. Genes are given by name; see model.gene_names."
        )
    return [known.index(gene) for gene in genes], genes


def to_frame(values, columns: list[str]):
    """A pandas DataFrame of values with one column per gene."""
    import pandas as pd

    return pd.DataFrame(values, columns=columns)


def other_genes(expected: tuple[str, ...], seen: tuple[str, ...]) -> str:
    """The error message for cells that have other genes, or the same in another order."""
    has = set(seen)
    absent = [name for name in expected if name not in has]
    n_others = len(has - set(expected))
    if absent:
        return (
            f"The model was fitted to other genes: {len(absent):,} of its {len(expected):,} are "
            f"not among these ({absent[0]!r} is the first), which have {n_others:,} others. "
            "cells.aligned_to(model) selects the model's genes and masks those that are missing."
        )
    others = f"and {n_others:,} others" if n_others else "in another order"
    return (
        f"These cells have the model's genes {others}: cells.aligned_to(model) selects the model's "
        "genes in its order."
    )
