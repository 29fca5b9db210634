"""Train on a file of 200,000 cells × 2,000 genes; compare its speed with training in memory.

    python tests/benchmarks/larger_than_memory.py [--format zarr] [--folder somewhere]
    python tests/benchmarks/larger_than_memory.py --blocks [--mixed 4096] [--folder somewhere]

The script makes the file (sorted by type, 92 % zeros), trains a VAE on it, and prints the peak
memory of this process. Then it trains an epoch in memory and an epoch on the file in turns. It
fails if the peak is above 1.5 GB, or if training on the file has less than half the speed.

With ``--blocks`` it prints what the size of a block costs and gains, in h5ad and in zarr:

- the entropy in bits of the types of the cells in a minibatch, mean ± sd over minibatches, as
  D'Ascenzo & Cultrera di Montesano publish it for scDataset (2025, arXiv:2506.01883). If the
  variance of a share is F times that of independent cells, the mean is about
  F (types − 1) / (2 ln 2 batch_size) below the entropy of the whole file.
- F itself, and what the docstring of ``vaelab.training.minibatches`` predicts for it;
- cells per second, of dense minibatches alone and of an epoch of training. The file fits into the
  system's cache. "Cold" is without it: the file is removed from the cache before each reading, as
  if it were larger than memory.

The numbers go to ``larger_than_memory.json`` and ``.png`` in the folder ``--out``.
"""

import argparse
import io
import os
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
import zarr
from anndata.io import read_elem, sparse_dataset, write_elem
from scipy import sparse
from scvi_tools import machine

from vaelab import VAE, Cells, fit, training
from vaelab._internal.machine import to_json, write_atomically

N_GENES, N_TYPES, AT_ONCE = 2000, 10, 2000
BATCH_SIZE = 128  # the default of fit
BLOCK_SIZES = (1, 4, 16, 64, 256, 1024)
FORMATS = ("h5ad", "zarr")
IN_ORDER = None  # in place of a block size: as the cells are in the file, not shuffled
SECONDS = 5  # after which a measurement of reading ends; one reading at least
WHAT = {"reading": "--", "cold": ":", "training": "-"}  # is measured; its line in the figure
PACKAGES = ("vaelab", "torch", "numpy", "anndata", "h5py", "zarr")


def open_file(path: Path, mode: str):
    if path.suffix == ".h5ad":
        return h5py.File(path, mode)
    return zarr.open(path, mode=mode, zarr_format=2)  # as the oldest anndata that we allow writes


def write(path: Path, n_cells: int) -> None:
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.5, size=(N_TYPES, N_GENES))
    profiles /= profiles.sum(1, keepdims=True)
    types = np.sort(rng.integers(N_TYPES, size=n_cells))
    file = open_file(path, "w")
    for start in range(0, n_cells, AT_ONCE):
        piece = types[start : start + AT_ONCE]
        library = rng.lognormal(np.log(175), 0.3, size=(len(piece), 1))
        counts = sparse.csr_matrix(rng.poisson(library * profiles[piece]).astype(np.float32))
        if start == 0:
            write_elem(file, "X", counts)
        else:
            sparse_dataset(file["X"]).append(counts)
    obs = pd.DataFrame({"cell_type": types.astype(str)}, index=np.arange(n_cells).astype(str))
    write_elem(file, "obs", obs)
    write_elem(file, "var", pd.DataFrame(index=[f"gene {g}" for g in range(N_GENES)]))
    if isinstance(file, h5py.File):
        file.close()


def read(path: Path) -> anndata.AnnData:
    """The AnnData of the file; X stays on disk."""
    file = open_file(path, "r")
    obs, var = read_elem(file["obs"]), read_elem(file["var"])
    return anndata.AnnData(X=sparse_dataset(file["X"]), obs=obs, var=var)


def epoch(cells: Cells, block_size: int | None = None) -> tuple[float, float]:
    """Cells per second of an epoch, held-out cells included: by wall-clock and by CPU time."""
    model, started = VAE(cells.n_genes, likelihood="nb"), time.process_time()
    history = fit(model, cells, epochs=1, block_size=block_size, progress=False)
    cpu = time.process_time() - started
    return cells.n_cells / history.frame["seconds"].iloc[-1], cells.n_cells / cpu


def peak() -> float:
    """The peak memory of this process so far, in GB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / 1e9


# ---------------------------------------------------------------------- what the block size costs


class InOrder:
    """Takes the place of a random generator, and leaves the order as it is."""

    permutation = staticmethod(np.asarray)
    shuffle = staticmethod(lambda rows: None)


def one_epoch(cells: Cells, block_size: int | None, seed: int = 0):
    """The minibatches of an epoch over all cells."""
    rows, rng = np.arange(cells.n_cells), np.random.default_rng(seed)
    if block_size is IN_ORDER:
        block_size, rng = cells.n_cells, InOrder()
    return training.minibatches(cells, rows, BATCH_SIZE, block_size, rng)


def entropy(counts) -> float:
    """Shannon entropy in bits of a composition, given as the number of cells of each type."""
    shares = np.asarray(counts)[np.asarray(counts) > 0] / np.sum(counts)
    return float((shares * np.log2(1 / shares)).sum())


def randomness(types: np.ndarray, block_size: int | None, seeds: int = 10) -> dict:
    """How random minibatches are: their entropy, and the variance of the types' shares in them.

    The variance is relative to that of as many independent cells, summed over types.
    """
    types = np.unique(types, return_inverse=True)[1]
    shares = np.bincount(types) / len(types)
    cells = Cells.from_array(np.ones((len(types), 1)), library=1 + types)  # a type is read from ℓ
    entropies, variances = [], []
    for seed in range(1 if block_size is IN_ORDER else seeds):
        for minibatch in one_epoch(cells, block_size, seed):
            counts = np.bincount(minibatch.library.int() - 1, minlength=len(shares))
            entropies.append(entropy(counts))
            deviations = counts / len(minibatch) - shares
            variances.append((deviations**2).sum() * len(minibatch) / (1 - (shares**2).sum()))
    return {
        "block_size": block_size,
        "entropy": np.mean(entropies),
        "entropy_sd": np.std(entropies),
        "variance": np.mean(variances),
        "predicted_variance": predicted(types, block_size),
    }


def predicted(types: np.ndarray, block_size: int | None) -> float | None:
    """The same variance as the docstring of ``minibatches`` predicts it."""
    if block_size is IN_ORDER:
        return None
    pairs, alike = 0, 0  # of cells in one block; of cells of one type in one block
    for start in range(0, len(types), block_size):
        counts = np.unique(types[start : start + block_size], return_counts=True)[1]
        pairs += counts.sum() * (counts.sum() - 1)
        alike += (counts * (counts - 1)).sum()
    by_chance = ((np.unique(types, return_counts=True)[1] / len(types)) ** 2).sum()
    rho = (alike / pairs - by_chance) / (1 - by_chance) if pairs else 0
    return 1 + rho * (BATCH_SIZE - 1) * (block_size - 1) / (training.MIXED - 1)


def reading(cells: Cells, block_size: int | None, cold: Path | None = None) -> tuple[float, float]:
    """Cells per second of dense minibatches, without training: by wall-clock and by CPU time.

    ``cold`` is a file to remove from the system's cache before each reading, untimed.
    """
    minibatches, n_cells, wall, cpu = one_epoch(cells, block_size), 0, 0.0, 0.0
    while True:
        if cold:
            forget(cold)
        wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
        for minibatch in islice(minibatches, training.MIXED // BATCH_SIZE):
            n_cells += len(minibatch.to("cpu"))
        wall, cpu = wall + time.perf_counter(), cpu + time.process_time()
        if n_cells == cells.n_cells or wall > SECONDS:
            return n_cells / wall, n_cells / cpu


def forget(path: Path) -> None:
    """Remove the file, or the files of the folder, from the system's cache."""
    for part in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        file = os.open(path=part, flags=os.O_RDONLY)
        os.fsync(file)  # what is not yet on disk would stay
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def speeds(paths: list[Path], rounds: int) -> list[dict]:
    """Cells per second, by wall-clock and by CPU time, all measurements in turns."""
    found = {}
    places = {path.suffix[1:]: Cells.from_anndata(read(path)) for path in paths}
    places["memory"] = places[paths[0].suffix[1:]].in_memory()
    files = {path.suffix[1:]: path for path in paths if hasattr(os, "posix_fadvise")}  # not macOS
    for number in range(rounds):
        for place, cells in places.items():
            for block_size in (1,) if place == "memory" else (IN_ORDER, *BLOCK_SIZES):
                measured = {"reading": reading(cells, block_size)}
                if place in files:
                    measured["cold"] = reading(cells, block_size, cold=files[place])
                if block_size is not IN_ORDER:
                    measured["training"] = epoch(cells, block_size)
                for what, speed in measured.items():
                    found.setdefault((place, block_size, what), []).append(speed)
                said = ", ".join(f"{what} {speed[0]:,.0f}" for what, speed in measured.items())
                print(f"round {number + 1}, {place}, {block_size}: {said}", file=sys.stderr)
    names = ("place", "block_size", "what")
    return [
        dict(zip(names, key, strict=True)) | {"wall": [w for w, _ in v], "cpu": [c for _, c in v]}
        for key, v in found.items()
    ]


def fastest(content: dict, *key) -> float:
    """Cells per second in the fastest round; NaN if it was not measured.

    By CPU time, because others may use the machine; by wall-clock if it waits for a disk.
    """
    rows = [r for r in content["speeds"] if (r["place"], r["block_size"], r["what"]) == key]
    return max(rows[0]["wall" if key[2] == "cold" else "cpu"]) if rows else np.nan


def table(content: dict) -> str:
    """Entropy, variance and speed for each block size."""
    machine, speeds = content["machine"], [f"{place} {what}" for place in FORMATS for what in WHAT]
    in_memory = [fastest(content, "memory", 1, what) for what in ("reading", "training")]
    lines = [
        f"{content['n_cells']:,} cells sorted by type, {content['n_types']} types; minibatches of "
        f"{content['batch_size']}; {content['mixed']:,} cells mixed at a time.",
        f"Cells per second of CPU time (cold: of wall-clock), fastest of {content['rounds']}, on "
        f"{machine['cpu']}, {machine['threads']} thread(s) of torch. In memory: reading "
        f"{in_memory[0]:,.0f}, training {in_memory[1]:,.0f}.",
        f"{'block size':>10} {'entropy, bits':>15} {'variance ×':>11} {'predicted':>10}"
        + "".join(f"{name:>15}" for name in speeds),
    ]
    for row in content["randomness"]:
        size, prediction = row["block_size"], row["predicted_variance"]
        line = f"{size or 'in order':>10} {row['entropy']:>7.3f} ± {row['entropy_sd']:.3f}"
        line += f" {row['variance']:>11.2f} {'–' if size is IN_ORDER else f'{prediction:.2f}':>10}"
        for value in (fastest(content, p, size, what) for p in FORMATS for what in WHAT):
            line += f"{'–' if np.isnan(value) else f'{value:,.0f}':>15}"
        lines.append(line)
    return "\n".join(lines)


def draw(content: dict):
    """Speed and entropy against block size."""
    from matplotlib.figure import Figure

    from vaelab.plotting import COLOURS, MARKERS

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    speed, bits = figure.subplots(1, 2)
    for place, colour, marker in zip(FORMATS, COLOURS, MARKERS, strict=False):
        for what, style in WHAT.items():
            y = [fastest(content, place, size, what) for size in BLOCK_SIZES]
            speed.plot(
                BLOCK_SIZES, y, color=colour, marker=marker, ls=style, label=f"{place}, {what}"
            )
    in_memory = fastest(content, "memory", 1, "training")
    speed.axhline(in_memory, color="0.5", lw=1, label="in memory, training")
    speed.set(
        yscale="log",
        ylabel="cells per second",
        title="Speed (cold: by wall-clock, else by CPU time)",
    )
    by_size = {row["block_size"]: row for row in content["randomness"]}
    mean, sd = (np.array([by_size[b][k] for b in BLOCK_SIZES]) for k in ("entropy", "entropy_sd"))
    bits.errorbar(
        BLOCK_SIZES,
        mean,
        sd,
        color=COLOURS[2],
        marker=MARKERS[2],
        capsize=3,
        label="mean ± sd over minibatches",
    )
    bits.axhline(mean[0], color="0.5", lw=1, label="perfectly random")
    bits.axhline(by_size[IN_ORDER]["entropy"], color="0.5", lw=1, ls=":", label="in order")
    bits.set(ylabel="entropy of the types in a minibatch (bits)", title="Randomness")
    for axes in (speed, bits):
        axes.set_xscale("log", base=4)
        axes.set_xticks(BLOCK_SIZES, BLOCK_SIZES)
        axes.minorticks_off()
        axes.set_xlabel("block size (cells)")
        axes.legend(
            frameon=False,
            fontsize=8,
            handlelength=3,
            ncols=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )
    return figure


def compare_block_sizes(paths: list[Path], mixed: int, rounds: int, out: Path) -> None:
    """Measure, print the table, and write the JSON and the figure."""
    training.MIXED = mixed
    torch.set_num_threads(1)  # CPU time would count each thread
    types = read(paths[0]).obs["cell_type"].to_numpy(dtype=str)
    content = {
        "machine": machine(PACKAGES),
        "n_cells": len(types),
        "n_types": len(np.unique(types)),
        "batch_size": BATCH_SIZE,
        "mixed": mixed,
        "rounds": rounds,
        "randomness": [randomness(types, size) for size in (IN_ORDER, *BLOCK_SIZES)],
        "speeds": speeds(paths, rounds),
    }
    print(table(content))
    picture = io.BytesIO()
    draw(content).savefig(picture, format="png", dpi=150)
    out.mkdir(parents=True, exist_ok=True)
    name = out / "larger_than_memory"
    write_atomically(
        {
            name.with_suffix(".json"): to_json(content, indent=1).encode(),
            name.with_suffix(".png"): picture.getvalue(),
        }
    )
    print(f"Written: {name}.json and .png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="h5ad", choices=FORMATS)
    parser.add_argument("--folder", type=Path, help="folder in which to make and keep the file")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--blocks", action="store_true", help="compare block sizes instead")
    parser.add_argument("--mixed", type=int, default=training.MIXED, help="cells mixed at a time")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="for --blocks")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        formats = FORMATS if arguments.blocks else [arguments.format]
        paths = [(arguments.folder or Path(temporary)) / f"cells.{name}" for name in formats]
        for path in paths:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, arguments.cells)
        if arguments.blocks:
            compare_block_sizes(paths, arguments.mixed, arguments.epochs, arguments.out)
            return
        print(f"before: {peak():.2f} GB", flush=True)
        cells = Cells.from_anndata(read(path))
        epoch(cells)
        memory = peak()
        print(f"peak after an epoch on the file: {memory:.2f} GB", flush=True)
        here, ratios = cells.in_memory(), []
        stored = here.x.data.nbytes + here.x.indices.nbytes
        print(f"{here}: {here.x.nnz / np.prod(here.x.shape):.1%} not zero, {stored / 1e9:.2f} GB")
        for _ in range(arguments.epochs):
            (wall, cpu), (wall_here, cpu_here) = epoch(cells), epoch(here)
            ratios.append((wall / wall_here, cpu / cpu_here))
            print(
                f"cells per second, on file : in memory = {wall:,.0f} : {wall_here:,.0f} = "
                f"{ratios[-1][0]:.2f} (CPU time {ratios[-1][1]:.2f})",
                flush=True,
            )
    ratio = np.median(ratios, axis=0)[0]
    print(f"peak {memory:.2f} GB (at most 1.5), speed {ratio:.2f} (at least 0.5)")
    sys.exit(int(memory > 1.5 or ratio < 0.5))


if __name__ == "__main__":
    main()
