"""Lesson 13: right answers that learners write, and wrong ones, each with what it is told."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats
from sklearn import metrics

from vaelab.teaching.exercises import SEED, find

from .answers import verdict_on

cross_entropy = torch.nn.functional.cross_entropy


# ------------------------------------------------------------------------------ right answers


def by_crosstab(truth, predicted):
    table = pd.crosstab(pd.Series(truth), pd.Series(predicted))
    t, n = table.sum(1), table.sum(0)
    both = pd.Series({c: table.at[c, c] if c in table else 0 for c in table.index})
    return (both / t).mean(), (2 * both / (t + n.reindex(table.index).fillna(0))).mean()


def by_counter(truth, predicted):
    t, n = Counter(truth.tolist()), Counter(predicted.tolist())
    both = Counter(a for a, b in zip(truth, predicted, strict=True) if a == b)
    recalls, f1s = zip(*((both[c] / t[c], 2 * both[c] / (t[c] + n[c])) for c in t), strict=True)
    return sum(recalls) / len(t), sum(f1s) / len(t)


def by_precision(truth, predicted):
    recalls, f1s = [], []
    for c in set(truth):
        recall = np.mean(predicted[truth == c] == c)
        precision = np.mean(truth[predicted == c] == c) if (predicted == c).any() else 0
        recalls.append(recall)
        both = precision + recall
        f1s.append(2 * precision * recall / both if both else 0)
    return [np.mean(recalls), np.mean(f1s)]


def by_scikit_learn(truth, predicted):
    f1 = metrics.f1_score(truth, predicted, labels=np.unique(truth), average="macro")
    recall = metrics.recall_score(truth, predicted, labels=np.unique(truth), average="macro")
    return recall, f1


def error_by_digitize(confidence, right, n_bins):
    of_bin = np.digitize(confidence, np.linspace(0, 1, n_bins + 1)[1:-1])
    return sum(abs((confidence - right)[of_bin == b].sum()) for b in range(n_bins)) / len(right)


def error_by_groups(confidence, right, n_bins):
    of_bin = (confidence * n_bins).astype(int).clip(max=n_bins - 1)
    means = pd.DataFrame({"c": confidence, "r": right * 1.0}).groupby(of_bin).agg(["mean", "size"])
    return (means["c", "size"] * (means["c", "mean"] - means["r", "mean"]).abs()).sum() / len(right)


def error_by_loop(confidence, right, n_bins):
    sums = [[0.0, 0.0] for _ in range(n_bins)]
    for c, r in zip(confidence, right, strict=True):
        b = min(int(c * n_bins), n_bins - 1)
        sums[b][0] += c
        sums[b][1] += r
    return sum(abs(c - r) for c, r in sums) / len(right)


def pairs_by_loop(q, is_new):
    h = [-sum(p * math.log(p) for p in row if p > 0) for row in q.tolist()]
    new, others = ([v for v, n in zip(h, is_new, strict=True) if n == k] for k in (True, False))
    return np.mean([(a > b) + 0.5 * (a == b) for a in new for b in others])


def pairs_of(entropies):
    def auroc(q, is_new):
        h = entropies(q)
        return ((np.sign(h[is_new][:, None] - h[~is_new][None]) + 1) / 2).mean()

    return auroc


def weight_by_gamma(ratio, n, n_l, size):
    g = math.lgamma
    log_none = g(n - n_l + 1) + g(n - size + 1) - g(n - n_l - size + 1) - g(n + 1)
    return ratio * n / n_l * -math.expm1(log_none)


def weight_by_fractions(ratio, n, n_l, size):
    none = Fraction(1)
    for i in range(size):
        none *= Fraction(n - n_l - i, n - i)
    return ratio * n / n_l * float(1 - none)


def loss_by_mask(logits, label):
    seen = label >= 0
    if not seen.any():
        return torch.tensor(0.0)
    return cross_entropy(logits[seen], label[seen])


def loss_by_loop(logits, label):
    total, n = 0.0, 0
    for row, c in zip(logits, label.tolist(), strict=True):
        if c >= 0:
            total, n = total + row.logsumexp(0) - row[c], n + 1
    return total / n if n else 0.0


def loss_in_arrays(logits, label):
    total, n = 0.0, 0
    for row, c in zip(logits.numpy(), label.tolist(), strict=True):
        if c >= 0:
            total, n = total + special.logsumexp(row.astype(float)) - row[c], n + 1
    return total / n if n else 0.0


RIGHT = {
    "13.1": [
        by_crosstab,
        by_counter,
        by_precision,
        by_scikit_learn,
        lambda t, p: torch.tensor(by_counter(t, p)),
        lambda t, p: np.float32(by_counter(t, p)),
    ],
    "13.2": [
        error_by_digitize,
        error_by_groups,
        error_by_loop,
        lambda c, r, n: np.abs(
            np.histogram(c, n, (0, 1), weights=c - r)[0]
        ).sum() / len(c),
        lambda c, r, n: torch.tensor(error_by_loop(c, r, n)),
    ],
    "13.3": [
        pairs_by_loop,
        pairs_of(lambda q: stats.entropy(q, axis=1)),
        pairs_of(lambda q: special.entr(q).sum(1)),
        pairs_of(lambda q: -np.nansum(q * np.log(q), axis=1)),
        pairs_of(lambda q: -special.xlogy(q, q).sum(1)),
        lambda q, new: torch.tensor(pairs_by_loop(q, new)),
    ],
    "13.4": [
        lambda m, f, k: ((k - 1) * m - f) / (k - 1 - k * f),
        lambda m, f, k: np.linalg.solve([[1 - f, f / (k - 1)], [1, 1]], [m, 1])[0],
        lambda m, f, k: (m - f / (k - 1)) / (1 - f * k / (k - 1)),
        lambda m, f, k: torch.tensor((m - f / (k - 1)) / (1 - f - f / (k - 1))),
        lambda m, f, k: 1 - (1 - f - m) / (1 - f - f / (k - 1)),
    ],
    "13.5": [
        weight_by_gamma,
        weight_by_fractions,
        lambda r, n, k, b: r * n / k * (1 - stats.hypergeom.pmf(0, n, k, b)),
        lambda r, n, k, b: r * n / k * stats.hypergeom.sf(0, n, k, b),
        lambda r, n, k, b: r * n / k * (1 - math.exp(
            sum(math.log((n - k - i) / (n - i)) for i in range(b))
        )),
    ],
    "13.6": [
        loss_by_mask,
        loss_by_loop,
        lambda x, c: cross_entropy(x, c, ignore_index=-1, reduction="sum") / max(
            1, int((c >= 0).sum())
        ),
        lambda x, c: torch.nan_to_num(cross_entropy(x, c, ignore_index=-1)),
        lambda x, c: -(
            x.log_softmax(-1).gather(1, c.clamp(min=0)[:, None])[:, 0] * (c >= 0)
        ).sum() / (c >= 0).sum().clamp(min=1),
    ],
}  # fmt: skip

# ------------------------------------------------------------------------------ wrong answers


def mean_loss(log_q):
    """A mean over the labelled cells of any wrong log q."""

    def loss(logits, label):
        seen = label >= 0
        if not seen.any():
            return torch.tensor(0.0)
        return -log_q(logits)[seen, label[seen]].mean()

    return loss


WRONG = {
    "13.1": [
        (lambda t, p: ((t == p).mean(), by_counter(t, p)[1]), "accuracy for balanced accuracy"),
        (lambda t, p: by_counter(p, t), "the two arrays exchanged"),
        (lambda t, p: (np.mean([(t[p == c] == c).mean() if (p == c).any() else 0 for c in set(t)]),
                       by_counter(t, p)[1]), "precision for recall"),
        (lambda t, p: by_counter(t, p)[::-1], None),
        (lambda t, p: by_counter(t, p)[0], None),
        (lambda t, p: (by_counter(t, p)[0], metrics.f1_score(t, p, average="weighted",
                                                             zero_division=0)), None),
        (lambda t, p: (by_counter(t, p)[0], metrics.f1_score(t, p, average="macro",
                                                             zero_division=0)),
         "names that no cell has"),
        (lambda t, p: (metrics.recall_score(t, p, labels=np.unique(p), average="macro",
                                            zero_division=0),
                       metrics.f1_score(t, p, labels=np.unique(p), average="macro")),
         "the names that were given"),
    ],
    "13.2": [
        (lambda c, r, n: np.abs(c - r).mean(), "no bins"),
        (lambda c, r, n: abs((c - r).mean()), "differences that cancel"),
        (lambda c, r, n: np.abs(np.bincount(np.floor(c * n).astype(int), c - r)).sum() / len(c),
         "one bin more"),
        (lambda c, r, n: error_by_loop(c, r, 10), None),
        (lambda c, r, n: error_by_loop(1 - c, r, n), None),
        (lambda c, r, n: ((c - r) ** 2).mean(), None),
    ],
    "13.3": [
        (pairs_of(lambda q: np.nan_to_num(-(q * np.log(q)).sum(1))), "0 log 0 of a row"),
        (pairs_of(lambda q: q.max(1)), None),
        (pairs_of(lambda q: 1 - q.max(1)), "the largest probability"),
        (lambda q, new: pairs_by_loop(q, ~new), "upside down"),
        (lambda q, new: stats.entropy(q[new], axis=1).mean(), None),
        (pairs_of(lambda q: (q > 0).sum(1)), None),
    ],
    "13.4": [
        (lambda m, f, k: m / (1 - f), "no luck"),
        (lambda m, f, k: m + f, "errors added"),
        (lambda m, f, k: m * (1 - f) + (1 - m) * f / (k - 1), None),
        (lambda m, f, k: m, None),
        (lambda m, f, k: (m - f) / (1 - 2 * f), "every error agrees"),
    ],
    "13.5": [
        (lambda r, n, k, b: r * n / k, "a label in every minibatch"),
        (lambda r, n, k, b: r * b / k, None),
        (lambda r, n, k, b: r * k / n, "upside down"),
        (lambda r, n, k, b: r, None),
        (lambda r, n, k, b: r * n / k * (1 - (1 - k / n) ** b), "with replacement"),
        (lambda r, n, k, b: r * n / k * stats.hypergeom.pmf(0, n, k, b), None),
    ],
    "13.6": [
        (lambda x, c: cross_entropy(x.softmax(-1), c.clamp(min=0)), "both mistakes"),
        (lambda x, c: cross_entropy(x, c.clamp(min=0)), "no label taken for a type"),
        (mean_loss(lambda x: x.softmax(-1).log_softmax(-1)), "softmax twice"),
        (mean_loss(lambda x: (x.softmax(-1) + 1e-8).log()), "a small number in the logarithm"),
        (mean_loss(lambda x: x.softmax(-1).log()), "the logarithm of a softmax"),
        (lambda x, c: cross_entropy(x, c, ignore_index=-1), "0/0 without labels"),
        (lambda x, c: cross_entropy(x, c, ignore_index=-1, reduction="sum"), None),
        (loss_in_arrays, None),
        (lambda x, c: loss_by_mask(x.detach(), c), None),
        (lambda x, c: cross_entropy(x, c, ignore_index=-1, reduction="sum") / len(c),
         "a mean over all cells"),
    ],
}  # fmt: skip


def numbered(variants):
    return [
        pytest.param(name, number, id=f"{name}-{number}")
        for name, answers in variants.items()
        for number in range(len(answers))
    ]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name, number", numbered(RIGHT))
@pytest.mark.parametrize("seed", [SEED, 1])
def test_a_right_answer_passes(name, number, seed):
    verdict = verdict_on(name, RIGHT[name][number], seed)
    assert verdict.passed, verdict


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name, number", numbered(WRONG))
@pytest.mark.parametrize("seed", [SEED, 1])
def test_a_wrong_answer_fails_and_is_named_if_known(name, number, seed):
    answer, known = WRONG[name][number]
    verdict = verdict_on(name, answer, seed)
    assert not verdict.passed and verdict.misconception == known, verdict


def test_a_cell_with_a_zero_that_is_not_certain_is_among_the_cases_of_every_seed():
    for seed in range(20):
        assert any(
            ((q == 0).any(1) & (q.max(1) < 1)).any()
            for q in (case["q"] for case in find("13.3").cases(seed))
        )
