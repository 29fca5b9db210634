"""The two experiments of Sarkar (2019) with the package: denoising and imputation, over seeds.

    python tests/benchmarks/sarkar.py [--seeds 5] [--epochs 3000] [--draws 10] [--jobs 2]

The data are the source's, from its own seed; the seeds here are those of the initial weights and
of the draws. Both tables have the Poisson log-likelihood of counts.

Denoising: the mean over the 50,000 validation counts, of three models with 3 and 10 dimensions,
which are trained for ``--epochs`` passes over all cells at once, without validation, as in the
source. "bug" is E[u | x], and with zero inflation (1 − π) E[u | x], where E[λ | x] belongs; "leak"
is E[λ | x] from the validation counts themselves; "honest" is E[λ | x] from the training counts.

Imputation: the sum over the 4,934 hidden entries alone, of models that ``vaelab.fit`` trains with
its defaults, which stop by the bound of held-out cells. "plug-in" is μ(E z), "mean" is E μ(z) with
100 draws.

Exit status: 1 if the honest ranking is not NB ≈ ZINB ≫ Poisson for every seed, or if a validated
negative binomial does not beat the constant on the hidden entries; else 0.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import vaelab
from vaelab import baselines, metrics
from vaelab._internal.machine import to_json, write_atomically

MODELS = {
    "poisson": {},
    "nb": {"dispersion": "scalar"},
    "zinb": {"dispersion": "scalar", "zero_inflation": "scalar"},
}
NAMES = {"poisson": "PVAE", "nb": "NBVAE", "zinb": "ZINBVAE"}
RANKS = (1, 2, 3, 5, 10)
ALIKE = 0.1  # nats: NB and ZINB differ by less, and a Poisson from both by more
FLOOR = 1e-10  # nats grow without limit as the mean of a count falls to 0; the source's ε


def model_of(kind: str, n_latent: int, seed: int) -> vaelab.VAE:
    """PVAE, NBVAE or ZINBVAE, with the source's two hidden layers of 128 units."""
    return vaelab.VAE(
        100, n_latent=n_latent, n_layers=2, dropout_rate=0.0, library="none", likelihood=kind,
        seed=seed, **MODELS[kind],
    )  # fmt: skip


def score(rate: np.ndarray, x: np.ndarray) -> float:
    return float(stats.poisson(np.maximum(rate, FLOOR)).logpmf(x).mean())


def denoising(kind: str, n_latent: int, seed: int, epochs: int, draws: int) -> dict[str, float]:
    """One row of the first table."""
    sim = vaelab.simulate.sarkar("validation")
    cells, again = (vaelab.Cells.from_array(x) for x in (sim.X, sim.layers["validation"]))
    model = model_of(kind, n_latent, seed)
    vaelab.fit(
        model, cells, epochs=epochs, batch_size=len(cells), validation_fraction=0, n_samples=draws,
        seed=seed, progress=False,
    )  # fmt: skip
    x = sim.layers["validation"]
    return {
        "bug": score(effect(model, again), x),
        "leak": score(model.denoise(again), x),
        "honest": score(model.denoise(cells), x),
    }


@torch.no_grad()
def effect(model: vaelab.VAE, cells: vaelab.Cells) -> np.ndarray:
    """What the source's ``denoise`` returned: E[u | x], times 1 − π for every count."""
    dense = cells.to()
    p = model.decode(model.encode(dense).mean, dense)
    if model.configuration["likelihood"] == "poisson":
        return p.mean.numpy()
    base = getattr(p, "base", p)
    u = (dense.x + base.inverse_dispersion) / (base.mean + base.inverse_dispersion)
    return (u * torch.sigmoid(-p.logits) if hasattr(p, "logits") else u).numpy()


def imputation(kind: str, n_latent: int, seed: int) -> dict[str, float]:
    """One row of the second table."""
    sim = vaelab.simulate.sarkar("imputation")
    x, observed = sim.X.toarray(), sim.layers["observed"]
    cells = vaelab.Cells.from_array(x, observed=observed)
    model = model_of(kind, n_latent, seed)
    history = vaelab.fit(model, cells, seed=seed, progress=False)

    def of(mean):
        return metrics.imputation_score(x, mean, observed)

    return {
        "plug-in": of(model.impute(cells)),
        "mean": of(model.impute(cells, n_samples=100)),
        "epochs": float(history.best_epoch),
    }


def references() -> dict[str, dict[str, float]]:
    """What no seed of a network changes: the truth, a constant, and matrix factorisations."""
    sim = vaelab.simulate.sarkar("validation")
    x, x_val = sim.X.toarray(), sim.layers["validation"]
    mean, theta = sim.layers["mean"], sim.uns["inverse_dispersion"]
    L, F = baselines.nmf(x, 27)
    found = {
        "denoising": {
            "true rate": score(sim.layers["rate"], x_val),
            "true posterior mean": score(mean * (x + theta) / (mean + theta), x_val),
            "constant": score(np.full_like(mean, x.mean()), x_val),
            "NMF, rank 27": score(L @ F.T, x_val),
        }
    }
    sim = vaelab.simulate.sarkar("imputation")
    x, observed = sim.X.toarray(), sim.layers["observed"]

    def of(mean):
        return metrics.imputation_score(x, mean, observed)

    found["imputation"] = {
        "true mean": of(sim.layers["mean"]),
        "constant": of(np.full(x.shape, x[observed].mean())),
    }
    for rank in RANKS:
        L, F = baselines.nmf(x, rank, observed=observed)
        found["imputation"][f"weighted NMF, rank {rank}"] = of(L @ F.T)
    for rank in RANKS:
        L, F, _ = baselines.nb_factorization(x, rank, observed=observed)
        found["imputation"][f"weighted NB, rank {rank}"] = of(L @ F.T)
    return found


def holds(found: dict) -> list[str]:
    """What does not hold of the numbers, in sentences."""
    wrong = []
    for d in {name.split("-")[1] for name in found["denoising"]}:
        poisson, nb, zinb = (
            np.array(found["denoising"][f"{NAMES[kind]}-{d}"]["honest"]) for kind in MODELS
        )
        if not (np.abs(nb - zinb) < ALIKE).all() or not (np.minimum(nb, zinb) > poisson + 1).all():
            wrong.append(f"With {d} dimensions the honest ranking is not NB ≈ ZINB ≫ Poisson.")
    constant = found["references"]["imputation"]["constant"]
    for name, row in found["imputation"].items():
        if name.startswith("NBVAE") and not min(row["plug-in"]) > constant:
            wrong.append(f"{name} does not beat the constant on the hidden entries for every seed.")
    return wrong


def report(found: dict) -> str:
    lines = []
    for part, digits in (("denoising", 3), ("imputation", 0)):
        rows = found[part]
        columns = [*next(iter(rows.values()))]
        lines += [
            "",
            f"| {part} | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name, row in rows.items():
            values = [
                f"{np.mean(v):,.{digits}f} ± {np.std(v, ddof=min(1, len(v) - 1)):,.{digits}f}"
                for v in row.values()
            ]
            lines.append(f"| {name} | " + " | ".join(values) + " |")
        for name, value in found["references"][part].items():
            lines.append(f"| {name} | {value:,.{digits}f} |" + " |" * (len(columns) - 1))
    return "\n".join(lines)


def train(job: tuple) -> dict[str, float]:
    part, kind, n_latent, seed, epochs, draws = job
    torch.set_num_threads(1)
    if part == "imputation":
        return imputation(kind, n_latent, seed)
    return denoising(kind, n_latent, seed, epochs, draws)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    found = {"denoising": {}, "imputation": {}, "references": references()}
    jobs = [
        (part, kind, d, seed, options.epochs, options.draws)
        for part in ("denoising", "imputation")
        for d in options.dimensions
        for kind in MODELS
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for (part, kind, d, seed, *_), numbers in zip(jobs, pool.map(train, jobs), strict=True):
            row = found[part].setdefault(f"{NAMES[kind]}-{d}", {})
            for name, value in numbers.items():
                row.setdefault(name, []).append(value)
            print(part, f"{NAMES[kind]}-{d}", seed, numbers, flush=True)
    print(f"{options.seeds} seeds, {options.epochs} epochs, {options.draws} draws", report(found))
    if options.out:
        write_atomically({options.out: (to_json(found, indent=1) + "\n").encode()})
    wrong = holds(found)
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
