"""Evidence for lesson 11: what each claim rests on. Run with ``vaelab evidence 11``.

A call of Wilcoxon's test or of the t-test is a gene with an adjusted p-value at the claimed rate and
a log2 fold change beyond δ, so that all methods look for changes of the same size.
"""

import warnings
from functools import cache

import numpy as np
import scanpy as sc
import torch
from scipy import stats

import vaelab
from vaelab.differential_expression import expected_fdr, pseudobulk
from vaelab.networks import evaluating
from vaelab.reparametrization import seeded
from vaelab.teaching.evidence import claim, every, more, share

LEVELS = (1, 5, 10)  # claimed false discovery rates, in percent
DELTA = 0.25
N_SPLITS = 20
DEPTHS = (500, 2000, 8000)  # median counts per cell
WAYS = {  # of calling genes by the model
    "pairs": {"mode": "pairs"},
    "plain": {"count_noise": False},
    "default": {},  # with the noise of the counts, and a prior that all genes share
}
BARE = {"mode": "pairs", "pseudocount": 1e-9}
TESTS = {"Wilcoxon": "wilcoxon", "t-test": "t-test"}
MARKERS = {"beta": "Ins2", "alpha": "Gcg", "delta": "Sst", "ductal": "Krt19"}


def trained(adata, seed, batch=None):
    cells = vaelab.Cells.from_anndata(
        adata, batch=batch, label="cell_type" if "cell_type" in adata.obs else None
    )
    model = vaelab.SCVI(cells.n_genes, n_batches=len(cells.batch_names), likelihood="nb", seed=seed)
    vaelab.fit(model, cells, seed=seed, progress=False)
    return model, cells


@cache
def mice(seed):
    """A model of both mice, its cells, and who is who."""
    raw = vaelab.datasets.pancreas("both")
    variable = vaelab.select_genes(raw, n_genes=1000, batch="batch").var_names
    names = variable.union(MARKERS.values())
    adata = vaelab.select_genes(raw, n_genes=raw.n_vars)[:, names].copy()
    model, cells = trained(adata, seed, "batch")
    return (
        model,
        cells,
        adata,
        *(adata.obs[name].to_numpy().astype(str) for name in ("batch", "cell_type")),
    )


def compare(model, cells, a, b, **options):
    options = {"delta": DELTA, "n_samples": 50} | options
    return vaelab.differential_expression(model, cells, a, b, progress=False, **options)


def by_scanpy(adata, a, b, method):
    """The adjusted p-value of each gene; 1 if its fold change is not beyond δ."""
    some = sc.AnnData(adata.layers["log_normalized"][a | b])
    some.obs["group"] = np.where(a[a | b], "a", "b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(some, "group", groups=["a"], reference="b", method=method)
    found = sc.get.rank_genes_groups_df(some, "a").set_index("names").loc[some.var_names]
    return found["pvals_adj"].where(found["logfoldchanges"].abs() > DELTA, 1.0).to_numpy()


def halves(groups, rng):
    """A random half of the cells of each group."""
    half = np.zeros(len(groups), dtype=bool)
    for name in np.unique(groups):
        own = rng.permutation(np.flatnonzero(groups == name))
        half[own[: len(own) // 2]] = True
    return half


# ------------------------------------------------------------------------- groups that are one


@claim(
    "E11.coin",
    "Between random halves of the beta cells, pairs of cells without a pseudocount give over a "
    "hundred false calls at a claimed rate of 10 %; with one they give fewer, and the default none.",
    holds=every(
        more("bare, 10 %", "pairs, 10 %", by=100),
        more("pairs, 10 %", "default, 10 %"),
    ),
)
def coin(seed: int) -> dict[str, float]:
    model, cells, adata, mouse, kind = mice(seed)
    rng, of, found = np.random.default_rng(seed), kind == "beta", {}
    first = np.zeros(len(of), dtype=bool)
    first[of] = halves(mouse[of], rng)
    for way, options in ({"bare": BARE} | WAYS).items():
        table = compare(model, cells, first, of & ~first, null="permutation", n_nulls=N_SPLITS,
                        seed=seed, **options)  # fmt: skip
        null = table.attrs["null"]
        for percent, calls, some in zip(LEVELS, null["false_calls"], null["any_call"], strict=True):
            found |= {f"{way}, {percent} %": calls, f"{way}, any, {percent} %": some}
    beta, of_mouse = adata[of], mouse[of]
    for way, method in TESTS.items():
        calls = []
        for _ in range(N_SPLITS):
            half = halves(of_mouse, rng)
            q = by_scanpy(beta, half, ~half, method)
            calls.append([(q <= percent / 100).sum() for percent in LEVELS])
        for percent, n in zip(LEVELS, np.transpose(calls), strict=True):
            found |= {f"{way}, {percent} %": n.mean(), f"{way}, any, {percent} %": (n > 0).mean()}
    return found


# -------------------------------------------------------------------------- groups that differ


@cache
def simulation(seed, depth):
    """A model of two groups with known changes, its cells, and its answers by each way."""
    adata = vaelab.simulate.two_groups(600, 500, library=float(depth), seed=seed)
    vaelab.log_normalize(adata)
    model, cells = trained(adata, seed)
    a = (adata.obs["group"] == "a").to_numpy()
    tables = {
        way: compare(model, cells, a, ~a, seed=seed, null="permutation", **options).loc[
            adata.var_names
        ]
        for way, options in WAYS.items()
    }
    return adata, a, model, cells, tables


@claim(
    "E11.truth",
    "In simulations with known changes, a list by plain means at a claimed 5 % has more than 5 % "
    "false genes. With the noise of the counts it has fewer, but still more than 5 %; with a shared "
    "prior too it has less than 5 %. At an equal true rate, the t-test finds more than the model, and "
    "the model more than pairs.",
    holds=every(
        more("false, plain, 5 %, 2000", "false, flat, 5 %, 2000"),
        more("false, flat, 5 %, 2000", "claimed"),
        more("claimed", "false, default, 5 %, 2000"),
        more("equal, t-test, 2000", "equal, default, 2000"),
        more("equal, default, 2000", "equal, pairs, 2000"),
    ),
)
def truth(seed: int) -> dict[str, float]:
    found = {"claimed": 5.0}
    for depth in DEPTHS:
        adata, a, _, _, tables = simulation(seed, depth)
        lfc = adata.var["log2_fold_change"].to_numpy()
        claimed = {way: table["fdr"].to_numpy() for way, table in tables.items()}
        claimed |= {way: by_scanpy(adata, a, ~a, method) for way, method in TESTS.items()}
        surest = claimed | {way: -table["p_change"].to_numpy() for way, table in tables.items()}
        surest["flat"] = -without_prior(tables["default"])
        claimed["flat"] = expected_fdr(-surest["flat"])
        for way, rate in claimed.items():
            for percent in LEVELS:
                calls = rate <= percent / 100
                false = (lfc[calls] == 0).mean() if calls.any() else 0.0
                found[f"false, {way}, {percent} %, {depth}"] = 100 * false
            calls = rate <= 0.05
            for size in (0.5, 1.0, 2.0):
                power = calls[np.abs(lfc) == size].mean()
                found[f"power, {way}, {size:g}, {depth}"] = 100 * power
            order = np.argsort(surest[way], kind="stable")
            rates = np.cumsum(lfc[order] == 0) / np.arange(1, len(lfc) + 1)
            n = np.flatnonzero(rates <= 0.05).max(initial=-1) + 1
            found[f"equal, {way}, {depth}"] = 100 * (lfc[order[:n]] != 0).sum() / (lfc != 0).sum()
    return found


def without_prior(table):
    """P(|LFC| > δ) of normal distributions with the medians and intervals of a table."""
    middle, std = table["lfc"], (table["lfc_high"] - table["lfc_low"]) / (2 * stats.norm.ppf(0.975))
    above, below = (stats.norm.sf(DELTA, sign * middle, std) for sign in (1, -1))
    return above + below


@claim(
    "E11.planted",
    "If the counts of a tenth of the genes are thinned in one of two random halves of the beta cells, "
    "the t-test finds more of these genes than the model.",
    holds=more("found, t-test", "found, default", by=5),
    seeds=range(10, 15),
)
def planted(seed: int) -> dict[str, float]:
    adata = vaelab.select_genes(vaelab.datasets.pancreas("both"), n_genes=1000, batch="batch")
    beta, rng = adata[adata.obs["cell_type"] == "beta"].copy(), np.random.default_rng(seed)
    x = beta.X.toarray()
    beta, x = beta[:, x.any(0)].copy(), x[:, x.any(0)]
    a = halves(beta.obs["batch"].to_numpy().astype(str), rng)
    # Without the hormones: thinning a gene with most of the counts changes the shares of all others.
    fit = rng.permutation(np.flatnonzero((x.mean(0) > 0.1) & (x.mean(0) < 10)))
    lfc = np.zeros(beta.n_vars)
    for i, gene in enumerate(fit[: beta.n_vars // 10]):
        size, thinned = (0.5, 1.0, 2.0)[i // 2 % 3], (a, ~a)[i % 2]
        x[thinned, gene] = rng.binomial(x[thinned, gene].astype(int), 2.0**-size)
        lfc[gene] = (-size, size)[i % 2]
    beta.X = x
    vaelab.log_normalize(beta)
    model, cells = trained(beta, seed, "batch")
    claimed = {
        way: compare(model, cells, a, ~a, seed=seed, **WAYS[way])
        .loc[beta.var_names, "fdr"]
        .to_numpy()
        for way in ("plain", "default")
    }
    claimed |= {way: by_scanpy(beta, a, ~a, method) for way, method in TESTS.items()}
    found = {}
    for way, rate in claimed.items():
        calls = rate <= 0.05
        found[f"found, {way}"] = 100 * calls[lfc != 0].mean()
        found[f"found ±2, {way}"] = 100 * calls[np.abs(lfc) == 2].mean()
        found[f"false calls, {way}"] = calls[lfc == 0].sum()
    return found


@claim(
    "E11.blind",
    "In the same simulations, permuted labels measure a lower rate for plain means than the share "
    "of their genes that are false.",
    holds=more("false", "measured by the null"),
)
def blind(seed: int) -> dict[str, float]:
    adata, _, _, _, tables = simulation(seed, 2000)
    null, calls = tables["plain"].attrs["null"], (tables["plain"]["fdr"] <= 0.05).to_numpy()
    false = (adata.var["log2_fold_change"] == 0).to_numpy()
    return {
        "false": 100 * false[calls].mean(),
        "measured by the null": 100 * null["measured"][1],
        "calls": calls.sum(),
        "false calls": (false & calls).sum(),
        "calls in a null": null["false_calls"][1],
    }


@claim(
    "E11.apart",
    "Plain means are sure of more unchanged genes if other genes change, so that the groups lie "
    "apart, than if no gene changes.",
    holds=more("groups apart", "no gene changes"),
)
def apart(seed: int) -> dict[str, float]:
    adata, a, _, _, tables = simulation(seed, 2000)
    unchanged = (adata.var["log2_fold_change"] == 0).to_numpy()
    sure = (tables["plain"]["p_change"] > 0.95).to_numpy()
    adata = vaelab.simulate.two_groups(600, 500, share_changed=0.0, library=2000.0, seed=seed)
    table = compare(*trained(adata, seed), a, ~a, seed=seed, **WAYS["plain"])
    return {
        "groups apart": 100 * sure[unchanged].mean(),
        "no gene changes": 100 * (table["p_change"] > 0.95).mean(),
    }


@claim(
    "E11.width",
    "Intervals of 95 % hold the true fold change more often with a bootstrap of the cells than from "
    "z alone, and more often still with the noise of the counts.",
    holds=every(
        more("z and cells", "z alone"),
        more("z, cells and counts", "z and cells"),
    ),
)
def width(seed: int) -> dict[str, float]:
    adata, a, model, cells, tables = simulation(seed, 2000)
    ρ = draws(model, cells, 100)  # (100, n_cells, G)
    ε = 0.1 / cells.library.median().item()
    lfc = np.log2((ρ[:, a].mean(1) + ε) / (ρ[:, ~a].mean(1) + ε))
    ends = {"z alone": np.quantile(lfc, [0.025, 0.975], axis=0)}
    for name, way in {"z and cells": "plain", "z, cells and counts": "default"}.items():
        ends[name] = tables[way][["lfc_low", "lfc_high"]].to_numpy().T
    true = adata.var["log2_fold_change"].to_numpy()
    return {
        name: 100 * ((low <= true) & (true <= high)).mean() for name, (low, high) in ends.items()
    }


@torch.no_grad()
def draws(model, cells, n):
    """ρ for draws of z, in a single batch; (n, n_cells, G)."""
    part = cells.unlabelled().to()
    with evaluating(model), seeded(0):
        q, blank = model.encode(part), model.blank_cells(len(part), 1.0)
        return np.stack([model.decode(q.sample(), blank).mean.numpy() for _ in range(n)])


# ------------------------------------------------------------------------------------ replicates


@claim(
    "E11.replicates",
    "With mice that differ and no effect of the group, the model and Wilcoxon's test call more false "
    "genes than a test between mice, and more of them with more cells per mouse.",
    holds=every(
        more("model, 400", "pseudobulk, 400", by=10),
        more("Wilcoxon, 400", "pseudobulk, 400", by=10),
        more("model, 400", "model, 50"),
        more("Wilcoxon, 400", "Wilcoxon, 50"),
    ),
)
def replicates(seed: int) -> dict[str, float]:
    found = {}
    for per_mouse in (50, 400):
        adata = vaelab.simulate.two_groups(
            8 * per_mouse, 300, share_changed=0.0, n_replicates=4, replicate_effect=0.3, seed=seed
        )
        vaelab.log_normalize(adata)
        a = (adata.obs["group"] == "a").to_numpy()
        model, cells = trained(adata, seed)
        table = compare(model, cells, a, ~a, seed=seed)
        found[f"model, {per_mouse}"] = (table["fdr"] <= 0.05).sum()
        found[f"Wilcoxon, {per_mouse}"] = (by_scanpy(adata, a, ~a, "wilcoxon") <= 0.05).sum()
        bulk = pseudobulk(cells, a, ~a, adata.obs["replicate"].to_numpy().astype(str))
        calls = (bulk["q_value"] <= 0.05) & (bulk["lfc"].abs() > DELTA)
        found[f"pseudobulk, {per_mouse}"] = calls.sum()
    return found


# ------------------------------------------------------------------------------------ the mice


@claim(
    "E11.strain",
    "Beta cells of mouse 1 against those of mouse 2 give more calls with each cell in its own mouse "
    "than averaged over both mice, than random halves, and than Wilcoxon's test.",
    holds=every(more("own", "averaged"), more("own", "halves"), more("own", "Wilcoxon")),
)
def strain(seed: int) -> dict[str, float]:
    model, cells, adata, mouse, kind = mice(seed)
    a, b = ((kind == "beta") & (mouse == name) for name in ("mouse 1", "mouse 2"))
    found = {}
    for name, batch in {"own": None, "averaged": "all"}.items():
        table = compare(model, cells, a, b, batch=batch, seed=seed)
        found[name] = (table["fdr"] <= 0.05).sum()
    found["Wilcoxon"] = (by_scanpy(adata, a, b, "wilcoxon") <= 0.05).sum()
    of, first = kind == "beta", np.zeros(len(kind), dtype=bool)
    first[of] = halves(mouse[of], np.random.default_rng(seed))
    found["halves"] = (compare(model, cells, first, of & ~first, seed=seed)["fdr"] <= 0.05).sum()
    return found


@claim(
    "E11.stable",
    "Two trainings agree on fewer genes of alpha against beta cells than two draws from one model.",
    holds=more("same model", "two trainings"),
)
def stable(seed: int) -> dict[str, float]:
    model, cells, adata, _, kind = mice(seed)
    lists = {
        name: compare(one, cells, "alpha", "beta", seed=draw)
        for name, one, draw in (
            ("one", model, seed), ("same model", model, seed + 1),
            ("two trainings", mice(seed + 50)[0], seed + 2),
        )
    }  # fmt: skip
    lists = {name: {*table.index[table["fdr"] <= 0.05]} for name, table in lists.items()}
    one = lists.pop("one")
    found = {name: 100 * len(one & two) / len(one | two) for name, two in lists.items()}
    q = by_scanpy(adata, kind == "alpha", kind == "beta", "wilcoxon")
    return found | {"calls": len(one), "calls, Wilcoxon": (q <= 0.05).sum()}


@claim(
    "E11.markers",
    "Ins2, Gcg, Sst and Krt19 are called, and among the 25 highest of their type, in every training.",
    holds=share("all found", at_least=1.0),
)
def markers(seed: int) -> dict[str, float]:
    model, cells, *_ = mice(seed)
    found = {}
    for kind, gene in MARKERS.items():
        table = compare(model, cells, kind, None, delta=1.0, n_samples=25, seed=seed)
        found[f"rank of {gene}"] = table["lfc"].rank(ascending=False)[gene]
        found[f"{gene} called"] = float(table.loc[gene, "fdr"] <= 0.05)
    ranks = [found[f"rank of {gene}"] for gene in MARKERS.values()]
    return {"all found": float(max(ranks) <= 25 and min(found.values()) > 0)} | found
