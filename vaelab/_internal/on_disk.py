"""A matrix that stays in its file: rows are selected at once and read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["OnDisk", "UnreadableError", "is_on_disk", "take_columns"]

NEAR = 2**17  # bytes: for a smaller gap, one reading takes less time than two


class UnreadableError(OSError):
    """The rows of a matrix cannot be read from its file."""


def is_on_disk(matrix) -> bool:
    """True if the matrix is in a file: h5py, zarr, dask, or anndata's backed sparse matrix."""
    from scipy import sparse

    in_memory = isinstance(matrix, np.ndarray) or sparse.issparse(matrix)  # also anndata's views
    library = type(matrix).__module__.partition(".")[0]
    return not in_memory and library in ("anndata", "dask", "h5py", "zarr")


class OnDisk:
    """Rows of a matrix in a file: ``matrix[rows]`` selects rows, ``matrix.read()`` reads them.

    ``block_size`` is the number of neighbouring rows to read together, so that training takes
    little more time than in memory. It is larger for zarr, whose chunks are larger.

    Parameters
    ----------
    matrix
        An h5py dataset, a zarr array, or ``anndata.io.sparse_dataset`` of a group of either.

    Raises
    ------
    ValueError
        The matrix is stored by columns, or it is computed by dask instead of stored in a file.
    UnreadableError
        The file is closed or damaged.
    """

    def __init__(self, matrix):
        if type(matrix).__module__.startswith("dask"):
            raise ValueError(
                "This matrix is computed by dask, again each time that a row is read; a matrix in "
                "a file was expected. Give its values, matrix.compute(), or open its file with "
                "anndata.read_h5ad(path, backed='r')."
            )
        if getattr(matrix, "format", "csr") != "csr":
            raise ValueError(
                "This matrix is stored in its file gene by gene (CSC), so that a single cell "
                "cannot be read; it must be stored cell by cell (CSR). Use adata.to_memory(), or "
                "write adata.X.to_memory().tocsr() into another file."
            )
        self._sparse, self._file = hasattr(matrix, "format"), "its file"
        with self._reading():
            # Read from the arrays themselves: a slice of anndata's own matrix takes 2 ms, ten
            # times as long.
            names = ("data", "indices", "indptr") if self._sparse else ()
            self._arrays = [matrix.group[name] for name in names] or [matrix]
            self._file = _path(self._arrays[0])
            self.shape, self.dtype, self.ndim = matrix.shape, matrix.dtype, len(matrix.shape)
            n_bytes = sum(array.nbytes for array in self._arrays[:2])
            self._near = NEAR * np.prod(self.shape[:1]) / max(1, n_bytes)  # rows
            if self._sparse:
                self._arrays[2] = self._arrays[2][:]  # 8 bytes per cell
        self.block_size = 64 if hasattr(self._arrays[0], "oindex") else 16
        self.rows = np.arange(self.shape[0]) if self.shape else None
        self.columns = None  # indices of columns, −1 for a column of 0; None for all
        self.width = self.shape[-1] if self.shape else 0  # number of columns that are read

    def __getitem__(self, rows) -> OnDisk:
        chosen = object.__new__(OnDisk)
        chosen.__dict__ |= self.__dict__ | {"rows": self.rows[rows]}
        chosen.shape = (len(chosen.rows), *self.shape[1:])
        return chosen

    def with_columns(self, columns: np.ndarray) -> OnDisk:
        """The matrix with these columns in this order, and columns of 0 for each −1."""
        if self.columns is not None:
            columns = np.where(columns >= 0, self.columns[columns], -1)
        chosen = object.__new__(OnDisk)
        chosen.__dict__ |= self.__dict__ | {"columns": columns}
        chosen.shape = (self.shape[0], len(columns))
        return chosen

    def part(self, rows, columns) -> OnDisk:
        """Some rows and columns, each as numpy selects them. Whole rows are read."""
        return self[rows].with_columns(np.arange(self.shape[1])[columns])

    def read(self):
        """The rows in memory: a scipy CSR matrix, or an array.

        Raises
        ------
        UnreadableError
            The file is closed or damaged.
        """
        rows = np.unique(self.rows)
        pieces = np.split(rows, 1 + np.flatnonzero(np.diff(rows) > 1 + self._near))
        runs = [(piece[0], piece[-1] + 1) for piece in pieces if len(piece)] or [(0, 0)]
        with self._reading():
            x = self._read_sparse(runs) if self._sparse else _take(self._arrays[0], runs)
        x = x[np.searchsorted(_within(runs), self.rows)]
        return x if self.columns is None else take_columns(x, self.columns)

    def toarray(self) -> np.ndarray:
        """The rows in memory, dense."""
        return self.read().toarray() if self._sparse else self.read()

    def _read_sparse(self, runs: list[tuple[int, int]]):
        from scipy import sparse

        data, indices, indptr = self._arrays
        spans = [(indptr[start], indptr[stop]) for start, stop in runs]
        n_values = np.concatenate([np.diff(indptr[start : stop + 1]) for start, stop in runs])
        x = sparse.csr_matrix(
            (_take(data, spans), _take(indices, spans), np.append(0, np.cumsum(n_values))),
            shape=(len(n_values), self.width),
        )
        x.check_format(full_check=True)  # an index out of range would crash the process
        return x

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UnreadableError(
                f"{self._file} cannot be read ({error}). It must stay open, whole and unchanged "
                "while its cells are in use."
            ) from error


def take_columns(x, columns: np.ndarray):
    """These columns of a CSR matrix or an array, and columns of 0 for each −1."""
    from scipy import sparse

    if not sparse.issparse(x):
        return np.ascontiguousarray(np.where(columns >= 0, x[:, columns], x.dtype.type(0)))
    place = np.flatnonzero(columns >= 0)
    ones = (np.ones(len(place), dtype=x.dtype), (columns[place], place))
    return (x @ sparse.csr_matrix(ones, shape=(x.shape[1], len(columns)))).tocsr()


def _take(stored, runs: list[tuple[int, int]]) -> np.ndarray:
    if hasattr(stored, "oindex") and len(runs) > 1:
        return stored.oindex[_within(runs)]  # zarr decodes each chunk once
    return np.concatenate([stored[start:stop] for start, stop in runs])


def _within(runs: list[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in runs])


def _path(stored) -> str:
    return stored.file.filename if hasattr(stored, "file") else str(stored.store)
