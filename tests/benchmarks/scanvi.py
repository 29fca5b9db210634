"""Types of cells without a label: our SCANVI, that of scvi-tools 1.4.2, and tuned baselines.

    python tests/benchmarks/scanvi.py [--data mice pbmc pbmc_5 to_mouse to_human] [--seeds 5]
                                      [--no-scvi-tools] [--quick]

mice: mouse 1 with its labels and mouse 2 without. pbmc, pbmc_5: ten sorted populations with the
labels of 20 or 5 cells each, drawn again for each seed. to_mouse, to_human: cells of one species
with their labels, and of the other without. All methods get the same cells, the same 2,000 genes
and the same labels. They are scored on the cells whose label was hidden: accuracy, balanced
accuracy and macro-F1 over all types of these cells, also the rare ones. The table gives mean ±
standard deviation over seeds; below it stands the difference from the better baseline at the same
seed, as mean ± standard error.

Ours is the recipe of ``vaelab train``, with its defaults for the species. Theirs has the default
settings: SCVI for 200 epochs (pbmc 150), then SCANVI from it for 30, with 100 labels per type and
epoch. The baselines use 30 principal components of the log-normalised counts of all cells, and
five-fold cross-validation on the labelled cells chooses C of logistic regression and the number of
nearest neighbours. "nearest mean" is the type with the nearest mean. They have no randomness but
that of the labels. Ours and theirs train in turns in this process, on one thread. Seconds are CPU
time of the training, and the ratio is the median over pairs.

Exit status: 1 if ours has the lower mean balanced accuracy or macro-F1 than theirs, or is less than
twice as fast; 2 if scvi-tools is missing; else 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import warnings

import baselines
import numpy as np
import pandas as pd
import torch
from contenders import clock, quiet_scvi

import vaelab
from vaelab.teaching.recipes import RECIPES, label_scores, predicted_types, sorted_blood, two_mice


def species(labelled: str):
    adata = vaelab.datasets.pancreas_species()
    types = adata.obs["cell_type"].to_numpy(dtype=str)
    adata.obs["known"] = np.where(adata.obs["batch"] == labelled, types, "unknown")
    adata.obs["mouse"] = adata.obs["batch"]  # the column of batches in the recipe
    return adata


DATA = {  # how to make the cells, and the recipe of the model
    "mice": (lambda seed: two_mice(), "pancreas_scanvi"),
    "pbmc": (lambda seed: sorted_blood(seed=seed), "pbmc_scanvi"),
    "pbmc_5": (lambda seed: sorted_blood(5, seed=seed), "pbmc_scanvi"),
    "to_mouse": (lambda seed: species("human"), "pancreas_scanvi"),
    "to_human": (lambda seed: species("mouse"), "pancreas_scanvi"),
}
SCORES = ["accuracy", "balanced_accuracy", "macro_f1"]
SCVI_EPOCHS = {"pbmc_scanvi": 150, "pancreas_scanvi": 200}
BASELINES = {
    "logistic regression": baselines.logistic_regression,
    "nearest neighbours": baselines.nearest_neighbours,
    "nearest mean": baselines.nearest_mean,
}
FASTER = 2


def ours(adata, recipe, epochs: int | None, seed: int) -> tuple[np.ndarray, float]:
    """The most probable type of each cell by vaelab, and the seconds of training."""
    torch.set_num_threads(1)
    cells = recipe.read(adata)
    settings = recipe.settings(epochs)
    start = clock("cpu")
    sizes = {"n_labels": len(cells.label_names), "n_batches": len(cells.batch_names)}
    model = recipe.kind(cells.n_genes, seed=seed, **recipe.model | sizes)
    vaelab.fit(model, cells, seed=seed, progress=False, **settings)
    seconds = clock("cpu") - start
    return predicted_types(model, cells), seconds


def theirs(adata, batch: str | None, epochs: tuple[int, int], seed: int) -> tuple:
    """The most probable type of each cell by scvi-tools, and the seconds of training."""
    scvi, _ = quiet_scvi()
    scvi.settings.seed = seed
    torch.set_num_threads(1)
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key=batch, labels_key="known")
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
    quiet |= {"accelerator": "cpu", "devices": 1}
    start = clock("cpu")
    first = scvi.model.SCVI(adata)
    first.train(epochs[0], **quiet)
    model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category="unknown")
    model.train(epochs[1], n_samples_per_label=100, **quiet)
    seconds = clock("cpu") - start
    return model.predict(), seconds


def has_scvi_tools() -> bool:
    return importlib.util.find_spec("scvi") is not None


def compare(name: str, seeds: int, scvi_tools: bool, quick: bool) -> bool:
    """Print the table of one data set; True if ours is as good, and fast enough."""
    load, recipe = DATA[name]
    recipe, runs = RECIPES[recipe], []

    def record(seed: int, method: str, predicted: np.ndarray, seconds: float = np.nan) -> None:
        scores = label_scores(truth[hidden], predicted[hidden]) | {"seconds": seconds}
        runs.append({"seed": seed, "method": method} | scores)
        said = "  ".join(f"{what} {value:.3f}" for what, value in scores.items() if value == value)
        print(f"{name}, seed {seed}, {method}: {said}", file=sys.stderr, flush=True)

    for seed in range(seeds):
        adata = vaelab.select_genes(load(seed))
        truth = adata.obs["cell_type"].to_numpy(dtype=str)
        hidden = adata.obs["known"].to_numpy() == "unknown"
        for method, find in BASELINES.items():
            record(seed, method, find(adata))
        if scvi_tools:
            epochs = (2, 1) if quick else (SCVI_EPOCHS[recipe.name], 30)
            record(seed, "scvi-tools", *theirs(adata, recipe.batch, epochs, seed))
        record(seed, "vaelab", *ours(adata, recipe, 2 if quick else None, seed))

    runs = pd.DataFrame(runs)
    of_method = runs.groupby("method", sort=False)[[*SCORES, "seconds"]]
    mean, sd = of_method.mean(), of_method.std().fillna(0)
    table = mean.map("{:.3f}".format) + " ± " + sd.map("{:.3f}".format)
    table["seconds"] = [f"{s:.0f}" if s == s else "" for s in mean["seconds"]]
    print(f"\n{name}: {hidden.sum()} cells whose label was hidden, {seeds} seeds")
    print(table.rename_axis(None).to_string())
    of_seed = runs.set_index("seed")
    for score in SCORES:
        best = mean.loc[[*BASELINES], score].idxmax()
        gain, of_best = (of_seed.loc[of_seed["method"] == m, score] for m in ("vaelab", best))
        gain = gain - of_best
        error = gain.sem() if seeds > 1 else 0.0
        print(f"{score}: vaelab − {best} {gain.mean():+.3f} ± {error:.3f}", flush=True)
    if not scvi_tools:
        return True
    a, b = (runs.loc[runs["method"] == m, "seconds"] for m in ("scvi-tools", "vaelab"))
    ratios = [t / o for t, o in zip(a, b, strict=True)]
    faster = statistics.median(ratios)
    print(f"times as fast: {faster:.2f} [{min(ratios):.2f}–{max(ratios):.2f}]", flush=True)
    worse = [score for score in SCORES[1:] if mean[score]["vaelab"] < mean[score]["scvi-tools"]]
    if worse:
        print(f"WORSE in {' and '.join(worse)}")
    if faster < FASTER:
        print(f"LESS than {FASTER} times as fast")
    return not worse and faster >= FASTER


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[*DATA], choices=DATA)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-scvi-tools", action="store_true", help="ours and baselines only")
    parser.add_argument("--quick", action="store_true", help="few epochs, to see that it runs")
    arguments = parser.parse_args(words)
    scvi_tools = not arguments.no_scvi_tools
    warnings.filterwarnings("ignore", message=".*genes are zero in every cell")
    if scvi_tools and not has_scvi_tools():
        print(
            'scvi-tools is not installed. Run pip install -e ".[parity]", or leave it out with '
            "--no-scvi-tools.",
            file=sys.stderr,
        )
        return 2
    as_good = [
        compare(name, arguments.seeds, scvi_tools, arguments.quick) for name in arguments.data
    ]
    return int(not all(as_good) and not arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
