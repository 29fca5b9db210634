"""Access to the machine: devices, threads and files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["find_device", "steady_threads", "to_json", "write_atomically"]


def write_atomically(contents: dict[Path, bytes]) -> None:
    """Write all files or none: no file is replaced before all of them are on the disk."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder: choose another path for the file.")
            temporary[path].write_bytes(content)
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)


def to_json(content, **options) -> str:
    """``content`` as JSON; numbers and arrays of numpy and torch become plain numbers and lists.

    Raises
    ------
    TypeError
        ``content`` holds something that JSON cannot hold.
    """

    def plain(value):
        if isinstance(value, np.ndarray | np.generic | Tensor):
            return value.tolist()
        raise TypeError(
            f"JSON cannot hold {value!r}, a {type(value).__name__}: give text, numbers, lists or "
            "dictionaries."
        )

    return json.dumps(content, default=plain, **options)


def find_device(name: str | torch.device) -> torch.device:
    """The torch device of that name.

    Raises
    ------
    ValueError
        This machine does not have it.
    """
    try:
        return torch.empty(1, device=name).device
    except (AssertionError, RuntimeError, TypeError) as error:  # torch raises each of them
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"device is {name!r}, which cannot be used here ({reason}). device='cpu' always can."
        ) from None


@contextmanager
def steady_threads() -> Iterator[None]:
    """Give torch the same number of threads afterwards as before.

    numba, which scanpy uses, shares OpenMP with torch and sets its number of threads to the number
    of cores. On a busy machine training is then many times slower, and sums are computed in another
    order.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
