"""Exercises of lesson 08: a VAE with a Gaussian mixture for a prior."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def log_normal(z, mean, std):
    from scipy import stats

    return stats.norm.logpdf(z, mean, std)


def draw_log_q(rng, n_cells, K):
    """log q(y | x); one cell in four is nearly certain."""
    from scipy import special

    sure = np.where(rng.random((n_cells, 1)) < 0.25, 8.0, 1.0)
    return special.log_softmax(sure * rng.normal(0, 1, (n_cells, K)), axis=-1)


# 08.1: the two KLs


def draw_two_kls(rng: np.random.Generator) -> list[dict]:
    """One cell with two clusters on a line, then thirty cells, five clusters, three dimensions."""
    cases = [
        {
            "log_q": np.log([[0.25, 0.75]]),
            "m": np.array([[[1.0], [0.0]]]),
            "s": np.array([[[0.5], [0.5]]]),
            "log_prior": np.log([0.4, 0.6]),
            "means": np.array([[0.0], [2.0]]),
            "stds": np.array([[1.0], [0.8]]),
        }
    ]
    n, K, d = 30, 5, 3
    for dtype in (np.float64, np.float32):
        case = {
            "log_q": draw_log_q(rng, n, K),
            "m": rng.normal(0, 1.5, (n, K, d)),
            "s": rng.uniform(0.2, 0.9, (n, K, d)),
            "log_prior": np.log(rng.dirichlet(3 * np.ones(K))),
            "means": rng.normal(0, 1.5, (K, d)),
            "stds": rng.uniform(0.4, 1.5, (K, d)),
        }
        cases.append({name: value.astype(dtype) for name, value in case.items()})
    return cases


def kl_of_normals(m, s, mean, std):
    """The KL by quadrature, summed over the last axis."""
    m, s = np.asarray(m, float)[..., None], np.asarray(s, float)[..., None]
    z = m + s * NODES
    ratio = log_normal(z, m, s) - log_normal(z, np.asarray(mean)[..., None], std[..., None])
    return (ratio @ WEIGHTS).sum(-1)


def two_kls(log_q, m, s, log_prior, means, stds, kl=kl_of_normals):
    from scipy import special

    q = np.exp(log_q.astype(float))
    kl_y = special.rel_entr(q, np.exp(log_prior.astype(float))).sum(-1)
    return (q * kl(m, s, means, stds)).sum(-1), kl_y


def with_kl_y(kl_y):
    """The right KL of z, and a wrong one of y: a function of q, log q, log π."""

    def wrong(log_q, m, s, log_prior, means, stds):
        right, _ = two_kls(log_q, m, s, log_prior, means, stds)
        return right, kl_y(np.exp(log_q), log_q, log_prior)

    return wrong


def with_kl_z(kl):
    return lambda *case, **named: two_kls(*case, **named, kl=kl)


def with_a_width_not_squared(m, s, mean, std):
    return (np.log(std / s) + (s**2 + (m - mean) ** 2) / (2 * std) - 0.5).sum(-1)


def evenly(log_q, m, s, log_prior, means, stds):
    """All clusters count equally in the KL of z."""
    _, kl_y = two_kls(log_q, m, s, log_prior, means, stds)
    return kl_of_normals(m, s, means, stds).mean(-1), kl_y


def by_the_prior(log_q, m, s, log_prior, means, stds):
    """Each cluster's KL of z counts by π instead of by q."""
    _, kl_y = two_kls(log_q, m, s, log_prior, means, stds)
    return kl_of_normals(m, s, means, stds) @ np.exp(log_prior), kl_y


def unweighted(log_q, m, s, log_prior, means, stds):
    _, kl_y = two_kls(log_q, m, s, log_prior, means, stds)
    return kl_of_normals(m, s, means, stds).sum(-1), kl_y


# 08.2: the whole bound, on a model small enough for quadrature


def draw_tiny(rng: np.random.Generator) -> list[dict]:
    """One cell, one gene, two clusters; then twenty cells with four genes and three clusters."""
    simple = {
        "x": np.array([[3.0]]),
        "log_q": np.log([[0.3, 0.7]]),
        "m": np.array([[0.5, 1.0]]),
        "s": np.array([[0.5, 0.4]]),
        "log_prior": np.log([0.5, 0.5]),
        "means": np.array([0.0, 1.5]),
        "stds": np.array([0.5, 0.5]),
        "a": np.array([0.5]),
        "b": np.array([1.0]),
    }
    n, K, G = 20, 3, 4
    many = {
        "x": rng.poisson(4, (n, G)).astype(float),
        "log_q": draw_log_q(rng, n, K),
        "m": rng.normal(0, 0.8, (n, K)),
        "s": rng.uniform(0.2, 0.7, (n, K)),
        "log_prior": np.log(rng.dirichlet(3 * np.ones(K))),
        "means": rng.normal(0, 1.0, K),
        "stds": rng.uniform(0.3, 0.7, K),
        "a": rng.normal(1, 0.4, G),
        "b": rng.normal(0, 0.8, G),
    }
    return [simple, many]


def tiny_bound(x, log_q, m, s, log_prior, means, stds, a, b, spread=1.0, twice=False, power=2):
    """y by enumeration, z by quadrature.

    The misconceptions change ``spread`` (the share of q's spread that the decoder sees), ``twice``
    (the KL of y is weighted twice), and ``power`` (of σ in the KL of z).
    """
    from scipy import stats

    total = 0.0
    for k, q in enumerate(np.exp(log_q).T):
        mean, std = m[:, k, None], s[:, k, None]
        z = mean + std * NODES  # (n_cells, nodes)
        rate = np.exp(a + b * (mean + spread * std * NODES)[..., None])  # (n_cells, nodes, genes)
        log_p = stats.poisson.logpmf(x[:, None], rate).sum(-1) @ WEIGHTS
        square = (z - means[k]) ** 2 / 2 / stds[k] ** power
        log_prior_z = -square - np.log(stds[k]) - np.log(2 * np.pi) / 2
        kl_z = (log_normal(z, mean, std) - log_prior_z) @ WEIGHTS
        kl_y = log_q[:, k] - log_prior[k]
        total = total + q * (log_p - kl_z - (q if twice else 1) * kl_y)
    return total


def with_the_log_of_the_mean(**case):
    """x · log E[rate] where the bound has x · E[log rate]."""
    x, s, b = case["x"], case["s"], case["b"]
    spread = (b * s[..., None]) ** 2 / 2  # (n_cells, K, genes)
    return tiny_bound(**case) + (np.exp(case["log_q"]) * (x[:, None] * spread).sum(-1)).sum(-1)


def without_b(**case):
    """E[exp z] in place of E[exp(b z)]."""
    m, s, a, b = (case[name] for name in ("m", "s", "a", "b"))
    rate = np.exp(a + b * m[..., None])  # (n_cells, K, genes)
    more = rate * (np.exp(s[..., None] ** 2 / 2) - np.exp((b * s[..., None]) ** 2 / 2))
    return tiny_bound(**case) - (np.exp(case["log_q"]) * more.sum(-1)).sum(-1)


def without_factorial(**case):
    from scipy import special

    return tiny_bound(**case) + special.gammaln(case["x"] + 1).sum(-1)


def tiny_with(**change):
    return lambda **case: tiny_bound(**case, **change)


# 08.3: where a cluster of the prior should be


def draw_posteriors(rng: np.random.Generator) -> list[dict]:
    """Three cells on a line with two clusters, then eighty in three dimensions with four."""
    simple = {
        "q": np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
        "m": np.array([[[0.0], [0.0]], [[1.0], [2.0]], [[4.0], [4.0]]]),
        "s": np.full((3, 2, 1), 0.5),
    }
    q = np.exp(draw_log_q(rng, 80, 4))
    m = rng.normal(0, 1, (80, 4, 3)) + 2 * rng.normal(0, 1, (4, 3))
    return [simple, {"q": q, "m": m, "s": rng.uniform(0.3, 1.2, m.shape)}]


def moments(q, m, s):
    """Mean and standard deviation of each cluster's mixture of q(z | x, y), from nodes of z."""
    _, K, d = m.shape
    mean, std = np.zeros((2, K, d))
    for k in range(K):
        weights = np.outer(q[:, k], WEIGHTS).ravel()
        for j in range(d):
            z = (m[:, k, j, None] + s[:, k, j, None] * NODES).ravel()
            mean[k, j] = np.average(z, weights=weights)
            std[k, j] = np.sqrt(np.cov(z, aweights=weights, ddof=0))
    return mean, std


def hard_clusters(q, m, s):
    return moments(np.eye(q.shape[1])[q.argmax(1)], m, s)


def widths_added(q, m, s):
    """The mean of the cells' widths, plus the spread of their means."""
    share = q / q.sum(0)
    mean, between = moments(q, m, 1e-9 * s)
    return mean, between + (share[..., None] * s).sum(0)


def divided_by_all_cells(q, m, s):
    """Divided by the number of all cells instead of by that of the cluster."""
    share = q.mean(0)[:, None]
    mean, std = moments(q, m, s)
    return share * mean, np.sqrt(share * (std**2 + mean**2 * (1 - share) ** 2))


# 08.4: what q(y | x) costs, in two parts


def draw_shares(rng: np.random.Generator) -> list[dict]:
    """Two cells of which one is certain, then sixty with six clusters, of which one is not used."""
    cases = [{"q": np.array([[1.0, 0.0], [0.5, 0.5]])}]
    for dtype in (np.float64, np.float32):
        q = rng.dirichlet(0.4 * np.ones(6), 60)
        q[:, 4] = 0
        q[:10] = np.eye(6)[rng.integers(3, size=10)]
        cases.append({"q": (q / q.sum(1, keepdims=True)).astype(dtype)})
    return cases


def information_and_imbalance(q):
    """KL of each cell's q to the mean q, and KL of the mean q to the uniform."""
    from scipy import special

    q = q.astype(float)
    mean = q.mean(0)
    information = special.rel_entr(q, mean).sum(1).mean()
    return np.asarray(information), np.asarray(special.rel_entr(mean, 1 / len(mean)).sum())


def by_log_of_zero(q):
    mean, q = q.mean(0), q.astype(float)
    information = -(mean * np.log(mean)).sum() + (q * np.log(q)).sum(1).mean()
    return np.asarray(information), np.asarray(np.log(len(mean)) + (mean * np.log(mean)).sum())


def shares_changed(change):
    return lambda q: tuple(map(np.asarray, change(*information_and_imbalance(q), q)))


# 08.5: clusters against tubes


def draw_clusterings(rng: np.random.Generator) -> list[dict]:
    """Five cells; then more clusters than tubes, with one tube split in two; then fewer."""
    cases = [{"truth": np.array([0, 0, 0, 1, 1]), "found": np.array([1, 1, 1, 0, 1])}]
    truth = rng.choice(4, size=150, p=[0.55, 0.2, 0.15, 0.1])
    split = np.where(truth == 0, rng.choice([4, 2], size=150), truth)
    noisy = np.where(rng.random(150) < 0.25, rng.integers(5, size=150), split)
    cases.append({"truth": truth, "found": (noisy + 1) % 5})
    cases.append({"truth": noisy, "found": (np.minimum(truth, 2) + 1) % 3})
    return cases


def best_of_all_matchings(truth, found, best=max, counted=True):
    """Every one-to-one matching is tried."""
    size = max(truth.max(), found.max()) + 1
    table = np.zeros((size, size), int)
    np.add.at(table, (truth, found), 1)
    if not counted:
        table = np.minimum(table, 1)
    agree = best(table[order, range(size)].sum() for order in map(list, permutations(range(size))))
    return np.asarray(agree / len(truth))


def majority(truth, found):
    right = sum(np.bincount(truth[found == c]).max() for c in np.unique(found))
    return np.asarray(right / len(truth))


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="08.1",
            title="The two KLs",
            points=3,
            draw=draw_two_kls,
            oracle=two_kls,
            verified="Agree with quadrature over z and with scipy's relative entropy over y, for "
            "61 cells, in float32 and float64.",
            misconceptions=(
                Misconception(
                    "the KL of y weighted twice",
                    with_kl_y(lambda q, log_q, log_prior: (q * q * (log_q - log_prior)).sum(-1)),
                    "Your KL of y is not a KL. How many times do you weight log q_k − log π_k by "
                    "q_k?",
                ),
                Misconception(
                    "the KL of y once for each cluster",
                    with_kl_y(
                        lambda q, log_q, log_prior: q.shape[-1] * (q * (log_q - log_prior)).sum(-1)
                    ),
                    "Your KL of y is too large. It is one number per cell, however many clusters "
                    "there are.",
                ),
                Misconception(
                    "the KLs of z not weighted",
                    unweighted,
                    "You added up the KLs of z over all clusters. How much does a cluster count "
                    "for a cell that is not in it?",
                ),
                Misconception(
                    "against the standard normal",
                    with_kl_z(
                        lambda m, s, mean, std: kl_of_normals(m, s, 0 * mean, std / std),
                    ),
                    "This is the KL to one standard normal prior. Here each cluster has its own "
                    "prior.",
                ),
                Misconception(
                    "the KL of z upside down",
                    with_kl_z(
                        lambda m, s, mean, std: kl_of_normals(
                            np.broadcast_to(mean, m.shape), np.broadcast_to(std, m.shape), m, s
                        )
                    ),
                    "You took KL(p ‖ q). The bound asks how far q is from p, with the mean under "
                    "q.",
                ),
                Misconception(
                    "all clusters counted equally",
                    evenly,
                    "You averaged the KLs of z over the clusters as if all counted equally. How "
                    "much does a cluster count for a cell that is not in it?",
                ),
                Misconception(
                    "the KLs of z weighted by the prior",
                    by_the_prior,
                    "You averaged the KLs of z with the prior's weights. In the bound the mean is "
                    "under q.",
                ),
                Misconception(
                    "a mean over dimensions",
                    with_kl_z(lambda m, s, mean, std: kl_of_normals(m, s, mean, std) / m.shape[-1]),
                    "Your KL of z is too small by the number of dimensions. Over independent "
                    "dimensions, is the KL a mean or a sum?",
                ),
                Misconception(
                    "the half forgotten",
                    with_kl_z(
                        lambda m, s, mean, std: kl_of_normals(m, s, mean, std) + m.shape[-1] / 2
                    ),
                    "Your KL of z is too large by a half per dimension. What is it if both normals "
                    "are the same?",
                ),
                Misconception(
                    "a standard deviation for a variance",
                    with_kl_z(with_a_width_not_squared),
                    "Look at the units of each part of your KL of z, if z had units.",
                ),
                Misconception(
                    "the KL of y upside down",
                    with_kl_y(
                        lambda q, log_q, log_prior: (np.exp(log_prior) * (log_prior - log_q)).sum(
                            -1
                        )
                    ),
                    "Your KL of y is KL(p ‖ q). The bound asks how far q is from p, with the mean "
                    "under q.",
                ),
                Misconception(
                    "the KL of y to equal probabilities",
                    with_kl_y(
                        lambda q, log_q, log_prior: (q * (log_q + np.log(q.shape[-1]))).sum(-1)
                    ),
                    "Your KL of y is to K equal probabilities. Here π is given.",
                ),
                Misconception(
                    "the two KLs exchanged",
                    lambda **case: two_kls(**case)[::-1],
                    "Both KLs are right, but in the wrong order: the KL of z comes first.",
                ),
                Misconception(
                    "variances for standard deviations",
                    with_kl_z(
                        lambda m, s, mean, std: kl_of_normals(m, np.sqrt(s), mean, np.sqrt(std))
                    ),
                    "s and stds are standard deviations, but you took them for variances.",
                ),
            ),
        ),
        Exercise(
            name="08.2",
            title="Bug hunt: a bound above log p(x)",
            points=3,
            draw=draw_tiny,
            oracle=tiny_bound,
            rtol=3e-4,  # a grid of a few hundred points passes, also with a spacing in float32
            verified="Agrees with enumeration of y and quadrature over z, for 21 cells.",
            misconceptions=(
                Misconception(
                    "as it was",
                    tiny_with(spread=0.0, twice=True, power=1),
                    "This is the code as it was given. All three errors are still in it.",
                ),
                Misconception(
                    "the mean decoded",
                    tiny_with(spread=0.0),
                    "Almost. You decode one z for each cluster, the mean of q(z|x,y). Is the mean "
                    "of exp(z) the exp of the mean of z?",
                ),
                Misconception(
                    "the KL of y weighted twice",
                    tiny_with(twice=True),
                    "Almost. How many times do you weight log q_k − log π_k by q_k?",
                ),
                Misconception(
                    "a standard deviation for a variance",
                    tiny_with(power=1),
                    "Almost. Look at the units of each part of the KL of z, if z had units.",
                ),
                Misconception(
                    "the log of the mean rate",
                    with_the_log_of_the_mean,
                    "Almost. The rate occurs twice in the Poisson, once inside a logarithm. What "
                    "is the mean of log rate, and does it depend on the spread of z?",
                ),
                Misconception(
                    "the spread without b",
                    without_b,
                    "Almost. s is the standard deviation of z. What is the standard deviation of "
                    "a + b·z?",
                ),
                Misconception(
                    "no factorial",
                    without_factorial,
                    "The Poisson's log x! is missing. It does not depend on the parameters, but "
                    "without it the number is not a bound on log p(x).",
                ),
                Misconception(
                    "the mean decoded, and the KL of y weighted twice",
                    tiny_with(spread=0.0, twice=True),
                    "One of three errors is fixed. Two are left: one in the reconstruction, one in "
                    "the KL of y.",
                ),
                Misconception(
                    "the mean decoded, and a standard deviation for a variance",
                    tiny_with(spread=0.0, power=1),
                    "One of three errors is fixed. Two are left: one in the reconstruction, one in "
                    "the KL of z.",
                ),
                Misconception(
                    "the KL of y weighted twice, and a standard deviation for a variance",
                    tiny_with(twice=True, power=1),
                    "One of three errors is fixed. Two are left, one in each KL.",
                ),
            ),
        ),
        Exercise(
            name="08.3",
            title="Where a cluster should be",
            points=3,
            draw=draw_posteriors,
            oracle=moments,
            verified="Agree with the moments of q(z | x, y) over 83 cells, for each cluster.",
            misconceptions=(
                Misconception(
                    "the spread of each cell forgotten",
                    lambda q, m, s: moments(q, m, 1e-9 * s),
                    "Your means are right. Your clusters are too narrow: they cover the mean of "
                    "each cell's q(z|x,y), but not its spread.",
                ),
                Misconception(
                    "every cell counts for every cluster",
                    lambda q, m, s: moments(np.ones_like(q), m, s),
                    "All cells count equally here. Where does q enter?",
                ),
                Misconception(
                    "hard clusters",
                    hard_clusters,
                    "You put each cell into one cluster. But a cell can belong to several clusters "
                    "in part.",
                ),
                Misconception(
                    "variances",
                    lambda q, m, s: (moments(q, m, s)[0], moments(q, m, s)[1] ** 2),
                    "Your means are right; standard deviations are asked for.",
                ),
                Misconception(
                    "widths added",
                    widths_added,
                    "Your means are right. Which add up: the standard deviations within and "
                    "between cells, or their squares?",
                ),
                Misconception(
                    "the pair exchanged",
                    lambda q, m, s: moments(q, m, s)[::-1],
                    "Both are right, but in the wrong order: the means come first.",
                ),
                Misconception(
                    "divided by the number of all cells",
                    divided_by_all_cells,
                    "Your clusters are drawn towards 0. By how many cells did you divide?",
                ),
                Misconception(
                    "a mean of standard deviations",
                    lambda q, m, s: (
                        moments(q, m, s)[0],
                        (q[..., None] * s).sum(0) / q.sum(0)[:, None],
                    ),
                    "Your means are right. But cells also differ from each other, and the cluster "
                    "has to be wide enough for all of them.",
                ),
            ),
        ),
        Exercise(
            name="08.4",
            title="What the clusters say, and what they waste",
            points=3,
            draw=draw_shares,
            oracle=information_and_imbalance,
            verified="Agree with scipy's relative entropies, for cells that are certain and a "
            "cluster that no cell uses.",
            misconceptions=(
                Misconception(
                    "0 · log 0",
                    by_log_of_zero,
                    "Right where every q is above 0. Where one is 0, 0·log 0 comes out as NaN; its "
                    "limit is 0. Look at torch.special.entr.",
                ),
                Misconception(
                    "the two parts exchanged",
                    shares_changed(lambda information, imbalance, q: (imbalance, information)),
                    "Both numbers are right, but in the wrong order: information comes first.",
                ),
                Misconception(
                    "the whole KL for the information",
                    shares_changed(
                        lambda information, imbalance, q: (information + imbalance, imbalance)
                    ),
                    "Your first number is the whole mean KL. If all cells were in the same cluster "
                    "for sure, what would the clusters tell you about a cell?",
                ),
                Misconception(
                    "what y leaves open",
                    shares_changed(
                        lambda information, imbalance, q: (
                            np.log(q.shape[1]) - imbalance - information,
                            imbalance,
                        )
                    ),
                    "Your first number is the mean entropy of q, which is largest if no cell "
                    "can decide. Is that information?",
                ),
                Misconception(
                    "the entropy for the imbalance",
                    shares_changed(
                        lambda information, imbalance, q: (
                            information,
                            np.log(q.shape[1]) - imbalance,
                        )
                    ),
                    "Your second number is largest if all clusters are used equally. What should "
                    "the imbalance be then?",
                ),
                Misconception(
                    "bits",
                    shares_changed(
                        lambda information, imbalance, q: (
                            information / np.log(2),
                            imbalance / np.log(2),
                        )
                    ),
                    "These are bits. A nat is a natural logarithm.",
                ),
                Misconception(
                    "a sum over cells",
                    shares_changed(
                        lambda information, imbalance, q: (len(q) * information, imbalance)
                    ),
                    "Your first number grows with the number of cells. Should it be a sum or a "
                    "mean?",
                ),
            ),
        ),
        Exercise(
            name="08.5",
            title="Clusters against tubes",
            points=2,
            draw=draw_clusterings,
            oracle=best_of_all_matchings,
            call="arrays",
            verified="Agrees with the best of all matchings, for more clusters than tubes and for "
            "fewer.",
            misconceptions=(
                Misconception(
                    "numbers compared",
                    lambda truth, found: np.asarray((truth == found).mean()),
                    "The number of a cluster has no meaning: cluster 3 may well be tube 0.",
                ),
                Misconception(
                    "each cluster takes its majority",
                    majority,
                    "In your answer two clusters can take the same tube, so a clustering gains by "
                    "splitting a tube in two. How many clusters may a tube have?",
                ),
                Misconception(
                    "each tube takes its largest cluster",
                    lambda truth, found: majority(found, truth),
                    "In your answer two tubes can take the same cluster, so a clustering gains by "
                    "putting all cells together. How many tubes may a cluster have?",
                ),
                Misconception(
                    "the worst matching",
                    lambda truth, found: best_of_all_matchings(truth, found, best=min),
                    "This is the smallest share of all matchings; the largest is asked for.",
                ),
                Misconception(
                    "each pair counted once",
                    lambda truth, found: best_of_all_matchings(truth, found, counted=False),
                    "Your table holds only zeros and ones: each pair of tube and cluster is "
                    "counted once, however many cells have it. See the folded hint.",
                ),
                Misconception(
                    "percent",
                    lambda truth, found: 100 * best_of_all_matchings(truth, found),
                    "This is a number of percent; a share is between 0 and 1.",
                ),
                Misconception(
                    "a share of mistakes",
                    lambda truth, found: 1 - best_of_all_matchings(truth, found),
                    "This is the share of cells that do not agree.",
                ),
                Misconception(
                    "a number of cells",
                    lambda truth, found: len(truth) * best_of_all_matchings(truth, found),
                    "This is the number of cells that agree; a share is asked for.",
                ),
            ),
        ),
    )
}
