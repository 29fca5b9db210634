"""Cells of a second experiment, mapped to a model of the first, beside a training on both.

    python tests/benchmarks/mapping.py [--data mice species] [--seeds 5] [--quick]

A SCANVI is fitted to the reference with its types, on the 2,000 genes that are most variable there.
The query has no types. "mapped": the model is extended by the query's batch, and only the weights
of this batch are trained. "not trained": the extended model as it starts. "from scratch": a SCANVI
with the same options is fitted to both, the query's types hidden. Each experiment is the reference
once. The scores are those of the query: accuracy, balanced accuracy and macro-F1 of the types, and
mixing, the share of the 15 nearest neighbours of a cell among its own type that are of the other
experiment, over the share that chance would give (0 apart, 1 mixed). The table gives mean ±
standard deviation over seeds; seconds are CPU time of the training for the query.

Exit status: 1 if the reference's embedding is not the same before and after, to the bit; else 0.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import numpy as np
import pandas as pd
import torch
from contenders import clock

import vaelab
from vaelab.teaching.recipes import label_scores, predicted_types

MODEL = {"n_latent": 20, "likelihood": "nb", "encode_batch": True}
FIT = {"epochs": 40, "learning_rate": 2e-3, "validation_fraction": 0, "progress": False}
SCORES = ["accuracy", "balanced_accuracy", "macro_f1", "mixing"]


def mice() -> list:
    return [vaelab.datasets.pancreas(mouse=n) for n in (1, 2)]


def species() -> list:
    adata = vaelab.datasets.pancreas_species()
    return [adata[adata.obs["batch"] == name].copy() for name in ("human", "mouse")]


DATA = {"mice": mice, "species": species}


def mixing(z: np.ndarray, batch: np.ndarray, cell_type: np.ndarray, k: int = 15) -> float:
    """Neighbours from another batch over what chance would give, within types of over k cells."""
    found, by_chance = [], []
    for name in np.unique(cell_type):
        own = cell_type == name
        if own.sum() > k:
            distance = np.linalg.norm(z[own][:, None] - z[own][None], axis=2)
            np.fill_diagonal(distance, np.inf)
            other = batch[own][:, None] != batch[own]
            nearest = distance.argsort(1)[:, :k]
            found.append(np.take_along_axis(other, nearest, axis=1).mean(1))
            by_chance.append(other.sum(1) / (own.sum() - 1))
    return float(np.concatenate(found).mean() / np.concatenate(by_chance).mean())


def read(adata, **options) -> vaelab.Cells:
    return vaelab.Cells.from_anndata(adata, batch="batch", **options)


def fitted(cells, seed: int, epochs: int):
    model = vaelab.SCANVI(
        cells.n_genes, n_labels=len(cells.label_names), n_batches=len(cells.batch_names),
        seed=seed, **MODEL,
    )  # fmt: skip
    vaelab.fit(model, cells, seed=seed, **FIT | {"epochs": epochs})
    return model


def compare(reference, query, seed: int, epochs: int) -> tuple[list[dict], bool]:
    """The scores of each way, and True if the reference has kept its place to the bit."""
    genes = vaelab.select_genes(reference).var_names
    reference, unknown = reference[:, genes].copy(), query.copy()
    truth = query.obs["cell_type"].to_numpy(dtype=str)
    cells = read(reference, label="cell_type")
    model = fitted(cells, seed, epochs)
    before = model.embed(cells)
    extended = model.extend(batches=query.obs["batch"].unique())
    new, old = read(unknown).aligned_to(extended), cells.aligned_to(extended)

    def scores(way: str, model, of_reference, of_query, seconds: float) -> dict:
        z = np.concatenate([model.embed(of_reference), model.embed(of_query)])
        is_query = np.repeat([0, 1], [len(of_reference), len(of_query)])
        types = np.concatenate([reference.obs["cell_type"].to_numpy(dtype=str), truth])
        right = label_scores(truth, predicted_types(model, of_query))
        return {"way": way} | right | {"mixing": mixing(z, is_query, types), "seconds": seconds}

    runs = [scores("not trained", extended, old, new, np.nan)]
    start = clock("cpu")
    vaelab.fit(extended, new, train="new batch", seed=seed, **FIT | {"epochs": epochs})
    runs.append(scores("mapped", extended, old, new, clock("cpu") - start))
    same = np.array_equal(extended.embed(old), before)

    import anndata

    both = anndata.concat([reference, query[:, genes]], index_unique="-", keys=["r", "q"])
    both.obs["known"] = both.obs["cell_type"].astype(str)
    both.obs.loc[both.obs_names[len(reference) :], "known"] = "unknown"
    cells = read(both, label="known", unlabelled="unknown")
    start = clock("cpu")
    scratch = fitted(cells, seed, epochs)
    seconds = clock("cpu") - start
    n = len(reference)
    runs.append(scores("from scratch", scratch, cells[:n], cells[n:], seconds))
    return runs, same


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[*DATA], choices=DATA)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few epochs, to see it run")
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore", message=".*genes are zero in every cell")
    torch.set_num_threads(1)
    kept = True
    for name in arguments.data:
        experiments = DATA[name]()
        for reference, query in (experiments, experiments[::-1]):
            runs = []
            for seed in range(arguments.seeds):
                of_seed, same = compare(reference, query, seed, 2 if arguments.quick else 40)
                runs += of_seed
                kept &= same
                print(f"{name}, seed {seed}: {of_seed}", file=sys.stderr, flush=True)
            of_way = pd.DataFrame(runs).groupby("way", sort=False)[[*SCORES, "seconds"]]
            mean, sd = of_way.mean(), of_way.std().fillna(0)
            table = mean.map("{:.3f}".format) + " ± " + sd.map("{:.3f}".format)
            table["seconds"] = [f"{s:.1f}" if s == s else "" for s in mean["seconds"]]
            first, second = (a.obs["batch"].iloc[0] for a in (reference, query))
            print(f"\n{second} ({query.n_obs} cells) mapped to {first} ({reference.n_obs} cells)")
            print(table.rename_axis(None).to_string(), flush=True)
    print(f"\nThe reference's embedding {'is the same' if kept else 'HAS MOVED'}, to the bit.")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
