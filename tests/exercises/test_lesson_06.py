"""Right and wrong answers to the exercises of lesson 06, as a learner may write them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.metrics import pairwise_distances, silhouette_samples
from torch.distributions import Normal, kl_divergence

import vaelab
from vaelab.teaching.exercises import SEED

from .answers import fail_by_name, pass_all

SEEDS = [SEED, 1, 2, 3]
OTHER = None  # a mistake without a hint of its own


# ------------------------------------------------------------------------------ 06.1: markers


def fate_by_sets(seen, of_type, kept, min_cells=3):
    everywhere = {g for g in range(seen.shape[1]) if all(seen[of_type, g])}
    markers = {g for g in everywhere if np.mean(seen[~of_type, g]) <= 0.02}
    rare = {g for g in markers if np.count_nonzero(seen[:, g]) < min_cells}
    left = markers & {*np.flatnonzero(kept)}
    return len(rare), len(markers - rare - left), len(left)


def fate_by_loop(seen, of_type, kept, min_cells):
    numbers = [0, 0, 0]
    for column, chosen in zip(seen.T, kept, strict=True):
        if column[of_type].min() and column[~of_type].sum() / (~of_type).sum() <= 0.02:
            numbers[0 if column.sum() < min_cells else 2 if chosen else 1] += 1
    return numbers


def fate_in_torch(seen, of_type, kept, min_cells):
    seen, of_type, kept = map(torch.as_tensor, (seen, of_type, kept))
    marker = (seen[of_type].float().mean(0) == 1) & (seen[~of_type].float().mean(0) <= 0.02)
    rare = seen.sum(0) < min_cells
    return tuple((marker & m).sum() for m in (rare, ~rare & ~kept, ~rare & kept))


def fate_by_table(seen, of_type, kept, min_cells):
    genes = pd.DataFrame({"in": seen[of_type].mean(0), "out": seen[~of_type].mean(0),
                          "n": seen.sum(0), "kept": kept})  # fmt: skip
    genes = genes[(genes["in"] == 1) & (genes["out"] <= 0.02)]
    passed = genes[genes["n"] >= min_cells]
    return np.array([len(genes) - len(passed), (~passed["kept"]).sum(), passed["kept"].sum()])


def fate_as_floats(*inputs):
    return tuple(np.float32(n) for n in fate_by_sets(*inputs))


def fate_wrong(inside=lambda s: s.all(0), others=lambda s, t: s[~t].mean(0) <= 0.02,
               rare=lambda s, t, n: s.sum(0) < n, dull=lambda r, k: ~r & ~k):  # fmt: skip
    def answer(seen, of_type, kept, min_cells):
        marker = inside(seen[of_type]) & others(seen, of_type)
        is_rare = rare(seen, of_type, min_cells)
        parts = (is_rare, dull(is_rare, kept), kept)
        return tuple((marker & part).sum() for part in parts)

    return answer


# ------------------------------------------------------------------------- 06.2: the decoder


def decode(scores, library, theta, dim=-1):
    mean = library.unsqueeze(1) * torch.softmax(scores, dim)
    return mean, mean + mean**2 / theta


def decode_by_exp(scores, library, theta):
    e = torch.exp(scores)
    mu = e / e.sum(dim=1, keepdim=True) * library.reshape(-1, 1)
    return [mu, mu * (1 + mu / theta)]


def decode_by_logs(scores, library, theta):
    mu = (scores.log_softmax(1) + library.log()[:, None]).exp()
    return mu, torch.addcdiv(mu, mu.square(), theta)


def decode_by_package(scores, library, theta):
    mu = (library * scores.softmax(1).T).T
    nb = vaelab.distributions.NegativeBinomial(mu, theta)
    return nb.mean, nb.variance


def decode_by_torch(scores, library, theta):
    mu = torch.einsum("n,ng->ng", library, scores.softmax(1))
    nb = torch.distributions.NegativeBinomial(theta, mu / (mu + theta))
    return nb.mean, nb.variance


def decode_cell_by_cell(scores, library, theta):
    mean = torch.stack([n * torch.softmax(f, 0) for f, n in zip(scores, library, strict=True)])
    return mean, mean * (mean + theta) / theta


# ------------------------------------------------------------------------- 06.3: silhouettes


def silhouette(points, labels, distance=cdist, a_of=None, alone=0.0, b_of=min):
    d, s = distance(points, points), []
    for i, label in enumerate(labels):
        same = labels == label
        if same.sum() == 1:
            s.append(alone)
            continue
        a = a_of(d[i, same]) if a_of else d[i, same].sum() / (same.sum() - 1)
        b = b_of([d[i, labels == t].mean() for t in set(labels) - {label}])
        s.append((b - a) / max(a, b))
    return s


def silhouette_without_the_cell(points, labels):
    d = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    s = np.zeros(len(points))
    for i in range(len(points)):
        own = labels == labels[i]
        own[i] = False
        if own.any():
            a = d[i][own].mean()
            b = np.min([d[i][labels == t].mean() for t in np.unique(labels) if t != labels[i]])
            s[i] = (b - a) / np.maximum(a, b)
    return s


def silhouette_in_torch(points, labels):
    points = torch.as_tensor(points)
    return torch.tensor(silhouette(points, labels, lambda x, y: torch.cdist(x, y).numpy()))


def silhouette_in_single(points, labels):
    return np.array(silhouette(points.astype(np.float32), labels), dtype=np.float32)


# -------------------------------------------------------------------------- 06.4: dimensions


def each_kl(m, s):
    return 0.5 * (m**2 + s**2 - 1) - torch.log(s)


def dimensions_by_torch(mean, std):
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return mean.var(dim=0), kl_divergence(Normal(mean, std), prior).mean(dim=0)


def dimensions_by_numpy(mean, std):
    m, s = mean.numpy(), std.numpy()
    return np.cov(m.T).diagonal(), np.mean((m * m + s * s - 1) / 2 - np.log(s), axis=0)


def dimensions_by_hand(mean, std):
    centred = mean - mean.mean(0)
    kl = (mean**2 + std**2 - 1 - torch.log(std**2)).sum(0) / (2 * len(mean))
    return (centred**2).sum(0) / (len(mean) - 1), kl


def dimensions_one_by_one(mean, std):
    pairs = zip(mean.T, std.T, strict=True)
    return [[m.std() ** 2, each_kl(m, s).mean()] for m, s in pairs]


def dimensions_by_table(mean, std):
    return pd.DataFrame(mean.numpy()).var().to_numpy(), each_kl(mean, std).mean(0).tolist()


# ------------------------------------------------------------------- 06.5: genes never seen


def log_fold(counts, island, log=np.log2, extra=1):
    inside = counts[island].sum(axis=0) / counts[island].sum() * 10_000
    outside = counts[~island].sum(axis=0) / counts[~island].sum() * 10_000
    with np.errstate(all="ignore"):
        return log((inside + extra) / (outside + extra))


def log_fold_by_difference(counts, island):
    def level(part):
        total = part.sum(0)
        return np.log1p(1e4 * total / total.sum()) / np.log(2)

    return level(counts[island]) - level(counts[~island])


def log_fold_in_torch(counts, island):
    counts, island = torch.as_tensor(counts), torch.as_tensor(island)
    levels = [1e4 * part.sum(0) / part.sum() + 1 for part in (counts[island], counts[~island])]
    return torch.log2(levels[0] / levels[1])


def log_fold_by_table(counts, island):
    table = pd.DataFrame(counts).groupby(island).sum()
    level = table.div(table.sum(axis=1), axis=0) * 1e4 + 1
    return np.log2(level.loc[True] / level.loc[False])


def log_fold_gene_by_gene(counts, island):
    n, m = counts[island].sum(), counts[np.logical_not(island)].sum()
    return [
        float(np.log2((1e4 * g[island].sum() / n + 1) / (1e4 * g[~island].sum() / m + 1)))
        for g in counts.T
    ]


def log_fold_in_single(counts, island):
    return log_fold(counts.astype(np.float32), island).astype(np.float32)


RIGHT = {
    "06.1": [fate_by_sets, fate_by_loop, fate_in_torch, fate_by_table, fate_as_floats],
    "06.2": [decode, decode_by_exp, decode_by_logs, decode_by_package, decode_by_torch,
             decode_cell_by_cell],
    "06.3": [silhouette, silhouette_without_the_cell, silhouette_in_torch, silhouette_in_single,
             silhouette_samples, lambda p, t: silhouette(p, t, pairwise_distances)],
    "06.4": [dimensions_by_torch, dimensions_by_numpy, dimensions_by_hand, dimensions_by_table,
             lambda m, s: (torch.var(m, 0), torch.mean(each_kl(m, s), 0)),
             lambda m, s: torch.tensor(dimensions_one_by_one(m, s)).T.unbind()],
    "06.5": [log_fold, log_fold_by_difference, log_fold_in_torch, log_fold_by_table,
             log_fold_gene_by_gene, log_fold_in_single],
}  # fmt: skip

WRONG = {
    "06.1": [
        (fate_wrong(inside=lambda s: s.any(0)), "any cell of the type is enough"),
        (fate_wrong(others=lambda s, t: s.mean(0) <= 0.02), "2 % of all cells"),
        (fate_wrong(others=lambda s, t: s.sum(0) - s[t].sum(0) <= 0.02 * len(s)), OTHER),
        (fate_wrong(rare=lambda s, t, n: s[t].sum(0) < n), "rare within the type"),
        (fate_wrong(rare=lambda s, t, n: s.sum(0) <= n), "min_cells itself is too few"),
        (fate_wrong(dull=lambda r, k: ~k), "rare genes counted twice"),
        (fate_wrong(inside=lambda s: s.mean(0) >= 0.9), "nearly every cell is enough"),
        (fate_wrong(inside=lambda s: s.mean(0) >= 0.95), "nearly every cell is enough"),
        (fate_wrong(others=lambda s, t: s[~t].mean(0) < 0.02), "2 % itself is too many"),
        (fate_wrong(others=lambda s, t: s[~t].mean(0) <= 0.05), "another share than 2 %"),
        (fate_wrong(rare=lambda s, t, n: s[~t].sum(0) < n), "rare among the others"),
        (fate_wrong(rare=lambda s, t, n: s.sum(0) < 3), "min_cells is always 3"),
        (fate_wrong(others=lambda s, t: s[~t].mean(0) < 0.5), OTHER),
        (fate_wrong(others=lambda s, t: s[~t].sum(0) <= 2), OTHER),
        (lambda *c: fate_by_sets(*c)[::-1], OTHER),
        (lambda *c: sum(fate_by_sets(*c)), OTHER),
    ],
    "06.2": [
        (lambda f, n, t: decode(f, n, t, dim=0), "shares over cells"),
        (lambda f, n, t: (m := n[:, None] * f.exp() / f.exp().sum(), m + m**2 / t),
         "shares over the whole table"),
        (lambda f, n, t: (m := n[:, None] * f.sigmoid(), m + m**2 / t), "each share by itself"),
        (lambda f, n, t: decode(f, n / n, t), "no library size"),
        (lambda f, n, t: (m := n[:, None] * f.exp(), m + m**2 / t), "not normalised"),
        (lambda f, n, t: decode(f, n, 1 / t), "θ upside down"),
        (lambda f, n, t: 2 * decode(f, n, t)[:1], "a Poisson's variance"),
        (lambda f, n, t: (decode(f, n, t)[0], decode(f, n, t)[1].sqrt()), OTHER),
        (lambda f, n, t: decode(f, n, t)[::-1], OTHER),
        (lambda f, n, t: decode(f, n, t)[0], OTHER),
        (lambda f, n, t: tuple(v.numpy() for v in decode(f, n, t)), OTHER),
        (lambda f, n, t: (n[:, None] * softmax(f.numpy()), f), OTHER),
    ],
    "06.3": [
        (lambda p, t: silhouette(p, t, a_of=np.mean), "a counts the cell itself"),
        (lambda p, t: silhouette(p, t, alone=np.nan), "one cell alone is undefined"),
        (lambda p, t: silhouette(p, t, alone=1.0), "one cell alone scores 1"),
        (lambda p, t: silhouette(p, t, a_of=lambda d: d[d > 0].mean()),
         "cells at one place left out"),
        (lambda p, t: silhouette(p, t, b_of=np.mean), "b over all other cells"),
        (lambda p, t: np.mean(silhouette(p, t)), "the average in place of each cell"),
        (lambda p, t: silhouette(p, t, lambda x, y: cdist(x, y, "sqeuclidean")), OTHER),
        (lambda p, t: -np.array(silhouette(p, t)), OTHER),
        (lambda p, t: silhouette(p, t, a_of=lambda d: np.sort(d)[1]), OTHER),
    ],
    "06.4": [
        (lambda m, s: (m.var(1), each_kl(m, s).mean(1)), "one value per cell"),
        (lambda m, s: (m.var(0) + (s**2).mean(0), each_kl(m, s).mean(0)), "the variance of draws"),
        (lambda m, s: ((m**2).sum(0) / (len(m) - 1), each_kl(m, s).mean(0)), "not centred"),
        (lambda m, s: (m.var(0, correction=0), each_kl(m, s).mean(0)), "divided by n"),
        (lambda m, s: (m.var(0), each_kl(m, s).sum(0)), "KL summed over cells"),
        (lambda m, s: (m.var(0), (0.5 * (m**2 + s**2 - 1 - s.log())).mean(0)),
         "half of the logarithm"),
        (lambda m, s: (m.std(0), each_kl(m, s).mean(0)), OTHER),
        (lambda m, s: (m.var(0), each_kl(m, s.exp()).mean(0)), OTHER),
        (lambda m, s: (each_kl(m, s).mean(0), m.var(0)), OTHER),
        (lambda m, s: (m.var(0), each_kl(m, s).mean()), OTHER),
    ],
    "06.5": [
        (lambda c, i: np.log2((c[i].mean(0) + 1) / (c[~i].mean(0) + 1)), "depth ignored"),
        (lambda c, i: log_fold(c, ~i), "the other way round"),
        (lambda c, i: log_fold(c, i, log=np.log), "natural logarithm"),
        (lambda c, i: log_fold(c, i, extra=0), "nothing added"),
        (lambda c, i: np.log2((1e4 * (c / c.sum(1, keepdims=True))[i].mean(0) + 1)
                              / (1e4 * (c / c.sum(1, keepdims=True))[~i].mean(0) + 1)),
         "averaged over cells"),
        (lambda c, i: np.log2((1e4 * c[i].sum(0) / c[i].sum() + 1)
                              / (1e4 * c.sum(0) / c.sum() + 1)), "the others are all cells"),
        (lambda c, i: (a := np.log2(1e4 * c / c.sum(1, keepdims=True) + 1))[i].mean(0)
         - a[~i].mean(0), "averages of logarithms"),
        (lambda c, i: np.log2((1e4 * c[i].sum(0) / c.sum() + 1)
                              / (1e4 * c[~i].sum(0) / c.sum() + 1)), "one total for both"),
        (lambda c, i: log_fold(c, i, extra=1e-2), "per million"),
        (lambda c, i: log_fold(c, i, extra=1e-9), "almost nothing added"),
        (lambda c, i: log_fold(c, i, log=np.log10), OTHER),
        (lambda c, i: log_fold(c, i, log=lambda r: r), OTHER),
        (lambda c, i: log_fold(c[:, ::-1], i), OTHER),
        (lambda c, i: log_fold(c, i, extra=1e-4), OTHER),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    pass_all(name, RIGHT[name], SEEDS)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_fail_by_name(name):
    fail_by_name(name, WRONG[name], SEEDS)
