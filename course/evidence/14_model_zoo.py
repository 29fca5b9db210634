"""Evidence for lesson 14: what each claim rests on. Run with ``vaelab evidence 14``."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy.stats import pearsonr
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import adjusted_rand_score, log_loss, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vaelab
from vaelab import metrics
from vaelab.models import zoo
from vaelab.reparametrization import seeded
from vaelab.teaching.evidence import claim, every, more, near


@cache
def blood(step: int = 3, n_genes: int = 300):
    """Every ``step``-th sorted cell, its tube, and 30 principal components."""
    adata = vaelab.select_genes(vaelab.datasets.pbmc_sorted()[::step], n_genes=n_genes)
    pca = sc.pp.pca(adata.layers["log_normalized"], n_comps=30, random_state=0)
    cells = vaelab.Cells.from_anndata(adata, layer="counts")
    return cells, adata.obs["cell_type"].to_numpy(dtype=str), pca


# ------------------------------------------------------------------------------------ VampVAE


@cache
def with_prior(name: str, seed: int) -> dict[str, float]:
    """Held-out log p(x), active dimensions and ARI of one of three priors; all else is the same."""
    cells, tube, _ = blood()
    model = {
        "N(0, I)": lambda: vaelab.VAE(cells.n_genes, likelihood="nb", seed=seed),
        "VampPrior": lambda: zoo.VampVAE(cells.n_genes, n_pseudo=50, seed=seed),
        "clusters": lambda: vaelab.GMVAE(
            cells.n_genes, likelihood="nb", n_clusters=10, estimator="gumbel", seed=seed
        ),
    }[name]()
    rows = np.random.default_rng(seed).permutation(len(cells))
    test = cells[rows[:250]]
    vaelab.fit(model, cells[rows[250:]], epochs=60, seed=seed, progress=False)
    latent = model.embed(test)
    return {
        f"log p(x), {name}": model.log_marginal(test, n_samples=100).mean(),
        f"active, {name}": (metrics.latent_activity(latent) > 0.01).sum(),
        f"ARI, {name}": metrics.adjusted_rand_index(
            tube[rows[:250]], metrics.kmeans(latent, 10, seed)
        ),
    }


@claim(
    "E14.vamp",
    "On held-out blood cells, log p(x) is higher with the VampPrior than with N(0, I), by half a "
    "nat or more, and higher than with ten clusters as prior; the clusters found in z by k-means "
    "are as good.",
    holds=every(
        more("log p(x), VampPrior", "log p(x), N(0, I)", by=0.5),
        more("log p(x), VampPrior", "log p(x), clusters"),
        near("ARI, VampPrior less N(0, I)", 0, 0.15),
    ),
)
def vamp(seed: int) -> dict[str, float]:
    found = {}
    for name in ("N(0, I)", "VampPrior", "clusters"):
        found |= with_prior(name, seed)
    found["ARI, VampPrior less N(0, I)"] = found["ARI, VampPrior"] - found["ARI, N(0, I)"]
    return found


# -------------------------------------------------------------------------------------- ScVAE


@claim(
    "E14.free_nats",
    "On blood cells, a GMVAE that sums over clusters ends with fewer clusters in use if the first "
    "0.8 log K nats of their KL are free. They make imbalance free, and its mean rises.",
    holds=every(
        more("used, none free", "used, 80 % free"),
        more("imbalance, 80 % free", "imbalance, none free"),
    ),
)
def free_nats(seed: int) -> dict[str, float]:
    cells, tube, _ = blood(step=6)
    found = {}
    for share, name in ((0.0, "none free"), (0.8, "80 % free")):
        model = zoo.ScVAE(cells.n_genes, n_clusters=10, likelihood="nb", free_nats=share, seed=seed)
        vaelab.fit(
            model, cells, epochs=20, batch_size=64, learning_rate=3e-3, epsilon=1e-8,
            likelihood_learning_rate=3e-3, validation_fraction=0, seed=seed, progress=False,
        )  # fmt: skip
        q = model.cluster(cells)
        mean = q.mean(0)
        imbalance = np.log(len(mean)) + (mean * np.log(np.maximum(mean, 1e-30))).sum()
        found |= {
            f"used, {name}": metrics.usage(mean)["used"],
            f"imbalance, {name}": imbalance,
            f"ARI, {name}": metrics.adjusted_rand_index(tube, q.argmax(1)),
            f"bound, {name}": model.elbo_per_cell(cells).mean(),
        }
    return found


def right(model, cells, names, asked):
    """The share of the asked cells that the model names rightly."""
    return (np.array(model.label_names)[model.predict(cells).argmax(1)] == names)[asked].mean()


# ---------------------------------------------------------------- M2: blood, 5 labels per type


def log_score(model, x, names):
    """Minus the log loss."""
    return -log_loss(names, model.predict_proba(x), labels=model.classes_)


@cache
def few_labels(seed):
    """100 sorted blood cells of each of five kinds, 300 genes; 5 labels per kind."""
    rng, tubes = np.random.default_rng(seed), vaelab.datasets.pbmc_sorted()
    names = tubes.obs["coarse_type"].to_numpy(dtype=str)
    rows = [rng.choice(np.flatnonzero(names == t), 100, replace=False) for t in np.unique(names)]
    adata = vaelab.select_genes(tubes[np.sort(np.concatenate(rows))].copy(), n_genes=300)
    names = adata.obs["coarse_type"].to_numpy(dtype=str)
    kept = [rng.choice(np.flatnonzero(names == t), 5, replace=False) for t in np.unique(names)]
    return adata, names, np.isin(np.arange(len(names)), kept)


def trained(kind, cells, seed, steps=200, **options):
    """A model of five kinds after 200 steps, whatever the number of cells."""
    model = kind(cells.n_genes, n_labels=5, seed=seed, **{"likelihood": "nb"} | options)
    epochs = steps // -(-len(cells) // 128)
    vaelab.fit(model, cells, epochs=epochs, validation_fraction=0, seed=seed, progress=False)
    return model


@claim(
    "E14.m2_few_labels",
    "Five kinds of blood cells, five labels each. With the published weight of a label, α = 0.1 N, "
    "M2 names more cells rightly than with α = 1, than M2 trained on the labelled cells alone, and "
    "than tuned regression.",
    holds=every(more("m2", "m2_alpha_1"), more("m2", "m2_labelled_only"), more("m2", "regression")),
)
def m2_few_labels(seed: int) -> dict[str, float]:
    adata, names, has_label = few_labels(seed)
    known = np.where(has_label, names, "unknown")
    cells = vaelab.Cells.from_array(adata.layers["counts"], label=known, unlabelled="unknown")
    labelled = cells[np.flatnonzero(has_label)]
    published = {"classifier_weight": 0.1 * len(cells)}
    models = {
        "m2": trained(zoo.M2, cells, seed, **published),
        "m2_alpha_1": trained(zoo.M2, cells, seed, classifier_weight=1.0),
        "m2_labelled_only": trained(zoo.M2, labelled, seed, **published),
        "scanvi": trained(vaelab.SCANVI, cells, seed, classifier_mean=False, **published),
    }
    numbers = {name: right(model, cells, names, ~has_label) for name, model in models.items()}
    x = sc.pp.pca(adata.layers["log_normalized"], n_comps=30, random_state=0)
    grid = {"C": np.logspace(-4, 1, 11)}  # five-fold cross-validation on the labelled cells
    search = GridSearchCV(LogisticRegression(max_iter=2000), grid, scoring=log_score, cv=5)
    found = search.fit(x[has_label], names[has_label]).predict(x)
    return numbers | {"regression": (found == names)[~has_label].mean()}


# ------------------------------------------------------------------- the fair VAE: two mice

EQUAL = {"beta": (120, 120), "delta": (60, 60), "endothelial": (60, 60), "ductal": (39, 39)}
SKEWED = {"beta": (120, 120), "delta": (9, 111), "endothelial": (60, 60), "ductal": (90, 9)}


def two_mice(numbers, seed):
    """So many cells of each type of mouse 1 and mouse 2, 300 genes; mouse 2 has no labels."""
    rng, both = np.random.default_rng(seed), vaelab.datasets.pancreas("both")
    of, mouse = (both.obs[column].to_numpy(dtype=str) for column in ("cell_type", "batch"))
    rows = [
        rng.choice(np.flatnonzero((of == name) & (mouse == f"mouse {i}")), n, replace=False)
        for name, pair in numbers.items()
        for i, n in enumerate(pair, 1)
    ]
    adata = vaelab.select_genes(both[np.sort(np.concatenate(rows))].copy(), n_genes=300)
    adata = adata[np.asarray(adata.layers["counts"].sum(1)).ravel() > 0].copy()
    names, mouse = (adata.obs[column].to_numpy(dtype=str) for column in ("cell_type", "batch"))
    is_new = mouse == "mouse 2"
    cells = vaelab.Cells.from_array(
        adata.layers["counts"], label=np.where(is_new, "unknown", names), batch=mouse,
        unlabelled="unknown",
    )  # fmt: skip
    return cells, names, is_new


def auroc(z, is_new, model):
    """How well held-out cells are told apart by mouse: 0.5 is chance."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(model, z, is_new, cv=folds, method="predict_proba")[:, 1]
    return roc_auc_score(is_new, p)


def linear():
    steps = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    grid = {"logisticregression__C": np.logspace(-3, 1, 5)}
    return GridSearchCV(steps, grid, scoring="roc_auc", cv=3)


@cache
def told_apart(seed, kind):
    """What the latent space says about the mouse, and the names, without and with the penalty."""
    cells, names, is_new = two_mice({"equal": EQUAL, "skewed": SKEWED}[kind], seed)
    numbers, beta = {}, names == "beta"
    for word, weight in (("without", 0.0), ("with", 30.0)):
        model = zoo.FairVAE(
            cells.n_genes, n_labels=4, n_batches=2, likelihood="nb", mmd_weight=weight,
            classifier_weight=10.0, classifier_mean=False, seed=seed,
        )  # fmt: skip
        vaelab.fit(model, cells, epochs=40, validation_fraction=0, seed=seed, progress=False)
        z = model.embed(cells)
        numbers[f"beta_{word}"] = auroc(z[beta], is_new[beta], linear())
        forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
        numbers[f"forest_{word}"] = auroc(z[beta], is_new[beta], forest)
        numbers[f"all_{word}"] = auroc(z, is_new, linear())
        numbers[f"named_{word}"] = right(model, cells, names, is_new)
        numbers[f"delta_{word}"] = right(model, cells, names, is_new & (names == "delta"))
    return numbers


@claim(
    "E14.fair_equal",
    "Two mice with equal numbers of each cell type: with the MMD penalty, a tuned linear classifier "
    "and a random forest tell the beta cells of the two mice less well apart from z1 than without.",
    holds=every(more("beta_without", "beta_with"), more("forest_without", "forest_with")),
)
def fair_equal(seed: int) -> dict[str, float]:
    return told_apart(seed, "equal")


@claim(
    "E14.fair_skewed",
    "Two mice with unequal numbers of delta and ductal cells: with the same penalty fewer delta "
    "cells of the second mouse are named rightly.",
    holds=more("delta_without", "delta_with"),
)
def fair_skewed(seed: int) -> dict[str, float]:
    return told_apart(seed, "skewed")


# ------------------------------------------------------------------------------ VEGA: gene sets

# Textbook markers, written down before a model was fitted; the name is that of the coarse type.
MARKERS = {
    "B cell": ["CD19", "MS4A1", "CD79A", "CD79B"],
    "CD14+": ["CD14", "LYZ", "S100A8", "S100A9", "FCN1"],
    "NK cell": ["GNLY", "NKG7", "KLRD1", "KLRF1", "PRF1"],
    "CD34+": ["CD34", "SPINK2", "KIT", "GATA2"],
    "T cell": ["CD3D", "CD3E", "CD3G", "IL7R"],
}


@cache
def sorted_blood():
    """All FACS cells, 400 variable genes and the markers; and the AUROC of scanpy's scores."""
    raw = vaelab.datasets.pbmc_sorted()
    variable = vaelab.select_genes(raw, n_genes=400).var_names
    markers = [gene for genes in MARKERS.values() for gene in genes]
    adata = raw[:, [*dict.fromkeys([*variable, *markers])]].copy()
    tube = raw.obs["coarse_type"].to_numpy(dtype=str)
    sc.pp.normalize_total(raw, target_sum=1e4)
    sc.pp.log1p(raw)
    auroc = []
    for name, genes in MARKERS.items():
        sc.tl.score_genes(raw, genes, score_name="score", random_state=0)
        auroc.append(roc_auc_score(tube == name, raw.obs["score"]))
    return vaelab.Cells.from_anndata(adata), tube, np.mean(auroc)


@claim(
    "E14.vega",
    "With one free dimension, the activity of a marker set finds its tube as well as scanpy's "
    "score of the same genes (mean AUROC within 0.05), and fewer decoy sets are on than marker "
    "sets; with five free dimensions the held-out bound is better, and the AUROC lower by over 0.1.",
    holds=every(
        near("VEGA, 1 free less score_genes", 0, 0.05),
        more("markers on, 1 free", "decoys on, 1 free"),
        more("bound, 5 free", "bound, 1 free"),
        more("VEGA, 1 free", "VEGA, 5 free", by=0.1),
    ),
)
def vega(seed: int) -> dict[str, float]:
    cells, tube, by_scanpy = sorted_blood()
    known = {gene for genes in MARKERS.values() for gene in genes}
    others = [gene for gene in cells.gene_names if gene not in known]
    rng = np.random.default_rng(seed)
    decoys = {f"decoy {k}": [*rng.choice(others, len(v), False)] for k, v in MARKERS.items()}
    found = {"score_genes": by_scanpy}
    for n_free in (1, 5):
        model = zoo.VEGA.from_names(cells, MARKERS | decoys, n_free=n_free, seed=seed)
        history = vaelab.fit(model, cells, epochs=15, seed=seed, progress=False)
        activity = model.activity(cells)
        is_on = activity.var() > metrics.ACTIVE
        auroc = [roc_auc_score(tube == name, activity[name]) for name in MARKERS]
        found[f"VEGA, {n_free} free"] = np.mean(auroc)
        found[f"markers on, {n_free} free"] = is_on[[*MARKERS]].sum()
        found[f"decoys on, {n_free} free"] = is_on[[*decoys]].sum()
        found[f"bound, {n_free} free"] = max(r["held_out_bound"] for r in history.records)
    return found | {"VEGA, 1 free less score_genes": found["VEGA, 1 free"] - by_scanpy}


# ------------------------------------------------------------------------ VASC: the zero layer


@cache
def scaled_pancreas():
    """log(1 + count) of 400 genes of mouse 1, each cell over its maximum; types of five or more."""
    adata = vaelab.datasets.pancreas(mouse=1)
    n_of_type = adata.obs["cell_type"].value_counts()
    rare = adata.obs["cell_type"].isin(n_of_type.index[n_of_type < 5])
    adata = vaelab.select_genes(adata[~rare].copy(), n_genes=400)
    x = np.log1p(adata.X.toarray())
    return adata, x / x.max(1, keepdims=True), adata.obs["cell_type"].to_numpy(dtype=str)


def two_dimensions(latent, types, seed):
    clusters = metrics.kmeans(latent, len(np.unique(types)), seed)
    return metrics.adjusted_rand_index(types, clusters)


@cache
def vasc_fitted(zero_layer, seed):
    adata, x, types = scaled_pancreas()
    cells = vaelab.Cells.from_array(x, gene_names=adata.var_names)
    model = zoo.VASC(cells.n_genes, zero_layer=zero_layer, seed=seed)
    # No cells are held out: the bound on them is of the summed model, and would stop the drawn one.
    vaelab.fit(model, cells, epochs=40, validation_fraction=0.0, seed=seed, progress=False)
    return two_dimensions(model.embed(cells), types, seed)


@claim(
    "E14.vasc",
    "Islet cells in two dimensions, k-means: VASC agrees with the types better than PCA of the same "
    "values. Its zero layer is not the reason: without it the agreement is better than with it, "
    "summed out or drawn.",
    holds=every(
        more("summed", "PCA of the same values"),
        more("no layer", "PCA of the same values"),
        more("no layer", "drawn"),
        more("no layer", "summed"),
    ),
)
def vasc(seed: int) -> dict[str, float]:
    adata, x, types = scaled_pancreas()
    spaces = {"PCA of the same values": x, "PCA of log counts": adata.layers["log_normalized"]}
    found = {
        name: two_dimensions(sc.pp.pca(of, n_comps=2, random_state=0), types, seed)
        for name, of in spaces.items()
    }
    for name, zero_layer in {"summed": "sum", "drawn": "gumbel", "no layer": None}.items():
        found[name] = vasc_fitted(zero_layer, seed)
    return found


# ------------------------------------------------------------------------------ CITE-seq

PANEL = (
    pd.DataFrame.from_dict(  # which surface markers each tube of the sorted PBMC has
        {
            "progenitor": "CD34",
            "B cell": "CD19",
            "NK cell": "CD56",
            "monocyte": "CD14",
            "helper T": "CD3 CD4",
            "regulatory T": "CD3 CD4 CD25",
            "naive T": "CD3 CD4 CD45RA",
            "memory T": "CD3 CD4 CD45RO",
            "cytotoxic T": "CD3 CD8",
            "naive cytotoxic T": "CD3 CD8 CD45RA",
        },
        orient="index",
    )[0]
    .str.get_dummies(" ")
    .astype(bool)
)
P = PANEL.shape[1]


@cache
def all_blood():
    return vaelab.datasets.pbmc_sorted()


@cache
def cite(seed):
    """1,000 sorted blood cells, equally many of each tube: their RNA, and simulated proteins."""
    rng, tube = np.random.default_rng(seed), all_blood().obs["cell_type"].to_numpy()
    rows = np.concatenate([rng.permutation(np.flatnonzero(tube == t))[:100] for t in PANEL.index])
    rna = vaelab.select_genes(all_blood()[np.sort(rows)].copy(), n_genes=300)
    return vaelab.simulate.cite_seq(rna, panel=PANEL, seed=seed)


def fitted(kind, cells, seed, **options):
    model = kind(cells.n_genes, n_proteins=P, n_hidden=64, likelihood="nb", seed=seed, **options)
    vaelab.fit(model, cells, epochs=50, seed=seed, progress=False)
    return model


@cache
def half(seed):
    """The cells, which have their proteins hidden in a random half; and that half."""
    adata = cite(seed)
    hidden = np.random.default_rng([seed, 2]).random(adata.n_obs) < 0.5
    adata.layers["observed"] = np.ones(adata.shape, dtype=bool)
    adata.layers["observed"][np.ix_(hidden, np.arange(adata.n_vars)[-P:])] = False
    cells = vaelab.Cells.from_anndata(
        adata, label="cell_type", library="rna_total", observed="observed"
    )
    return cells, hidden


@cache
def sisua(seed):
    return fitted(zoo.SISUALike, half(seed)[0], seed)


@claim(
    "E14.proteins_predicted",
    "PBMC with simulated proteins, hidden in half of the cells: SISUALike predicts them from RNA as "
    "well as ridge regression and k nearest neighbours, both tuned (correlations within 0.05). The "
    "true tube predicts them better than all three.",
    holds=every(
        near("SISUALike - ridge", 0, 0.05),
        near("SISUALike - neighbours", 0, 0.05),
        *(more("true tube", name) for name in ("SISUALike", "ridge", "neighbours")),
    ),
)
def proteins_predicted(seed: int) -> dict[str, float]:
    cells, hidden = half(seed)
    adata = cite(seed)
    tube = adata.obs["cell_type"].to_numpy().astype(str)
    x, y = np.split(adata.X.toarray().astype(float), [-P], axis=1)
    x, y = np.log1p(1e3 * x / x.sum(1, keepdims=True)), np.log1p(y)
    ridge = RidgeCV(np.logspace(0, 5, 11)).fit(x[~hidden], y[~hidden])
    grid = {"n_neighbors": [5, 10, 20, 40, 80], "metric": ["euclidean", "cosine"]}
    neighbours = GridSearchCV(KNeighborsRegressor(), grid).fit(x[~hidden], y[~hidden])
    guesses = {
        "SISUALike": np.log1p(sisua(seed).impute(cells)[hidden, -P:]),
        "ridge": ridge.predict(x[hidden]),
        "neighbours": neighbours.predict(x[hidden]),
        "true tube": pd.DataFrame(y[~hidden])
        .groupby(tube[~hidden])
        .mean()
        .loc[tube[hidden]]
        .values,
    }
    found = {
        name: np.mean([pearsonr(guess[:, t], y[hidden, t])[0] for t in range(P)])
        for name, guess in guesses.items()
    }
    return found | {
        f"SISUALike - {name}": found["SISUALike"] - found[name] for name in ("ridge", "neighbours")
    }


@claim(
    "E14.proteins_shape_the_latent",
    "The same cells and the same model: whether the other half of the cells had proteins in "
    "training moves the ARI of k-means, on the embedding of cells with RNA only, by less than 0.1.",
    holds=near("with less without", 0, 0.1),
)
def proteins_shape_the_latent(seed: int) -> dict[str, float]:
    cells, hidden = half(seed)
    seen = cells.observed.clone()
    seen[:, -P:] = False
    models = {
        "with proteins": sisua(seed),
        "without": fitted(zoo.SISUALike, replace(cells, observed=seen), seed),
    }
    found = {}
    for name, model in models.items():
        z = model.embed(cells[hidden])
        clusters = KMeans(len(PANEL), n_init=10, random_state=seed).fit_predict(z)
        found[name] = adjusted_rand_score(cells.label.numpy()[hidden], clusters)
    return found | {"with less without": found["with proteins"] - found["without"]}


def by_gaussian_mixture(values):
    """P(the component with the larger mean) of each entry, one mixture per column."""
    found = np.empty(values.shape)
    for t, column in enumerate(values.T[..., None]):
        mixture = GaussianMixture(2, n_init=5, random_state=0).fit(column)
        found[:, t] = mixture.predict_proba(column)[:, mixture.means_.argmax()]
    return found


def area(truth, score):
    return np.mean([roc_auc_score(truth[:, t], score[:, t]) for t in range(P)])


@cache
def both(seed):
    """Cells of which everything was measured; TotalVILike and the same without a background."""
    cells = vaelab.Cells.from_anndata(cite(seed), label="cell_type", library="rna_total")
    plain = fitted(zoo.SISUALike, cells, seed, encode_proteins=True)
    return cells, fitted(zoo.TotalVILike, cells, seed), plain


@claim(
    "E14.foreground",
    "PBMC with simulated proteins over a background: TotalVILike separates foreground from "
    "background better than the same model with one negative binomial per protein, and better than "
    "a Gaussian mixture per protein on log counts or on centred log-ratios, or the count itself.",
    holds=every(
        more("TotalVILike", "one NB"),
        more("TotalVILike", "mixture, log counts"),
        more("TotalVILike", "mixture, CLR"),
        more("TotalVILike", "count"),
        more("accuracy, TotalVILike", "accuracy, mixture, CLR"),
    ),
)
def foreground(seed: int) -> dict[str, float]:
    cells, model, plain = both(seed)
    truth, y = cite(seed).obsm["foreground"], cells.to().x[:, -P:].numpy()
    log_y = np.log1p(y)
    probability, mixture = model.foreground(cells), by_gaussian_mixture(log_y)
    clr = by_gaussian_mixture(log_y - log_y.mean(1, keepdims=True))
    return {
        "TotalVILike": area(truth, probability),
        "one NB": area(truth, plain.denoise(cells)[:, -P:]),  # E[λ|y], better than E[y|z] here
        "mixture, log counts": area(truth, mixture),
        "mixture, CLR": area(truth, clr),
        "count": area(truth, y),
        "accuracy, TotalVILike": ((probability > 0.5) == truth).mean(),
        "accuracy, mixture": ((mixture > 0.5) == truth).mean(),
        "accuracy, mixture, CLR": ((clr > 0.5) == truth).mean(),
    }


@claim(
    "E14.background_hardly_differs",
    "In the same fits q(β|z) is almost the same in all cells: its KL is below 1 nat per cell, and "
    "its median does not follow the simulated background within a protein. The dispersion takes up "
    "the spread: φ is below the simulated 5.",
    holds=every(near("KL", 0, 1), near("correlation", 0, 0.2), more("simulated φ", "φ")),
)
def background_hardly_differs(seed: int) -> dict[str, float]:
    cells, model, _ = both(seed)
    with torch.no_grad(), seeded(seed):
        bound = model.eval().elbo(cells.to(), n_samples=10)
        median = model.proteins.background(model.decoder(model.encode(cells.to()).mean)).mean
    true = np.log(cite(seed).obsm["background"])
    return {
        "KL": bound["kl_background"].mean().item(),
        "correlation": np.mean([pearsonr(median[:, t], true[:, t])[0] for t in range(P)]),
        "φ": model.proteins.log_inverse_dispersion.detach().exp().mean().item(),
        "simulated φ": 5.0,
    }
