"""Call a learner's answer with its inputs; whatever it gives comes back as plain data.

Nothing here knows a right answer. So this is the only module of its folder that the grader lets
into the process in which a submission runs.
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
    """The result of one call of an answer.

    Parameters
    ----------
    kind
        "value", or the reason why there is no value: "undone" (the stub is still there),
        "raised", "endless", or "foreign" (the type holds no numbers).
    value
        An array of numbers, a word, or a tuple of these.
    message
        The error and its line, the time limit, or the foreign type.
    """

    kind: str
    value: Data | None = None
    message: str = ""


class _TooLong(BaseException):
    """Raised at the time limit. Not an Exception: ``except Exception`` must not catch it."""


def apply(answer, case: dict, call: str = "numbers", seconds: float = 10.0) -> Outcome:
    """Call an answer for one case.

    Parameters
    ----------
    answer
        A function of the case's inputs, or a value.
    case
        Inputs by name: arrays, numbers, words.
    call
        How the inputs are passed: a name in :data:`CALLS`.
    seconds
        The time limit of the call.
    """
    try:
        with _time_limit(seconds):
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
    """Pass arrays as tensors of the same precision and everything else as it is, by position."""
    import torch

    return answer(
        *(torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for v in case.values())
    )


def _arrays(answer, case: dict):
    """Pass arrays as they are, by position: for answers in numpy."""
    return answer(*(v.copy() if isinstance(v, np.ndarray) else v for v in case.values()))


def _densities(answer, case: dict):
    """Pass E, the mean under q, then each table as a function of z: for a z with few states.

    Each array holds log-densities, with the states on the last axis; "log_q" is one of them. E(f)
    is Σ_z q(z) f(z) for a function f.
    """
    states = np.arange(case["log_q"].shape[-1])

    def table(values):
        return lambda z: values[..., z]

    def E(f):
        if not callable(f):
            raise TypeError(
                f"E takes a function of z, as in E(lambda z: log_q(z)); got {type(f).__name__}"
            )
        return (np.exp(case["log_q"]) * f(states)).sum(-1)

    return answer(E, *(table(values.copy()) for values in case.values()))


def _slope(answer, case: dict):
    """Same as "numbers"; adds the answer's derivative in the last input, NaN if it has none."""
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
    """Same as "numbers" without the last input, "weight"; adds the gradient of Σ weight · answer in
    the first input, zero if it has none.
    """
    import torch

    *inputs, weight = (
        torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for v in case.values()
    )
    first = inputs[0].requires_grad_()
    value = answer(*inputs)
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"Expected a tensor, so that a gradient can flow back; got {type(value).__name__}"
        )
    if not value.requires_grad:
        return value, torch.zeros_like(first)
    return value, *torch.autograd.grad((weight * value).sum(), first, materialize_grads=True)


def _encoder(answer, case: dict):
    """Pass an encoder with batch normalisation and dropout, x, and the size of minibatches.

    The case gives the encoder's weights and its mode. Adds the mode after the call: 1 for training.
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
    state = encoder.state_dict()  # the seventh entry counts minibatches
    state |= {key: arrays[name] for key, name in zip(state, names, strict=True) if name}
    encoder.load_state_dict(state)
    encoder.train(case["training"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case["seed"])
        return answer(encoder, arrays["x"], case["batch_size"]), float(encoder.training)


def _estimates(answer, case: dict):
    """Variances, then means, of an estimator of ∇E_q[f] over many equal cells.

    The estimator gets f, "mean" and "std" as (n_cells, n_latent), and "n_samples", where f(z) =
    constant − ½ (x − w·z)². It returns one array of that shape, or several. If the case has a limit
    "most" for the variances, f gives values without a gradient, and variances below "most" come
    back as "most". A mean with a standard error above 0.005 comes back as NaN.
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
            raise ValueError(
                f"Expected gradients of shape {shape}, as mean and std; got {np.shape(part)}"
            )
        if (part == part[0]).all():
            raise ValueError(
                f"All {shape[0]:,} cells got the same gradient: does each cell have its own draws, "
                "and is the gradient computed from them?"
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
    """Raised for a type that holds no numbers."""


def as_data(result) -> Data:
    """Turn tensors, arrays, numbers and lists of numbers into arrays; keep words and tuples."""
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
    """The last line of the learner's code in an error's traceback."""
    import linecache
    import traceback

    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "ipykernel" in frame.filename or frame.filename.startswith("<"):
            line = frame.line or linecache.getline(frame.filename, frame.lineno).strip()
            return f", in line {frame.lineno} of the cell: {line}" if line else ""
    return ""


@contextmanager
def _time_limit(seconds: float):
    """Stop an endless answer; this needs the main thread of a Unix process."""
    here = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not here:
        yield
        return

    def stop(*_):
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    # Repeated, because an answer may catch the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
