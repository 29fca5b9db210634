"""Matrices of all kinds (dense, sparse, in a file), read in parts that fit in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .on_disk import OnDisk, is_on_disk, take_columns

__all__ = [
    "first",
    "floats",
    "hide",
    "mask",
    "n_nonzero",
    "nearly_whole",
    "parts",
    "read",
    "take",
    "values",
]

AT_ONCE = 2**24  # values per part: 64 MiB as dense float32


def parts(x) -> Iterator[slice]:
    """Slices of rows, as many at a time as fit in memory; a long reading shows a bar."""
    from tqdm import tqdm

    n_rows = max(1, AT_ONCE // (x.width if isinstance(x, OnDisk) else x.shape[1]))
    reading = {"desc": "Reading", "delay": 2, "leave": False, "file": sys.stdout}
    for start in tqdm(range(0, x.shape[0], n_rows), **reading, disable=not isinstance(x, OnDisk)):
        yield slice(start, min(start + n_rows, x.shape[0]))


def read(x):
    return floats(x.read()) if isinstance(x, OnDisk) else x


def floats(x):
    """A matrix as a CSR matrix or a tensor of float32; float64 stays float64."""
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x)
    x.sum_duplicates()
    return x


def values(x) -> np.ndarray:
    """All values of a tensor, or the stored values of a sparse matrix."""
    return x.cpu().numpy() if isinstance(x, Tensor) else x.data


def nearly_whole(values: np.ndarray) -> np.ndarray:
    """True for 0, 1, 2, … up to 0.01, or up to a millionth of a large value."""
    whole = np.rint(values)
    return (whole >= 0) & (np.abs(values - whole) <= np.maximum(0.01, 1e-6 * whole))


def n_nonzero(x, axis: int = 1) -> np.ndarray:
    return np.asarray((x != 0).sum(axis)).ravel()


def hide(x, observed: Tensor):
    """The matrix with 0 for entries that were not observed."""
    return x * observed if isinstance(x, Tensor) else x.multiply(observed.numpy()).tocsr()


def take(x, columns: np.ndarray):
    """These columns of a matrix in this order, and columns of 0 for each −1."""
    if isinstance(x, OnDisk):
        return x.with_columns(columns)
    if isinstance(x, Tensor):
        chosen = torch.as_tensor(columns, device=x.device)
        return x[:, chosen].where(chosen >= 0, torch.zeros((), dtype=x.dtype, device=x.device))
    return take_columns(x, columns)


def mask(observed, shape, may_stay: bool = False) -> Tensor | OnDisk:
    """A mask as a boolean tensor; a mask in a file stays there if ``may_stay`` is True."""
    if is_on_disk(observed):
        observed = OnDisk(observed)
    if isinstance(observed, OnDisk) and may_stay and observed.shape == tuple(shape):
        return observed
    if isinstance(observed, np.ma.MaskedArray):
        observed = observed.filled(False)
    observed = observed.toarray() if hasattr(observed, "toarray") else np.asarray(observed)
    if observed.shape != tuple(shape) or not np.isin(observed, (0, 1)).all():
        raise ValueError(
            f"observed must be a matrix of True and False of x's shape {tuple(shape)}, but has "
            f"shape {observed.shape} and dtype {observed.dtype}."
        )
    return torch.from_numpy(observed.astype(bool, order="C"))


def first(x, condition) -> tuple[int, int, float]:
    """Row, column and value of the first entry that meets a condition."""
    if isinstance(x, Tensor):
        x = x.cpu().numpy()
        row, column = np.argwhere(condition(x))[0]
        return int(row), int(column), float(x[row, column])
    x = x.tocoo()
    k = int(np.argmax(condition(x.data)))
    return int(x.row[k]), int(x.col[k]), float(x.data[k])
