"""Call a learner's answer with its inputs; whatever it gives comes back as plain data.

Nothing here knows a right answer. So this is the only module of its folder that the grader lets
into the process in which a submission runs.
"""

from __future__ import annotations

import functools
import inspect
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

__all__ = ["Outcome", "apply"]

Data = np.ndarray | str | tuple  # numbers, a word, or several of these
WITH_GRADIENT = "tensor with gradient"


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
        The error and its line, the time limit, or the foreign type. With a value, the error that
        the answer raised when its inputs asked for a gradient.
    form
        The type that the answer returned ("tensor", "tensor with gradient", "array", "number",
        "word", "list", "Series", …); for a list or a tuple, the types inside it follow.
    reached
        The inputs that a gradient of the answer flows back to, of those that were asked for.
    """

    kind: str
    value: Data | None = None
    message: str = ""
    form: tuple[str, ...] = ()
    reached: tuple[str, ...] = ()


class _TooLong(BaseException):
    """Raised at the time limit. Not an Exception: ``except Exception`` must not catch it."""


def apply(
    answer, case: dict, call: str = "numbers", seconds: float = 10.0, returns: str = ""
) -> Outcome:
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
    returns
        What the answer has to return: see ``Exercise``. For a gradient, the answer is called once
        more, with inputs that ask for one.
    """
    result = answer

    @functools.wraps(answer)
    def recorded(*args, **kwargs):
        nonlocal result
        result = answer(*args, **kwargs)
        return result

    error, reached = "", ()
    try:
        with _time_limit(seconds):
            data = as_data(CALLS[call](recorded, case) if callable(answer) else answer)
            if callable(answer) and call == "numbers" and returns.startswith(WITH_GRADIENT):
                reached, error = _reached(answer, case, returns)
        return Outcome("value", data, error, _form_of(result), reached)
    except _TooLong as late:
        return Outcome("endless", message=f"{seconds:g} s{_line_of(late)}")
    except NotImplementedError as undone:
        return Outcome("undone", message=str(undone))
    except _Foreign as foreign:
        return Outcome("foreign", message=str(foreign))
    except Exception as error:
        return Outcome("raised", message=_said(error))


def gradient_inputs(returns: str, case: dict, result: int | None = None) -> tuple[str, ...]:
    """The inputs that a gradient has to reach, from one of several results or from any.

    They are those named after "in", else all of real numbers.
    """
    each = returns.removeprefix(WITH_GRADIENT).removeprefix(" in ").split(";")
    named = ",".join(each) if result is None else each[result % len(each)]
    names = dict.fromkeys(named.replace(",", " ").split())
    real = [k for k, v in case.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    return tuple(name for name in (names or real) if name in real)


def _reached(answer, case: dict, returns: str) -> tuple[tuple[str, ...], str]:
    """Which inputs a gradient reaches, and the error if the answer can't be called with one.

    If ``returns`` names the inputs of each result, an input counts if all of them reach it.
    """
    import torch

    inputs, names = _tensors(case), gradient_inputs(returns, case)
    wanted = [inputs[name].requires_grad_() for name in names]
    lost = set()
    try:
        result = _called(answer, inputs)
        parts = result if isinstance(result, (tuple, list)) else (result,)
        groups = [[part] for part in parts] if ";" in returns else [parts]
        for i, group in enumerate(groups):
            group = [p for p in group if isinstance(p, torch.Tensor) and p.requires_grad]
            found = [None] * len(wanted)
            if group:
                total = sum(part.sum() for part in group)
                found = torch.autograd.grad(total, wanted, allow_unused=True, retain_graph=True)
            reached = {n for n, g in zip(names, found, strict=True) if g is not None}
            lost |= {*gradient_inputs(returns, case, i)} - reached
    except Exception as error:
        return (), _said(error)
    return tuple(name for name in names if name not in lost), ""


def _called(answer, inputs: dict):
    """Call by position; by name where the answer can't be called by position (``**tables``)."""
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):
        return answer(*inputs.values())
    try:
        signature.bind(*inputs.values())
    except TypeError:
        try:
            signature.bind(**inputs)
        except TypeError:
            pass  # the call by position says what is wrong
        else:
            return answer(**inputs)
    return answer(*inputs.values())


def _tensors(case: dict) -> dict:
    """A copy of the inputs: arrays as tensors of the same precision, all else as it is."""
    import torch

    return {
        k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in case.items()
    }


def _numbers(answer, case: dict):
    """Pass arrays as tensors of the same precision and everything else as it is."""
    return _called(answer, _tensors(case))


def _arrays(answer, case: dict):
    """Pass arrays as they are: for answers in numpy."""
    return _called(
        answer, {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in case.items()}
    )


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

    *inputs, last = _tensors(case).values()
    last.requires_grad_()
    value, slope = answer(*inputs, last), torch.full_like(last, torch.nan)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        (slope,) = torch.autograd.grad(value.sum(), last)
    return value, slope


def _slopes(answer, case: dict):
    """Same as "numbers"; adds the derivatives of Σ answer in all real inputs but x, the data.

    They are in the order of the inputs. A derivative is zero where no gradient flows.
    """
    import torch

    inputs = _tensors(case)
    wanted = [v.requires_grad_() for k, v in inputs.items() if k != "x" and v.is_floating_point()]
    value = answer(*inputs.values())
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return value, *(torch.zeros_like(v) for v in wanted)
    return value, *torch.autograd.grad(value.sum(), wanted, materialize_grads=True)


def _gradient(answer, case: dict):
    """Same as "numbers" without the last input, "weight"; adds the gradient of Σ weight · answer in
    the first input, zero if it has none.
    """
    import torch

    *inputs, weight = _tensors(case).values()
    first = inputs[0].requires_grad_()
    value = answer(*inputs)
    rows = value if isinstance(value, (list, tuple)) else ()
    if rows and all(isinstance(r, torch.Tensor) and r.shape == rows[0].shape for r in rows):
        value = torch.stack([*rows])
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
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
    """Log-variances, then means, of an estimator of ∇E_q[f] over many equal cells.

    The estimator gets f, "mean" and "std" as (n_cells, n_latent), and "n_samples", where f(z) =
    constant − ½ (x − w·z)². It returns two arrays of that shape. If the case has a limit "most" for
    the variances, it returns one, f gives values without a gradient, for n_samples draws and one
    more point, and variances below "most" come back as "most". With a "spread", the constants of
    the cells go up from "constant" by so much. A mean with a standard error above 0.02 comes back
    as NaN.
    """
    import torch

    w, *moments = (torch.from_numpy(case[name].copy()) for name in ("w", "mean", "std"))
    black_box, shape = "most" in case, (100_000, len(w))
    constant = case["constant"] + case.get("spread", 0.0) * torch.linspace(0, 1, shape[0]).to(w)
    n_samples, points = case["n_samples"], set()  # the first cell's z, each once

    def f(z):
        if z.shape[-2:] != shape:
            raise ValueError(
                f"f takes z of shape (n_draws, n_cells, n_latent), here {(n_samples, *shape)}; got "
                f"{tuple(z.shape)}"
            )
        points.update(map(tuple, z.detach().reshape(-1, *shape)[:, 0].tolist()))
        if black_box and len(points) > n_samples + 1:
            raise ValueError(
                f"f was asked for values at {len(points)} points for each cell; n_samples is "
                f"{n_samples}"
            )
        value = constant - 0.5 * (case["x"] - z @ w) ** 2
        return value.detach() if black_box else value

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case["seed"])
        try:
            found = answer(f, *(v.expand(shape).clone() for v in moments), n_samples)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            blocked = RuntimeError(
                "No gradient goes from the values of f back to mean and std: section 1 shows what "
                "blocks it"
            )
            raise blocked.with_traceback(error.__traceback__) from None
    found = as_data(found)
    if isinstance(found, np.ndarray) and found.ndim == 3:  # several results as one array
        found = tuple(found)
    found = [*found] if isinstance(found, tuple) else [found]
    if len(found) != (1 if black_box else 2):
        wanted = "one gradient, in mean" if black_box else "two gradients, in mean and in std"
        raise ValueError(f"Expected {wanted}; got {len(found)}")
    for part in found:
        if np.shape(part) != shape:
            raise ValueError(
                f"Expected gradients of shape {shape}, as mean and std; got {np.shape(part)}"
            )
        if (part == part[0]).all():
            raise ValueError(
                f"All {shape[0]:,} cells got the same gradient. Each cell needs its own draws, and "
                "the gradient must be computed from them"
            )
    variances = [g.var(0) for g in found]
    known = [np.sqrt(v / shape[0]) < 0.02 for v in variances]
    means = [np.where(k, g.mean(0), np.nan) for g, k in zip(found, known, strict=True)]
    with np.errstate(divide="ignore"):
        return *(np.log(np.maximum(v, case.get("most", 0.0))) for v in variances), *means


CALLS = {
    "encoder": _encoder,
    "estimates": _estimates,
    "numbers": _numbers,
    "slope": _slope,
    "slopes": _slopes,
    "arrays": _arrays,
    "densities": _densities,
    "gradient": _gradient,
}
GIVES_ARRAYS = {"arrays", "densities"}  # all others give the answer tensors
ADDS = {
    "encoder",
    "slope",
    "slopes",
    "gradient",
}  # these add results to the one that the answer gives


def _shown_encoder(case: dict) -> dict:
    mode = "training" if case["training"] else "evaluation"
    what = f"batch normalisation, dropout {case['dropout_rate']:g}, in {mode} mode"
    return {"encoder": what, "x": case["x"], "batch_size": case["batch_size"]}


def _shown_estimates(case: dict) -> dict:
    w = np.array2string(case["w"], precision=6, separator=", ")
    level = f"{case['constant']:g}"
    if "spread" in case:
        level += f" to {case['constant'] + case['spread']:g} (per cell)"
    f = f"{level} − ½ ({case['x']:.6g} − {w}·z)²"
    return {"f(z)": f, **{name: case[name] for name in ("mean", "std", "n_samples")}}


SHOWN = {  # what an answer was given, by the names of its arguments; by default the case itself
    "encoder": _shown_encoder,
    "estimates": _shown_estimates,
    "gradient": lambda case: {k: v for k, v in case.items() if k != "weight"},
}


class _Foreign(Exception):
    """Raised for a type that holds no numbers."""


def as_data(result) -> Data:
    """Turn what an answer returned into plain data: an array, a word, or a tuple of these.

    A list becomes an array where its parts have one shape, and a tuple otherwise.
    """
    import torch

    if isinstance(result, str):
        return str(result)
    if isinstance(result, (tuple, list)):
        parts = tuple(as_data(part) for part in result)
        together = isinstance(result, list) and all(isinstance(p, np.ndarray) for p in parts)
        if together and len({part.shape for part in parts}) == 1:
            return np.stack(parts)
        if isinstance(result, list) and not parts:
            return np.zeros(0)
        return parts
    try:
        if isinstance(result, torch.Tensor):
            result = result.detach().cpu().resolve_conj()
            result = (result.float() if result.dtype == torch.bfloat16 else result).numpy()
        array = np.array(result)
    except Exception:
        raise _Foreign(type(result).__name__) from None
    if array.dtype.kind not in "buif":
        raise _Foreign(type(result).__name__)
    return array


def _form_of(result, inside: bool = False) -> tuple[str, ...]:
    """The type of a result; for a list or a tuple, the types inside it follow."""
    import torch

    if isinstance(result, (tuple, list)) and not inside:
        forms = {_form_of(part, inside=True)[0] for part in result}
        return "list" if isinstance(result, list) else "tuple", *sorted(forms)
    if isinstance(result, torch.Tensor):
        return (WITH_GRADIENT if result.requires_grad else "tensor",)
    for kind, name in ((str, "word"), (np.ndarray, "array"), ((int, float, np.number), "number")):
        if isinstance(result, kind):
            return (name,)
    return (type(result).__name__[:40],)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}{_line_of(error)}"[:500]


def _line_of(error: BaseException) -> str:
    """The last line of the learner's code in an error's traceback."""
    import linecache
    import traceback

    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "ipykernel" in frame.filename or frame.filename.startswith("<"):
            line = frame.line or linecache.getline(frame.filename, frame.lineno).strip()
            line = line.replace("`", "'")
            return f", in line {frame.lineno} of the cell: `{line}`" if line else ""
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
