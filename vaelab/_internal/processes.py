"""Several processes that train one model: what they add up and what they agree on.

Each process runs the same script and computes its part of each minibatch. Sums over the processes
make a step the same as that of one process with the whole minibatch: the loss and its gradients
(:class:`Processes`), and whatever a model averages over cells (:func:`total`).
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

__all__ = [
    "OneProcess",
    "ProcessLostError",
    "own_gpu",
    "several",
    "standardized",
    "together",
    "total",
]

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
SILENCE = timedelta(minutes=5)  # a process that answers nothing for so long is taken as dead
STOPS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class ProcessLostError(RuntimeError):
    """Another process has ended, or does not answer."""


class OneProcess:
    """Training in one process, which has nobody to agree with."""

    rank, n = 0, 1

    def require_same(self, settings: dict, model, cells, epochs_done: int) -> None:
        """Refuse settings or cells that differ between the processes."""

    def require_cells(self, n_cells: int) -> None:
        """Refuse minibatches with fewer cells than processes."""

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Give each process draws of its own, which depend on nothing but these numbers."""

    def mean(self, loss: Tensor, n_cells: int) -> Tensor:
        """The loss of the whole minibatch; its gradient is this process's share.

        Raises
        ------
        KeyboardInterrupt
            One of the processes was asked to stop. It is raised in all of them at the same step.
        """
        return loss

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the processes."""

    def add(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each value over the processes."""
        return values

    def mean_of(self, values: np.ndarray) -> float:
        """The mean over the values of all processes."""
        return float(values.mean())

    def gather(self, value) -> list:
        """The value that each process gives."""
        return [value]

    def share(self, state: dict[str, Tensor]) -> None:
        """Set these tensors to those of the first process: other processors round otherwise."""


class Processes(OneProcess):
    """Training in several processes."""

    def __init__(self, group, device: torch.device):
        self.group, self.device = group, device
        self.rank, self.n = dist.get_rank(), dist.get_world_size()
        self.asked = dict.fromkeys(STOPS, False)  # to stop, by a signal to this process
        self.gradients: Tensor | None = None  # all of them, one after the other

    def require_same(self, settings: dict, model, cells, epochs_done: int) -> None:
        names = [cells.gene_names, cells.batch_names, cells.label_names]
        own = hashlib.sha256(repr(names).encode())
        for values in (cells.library, cells.batch, cells.label):
            own.update(np.ascontiguousarray(values.cpu()))
        given = settings | {
            "model": type(model).__name__,
            "configuration": model.configuration,
            "n_cells": cells.n_cells,
            "cells": own.hexdigest()[:16],
            "epochs done": epochs_done,
        }
        first, *others = self.gather(given)
        for rank, other in enumerate(others, 1):
            if different := [name for name in first if first[name] != other.get(name)]:
                name = different[0]
                raise ValueError(
                    f"{name} is {first[name]!r} in process 0 and {other.get(name)!r} in process "
                    f"{rank}. All processes must call fit with the same arguments and with all of "
                    "the cells; fit divides the cells among them."
                )

    def require_cells(self, n_cells: int) -> None:
        if n_cells < self.n:
            raise ValueError(
                f"There are {self.n} processes and minibatches of {n_cells} cells, so that a "
                "process would have none. Use fewer processes or a larger batch_size."
            )

    def begin_epoch(self, seed: int, epoch: int) -> None:
        state = np.random.SeedSequence([seed, epoch, self.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def mean(self, loss: Tensor, n_cells: int) -> Tensor:
        self._wait_for_gpu()
        sums = torch.tensor([loss.item() * n_cells, n_cells, *self.asked.values()]).double()
        total_loss, n_all, *asked = self._sum(sums).tolist()
        if any(asked):
            self.asked = dict.fromkeys(STOPS, False)
            raise KeyboardInterrupt([*STOPS.values()][asked.index(max(asked))])
        share = loss * (n_cells / n_all)
        return share + (total_loss / n_all - share.detach())  # the value of all, our gradient

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        parameters = [p for p in parameters if p.grad is not None]
        sizes = [p.numel() for p in parameters]
        if self.gradients is None:
            self.gradients = parameters[0].new_empty(sum(sizes))
        torch.cat([p.grad.flatten() for p in parameters], out=self.gradients)
        self._sum(self.gradients)
        for p, gradient in zip(parameters, self.gradients.split(sizes), strict=True):
            p.grad = gradient.view_as(p)

    def add(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        self._wait_for_gpu()
        flat = torch.cat([value.flatten().double().cpu() for value in values.values()])
        pieces = self._sum(flat).split([value.numel() for value in values.values()])
        return {name: p.view(values[name].shape) for name, p in zip(values, pieces, strict=True)}

    def mean_of(self, values: np.ndarray) -> float:
        sums = self._sum(torch.tensor([values.sum(), len(values)], dtype=torch.float64))
        return float(sums[0] / sums[1])

    def gather(self, value) -> list:
        values = [None] * self.n
        with self._connected():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def share(self, state: dict[str, Tensor]) -> None:
        for tensor in state.values():
            with self._connected():
                dist.broadcast(tensor, src=0, group=self.group)

    def _sum(self, tensor: Tensor) -> Tensor:
        with self._connected():
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def _wait_for_gpu(self) -> None:
        """Wait for what the GPU has to do: a process that died would block it for ever."""
        if self.device.type != "cuda":
            return
        done, started = torch.cuda.Event(), time.monotonic()
        done.record()
        while not done.query():
            # torchrun sends SIGTERM when another process has died.
            limit = 10 if self.asked[signal.SIGTERM] else SILENCE.total_seconds()
            if time.monotonic() - started > limit:
                raise ProcessLostError(self._lost())
            time.sleep(1e-4)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ProcessLostError(self._lost()) from error

    def _lost(self) -> str:
        return f"another of the {self.n} processes has ended or does not answer"


_current: OneProcess = OneProcess()  # those that train now


class _Total(torch.autograd.Function):
    """y = Σ over processes of x; each x has the gradient of all their losses in y."""

    @staticmethod
    def forward(ctx, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes._sum(x.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.processes._sum(gradient.clone()), None


class _Standardized(torch.autograd.Function):
    """x̂ = (x − μ) / √(σ² + ε), with μ and σ² over the rows of all processes."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, processes: Processes):
        variance, mean = (moment.double() for moment in torch.var_mean(x, dim=0, correction=0))
        sums = torch.stack([torch.ones_like(mean), mean, variance + mean**2]) * len(x)
        n, sum_, sum_of_squares = processes._sum(sums)
        mean = sum_ / n
        variance = sum_of_squares / n - mean**2  # exact enough in float64
        scale = (variance + eps).rsqrt().to(x)
        x = (x - mean.to(x)) * scale
        others = n.to(x), mean.to(x), variance.to(x)
        ctx.processes, ctx.n = processes, others[0]
        ctx.save_for_backward(x, scale)
        ctx.mark_non_differentiable(*others)
        return x, *others

    @staticmethod
    def backward(ctx, gradient: Tensor, *_):
        x, scale = ctx.saved_tensors
        sums = torch.stack([gradient.sum(0), (gradient * x).sum(0)])
        along_mean, along_scale = ctx.processes._sum(sums) / ctx.n
        return (gradient - along_mean - x * along_scale) * scale, None, None


def several() -> bool:
    """True in a training step of several processes: not in one process, and without gradients."""
    return _current.n > 1 and torch.is_grad_enabled()


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes in a training step; x itself in one process."""
    return _Total.apply(x, _current) if several() else x


def standardized(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of x with mean 0 and variance 1 over the rows of all processes.

    Returns
    -------
    The standardised rows; and of all rows their number, mean and variance.
    """
    return _Standardized.apply(x, eps, _current)


def own_gpu(device):
    """The GPU of this process if it shares a machine with others and "cuda" is asked for."""
    if _world_size() > 1 and str(device) in ("cuda", "cuda:0") and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


@contextmanager
def together(device: torch.device) -> Iterator[OneProcess]:
    """The processes that ``torchrun`` or ``init_process_group`` has connected; else just this one.

    Inside, Ctrl-C and SIGTERM are only noted: all processes stop together, at the next step.

    Raises
    ------
    ValueError
        Several processes cannot train on such a device.
    """
    global _current
    if _world_size() == 1:
        yield OneProcess()
        return
    if device.type not in BACKENDS:
        raise ValueError(
            f"Several processes train on CPUs or on NVIDIA GPUs, but device is '{device}'."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type])
        atexit.register(_leave)  # torch aborts a process that ends with open connections
    dist.barrier()  # with torch's own limit, half an hour: some may still read their cells
    group = dist.new_group(backend=BACKENDS[device.type], timeout=SILENCE)
    _current = processes = Processes(group, device)
    try:
        with _noting_signals(processes):
            yield processes
    finally:
        _current = OneProcess()
        dist.destroy_process_group(group)


@contextmanager
def _noting_signals(processes: Processes) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # it alone receives signals
        yield
        return

    def note(number, frame):
        processes.asked[number] = True

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, asked in processes.asked.items():
        if asked:  # after the last step
            signal.raise_signal(number)


def _world_size() -> int:
    if not dist.is_available():
        return 1
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
