"""Whether θ is learned: what moving θ alone gains after a training, the bound, and the zeros.

    python tests/benchmarks/dispersion.py [--data pbmc mice] [--seeds 5] [--before]

Trains an SCVI with ``vaelab.fit`` at its defaults. Then z is drawn once for each cell, and log θ
alone is moved to its best on the training cells: "gain" is what this adds to the log-likelihood,
in nats per cell, on the training cells and on the held-out cells. "zeros" is the share of zeros in
cells that the model samples again, minus that in the cells themselves, in percent of all values.
``--before`` also trains with the settings that were the defaults before: a small epsilon, one slow
learning rate for all parameters, and a KL warm-up over a quarter of 200 epochs.

Exit status: 1 if the mean gain on training cells is above 0.5 nats somewhere, else 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import vaelab
from vaelab._internal.machine import to_json, write_atomically
from vaelab.distributions import NegativeBinomial, ZeroInflated
from vaelab.networks import evaluating
from vaelab.teaching.recipes import two_mice

DATA = {
    "mouse 1": (lambda: vaelab.datasets.pancreas(mouse=1), None),
    "mice": (two_mice, "mouse"),
    "pbmc": (vaelab.datasets.pbmc_sorted, None),
}
ENOUGH = 0.5  # nats per cell
COLUMNS = ("bound", "gain_training", "gain_held_out", "zeros_training", "zeros_held_out", "epochs")


def before(cells: vaelab.Cells) -> dict:
    n_steps = -(-round(0.9 * len(cells)) // 128)
    slow = {"learning_rate": 1e-3, "likelihood_learning_rate": 1e-3, "epsilon": 1e-8}
    return slow | {"epochs": 200, "patience": 30, "kl_warmup": 50 * n_steps}


def best_dispersion(p, x: torch.Tensor) -> torch.Tensor:
    """log θ of each gene that maximises the log-likelihood of x at p's other parameters."""
    nb = getattr(p, "base", p)
    log_θ = nb.inverse_dispersion[0].log().clone().requires_grad_()
    optimizer = torch.optim.Adam([log_θ], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=80)
    for _ in range(80):
        optimizer.zero_grad()
        (-with_dispersion(p, log_θ).log_prob(x).sum() / len(x)).backward()
        optimizer.step()
        schedule.step()
    return log_θ.detach()


def with_dispersion(p, log_θ: torch.Tensor):
    nb = getattr(p, "base", p)
    θ = log_θ.clamp(-12, 12).exp().expand_as(nb.mean)
    moved = NegativeBinomial(nb.mean, θ, validate_args=False)
    return moved if nb is p else ZeroInflated(moved, p.logits, validate_args=False)


def find(cells: vaelab.Cells, likelihood: str, seed: int, **settings) -> dict[str, float]:
    """The numbers of one training; see the head of this file."""
    model = vaelab.SCVI(
        cells.n_genes, n_batches=len(cells.batch_names), likelihood=likelihood, seed=seed
    )
    history = vaelab.fit(model, cells, seed=seed, progress=False, **settings)
    shuffled = np.random.default_rng(seed).permutation(len(cells))  # as fit splits them
    held_out, training = np.split(shuffled, [round(0.1 * len(cells))])
    found = {"bound": max(record["held_out_bound"] for record in history.records)}
    found["epochs"] = len(history.records)
    torch.manual_seed(seed)
    for name, rows in (("training", training), ("held_out", held_out)):
        part = cells[np.sort(rows)].to(model.device, model.dtype)
        with evaluating(model):
            p = model.decode(model.encode(part).sample(), part)
        if name == "training":
            log_θ = best_dispersion(p, part.x)
        gain = (with_dispersion(p, log_θ).log_prob(part.x) - p.log_prob(part.x)).sum(-1).mean()
        zeros = [(x == 0).mean() for x in (model.replicate(part, seed=seed), part.x.numpy())]
        found |= {f"gain_{name}": float(gain), f"zeros_{name}": 100 * float(zeros[0] - zeros[1])}
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=[*DATA], default=[*DATA])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    print(f"{'mean ± sd over seeds':<28}", *(f"{name:>17}" for name in COLUMNS), flush=True)
    results, missed = {}, []
    for name in asked.data:
        load, batch = DATA[name]
        cells = vaelab.Cells.from_anndata(vaelab.select_genes(load()), batch=batch)
        for likelihood in ("nb", "zinb"):
            ways = {"now": {}} | ({"before": before(cells)} if asked.before else {})
            for way, settings in ways.items():
                runs = [find(cells, likelihood, seed, **settings) for seed in range(asked.seeds)]
                key = f"{name}, {likelihood}, {way}"
                results[key] = runs
                columns = [np.array([run[column] for run in runs]) for column in COLUMNS]
                shown = (f"{c.mean():8.2f} ± {c.std(ddof=1):6.2f}" for c in columns)
                print(f"{key:<28}", *shown, flush=True)
                if way == "now" and columns[1].mean() > ENOUGH:
                    missed.append(key)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_atomically({asked.out / "dispersion.json": to_json(results, indent=1).encode()})
    if missed:
        print(f"Moving θ alone still gains more than {ENOUGH} nats: {', '.join(missed)}.")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
