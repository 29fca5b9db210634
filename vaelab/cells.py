"""Cells: what a model reads, made from AnnData once and sliced into minibatches."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ._internal.on_disk import OnDisk, UnreadableError, is_on_disk

__all__ = ["Cells"]

AT_ONCE = 2**24  # values of a part: 64 MiB as dense float32
OUTSIDE = {  # the values that do not belong to a domain
    "counts": lambda v: (v < 0) | (v != np.round(v)),
    "unit interval": lambda v: (v < 0) | (v > 1),
}


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
    _passed: set = field(default_factory=set, repr=False)  # domains that these values were seen in

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
            raise TypeError(f"This is no AnnData but a {kind}: Cells.from_array takes a matrix.")
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"No layer {layer!r}: this AnnData has {list(adata.layers) or 'none'}.")
        if observed is not None and observed not in adata.layers:
            raise KeyError(
                f"No layer {observed!r}: this AnnData has {list(adata.layers) or 'none'}."
            )
        return cls.from_array(
            adata.X if layer is None else adata.layers[layer],
            label=_column(adata, label),
            batch=_column(adata, batch),
            library=_column(adata, library),
            observed=None if observed is None else adata.layers[observed],
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
        from scipy import sparse

        # A copy: what is done to the AnnData later must not reach these cells.
        if is_on_disk(x):
            x = OnDisk(x)
        else:
            x = sparse.csr_matrix(x, copy=True) if sparse.issparse(x) else np.asarray(x).copy()
        if x.ndim != 2 or x.dtype.kind not in "buif":
            raise ValueError(
                f"x must be a matrix of numbers, cells × genes, but has shape {x.shape} and holds "
                f"{x.dtype}."
            )
        x = x if isinstance(x, OnDisk) else _floats(x)
        n_cells, n_genes = x.shape
        if n_cells == 0 or n_genes == 0:
            raise ValueError(f"There is nothing here: {n_cells} cells × {n_genes} genes.")
        for name, given, n, of_what in (
            ("label", label, n_cells, "cells"),
            ("batch", batch, n_cells, "cells"),
            ("library", library, n_cells, "cells"),
            ("cell_names", cell_names, n_cells, "cells"),
            ("gene_names", gene_names, n_genes, "genes"),
        ):
            if given is not None and np.shape(given) != (n,):
                raise ValueError(
                    f"{name} has shape {np.shape(given)}; it must hold one value for each of the "
                    f"{n:,} {of_what}."
                )
        gene_names = tuple(map(str, range(n_genes) if gene_names is None else gene_names))
        cell_names = range(n_cells) if cell_names is None else cell_names
        name, times = Counter(gene_names).most_common(1)[0]
        if times > 1:
            raise ValueError(
                f"{times} genes are called {name!r}. Tell them apart with "
                "adata.var_names_make_unique()."
            )
        if observed is not None:
            observed = _mask(observed, x.shape, may_stay=isinstance(x, OnDisk))
        survey = _survey(x, observed, gene_names, cell_names)
        if survey.n_silent:
            warnings.warn(
                f"{survey.n_silent} of {n_genes:,} genes are zero in every cell: they teach a "
                "model nothing. vaelab.select_genes leaves them out.",
                stacklevel=3,
            )
        if observed is not None and not isinstance(x, OnDisk):
            x = _hide(x, observed)
        library = survey.library if library is None else _library(library, cell_names)
        label, label_names = _encode(label, n_cells, unlabelled)
        given, batch_names = _encode(batch, n_cells)
        if batch is not None and (given < 0).any():
            row = int(given.argmin())
            raise ValueError(
                f"Cell {cell_names[row]!r} has no batch (nor have {int((given < 0).sum())} cells "
                "in all). Name it, or leave such cells out."
            )
        return cls(
            x=x,
            library=library,
            batch=given.clamp(min=0),
            label=label,
            observed=observed,
            gene_names=gene_names,
            batch_names=batch_names or ("all",),
            label_names=label_names,
            _passed=survey.passed,
        )

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
            _passed=set(self._passed),  # what holds for some need not hold for all
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
            _passed=set(self._passed),
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
                    f"There are cells of {kind} {unknown!r}, which is none of {list(names)}."
                )
        return replace(self, **changes, _passed=set(self._passed))

    def unlabelled(self) -> Cells:
        """The same cells without their labels."""
        label = torch.full_like(self.label, -1)
        return replace(self, label=label, _passed=set(self._passed))

    def in_memory(self) -> Cells:
        """The same cells, their values read if these are in a file.

        Raises
        ------
        UnreadableError
            The file is closed or damaged, or has changed.
        """
        if not isinstance(self.x, OnDisk):
            return self
        x, observed = _read(self.x), self.observed
        if observed is not None:
            observed = _mask(observed, x.shape)
            x = _hide(x, observed)
        if (_n_nonzero(x) == 0).any():  # zarr gives 0 for what is gone
            raise UnreadableError("The file has changed: cells that held values hold none now.")
        return replace(self, x=x, observed=observed, _passed=set(self._passed))

    def parts(self) -> Iterator[tuple[int, Cells]]:
        """All cells, so many at a time as fit in memory, each time with the number of the first."""
        for rows in _parts(self.x):
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
        outside, seen, lowest, highest = OUTSIDE[domain], None, np.inf, -np.inf
        for start, part in self.parts():
            values = _values(part.x)
            if seen is None and outside(values).any():
                row, column, value = _first(part.x, outside)
                seen = f"x holds {value:.6g} (row {start + row}, gene {self.gene_names[column]!r})"
            lowest = min(lowest, values.min(initial=np.inf))
            highest = max(highest, values.max(initial=-np.inf))
        if seen:
            raise ValueError(_refusal(domain, seen, lowest, highest))
        self._passed.add(domain)


def _refusal(domain: str, seen: str, lowest: float, highest: float) -> str:
    if domain == "unit interval":
        return (
            f"This likelihood needs values between 0 and 1, but {seen}. Scale each gene first: "
            "vaelab.log_normalize(adata) makes the layer 'unit_interval'."
        )
    if lowest < 0:
        what = "negative values, as scaling and centring make them"
    elif highest < 20:
        what = "fractions, as log-normalisation makes them"
    else:
        what = "fractions, as scaling cells to one total makes them"
    return (
        f"A count likelihood needs raw counts (0, 1, 2, …), but {seen}: {what}. Give the raw "
        "counts, for example Cells.from_anndata(adata, layer='counts'), or choose "
        "likelihood='normal'."
    )


@dataclass
class _Survey:
    """What one reading of all values tells of them."""

    library: Tensor
    n_silent: int
    passed: set[str]


def _survey(x, observed, gene_names, cell_names) -> _Survey:
    """Refuse values that no model can be fitted to, and cells without any."""
    n_nonzero, total = np.zeros(x.shape[0], dtype=int), np.zeros(x.shape[0])
    n_expressing, of_gene = np.zeros(x.shape[1], dtype=int), np.zeros(x.shape[1])
    n_observed = np.zeros(x.shape[1], dtype=int)
    passed = set(OUTSIDE)
    for rows in _parts(x):
        part = _read(x[rows])
        if not np.isfinite(_values(part)).all():
            row, column, value = _first(part, lambda v: ~np.isfinite(v))
            raise ValueError(
                f"x holds {value} (cell {cell_names[rows.start + row]!r}, gene "
                f"{gene_names[column]!r}). If it means that nothing was measured there, set it to "
                "0 and mark it in `observed`."
            )
        if observed is not None:
            mask = _mask(observed[rows], part.shape)
            part = _hide(part, mask)
            n_observed += mask.sum(0).numpy()
        n_nonzero[rows] = _n_nonzero(part)
        n_expressing += _n_nonzero(part, axis=0)
        total[rows] = np.asarray(part.sum(1)).ravel()
        of_gene += np.asarray(part.sum(0)).ravel()
        passed = {domain for domain in passed if not OUTSIDE[domain](_values(part)).any()}
    if (n_nonzero == 0).any():
        row = int(np.argmin(n_nonzero))
        raise ValueError(
            f"Cell {cell_names[row]!r} is empty: all its {x.shape[1]:,} values are zero or not "
            f"observed (so are those of {int((n_nonzero == 0).sum())} cells in all). Leave "
            "such cells out, for example with scanpy.pp.filter_cells(adata, min_counts=1)."
        )
    if observed is not None:
        # What part of a cell's counts its observed genes hold, in the average cell.
        of_gene /= n_observed.clip(min=1)  # the mean over the cells in which it was observed
        for rows in _parts(x):
            mask = _mask(observed[rows], (len(total[rows]), x.shape[1]))
            total[rows] /= mask.double().numpy() @ of_gene / of_gene.sum()
    return _Survey(torch.as_tensor(total).float(), int((n_expressing == 0).sum()), passed)


def _parts(x) -> Iterator[slice]:
    """Rows in their order, so many at a time as fit in memory; a bar shows a long reading."""
    from tqdm import tqdm

    n_rows = max(1, AT_ONCE // x.shape[1])
    reading = {"desc": "Reading", "delay": 2, "leave": False, "file": sys.stdout}
    for start in tqdm(range(0, x.shape[0], n_rows), **reading, disable=not isinstance(x, OnDisk)):
        yield slice(start, min(start + n_rows, x.shape[0]))


def _read(x):
    return _floats(x.read()) if isinstance(x, OnDisk) else x


def _floats(x):
    """A matrix of any numbers as a CSR matrix or a tensor of float32, or float64 if it is that."""
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x)
    x.sum_duplicates()
    return x


def _values(x) -> np.ndarray:
    """All values, or those that a sparse matrix stores."""
    return x.cpu().numpy() if isinstance(x, Tensor) else x.data


def _n_nonzero(x, axis: int = 1) -> np.ndarray:
    return np.asarray((x != 0).sum(axis)).ravel()


def _hide(x, observed: Tensor):
    """0 where nothing was observed."""
    return x * observed if isinstance(x, Tensor) else x.multiply(observed.numpy()).tocsr()


def _mask(observed, shape, may_stay: bool = False) -> Tensor | OnDisk:
    """A mask as a tensor; one in a file as it is if it `may_stay` there."""
    if is_on_disk(observed):
        observed = OnDisk(observed)
    if isinstance(observed, OnDisk) and may_stay and observed.shape == tuple(shape):
        return observed
    observed = observed.toarray() if hasattr(observed, "toarray") else np.asarray(observed)
    if observed.shape != tuple(shape) or not np.isin(observed, (0, 1)).all():
        raise ValueError(
            f"observed must be a matrix of True and False of x's shape {tuple(shape)}, but has "
            f"shape {observed.shape} and holds {observed.dtype}."
        )
    return torch.from_numpy(observed.astype(bool))


def _column(adata, name: str | None):
    if name is None:
        return None
    if name not in adata.obs:
        raise KeyError(f"No column {name!r} in adata.obs: it has {list(adata.obs.columns)}.")
    return adata.obs[name]


def _encode(values, n_cells: int, missing: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Names to indices, −1 where the value is missing."""
    import pandas as pd

    if values is None:
        return torch.full((n_cells,), -1), ()
    values = pd.Series(np.asarray(values, dtype=object))
    names = values.map(str, na_action="ignore")
    # Numbers in the order of numbers; 1 and "1" are one name.
    order = dict.fromkeys(map(str, values.astype("category").cat.categories))
    if missing is not None:
        order.pop(str(missing), None)
    codes = pd.Categorical(names, categories=list(order)).codes
    return torch.as_tensor(codes.astype(np.int64)), tuple(order)


def _library(values, cell_names) -> Tensor:
    try:
        library = torch.as_tensor(np.asarray(values, dtype=np.float64)).to(torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"library must hold a number for each cell: {error}.") from None
    wrong = ~(library.isfinite() & (library > 0))
    if wrong.any():
        row = int(wrong.int().argmax())
        raise ValueError(
            f"The library of cell {cell_names[row]!r} is {library[row]:g} (that of "
            f"{int(wrong.sum())} cells in all is not a number above 0); it must be the cell's "
            "expected total of counts."
        )
    return library


def _first(x, condition) -> tuple[int, int, float]:
    """Row, column and value of the first entry that meets a condition."""
    if isinstance(x, Tensor):
        x = x.cpu().numpy()
        row, column = np.argwhere(condition(x))[0]
        return int(row), int(column), float(x[row, column])
    x = x.tocoo()
    k = int(np.argmax(condition(x.data)))
    return int(x.row[k]), int(x.col[k]), float(x.data[k])
