"""Recipes: the trainings behind ``saved_model_parameters/``, each had again by one command.

``vaelab train NAME`` or, in a lesson, ``RECIPES[name].train()``. They are saved at half precision.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import datasets, metrics
from .cells import Cells
from .models import VAE
from .preprocessing import select_genes
from .training import History, fit

__all__ = ["RECIPES", "Recipe"]

NOT_SETTINGS = ("model", "cells", "seed", "device", "checkpoint", "progress")


@dataclass(frozen=True)
class Recipe:
    """One training: its data, and the arguments of VAE (`model`) and of vaelab.fit (`fit`)."""

    name: str
    description: str
    data_set: str
    load: Callable  # () -> AnnData
    layer: str = "counts"
    label: str = "cell_type"
    n_genes: int = 2000
    model: dict = field(default_factory=dict)
    fit: dict = field(default_factory=dict)

    def cells(self) -> Cells:
        """What the model is fitted to. Raises `DataUnavailable` where the data can't be had."""
        adata = select_genes(self.load(), n_genes=self.n_genes)
        return Cells.from_anndata(adata, layer=self.layer, label=self.label)

    def train(
        self, seed: int = 0, epochs: int | None = None, progress: bool = True
    ) -> tuple[VAE, History, dict]:
        """Train anew; the model, its history, and the card for ``model.save(path, **card)``."""
        cells, started = self.cells(), time.perf_counter()
        model = VAE(cells.n_genes, seed=seed, **self.model)
        settings = self.fit | ({} if epochs is None else {"epochs": epochs})
        call = inspect.signature(fit).bind(model, cells, seed=seed, progress=progress, **settings)
        call.apply_defaults()  # the card holds every setting, also those left at their default
        history = fit(*call.args, **call.kwargs)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(
                    parameter.half()
                )  # as it is saved, so that the scores are the file's
        scores = metrics.clustering_scores(model.embed(cells), cells.labels)
        if history.best_epoch:
            kept = history.records[history.best_epoch - 1]
            scores = {"held_out_bound": kept["held_out_bound"]} | scores
        card = {
            "recipe": self.name,
            "data": {"name": self.data_set, "layer": self.layer, "n_cells": len(cells)},
            "seed": seed,
            "fit": {k: v for k, v in call.arguments.items() if k not in NOT_SETTINGS},
            "training": history.stopped,
            "scores": {name: round(score, 3) for name, score in scores.items()},
            "seconds": round(seconds, 1),
        }
        return model, history, card


def _pancreas(likelihood: str, description: str, layer: str = "counts", **others) -> Recipe:
    settings = {
        "name": f"pancreas_{likelihood}",
        "model": {"likelihood": likelihood, "n_latent": 10},
        "fit": {"epochs": 200},
    } | others
    return Recipe(
        description=f"Mouse pancreas, {description}",
        data_set="pancreas, mouse 1",
        load=lambda: datasets.pancreas(mouse=1),
        layer=layer,
        **settings,
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
        fit={"epochs": 150, "validation_fraction": 0},
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
