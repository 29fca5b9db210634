"""Training: ``fit`` improves the objective of any model. ``_Run.epoch`` is the loop to read."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ._internal import checkpoints
from ._internal.arguments import require
from ._internal.machine import find_device
from ._internal.on_disk import OnDisk, UnreadableError
from ._internal.processes import OneProcess, ProcessLostError, own_gpu, together
from .bounds import Bound, Objective
from .cells import Cells
from .history import History, ProgressBar, StopReason
from .likelihoods import Likelihood
from .metrics import USED, usage
from .models._surgery import Extensible
from .models.base import Model
from .models.trainable import Trainable
from .reparametrization import seeded

__all__ = ["History", "StopReason", "TrainingError", "fit", "minibatches"]

MIXED = 4096  # cells of a file that are in memory at once to be mixed

# Where ``fit`` chooses for itself. Measured in optimiser steps, because a small data set has few of
# them in an epoch; the limits are in epochs, because a large one should be seen several times.
GENES_PER_EPSILON = 2_000
STEPS, EPOCHS = 8_000, (30, 500)
STEPS_UNWATCHED, EPOCHS_UNWATCHED = 1_500, (10, 100)  # without held-out cells that say when to stop
PATIENCE_STEPS, PATIENCE = 400, (5, 50)


class TrainingError(RuntimeError):
    """Training cannot go on.

    If the loss was not finite, the model is set back to the start of the last epoch that began with
    a finite loss (not to the last step). If the cells could not be read any more or another process
    died, it keeps the best parameters so far.

    Attributes
    ----------
    history
        The epochs that were finished.
    """

    def __init__(self, message: str, history: History):
        super().__init__(message)
        self.history = history


def fit(
    model: Trainable,
    cells: Cells,
    *,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 2e-2,
    epsilon: float | None = None,
    likelihood_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    kl_warmup: int = 0,
    objective: str = "elbo",
    n_samples: int = 1,
    train: str = "all",
    validation_fraction: float = 0.1,
    patience: int | str | None = "auto",
    block_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Improve a model's objective over its parameters by Adam on minibatches.

    The objective of a VAE and its relatives is a bound, which is maximised. That of an autoencoder
    is a reconstruction error, which is minimised; wherever this page says "bound", read "error".

    Parameters
    ----------
    model
        The model to train. It is changed in place, and is in evaluation mode afterwards.
    cells
        The cells to train on, in memory or on disk.
    epochs
        Largest number of passes over the training cells. None for a number that fits the data set:
        enough for 8,000 optimiser steps, in 30 to 500 epochs (1,500 and 10 to 100 if no cells are
        held out). ``history.chosen`` says how many and why.
    batch_size
        Largest number of cells per minibatch: minibatches of an epoch differ by at most one cell.
        If several processes train together, it is the number per process.
    learning_rate, epsilon, weight_decay
        Options of Adam for the networks. A step of a weight is learning_rate · m / (√v + epsilon),
        with the running means m of its gradient and v of its square. The usual 1e-8 makes steps of
        one size for all weights, also where the gradient is mostly noise, as it is for genes that
        few cells express. With a large epsilon a small gradient makes a small step, and the model
        learns less by heart. None for 1 per 2,000 genes, because the gradient of the bound grows
        with the number of genes, or 1/2,000 for an autoencoder, whose error is a mean over genes.
        With a small epsilon, choose a small learning rate, such as 1e-3.
    likelihood_learning_rate
        Learning rate of the likelihood's own parameters, log θ or log σ of each gene. For them
        epsilon is 1e-8, and there is no weight decay. None for the likelihood's ``learning_rate``:
        0.1 for θ, 0.0025 for σ.
    kl_warmup
        Number of optimiser steps over which the KL weight rises linearly to 1, at most all steps;
        0 for a weight of 1 from the start. It did not improve the bound of the default networks.
        Deep networks without normalisation may need it: without, all of z may collapse. An
        autoencoder does not have a KL, and must have 0.
    objective
        "elbo" for the mean of log w = log p(x, z) − log q(z | x) over draws of z, and for the error
        of an autoencoder. "iwae" for the importance-weighted bound log (1/S) Σ_s w_s, with the same
        S draws in numerator and denominator. It is closer to log p(x), and it is also the held-out
        bound. It has no KL term, and so no warm-up.
    n_samples
        Number of draws of z per cell and step, S. The held-out ELBO has one draw.
    train
        "all" to train all weights. "new batch" to train only the weights of the cells' batches,
        which ``model.extend`` has added: all other parameters and buffers stay equal to the bit.
        The model is then in evaluation mode throughout, so that batch normalisation uses its
        running statistics.
    validation_fraction
        Share of cells held out, on which the bound is monitored; 0 for none. Held-out cells are
        judged without their labels, so that their bounds are all on log p(x).
    patience
        Epochs without a better held-out bound after which training stops, counted from the end
        of the warm-up; None to go on to the end. If there are held-out cells, the best parameters
        are restored in both cases. "auto" for a number that fits the data set.
    block_size
        Number of neighbouring cells that are read together. None for 1 in memory, where the order
        is then completely random, 16 in h5ad and 64 in zarr: :func:`minibatches` says what this
        costs in randomness.
    seed
        Random seed for the split, the order of cells, dropout and the draws of z. On a CPU, the
        same seed, model and number of threads of torch give the same parameters bit for bit. If
        several Python threads call ``fit``, they train one after the other.
    device
        Device to train on, such as "cpu", "cuda" or "mps", or the number of a GPU; None for the
        model's own.
    checkpoint
        A file to write after every epoch. If it exists, training goes on from it, and ends with the
        same result as an uninterrupted run. A finished run goes on in the same way with more
        ``epochs`` or another ``patience``: the optimiser and the KL warm-up are those of the first
        call, so that the KL weight does not fall again.
    progress
        True to show a bar with the bound and its terms.

    Returns
    -------
    The History. Ctrl-C stops training and returns normally, with the best parameters so far;
    ``history.reason`` and ``history.stopped`` say so.

    Raises
    ------
    ValueError
        The model cannot read the cells, or an argument is out of range.
    TypeError
        ``model`` is not a model of vaelab, or ``cells`` are not Cells.
    TrainingError
        The loss is no longer finite (the message names the epoch, the term and a possible cause),
        the file of the cells can no longer be read, the checkpoint cannot be written, it is from
        another run, or another process has died. The error's ``history`` holds the epochs that were
        finished.

    Notes
    -----
    **Several processes.** ``torchrun --nproc-per-node=2 script.py`` trains one model on two
    processes: through gloo on CPUs, through nccl with one NVIDIA GPU for each process. Each process
    calls ``fit`` with the same arguments and with all cells, and gets the same model and history.
    It computes its part of each minibatch, and reads from a file only the blocks of that part.

    Two processes with ``batch_size=64`` take the same steps as one with 128. Gradients, batch
    normalisation and the mean over labelled cells are those of the whole minibatch. Three things
    differ. Each process has draws and dropout of its own. From a file in blocks, each mixes its own
    cells; ``block_size=1`` gives the same minibatches. And the bias of a layer before batch
    normalisation has gradient 0, so that only rounding moves it, which has no effect.

    All processes stop together: by Ctrl-C or SIGTERM to any of them, by patience, or if the loss of
    one is no longer finite. If one dies, the others raise a TrainingError. The first process
    alone writes the checkpoint, which all must be able to read. Any number of processes can go on
    from it if together they have as many cells per minibatch.
    """
    if not isinstance(model, Trainable):
        kind = type(model).__name__
        raise TypeError(f"model must be a model of vaelab.models, but is a {kind}.")
    settings = {
        "train": train,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "epsilon": epsilon,
        "likelihood_learning_rate": likelihood_learning_rate,
        "weight_decay": weight_decay,
        "kl_warmup": kl_warmup,
        "objective": objective,
        "n_samples": n_samples,
        "validation_fraction": validation_fraction,
        "patience": patience,
        "block_size": block_size,
        "seed": seed,
    }
    _require_settings(settings)
    model.require_compatible(cells)
    for name, default in {"kl_warmup": 0, "objective": "elbo", "n_samples": 1}.items():
        if settings[name] != default and not isinstance(model, Model):
            raise ValueError(
                f"{name} is {settings[name]!r}, but {type(model).__name__} has no KL and no draws: "
                f"leave it at {default!r}."
            )
    if train != "all":
        _require_new_batches(train, model, cells)
    if block_size is None:
        settings["block_size"] = cells.x.block_size if isinstance(cells.x, OnDisk) else 1
    device = find_device(own_gpu(model.device if device in (None, "") else device))
    n_held_out = round(validation_fraction * cells.n_cells)
    if n_held_out == cells.n_cells:
        raise ValueError(
            f"validation_fraction {validation_fraction} of {cells.n_cells} cells leaves none to "
            "train on; lower it, or give more cells."
        )
    new = model.to(device).new_weights(cells) if train == "new batch" else None
    with (
        seeded(seed),
        _training_only(model, new),
        _gradients(device),
        together(device) as processes,
    ):
        settings["batch_size"] *= processes.n
        n_summed = cells.n_genes if model.sums_over_genes else 1
        chosen = _choose(settings, n_summed, cells.n_cells - n_held_out, n_held_out)
        own_settings = dict(settings)  # ``identify`` adds what only a checkpoint needs
        run = _Run(model.to(device), cells, n_held_out, settings, new, processes)
        if checkpoint is not None:
            checkpoint = Path(checkpoint).expanduser()
            run.identify()
            if checkpoint.exists():
                run.resume(checkpoint)
        processes.require_cells(len(run.training_rows) // run.n_minibatches)
        processes.require_same(settings, model, cells, len(run.history.records))
        run.history.settings, run.history.chosen = own_settings, chosen
        # After all checks: a refused run does not change the model.
        if new is None:
            model.prepare(cells)
        else:
            model.prepare_library_prior(cells)
        run.begin()
        history = run.history
        try:
            show = progress and processes.rank == 0
            with ProgressBar(settings["epochs"], len(history.records), show=show) as bar:
                while not run.is_done():
                    run.epoch()
                    if checkpoint is not None and processes.rank == 0:
                        run.write(checkpoint)
                    bar.update(history)
        except KeyboardInterrupt as signal:
            if not _finite(model.state_dict().values()):
                run.restore_last_finite()
            history.reason = StopReason.INTERRUPTED
            by = str(signal) or "Ctrl-C"
            history.stopped = f"stopped by {by} in epoch {len(history.records) + 1}"
            if processes.rank == 0:
                of = settings["epochs"]
                print(f"Training was {history.stopped} of {of}; the model so far is kept.")
        except UnreadableError as error:
            run.restore_best()
            raise TrainingError(
                f"{error} Training ended in epoch {len(history.records) + 1} of "
                f"{settings['epochs']}; the model so far is kept.",
                history,
            ) from error
        except ProcessLostError as error:
            run.restore_best()
            raise TrainingError(
                f"Training ended in epoch {len(history.records) + 1} of {settings['epochs']}, "
                f"because {error}; the model so far is kept.",
                history,
            ) from None
        finally:
            model.eval()
    run.restore_best()
    for name, shares in history.shares.items():
        final, n_values = usage(shares[-1]), len(shares[-1])
        expected = _expected_entropy(model, cells, n_values)
        unused = final["used"] < n_values and final["entropy"] < expected / 2
        if unused and processes.rank == 0:
            warnings.warn(
                f"The model uses {final['used']} of the {n_values} values of {name}: each of the "
                f"others has at most {USED:.0%} of the cells, and the parameters that describe it "
                "mean little. A better start or a longer KL warm-up may help.",
                stacklevel=2,
            )
    return history


def _expected_entropy(model: Trainable, cells: Cells, n_values: int) -> float:
    """The entropy of the labels if the model has any, which may be unequal; else the largest."""
    label = cells.label[cells.label >= 0]
    if model.label_names is None or len(label) == 0:
        return math.log(n_values)
    return usage((label.bincount(minlength=n_values) / len(label)).cpu().numpy())["entropy"]


@contextmanager
def _gradients(device: torch.device) -> Iterator[None]:
    """Gradients in the model's own precision, whatever the code around ``fit`` has set."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def minibatches(
    cells: Cells,
    rows: np.ndarray,
    batch_size: int,
    block_size: int,
    rng: np.random.Generator,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Cells]:
    """Each of the given cells once, in random order, from memory or from a file.

    Blocks of neighbouring rows are put in random order. Then 4,096 cells at a time are read, mixed,
    and split into minibatches. This is less random than a shuffle of all cells: the variance of a
    mean over a minibatch is 1 + ρ (batch_size − 1) (block_size − 1) / 4095 times as large. Here ρ
    is the correlation, between two cells of one block, of the quantity that is averaged: 0 if the
    file is in random order, up to 1 if it is sorted by that quantity. For 128 cells the factor is
    at most 1.5 in blocks of 16, and 3 in blocks of 64.

    Parameters
    ----------
    cells
        The cells, in memory or on disk.
    rows
        Rows of the cells to use, in the order of the file, so that blocks consist of neighbours.
    batch_size
        Largest number of cells per minibatch; minibatches differ by at most one cell.
    block_size
        Number of cells per block; 1 for a shuffle of all cells.
    rng
        Random generator for the order.
    part
        Which part of each minibatch to read, counted from 0, and the number of parts. All parts
        together are the minibatches, if ``rng`` is in the same state for each of them. A part has
        blocks of its own, and is mixed on its own.

    Yields
    ------
    Minibatches, in memory.
    """
    index, n_parts = part
    starts = rng.permutation(np.arange(0, len(rows), block_size))
    places = (starts[:, None] + np.arange(block_size)).ravel()
    rows = rows[places[places < len(rows)]]
    n_minibatches = -(-len(rows) // batch_size)
    minibatch_rows = np.array_split(rows, n_minibatches)
    if n_parts > 1 and block_size == 1:
        minibatch_rows = [np.array_split(whole, n_parts)[index] for whole in minibatch_rows]
    elif n_parts > 1:
        minibatch_rows = np.array_split(np.array_split(rows, n_parts)[index], n_minibatches)
        rng = np.random.default_rng([index, *starts[:9]])  # all parts must use rng equally often
    at_once = max(1, n_parts * MIXED // batch_size)  # number of minibatches per reading
    for group in np.array_split(np.arange(len(minibatch_rows)), -(-len(minibatch_rows) // at_once)):
        mixed = np.concatenate([minibatch_rows[i] for i in group])
        if block_size > 1:
            rng.shuffle(mixed)
        read = cells[mixed].in_memory()
        for start, stop in pairwise(np.cumsum([0, *(len(minibatch_rows[i]) for i in group)])):
            yield read[start:stop]


class _Run:
    """One training, with everything that changes while it runs, so that it can be resumed."""

    def __init__(
        self,
        model: Trainable,
        cells: Cells,
        n_held_out: int,
        settings: dict,
        new: dict[str, Tensor] | None,
        processes: OneProcess,
    ):
        self.model, self.cells, self.settings = model, cells, settings
        self.new = new  # masks of the entries to train; None for all
        self.processes = processes  # those that train this model together
        self.history = History()
        self.draws = {}  # of the latent variables, for the objective
        if isinstance(model, Model):
            weighted = settings["objective"] == "iwae"
            self.draws = {"n_samples": settings["n_samples"], "weighted": weighted}
        self.best: dict[str, Tensor] = {}  # parameters of the best epoch
        self.best_score = -np.inf  # its held-out bound, or minus its held-out error
        fused = model.device.type in ("cpu", "cuda") and model.dtype == torch.float32
        self.optimizer = torch.optim.Adam(_groups(model, settings), fused=fused)
        self.rng = np.random.default_rng(settings["seed"])
        shuffled = self.rng.permutation(cells.n_cells)
        held_out = np.array_split(np.sort(shuffled[:n_held_out]), processes.n)[processes.rank]
        self.held_out, self.n_held_out = cells[held_out].unlabelled(), n_held_out
        self.training_rows = shuffled[n_held_out:]
        if settings["block_size"] > 1:
            self.training_rows.sort()
        self.n_minibatches = -(-len(self.training_rows) // settings["batch_size"])

    def begin(self) -> None:
        self.processes.share(self.model.state_dict())
        # The last epoch whose parameters are known to give a finite loss, and these parameters.
        self.last_finite = len(self.history.records), _copy(self.model.state_dict())
        self.old = {name: self.last_finite[1][name] for name in self.new or ()}

    def epoch(self) -> None:
        """One pass over the training cells, and its record in the history."""
        number, started = len(self.history.records) + 1, time.perf_counter()
        start_of_epoch = number - 1, _copy(self.model.state_dict())
        batch_size, block_size = self.settings["batch_size"], self.settings["block_size"]
        part = self.processes.rank, self.processes.n
        shuffled = minibatches(
            self.cells, self.training_rows, batch_size, block_size, self.rng, part
        )
        self.processes.begin_epoch(self.settings["seed"], number)
        totals: dict[str, Tensor] = {}  # over cells: each term, and q of each discrete variable
        self.model.train(self.new is None)
        for i, minibatch in enumerate(shuffled):
            kl_weight = self.kl_weight((number - 1) * self.n_minibatches + i + 1)
            objective = self.model.objective(
                minibatch.to(self.model.device, self.model.dtype), **self.draws
            )
            loss = self.processes.mean(objective.loss(kl_weight), len(minibatch))
            if not torch.isfinite(loss):
                broken = [n for n in objective.terms if not torch.isfinite(objective[n]).all()]
                self.fail(broken, [*objective.terms])
            self.last_finite = start_of_epoch
            self.optimizer.zero_grad()
            loss.backward()
            self.processes.add_gradients(self.model.parameters())
            self.optimizer.step()
            self.keep_old()
            self.model.after_step()
            sums = {name: objective[name].detach().sum() for name in objective.terms}
            sums |= {name: q.sum(0) for name, q in objective.posteriors.items()}
            sums[objective.name] = objective.per_cell().detach().sum()
            totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
        self.processes.share(self.model.state_dict())
        if not _finite(self.model.state_dict().values()):
            self.fail(["parameters"])
        self.record(number, kl_weight, objective, totals, started)

    @torch.no_grad()
    def keep_old(self) -> None:
        """Set the entries that are not trained back to what they were."""
        for name, old in self.old.items():
            parameter = self.model.get_parameter(name)
            parameter.copy_(parameter.where(self.new[name], old))

    def record(
        self, number: int, kl_weight: float, objective: Objective, totals: dict, started: float
    ) -> None:
        n_training = len(self.training_rows)
        totals = self.processes.add(totals)
        means = {name: (total / n_training).tolist() for name, total in totals.items()}
        held_out = self.held_out_objective()
        self.history.records.append(
            {
                "epoch": number,
                **({"kl_weight": kl_weight} if isinstance(objective, Bound) else {}),
                **{name: means[name] for name in objective.terms},
                objective.name: objective.total(means),
                f"held_out_{objective.name}": held_out,
                "seconds": self.processes.gather(time.perf_counter() - started)[0],
            }
        )
        for name in objective.posteriors:
            self.history.shares.setdefault(name, []).append(means[name])
        if objective.sign * held_out > self.best_score:  # False for NaN
            self.best = _copy(self.model.state_dict())
            self.best_score = objective.sign * held_out
            self.history.best_epoch = number

    def kl_weight(self, step: int) -> float:
        """The KL weight at a step, counted from 1 over all epochs."""
        return min(1.0, step / max(1, self.settings["kl_warmup"]))

    def held_out_objective(self) -> float:
        """The mean objective of the held-out cells, with the same draws in every epoch."""
        if self.n_held_out == 0:
            return float("nan")
        seed = (int(self.settings["seed"]) + self.processes.rank) % 2**63
        values = self.model.objective_per_cell(self.held_out, seed=seed, **self.draws)
        return self.processes.mean_of(values)

    def is_done(self) -> bool:
        """True if training ends now; the history then has the reason."""
        history, patience = self.history, self.settings["patience"]
        done = len(history.records)
        if done >= self.settings["epochs"]:
            history.reason, history.stopped = StopReason.ALL_EPOCHS, f"all {done} epochs done"
        elif patience is not None and self.best and done - self.last_progress() >= patience:
            history.reason = StopReason.NO_PROGRESS
            name = "bound" if "bound" in history.records[-1] else "error"
            history.stopped = f"no better held-out {name} for {patience} epochs"
        return history.reason is not StopReason.NOT_STARTED

    def last_progress(self) -> int:
        """The best epoch so far, or the end of the warm-up if that was later."""
        return max(self.history.best_epoch, self.settings["kl_warmup"] // self.n_minibatches)

    def restore_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)

    def restore_last_finite(self) -> str:
        """Set the model back to the start of the last epoch with a finite loss; returns which."""
        epoch, parameters = self.last_finite
        self.model.load_state_dict(parameters)
        return f"the end of epoch {epoch}" if epoch else "the start"

    def fail(self, broken: list[str], if_none: list[str] = ()) -> None:
        """Set the model back as TrainingError says, and raise one."""
        broken = dict.fromkeys(chain.from_iterable(self.processes.gather(broken))) or if_none
        cause, restored = self.possible_cause(), self.restore_last_finite()
        raise TrainingError(
            f"Training is no longer finite in epoch {len(self.history.records) + 1}: NaN or "
            f"infinite values in {' and '.join(map(repr, broken))}. A possible cause is {cause}. "
            f"The model was set back to {restored}.",
            self.history,
        )

    def possible_cause(self) -> str:
        rate = self.settings["learning_rate"]
        # Parameters only: batch normalisation's running statistics overflow when the values do.
        if not _finite(self.model.parameters()) or rate > 0.05:
            return f"a learning rate that is too high ({rate:g}); try {rate / 10:g}"
        largest = max(abs(part.x).max() for _, part in self.cells.parts())
        if self.model.domain == "counts":
            return (
                f"a count that is far larger than the others (the largest is {largest:,.0f}), or "
                f"a learning rate that is too high ({rate:g})"
            )
        counts = ", or choose a count likelihood if these are counts"
        return (
            f"values that overflow (the largest here is {largest:.3g}); scale them down"
            f"{counts if isinstance(self.model, Model) else ''}"
        )

    def identify(self) -> None:
        """Add to the settings what else a checkpoint must agree with."""
        self.settings |= {
            "model": type(self.model).__name__,
            "configuration": self.model.configuration,
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "n_cells": self.cells.n_cells,
            "cells": checkpoints.digest(self.cells),
        }

    def write(self, path: Path) -> None:
        try:
            checkpoints.write(self, path)
        except OSError as error:
            self.restore_best()
            raise TrainingError(
                f"The checkpoint {path} cannot be written: {error}. Training ended after epoch "
                f"{len(self.history.records)}; the model so far is kept. Free some space, or name "
                "another file.",
                self.history,
            ) from error

    def resume(self, path: Path) -> None:
        try:
            checkpoints.resume(self, History, path)
        except checkpoints.CheckpointError as error:
            raise TrainingError(str(error), self.history) from None


def _require_settings(settings: dict) -> None:
    """Refuse settings that are out of range."""
    size = "a whole number, at least 1"

    def is_size(n):
        return n >= 1

    for name, kind, fits, expected in (
        ("epochs", Integral, is_size, f"None or {size}"),
        ("batch_size", Integral, is_size, size),
        ("learning_rate", Real, lambda v: 0 < v < np.inf, "a number above 0"),
        ("epsilon", Real, lambda v: 0 < v < np.inf, "None or a number above 0"),
        ("likelihood_learning_rate", Real, lambda v: 0 < v < np.inf, "None or a number above 0"),
        ("weight_decay", Real, lambda v: 0 <= v < np.inf, "a number, 0 or more"),
        ("kl_warmup", Integral, lambda n: n >= 0, "a whole number of steps, 0 or more"),
        ("n_samples", Integral, is_size, size),
        ("validation_fraction", Real, lambda v: 0 <= v < 1, "a share, from 0 to below 1"),
        ("patience", Integral, is_size, f"'auto', None or {size}"),
        ("block_size", Integral, is_size, f"None or {size}"),
        ("seed", Integral, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2⁶³ − 1"),
    ):
        may_be_none = settings[name] is None and "None" in expected
        if not (may_be_none or (name == "patience" and settings[name] == "auto")):
            require(name, settings[name], kind, fits, expected)
    if settings["objective"] not in ("elbo", "iwae"):
        raise ValueError(f"objective is {settings['objective']!r}; choose from ['elbo', 'iwae']")
    if settings["objective"] == "iwae" and settings["kl_warmup"]:
        raise ValueError(
            f"kl_warmup is {settings['kl_warmup']}, but objective 'iwae' has no KL term that could "
            "warm up: leave it at 0, or choose objective='elbo'."
        )


def _choose(settings: dict, n_genes: int, n_training: int, n_held_out: int) -> dict[str, str]:
    """Set the settings that were left to ``fit``; returns a sentence for each."""
    n_steps, chosen = -(-n_training // settings["batch_size"]), {}

    def choose(name: str, steps: int, limits: tuple[int, int], reason: str = "") -> None:
        settings[name] = int(np.clip(-(-steps // n_steps), *limits))
        chosen[name] = (
            f"{settings[name]} epochs: {steps:,} steps at {n_steps:,} per epoch, within "
            f"{limits[0]} to {limits[1]} epochs{reason}"
        )

    if settings["epsilon"] is None:
        settings["epsilon"] = n_genes / GENES_PER_EPSILON
        chosen["epsilon"] = (
            f"epsilon {settings['epsilon']:g}: {n_genes:,} genes, 1 per {GENES_PER_EPSILON:,} genes"
        )
    if settings["epochs"] is None and n_held_out:
        choose("epochs", STEPS, EPOCHS)
    elif settings["epochs"] is None:
        reason = "; no held-out cells say when to stop"
        choose("epochs", STEPS_UNWATCHED, EPOCHS_UNWATCHED, reason)
    if settings["patience"] == "auto":
        choose("patience", PATIENCE_STEPS, PATIENCE)
    epochs, kl_warmup = settings["epochs"], settings["kl_warmup"]
    if kl_warmup > epochs * n_steps:
        raise ValueError(
            f"kl_warmup is {kl_warmup:,} steps, but {epochs:,} epochs of {n_training:,} training "
            f"cells have {epochs * n_steps:,}; the KL weight would not reach 1. Choose a shorter "
            "warm-up or more epochs."
        )
    return chosen


def _groups(model: Trainable, settings: dict) -> list[dict]:
    """The parameters to train with their options of Adam: networks, and each likelihood's own."""
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    groups = []
    for likelihood in (m for m in model.modules() if isinstance(m, Likelihood)):
        own = [trained.pop(id(p)) for p in likelihood.parameters(recurse=False) if id(p) in trained]
        rate = settings["likelihood_learning_rate"] or likelihood.learning_rate
        groups.append({"params": own, "lr": rate})
    networks = {"params": [*trained.values()], "lr": settings["learning_rate"]}
    options = {"eps": settings["epsilon"], "weight_decay": settings["weight_decay"]}
    return [networks | options, *groups]


def _require_new_batches(train: str, model: Model, cells: Cells) -> None:
    if train != "new batch":
        raise ValueError(f"train is {train!r}; choose from ['all', 'new batch']")
    if not isinstance(model, Extensible):
        kind = type(model).__name__
        raise ValueError(f"{kind} has no batches; train='new batch' is for SCVI and SCANVI.")
    model.require_new_batches(cells)


@contextmanager
def _training_only(model: Trainable, parameters: Iterable[str] | None) -> Iterator[None]:
    """Only these parameters have gradients inside; None for no change."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            if parameters is not None:
                parameter.requires_grad_(name in parameters)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(torch.isfinite(t).all() for t in tensors)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
