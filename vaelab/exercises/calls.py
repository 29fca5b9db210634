"""A learner's answer meets its inputs: what comes back is plain data, whatever it was.

Nothing here knows a right answer. So the grader can let this module, alone of its folder, into the
process in which a submission runs.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

__all__ = ["Outcome", "apply"]

Data = np.ndarray | str | tuple  # numbers, a word, or several of these


@dataclass(frozen=True)
class Outcome:
    """What an answer gave for one case.

    Parameters
    ----------
    kind
        "value", or why there is none: "undone" (the stub is still there), "raised", "endless",
        "foreign" (something that holds no numbers).
    value
        An array of numbers, a word, or a tuple of these.
    message
        The error and where it arose, or the foreign type.
    """

    kind: str
    value: Data | None = None
    message: str = ""


class _TooLong(BaseException):
    """Not an Exception: `except Exception` in an answer must not catch it."""


def apply(answer, case: dict, call: str = "numbers", seconds: float = 10.0) -> Outcome:
    """The answer's outcome for one case.

    Parameters
    ----------
    answer
        A function of the case's inputs, or a value that needs none.
    case
        Inputs by name: arrays, numbers, words.
    call
        A name in :data:`CALLS`: how the inputs are handed over.
    seconds
        After which a call is given up.
    """
    try:
        with _limit(seconds):
            result = CALLS[call](answer, case) if callable(answer) else answer
            return Outcome("value", as_data(result))
    except _TooLong:
        return Outcome("endless", message=f"{seconds:g} s")
    except NotImplementedError as error:
        return Outcome("undone", message=str(error))
    except _Foreign as error:
        return Outcome("foreign", message=str(error))
    except Exception as error:
        return Outcome("raised", message=f"{type(error).__name__}: {error}{_line_of(error)}"[:500])


def _numbers(answer, case: dict):
    """Arrays as float tensors of their own precision, everything else as it is; by position."""
    import torch

    return answer(
        *(torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for v in case.values())
    )


def _arrays(answer, case: dict):
    """Arrays as they are, for answers in numpy; by position."""
    return answer(*(v.copy() if isinstance(v, np.ndarray) else v for v in case.values()))


CALLS = {"numbers": _numbers, "arrays": _arrays}


class _Foreign(Exception):
    pass


def as_data(result) -> Data:
    """Tensors, arrays, numbers and lists of numbers as arrays; words and tuples as themselves."""
    import torch

    if isinstance(result, str):
        return str(result)
    if isinstance(result, tuple):
        return tuple(as_data(part) for part in result)
    try:
        if isinstance(result, torch.Tensor):
            result = result.detach().cpu().resolve_conj().numpy()
        array = np.array(result)
    except Exception:
        raise _Foreign(type(result).__name__) from None
    if array.dtype.kind not in "buif":
        raise _Foreign(type(result).__name__)
    return array


def _line_of(error: Exception) -> str:
    """The last line of the learner's own code in an error's traceback."""
    import linecache
    import traceback

    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "ipykernel" in frame.filename or frame.filename.startswith("<"):
            line = frame.line or linecache.getline(frame.filename, frame.lineno).strip()
            return f", in line {frame.lineno} of the cell: {line}" if line else ""
    return ""


@contextmanager
def _limit(seconds: float):
    """Leave an endless answer; only the main thread of a Unix process can."""
    here = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not here:
        yield
        return

    def stop(*_):
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again, since an answer may catch the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
