"""Exercises of lesson 06: who is who in the pancreas."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 06.1: silhouettes


def draw_clusters(rng: np.random.Generator) -> list[dict]:
    """Points on a line, then in ten dimensions, where one type has a single cell."""
    simple = {
        "points": np.array([[0.0], [1.0], [5.0], [6.0]]),
        "labels": np.array(["alpha", "alpha", "beta", "beta"]),
    }
    labels = np.array(["alpha"] * 7 + ["beta"] * 12 + ["delta"] * 4 + ["schwann"])
    centres = {name: 2 * rng.standard_normal(10) for name in ("alpha", "beta", "delta", "schwann")}
    points = np.array([centres[name] for name in labels]) + rng.standard_normal((len(labels), 10))
    order = rng.permutation(len(labels))
    return [simple, {"points": points[order], "labels": labels[order]}]


def silhouettes(points, labels):
    from sklearn.metrics import silhouette_samples

    return silhouette_samples(points, labels)


def by_definition(points, labels, own=-1, alone=0.0, others=np.min):
    """Cell by cell: ``own`` is added to the size of the type, ``alone`` scores a single cell."""
    s = np.zeros(len(points))
    for i, label in enumerate(labels):
        distance = np.sqrt(((points - points[i]) ** 2).sum(1))
        size = int((labels == label).sum())
        a = distance[labels == label].sum() / max(size + own, 1)
        b = others([distance[labels == t].mean() for t in np.unique(labels) if t != label])
        s[i] = (b - a) / max(a, b) if size > 1 else alone
    return s


# 06.2: the adjusted Rand index


def draw_two_groupings(rng: np.random.Generator) -> list[dict]:
    """Four cells, then groupings that agree in part, only by chance, and under other names."""
    cases = [{"truth": np.array([0, 0, 1, 1]), "found": np.array([0, 0, 1, 2])}]
    truth = rng.integers(4, size=120)
    found = np.where(rng.random(120) < 0.7, truth, rng.integers(6, size=120))
    cases.append({"truth": truth, "found": found})
    cases.append({"truth": truth, "found": rng.integers(5, size=120)})
    return [*cases, {"truth": truth, "found": (truth + 1) % 4}]


def adjusted_rand(truth, found):
    from sklearn.metrics import adjusted_rand_score

    return np.asarray(adjusted_rand_score(truth, found))


def rand(truth, found):
    from sklearn.metrics import rand_score

    return np.asarray(rand_score(truth, found))


def rand_with_itself(truth, found):
    """The Rand index over all (i, j), each cell paired with itself too."""
    return np.asarray(((truth[:, None] == truth) == (found[:, None] == found)).mean())


def pairs_together(truth, found):
    """The share of the pairs that are together in the truth and are together in the clusters."""
    same = truth[:, None] == truth
    np.fill_diagonal(same, False)
    return np.asarray((same & (found[:, None] == found)).sum() / max(same.sum(), 1))


# 06.3: units of a density


def draw_units(rng: np.random.Generator) -> list[dict]:
    cases = [{"log_density": -3.0, "n_genes": 1, "factor": 2.0}]
    for _ in range(20):
        cases.append(
            {
                "log_density": float(rng.normal(0, 1000)),
                "n_genes": int(rng.integers(1, 3000)),
                "factor": float(10 ** rng.uniform(-3, 3)),
            }
        )
    return cases


def in_other_units(log_density, n_genes, factor):
    """By the definition of a density: boxes around x and factor · x have the same probability."""
    from mpmath import mp, mpf

    with mp.workdps(50):
        side = mpf(10) ** -6
        log_mass = mpf(log_density) + n_genes * mp.log(side)
        return np.asarray(float(log_mass - n_genes * mp.log(side * mpf(factor))))


# 06.4: activity


def draw_latent(rng: np.random.Generator) -> list[dict]:
    """Posterior means, cells × dimensions, not centred, some dimensions nearly constant."""
    cases = [{"latent": np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.5]])}]
    scale = np.array([1.0, 0.5, 0.02, 1.4])
    for dtype in (np.float64, np.float32):
        latent = rng.normal(0, 1.0, (150, 4)) * scale + rng.normal(0, 1, 4)
        cases.append({"latent": latent.astype(dtype)})
    return cases


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="06.1",
            title="Fix a silhouette",
            points=3,
            draw=draw_clusters,
            oracle=silhouettes,
            call="arrays",
            verified="Agrees with scikit-learn on 24 cells in ten dimensions, one of them the only "
            "cell of its type.",
            misconceptions=(
                Misconception(
                    "a counts the cell itself",
                    lambda points, labels: by_definition(points, labels, own=0),
                    "a is the mean distance to the *other* cells of the type. How many are there?",
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
                    "b over all other cells",
                    lambda points, labels: by_definition(points, labels, others=np.mean),
                    "b looks at the *nearest* other type only.",
                ),
                Misconception(
                    "the average in place of each cell",
                    lambda points, labels: np.asarray(silhouettes(points, labels).mean()),
                    "This is the ASW, the average. Here each cell's own silhouette is asked for.",
                ),
            ),
        ),
        Exercise(
            name="06.2",
            title="The adjusted Rand index, from pairs",
            points=3,
            draw=draw_two_groupings,
            oracle=adjusted_rand,
            call="arrays",
            verified="Agrees with scikit-learn on four pairs of groupings.",
            misconceptions=(
                Misconception(
                    "not adjusted for chance",
                    rand,
                    "This is the Rand index itself. Two random groupings have a large one: "
                    "subtract what chance gives, and scale so that the same grouping has 1.",
                ),
                Misconception(
                    "not adjusted for chance, cells paired with themselves",
                    rand_with_itself,
                    "This is the Rand index itself, and it also pairs each cell with itself: leave "
                    "the diagonal out. Then subtract what chance gives, and scale so that the same "
                    "grouping has 1.",
                ),
                Misconception(
                    "names compared",
                    lambda truth, found: np.asarray((truth == found).mean()),
                    "The number of a cluster has no meaning. Compare pairs of cells: are they "
                    "together, or apart?",
                ),
                Misconception(
                    "only pairs that belong together",
                    pairs_together,
                    "Putting all cells into one cluster would score 1 here. Pairs that are apart "
                    "count too.",
                ),
            ),
        ),
        Exercise(
            name="06.3",
            title="A density in other units",
            points=2,
            draw=draw_units,
            oracle=in_other_units,
            rtol=1e-9,
            verified="Agrees with the probability of a small box, at 21 settings.",
            misconceptions=(
                Misconception(
                    "the wrong direction",
                    lambda log_density, n_genes, factor: np.asarray(
                        log_density + n_genes * np.log(factor)
                    ),
                    "Larger numbers mean a smaller unit, and less probability per unit. Which sign "
                    "follows?",
                ),
                Misconception(
                    "one gene",
                    lambda log_density, n_genes, factor: np.asarray(log_density - np.log(factor)),
                    "A cell has one value per gene, and each of them is rescaled.",
                ),
                Misconception(
                    "logarithm to base 10",
                    lambda log_density, n_genes, factor: np.asarray(
                        log_density - n_genes * np.log10(factor)
                    ),
                    "Nats are natural logarithms.",
                ),
                Misconception(
                    "the same in all units",
                    lambda log_density, n_genes, factor: np.asarray(log_density),
                    "A probability would stay the same. This is a density: a probability *per "
                    "unit* of x.",
                ),
            ),
        ),
        Exercise(
            name="06.4",
            title="Activity",
            points=1,
            draw=draw_latent,
            oracle=lambda latent: np.cov(latent.astype(float), rowvar=False).diagonal(),
            call="arrays",
            verified="Agrees with the diagonal of numpy's covariance, in float32 and float64.",
            misconceptions=(
                Misconception(
                    "over dimensions in place of cells",
                    lambda latent: latent.var(1, ddof=1),
                    "This is one variance per cell. Activity is one variance per latent dimension: "
                    "over which axis is it taken?",
                ),
                Misconception(
                    "not centred",
                    lambda latent: (latent**2).sum(0) / (len(latent) - 1),
                    "A dimension that is 3 for every cell says nothing about the cells, but here "
                    "it is active. Around which value is a variance taken?",
                ),
                Misconception(
                    "standard deviation for variance",
                    lambda latent: latent.std(0, ddof=1),
                    "This is the standard deviation; the threshold of 0.01 is for variances.",
                ),
                Misconception(
                    "divided by n",
                    lambda latent: latent.var(0),
                    "Close. The covariance of this lesson has another divisor: which one?",
                ),
            ),
        ),
    )
}
