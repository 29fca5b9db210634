"""Lesson 08: right answers that learners write, and wrong ones, each with what it is told."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, special, stats

from vaelab.teaching.exercises import SEED

from .answers import fail_by_name, pass_all

SEEDS = (SEED, 1)
Normal, Categorical, kl_divergence = (
    torch.distributions.Normal,
    torch.distributions.Categorical,
    torch.distributions.kl_divergence,
)


# ------------------------------------------------------------------------------ 08.1, the two KLs


def kls(log_q, m, s, log_prior, means, stds):
    """Each cluster's KL of z, and the right KL of y."""
    kl_z = kl_divergence(Normal(m, s), Normal(means, stds)).sum(-1)
    kl_y = kl_divergence(Categorical(logits=log_q), Categorical(logits=log_prior.expand_as(log_q)))
    return kl_z, kl_y


def kls_by_torch(log_q, *case):
    kl_z, kl_y = kls(log_q, *case)
    return (log_q.exp() * kl_z).sum(-1), kl_y


def kls_as_a_list(*case):
    return [*kls_by_torch(*case)]


def kls_stacked(*case):
    return torch.stack(kls_by_torch(*case))


def kls_by_einsum(log_q, m, s, log_prior, means, stds):
    q = log_q.exp()
    each = torch.log(stds / s) + (s**2 + (m - means) ** 2) / (2 * stds**2) - 0.5
    return torch.einsum("nk,nkd->n", q, each), torch.einsum("nk,nk->n", q, log_q - log_prior)


def kls_by_loops(*case):
    log_q, m, s, log_prior, means, stds = (np.asarray(v, float) for v in case)
    kl_z, kl_y = np.zeros(len(m)), np.zeros(len(m))
    for i in range(len(m)):
        for k in range(len(means)):
            q = np.exp(log_q[i, k])
            kl_y[i] += q * (log_q[i, k] - log_prior[k])
            for d in range(means.shape[1]):
                v, w = (s[i, k, d] / stds[k, d]) ** 2, (m[i, k, d] - means[k, d]) / stds[k, d]
                kl_z[i] += q * (v + w**2 - 1 - math.log(v)) / 2
    return kl_z, kl_y


def kls_where(kl_z=None, kl_y=None):
    """The right pair, with one of its parts replaced."""

    def answer(log_q, m, s, log_prior, means, stds):
        right = kls_by_torch(log_q, m, s, log_prior, means, stds)
        given = log_q, m, s, log_prior, means, stds
        return (kl_z(*given) if kl_z else right[0]), (kl_y(*given) if kl_y else right[1])

    return answer


def weighted(change):
    """The KL of z per dimension, changed, then summed and weighted by q."""

    def kl_z(log_q, m, s, log_prior, means, stds):
        return (log_q.exp() * change(m, s, means, stds)).sum(-1)

    return kls_where(kl_z)


def per_dimension(m, s, means, stds):
    return kl_divergence(Normal(m, s), Normal(means, stds))


RIGHT_KLS = [kls_by_torch, kls_as_a_list, kls_stacked, kls_by_einsum, kls_by_loops]
WRONG_KLS = [
    (
        kls_where(kl_y=lambda log_q, m, s, p, *_: (log_q.exp() ** 2 * (log_q - p)).sum(-1)),
        "the KL of y weighted twice",
    ),
    (
        kls_where(kl_y=lambda log_q, m, s, p, *_: len(p) * (log_q.exp() * (log_q - p)).sum(-1)),
        "the KL of y once for each cluster",
    ),
    (
        kls_where(kl_y=lambda log_q, m, s, p, *_: (p.exp() * (p - log_q)).sum(-1)),
        "the KL of y upside down",
    ),
    (
        kls_where(
            kl_y=lambda log_q, *_: math.log(log_q.shape[1]) - Categorical(logits=log_q).entropy()
        ),
        "the KL of y to equal probabilities",
    ),
    (lambda *case: kls_by_torch(*case)[::-1], "the two KLs exchanged"),
    (kls_where(lambda *case: kls(*case)[0].mean(-1)), "all clusters counted equally"),
    (
        weighted(
            lambda m, s, u, v: (v.log() - s.log() + (s**2 + (m - u) ** 2) / (v + v) - 0.5).sum(-1)
        ),
        "a standard deviation for a variance",
    ),
    (kls_where(lambda *case: kls(*case)[0].sum(-1)), "the KLs of z not weighted"),
    (
        kls_where(lambda *case: (case[3].exp() * kls(*case)[0]).sum(-1)),
        "the KLs of z weighted by the prior",
    ),
    (weighted(lambda *case: per_dimension(*case).mean(-1)), "a mean over dimensions"),
    (weighted(lambda *case: (per_dimension(*case) + 0.5).sum(-1)), "the half forgotten"),
    (
        weighted(lambda m, s, *_: kl_divergence(Normal(m, s), Normal(0 * m, s / s)).sum(-1)),
        "against the standard normal",
    ),
    (
        weighted(lambda m, s, u, v: kl_divergence(Normal(u, v), Normal(m, s)).sum(-1)),
        "the KL of z upside down",
    ),
    (
        weighted(lambda m, s, u, v: per_dimension(m, s.sqrt(), u, v.sqrt()).sum(-1)),
        "variances for standard deviations",
    ),
]


# ----------------------------------------------------------------------------- 08.2, the bug hunt


def bound(x, log_q, m, s, log_prior, means, stds, a, b, spread=1.0, power=2, twice=False):
    """In closed form, and with the errors of the exercise if asked for."""
    log_rate = a + b * m[..., None]  # (n, K, G)
    rate = (log_rate + spread * (b * s[..., None]) ** 2 / 2).exp()
    log_p = (x[:, None] * log_rate - rate - (x[:, None] + 1).lgamma()).sum(-1)
    kl_z = (stds / s).log() + (s**2 + (m - means) ** 2) / (2 * stds**power) - 0.5
    kl_y = log_q - log_prior
    return (log_q.exp() * (log_p - kl_z - (log_q.exp() if twice else 1) * kl_y)).sum(-1)


def bound_on_a_grid(x, log_q, m, s, log_prior, means, stds, a, b):
    """As the lesson integrates: a grid, with the spacing between its first two points."""
    grid = torch.linspace(-8, 8, 8001).double()
    total = 0
    for k in range(len(means)):
        q_z = Normal(m[:, k, None], s[:, k, None])
        rate = (a + b * grid[:, None]).exp()  # (grid, G)
        log_p = torch.distributions.Poisson(rate).log_prob(x[:, None]).sum(-1)  # (n, grid)
        inside = log_p + Normal(means[k], stds[k]).log_prob(grid) - q_z.log_prob(grid)
        mean = (q_z.log_prob(grid).exp() * inside).sum(-1) * (grid[1] - grid[0])
        total = total + log_q[:, k].exp() * (mean + log_prior[k] - log_q[:, k])
    return total


def bound_in_arrays(*case):
    x, log_q, m, s, log_prior, means, stds, a, b = (np.asarray(v, float) for v in case)
    total = np.zeros(len(x))
    for k, q in enumerate(np.exp(log_q).T):
        mean = np.exp(a + np.outer(m[:, k], b) + np.outer(s[:, k], b) ** 2 / 2)
        log_p = (x * (a + np.outer(m[:, k], b)) - mean - special.gammaln(x + 1)).sum(1)
        ratio = s[:, k] / stds[k]
        kl_z = (ratio**2 + ((m[:, k] - means[k]) / stds[k]) ** 2 - 1) / 2 - np.log(ratio)
        total += q * (log_p - kl_z - log_q[:, k] + log_prior[k])
    return total


def bound_as_a_list(*case):
    return bound_in_arrays(*case).tolist()


def bound_changed(**change):
    return lambda *case: bound(*case, **change)


def bound_of_the_log_of_the_mean(x, log_q, m, s, log_prior, means, stds, a, b):
    """The Poisson of the mean rate, in both of its places."""
    rate = (a + b * m[..., None] + (b * s[..., None]) ** 2 / 2).exp()
    log_p = torch.distributions.Poisson(rate).log_prob(x[:, None]).sum(-1)
    kl_z = kl_divergence(Normal(m, s), Normal(means, stds))
    return (log_q.exp() * (log_p - kl_z - log_q + log_prior)).sum(-1)


def bound_with_the_spread_of_z(x, log_q, m, s, log_prior, means, stds, a, b):
    log_rate = a + b * m[..., None]
    rate = (log_rate + s[..., None] ** 2 / 2).exp()
    log_p = (x[:, None] * log_rate - rate - (x[:, None] + 1).lgamma()).sum(-1)
    kl_z = kl_divergence(Normal(m, s), Normal(means, stds))
    return (log_q.exp() * (log_p - kl_z - log_q + log_prior)).sum(-1)


def bound_without_factorial(x, *case):
    return bound(x, *case) + (x + 1).lgamma().sum(-1)


RIGHT_BOUNDS = [
    bound,
    bound_on_a_grid,
    bound_in_arrays,
    bound_as_a_list,
    lambda *case: bound(*(v.double() for v in case)),
]
WRONG_BOUNDS = [
    (bound_changed(spread=0.0, power=1, twice=True), "as it was"),
    (bound_changed(spread=0.0), "the mean decoded"),
    (bound_changed(twice=True), "the KL of y weighted twice"),
    (bound_changed(power=1), "a standard deviation for a variance"),
    (bound_changed(spread=0.0, twice=True), "the mean decoded, and the KL of y weighted twice"),
    (
        bound_changed(spread=0.0, power=1),
        "the mean decoded, and a standard deviation for a variance",
    ),
    (
        bound_changed(power=1, twice=True),
        "the KL of y weighted twice, and a standard deviation for a variance",
    ),
    (bound_without_factorial, "no factorial"),
    (bound_of_the_log_of_the_mean, "the log of the mean rate"),
    (bound_with_the_spread_of_z, "the spread without b"),
]


# --------------------------------------------------------------------- 08.3, the place of a cluster


def clusters(q, m, s):
    q = q[..., None]
    mean = (q * m).sum(0) / q.sum(0)
    return mean, ((q * (s**2 + m**2)).sum(0) / q.sum(0) - mean**2).sqrt()


def clusters_by_average(q, m, s):
    q, m, s = (np.asarray(v, float) for v in (q, m, s))
    weights = np.broadcast_to(q[..., None], m.shape)
    mean = np.average(m, axis=0, weights=weights)
    return mean, np.sqrt(np.average(s**2 + (m - mean) ** 2, axis=0, weights=weights))


def clusters_by_loop(q, m, s):
    mean, std = torch.empty_like(m[0]), torch.empty_like(m[0])
    for k in range(q.shape[1]):
        w = q[:, k] / q[:, k].sum()
        mean[k] = w @ m[:, k]
        std[k] = (w @ (s[:, k] ** 2) + w @ (m[:, k] - mean[k]) ** 2).sqrt()
    return mean, std


def clusters_by_search(q, m, s):
    """The mean bound climbed by L-BFGS."""
    q, m, s = (v.double() for v in (q, m, s))
    start = torch.zeros(2, *m.shape[1:], dtype=torch.double).requires_grad_()
    optimizer = torch.optim.LBFGS([start], max_iter=500, tolerance_grad=1e-12, tolerance_change=0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def loss():
        optimizer.zero_grad()
        kl = kl_divergence(Normal(m, s), Normal(start[0], start[1].exp()))
        value = (q[..., None] * kl).mean(0).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return start[0].detach(), start[1].exp().detach()


def clusters_as_a_list(q, m, s):
    return [v.tolist() for v in clusters(q, m, s)]


def wrong_width(change):
    return lambda q, m, s: (clusters(q, m, s)[0], change(q, m, s))


def of_all_cells(q, m, s):
    """Divided by the number of all cells."""
    mean = (q[..., None] * m).mean(0)
    return mean, (q[..., None] * (s**2 + (m - mean) ** 2)).mean(0).sqrt()


RIGHT_CLUSTERS = [
    clusters,
    clusters_by_average,
    clusters_by_loop,
    clusters_by_search,
    clusters_as_a_list,
]
WRONG_CLUSTERS = [
    (lambda q, m, s: clusters(q, m, 0 * s), "the spread of each cell forgotten"),
    (lambda q, m, s: clusters(torch.ones_like(q), m, s), "every cell counts for every cluster"),
    (
        lambda q, m, s: clusters(torch.eye(q.shape[1]).to(q)[q.argmax(1)], m, s),
        "hard clusters",
    ),
    (wrong_width(lambda q, m, s: clusters(q, m, s)[1] ** 2), "variances"),
    (of_all_cells, "divided by the number of all cells"),
    (
        wrong_width(lambda q, m, s: (q[..., None] * s).sum(0) / q.sum(0)[:, None]),
        "a mean of standard deviations",
    ),
    (
        wrong_width(
            lambda q, m, s: clusters(q, m, 0 * s)[1] + (q[..., None] * s).sum(0) / q.sum(0)[:, None]
        ),
        "widths added",
    ),
    (lambda q, m, s: clusters(q, m, s)[::-1], "the pair exchanged"),
]


# --------------------------------------------------------------------- 08.4, information, imbalance


def parts(q):
    mean = q.mean(0)
    both = torch.special.entr(mean).sum()
    return both - torch.special.entr(q).sum(1).mean(), math.log(q.shape[1]) - both


def parts_by_scipy(q):
    q = np.asarray(q, float)
    mean = q.mean(0)
    return special.rel_entr(q, mean).sum(1).mean(), stats.entropy(mean, np.ones(len(mean)))


def parts_by_xlogy(q):
    mean, K = q.mean(0), q.shape[1]
    whole = torch.xlogy(q, q * K).sum(1).mean()
    imbalance = torch.xlogy(mean, mean * K).sum()
    return whole - imbalance, imbalance


def parts_where_positive(q):
    mean = q.mean(0)
    information = sum((row[row > 0] * (row / mean)[row > 0].log()).sum() for row in q) / len(q)
    used = mean[mean > 0]
    return information, (used * (used * len(mean)).log()).sum()


def parts_stacked(q):
    return np.array(parts_by_scipy(q))


def parts_as_floats(q):
    return [float(v) for v in parts(q)]


def parts_by_log(q):
    mean = q.mean(0)
    of_mean = -(mean * mean.log()).sum()
    return of_mean + (q * q.log()).sum(1).mean(), math.log(q.shape[1]) - of_mean


RIGHT_PARTS = [
    parts,
    parts_by_scipy,
    parts_by_xlogy,
    parts_where_positive,
    parts_stacked,
    parts_as_floats,
]
WRONG_PARTS = [
    (parts_by_log, "0 · log 0"),
    (lambda q: parts(q)[::-1], "the two parts exchanged"),
    (lambda q: (sum(parts(q)), parts(q)[1]), "the whole KL for the information"),
    (lambda q: [v / math.log(2) for v in parts(q)], "bits"),
    (lambda q: (len(q) * parts(q)[0], parts(q)[1]), "a sum over cells"),
    (lambda q: (torch.special.entr(q).sum(1).mean(), parts(q)[1]), "what y leaves open"),
    (
        lambda q: (parts(q)[0], torch.special.entr(q.mean(0)).sum()),
        "the entropy for the imbalance",
    ),
]


# ------------------------------------------------------------------------------- 08.5, the matching


def matched(truth, found):
    table = np.zeros((truth.max() + 1, found.max() + 1))
    np.add.at(table, (truth, found), 1)
    rows, columns = optimize.linear_sum_assignment(-table)
    return table[rows, columns].sum() / len(truth)


def matched_by_crosstab(truth, found):
    table = pd.crosstab(truth, found).to_numpy()
    return torch.tensor(table[optimize.linear_sum_assignment(table, maximize=True)].sum()) / len(
        truth
    )


def matched_by_counting(truth, found):
    table = [[sum((truth == t) & (found == f)) for f in {*found}] for t in {*truth}]
    rows, columns = optimize.linear_sum_assignment(table, maximize=True)
    return float(np.array(table)[rows, columns].sum() / truth.size)


def matched_by_renaming(truth, found):
    size = max(truth.max(), found.max()) + 1
    table = np.bincount(size * truth + found, minlength=size**2).reshape(size, size)
    new_name = optimize.linear_sum_assignment(table.T, maximize=True)[1]
    return np.mean(new_name[found] == truth)


def matched_in_single_precision(truth, found):
    return np.float32(matched(truth, found))


def matched_by_the_smallest(truth, found):
    table = pd.crosstab(truth, found).to_numpy()
    return table[optimize.linear_sum_assignment(table)].sum() / len(truth)


def matched_in_a_table_of_ones(truth, found):
    table = np.zeros((truth.max() + 1, found.max() + 1))
    table[truth, found] += 1  # numpy adds once, however often a pair stands there
    return table[optimize.linear_sum_assignment(-table)].sum() / len(truth)


RIGHT_MATCHES = [
    matched,
    matched_by_crosstab,
    matched_by_counting,
    matched_by_renaming,
    matched_in_single_precision,
]
WRONG_MATCHES = [
    (lambda truth, found: (truth == found).mean(), "numbers compared"),
    (
        lambda truth, found: pd.crosstab(truth, found).max(axis=0).sum() / len(truth),
        "each cluster takes its majority",
    ),
    (
        lambda truth, found: pd.crosstab(truth, found).max(axis=1).sum() / len(truth),
        "each tube takes its largest cluster",
    ),
    (matched_by_the_smallest, "the worst matching"),
    (matched_in_a_table_of_ones, "each pair counted once"),
    (lambda truth, found: 100 * matched(truth, found), "percent"),
    (lambda truth, found: 1 - matched(truth, found), "a share of mistakes"),
    (lambda truth, found: matched(truth, found) * len(truth), "a number of cells"),
]


# ------------------------------------------------------------------------------------------- tests

EXERCISES = {
    "08.1": (RIGHT_KLS, WRONG_KLS),
    "08.2": (RIGHT_BOUNDS, WRONG_BOUNDS),
    "08.3": (RIGHT_CLUSTERS, WRONG_CLUSTERS),
    "08.4": (RIGHT_PARTS, WRONG_PARTS),
    "08.5": (RIGHT_MATCHES, WRONG_MATCHES),
}


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answers_pass(name):
    pass_all(name, EXERCISES[name][0], SEEDS)


@pytest.mark.filterwarnings("ignore")  # of answers that take the logarithm of 0
@pytest.mark.parametrize("name", EXERCISES)
def test_wrong_answers_are_told_what_is_wrong(name):
    fail_by_name(name, EXERCISES[name][1], SEEDS)
