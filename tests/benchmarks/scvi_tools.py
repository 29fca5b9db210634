"""Compare vaelab with scvi-tools: time to a held-out bound, speed, and memory.

    make bench            or     python tests/benchmarks/scvi_tools.py [--quick] [--out build/bench]
                                     [--only time step …] [--seeds 5]

First, the time that a user waits for: the CPU seconds until a training reaches a bound on held-out
cells of real data, each package at its defaults, and scvi-tools tuned too; ``time_to_bound`` says
how. Then the speed of a step: both train the same VAE (ZINB, one θ per gene, 128 hidden units, 10
latent dimensions) on the same counts with the same batch size and otherwise default settings, in
turns, on one thread. A pair is one training of each. Its cost is the CPU time of the epochs after
the first, data loading included. The table gives medians, and the median and range of the ratios
over pairs. "Plain" differentiates the likelihood's formula by autograd; "default" is vaelab as
released. Ratios of speed depend on the processor, which the first line names. Ctrl-C and SIGTERM
keep the results so far.

Exit status: 1 if, on a data set, our held-out bound is below the best of scvi-tools at its defaults
by more than 2 standard errors over seeds; 2 if scvi-tools is missing; 130 after Ctrl-C; 143 after
SIGTERM; else 0.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import time_to_bound
import torch
from contenders import clock, embed_ours, embed_theirs, train_ours, train_theirs
from report import HEADER, INFINITY, Row, Verdict, draw, exponent, line

LIBRARY = {92: 277.0, 70: 2715.0}  # counts per cell in 2,000 genes, for this % of zeros
WANTED = {  # (% zeros, batch size, form): times the speed of scvi-tools
    (92, 128, "plain"): 2.4,
    (92, 128, "default"): 3.0,
    (70, 128, "plain"): 1.8,
    (70, 128, "default"): 2.2,
}
LINEAR = (0.9, 1.1)  # exponents: 16 times the cells cost 12 to 21 times as much


@dataclass(frozen=True)
class Plan:
    """The sizes and repetitions of all measurements."""

    n_cells: int = 5_000
    n_genes: int = 2_000
    pairs: int = 5
    timed_epochs: int = 2
    seeds: int = 5
    epochs_to_bound: int | None = None  # a limit for a trial, in which nothing is wanted
    import_pairs: int = 3
    cells: tuple[int, ...] = (5_000, 20_000, 80_000)
    genes: tuple[int, ...] = (500, 1_000, 2_000, 4_000)
    latent: tuple[int, ...] = (2, 10, 50)
    pbmc: bool = True


QUICK = Plan(
    pairs=2, timed_epochs=1, seeds=1, epochs_to_bound=6, import_pairs=1,
    cells=(1_000, 5_000), genes=(1_000, 2_000), latent=(2, 10), pbmc=False,
)  # fmt: skip


class Report:
    """The results so far; each row is printed when it is added."""

    def __init__(self, plan: Plan):
        self.trial = plan.epochs_to_bound is not None
        self.rows: list[Row] = []
        self.curves: dict[str, dict[str, list[time_to_bound.Curve]]] = {}
        self.verdicts: list[Verdict] = []
        self.processor = processor()
        print(f"Processor: {self.processor}, one thread\n\n{HEADER}", flush=True)

    def add(self, *args, **kwargs) -> None:
        self.rows.append(Row(*args, **kwargs))
        print(line(self.rows[-1], self.processor), flush=True)

    def judge(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        print(verdict, flush=True)

    def write(self, folder: Path) -> None:
        """Write scvi_tools.json and scvi_tools.png, and time_to_bound.png if it was measured."""
        from vaelab._internal.machine import to_json, write_atomically

        content = {
            "machine": machine(),
            "rows": [row.record() for row in self.rows],
            "held_out_bounds": [verdict.record() for verdict in self.verdicts],
            "curves": {name: time_to_bound.record(found) for name, found in self.curves.items()},
        }
        pictures = {"scvi_tools": draw(self.rows)}
        if self.curves:
            pictures["time_to_bound"] = time_to_bound.draw(self.curves, self.trial)
        files = {folder / "scvi_tools.json": to_json(content, indent=1).encode()}
        for name, picture in pictures.items():
            png = io.BytesIO()
            picture.savefig(png, format="png", dpi=150)
            files[folder / f"{name}.png"] = png.getvalue()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(files)
        print("Written:", *files, sep="\n  ")

    def status(self) -> int:
        return int(any(verdict.worse for verdict in self.verdicts if verdict.decides))


def processor() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not on Linux, or a processor without a name
        return platform.processor() or platform.machine()


PACKAGES = ("torch", "scvi-tools", "vaelab", "lightning", "numpy")


def machine(packages: tuple[str, ...] = PACKAGES) -> dict:
    """The machine and the versions, on which the results depend."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def simulated(n_cells: int, n_genes: int, zeros: int = 92):
    """Counts with the given percentage of zeros, cells × genes, CSR.

    They are made in pieces with different types, because a simulation holds several dense matrices.

    Raises
    ------
    ValueError
        The percentage of zeros is off by more than one.
    """
    from scipy import sparse

    from vaelab import simulate

    library, at_once = LIBRARY[zeros] * n_genes / 2_000, 5_000
    pieces = [
        simulate.dataset(min(at_once, n_cells - start), n_genes, library=library, seed=seed).X
        for seed, start in enumerate(range(0, n_cells, at_once))
    ]
    counts = sparse.vstack(pieces, format="csr")
    found = 100 * (1 - counts.nnz / np.prod(counts.shape))
    if abs(found - zeros) > 1:
        raise ValueError(f"{found:.1f} % of the simulated counts are zero; it should be {zeros} %.")
    return counts


def adata_of(counts):
    import anndata

    return anndata.AnnData(counts)


def alternating(rounds: int, **contenders) -> dict[str, list[float]]:
    """The cost of each contender in each round; they take turns: A B A B."""
    costs = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, cost in contenders.items():
            costs[name].append(float(cost()))
    return costs


def epoch_seconds(train, adata, timed_epochs: int, **options) -> float:
    return statistics.median(train(adata, epochs=1 + timed_epochs, **options)[2])


def speed(n_cells: int, seconds: list[float]) -> list[float]:
    return [n_cells / s for s in seconds]


once = functools.cache(simulated)  # several measurements use the same counts


# What is measured


def measure_time(report: Report, plan: Plan) -> None:
    """CPU seconds to bounds on held-out cells of real data."""
    import vaelab

    for name in time_to_bound.DATA:
        found = {}
        try:
            time_to_bound.curves(name, plan.seeds, plan.epochs_to_bound, found)
        except vaelab.datasets.DataUnavailable as error:
            print(f"{name} is left out. {error}", flush=True)
            continue
        finally:
            if found:
                report.curves[name] = found
        for row in time_to_bound.rows_of(name, found, judge=not report.trial):
            report.add(**vars(row))
        if not report.trial:
            for verdict in time_to_bound.verdicts_of(name, found):
                report.judge(verdict)


def measure_parameters(report: Report, plan: Plan) -> None:
    """Refuse to compare two models with different numbers of parameters in use."""
    import vaelab

    adata = adata_of(simulated(500, plan.n_genes))
    theirs, _, _ = train_theirs(adata, epochs=1)
    idle = (
        theirs.module.l_encoder,
        theirs.module.decoder.px_r_decoder,
    )  # for other settings
    n_theirs, n_idle = (
        sum(p.numel() for module in modules for p in module.parameters())
        for modules in ([theirs.module], idle)
    )
    n_ours = vaelab.VAE(plan.n_genes, likelihood="zinb").n_parameters
    if n_ours != n_theirs - n_idle:
        raise RuntimeError(
            f"Our model has {n_ours:,} parameters, theirs uses {n_theirs - n_idle:,}. Give both "
            "the same shape in tests/benchmarks/contenders.py."
        )
    report.add("parameters in use", "", [n_ours], [n_theirs - n_idle], better=None)


def measure_import(report: Report, plan: Plan) -> None:
    def seconds(name: str) -> float:
        code = f"import time, {name}; print(time.process_time())"
        return float(subprocess.check_output([sys.executable, "-W", "ignore", "-c", code]))

    seconds("vaelab"), seconds("scvi")  # brings the files into the system's memory
    costs = alternating(
        plan.import_pairs, theirs=lambda: seconds("scvi"), ours=lambda: seconds("vaelab")
    )
    report.add("import", "s", costs["ours"], costs["theirs"], of={"question": "import"})


def measure_training(report: Report, plan: Plan) -> None:
    """Cells per second at equal settings, for counts with 92 % and 70 % zeros, and real ones."""
    for zeros in (92, 70):
        counts = once(plan.n_cells, plan.n_genes, zeros)
        measure_training_on(report, plan, f"simulated, {zeros} % zeros", counts, zeros)
    if plan.pbmc and (sorted_cells := pbmc_sorted()) is not None:
        zeros = 100 * (1 - sorted_cells.nnz / np.prod(sorted_cells.shape))
        name = f"pbmc_sorted, {zeros:.0f} % zeros"
        measure_training_on(report, plan, name, sorted_cells, None)


def measure_training_on(report: Report, plan: Plan, name: str, counts, zeros: int | None) -> None:
    adata, n_cells = adata_of(counts), counts.shape[0]
    for batch_size in (128, 1024):
        options = {"timed_epochs": plan.timed_epochs, "batch_size": batch_size}
        costs = alternating(
            plan.pairs,
            theirs=lambda o=options: epoch_seconds(train_theirs, adata, **o),
            plain=lambda o=options: epoch_seconds(train_ours, adata, form="plain", **o),
            default=lambda o=options: epoch_seconds(train_ours, adata, **o),
        )
        for form in ("plain", "default"):
            wanted = WANTED.get((zeros, batch_size, form))
            report.add(
                f"training, {name}, batch {batch_size:,}, {form}",
                "cells/s",
                speed(n_cells, costs[form]),
                speed(n_cells, costs["theirs"]),
                better="more",
                wanted=wanted and (wanted, INFINITY),
                of={"question": "training", "data": name, "batch_size": batch_size, "form": form},
            )


def measure_step(report: Report, plan: Plan) -> None:
    """Our training step, as a multiple of the same step without any likelihood: its floor."""
    adata = adata_of(once(plan.n_cells, plan.n_genes, 92))
    costs = alternating(
        2 * plan.pairs,
        default=lambda: epoch_seconds(train_ours, adata, plan.timed_epochs),
        none=lambda: epoch_seconds(train_ours, adata, plan.timed_epochs, form="none"),
    )
    ratios = [step / floor for step, floor in zip(costs["default"], costs["none"], strict=True)]
    of = {"question": "step"}
    report.add("a step / a step without a likelihood", "", ratios, [], better=None, of=of)


def measure_embedding(report: Report, plan: Plan) -> None:
    counts = once(plan.n_cells, plan.n_genes, 92)
    adata = adata_of(counts)
    (ours, cells, _), (theirs, _, _) = train_ours(adata, epochs=1), train_theirs(adata, epochs=1)

    def seconds(embed, model) -> float:
        start = clock("cpu")
        for _ in range(3):  # a single one of ours takes too little time to measure
            embed(model, cells)
        return (clock("cpu") - start) / 3

    embed_ours(ours, cells), embed_theirs(theirs, None)  # the first run of each allocates memory
    costs = alternating(
        2 * plan.pairs,
        theirs=lambda: seconds(embed_theirs, theirs),
        ours=lambda: seconds(embed_ours, ours),
    )
    n_cells = counts.shape[0]
    report.add(
        "embedding, batch 1,024", "cells/s", speed(n_cells, costs["ours"]),
        speed(n_cells, costs["theirs"]), better="more", of={"question": "embedding"},
    )  # fmt: skip


def measure_memory(report: Report, plan: Plan) -> None:
    """One epoch and the embedding, each package in its own process."""
    from scipy import sparse

    counts = once(max(plan.cells), plan.n_genes, 92)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.npz"
        sparse.save_npz(path, counts, compressed=False)
        script = str(Path(__file__).with_name("contenders.py"))
        ours, theirs = (
            json.loads(subprocess.check_output([sys.executable, script, side, str(path)]))
            for side in ("ours", "theirs")
        )
    cells = f"{counts.shape[0]:,} cells"
    for name, key, wanted in (
        (f"peak memory, {cells}", "peak", (1, INFINITY)),
        (f"peak memory above imports, {cells}", "above_imports", None),
    ):
        of = {"question": "memory", "size": counts.shape[0]}
        report.add(name, "MiB", [ours[key]], [theirs[key]], wanted=wanted, of=of)


def measure_growth(report: Report, plan: Plan) -> None:
    """Seconds per epoch at batch 128, along three axes."""
    cells = once(max(plan.cells), plan.n_genes, 92)

    def add(name: str, size: int, counts, **options) -> None:
        adata = adata_of(counts)
        timed = max(1, 20_000 // counts.shape[0])
        costs = alternating(
            1,
            theirs=lambda: epoch_seconds(train_theirs, adata, timed, **options),
            ours=lambda: epoch_seconds(train_ours, adata, timed, **options),
        )
        of = {"question": name, "size": size}
        report.add(f"an epoch, {size:,} {name}", "s", costs["ours"], costs["theirs"], of=of)

    for n_cells in plan.cells:
        add("cells", n_cells, cells[:n_cells])
    along = [row for row in report.rows if row.of.get("question") == "cells"]
    ours, theirs = (
        exponent(plan.cells, [statistics.median(getattr(row, side)) for row in along])
        for side in ("ours", "theirs")
    )
    report.add("b in cost ∝ cells^b", "", [ours], [theirs], better=None, wanted=LINEAR)
    for n_genes in plan.genes:
        add("genes", n_genes, simulated(plan.n_cells, n_genes))
    for n_latent in plan.latent:
        add("latent", n_latent, cells[: plan.n_cells], n_latent=n_latent)


def measure_gpu(report: Report, plan: Plan) -> None:
    """Cells per second of wall-clock time, on a GPU if there is one."""
    if not torch.cuda.is_available():
        return
    counts = once(max(plan.cells), plan.n_genes, 92)[:20_000]
    adata, n_cells = adata_of(counts), counts.shape[0]
    for batch_size in (128, 1024, 8192):
        options = {"timed_epochs": 2, "batch_size": batch_size, "device": "cuda"}
        costs = alternating(
            3,
            theirs=lambda o=options: epoch_seconds(train_theirs, adata, **o),
            ours=lambda o=options: epoch_seconds(train_ours, adata, **o),
        )
        report.add(
            f"training on GPU, {n_cells:,} cells, batch {batch_size:,}", "cells/s",
            speed(n_cells, costs["ours"]), speed(n_cells, costs["theirs"]), better="more",
            of={"question": "gpu", "batch_size": batch_size},
        )  # fmt: skip


PARTS = {
    "time": measure_time,
    "import": measure_import,
    "training": measure_training,
    "step": measure_step,
    "embedding": measure_embedding,
    "memory": measure_memory,
    "growth": measure_growth,
    "gpu": measure_gpu,
}


def measure(report: Report, plan: Plan, parts: Iterable[str] = PARTS) -> None:
    measure_parameters(report, plan)
    for name in parts:
        PARTS[name](report, plan)


def pbmc_sorted():
    """The 2,000 most variable genes of the sorted blood cells; None if these are not available."""
    import vaelab

    try:
        adata = vaelab.datasets.pbmc_sorted()
    except vaelab.datasets.DataUnavailable:
        print(
            "pbmc_sorted is left out. Download it with: vaelab data fetch pbmc_sorted", flush=True
        )
        return None
    return vaelab.select_genes(adata).X.tocsr()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, as a trial")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder to write to")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure only these")
    parser.add_argument("--seeds", type=int, help="number of trainings for the time to a bound")
    arguments = parser.parse_args(words)
    if importlib.util.find_spec("scvi") is None:
        print(
            'scvi-tools is not installed. Run pip install -e ".[parity]", or make bench.',
            file=sys.stderr,
        )
        return 2
    plan = QUICK if arguments.quick else Plan()
    if arguments.seeds is not None:
        plan = replace(plan, seeds=arguments.seeds)
    report = Report(plan)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        measure(report, plan, arguments.only or PARTS)
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C; the results so far are kept.")
        return 130
    except SystemExit:
        print("Stopped by SIGTERM; the results so far are kept.")
        return 143
    finally:
        signal.signal(signal.SIGTERM, before)
        report.write(arguments.out)
    return report.status()


def terminate(*_) -> None:
    raise SystemExit


if __name__ == "__main__":
    sys.exit(main())
