"""Lesson 11: right answers that learners write, and wrong ones, each with what it is told."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

from vaelab.teaching.exercises import SEED

from .answers import fail_by_name, pass_all, verdict_on

SEEDS = [SEED, 1, 5]


# ------------------------------------------------------------------------------------ 11.1


def ratio_in_numpy(rho_a, rho_b):
    n = (rho_a > rho_b).sum(0) + 0.5 * (rho_a == rho_b).sum(0)
    p = (n + 0.5) / (len(rho_a) + 1)
    return p, np.log(p / (1 - p))


def ratio_in_torch(rho_a, rho_b):
    a, b = torch.as_tensor(rho_a), torch.as_tensor(rho_b)
    higher, lower = ((x > y).double().sum(0) for x, y in ((a, b), (b, a)))
    ties = len(a) - higher - lower
    up, down = higher + ties / 2 + 0.5, lower + ties / 2 + 0.5
    return (up / (up + down)).numpy(), (up.log() - down.log()).numpy()


def ratio_by_loop(rho_a, rho_b):
    p = []
    for g in range(rho_a.shape[1]):
        n = 0.5
        for a, b in zip(rho_a[:, g], rho_b[:, g], strict=True):
            n += 1 if a > b else 0.5 if a == b else 0
        p.append(n / (len(rho_a) + 1))
    return np.array(p), np.array([math.log(x) - math.log1p(-x) for x in p])


def ratio_by_heaviside(rho_a, rho_b):
    p = (np.heaviside(rho_a - rho_b, 0.5).sum(0) + 0.5) / (len(rho_a) + 1)
    return np.stack([p, special.logit(p)])


def ratio_in_single_precision(rho_a, rho_b):
    return tuple(np.asarray(x, np.float32) for x in ratio_in_numpy(rho_a, rho_b))


def of_p(p_of, ratio=lambda p: np.log(p / (1 - p))):
    def answer(rho_a, rho_b):
        p = p_of(rho_a, rho_b)
        return p, ratio(p)

    return answer


def right_p(rho_a, rho_b):
    return ratio_in_numpy(rho_a, rho_b)[0]


# ------------------------------------------------------------------------------------ 11.2


def all_in_torch(rho_a, rho_b):
    return (torch.as_tensor(rho_a) > torch.as_tensor(rho_b)).all(1).float().mean()


def all_by_product_in_a_sample(rho_a, rho_b):
    return (rho_a > rho_b).prod(1).mean()


def all_by_loop(rho_a, rho_b):
    right = 0
    for s in range(len(rho_a)):
        right += all(a > b for a, b in zip(rho_a[s], rho_b[s], strict=True))
    return right / len(rho_a)


def all_by_counting(rho_a, rho_b):
    return np.mean((rho_a > rho_b).sum(1) == rho_a.shape[1])


def all_by_frames(rho_a, rho_b):
    return (pd.DataFrame(rho_a) > pd.DataFrame(rho_b)).all(axis=1).mean()


# ------------------------------------------------------------------------------------ 11.3


def groups_in_torch(rho_a, rho_b, epsilon):
    a, b = (torch.as_tensor(rho).mean(1) + epsilon for rho in (rho_a, rho_b))
    return (a.log2() - b.log2()).numpy()


def groups_by_draws(rho_a, rho_b, epsilon):
    return np.array(
        [
            np.log2((a.mean(0) + epsilon) / (b.mean(0) + epsilon))
            for a, b in zip(rho_a, rho_b, strict=True)
        ]
    )


def groups_by_sums(rho_a, rho_b, epsilon):
    a, b = (rho.sum(1) / rho.shape[1] + epsilon for rho in (rho_a, rho_b))
    return np.log(a / b) / np.log(2)


def groups_with_epsilon_first(rho_a, rho_b, epsilon):
    return np.log2((rho_a + epsilon).mean(1)) - np.log2((rho_b + epsilon).mean(1))


def groups_in_single_precision(rho_a, rho_b, epsilon):
    return groups_in_torch(rho_a, rho_b, epsilon).astype(np.float32)


def groups_of(mean=lambda rho: rho.mean(1), log=np.log2, epsilon_on=1):
    def answer(rho_a, rho_b, epsilon):
        eps = epsilon * epsilon_on
        return log((mean(rho_a) + eps) / (mean(rho_b) + eps))

    return answer


# ------------------------------------------------------------------------------------ 11.4


def list_by_cumsum(p_change, level):
    risk = np.cumsum(np.sort(1 - p_change)) / np.arange(1, len(p_change) + 1)
    return int((risk <= level).sum())


def list_in_torch(p_change, level):
    p = torch.as_tensor(p_change).sort(descending=True).values
    return ((1 - p).cumsum(0) / torch.arange(1, len(p) + 1) <= level).sum()


def list_by_loop(p_change, level):
    total = n = 0
    for p in sorted(p_change, reverse=True):
        total += 1 - p
        if total > level * (n + 1):
            break
        n += 1
    return n


def list_by_search(p_change, level):
    p = np.sort(p_change)[::-1]
    expected = 1 - p.cumsum() / np.arange(1, len(p) + 1)
    return np.searchsorted(expected, level, side="right")


def list_in_pandas(p_change, level):
    risk = pd.Series(1 - p_change).sort_values()
    return float((risk.expanding().mean() <= level).sum())


def rates_of(p_change):
    return np.cumsum(np.sort(1 - p_change)) / np.arange(1, len(p_change) + 1)


def in_given_order(p_change, level):
    mean = np.cumsum(1 - p_change) / np.arange(1, len(p_change) + 1)
    passed = np.flatnonzero(mean <= level)
    return passed[-1] + 1 if len(passed) else 0


# ------------------------------------------------------------------------------------ 11.5


def certificate_in_numpy(p_change, p_null, cutoff):
    false, calls = (p_null >= cutoff).sum(1), (p_change >= cutoff).sum()
    rate = min(1, false.mean() / calls) if calls else float(false.any())
    return rate, (false > 0).mean()


def certificate_in_torch(p_change, p_null, cutoff):
    false = torch.as_tensor(p_null >= cutoff)
    rate = false.double().sum() / len(false) / (p_change >= cutoff).sum()
    return rate.clamp(max=1).nan_to_num(0), false.any(1).double().mean()


def certificate_by_loop(p_change, p_null, cutoff):
    calls, false, some = sum(p_change >= cutoff), 0, 0
    for null in p_null:
        n = sum(null >= cutoff)
        false, some = false + n, some + (n > 0)
    if calls == 0:
        return float(some > 0), some / len(p_null)
    return float(np.clip(false / len(p_null) / calls, 0, 1)), some / len(p_null)


def certificate_by_shares(p_change, p_null, cutoff):
    false = (p_null >= cutoff).mean()
    rate = false / max(false, (p_change >= cutoff).mean()) if false else 0
    return np.array([np.minimum(rate, 1), (p_null.max(1) >= cutoff).mean()])


def certificate_as_list(p_change, p_null, cutoff):
    return [float(x) for x in certificate_in_numpy(p_change, p_null, cutoff)]


def certificate(rate, any_call=lambda false: (false > 0).mean()):
    def answer(p_change, p_null, cutoff):
        false = (p_null >= cutoff).sum(1)
        return rate(false, (p_change >= cutoff).sum(), len(p_change)), any_call(false)

    return answer


def called_above_the_cutoff(p_change, p_null, cutoff):
    return certificate_in_numpy(p_change, p_null, np.nextafter(cutoff, 1))


# ------------------------------------------------------------------------------------ 11.6


def sums_of(counts, mouse, group):
    names, first = np.unique(mouse, return_index=True)
    return np.array([counts[mouse == m].sum(0) for m in names]), group[first]


def log_shares_of(counts, mouse, group, half=0.5):
    sums, of = sums_of(counts, mouse, group)
    return np.log2((sums + half) / sums.sum(1, keepdims=True)), of


def mice_by_scipy(counts, mouse, group):
    y, of = log_shares_of(counts, mouse, group)
    return stats.ttest_ind(y[of == 1], y[of == 0], equal_var=False).statistic


def mice_by_pandas(counts, mouse, group):
    sums = pd.DataFrame(counts).groupby(mouse).sum()
    of = pd.Series(group).groupby(mouse).first()
    y = np.log2(sums.add(0.5).div(sums.sum(axis=1), axis=0))
    mean, error = (
        y.groupby(of).mean(),
        y.groupby(of).var() / of.value_counts().sort_index().values[:, None],
    )
    return (mean.loc[1] - mean.loc[0]) / np.sqrt(error.loc[1] + error.loc[0])


def mice_in_torch(counts, mouse, group):
    x, one_hot = torch.as_tensor(counts), torch.nn.functional.one_hot(torch.as_tensor(mouse))
    sums = one_hot.double().T @ x
    y = ((sums + 0.5) / sums.sum(1, keepdim=True)).log2()
    of = torch.as_tensor([group[mouse == m][0] for m in np.unique(mouse)])
    a, b = y[of == 1], y[of == 0]
    return (a.mean(0) - b.mean(0)) / (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()


def mice_in_natural_logarithms(counts, mouse, group):
    y, of = log_shares_of(counts, mouse, group)
    return stats.ttest_ind(y[of == 1] * np.log(2), y[of == 0] * np.log(2), equal_var=False)[0]


def mice_as_list(counts, mouse, group):
    return mice_by_scipy(counts, mouse, group).tolist()


def t_between(a, b, equal_var=False):
    return stats.ttest_ind(a, b, equal_var=equal_var).statistic


def mice_turned(counts, mouse, group):
    return -mice_by_scipy(counts, mouse, group)


def mice_by_student(counts, mouse, group):
    y, of = log_shares_of(counts, mouse, group)
    return t_between(y[of == 1], y[of == 0], True)


def cells_as_mice(counts, mouse, group):
    y = np.log2((counts + 0.5) / counts.sum(1, keepdims=True))
    return t_between(y[group == 1], y[group == 0])


def means_of_cells(counts, mouse, group):
    y = np.log2((counts + 0.5) / counts.sum(1, keepdims=True))
    y = np.array([y[mouse == m].mean(0) for m in np.unique(mouse)])
    of = sums_of(counts, mouse, group)[1]
    return t_between(y[of == 1], y[of == 0])


def mice_without_logarithm(counts, mouse, group):
    sums, of = sums_of(counts, mouse, group)
    y = (sums + 0.5) / sums.sum(1, keepdims=True)
    return t_between(y[of == 1], y[of == 0])


def mice_by_counts(counts, mouse, group):
    sums, of = sums_of(counts, mouse, group)
    y = np.log2(sums + 0.5)
    return t_between(y[of == 1], y[of == 0])


def mice_in_order_of_number(counts, mouse, group):
    y = log_shares_of(counts, mouse, group)[0]
    return t_between(y[: len(y) // 2], y[len(y) // 2 :])


def mice_by_parity(counts, mouse, group):
    y = log_shares_of(counts, mouse, group)[0]
    return t_between(y[::2], y[1::2])


RIGHT = {
    "11.1": [
        ratio_in_numpy, ratio_in_torch, ratio_by_loop, ratio_by_heaviside,
        ratio_in_single_precision,
    ],
    "11.2": [
        all_in_torch, all_by_product_in_a_sample, all_by_loop, all_by_counting, all_by_frames,
    ],
    "11.3": [
        groups_in_torch, groups_by_draws, groups_by_sums, groups_with_epsilon_first,
        groups_in_single_precision,
    ],
    "11.4": [list_by_cumsum, list_in_torch, list_by_loop, list_by_search, list_in_pandas],
    "11.5": [
        certificate_in_numpy, certificate_in_torch, certificate_by_loop, certificate_by_shares,
        certificate_as_list,
    ],
    "11.6": [
        mice_by_scipy, mice_by_pandas, mice_in_torch, mice_in_natural_logarithms, mice_as_list,
    ],
}  # fmt: skip

WRONG = {
    "11.1": [
        (of_p(lambda a, b: 1 - right_p(a, b)), "the sign turned"),
        (of_p(right_p, lambda p: 0 * p), "both hypotheses are one"),
        (of_p(right_p, lambda p: np.log(p / 0.5)), "divided by the unconditional"),
        (of_p(right_p, np.log), "divided by all samples"),
        (of_p(lambda a, b: ((a > b) + (a == b) / 2).mean(0)), "no half count"),
        (of_p(lambda a, b: ((a > b).sum(0) + 0.5) / (len(a) + 1)), "ties not counted"),
        (of_p(lambda a, b: ((a >= b).sum(0) + 0.5) / (len(a) + 1)), "ties counted for a"),
        (of_p(right_p, lambda p: np.log10(p / (1 - p))), "base 10"),
    ],
    "11.2": [
        (lambda a, b: np.prod((a > b).mean(0)), "z per gene"),
        (lambda a, b: np.exp(np.log((a > b).mean(0)).sum()), "z per gene"),
        (lambda a, b: (b > a).all(1).mean(), "the sign turned"),
        (lambda a, b: 1 - (a <= b).all(1).mean(), "one gene is enough"),
        (lambda a, b: (a > b).mean(1).mean(), "the mean over genes"),
        (lambda a, b: (a > b).mean(0).min(), "the weakest gene"),
    ],
    "11.3": [
        (groups_of(log=lambda r: -np.log2(r)), "the sign turned"),
        (groups_of(log=np.log), "natural logarithm"),
        (lambda a, b, e: np.log2(a + e).mean(1) - np.log2(b + e).mean(1), "mean of the logarithms"),
        (groups_of(mean=lambda rho: rho.sum(1)), "sums, not means"),
        (groups_of(epsilon_on=0), "no ε"),
        (groups_of(mean=lambda rho: np.median(rho, 1)), "a median cell"),
        (groups_of(mean=lambda rho: rho[:, 0]), "one pair of cells"),
    ],
    "11.4": [
        (lambda p, level: (p >= 1 - level).sum(), "each gene by itself"),
        (
            lambda p, level: (stats.false_discovery_control(1 - p) <= level).sum(),
            "Benjamini–Hochberg",
        ),
        (
            lambda p, level: (np.sort(1 - p).cumsum() / len(p) <= level).sum(),
            "divided by all genes",
        ),
        (in_given_order, "not in order"),
        (lambda p, level: (p <= level).sum(), "a probability as a p-value"),
        (lambda p, level: (np.sort(1 - p).cumsum() <= level).sum(), "the expected number"),
        (lambda p, level: (rates_of(p) < level).sum(), "below the level"),
        (lambda p, level: int(np.argmax(rates_of(p) > level)), None),  # a full list
        (lambda p, level: int(np.flatnonzero(rates_of(p) <= level)[-1]) + 1, None),  # an empty one
        (lambda p, level: max(1, (rates_of(p) <= level).sum()), None),
    ],
    "11.5": [
        (certificate(lambda f, c, g: f.mean() / g), "false positives among all genes"),
        (certificate(lambda f, c, g: min(1, f.sum() / c)), "all nulls together"),
        (certificate(lambda f, c, g: f.mean() / c), "not limited to 1"),
        (certificate(lambda f, c, g: f.mean() / (c + f.mean())), "null calls as part of the list"),
        (certificate(lambda f, c, g: min(1, f.max() / c)), "the worst null"),
        (
            certificate(lambda f, c, g: min(1, f.mean() / c), lambda f: (f == 0).mean()),
            "the share of nulls without a call",
        ),
        (certificate(lambda f, c, g: np.minimum(1, f / c).mean()), "each null limited to 1"),
        (called_above_the_cutoff, "above the cutoff"),
        (certificate(lambda f, c, g: min(1, f.mean() / max(c, 1))), None),  # the empty lists
        (certificate(lambda f, c, g: min(1, f.mean() / c) if c else 0), None),
        (certificate(lambda f, c, g: min(1, f.mean() / c)), None),
    ],
    "11.6": [
        (cells_as_mice, "cells as replicates"),
        (mice_turned, "the sign turned"),
        (mice_in_order_of_number, "group is not read"),
        (mice_by_parity, None),
        (mice_by_student, "one variance for both groups"),
        (means_of_cells, "the mean of the cells"),
        (mice_without_logarithm, "shares without a logarithm"),
        (mice_by_counts, "counts, not shares"),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    pass_all(name, RIGHT[name], SEEDS)


UNFIT = {
    "11.1": [
        lambda a, b: [torch.as_tensor(x) for x in ratio_in_numpy(a, b)],
        lambda a, b: [x.tolist() for x in ratio_in_numpy(a, b)],
    ],
    "11.3": [
        lambda *inputs: torch.as_tensor(groups_by_sums(*inputs)),
        lambda *inputs: list(groups_by_sums(*inputs)),
        lambda *inputs: groups_by_sums(*inputs).tolist(),
    ],
}


@pytest.mark.parametrize("name", UNFIT)
def test_right_numbers_that_later_cells_cannot_use_are_told_so(name):
    for answer in UNFIT[name]:
        verdict = verdict_on(name, answer)
        assert not verdict.passed and "later cells need a numpy array" in str(verdict)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_told_what_is_wrong(name):
    fail_by_name(name, WRONG[name], SEEDS)
