"""Cells: what a model reads, made from AnnData once and sliced into minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ._internal import matrices
from ._internal.aligning import aligned
from ._internal.on_disk import OnDisk, UnreadableError
from ._internal.reading import (
    UNKNOWN,
    column,
    layer_of,
    matrix_of,
    name_of,
    read_cells,
    refuse_outside,
)

__all__ = ["Cells"]


@dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """Measurements of some cells, with the library size, batch and label of each cell.

    Make it with :meth:`from_anndata` or :meth:`from_array`. ``cells[rows]`` selects cells, and
    ``cells.to(device)`` gives dense tensors on a device. The values may stay in a file: selecting
    cells does not read them, ``to`` does.

    Parameters
    ----------
    x
        Measurements, shape (n_cells, n_genes): a scipy CSR matrix, a dense tensor, or an OnDisk.
    library
        Library size ℓ, the expected total of each cell's counts over all these genes, shape
        (n_cells,).
    batch
        Index of each cell's batch in ``batch_names``, shape (n_cells,).
    label
        Index of each cell's label in ``label_names``, −1 if the cell has none, shape (n_cells,).
    observed
        Mask of the entries of x that were measured, shape (n_cells, n_genes), a tensor or an
        OnDisk; None if all were. Models neither see nor score the other entries.
    gene_names, batch_names, label_names
        Names of the genes in the order of x's columns, and of the batches and labels in the order
        of their indices.
    """

    x: object
    library: Tensor
    batch: Tensor
    label: Tensor
    observed: Tensor | OnDisk | None
    gene_names: tuple[str, ...]
    batch_names: tuple[str, ...]
    label_names: tuple[str, ...]
    _passed: frozenset = frozenset()  # domains to which all values are known to belong

    @classmethod
    def from_anndata(
        cls,
        adata,
        layer: str | None = None,
        label: str | None = None,
        batch: str | None = None,
        library: str | None = None,
        observed: str | None = None,
        unlabelled: str | Sequence[str] | None = None,
    ) -> Cells:
        """The cells of an AnnData.

        Parameters
        ----------
        adata
            AnnData of cells × genes. If its matrix is in a file, the values stay there and are read
            in parts; the file must stay open and unchanged. Examples are the X (but not the layers)
            of ``anndata.read_h5ad(path, backed="r")``, and any matrix given to AnnData as
            ``anndata.io.sparse_dataset(zarr.open(path, mode="r")["X"])``, next to the obs and var
            from ``anndata.io.read_elem(zarr.open(path, mode="r")["obs"])``. A selection of cells
            and genes, such as ``adata[:, genes]``, stays in the file too.
        layer
            Key in ``adata.layers`` of the matrix to use; None for ``adata.X``. Count likelihoods
            need raw counts.
        label, batch
            Columns of ``adata.obs`` with the cell types and with the experiments.
        library
            Column of ``adata.obs`` with the library sizes ℓ; None for each cell's total over these
            genes.
        observed
            Key in ``adata.layers`` of a boolean matrix that is False for missing entries.
        unlabelled
            Name in the label column that means "not known", or several such names. Missing values
            always mean it. Names are compared exactly: a label such as "Unknown" that is not given
            here is taken as a cell type, with a warning.

        Raises
        ------
        KeyError
            ``adata`` does not have the column or layer.
        TypeError
            ``adata`` is not an AnnData.
        ValueError
            A value is NaN or infinite; a cell has only zeros, no batch, or a library that is not
            above 0; two genes have the same name; no label is called ``unlabelled``, but another
            one looks like it; there is no X; or a matrix in a file is stored gene by gene.
        UnreadableError
            The file is closed or damaged.
        """
        if not hasattr(adata, "layers"):
            kind = type(adata).__name__
            raise TypeError(
                f"Expected an AnnData, got a {kind}. For a matrix, use Cells.from_array."
            )
        return cls.from_array(
            matrix_of(adata) if layer is None else layer_of(adata, layer),
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
        unlabelled: str | Sequence[str] | None = None,
        gene_names=None,
        cell_names=None,
    ) -> Cells:
        """The cells of a matrix, dense or scipy-sparse, with one value per cell of each property.

        The parameters mean the same as in :meth:`from_anndata`, but are arrays, not names.
        ``gene_names`` and ``cell_names`` default to those of a pandas DataFrame, or to numbers. A
        masked entry of a masked array was not observed. Names are text: 1, 1.0 and "1" are one.
        """
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
        """The name of each cell's label, "unknown" if the cell has none; shape (n_cells,)."""
        return np.array([*self.label_names, UNKNOWN], dtype=object)[self.label.cpu().numpy()]

    def __len__(self) -> int:
        return self.n_cells

    def __repr__(self) -> str:
        return (
            f"Cells({self.n_cells:,} cells × {self.n_genes:,} genes, {len(self.batch_names)} "
            f"batches, {len(self.label_names)} labels)"
        )

    def __getitem__(self, rows) -> Cells:
        """Some of the cells; ``rows`` is a number, a slice, a boolean mask or indices."""
        if not isinstance(rows, slice):
            rows = np.atleast_1d(rows.cpu() if isinstance(rows, Tensor) else rows)
            rows = rows if rows.size else rows.astype(int)  # np.array([]) holds floats
            if rows.dtype.kind not in "biu" or np.ma.is_masked(rows):
                raise IndexError(
                    f"Cells are selected by numbers, a slice, or True and False, not by values of "
                    f"dtype {rows.dtype} or with missing ones. Fill those in, mask.fillna(False)."
                )
        if not isinstance(rows, slice) or (rows.step or 1) < 0:  # torch cannot step backwards
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
        """The same cells as dense tensors on a device, with 0 for entries not observed."""
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
        """The same cells, with batches and labels numbered in the order of the given names.

        A model needs this for cells that were not made together with those it was fitted to:
        ``cells.named(model.batch_names, model.label_names)``.

        Raises
        ------
        ValueError
            A cell has a batch or label that is not among the names.
        """
        changes = {}
        for kind, names in (("batch", batch_names), ("label", label_names)):
            if names is None:
                continue
            index, own = getattr(self, kind), getattr(self, f"{kind}_names")
            names = [name_of(name) for name in ([names] if np.ndim(names) == 0 else names)]
            new = torch.tensor([names.index(n) if n in names else -2 for n in own] + [-1])
            changes |= {kind: new.to(index.device)[index], f"{kind}_names": tuple(names)}
            if (changes[kind] == -2).any():
                unknown = own[int(index[changes[kind] == -2][0])]
                raise ValueError(
                    f"There are cells of {kind} {unknown!r}, which is not one of {names}."
                    + (" embed and predict need no labels." if kind == "label" else "")
                )
        return replace(self, **changes)

    def aligned_to(self, model) -> Cells:
        """The same cells as a fitted model reads them, for a query that meets a reference.

        The genes are those of the model, in its order. Genes that these cells lack are masked in
        ``observed``, which is not the same as zero. Genes that the model lacks are left out. For
        counts, the library size is then the expected total over all genes of the model: the old
        one, times the share of the cell's counts in the genes that stay, and divided by the share
        that these genes have in cells that the model generates. If genes are missing, a warning has
        both numbers.

        Batches and labels get the model's numbers if it knows all of their names. Else they keep
        their own names; ``model.extend`` gives new batches weights of their own.

        Parameters
        ----------
        model
            A fitted model, whose ``gene_names`` are known.

        Raises
        ------
        ValueError
            The model has not been fitted, no gene is shared, or a cell has only zeros in the genes
            that are shared.
        UnreadableError
            The cells are in a file that is closed or damaged.
        """
        return aligned(self, model, stacklevel=3)

    def unlabelled(self) -> Cells:
        """The same cells without their labels."""
        return replace(self, label=torch.full_like(self.label, -1))

    def in_memory(self) -> Cells:
        """The same cells, with all values in memory.

        Raises
        ------
        UnreadableError
            The file is closed or damaged, or it has changed.
        """
        if not isinstance(self.x, OnDisk):
            return self
        x, observed = matrices.read(self.x), self.observed
        if observed is not None:
            observed = matrices.mask(observed, x.shape)
            x = matrices.hide(x, observed)
        if (matrices.n_nonzero(x) == 0).any():  # zarr gives 0 for missing chunks
            raise UnreadableError(
                "The file has changed: cells that had values now have only zeros. Make the cells "
                "again from a whole file."
            )
        return replace(self, x=x, observed=observed)

    def parts(self) -> Iterator[tuple[int, Cells]]:
        """The row of the first cell and the cells, as many at a time as fit in memory."""
        for rows in matrices.parts(self.x):
            yield rows.start, self[rows].in_memory()

    def standard_deviations(self) -> Tensor:
        """The standard deviation of each gene over the cells where it is observed; (n_genes,).

        It is 0 if the values differ by no more than float32 rounds.
        """
        n, mean, squares = (torch.zeros(self.n_genes, dtype=torch.float64) for _ in range(3))
        for _, part in self.parts():  # Chan et al. 1983: exact also if the mean is large
            x = part.to("cpu", torch.float64).x
            seen = torch.ones_like(x) if part.observed is None else part.observed.to(x)
            n_part = seen.sum(0)
            mean_part = (x * seen).sum(0) / n_part.clamp(min=1)
            squares += ((x - mean_part).square() * seen).sum(0)
            squares += (mean_part - mean).square() * n * n_part / (n + n_part).clamp(min=1)
            mean += (mean_part - mean) * n_part / (n + n_part).clamp(min=1)
            n += n_part
        std = (squares / n.clamp(min=1)).sqrt()
        return std.where(std > 1e-6 * mean.abs(), 0.0)

    def require_domain(self, domain: str) -> None:
        """Refuse values that a likelihood, or the output of an autoencoder, cannot give.

        Parameters
        ----------
        domain
            Values that the model allows: "counts" (0, 1, 2, …), "unit interval" ([0, 1]),
            "nonnegative" (0 or more) or "real".

        Raises
        ------
        ValueError
            A value is outside the domain. The message has the first such value and a probable
            reason.
        """
        if domain in self._passed or domain == "real":
            return
        refuse_outside(domain, self)
        object.__setattr__(self, "_passed", self._passed | {domain})  # a cache
