"""Types with few labels: SCANVI with and without ``balance_labels``, and logistic regression.

    python tests/benchmarks/rare_labels.py [--data simulated pbmc mice mice_back] [--seeds 5]
                                           [--first-seed 0] [--quick]

simulated: 2,000 cells of ten types. pbmc: ten sorted populations. In both, three types have 3
labels and the other seven have 50. Each seed draws these three types and the labelled cells, and
simulates its own cells. mice: mouse 1 of the pancreas with all its labels (343 beta cells, 9 alpha
cells, 2 B cells) and mouse 2 without. mice_back: the other way round. In these two, the seed is
that of the training alone.

All methods get the same cells, the same genes and the same labels. They are scored on the cells
whose label was hidden: accuracy, balanced accuracy, macro-F1, and the mean recall of the rare
types, which have at most five labels. The table gives mean ± standard deviation over seeds. Below
it is the difference that ``balance_labels`` makes at the same seed, as mean ± standard error.

SCANVI is the recipe of ``vaelab train``. Logistic regression uses 30 principal components of the
log-normalised counts; its C is chosen by five-fold cross-validation on the labelled cells, by the
log loss. A type with fewer than five labels is missing from some validation folds, but with two or
more it is in every training fold. "balanced" is ``class_weight="balanced"``. Seconds are CPU time.

Exit status: 1 if ``balance_labels`` does not raise the balanced accuracy of the simulated or the
PBMC data by more than two standard errors; else 0. Of the mice nothing is asked: the difference is
about two standard errors there, and its sign depends on the direction.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import baselines
import numpy as np
import pandas as pd
import torch
from contenders import clock

import vaelab
from vaelab.teaching.recipes import RECIPES, label_scores, predicted_types, two_mice

FEW, MANY, N_FEW = 3, 50, 3
RARE = 5  # largest number of labels of a rare type
SCORES = ["accuracy", "balanced_accuracy", "macro_f1", "rare_recall"]


def with_few_labels(adata, seed: int):
    """obs["known"] has 3 labels of three types and 50 of each other type, drawn by the seed."""
    rng, types = np.random.default_rng(seed), adata.obs["cell_type"].to_numpy(dtype=str)
    known, names = np.full(len(types), "unknown", dtype=object), np.unique(types)
    few = rng.choice(names, N_FEW, replace=False)
    for name in names:
        n_labels = FEW if name in few else MANY
        known[rng.choice(np.flatnonzero(types == name), n_labels, replace=False)] = name
    adata.obs["known"] = known.astype(str)
    return adata


def simulated(seed: int):
    return with_few_labels(vaelab.simulate.dataset(2000, n_types=10, seed=seed), seed)


def pbmc(seed: int):
    return with_few_labels(vaelab.datasets.pbmc_sorted(), seed)


def mice_back(seed: int):
    adata = two_mice()
    types = adata.obs["cell_type"].to_numpy(dtype=str)
    adata.obs["known"] = np.where(adata.obs["mouse"] == "mouse 1", "unknown", types)
    return adata


DATA = {  # how to make the cells, and the recipe of the model
    "simulated": (simulated, "pbmc_scanvi"),
    "pbmc": (pbmc, "pbmc_scanvi"),
    "mice": (lambda seed: two_mice(), "pancreas_scanvi"),
    "mice_back": (mice_back, "pancreas_scanvi"),
}


def logistic_regression(adata, recipe, epochs: int | None, seed: int, **options) -> np.ndarray:
    """The types of all cells by logistic regression, C by cross-validation on the labelled ones."""
    return baselines.logistic_regression(adata, **options)


def scanvi(adata, recipe, epochs: int | None, seed: int, **options) -> np.ndarray:
    """The most probable type of each cell by SCANVI."""
    cells = recipe.read(adata)
    settings = recipe.settings(epochs)
    model = recipe.kind(cells.n_genes, seed=seed, **recipe.model | options)
    vaelab.fit(model, cells, seed=seed, progress=False, **settings)
    return predicted_types(model, cells)


METHODS = {
    "logistic regression": (logistic_regression, {}),
    "logistic regression, balanced": (logistic_regression, {"class_weight": "balanced"}),
    "SCANVI": (scanvi, {}),
    "SCANVI, balance_labels": (scanvi, {"balance_labels": True}),
}


def compare(name: str, seeds: range, epochs: int | None) -> bool:
    """Print the table of one data set; True if ``balance_labels`` raises balanced accuracy."""
    (load, recipe), runs = DATA[name], []
    recipe = RECIPES[recipe]
    for seed in seeds:
        adata = vaelab.select_genes(load(seed))
        known = adata.obs["known"].to_numpy(dtype=str)
        hidden = known == "unknown"
        truth = adata.obs["cell_type"].to_numpy(dtype=str)[hidden]
        types, n_labels = np.unique(known[~hidden], return_counts=True)
        rare = [t for t in types[n_labels <= RARE] if t in truth]
        for method, (find, options) in METHODS.items():
            start = clock("cpu")
            found = find(adata, recipe, epochs, seed, **options)[hidden]
            seconds = clock("cpu") - start
            recall = {t: (found[truth == t] == t).mean() for t in rare}
            scores = label_scores(truth, found) | {"rare_recall": np.mean([*recall.values()])}
            runs.append({"seed": seed, "method": method, **scores, "seconds": seconds})
            said = "  ".join(f"{what} {value:.3f}" for what, value in (scores | recall).items())
            print(f"{name}, seed {seed}, {method}: {said}", file=sys.stderr, flush=True)

    runs = pd.DataFrame(runs)
    of_method = runs.groupby("method", sort=False)[[*SCORES, "seconds"]]
    mean, sd = of_method.mean(), of_method.std().fillna(0)
    table = mean.map("{:.3f}".format) + " ± " + sd.map("{:.3f}".format)
    table["seconds"] = [f"{s:.1f}" for s in mean["seconds"]]
    print(f"\n{name}: {hidden.sum()} cells whose label was hidden, {len(seeds)} seeds")
    print(table.rename_axis(None).to_string())
    on, off = (
        runs[runs["method"] == m].set_index("seed")[SCORES]
        for m in ("SCANVI, balance_labels", "SCANVI")
    )
    gain, error = (on - off).mean(), (on - off).sem().fillna(0)
    for score in SCORES:
        print(f"balance_labels: {score} {gain[score]:+.3f} ± {error[score]:.3f}", flush=True)
    return bool(gain["balanced_accuracy"] > 2 * error["balanced_accuracy"])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[*DATA], choices=DATA)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few epochs, to see that it runs")
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore", message=".*genes are zero in every cell")
    torch.set_num_threads(1)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    epochs = 2 if arguments.quick else None
    helps = {name: compare(name, seeds, epochs) for name in arguments.data}
    asked = [helps.get(name, True) for name in ("simulated", "pbmc")]
    return int(not all(asked) and not arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
