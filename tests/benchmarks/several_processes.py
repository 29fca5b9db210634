"""Train on a file of 20,000 cells × 2,000 genes: one process on one core, two on two cores.

    python tests/benchmarks/several_processes.py [--rounds 5] [--likelihood zinb] [--folder here]

The script makes the file (92 % zeros), then trains a VAE on it with one and with two processes in
turns. It prints how many seconds of CPU others used meanwhile, since they spoil the result. It
fails if two processes are less than 1.6 times as fast, by the median over rounds, or if one of them
needs a tenth more memory than a single process does.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from larger_than_memory import read, write

from vaelab import VAE, Cells, fit


def train(path: Path, likelihood: str) -> None:
    """In each process: train, and print the cells per second and the memory."""
    cells = Cells.from_anndata(read(path))
    model = VAE(cells.n_genes, likelihood=likelihood)
    history = fit(model, cells, epochs=4, progress=False)
    measured = {
        "cells per second": cells.n_cells / history.frame["seconds"].iloc[1:].median(),
        "peak (MB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "shared fairly (MB)": getattr(psutil.Process().memory_full_info(), "pss", np.nan) / 2**20,
    }
    print(json.dumps(measured), flush=True)


def run(n: int, path: Path, likelihood: str) -> list[dict]:
    """What each of n processes measured."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={n}"] if n > 1 else []
    command = [sys.executable, *torchrun, __file__, "--likelihood", likelihood, "--train", path]
    before, spent = psutil.cpu_times(), psutil.Process().cpu_times()
    out = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True
    ).stdout
    after, spent_after = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = sum(after[:3]) - sum(before[:3])  # by user, nice and system
    ours = sum(spent_after[2:4]) - sum(spent[2:4])  # of the processes that were started here
    # Two processes print at once, sometimes on one line.
    results = [json.loads(found) for found in re.findall(r"\{[^{}]*\}", out.decode())]
    return [result | {"seconds of others": round(busy - ours, 1)} for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--likelihood", default="zinb")
    parser.add_argument("--folder", type=Path, help="folder in which to make and keep the file")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.likelihood)
        return
    ratios, growth = [], []
    with tempfile.TemporaryDirectory() as temporary:
        path = (arguments.folder or Path(temporary)) / "cells_20000.h5ad"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, 20_000)
        for _ in range(arguments.rounds):
            (one,), two = (run(n, path, arguments.likelihood) for n in (1, 2))
            ratios.append(two[0]["cells per second"] / one["cells per second"])
            growth.append(max(process["peak (MB)"] for process in two) / one["peak (MB)"])
            for n, results in ((1, [one]), (2, two)):
                for result in results:
                    print(n, {name: round(value, 1) for name, value in result.items()}, flush=True)
            print(f"speed {ratios[-1]:.2f}, memory per process {growth[-1]:.2f}", flush=True)
    speed, memory = np.median(ratios), np.median(growth)
    print(f"median: speed {speed:.2f} (at least 1.6), memory {memory:.2f} (at most 1.1)")
    sys.exit(int(speed < 1.6 or memory > 1.1))


if __name__ == "__main__":
    main()
