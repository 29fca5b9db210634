"""Differential expression: measured against claimed false discovery rates, power, stability, cost.

    python tests/benchmarks/differential_expression.py
        [--parts null changed simulated pseudocount cost] [--seeds 5] [--no-scvi-tools] [--quick]

null: the beta cells of mouse 1, split at random five times per seed; all calls are false.
changed: the same beta cells, split once per seed; the counts of 5 % of the genes are thinned in one
half and those of 5 % in the other, by fold changes of 2 to the power of 0.5, 1 or 2.
simulated: ``simulate.two_groups``, 1,000 cells and 500 genes, at depths of 500 and 3,000 counts.
pseudocount: ours on the simulation of depth 500, with 0.02, 0.1 (the default) and 0.5 counts; also
the calls among genes with fewer than 0.1 counts per cell.
cost: seconds and memory for 2,000 genes and 4,000 cells.

Ours is ``vaelab.differential_expression`` at its defaults; "pairs" is its mode of that name, and
"without count noise" the pure posterior samples of ρ. scvi-tools is its mode "change" at its
defaults. Both models have an NB likelihood and 60 epochs. The baselines are Wilcoxon's test and
Welch's t-test of scanpy, on log-normalised counts, with the correction of Benjamini and Hochberg.
pseudobulk is a t-test on the sums per replicate, for which each half is cut at random into three.

A call is false if the gene's fold change is 1. The tables give the number of calls and the measured
false discovery rate at claimed 1, 5 and 10 %, as mean ± standard deviation over seeds. Power is the
share of the changed genes in the longest list, ranked by the method, of which at most 5 % are
false. Stability is the mean Jaccard index of the lists, claimed at 5 %, of any two seeds of the
model on the same cells.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
import warnings
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from contenders import clock, quiet_scvi

import vaelab
from vaelab.differential_expression import LEVELS, expected_fdr, pseudobulk

EPOCHS = 60
EFFECTS = (0.5, 1.0, 2.0)


def beta_cells():
    """Mouse 1 with 2,000 genes, and where its beta cells are."""
    adata = vaelab.select_genes(vaelab.datasets.pancreas(mouse=1))
    adata.X = adata.layers["counts"].copy()
    return adata, np.flatnonzero(adata.obs["cell_type"] == "beta")


def thinned(adata, a, b, seed: int):
    """Counts thinned in one of two groups of cells; the log2 fold change, a over b, of each gene.

    Genes with fewer than one count in 10 cells are left out: nothing could be found in them.
    """
    rng, x = np.random.default_rng(seed), adata.X.toarray()
    fit = rng.permutation(np.flatnonzero(x[np.r_[a, b]].mean(0) > 0.1))
    changed, lfc = fit[: adata.n_vars // 10], np.zeros(adata.n_vars)
    for i, gene in enumerate(changed):
        effect, thin = EFFECTS[i // 2 % len(EFFECTS)], (a, b)[i % 2]
        x[thin, gene] = rng.binomial(x[thin, gene].astype(int), 2.0**-effect)
        lfc[gene] = -effect if i % 2 == 0 else effect
    adata = adata.copy()
    adata.X = type(adata.layers["counts"])(x)
    return adata, lfc


def fit_ours(adata, seed: int, epochs: int):
    torch.set_num_threads(1)
    cells = vaelab.Cells.from_anndata(adata)
    model = vaelab.SCVI(cells.n_genes, likelihood="nb", seed=seed)
    vaelab.fit(model, cells, epochs=epochs, seed=seed, progress=False)
    return model, cells


def fit_theirs(adata, seed: int, epochs: int):
    scvi, quiet = quiet_scvi()
    scvi.settings.seed = seed
    torch.set_num_threads(1)
    adata = adata.copy()
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
    model.train(epochs, accelerator="cpu", devices=1, **quiet)
    return model


def of_ours(model, cells, a, b, **options):
    """The expected false discovery rate of each gene and what ranks it, in the order of genes."""
    table = vaelab.differential_expression(model, cells, a, b, progress=False, **options)
    table = table.loc[[*cells.gene_names]]
    return table["fdr"].to_numpy(), table["p_change"].to_numpy() + 1e-6 * table["lfc"].abs()


def of_theirs(model, a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = model.differential_expression(
            idx1=a, idx2=b, mode="change", silent=True, delta=0.25, batch_correction=False
        )
    table = table.loc[[*model.adata.var_names]]
    p = table["proba_de"].to_numpy()
    return expected_fdr(p), p + 1e-6 * table["lfc_mean"].abs().to_numpy()


def of_scanpy(adata, a, b, method: str):
    import scanpy as sc

    part = adata[np.r_[a, b]].copy()
    part.obs["half"] = pd.Categorical(["a"] * len(a) + ["b"] * len(b))
    sc.pp.normalize_total(part, target_sum=1e4)
    sc.pp.log1p(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(part, "half", groups=["a"], reference="b", method=method)
        table = sc.get.rank_genes_groups_df(part, "a").set_index("names").loc[part.var_names]
    q = table["pvals_adj"].fillna(1).to_numpy()
    return q, np.nan_to_num(np.abs(table["scores"].to_numpy()))


def of_pseudobulk(cells, a, b, seed: int):
    rng, replicate = np.random.default_rng(seed), np.full(len(cells), "none")
    for name, rows in (("a", a), ("b", b)):
        replicate[rows] = np.char.add(name, rng.integers(0, 3, len(rows)).astype(str))
    table = pseudobulk(cells, a, b, replicate).loc[[*cells.gene_names]]
    return table["q_value"].to_numpy(), -np.log(table["p_value"].to_numpy().clip(1e-300))


def results(adata, model, cells, theirs, a, b, seed: int) -> dict:
    """(rate, rank) of each gene by each method."""
    found = {
        "ours": of_ours(model, cells, a, b),
        "ours, without count noise": of_ours(model, cells, a, b, count_noise=False),
        "ours, pairs": of_ours(model, cells, a, b, mode="pairs"),
        "Wilcoxon": of_scanpy(adata, a, b, "wilcoxon"),
        "t-test": of_scanpy(adata, a, b, "t-test"),
        "pseudobulk": of_pseudobulk(cells, a, b, seed),
    }
    return found | ({"scvi-tools": of_theirs(theirs, a, b)} if theirs is not None else {})


def power_at(rank: np.ndarray, changed: np.ndarray, rate: float = 0.05) -> float:
    """The share of the changed genes in the longest list with at most that share of false ones."""
    order = np.argsort(-rank, kind="stable")
    false = np.cumsum(~changed[order])
    n = np.arange(1, len(rank) + 1)
    fits = np.flatnonzero(false <= rate * n)
    return float(np.cumsum(changed[order])[fits[-1]] / changed.sum()) if fits.size else 0.0


def records(found: dict, changed: np.ndarray, seed: int) -> list[dict]:
    rows = []
    for method, (rate, rank) in found.items():
        for level in LEVELS:
            called = rate <= level
            n, false = int(called.sum()), int((called & ~changed).sum())
            rows.append(
                {"method": method, "seed": seed, "claimed": level, "calls": n, "false": false,
                 "measured": false / max(n, 1), "any": float(n > 0)}
            )  # fmt: skip
            if changed.any():
                rows[-1] |= {"power": power_at(np.asarray(rank), changed),
                             "found": (called & changed).sum() / changed.sum()}  # fmt: skip
    return rows


def show(name: str, rows: list[dict]) -> None:
    """One line per method, with mean ± standard deviation over seeds at 1, 5 and 10 %."""
    frame = pd.DataFrame(rows)
    print(f"\n### {name}, {frame['seed'].nunique()} seeds\n", flush=True)
    columns = {"calls": "{:.1f}", "measured": "{:.3f}"} | (
        {"found": "{:.2f}"} if "found" in frame else {}
    )
    by_seed = frame.groupby(["method", "claimed", "seed"], sort=False)[[*columns]].mean()
    mean, sd = (getattr(by_seed.groupby(level=[0, 1], sort=False), k)() for k in ("mean", "std"))
    head = " | ".join(f"{c} at {100 * level:g} %" for c in columns for level in LEVELS)
    last = " | power at 5 % false" if "power" in frame else ""
    print(f"| method | {head}{last} |\n|{'---|' * (1 + 3 * len(columns) + bool(last))}")
    for method in frame["method"].unique():
        cells = [
            f"{form.format(mean.loc[(method, level), c])} ± "
            f"{form.format(np.nan_to_num(sd.loc[(method, level), c]))}"
            for c, form in columns.items() for level in LEVELS
        ]  # fmt: skip
        if last:
            power = frame[frame["method"] == method].groupby("seed")["power"].mean()
            cells.append(f"{power.mean():.2f} ± {np.nan_to_num(power.std()):.2f}")
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def null(seeds: int, scvi_tools: bool, epochs: int) -> None:
    adata, beta = beta_cells()
    rows = []
    for seed in range(seeds):
        model, cells = fit_ours(adata, seed, epochs)
        theirs = fit_theirs(adata, seed, epochs) if scvi_tools else None
        for split in range(5):
            a, b = np.array_split(np.random.default_rng([seed, split]).permutation(beta), 2)
            found = results(adata, model, cells, theirs, a, b, seed)
            rows += records(found, np.zeros(adata.n_vars, dtype=bool), seed)
    show(f"null: {len(beta)} beta cells split at random (all calls are false)", rows)


def changed(seeds: int, scvi_tools: bool, epochs: int) -> None:
    whole, beta = beta_cells()
    rows = []
    for seed in range(seeds):
        a, b = np.array_split(np.random.default_rng(seed).permutation(beta), 2)
        adata, lfc = thinned(whole, a, b, seed)
        model, cells = fit_ours(adata, seed, epochs)
        theirs = fit_theirs(adata, seed, epochs) if scvi_tools else None
        rows += records(results(adata, model, cells, theirs, a, b, seed), lfc != 0, seed)
    show(f"changed: {len(beta)} beta cells with thinned genes", rows)


def simulated(seeds: int, scvi_tools: bool, epochs: int) -> None:
    for library in (500, 3000):
        rows = []
        for seed in range(seeds):
            adata = vaelab.simulate.two_groups(library=library, seed=seed)
            a, b = (np.flatnonzero(adata.obs["group"] == name) for name in "ab")
            model, cells = fit_ours(adata, seed, epochs)
            theirs = fit_theirs(adata, seed, epochs) if scvi_tools else None
            lfc = adata.var["log2_fold_change"].to_numpy()
            rows += records(results(adata, model, cells, theirs, a, b, seed), lfc != 0, seed)
        show(f"simulated: 1,000 cells, depth {library}", rows)
    lists = {"ours": [], "scvi-tools": []}
    models = []
    for seed in range(seeds):  # the last cells, other seeds of the model
        models.append(fit_ours(adata, seed, epochs)[0])
        lists["ours"].append(of_ours(models[-1], cells, a, b)[0] <= 0.05)
        if scvi_tools:
            lists["scvi-tools"].append(of_theirs(fit_theirs(adata, seed, epochs), a, b)[0] <= 0.05)
    for method, calls in lists.items():
        pairs = [(p & q).sum() / max((p | q).sum(), 1) for p, q in combinations(calls, 2)]
        if pairs:
            print(f"stability over seeds, {method}: {np.mean(pairs):.2f}", flush=True)
    table = vaelab.differential_expression(models, cells, a, b, progress=False)
    called, truth = table["called"], adata.var["log2_fold_change"].reindex(table.index) != 0
    print(
        f"all models together: {called.sum()} calls, {(called & ~truth).sum()} false; of the "
        f"{(~table['stable']).sum()} genes whose call depends on the seed, "
        f"{(~table['stable'] & truth).sum()} are changed"
    )


def pseudocount(seeds: int, scvi_tools: bool, epochs: int) -> None:
    rows = []
    for seed in range(seeds):
        adata = vaelab.simulate.two_groups(library=500, seed=seed)
        a, b = (np.flatnonzero(adata.obs["group"] == name) for name in "ab")
        model, cells = fit_ours(adata, seed, epochs)
        rare, truth = adata.X.mean(0).A1 < 0.1, adata.var["log2_fold_change"].to_numpy() != 0
        for value in (0.02, 0.1, 0.5):
            called = of_ours(model, cells, a, b, pseudocount=value)[0] <= 0.05
            rows.append(
                {"pseudocount": value, "measured at 5 %": (called & ~truth).sum() / called.sum(),
                 "found": called[truth].mean(), "rare genes": rare.sum(),
                 "rare, called": called[rare].sum(), "rare, false": called[rare & ~truth].sum()}
            )  # fmt: skip
    print(pd.DataFrame(rows).groupby("pseudocount").mean().round(3).to_string(), flush=True)


def cost(seeds: int, scvi_tools: bool, epochs: int) -> None:
    for who in ("ours", "theirs")[: 1 + scvi_tools]:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", who], capture_output=True, text=True, check=True
        )
        measured = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{who}, 2,000 genes × 4,000 cells: {measured['seconds']:.1f} s of CPU, "
            f"{measured['mib']:.0f} MiB more than before", flush=True,
        )  # fmt: skip


def measure(who: str) -> None:
    """Print seconds and MiB of one call in this process, as JSON. The models are hardly trained."""
    adata = vaelab.simulate.two_groups(4000, 2000, library=5000)
    a, b = (np.flatnonzero(adata.obs["group"] == name) for name in "ab")
    call = {"ours": of_ours, "theirs": of_theirs}[who]
    given = fit_ours(adata, 0, 1) if who == "ours" else (fit_theirs(adata, 0, 1),)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, clock("cpu")
    call(*given, a, b)
    seconds = clock("cpu") - start
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "mib": mib}))


PARTS = {
    "null": null,
    "changed": changed,
    "simulated": simulated,
    "pseudocount": pseudocount,
    "cost": cost,
}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-scvi-tools", action="store_true", help="ours and baselines only")
    parser.add_argument("--quick", action="store_true", help="few epochs, to see that it runs")
    parser.add_argument("--measure", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore", message=".*genes are zero in every cell")
    if arguments.measure:
        measure(arguments.measure)
        return 0
    scvi_tools = not arguments.no_scvi_tools
    if scvi_tools and importlib.util.find_spec("scvi") is None:
        print(
            'scvi-tools is not installed. Run pip install -e ".[parity]", or leave it out with '
            "--no-scvi-tools.",
            file=sys.stderr,
        )
        return 2
    for part in arguments.parts:
        start = time.process_time()
        seeds = 1 if arguments.quick else arguments.seeds
        PARTS[part](seeds, scvi_tools, 2 if arguments.quick else EPOCHS)
        print(f"({part}: {time.process_time() - start:.0f} s of CPU)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
