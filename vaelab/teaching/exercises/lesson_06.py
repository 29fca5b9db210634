"""Exercises of lesson 06: who is who in the pancreas."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 06.1: what became of a type's marker genes


def draw_markers(rng: np.random.Generator) -> list[dict]:
    """Three genes by hand; then types of 2 to 25 cells, where many genes mark the type."""
    simple = {
        "seen": np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=bool),
        "of_type": np.array([1, 1, 0, 0, 0], dtype=bool),
        "kept": np.array([0, 1, 0], dtype=bool),
        "min_cells": 3,
    }
    cases = [simple]
    # Of 150 others, 3 cells are exactly 2 %; of 25 cells of a type, 24 are more than 95 %.
    for n_type, n_cells in ((2, 200), (3, 200), (6, 200), (25, 175)):
        n_genes = 160
        of_type = np.zeros(n_cells, dtype=bool)
        of_type[rng.choice(n_cells, n_type, replace=False)] = True
        seen = rng.random((n_cells, n_genes)) < 0.3
        # In 0 to 6 other cells. Of 200 cells, 2 % of the others are 3 cells, and 2 % of all are 4.
        for gene in range(120):
            seen[:, gene] = of_type
            seen[rng.choice(np.flatnonzero(~of_type), gene % 7, replace=False), gene] = True
        partly = rng.choice(120, 25, replace=False)
        seen[np.flatnonzero(of_type)[0], partly] = False
        order = rng.permutation(n_genes)
        cases.append(
            {
                "seen": seen[:, order],
                "of_type": of_type,
                # A gene in fewer than three cells is never kept.
                "kept": (rng.random(n_genes) < 0.4) & (seen[:, order].sum(0) >= 4),
                "min_cells": 4,
            }
        )
    return cases


def fate(
    seen, of_type, kept, min_cells,
    every=1.0, others=True, limit=1 / 50, at_limit=True, rare="all", sharp=True, once=True,
):  # fmt: skip
    """Gene by gene, with whole numbers; the arguments after ``min_cells`` make known mistakes."""
    n_type = int(of_type.sum())
    n_other = len(of_type) - (n_type if others else 0)
    too_rare = not_variable = left = 0
    for gene in range(seen.shape[1]):
        inside = sum(bool(s) for s in seen[of_type, gene])
        total = sum(bool(s) for s in seen[:, gene])
        outside = total - (inside if others else 0)
        most = round(limit * n_other, 9)
        if inside < every * n_type or (outside > most if at_limit else outside >= most):
            continue
        n = {"all": total, "type": inside, "others": total - inside}[rare]
        is_rare = n < min_cells if sharp else n <= min_cells
        too_rare += is_rare
        not_variable += not kept[gene] and not (once and is_rare)
        left += bool(kept[gene])
    return tuple(np.asarray(n) for n in (too_rare, not_variable, left))


# 06.2: from z to counts


def draw_decoded(rng: np.random.Generator) -> list[dict]:
    """One cell with two genes; then cells that differ in depth, in double and single precision."""
    cases = [
        {
            "scores": np.array([[0.0, 0.0]]),
            "library": np.array([10.0]),
            "theta": np.array([1.0, 5.0]),
        }
    ]
    for dtype in (np.float64, np.float32):
        cases.append(
            {
                "scores": rng.normal(0, 1.5, (6, 9)).astype(dtype),
                "library": np.exp(rng.normal(7, 1, 6)).astype(dtype),
                "theta": np.exp(rng.normal(0, 1, 9)).astype(dtype),
            }
        )
    return cases


def moments(scores, library, theta):
    """Mean and variance by scipy's negative binomial, of a share that is a ratio of powers."""
    from scipy import special, stats

    scores, library, theta = (np.asarray(v, float) for v in (scores, library, theta))
    share = np.exp(scores - special.logsumexp(scores, axis=1)[:, None])
    mean = library[:, None] * share
    return mean, stats.nbinom(theta, theta / (theta + mean)).var()


def wrong_moments(share=lambda f: np.exp(f) / np.exp(f).sum(1, keepdims=True), deep=True,
                  variance=lambda m, t: m + m**2 / t):  # fmt: skip
    def answer(scores, library, theta):
        mean = share(scores.astype(float)) * (library[:, None] if deep else 1)
        return mean, variance(mean, theta)

    return answer


# 06.3: silhouettes


def draw_clusters(rng: np.random.Generator) -> list[dict]:
    """Points on a line, two of them at one place; then ten dimensions, and a type with one cell."""
    simple = {
        "points": np.array([[0.0], [1.0], [5.0], [6.0]]),
        "labels": np.array(["alpha", "alpha", "beta", "beta"]),
    }
    twins = {
        "points": np.array([[0.0], [0.0], [3.0], [6.0], [7.0]]),
        "labels": np.array(["alpha", "alpha", "alpha", "beta", "beta"]),
    }
    labels = np.array(["alpha"] * 7 + ["beta"] * 12 + ["delta"] * 4 + ["schwann"])
    centres = {name: 2 * rng.standard_normal(10) for name in ("alpha", "beta", "delta", "schwann")}
    points = np.array([centres[name] for name in labels]) + rng.standard_normal((len(labels), 10))
    order = rng.permutation(len(labels))
    return [simple, twins, {"points": points[order], "labels": labels[order]}]


def silhouettes(points, labels):
    from sklearn.metrics import silhouette_samples

    return silhouette_samples(points, labels)


def by_definition(points, labels, own=-1, alone=0.0, others=np.min, near=True):
    """Cell by cell: ``own`` is added to the size of the type, ``alone`` scores a single cell."""
    s = np.zeros(len(points))
    for i, label in enumerate(labels):
        distance = np.sqrt(((points - points[i]) ** 2).sum(1))
        size = int((labels == label).sum())
        if near:
            a = distance[labels == label].sum() / max(size + own, 1)
        else:  # all cells at distance 0 are taken for the cell itself
            apart = distance[(labels == label) & (distance > 0)]
            a = apart.mean() if len(apart) else 0.0
        b = others([distance[labels == t].mean() for t in np.unique(labels) if t != label])
        s[i] = (b - a) / max(a, b) if size > 1 else alone
    return s


# 06.4: what a dimension holds, and what it costs


def draw_posterior(rng: np.random.Generator) -> list[dict]:
    """q(z | x) of cells; the third dimension has nearly collapsed."""
    cases = [
        {
            "mean": np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.5]]),
            "std": np.array([[1.0, 0.5], [1.0, 0.5], [1.0, 0.5]]),
        }
    ]
    for dtype in (np.float64, np.float32):
        mean = rng.normal(0, 1, (150, 4)) * [1.0, 0.5, 0.02, 1.4] + [0.3, -0.8, 0, 0.5]
        std = np.exp(rng.normal(0, 0.2, (150, 4))) * [0.2, 0.5, 0.97, 0.05]
        cases.append({"mean": mean.astype(dtype), "std": std.astype(dtype)})
    return cases


def held_and_paid(mean, std):
    """The covariance's diagonal; E_q[log q − log p] by quadrature, exact for a quadratic."""
    from scipy import stats

    mean, std = mean.astype(float), std.astype(float)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    z = mean + std * nodes[:, None, None]  # (nodes, n_cells, n_latent)
    log_ratio = stats.norm(mean, std).logpdf(z) - stats.norm.logpdf(z)
    kl = np.tensordot(weights / weights.sum(), log_ratio, 1)
    return np.cov(mean, rowvar=False).diagonal(), kl.mean(0)


def each_kl(mean, std):
    return 0.5 * (mean**2 + std**2 - 1) - np.log(std)


# 06.5: genes that differ between an island and the other cells


def draw_island(rng: np.random.Generator) -> list[dict]:
    """Two genes in three cells; then an island of deeper cells that has lost some genes."""
    cases = [
        {
            "counts": np.array([[30.0, 70.0], [60.0, 40.0], [10.0, 90.0]]),
            "island": np.array([True, False, False]),
        }
    ]
    n_cells, n_genes = 60, 12
    island = rng.random(n_cells) < 0.3
    island[:4] = [True, True, False, False]
    library = np.where(island, 4000, 1500) * np.exp(rng.normal(0, 0.5, n_cells))
    share = np.tile(rng.dirichlet(np.full(n_genes, 0.7)), (n_cells, 1))
    share[np.ix_(island, np.arange(3))] *= [0.0, 0.05, 4.0]
    counts = rng.poisson(library[:, None] * share / share.sum(1, keepdims=True)).astype(float)
    return [*cases, {"counts": counts, "island": island}]


def log_folds(counts, island):
    """Gene by gene, in whole numbers until the ratio."""
    from math import log2

    found = []
    inside, outside = (int(counts[m].sum()) for m in (island, ~island))
    for gene in counts.T:
        a, b = int(gene[island].sum()), int(gene[~island].sum())
        found.append(log2((10_000 * a + inside) * outside / ((10_000 * b + outside) * inside)))
    return np.array(found)


def folds(counts, island, log=np.log2, extra=1.0, per=1e4, scaled=True, pooled=True, rest=True):
    """The same with known mistakes."""

    def level(cells):
        if not scaled:
            return cells.mean(0)
        if not pooled:
            return (per * cells / cells.sum(1, keepdims=True)).mean(0)
        return per * cells.sum(0) / cells.sum()

    with np.errstate(all="ignore"):
        others = counts[~island] if rest else counts
        return log((level(counts[island]) + extra) / (level(others) + extra))


def mean_log(cells):
    return np.log2(1e4 * cells / cells.sum(1, keepdims=True) + 1).mean(0)


def share_of_all(counts, cells):
    return np.log2(1e4 * counts[cells].sum(0) / counts.sum() + 1)


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="06.1",
            title="Which step lost the B cells?",
            points=3,
            draw=draw_markers,
            oracle=fate,
            call="arrays",
            results=("number too rare", "number not variable enough", "number kept"),
            verified="Agrees with a count gene by gene for types of 2, 3, 6 and 25 cells.",
            misconceptions=(
                Misconception(
                    "any cell of the type is enough",
                    lambda **case: fate(**case, every=1e-9),
                    "A gene that only some cells of the type have is counted too. In how many of "
                    "them must a marker be seen?",
                ),
                Misconception(
                    "nearly every cell is enough",
                    lambda **case: fate(**case, every=0.9),
                    "A gene that one cell of a large type lacks is counted too. In how many of "
                    "the type's cells must a marker be seen?",
                ),
                Misconception(
                    "2 % of all cells",
                    lambda **case: fate(**case, others=False),
                    "Is the 2 % a share of all cells? The type's own cells have the gene anyway, "
                    "so only the other cells count.",
                ),
                Misconception(
                    "2 % itself is too many",
                    lambda **case: fate(**case, at_limit=False),
                    "A gene in exactly 2 % of the other cells is a marker too: *at most* 2 %.",
                ),
                Misconception(
                    "another share than 2 %",
                    lambda **case: fate(**case, limit=1 / 20),
                    "Genes are counted that too many of the other cells have. What share of them "
                    "may have a marker?",
                ),
                Misconception(
                    "rare within the type",
                    lambda **case: fate(**case, rare="type"),
                    "The filter does not know the types. In which cells does it look for a gene?",
                ),
                Misconception(
                    "rare among the others",
                    lambda **case: fate(**case, rare="others"),
                    "The filter does not know the types. Here it looks for a gene in the other "
                    "cells only.",
                ),
                Misconception(
                    "min_cells is always 3",
                    lambda **case: fate(**{**case, "min_cells": 3}),
                    "The number of cells is an argument, `min_cells`. Here the answer does not "
                    "change with it.",
                ),
                Misconception(
                    "min_cells itself is too few",
                    lambda **case: fate(**case, sharp=False),
                    "A gene that is seen in exactly min_cells cells passes the first filter.",
                ),
                Misconception(
                    "rare genes counted twice",
                    lambda **case: fate(**case, once=False),
                    "The three numbers must add up to the number of markers. A gene that the "
                    "first filter removed never reaches the second.",
                ),
            ),
        ),
        Exercise(
            name="06.2",
            title="From z to counts",
            points=2,
            draw=draw_decoded,
            oracle=moments,
            returns="tensor",
            results=("mean", "variance"),
            verified="Agrees with scipy's negative binomial for 7 cells, in float32 and float64.",
            misconceptions=(
                Misconception(
                    "shares over cells",
                    wrong_moments(share=lambda f: np.exp(f) / np.exp(f).sum(0)),
                    "Here the shares of a gene add up to 1 over the cells. Over what must they?",
                ),
                Misconception(
                    "shares over the whole table",
                    wrong_moments(share=lambda f: np.exp(f) / np.exp(f).sum()),
                    "Here the shares of all cells together add up to 1. Over what must they?",
                ),
                Misconception(
                    "each share by itself",
                    wrong_moments(share=lambda f: 1 / (1 + np.exp(-f))),
                    "A sigmoid looks at one number at a time, and its results do not add up to 1. "
                    "A share depends on all genes of the cell.",
                ),
                Misconception(
                    "no library size",
                    wrong_moments(deep=False),
                    "This mean adds up to 1 in each cell. A cell has ℓ counts.",
                ),
                Misconception(
                    "not normalised",
                    wrong_moments(share=np.exp),
                    "These means add up to more than ℓ, or to less. What makes the network's "
                    "numbers into shares?",
                ),
                Misconception(
                    "θ upside down",
                    wrong_moments(variance=lambda m, t: m + t * m**2),
                    "θ is the *inverse* dispersion: a large θ means a variance close to a "
                    "Poisson's.",
                ),
                Misconception(
                    "a Poisson's variance",
                    wrong_moments(variance=lambda m, t: m),
                    "This is the variance of a Poisson. What does a negative binomial add?",
                ),
            ),
        ),
        Exercise(
            name="06.3",
            title="Fix a silhouette",
            points=3,
            draw=draw_clusters,
            oracle=silhouettes,
            call="arrays",
            verified="Agrees with scikit-learn on 24 cells in ten dimensions, one of them the only "
            "cell of its type, and on cells at one place.",
            misconceptions=(
                Misconception(
                    "a counts the cell itself",
                    lambda points, labels: by_definition(points, labels, own=0),
                    "a is the mean distance to the other cells of the type. How many are there?",
                ),
                Misconception(
                    "one cell alone is undefined",
                    lambda points, labels: by_definition(points, labels, alone=np.nan),
                    "The only cell of a type has no a. What is its silhouette by convention?",
                ),
                Misconception(
                    "one cell alone scores 1",
                    lambda points, labels: by_definition(points, labels, alone=1.0),
                    "With a = 0 the formula gives 1 to the only cell of a type. A clustering that "
                    "is cut into single cells would then score best. What is the convention?",
                ),
                Misconception(
                    "cells at one place left out",
                    lambda points, labels: by_definition(points, labels, near=False),
                    "Another cell can be at distance 0. It is still one of the other cells of the "
                    "type.",
                ),
                Misconception(
                    "b over all other cells",
                    lambda points, labels: by_definition(points, labels, others=np.mean),
                    "b looks at the nearest other type only.",
                ),
                Misconception(
                    "the average in place of each cell",
                    lambda points, labels: np.asarray(silhouettes(points, labels).mean()),
                    "This is the ASW, the average. Here each cell's own silhouette is asked for.",
                ),
            ),
        ),
        Exercise(
            name="06.4",
            title="What a dimension holds, and what it costs",
            points=3,
            draw=draw_posterior,
            oracle=held_and_paid,
            results=("activity", "KL per cell"),
            verified="Agrees with numpy's covariance and with a KL by quadrature, in float32 and "
            "float64.",
            misconceptions=(
                Misconception(
                    "one value per cell",
                    lambda mean, std: (mean.var(1, ddof=1), each_kl(mean, std).mean(1)),
                    "These are values per cell. Both are asked for per latent dimension.",
                ),
                Misconception(
                    "the variance of draws",
                    lambda mean, std: (
                        mean.var(0, ddof=1) + (std**2).mean(0),
                        each_kl(mean, std).mean(0),
                    ),
                    "This is the variance of draws of z. A collapsed dimension would then be "
                    "active: its draws vary as the prior does. What does not vary there?",
                ),
                Misconception(
                    "not centred",
                    lambda mean, std: (
                        (mean**2).sum(0) / (len(mean) - 1),
                        each_kl(mean, std).mean(0),
                    ),
                    "A dimension that is 3 for every cell says nothing about the cells, but here "
                    "it is active. Around which value is a variance taken?",
                ),
                Misconception(
                    "divided by n",
                    lambda mean, std: (mean.var(0), each_kl(mean, std).mean(0)),
                    "Close. This variance is divided by n. By what does the exercise divide it?",
                ),
                Misconception(
                    "KL summed over cells",
                    lambda mean, std: (mean.var(0, ddof=1), each_kl(mean, std).sum(0)),
                    "The KL per cell is asked for: an average over cells, not a sum.",
                ),
                Misconception(
                    "half of the logarithm",
                    lambda mean, std: (
                        mean.var(0, ddof=1),
                        (each_kl(mean, std) + 0.5 * np.log(std)).mean(0),
                    ),
                    "Here ½ multiplies log s too. What does it multiply in the formula?",
                ),
            ),
        ),
        Exercise(
            name="06.5",
            title="Ask the genes that the model never saw",
            points=3,
            draw=draw_island,
            oracle=log_folds,
            call="arrays",
            verified="Agrees with a count gene by gene on 60 cells that differ in depth.",
            misconceptions=(
                Misconception(
                    "depth ignored",
                    lambda **case: folds(**case, scaled=False),
                    "The island's cells are deeper: this compares means of raw counts. Of what "
                    "total is each a part?",
                ),
                Misconception(
                    "the other way round",
                    lambda **case: -folds(**case),
                    "A gene that is missing in the island must come out negative.",
                ),
                Misconception(
                    "natural logarithm",
                    lambda **case: folds(**case, log=np.log),
                    "A gene that doubles must come out as 1. Which base does this need?",
                ),
                Misconception(
                    "nothing added",
                    lambda **case: folds(**case, extra=0.0),
                    "A gene without any molecule on one side has no logarithm. What is to be "
                    "added, and to which of the two numbers?",
                ),
                Misconception(
                    "averaged over cells",
                    lambda **case: folds(**case, pooled=False),
                    "This takes each cell's share first and averages afterwards, so that shallow "
                    "cells count as much as deep ones. Add up the counts first.",
                ),
                Misconception(
                    "averages of logarithms",
                    lambda counts, island: mean_log(counts[island]) - mean_log(counts[~island]),
                    "This averages the logarithms of single cells. Add up the counts first; the "
                    "logarithm comes last.",
                ),
                Misconception(
                    "the others are all cells",
                    lambda **case: folds(**case, rest=False),
                    "Here the island's cells are also among those that it is compared with. Who "
                    "are the others?",
                ),
                Misconception(
                    "one total for both",
                    lambda counts, island: (
                        share_of_all(counts, island) - share_of_all(counts, ~island)
                    ),
                    "Both sums are divided by the total of all cells. Of which cells' counts is "
                    "each a part?",
                ),
                Misconception(
                    "per million",
                    lambda **case: folds(**case, per=1e6),
                    "These numbers are per million, so the 1 hardly counts. Per how many counts "
                    "are they asked for?",
                ),
                Misconception(
                    "almost nothing added",
                    lambda **case: folds(**case, extra=1e-9),
                    "What is added is so small that a gene without molecules stands out. How much "
                    "is to be added?",
                ),
            ),
        ),
    )
}
