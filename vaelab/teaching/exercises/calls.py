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


def _densities(answer, case: dict):
    """For a latent z with finitely many states: E, the mean under q, then tables as functions of z.

    Each array holds log-densities, their last axis the states; "log_q" is one of them. E(f) is
    Σ_z q(z) f(z) for a function f.
    """
    states = np.arange(case["log_q"].shape[-1])

    def table(values):
        return lambda z: values[..., z]

    def E(f):
        if not callable(f):
            raise TypeError("E takes a function of z, as in E(lambda z: log_q(z))")
        return (np.exp(case["log_q"]) * f(states)).sum(-1)

    return answer(E, *(table(values.copy()) for values in case.values()))


def _slope(answer, case: dict):
    """As "numbers"; and beside the answer its derivative in the last input, NaN if it has none."""
    import torch

    *inputs, last = (
        torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for v in case.values()
    )
    last.requires_grad_()
    value, slope = answer(*inputs, last), torch.full_like(last, torch.nan)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        (slope,) = torch.autograd.grad(value.sum(), last)
    return value, slope


def _gradient(answer, case: dict):
    """As "numbers" but for the last, "weight"; beside the answer, the gradient of its sum with that
    weight in the first input, zero if it has none.
    """
    import torch

    *inputs, weight = (
        torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for v in case.values()
    )
    first = inputs[0].requires_grad_()
    value = answer(*inputs)
    if not isinstance(value, torch.Tensor):
        raise TypeError("a tensor is asked for, so that a gradient can come back through it")
    if not value.requires_grad:
        return value, torch.zeros_like(first)
    return value, *torch.autograd.grad((weight * value).sum(), first, materialize_grads=True)


def _encoder(answer, case: dict):
    """A network with batch normalisation and dropout, made of arrays and in the mode that the case
    says; x; and the size of minibatches. After the answer comes the mode that it left: 1 for
    training.
    """
    import torch
    from torch import nn

    arrays = {k: torch.from_numpy(v.copy()) for k, v in case.items() if isinstance(v, np.ndarray)}
    (n_hidden, n_genes), n_out = case["w1"].shape, len(case["w2"])
    encoder = nn.Sequential(
        nn.Linear(n_genes, n_hidden),
        nn.BatchNorm1d(n_hidden),
        nn.ReLU(),
        nn.Dropout(case["dropout_rate"]),
        nn.Linear(n_hidden, n_out),
    ).to(arrays["x"].dtype)
    names = ("w1", "b1", "scale", "shift", "running_mean", "running_var", None, "w2", "b2")
    state = encoder.state_dict()  # the seventh counts minibatches
    state |= {key: arrays[name] for key, name in zip(state, names, strict=True) if name}
    encoder.load_state_dict(state)
    encoder.train(case["training"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case["seed"])
        return answer(encoder, arrays["x"], case["batch_size"]), float(encoder.training)


def _estimates(answer, case: dict):
    """For an estimator of ∇E_q[f]: variances, then means, of what it gives for cells all alike.

    f(z) = constant − ½ (x − w·z)². It gets f, "mean" and "std" as (n_cells, n_latent), and
    "n_samples", and returns an array of that shape or several. Where there is a "most" for the
    variances, f gives values without a gradient, and variances below "most" come back as "most".
    A mean whose standard error is above 0.005 is not known, and comes back as NaN.
    """
    import torch

    w, *moments = (torch.from_numpy(case[name].copy()) for name in ("w", "mean", "std"))
    black_box, shape = "most" in case, (100_000, len(w))

    def f(z):
        value = case["constant"] - 0.5 * (case["x"] - z @ w) ** 2
        return value.detach() if black_box else value

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case["seed"])
        found = answer(f, *(v.expand(shape).clone() for v in moments), case["n_samples"])
    found = [as_data(part) for part in (found if isinstance(found, tuple) else (found,))]
    for part in found:
        if np.shape(part) != shape:
            raise ValueError(f"a gradient has shape {np.shape(part)}, for mean and std of {shape}")
        if (part == part[0]).all():
            raise ValueError(
                f"all {shape[0]:,} cells got the same gradient: has each cell draws of its own, "
                "and does the gradient come from them?"
            )
    variances = [g.var(0) for g in found]
    known = [np.sqrt(v / shape[0]) < 0.005 for v in variances]
    means = [np.where(k, g.mean(0), np.nan) for g, k in zip(found, known, strict=True)]
    return *(np.maximum(v, case.get("most", 0.0)) for v in variances), *means


CALLS = {
    "encoder": _encoder,
    "estimates": _estimates,
    "numbers": _numbers,
    "slope": _slope,
    "arrays": _arrays,
    "densities": _densities,
    "gradient": _gradient,
}


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
