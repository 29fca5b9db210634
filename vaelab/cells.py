"""Cells: what a model reads, made from AnnData once and sliced into minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ._internal import matrices
from ._internal.on_disk import OnDisk, UnreadableError
from ._internal.reading import column, layer_of, read_cells, refuse_outside

__all__ = ["Cells"]


@dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """Measurements of some cells, with what is known of each of them.

    Make it with :meth:`from_anndata` or :meth:`from_array`; take cells by ``cells[rows]``; get
    dense tensors on a device by ``cells.to(device)``. The values may stay in a file: then they are
    read by ``to``, and by nothing that only chooses cells.

    Parameters
    ----------
    x
        Measurements, shape (n_cells, n_genes): a scipy CSR matrix, a dense tensor, or an OnDisk.
    library
        ℓ, expected total of a cell's counts over all these genes, shape (n_cells,).
    batch
        Index into ``batch_names``, shape (n_cells,).
    label
        Index into ``label_names``, −1 where it is not known, shape (n_cells,).
    observed
        True where an entry of x was measured, shape (n_cells, n_genes), a tensor or an OnDisk;
        None if all were. Models neither see nor score the others.
    gene_names, batch_names, label_names
        In the order of the columns and the indices.
    """

    x: object
    library: Tensor
    batch: Tensor
    label: Tensor
    observed: Tensor | OnDisk | None
    gene_names: tuple[str, ...]
    batch_names: tuple[str, ...]
    label_names: tuple[str, ...]
    _passed: frozenset = frozenset()  # domains that all values are known to belong to

    @classmethod
    def from_anndata(
        cls,
        adata,
        layer: str | None = None,
        label: str | None = None,
        batch: str | None = None,
        library: str | None = None,
        observed: str | None = None,
        unlabelled: str | None = None,
    ) -> Cells:
        """Take what a model needs from an AnnData.

        Parameters
        ----------
        adata
            Cells × genes. A matrix that it has in a file stays there, and is read in parts; the
            file must stay open and unchanged. So it is with the X (but no layer) of
            ``anndata.read_h5ad(path, backed="r")``, and with any matrix given to AnnData as
            ``anndata.io.sparse_dataset(zarr.open(path, mode="r")["X"])``, beside its obs and var,
            ``anndata.io.read_elem(zarr.open(path, mode="r")["obs"])``.
        layer
            Which matrix: a key of ``adata.layers``; None for ``adata.X``. Raw counts for the
            count likelihoods.
        label, batch
            Columns of ``adata.obs`` with cell types and experiments.
        library
            Column of ``adata.obs`` with ℓ; None for each cell's total over these genes.
        observed
            A boolean layer: False where the entry is missing.
        unlabelled
            The name in the label column that means "not known"; missing values always do.

        Raises
        ------
        KeyError
            A column or layer that ``adata`` does not have.
        ValueError
            A value that is NaN or infinite; a cell without any, without a batch, or whose library
            is not above 0; two genes of one name; a matrix in a file that is stored by genes.
        UnreadableError
            A file that is closed or damaged.
        """
        if not hasattr(adata, "layers"):
            kind = type(adata).__name__
            raise TypeError(f"Expected an AnnData, got a {kind}: Cells.from_array takes a matrix.")
        return cls.from_array(
            adata.X if layer is None else layer_of(adata, layer),
            label=column(adata, label),
            batch=column(adata, batch),
            library=column(adata, library),
            observed=None if observed is None else layer_of(adata, observed),
            unlabelled=unlabelled,
            gene_names=adata.var_names,
            cell_names=adata.obs_names,
        )

    @classmethod
    def from_array(
        cls,
        x,
        label=None,
        batch=None,
        library=None,
        observed=None,
        unlabelled: str | None = None,
        gene_names=None,
        cell_names=None,
    ) -> Cells:
        """The same from a matrix (dense or scipy-sparse) and one value a cell of each property."""
        fields = read_cells(
            x, label, batch, library, observed, unlabelled, gene_names, cell_names, stacklevel=4
        )
        return cls(**fields)

    @property
    def n_cells(self) -> int:
        return self.x.shape[0]

    @property
    def n_genes(self) -> int:
        return self.x.shape[1]

    @property
    def labels(self) -> np.ndarray:
        """Each cell's label by name, "unknown" where it is −1; shape (n_cells,)."""
        return np.array([*self.label_names, "unknown"], dtype=object)[self.label.cpu().numpy()]

    def __len__(self) -> int:
        return self.n_cells

    def __repr__(self) -> str:
        return (
            f"Cells({self.n_cells:,} cells × {self.n_genes:,} genes, {len(self.batch_names)} "
            f"batches, {len(self.label_names)} labels)"
        )

    def __getitem__(self, rows) -> Cells:
        """Some of the cells: ``rows`` is a number, a slice, a boolean mask or indices."""
        if not isinstance(rows, slice):
            rows = np.atleast_1d(rows.cpu() if isinstance(rows, Tensor) else rows)
            rows = rows if rows.size else rows.astype(int)  # np.array([]) holds floats
        if not isinstance(rows, slice) or (rows.step or 1) < 0:  # torch can't step backwards
            rows = torch.tensor(np.arange(self.n_cells)[rows].copy())
        dense = isinstance(self.x, Tensor) or isinstance(rows, slice)
        return replace(
            self,
            x=self.x[rows if dense else rows.numpy()],
            library=self.library[rows],
            batch=self.batch[rows],
            label=self.label[rows],
            observed=None if self.observed is None else self.observed[rows],
        )

    def to(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Cells:
        """The same cells as dense tensors on a device, with 0 for what was not observed."""
        cells = self.in_memory()
        x = cells.x if isinstance(cells.x, Tensor) else torch.from_numpy(cells.x.toarray())
        observed = cells.observed
        return replace(
            self,
            x=(x if observed is None else x.where(observed, 0)).to(device, dtype),
            library=self.library.to(device, dtype),
            batch=self.batch.to(device),
            label=self.label.to(device),
            observed=None if observed is None else observed.to(device),
        )

    def named(
        self, batch_names: Sequence[str] | None = None, label_names: Sequence[str] | None = None
    ) -> Cells:
        """The same cells with batches and labels numbered in the order of other names.

        What a model needs of cells that were made apart from those it was fitted to:
        ``cells.named(model.batch_names, model.label_names)``.

        Raises
        ------
        ValueError
            A cell's batch or label is not among the names.
        """
        changes = {}
        for kind, names in (("batch", batch_names), ("label", label_names)):
            if names is None:
                continue
            index, own = getattr(self, kind), getattr(self, f"{kind}_names")
            new = torch.tensor([names.index(n) if n in names else -2 for n in own] + [-1])
            changes |= {kind: new.to(index.device)[index], f"{kind}_names": tuple(names)}
            if (changes[kind] == -2).any():
                unknown = own[int(index[changes[kind] == -2][0])]
                raise ValueError(
                    f"There are cells of {kind} {unknown!r}, which is not one of {list(names)}."
                )
        return replace(self, **changes)

    def unlabelled(self) -> Cells:
        """The same cells without their labels."""
        return replace(self, label=torch.full_like(self.label, -1))

    def in_memory(self) -> Cells:
        """The same cells, their values read if these are in a file.

        Raises
        ------
        UnreadableError
            The file is closed or damaged, or has changed.
        """
        if not isinstance(self.x, OnDisk):
            return self
        x, observed = matrices.read(self.x), self.observed
        if observed is not None:
            observed = matrices.mask(observed, x.shape)
            x = matrices.hide(x, observed)
        if (matrices.n_nonzero(x) == 0).any():  # zarr gives 0 for what is gone
            raise UnreadableError("The file has changed: cells that held values hold none now.")
        return replace(self, x=x, observed=observed)

    def parts(self) -> Iterator[tuple[int, Cells]]:
        """All cells, as many at a time as fit in memory, with the row of the first."""
        for rows in matrices.parts(self.x):
            yield rows.start, self[rows].in_memory()

    def check(self, domain: str) -> None:
        """Refuse values that a likelihood gives no probability to.

        Parameters
        ----------
        domain
            "counts" (0, 1, 2, …), "unit interval" ([0, 1]) or "real".

        Raises
        ------
        ValueError
            With the first value that lies outside, and what it looks like.
        """
        if domain in self._passed or domain == "real":
            return
        refuse_outside(domain, self)
        object.__setattr__(self, "_passed", self._passed | {domain})  # nothing else changes
