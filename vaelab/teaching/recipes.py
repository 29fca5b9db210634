"""Recipes: the trainings behind ``saved_model_parameters/``, each reproduced by one command.

Run ``vaelab train NAME`` or, in a lesson, ``RECIPES[name].train()``. Parameters are saved at half
precision.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from .. import datasets, metrics
from ..cells import Cells
from ..models import GMVAE, SCANVI, SCVI, VAE, Model
from ..preprocessing import select_genes
from ..training import History, fit

__all__ = ["RECIPES", "Recipe"]

NOT_ON_CARD = ("seed", "train", "block_size")  # settings of ``fit`` that are elsewhere, or plain


@dataclass(frozen=True)
class Recipe:
    """One training: its data, its model, and the settings of :func:`vaelab.fit`.

    Parameters
    ----------
    name, description
        The recipe as ``vaelab train --list`` shows it.
    data_set
        The data as the card names them.
    load
        A function that returns the AnnData.
    layer, label, batch
        The layer of the values, and the columns of labels and batches. The label "known" hides some
        types; the model is then scored on the cells with a hidden type.
    n_genes
        Number of variable genes to use.
    kind, model
        The class of the model, and its arguments.
    start
        A function that is called as ``start(model, cells, seed)`` before training; None for none.
    fit
        The arguments of :func:`vaelab.fit`.
    """

    name: str
    description: str
    data_set: str
    load: Callable
    layer: str = "counts"
    label: str = "cell_type"
    batch: str | None = None
    n_genes: int = 2000
    kind: type[Model] = VAE
    model: dict = field(default_factory=dict)
    start: Callable[[Model, Cells, int], None] | None = None
    fit: dict = field(default_factory=dict)

    def cells(self) -> Cells:
        """The cells that the model is fitted to.

        Raises
        ------
        DataUnavailable
            The data are not available here.
        """
        return self.read(self._adata())

    def read(self, adata) -> Cells:
        """The cells of an AnnData, as the model reads them."""
        columns = {"layer": self.layer, "label": self.label, "batch": self.batch}
        has_unknown = self.label is not None and "unknown" in set(adata.obs[self.label])
        return Cells.from_anndata(adata, **columns, unlabelled="unknown" if has_unknown else None)

    def _adata(self):
        return select_genes(self.load(), n_genes=self.n_genes)

    def settings(self, epochs: int | None = None) -> dict:
        """The arguments of ``fit``; with another number of epochs, without a KL warm-up."""
        return self.fit if epochs is None else self.fit | {"epochs": epochs, "kl_warmup": 0}

    def train(
        self, seed: int = 0, epochs: int | None = None, progress: bool = True
    ) -> tuple[Model, History, dict]:
        """Train; returns the model, its history, and the card for ``model.save(path, **card)``."""
        adata = self._adata()
        cells, started = self.read(adata), time.perf_counter()
        model = self.kind(cells.n_genes, seed=seed, **self.model)
        if self.start is not None:
            self.start(model, cells, seed)
        history = fit(model, cells, seed=seed, progress=progress, **self.settings(epochs))
        seconds = time.perf_counter() - started
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())  # as saved: the scores are those of the file
        scores = _scores(model, cells, adata.obs["cell_type"].to_numpy(dtype=str))
        if history.best_epoch:
            kept = history.records[history.best_epoch - 1]
            scores = {"held_out_bound": kept["held_out_bound"]} | scores
        card = {
            "recipe": self.name,
            "data": {"name": self.data_set, "layer": self.layer, "n_cells": len(cells)},
            "seed": seed,
            "start": inspect.getdoc(self.start) if self.start else "random",
            "fit": {k: v for k, v in history.settings.items() if k not in NOT_ON_CARD},
            "training": history.stopped,
            "scores": {name: round(score, 3) for name, score in scores.items()},
            "seconds": round(seconds, 1),
        }
        return model, history, card


def _scores(model: Model, cells: Cells, truth: np.ndarray) -> dict[str, float]:
    """Scores: types (SCANVI), clusters (GMVAE), or k-means and Leiden on the latent space."""
    if isinstance(model, SCANVI):
        hidden = (cells.label < 0).numpy()
        return label_scores(truth[hidden], predicted_types(model, cells)[hidden])
    if not isinstance(model, GMVAE):
        return metrics.clustering_scores(model.embed(cells), cells.labels)
    q_y = model.cluster(cells)  # (n_cells, K)
    _, type_, n_of_type = np.unique(cells.labels, return_inverse=True, return_counts=True)
    scored = n_of_type[type_] >= 5  # as in clustering_scores
    types, clusters = type_[scored], q_y[scored].argmax(1)
    return {
        "ari": metrics.adjusted_rand_index(types, clusters),
        "nmi": metrics.normalized_mutual_information(types, clusters),
        "used": metrics.usage(q_y.mean(0))["used"],
    }


def _from_kmeans(model: GMVAE, cells: Cells, seed: int) -> None:
    """k-means on 30 principal components of log(1 + counts per 10,000) is the first guess of y."""
    import scanpy as sc

    per_10_000 = cells.x.multiply(1e4 / cells.library.numpy()[:, None]).tocsr()
    pca = sc.pp.pca(per_10_000.log1p(), n_comps=30, random_state=seed)
    model.start_from(cells, metrics.kmeans(pca, model.n_clusters, seed), seed=seed)


def predicted_types(model: SCANVI, cells: Cells) -> np.ndarray:
    """The most probable type of each cell."""
    return np.array(model.label_names)[model.predict(cells).argmax(1)]


def label_scores(truth, predicted) -> dict[str, float]:
    """Scores of predicted types, over all cells and as means over the types in the truth.

    Parameters
    ----------
    truth, predicted
        The names of the types, one per cell.

    Returns
    -------
    "accuracy", "balanced_accuracy" (the mean of the types' recalls) and "macro_f1" (the mean of
    their F1). In the two means all types count equally, however few cells they have.
    """
    from sklearn.metrics import f1_score, recall_score

    truth, predicted = np.asarray(truth, dtype=str), np.asarray(predicted, dtype=str)
    over_types = {"labels": np.unique(truth), "average": "macro", "zero_division": 0}
    return {
        "accuracy": float((truth == predicted).mean()),
        "balanced_accuracy": float(recall_score(truth, predicted, **over_types)),
        "macro_f1": float(f1_score(truth, predicted, **over_types)),
    }


def two_mice():
    """Pancreas of mouse 1 and mouse 2; obs["known"] is "unknown" in all cells of mouse 2."""
    import anndata

    mice = {f"mouse {n}": datasets.pancreas(mouse=n) for n in (1, 2)}
    adata = anndata.concat(mice, label="mouse", index_unique="-")
    adata.obs["known"] = _with_hidden(adata, adata.obs["mouse"] == "mouse 2")
    return adata


def sorted_blood(n_labels: int = 20, seed: int = 0):
    """Sorted PBMC; obs["known"] has the type of ``n_labels`` cells per type, else "unknown"."""
    adata, rng = datasets.pbmc_sorted(), np.random.default_rng(seed)
    types = adata.obs["cell_type"].to_numpy(dtype=str)
    hidden = np.ones(len(types), dtype=bool)
    for name in np.unique(types):
        hidden[rng.choice(np.flatnonzero(types == name), n_labels, replace=False)] = False
    adata.obs["known"] = _with_hidden(adata, hidden)
    return adata


def _with_hidden(adata, hidden) -> np.ndarray:
    return np.where(hidden, "unknown", adata.obs["cell_type"].to_numpy(dtype=str))


def _pancreas(likelihood: str, description: str, layer: str = "counts", **others) -> Recipe:
    settings = {
        "name": f"pancreas_{likelihood}",
        "model": {"likelihood": likelihood, "n_latent": 10},
    } | others
    return Recipe(
        description=f"Mouse pancreas, {description}",
        data_set="pancreas, mouse 1",
        load=lambda: datasets.pancreas(mouse=1),
        layer=layer,
        **settings,
    )


def _two_mice_scvi(
    name: str, description: str, batch: str | None = "mouse", load: Callable = two_mice, **model
) -> Recipe:
    return Recipe(
        name=f"pancreas_scvi{name}",
        description=f"Both mouse pancreases, scVI {description}",
        data_set="pancreas, mouse 1 and mouse 2",
        load=load,
        batch=batch,
        kind=SCVI,
        model={"n_batches": 2 if batch else 1, "likelihood": "nb"} | model,
    )


_RECIPES = (
    _pancreas("normal", "Gaussian on log-normalised counts", "log_normalized"),
    _pancreas("continuous_bernoulli", "continuous Bernoulli on [0, 1]", "unit_interval"),
    _pancreas("poisson", "Poisson on counts"),
    _pancreas("zip", "zero-inflated Poisson on counts"),
    _pancreas("nb", "negative binomial on counts"),
    _pancreas("zinb", "zero-inflated negative binomial on counts"),
    _pancreas(
        "nb",
        "negative binomial, twice as wide, fitted to all cells",
        name="pancreas_nb_wide",
        model={"likelihood": "nb", "n_latent": 10, "n_hidden": 256},
        fit={"validation_fraction": 0},
    ),
    _pancreas(
        "nb",
        "13 clusters, negative binomial",
        name="pancreas_gmvae",
        kind=GMVAE,
        model={
            "likelihood": "nb",
            "n_clusters": 13,
            "learn_weights": True,
            "estimator": "gumbel",
        },
        start=_from_kmeans,
    ),
    Recipe(
        name="pbmc_gmvae",
        description="Sorted blood cells, 10 clusters, negative binomial",
        data_set="pbmc_sorted",
        load=datasets.pbmc_sorted,
        kind=GMVAE,
        model={"likelihood": "nb", "n_clusters": 10, "estimator": "gumbel"},
        start=_from_kmeans,
    ),
    Recipe(
        name="pancreas_scanvi",
        description="Mouse pancreas, types of mouse 2 from the labels of mouse 1",
        data_set="pancreas, mouse 1 and mouse 2",
        load=two_mice,
        label="known",
        batch="mouse",
        kind=SCANVI,
        model={"n_labels": 13, "n_batches": 2, "likelihood": "nb", "n_latent": 20},
        fit={"kl_warmup": 200},
    ),
    Recipe(
        name="pbmc_scanvi",
        description="Sorted blood cells, types from the labels of 20 cells per type",
        data_set="pbmc_sorted, 20 labels a type",
        load=sorted_blood,
        label="known",
        kind=SCANVI,
        model={"n_labels": 10, "likelihood": "nb", "n_latent": 20},
        fit={"kl_warmup": 200},
    ),
    _two_mice_scvi("", "simplified, from counts and mouse"),
    _two_mice_scvi(
        "_both",
        "simplified, on the genes that vary in both mice",
        load=lambda: select_genes(two_mice(), batch="mouse"),
    ),
    _two_mice_scvi("_blind", "simplified, without the mouse as input", batch=None),
    _two_mice_scvi(
        "_full", "with latent library sizes and dropout", library="latent", likelihood="zinb"
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
