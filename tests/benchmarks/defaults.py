"""Whether the defaults of ``vaelab.fit`` are the best single setting, and whether they diverge.

    python tests/benchmarks/defaults.py [--data NAME …] [--seeds 5] [--steps 0]

The simulated cells have 2,000 genes. Trains a zero-inflated SCVI on each data set with each setting
of Adam, each with the early stopping of ``fit``, and scores the kept model on the held-out cells.
The table gives the mean difference from the defaults at the same seed ± standard
error, in nats per cell; below zero, the defaults are better. A setting "beats" them if it is better
by more than one standard error.

``--steps 300`` asks another question: every model is trained at its defaults, for this number of
steps at most, with ``--seeds 20``. It counts the trainings that end with a TrainingError, or with a
lower bound on the training cells than their first epoch had.

Exit status: 1 if a setting beats the defaults, or a training diverged; else 0.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
import torch

import vaelab
from vaelab.teaching.recipes import two_mice
from vaelab.training import TrainingError

warnings.filterwarnings("ignore", message=".*genes are zero in every cell")


def simulated(n_cells: int):
    parts = [
        vaelab.simulate.dataset(min(n_cells, 5000), 2000, library=277.0, seed=seed)
        for seed in range(max(1, n_cells // 5000))
    ]
    return anndata.concat(parts, index_unique="-") if len(parts) > 1 else parts[0]


def selected(load):
    return lambda: vaelab.select_genes(load())


DATA = {
    "simulated 300": lambda: simulated(300),
    "simulated 3,000": lambda: simulated(3000),
    "simulated 50,000": lambda: simulated(50_000),
    "mouse 1": selected(lambda: vaelab.datasets.pancreas(mouse=1)),
    "mice": selected(two_mice),
    "pbmc_sorted": selected(vaelab.datasets.pbmc_sorted),
    "pbmc_small": vaelab.datasets.pbmc_small,
}
SETTINGS = {
    "defaults": {},
    "rate 1e-3, ε 1e-8": {"learning_rate": 1e-3, "epsilon": 1e-8},
    "rate 5e-3, ε 1e-8": {"learning_rate": 5e-3, "epsilon": 1e-8},
    "rate 1e-2, ε 0.1": {"learning_rate": 1e-2, "epsilon": 0.1},
    "warm-up 400": {"kl_warmup": 400},
}
MODELS = {
    "VAE, normal": ("VAE", {"likelihood": "normal"}, "log_normalized"),
    "VAE, nb": ("VAE", {"likelihood": "nb"}, "counts"),
    "SCVI, zinb, latent library": ("SCVI", {"library": "latent"}, "counts"),
    "GMVAE, nb": ("GMVAE", {"likelihood": "nb", "n_clusters": 10}, "counts"),
    "SCANVI, nb": ("SCANVI", {"likelihood": "nb"}, "counts"),
}


def read(name: str, layer: str = "counts"):
    adata = DATA[name]()
    types = adata.obs["cell_type"].to_numpy(dtype=str)
    adata.obs["known"] = np.where(np.arange(len(types)) % 2, types, "unknown")
    batch = next((column for column in ("mouse",) if column in adata.obs), None)
    layer = layer if layer in adata.layers else None
    columns = {"layer": layer, "batch": batch, "label": "known", "unlabelled": "unknown"}
    return vaelab.Cells.from_anndata(adata, **columns)


def settings_on(name: str, seeds: int) -> bool:
    """Print the line of one data set; True if no setting beats the defaults."""
    cells, bounds = read(name), {}
    for seed in range(seeds):
        for setting, options in SETTINGS.items():
            model = vaelab.SCVI(
                cells.n_genes, n_batches=len(cells.batch_names), likelihood="zinb", seed=seed
            )
            history = vaelab.fit(model, cells, seed=seed, progress=False, **options)
            bounds.setdefault(setting, []).append(history.frame["held_out_bound"].max())
        last = {setting: round(float(found[-1]), 1) for setting, found in bounds.items()}
        print(f"{name}, seed {seed}: {last}", file=sys.stderr, flush=True)
    bounds = pd.DataFrame(bounds)
    gain = bounds.drop(columns="defaults").sub(bounds["defaults"], axis=0)
    error = gain.sem() if seeds > 1 else gain.mean() * 0
    line = "  ".join(f"{s}: {gain[s].mean():+.2f} ± {error[s]:.2f}" for s in gain)
    print(f"{name}: defaults {bounds['defaults'].mean():.1f}  {line}", flush=True)
    if beating := [s for s in gain if gain[s].mean() > error[s]]:
        print(f"  beaten by {', '.join(beating)}", flush=True)
    return not beating


def divergence_on(name: str, seeds: int, steps: int) -> bool:
    """Print how many trainings of each model diverged; True if none did."""
    fine = True
    for model_name, (kind, options, layer) in MODELS.items():
        if layer != "counts" and name not in ("mouse 1", "mice", "pbmc_sorted"):
            continue  # the others have counts alone
        cells, diverged = read(name, layer), []
        sizes = {"SCVI": {"n_batches": len(cells.batch_names)}}
        sizes["SCANVI"] = sizes["SCVI"] | {"n_labels": len(cells.label_names)}
        epochs = max(2, steps // -(-len(cells) // 128))
        for seed in range(seeds):
            model = getattr(vaelab, kind)(cells.n_genes, seed=seed, **options | sizes.get(kind, {}))
            with warnings.catch_warnings():  # a mixture without a start may use few clusters
                warnings.filterwarnings("ignore", message="The model uses")
                try:
                    history = vaelab.fit(model, cells, seed=seed, epochs=epochs, progress=False)
                except TrainingError as error:
                    diverged.append(f"seed {seed}: {error}")
                    continue
            bound = history.frame["bound"]
            if not bound.iloc[-1] > bound.iloc[0]:
                diverged.append(f"seed {seed}: {bound.iloc[0]:.1f} to {bound.iloc[-1]:.1f}")
        print(f"{name}, {model_name}: {len(diverged)} of {seeds} diverged in {epochs} epochs")
        for line in diverged:
            print(f"  {line}")
        sys.stdout.flush()
        fine &= not diverged
    return fine


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[*DATA], choices=DATA)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="ask for divergence instead")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    if arguments.steps:
        fine = [divergence_on(name, arguments.seeds, arguments.steps) for name in arguments.data]
    else:
        fine = [settings_on(name, arguments.seeds) for name in arguments.data]
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main())
