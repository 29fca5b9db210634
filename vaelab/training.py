"""Training: ``fit`` maximises any model's bound, and knows a model by ``elbo(cells)`` alone."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import plotting
from ._internal.arguments import require, size
from ._internal.machine import find_device, to_json, write_atomically
from ._internal.on_disk import OnDisk, UnreadableError
from .cells import Cells
from .metrics import usage
from .models.base import Model
from .reparametrization import seeded

__all__ = ["History", "TrainingError", "fit", "minibatches"]

MIXED = 4096  # cells in memory at once, while those of a file are put in random order


class TrainingError(RuntimeError):
    """Training can't go on; the model keeps its last finite parameters."""


@dataclass
class History:
    """What happened in each epoch.

    ``frame`` holds one row an epoch: the KL weight at its end, each term and the bound on the
    training cells (mean over minibatches, nats a cell, dropout on), the bound on the held-out
    cells (NaN without), and the seconds it took.

    ``shares`` holds, for each discrete latent variable, the mean over training cells of its q, one
    row an epoch: how often each of its values is used.
    """

    records: list[dict] = field(default_factory=list)
    shares: dict[str, list[list[float]]] = field(default_factory=dict)
    best_epoch: int | None = None
    stopped: str = "not started"

    @property
    def frame(self):
        """The history as a pandas DataFrame, indexed by epoch (from 1)."""
        import pandas as pd

        none_yet = ["epoch", "kl_weight", "bound", "held_out_bound", "seconds"]
        columns = None if self.records else none_yet
        return pd.DataFrame(self.records, columns=columns).set_index("epoch")

    def usage(self, name: str = "y"):
        """How many values of a discrete latent variable are in use, epoch by epoch.

        Returns
        -------
        A pandas DataFrame: "used", values with a share of the cells above ``metrics.USED``; and
        "entropy" of the shares, nats: log K if all K are used alike, 0 if only one is.

        Raises
        ------
        KeyError
            The model has no such variable.
        """
        import pandas as pd

        if name not in self.shares:
            raise KeyError(f"No discrete variable {name!r}: this model has {[*self.shares]}.")
        used = [usage(shares) for shares in self.shares[name]]
        return pd.DataFrame(used, index=pd.RangeIndex(1, len(used) + 1, name="epoch"))

    def plot(self, axes=None):
        """Draw bound and terms against epochs; returns the Axes."""
        return plotting.training_history(self.frame, self.best_epoch, axes)

    def __repr__(self) -> str:
        return f"History({len(self.records)} epochs, {self.stopped})"


def fit(
    model: Model,
    cells: Cells,
    epochs: int = 200,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    kl_warmup: float = 0.25,
    validation_fraction: float = 0.1,
    patience: int | None = 30,
    block_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Maximise a model's bound over its parameters by Adam on minibatches.

    Parameters
    ----------
    model
        Trained in place, and left in evaluation mode.
    cells
        Any number of them.
    epochs
        Passes over the training cells, at most.
    batch_size
        Cells a minibatch, at most: minibatches of an epoch differ by one cell at most.
    learning_rate, weight_decay
        Of Adam.
    kl_warmup
        Share of all steps over which the KL weight rises linearly to 1, in [0, 1]. Whatever the
        number of cells, it reaches 1 at the last step or before.
    validation_fraction
        Share of cells held out to watch the bound on; 0 for none.
    patience
        Epochs without a better held-out bound after which training stops, counted from the end
        of the warm-up; None to go on to the end. With held-out cells, the best parameters after
        the warm-up are restored either way.
    block_size
        Cells that are read together because they are neighbours; None for 1 in memory, where the
        order is then wholly random, 16 in h5ad and 64 in zarr: :func:`minibatches` says what this
        costs in randomness.
    seed
        Of the split, the order of cells, dropout and the draws of z. On a CPU, the same seed,
        model and number of threads give the same parameters bit for bit.
    device
        "cpu", "cuda", "mps"; None for where the model is.
    checkpoint
        A file to write after every epoch. If it exists, training goes on from it, and ends as
        the uninterrupted run would have.
    progress
        Show a bar with the bound and its terms.

    Returns
    -------
    The History. Ctrl-C stops training and returns normally, with the best parameters so far (the
    last ones before the end of the warm-up) and ``history.stopped`` saying so.

    Raises
    ------
    ValueError
        Cells that the model can't read, or arguments out of range.
    TrainingError
        The loss is no longer finite (with the epoch, the term and the likely cause), the file of
        the cells can't be read any more, or the checkpoint is of another run.
    """
    if not isinstance(model, Model):
        raise TypeError(f"fit takes a model, then cells; the first is {type(model).__name__}.")
    size("epochs", epochs)
    size("batch_size", batch_size)
    require("learning_rate", learning_rate, Real, lambda v: 0 < v < np.inf, "a number above 0")
    require("weight_decay", weight_decay, Real, lambda v: 0 <= v < np.inf, "a number, 0 or more")
    require("kl_warmup", kl_warmup, Real, lambda v: 0 <= v <= 1, "a share, from 0 to 1")
    require(
        "validation_fraction", validation_fraction, Real, lambda v: 0 <= v < 1,
        "a share, from 0 to below 1",
    )  # fmt: skip
    if patience is not None:
        what = "None or a whole number, at least 1"
        require("patience", patience, Integral, lambda n: n >= 1, what)
    if block_size is not None:
        what = "None or a whole number, at least 1"
        require("block_size", block_size, Integral, lambda n: n >= 1, what)
    require("seed", seed, Integral, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2⁶³ − 1")
    device = find_device(device or model.device)
    model.check(cells)
    if block_size is None:
        block_size = cells.x.block_size if isinstance(cells.x, OnDisk) else 1
    n_held_out = round(validation_fraction * cells.n_cells)
    if n_held_out == cells.n_cells:
        raise ValueError(
            f"validation_fraction {validation_fraction} of {cells.n_cells} cells leaves none to "
            "train on."
        )
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"The model holds {model.dtype}; it is trained in float32 or float64.")
    model.to(device)
    run = _Run(
        model,
        cells,
        n_held_out,
        settings={
            "model": type(model).__name__,
            "configuration": model.configuration,
            "dtype": str(model.dtype),
            "device": model.device.type,
            "n_cells": cells.n_cells,
            "cells": None if checkpoint is None else _digest(cells),
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "kl_warmup": kl_warmup,
            "validation_fraction": validation_fraction,
            "patience": patience,
            "block_size": block_size,
            "seed": seed,
        },
    )
    with seeded(seed):
        if checkpoint is not None and Path(checkpoint).exists():
            run.resume(Path(checkpoint))
        model.adopt(cells)  # after all refusals: a refused run leaves the model as it was
        run.begin()
        history = run.history
        try:
            with _Bar(epochs, len(history.records), show=progress) as bar:
                while not (reason := run.stop_reason()):
                    run.epoch()
                    if checkpoint is not None:
                        run.write(Path(checkpoint))
                    bar.update(history)
            history.stopped = reason
        except KeyboardInterrupt:
            if not _finite(model.state_dict().values()):
                model.load_state_dict(run.sound[1])
            history.stopped = f"stopped by Ctrl-C in epoch {len(history.records) + 1}"
            print(f"Training was {history.stopped} of {epochs}; the model so far is kept.")
        except UnreadableError as error:
            run.restore_best()
            raise TrainingError(
                f"{error} Training ended in epoch {len(history.records) + 1} of {epochs}; the "
                "model so far is kept."
            ) from error
        finally:
            model.eval()
    run.restore_best()
    for name, shares in history.shares.items():
        of_all = usage(shares[-1])
        if of_all["entropy"] < math.log(len(shares[-1])) / 2:
            warnings.warn(
                f"The model uses {of_all['used']} of the {len(shares[-1])} values of {name}: the "
                "others hold no cells, and what they describe means nothing. A better start or a "
                "longer KL warm-up may help.",
                stacklevel=2,
            )
    return history


def minibatches(
    cells: Cells, rows: np.ndarray, batch_size: int, block_size: int, order: np.random.Generator
) -> Iterator[Cells]:
    """Each of some cells once, in random order, whether they are in memory or in a file.

    Blocks of neighbouring rows are put in random order; 4,096 cells at a time are read and mixed,
    and cut into minibatches. That is less random than a shuffle of all cells: the variance of a
    mean over a minibatch is 1 + ρ (batch_size − 1) (block_size − 1) / 4095 times as large, where ρ
    is the correlation of the averaged between two cells of a block: 0 if the file is in random
    order, up to 1 if it is sorted by what is averaged. For 128 cells that is at most 1.5 times in
    blocks of 16, and 3 times in blocks of 64.

    Parameters
    ----------
    rows
        Which cells; in the order of the file, else blocks are not of neighbours.
    batch_size
        Cells a minibatch, at most: they differ by one cell at most.
    block_size
        Cells a block; 1 for a shuffle of all cells.
    order
        Where randomness comes from.

    Yields
    ------
    Minibatches, in memory.
    """
    starts = order.permutation(np.arange(0, len(rows), block_size))
    places = (starts[:, None] + np.arange(block_size)).ravel()
    rows = rows[places[places < len(rows)]]
    of_epoch = np.array_split(rows, -(-len(rows) // batch_size))
    at_once = max(1, MIXED // batch_size)  # minibatches: one reading for many
    for group in np.array_split(np.arange(len(of_epoch)), -(-len(of_epoch) // at_once)):
        mixed = np.concatenate([of_epoch[i] for i in group])
        if block_size > 1:
            order.shuffle(mixed)
        read = cells[mixed].in_memory()
        for start, stop in pairwise(np.cumsum([0, *(len(of_epoch[i]) for i in group)])):
            yield read[start:stop]


class _Run:
    """One training: everything that changes while it goes on, so that it can be resumed."""

    def __init__(self, model: Model, cells: Cells, n_held_out: int, settings: dict):
        self.model, self.cells, self.settings = model, cells, settings
        self.history = History()
        self.best: dict[str, Tensor] = {}  # parameters of the best epoch
        self.best_bound = -np.inf
        fused = model.device.type in ("cpu", "cuda") and model.dtype == torch.float32
        self.optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            fused=fused,
        )
        self.order = np.random.default_rng(settings["seed"])
        shuffled = self.order.permutation(cells.n_cells)
        self.held_out, self.training = np.sort(shuffled[:n_held_out]), shuffled[n_held_out:]
        if settings["block_size"] > 1:
            self.training.sort()
        self.n_minibatches = -(-len(self.training) // settings["batch_size"])

    def begin(self) -> None:
        # Epoch, and the parameters at its end: the last that are known to give a finite loss.
        self.sound = len(self.history.records), _copy(self.model.state_dict())

    def stop_reason(self) -> str | None:
        """Why training ends here; None where it goes on."""
        done, patience = len(self.history.records), self.settings["patience"]
        if done >= self.settings["epochs"]:
            return f"all {done} epochs done"
        if patience is not None and self.best and done - self.history.best_epoch >= patience:
            return f"no better held-out bound for {patience} epochs"
        return None

    def kl_weight(self, step: int) -> float:
        """The weight at a step, counted from 1 over all epochs."""
        warmup_steps = self.settings["kl_warmup"] * self.settings["epochs"] * self.n_minibatches
        return min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0

    def epoch(self) -> None:
        number, started = len(self.history.records) + 1, time.perf_counter()
        self.model.train()
        start = number - 1, _copy(self.model.state_dict())
        sizes = self.settings["batch_size"], self.settings["block_size"]
        sums: dict[str, Tensor] = {}  # over cells, of each term and of q of each discrete variable
        for i, part in enumerate(minibatches(self.cells, self.training, *sizes, self.order)):
            kl_weight = self.kl_weight((number - 1) * self.n_minibatches + i + 1)
            bound = self.model.elbo(part.to(self.model.device, self.model.dtype))
            loss = bound.loss(kl_weight)
            if not torch.isfinite(loss):
                broken = [n for n in bound.terms if not torch.isfinite(bound[n]).all()]
                raise TrainingError(self._diagnosis(*(broken or bound.terms)))
            self.sound = start
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            of_part = {name: bound[name].detach().sum() for name in bound.terms}
            of_part |= {name: q.sum(0) for name, q in bound.posteriors.items()}
            sums = {name: sums.get(name, 0) + total for name, total in of_part.items()}
        if not _finite(self.model.state_dict().values()):
            raise TrainingError(self._diagnosis("parameters"))
        of_training = {name: (total / len(self.training)).tolist() for name, total in sums.items()}
        means = {name: of_training[name] for name in bound.terms}
        held_out = self._held_out_bound()
        self.history.records.append(
            {
                "epoch": number,
                "kl_weight": kl_weight,
                **means,
                "bound": sum(means[name] for name, term in bound.terms.items() if term.in_bound),
                "held_out_bound": held_out,
                "seconds": time.perf_counter() - started,
            }
        )
        for name in bound.posteriors:
            self.history.shares.setdefault(name, []).append(of_training[name])
        if kl_weight == 1 and held_out > self.best_bound:  # never true of NaN
            best = _copy(self.model.state_dict())
            self.best, self.best_bound, self.history.best_epoch = best, held_out, number

    def _held_out_bound(self) -> float:
        if len(self.held_out) == 0:
            return float("nan")
        # The same draws in every epoch, so that epochs differ by their parameters only.
        return float(self.model.bound(self.cells[self.held_out], self.settings["seed"]).mean())

    def restore_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)

    def _diagnosis(self, *broken: str) -> str:
        """What to tell a user whose loss is no longer finite; sets the model back."""
        rate = self.settings["learning_rate"]
        # Not the running statistics of batch normalisation: they overflow with the values.
        if _finite(self.model.parameters()) and rate < 0.01:
            largest = max(abs(part.x).max() for _, part in self.cells.parts())
            cause = (
                f"values that overflow (the largest here is {largest:.3g}); scale them down, or "
                "choose a count likelihood for counts"
            )
        else:
            cause = f"a learning rate that is too high ({rate:g}); try {rate / 10:g}"
        epoch, parameters = self.sound
        self.model.load_state_dict(parameters)
        return (
            f"Training is no longer finite in epoch {len(self.history.records) + 1}: NaN or "
            f"infinite values in {' and '.join(map(repr, broken))}. The likely cause is {cause}. "
            f"The model was set back to {f'the end of epoch {epoch}' if epoch else 'the start'}."
        )

    # Checkpoints: one file, so that it is whole or not there.

    def write(self, path: Path) -> None:
        from safetensors.torch import save

        tensors = {"rng": torch.get_rng_state()}
        if self.model.device.type == "cuda":
            tensors["rng_cuda"] = torch.cuda.get_rng_state(self.model.device)
        tensors |= {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in state.items()}
        progress = {
            "settings": self.settings,
            "history": asdict(self.history),
            "best_bound": self.best_bound,
            "order": self.order.bit_generator.state,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.contiguous() for name, t in tensors.items()}
        progress["sha256"] = hashlib.sha256(save(tensors)).hexdigest()
        write_atomically({path: save(tensors, metadata={"vaelab": to_json(progress)})})

    def resume(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if "vaelab" not in metadata:
                    raise ValueError("it holds no training")
                progress = json.loads(metadata["vaelab"])
                # Copies: the file is to be replaced after the next epoch, and must not be in use.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if hashlib.sha256(save(tensors)).hexdigest() != progress["sha256"]:
                raise ValueError("its content has changed since it was written")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{path} can't be read as a checkpoint of vaelab: {error}. Name another file, or "
                "remove this one to start anew."
            ) from None
        then, now = progress["settings"], json.loads(to_json(self.settings))
        if changed := [name for name in now if then.get(name) != now[name]]:
            name = changed[0]
            raise TrainingError(
                f"{path} is of another run: {name} was {then.get(name)} there and is {now[name]} "
                "here. Ask for the same run, or name another checkpoint."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.best = {name: t.to(self.model.device) for name, t in part("best.").items()}
        state = self.optimizer.state_dict()
        state["state"] = {}
        for name, tensor in part("optimizer.").items():
            index, key = name.split(".")
            state["state"].setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(state)
        torch.set_rng_state(tensors["rng"])
        if "rng_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng_cuda"], self.model.device)
        self.order.bit_generator.state = progress["order"]
        self.history.__init__(**progress["history"])
        self.best_bound = progress["best_bound"]


class _Bar:
    """A progress bar with the bound and its terms."""

    def __init__(self, epochs: int, done: int, show: bool):
        from tqdm import tqdm

        # On standard output: notebooks set standard error on red, and nothing is wrong.
        self.bar = tqdm(total=epochs, initial=done, unit="epoch", disable=not show, file=sys.stdout)

    def update(self, history: History) -> None:
        hidden = ("epoch", "kl_weight", "seconds")
        parts = {
            k: f"{v:.1f}" for k, v in history.records[-1].items() if k not in hidden and v == v
        }
        for name, shares in history.shares.items():
            of_all = usage(shares[-1])
            parts[name] = f"{of_all['used']}/{len(shares[-1])} H {of_all['entropy']:.2f}"
        self.bar.set_postfix(parts, refresh=False)
        self.bar.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(torch.isfinite(t).all() for t in tensors)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _digest(cells: Cells) -> str:
    """Tells these cells from others, and from the same in another order."""
    digest = hashlib.sha256("\n".join(cells.gene_names).encode())
    for _, part in cells.parts():
        x = [part.x] if isinstance(part.x, Tensor) else [part.x.data, part.x.indices, part.x.indptr]
        for values in (*x, part.library, part.batch, part.label, part.observed):
            if values is not None:
                digest.update(np.ascontiguousarray(torch.as_tensor(values).cpu()))
    return digest.hexdigest()[:16]
