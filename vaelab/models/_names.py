"""The genes, batches and labels that a model knows, by name."""

from __future__ import annotations

__all__ = ["check_names", "index_of", "other_genes"]


def check_names(
    kind: str, known: tuple[str, ...] | None, n_known: int, seen: tuple[str, ...]
) -> None:
    """Refuse cells whose batches or labels are not those of the model, in its order.

    Parameters
    ----------
    kind
        "batch" or "label".
    known
        The model's; None before it was fitted.
    n_known
        How many it was made for.
    seen
        The cells'.
    """
    if seen == known or (len(seen) == n_known and (known is None or n_known == 1)):
        return
    if known is None:
        raise ValueError(
            f"The model was made for {n_known} {kind} names, these cells have {len(seen)}: make it "
            f"with {'n_batches' if kind == 'batch' else 'n_labels'}=len(cells.{kind}_names)."
        )
    if seen == ("all",):
        raise ValueError(
            f"The model was fitted to cells of {kind} {', '.join(known)}, and these have none: "
            f"name their column, Cells.from_anndata(adata, {kind}=…)."
        )
    if new := [name for name in seen if name not in known]:
        raise ValueError(
            f"The model was fitted to cells of {kind} {', '.join(known)}; of {new[0]!r} it knows "
            "nothing. Leave these cells out, or fit a model to all."
        )
    raise ValueError(
        f"These cells have {kind} {', '.join(seen)}, the model {', '.join(known)}: number them as "
        "it does, by cells.named(model.batch_names, model.label_names)."
    )


def index_of(kind: str, name: str, known: tuple[str, ...] | None) -> int:
    """The model's number of a batch or label."""
    if known is None:
        raise ValueError(f"The model knows no {kind} by name, {name!r} or other: fit it first.")
    if name not in known:
        raise ValueError(f"There is no {kind} {name!r}: the model has {', '.join(known)}.")
    return known.index(name)


def other_genes(expected: tuple[str, ...], seen: tuple[str, ...]) -> str:
    """What to say of cells whose genes are not those of the model, in its order."""
    absent = [name for name in expected if name not in set(seen)]
    if absent:
        return (
            f"The model was fitted to other genes: {len(absent):,} of its {len(expected):,} are "
            f"not among these ({absent[0]!r} is the first). Select the same genes: "
            "adata[:, list(model.gene_names)]."
        )
    return (
        "These are the model's genes in another order. Put them in its own: "
        "adata[:, list(model.gene_names)]."
    )
