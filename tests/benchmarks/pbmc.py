"""Compare the clusters of a GMVAE, found without labels, with k-means and Leiden.

    python tests/benchmarks/pbmc.py [--recipe pbmc_gmvae|pancreas_gmvae] [--seeds 0 1 2]

The script prints ARI and NMI with the types (of at least 5 cells) as mean ± standard deviation over
seeds: for the mixture's own clusters, for k-means and Leiden on its latent space, and for both on
30 principal components. The scores of scvi-tools 1.4.2 (ZINB, latent space) are from an earlier run
on the same cells and genes. Seconds are CPU time of one thread, with the data and the first guess.
"""

import argparse
import time

import pandas as pd
import scanpy as sc
import torch

from vaelab import metrics
from vaelab.preprocessing import select_genes
from vaelab.teaching.recipes import RECIPES

SCVI_TOOLS = {  # k-means and Leiden on the latent space: ARI, NMI, ARI, NMI
    "pbmc_gmvae": (0.605, 0.708, 0.719, 0.740),
    "pancreas_gmvae": (0.654, 0.800, 0.602, 0.808),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="pbmc_gmvae", choices=SCVI_TOOLS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    recipe = RECIPES[arguments.recipe]
    adata = select_genes(recipe.load())
    cells = recipe.read(adata)
    pca = sc.pp.pca(adata.layers["log_normalized"], n_comps=30, random_state=0)
    rows = {"PCA-30": _scores_of(pca, cells.labels)}
    scvi_tools = dict(zip(rows["PCA-30"], SCVI_TOOLS[arguments.recipe], strict=True))
    rows["scvi-tools (not run here)"] = scvi_tools

    runs = []
    for seed in arguments.seeds:
        started = time.process_time()
        model, _, card = recipe.train(seed=seed, progress=False)
        seconds = time.process_time() - started
        own = {"own ARI": card["scores"]["ari"], "own NMI": card["scores"]["nmi"]}
        own |= {"used": card["scores"]["used"], "CPU s": seconds}
        runs.append(own | _scores_of(model.embed(cells), cells.labels))
        print(f"seed {seed}: {own}", flush=True)
    runs = pd.DataFrame(runs)
    rows |= {arguments.recipe: runs.mean(), "± (sd)": runs.std()}
    table = pd.DataFrame(rows).T[list(runs.columns)]
    print(table.round(3).to_string(na_rep=""))


def _scores_of(latent, labels) -> dict[str, float]:
    scores = metrics.clustering_scores(latent, labels)
    names = {"kmeans_ari": "k-means ARI", "kmeans_nmi": "k-means NMI"}
    names |= {"leiden_ari": "Leiden ARI", "leiden_nmi": "Leiden NMI"}
    return {name: scores[key] for key, name in names.items()}


if __name__ == "__main__":
    main()
