"""Evidence for lesson 08: what each claim rests on. Run with ``vaelab evidence 08``."""

from functools import cache

import numpy as np
import scanpy as sc

import vaelab
from vaelab import metrics
from vaelab.teaching.evidence import claim, every, more, near

WAYS = {  # of training a mixture on few cells
    "sum": {},
    "sum, warm-up": {"kl_warmup": 140},
    "sum, first guess": {"guess": True},
    "drawn": {"estimator": "gumbel"},
    "drawn, first guess": {"estimator": "gumbel", "guess": True},
}


@cache
def blood(step=1, n_genes=1000):
    """Every ``step``-th cell, its tube, and 30 principal components."""
    adata = vaelab.select_genes(vaelab.datasets.pbmc_sorted()[::step], n_genes=n_genes)
    pca = sc.pp.pca(adata.layers["log_normalized"], n_comps=30, random_state=0)
    cells = vaelab.Cells.from_anndata(adata, layer="counts")
    return cells, adata.obs["cell_type"].to_numpy(dtype=str), pca


def parts(q):
    """Information and imbalance: the two parts of the mean KL of y, in nats."""
    mean = q.mean(0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-30))).sum()
    each = -(q * np.log(np.maximum(q, 1e-30))).sum(1).mean()
    return entropy - each, np.log(q.shape[1]) - entropy


# ----------------------------------------------------------------------- all cells, 1,000 genes


@cache
def fitted(kind, likelihood, seed):
    """A model and its held-out bound. The settings are the same for all models."""
    cells, _, pca = blood()
    if kind == "VAE":
        model = vaelab.VAE(cells.n_genes, likelihood=likelihood, seed=seed)
    else:
        model = vaelab.GMVAE(
            cells.n_genes, likelihood=likelihood, estimator="gumbel", n_clusters=10, seed=seed
        )
        model.start_from(cells, metrics.kmeans(pca, 10, seed), seed=seed)
    history = vaelab.fit(model, cells, epochs=120, seed=seed, progress=False)
    return model, max(record["held_out_bound"] for record in history.records)


@claim(
    "E08.mixture",
    "A GMVAE has a better bound on held-out cells than a VAE that is trained in the same way.",
    holds=more("GMVAE", "VAE"),
)
def mixture(seed: int) -> dict[str, float]:
    return {
        "VAE": fitted("VAE", "nb", seed)[1],
        "GMVAE": fitted("GMVAE", "nb", seed)[1],
    }


@claim(
    "E08.agreement",
    "The model's own clusters agree with the tubes better than k-means on principal components, "
    "from which they began, and about as well as Leiden on them.",
    holds=every(more("GMVAE, own", "PCA, k-means"), near("own less Leiden", 0, 0.1)),
    tolerance=0.15,
)
def agreement(seed: int) -> dict[str, float]:
    cells, tube, pca = blood()
    gmvae = fitted("GMVAE", "nb", seed)[0]
    found = {"GMVAE, own": gmvae.cluster(cells).argmax(1)}
    spaces = {"PCA": pca, "VAE": fitted("VAE", "nb", seed)[0].embed(cells)}
    for name, space in (spaces | {"GMVAE": gmvae.embed(cells)}).items():
        found[f"{name}, k-means"] = metrics.kmeans(space, 10, seed)
        found[f"{name}, Leiden"] = metrics.leiden(space, seed=seed)
    ari = {name: metrics.adjusted_rand_index(tube, of) for name, of in found.items()}
    return ari | {"own less Leiden": ari["GMVAE, own"] - ari["PCA, Leiden"]}


@claim(
    "E08.zinb",
    "ZINB, as in the tutorial, moves the bound on held-out cells by less than 1.5 of 150 nats.",
    holds=near("ZINB less NB", 0, 1.5),
)
def zinb(seed: int) -> dict[str, float]:
    found = {name: fitted("GMVAE", name.lower(), seed)[1] for name in ("NB", "ZINB")}
    return found | {"ZINB less NB": found["ZINB"] - found["NB"]}


# ------------------------------------------------------------------ every sixth cell, 300 genes


@cache
def trained(way, seed):
    """A short training in one of five ways: its history, the model and the cells."""
    options = dict(WAYS[way])
    guess, kl_warmup = options.pop("guess", False), options.pop("kl_warmup", 0)
    cells, _, pca = blood(6, 300)
    model = vaelab.GMVAE(
        300, n_clusters=10, likelihood="nb", annealing_steps=200, seed=seed, **options
    )
    if guess:
        model.start_from(cells, metrics.kmeans(pca, 10, seed), seed=seed)
    history = vaelab.fit(
        model, cells, epochs=20, batch_size=64, learning_rate=3e-3, epsilon=1e-8,
        likelihood_learning_rate=3e-3, kl_warmup=kl_warmup, validation_fraction=0, seed=seed,
        progress=False,
    )  # fmt: skip
    return history, model


@claim(
    "E08.emptied",
    "With y summed, clusters are lost while the bound rises.",
    holds=every(more("in use, first", "in use, last"), more("bound, last", "bound, fifth", by=1)),
)
def emptied(seed: int) -> dict[str, float]:
    history = trained("sum", seed)[0]
    used, bound = history.usage("y")["used"], history.frame["bound"]
    return {
        "in use, first": used.iloc[0],
        "in use, fifth": used.iloc[4],
        "in use, last": used.iloc[-1],
        "bound, fifth": bound.iloc[4],
        "bound, last": bound.iloc[-1],
        "entropy of use, last": history.usage("y")["entropy"].iloc[-1],
    }


@claim(
    "E08.starts",
    "A draw keeps clusters in use, and a first guess makes them carry information.",
    holds=every(
        more("in use, drawn", "in use, sum"),
        more("in use, drawn, first guess", "in use, sum, first guess"),
        more("in use, sum, warm-up", "in use, sum"),
        more("information, sum, first guess", "information, sum"),
        more("information, drawn, first guess", "information, drawn"),
    ),
)
def starts(seed: int) -> dict[str, float]:
    cells, tube, _ = blood(6, 300)
    found = {}
    for way in WAYS:
        history, model = trained(way, seed)
        q = model.cluster(cells)
        information, imbalance = parts(q)
        found |= {
            f"in use, {way}": history.usage("y")["used"].iloc[-1],
            f"information, {way}": information,
            f"imbalance, {way}": imbalance,
            f"bound, {way}": model.elbo_per_cell(cells).mean(),
            f"ARI, {way}": metrics.adjusted_rand_index(tube, q.argmax(1)),
        }
    return found
