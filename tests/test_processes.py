"""One model on two processes: the same steps as one process, and all stop together.

This file is also the script that torchrun starts: each function in ``SCRIPT`` runs in both
processes, one after the other, and what it returns is kept for the tests.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import anndata
import numpy as np
import pytest
import torch

from vaelab import GMVAE, SCANVI, SCVI, VAE, Autoencoder, Cells, fit, training
from vaelab._internal.on_disk import OnDisk
from vaelab._internal.processes import total
from vaelab.bounds import Bound, Term
from vaelab.models import gmvae, scanvi, scvi, vae
from vaelab.training import TrainingError

RANK = int(os.environ.get("RANK", 0))
N_GENES = 8
SIZES = {"n_latent": 2, "n_hidden": 6}


def some_cells(n_cells=101, labels="ab------"):
    """Few cells have labels, so that one process may have none of them in its minibatch."""
    x = np.random.default_rng(0).poisson(3, size=(n_cells, N_GENES)) + 1
    label = [{"-": None}.get(name, name) for name in (labels * n_cells)[:n_cells]]
    return Cells.from_array(x, label=label, batch=[str(i % 2) for i in range(n_cells)])


def without_noise(**options):
    """A VAE whose draws are its means, and that has no dropout."""
    return VAE(N_GENES, dropout_rate=0.0, likelihood="nb", **SIZES | options)


class Coupled(VAE):
    """A VAE with a term of all cells together: the square of their mean z."""

    def elbo(self, cells, **options):
        bound = super().elbo(cells, **options)
        mean = self.encode(cells).mean
        n, *sums = total(torch.cat([mean.new_ones(len(mean), 1), mean], dim=1).sum(0))
        spread = (torch.stack(sums) / n).square().sum().expand(len(mean))
        return Bound(*bound.terms.values(), Term("spread", "‖E[z]‖²", -1, spread, weight=100.0))


MODELS = {
    "coupled": lambda: Coupled(N_GENES, dropout_rate=0.0, normalization=None, **SIZES),
    "layer norm": lambda: without_noise(normalization="layer"),
    "batch norm": lambda: without_noise().double(),
    "autoencoder": lambda: Autoencoder(N_GENES, n_hidden=(6,), tied=True).double(),
    "GMVAE": lambda: GMVAE(N_GENES, n_clusters=3, dropout_rate=0.0, **SIZES).double(),
    "SCVI": lambda: SCVI(
        N_GENES, n_batches=2, library="latent", dropout_rate=0.0, **SIZES
    ).double(),
    "SCANVI": lambda: SCANVI(N_GENES, n_labels=2, n_batches=2, dropout_rate=0.0, **SIZES).double(),
}


@contextmanager
def still():
    """Every draw is half a standard deviation above the mean, in any process."""

    def gaussian(mean, std, n_samples=None):
        z = mean + std / 2
        return z if n_samples is None else z.expand(n_samples, *z.shape)

    with ExitStack() as stack:
        for module in (vae, gmvae, scvi, scanvi):
            stack.enter_context(mock.patch.object(module, "gaussian", gaussian))
        yield


def train(model, cells=None, **arguments):
    """What a training leaves: parameters, history, and the message of an error."""
    arguments = {"epochs": 2, "batch_size": 16, "progress": False} | arguments
    message = None
    try:
        history = fit(model, some_cells() if cells is None else cells, **arguments)
    except (TrainingError, ValueError) as error:
        history, message = getattr(error, "history", training.History()), str(error)
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "records": history.records,
        "shares": history.shares,
        "stopped": history.stopped,
        "best_epoch": history.best_epoch,
        "message": message,
    }


def at_step(model, step, do, rank=1):
    """Call ``do`` with the bound of a training step, counted from 1, in one of the processes."""
    elbo, seen = model.elbo, {"steps": 0}

    def changed(cells, **arguments):
        bound = elbo(cells, **arguments)
        seen["steps"] += model.training
        if model.training and seen["steps"] == step and rank == RANK:
            do(bound)
        return bound

    model.elbo = changed
    return model


def noisy(**options):
    return VAE(N_GENES, dropout_rate=0.3, likelihood="nb", **SIZES | options)


def overfitted(batch_size):
    """Ends by its patience: 300 epochs are far too many for 30 cells."""
    options = {"epochs": 300, "learning_rate": 0.03, "kl_warmup": 20, "patience": 10}
    model = without_noise(n_hidden=64, normalization="layer").double()
    with still():
        return train(
            model, some_cells(30), batch_size=batch_size, validation_fraction=0.3, **options
        )


def read_from(path, **arguments):
    """The rows that this process reads for training, in reading order, and the training."""
    cells, rows, read = Cells.from_anndata(anndata.read_h5ad(path, backed="r")), [], OnDisk.read

    def watched(matrix):
        rows.append(matrix.rows.copy())
        return read(matrix)

    with mock.patch.object(OnDisk, "read", watched), still():
        trained = train(MODELS["layer norm"](), cells, validation_fraction=0, epochs=1, **arguments)
    return trained | {"rows": rows}


def spoil(bound):
    bound.terms["kl_z"].value.data[0] = np.nan


def other_starts():
    model = noisy()
    with torch.no_grad():
        model.encoder[0].weight += RANK
    return train(model, epochs=1)


def draws():
    """The seed from which torch draws, in the first step of two epochs."""
    model, seen = noisy(), []

    def look(bound):
        seen.append(torch.initial_seed())

    train(at_step(at_step(model, 1, look, rank=RANK), 4, look, rank=RANK))
    return {"draws": seen}


def asked_after_the_last_step():
    model = noisy()
    objective_per_cell = model.objective_per_cell

    def asked(*arguments, **options):
        if RANK == 1:
            signal.raise_signal(signal.SIGINT)
        return objective_per_cell(*arguments, **options)

    model.objective_per_cell = asked
    try:
        return train(model, epochs=1) | {"interrupted": False}
    except KeyboardInterrupt:
        return {"interrupted": True}


def one_step(kind):
    with still():
        return train(MODELS[kind](), batch_size=16, validation_fraction=0.2)


SCRIPT = {
    **{kind: lambda folder, kind=kind: one_step(kind) for kind in MODELS},
    "noisy": lambda folder: train(noisy(), epochs=6, kl_warmup=0),
    "same start": lambda folder: train(noisy(), epochs=1),
    "other starts": lambda folder: other_starts(),
    "draws": lambda folder: draws(),
    "overfitted": lambda folder: overfitted(8),
    "first half": lambda folder: train(noisy(), epochs=3, kl_warmup=0, checkpoint=folder / "noisy"),
    "second half": lambda folder: train(
        noisy(), epochs=6, kl_warmup=0, checkpoint=folder / "noisy"
    ),
    "from one process": lambda folder: train(noisy(), epochs=6, checkpoint=folder / "of one"),
    "a checkpoint that only one sees": lambda folder: train(
        noisy(), epochs=6, checkpoint=folder / ("of one" if RANK == 0 else "nowhere")
    ),
    "nan": lambda folder: train(at_step(noisy(), 9, spoil), epochs=3),
    **{
        name: lambda folder, number=number: train(
            at_step(noisy(), 9, lambda bound: signal.raise_signal(number)), epochs=6
        )
        for name, number in (("Ctrl-C", signal.SIGINT), ("SIGTERM", signal.SIGTERM))
    },
    "asked late": lambda folder: asked_after_the_last_step(),
    "rates": lambda folder: train(noisy(), learning_rate=1e-3 * (1 + RANK)),
    "cells": lambda folder: train(noisy(), some_cells()[RANK::2]),
    "other cells": lambda folder: train(noisy(), some_cells(labels="ab" if RANK else "ba")),
    "sizes": lambda folder: train(noisy(n_hidden=6 + RANK)),
    "too few": lambda folder: train(noisy(), some_cells(3), batch_size=1, validation_fraction=0),
    "one held out": lambda folder: train(noisy(), some_cells(10), validation_fraction=0.1),
    "file": lambda folder: read_from(folder / "cells.h5ad", batch_size=16, block_size=1),
    "file in blocks": lambda folder: read_from(folder / "cells.h5ad", batch_size=64),
}


def torchrun(*arguments, **options):
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", __file__]
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of ``SCRIPT``, what it printed, and the results of each process."""
    folder = tmp_path_factory.mktemp("two")
    x = np.random.default_rng(0).poisson(0.5, size=(1000, N_GENES)).astype(np.float32)
    x[:, 0] += 1
    anndata.AnnData(x).write_h5ad(folder / "cells.h5ad")
    train(at_step(noisy(), 20, lambda bound: signal.raise_signal(signal.SIGINT), rank=0),
          epochs=6, batch_size=32, checkpoint=folder / "of one")  # fmt: skip
    with torchrun("all", folder) as process:
        out, error = process.communicate(timeout=300)
    ended = time.time()
    assert (folder / "1").exists(), error
    results = [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]
    return SimpleNamespace(folder=folder, out=out, error=error, ended=ended, results=results)


def difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name]).abs().max().item() for name in a)


ALIKE = [name for name in SCRIPT if name not in ("draws", "asked late", "file", "file in blocks")]


@pytest.mark.parametrize("name", ALIKE)
def test_all_processes_end_with_the_same_model_and_history(two, name):
    first, second = (results[name] for results in two.results)
    assert first["message"] == second["message"]
    if first["message"] is None:
        assert difference(first["state"], second["state"]) == 0
        assert first | {"state": None} == second | {"state": None}


@pytest.mark.parametrize("kind", MODELS)
def test_two_processes_take_the_same_steps_as_one_with_minibatches_twice_as_large(two, kind):
    """With batch norm in float64: in float32, the gradient of a bias before it is only rounding."""
    with still():
        one = train(MODELS[kind](), batch_size=32, validation_fraction=0.2)
    both = two.results[0][kind]
    assert difference(one["state"], both["state"]) < 1e-5
    for record, of_both in zip(one["records"], both["records"], strict=True):
        for name in record.keys() - {"seconds"}:
            assert of_both[name] == pytest.approx(record[name], rel=5e-5), name  # float32
    for name, shares in one["shares"].items():
        np.testing.assert_allclose(both["shares"][name], shares, atol=1e-5)


def test_early_stopping_is_that_of_one_process(two):
    one, both = overfitted(16), two.results[0]["overfitted"]
    assert both["stopped"] == one["stopped"] == "no better held-out bound for 10 epochs"
    assert both["best_epoch"] == one["best_epoch"] < len(both["records"]) < 300
    assert difference(one["state"], both["state"]) < 1e-5


def test_the_model_of_the_first_process_is_trained(two):
    """In the second process, the weights were others at the start."""
    same_start, other_starts = two.results[0]["same start"], two.results[0]["other starts"]
    assert difference(same_start["state"], other_starts["state"]) == 0


def test_each_process_and_each_epoch_has_draws_of_its_own(two):
    first, second = (results["draws"]["draws"] for results in two.results)
    assert len({*first, *second}) == len([*first, *second]) == 4


# ------------------------------------------------------------------------ reading from a file


def test_each_process_reads_rows_of_its_own(two):
    for name in ("file", "file in blocks"):
        first, second = (np.concatenate(results[name]["rows"]) for results in two.results)
        assert abs(len(first) - len(second)) <= 64
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(1000))
    # Of 63 blocks, only the one in the middle of the order is read by both.
    assert len({*(first // 16)} & {*(second // 16)}) <= 1


def test_a_file_gives_the_same_steps_as_one_process(two):
    one = read_from(two.folder / "cells.h5ad", batch_size=32, block_size=1)
    assert difference(one["state"], two.results[0]["file"]["state"]) < 1e-5


# ---------------------------------------------------------------------------------- checkpoints


def test_a_run_goes_on_from_its_checkpoint_in_the_same_numbers(two):
    whole, half, resumed = (two.results[0][name] for name in ("noisy", "first half", "second half"))
    assert len(half["records"]) == 3
    assert difference(whole["state"], resumed["state"]) == 0
    for record, of_resumed in zip(whole["records"], resumed["records"], strict=True):
        assert record | {"seconds": 0} == of_resumed | {"seconds": 0}


def test_a_checkpoint_goes_on_with_another_number_of_processes(two, tmp_path):
    assert len(two.results[0]["from one process"]["records"]) == 6
    assert two.results[0]["from one process"]["message"] is None
    shutil.copy(two.folder / "noisy", tmp_path / "noisy")
    options = {"kl_warmup": 0, "checkpoint": tmp_path / "noisy"}
    refused = train(noisy(), epochs=8, batch_size=16, **options)
    assert "batch_size was 32 there and is 16 here" in refused["message"]
    resumed = train(noisy(), epochs=8, batch_size=32, **options)
    assert resumed["records"][:6] == two.results[0]["second half"]["records"]
    assert len(resumed["records"]) == 8


# --------------------------------------------------------------------------- stopping together


def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_the_same_error(two):
    first, second = (results["nan"] for results in two.results)
    assert first["message"] == second["message"]
    assert "no longer finite in epoch 3: NaN or infinite values in 'kl_z'." in first["message"]
    assert len(first["records"]) == 2
    assert difference(first["state"], second["state"]) == 0


@pytest.mark.parametrize("name", ["Ctrl-C", "SIGTERM"])
def test_a_signal_to_one_process_stops_all_in_the_same_step(two, name):
    for results in two.results:
        assert results[name]["stopped"] == f"stopped by {name} in epoch 3"
        assert results[name]["message"] is None
    assert two.out.count(f"Training was stopped by {name} in epoch 3 of 6") == 1


def test_a_signal_after_the_last_step_is_not_lost(two):
    assert [results["asked late"]["interrupted"] for results in two.results] == [False, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rates", r"learning_rate is 0\.001 in process 0 and 0\.002 in process 1\. All processes"),
        ("cells", r"n_cells is 51 in process 0 and 50 in process 1\."),
        ("other cells", r"cells is '\w+' in process 0 and '\w+' in process 1\."),
        ("sizes", r"configuration is .*'n_hidden': 6.* in process 0 and .*'n_hidden': 7.* in"),
        ("a checkpoint that only one sees", "epochs done is 6 in process 0 and 0 in process 1"),
        ("too few", "2 processes and minibatches of 1 cells"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(two, name, message):
    for results in two.results:
        assert re.search(message, results[name]["message"])
        assert results[name]["records"] == []


def test_a_single_held_out_cell_is_scored(two):
    records = two.results[0]["one held out"]["records"]
    assert np.isfinite([record["held_out_bound"] for record in records]).all()


# ------------------------------------------------------------------- real signals, real deaths


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_that_dies_ends_all_with_one_sentence_and_the_checkpoint_holds(two, tmp_path):
    assert 0 < two.ended - float((two.folder / "killed").read_text()) < 30
    assert re.findall(r"TrainingError: (.*)", two.error) == [
        "Training ended in epoch 3 of 6, because another of the 2 processes has ended or does "
        "not answer; the model so far is kept."
    ]
    assert "gloo" not in two.error
    assert not [*two.folder.glob(".dying*")]  # no half-written file
    shutil.copy(two.folder / "dying", tmp_path)
    resumed = train(noisy(), epochs=6, batch_size=32, checkpoint=tmp_path / "dying")
    assert len(resumed["records"]) == 6
    assert resumed["message"] is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has another Ctrl-C")
def test_ctrl_c_in_the_terminal_ends_training_in_good_order(tmp_path):
    with torchrun("endless", tmp_path) as process:
        assert process.stdout.readline() == "training\n"
        process.send_signal(signal.SIGINT)  # torchrun passes it on to its processes
        out, error = process.communicate(timeout=60)
    assert out.count("Training was stopped by Ctrl-C in epoch") == 1, error
    states = [torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2)]
    assert states[0]["stopped"] == states[1]["stopped"]
    assert difference(states[0]["state"], states[1]["state"]) == 0


def main(what, folder):
    if what == "all":
        torch.save({name: do(folder) for name, do in SCRIPT.items()}, folder / str(RANK))

        def die(bound):
            (folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

        options = {"epochs": 6, "batch_size": 16, "checkpoint": folder / "dying"}
        fit(at_step(noisy(), 8, die), some_cells(), progress=False, **options)
    else:
        model = at_step(noisy(), 20, lambda bound: print("training", flush=True))
        options = {"epochs": 10**6, "patience": None, "kl_warmup": 0}
        torch.save(train(model, **options), folder / str(RANK))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
