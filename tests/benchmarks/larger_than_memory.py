"""Train on a file of 200,000 cells × 2,000 genes; compare its speed with training in memory.

    python tests/benchmarks/larger_than_memory.py [--format zarr] [--folder somewhere]

The script makes the file (sorted by type, 92 % zeros), trains a VAE on it, and prints the peak
memory of this process. Then it trains an epoch in memory and an epoch on the file in turns. It
fails if the peak is above 1.5 GB, or if training on the file has less than half the speed.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, sparse_dataset, write_elem
from scipy import sparse

from vaelab import VAE, Cells, fit

N_GENES, N_TYPES, AT_ONCE = 2000, 10, 2000


def open_file(path: Path, mode: str):
    return h5py.File(path, mode) if path.suffix == ".h5ad" else zarr.open(path, mode=mode)


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


def epoch(cells: Cells) -> tuple[float, float]:
    """Cells per second of an epoch, held-out cells included: by wall-clock and by CPU time."""
    model, started = VAE(cells.n_genes, likelihood="nb"), time.process_time()
    history = fit(model, cells, epochs=1, progress=False)
    cpu = time.process_time() - started
    return cells.n_cells / history.frame["seconds"].iloc[-1], cells.n_cells / cpu


def peak() -> float:
    """The peak memory of this process so far, in GB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="h5ad", choices=["h5ad", "zarr"])
    parser.add_argument("--folder", type=Path, help="folder in which to make and keep the file")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        path = (arguments.folder or Path(temporary)) / f"cells.{arguments.format}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, arguments.cells)
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
