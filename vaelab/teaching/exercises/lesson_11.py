"""Exercises of lesson 11: differential expression."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 11.1: the ratio


def draw_samples(rng: np.random.Generator) -> list[dict]:
    """Four samples of two genes, then sixty of six: one always higher, and some samples equal."""
    simple = {
        "rho_a": np.array([[0.5, 0.5], [0.6, 0.2], [0.4, 0.4], [0.7, 0.1]]),
        "rho_b": np.array([[0.3, 0.5], [0.2, 0.6], [0.5, 0.3], [0.1, 0.2]]),
    }
    rho = rng.uniform(0.1, 0.4, (2, 60, 6)).round(2)
    rho[0, :, 0] += 0.5  # no sample of b is higher
    rho[1, :, 1] += 0.1
    rho[1, :30, 2] = rho[0, :30, 2]
    return [simple, {"rho_a": rho[0], "rho_b": rho[1]}]


def evidence_for(probability=None, ratio=None):
    """The probability and the log Bayes factor; each argument puts in a mistake."""

    def outcome(rho_a, rho_b):
        from scipy.special import logit

        signs = np.sign(np.asarray(rho_a) - rho_b)
        p = (probability or by_signs)(signs)
        return p, (ratio or logit)(p)

    return outcome


def by_signs(signs):
    """The mean of the signs goes from −1 to 1; a sample for each side is half of one to each."""
    total, n = signs.sum(0), len(signs)
    return 0.5 + 0.5 * total / (n + 1)


# 11.2: one z for all genes


def draw_lists(rng: np.random.Generator) -> list[dict]:
    """Two genes that are always right together, then lists of genes that share a cause."""
    simple = {
        "rho_a": np.array([[0.4, 0.4], [0.4, 0.4], [0.1, 0.1], [0.4, 0.4]]),
        "rho_b": np.array([[0.2, 0.2], [0.2, 0.2], [0.2, 0.2], [0.3, 0.3]]),
    }
    cases = [simple]
    for n_genes in (4, 7):
        common = rng.normal(0, 0.3, (2, 200, 1))
        rho = 0.01 * np.exp(common + rng.normal(0, 0.1, (2, 200, n_genes)))
        rho[0] *= 1.35
        cases.append({"rho_a": rho[0], "rho_b": rho[1]})
    return cases


def lowest_difference_above_zero(rho_a, rho_b):
    """All differences are above zero if the lowest is."""
    return np.mean([min(a - b) > 0 for a, b in zip(rho_a, rho_b, strict=True)])


# 11.3: fold changes of groups


def draw_groups(rng: np.random.Generator) -> list[dict]:
    """One draw of two cells and of three, then twenty draws of larger groups."""
    simple = {
        "rho_a": np.array([[[0.1, 0.9], [0.7, 0.3]]]),
        "rho_b": np.array([[[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]]),
        "epsilon": 0.01,
    }
    many = rng.dirichlet(np.full(5, 0.4), (20, 13)) + 1e-6
    return [simple, {"rho_a": many[:, :5], "rho_b": many[:, 5:], "epsilon": 0.02}]


def fold_changes_with(mean=None, log=None, sign=1, eps=1.0):
    """The fold change of each draw; each argument puts in a mistake."""

    def outcome(rho_a, rho_b, epsilon):
        a, b = ((mean or by_einsum)(np.asarray(rho)) for rho in (rho_a, rho_b))
        ratio = (a + eps * epsilon) / (b + eps * epsilon)
        return sign * (log or (lambda r: np.log(r) / np.log(2)))(ratio)

    return outcome


def by_einsum(rho):
    return np.einsum("sng,n->sg", rho, np.full(rho.shape[1], 1 / rho.shape[1]))


def of_logs(rho_a, rho_b, epsilon):
    a, b = (np.log2(np.asarray(rho) + epsilon).mean(1) for rho in (rho_a, rho_b))
    return a - b


# 11.4: how long a list


def draw_probabilities(rng: np.random.Generator) -> list[dict]:
    """A list that ends exactly at the level, a full one, an empty one, and one of a thousand genes.

    The first has numbers without a rounding error. No two genes have the same probability.
    """
    sure = 1 - 10 ** rng.uniform(-3.5, -0.5, 300)
    many = rng.permutation(np.append(sure, rng.beta(1, 3, 700)))
    return [
        {"p_change": np.array([0.625, 0.875, 0.25, 0.75]), "level": 0.25},
        {"p_change": np.array([0.98, 0.99, 0.97]), "level": 0.05},
        {"p_change": np.array([0.5, 0.2, 0.7]), "level": 0.05},
        {"p_change": many, "level": float(rng.choice([0.01, 0.05, 0.1]))},
    ]


def longest(over=None, order=np.sort, most=np.less_equal):
    """The largest k for which the risk of the first k genes is at most the level."""

    def outcome(p_change, level):
        risks = order(1 - np.asarray(p_change))
        lengths = [
            k for k in range(1, len(risks) + 1)
            if most(risks[:k].sum(), level * (over or (lambda k, n: k))(k, len(risks)))
        ]  # fmt: skip
        return np.asarray(max(lengths, default=0))

    return outcome


def each_by_itself(p_change, level):
    return np.asarray((1 - p_change <= level).sum())


def benjamini_hochberg(p_change, level):
    p = np.sort(1 - np.asarray(p_change))
    passed = np.flatnonzero(p <= level * np.arange(1, len(p) + 1) / len(p))
    return np.asarray(passed.max(initial=-1) + 1)


def probability_as_p_value(p_change, level):
    return np.asarray((p_change <= level).sum())


# 11.5: the certificate


def draw_nulls(rng: np.random.Generator) -> list[dict]:
    """Four genes and two nulls, then many, then an empty list without and with a null's call.

    In the first case, p equals the cutoff three times. In the second, one null of ten has more
    calls than the list; in the third, all have.
    """
    simple = {
        "p_change": np.array([0.99, 0.875, 0.3, 0.97]),
        "p_null": np.array([[0.1, 0.92, 0.875, 0.1], [0.2, 0.3, 0.4, 0.875]]),
        "cutoff": 0.875,
    }
    p, nulls = rng.beta(1, 1, 200), rng.beta(1, 4, (10, 200))
    nulls[:4] = nulls[:4].clip(max=0.6)
    nulls[4] = rng.beta(4, 1, 200)
    none = np.array([0.3, 0.6, 0.2, 0.1])
    without = np.array([[0.1, 0.5, 0.4, 0.2], [0.2, 0.3, 0.7, 0.1]])
    with_one = np.array([[0.1, 0.95, 0.4, 0.2], [0.2, 0.3, 0.7, 0.1]])
    few = rng.beta(1, 4, 200).clip(max=0.65)
    few[:3] = 0.9
    return [
        simple,
        {"p_change": p, "p_null": nulls, "cutoff": 0.7},
        {"p_change": few, "p_null": rng.beta(2, 2, (5, 200)), "cutoff": 0.7},
        {"p_change": none, "p_null": without, "cutoff": 0.9},
        {"p_change": none, "p_null": with_one, "cutoff": 0.9},
    ]


def measured_with(rate=None, any_call=None, called=lambda p, cutoff: p >= cutoff):
    """The measured rate and the share of nulls with a call, one null after the other."""

    def outcome(p_change, p_null, cutoff):
        calls = sum(1 for p in p_change if called(p, cutoff))
        false = [sum(1 for p in null if called(p, cutoff)) for null in p_null]
        shares = [float(n > 0) for n in false]
        of_list = rate or (lambda f, c, g: min(1.0, np.mean(f) / c))
        found = of_list(false, calls, len(p_change)) if calls else max(shares)
        return np.asarray(found), np.asarray((any_call or np.mean)(shares))

    return outcome


# 11.6: mice, not cells


def draw_mice(rng: np.random.Generator) -> list[dict]:
    """Two mice of two cells in each group, then three and four mice with uneven numbers.

    The groups are mixed among the numbers of the mice, so that ``group`` has to be read.
    """
    simple = {
        "counts": np.array(
            [[2, 8], [3, 7], [4, 6], [2, 8], [5, 5], [6, 4], [9, 11], [5, 5]], float
        ),
        "mouse": np.array([0, 0, 1, 1, 2, 2, 3, 3]),
        "group": np.array([0, 0, 1, 1, 1, 1, 0, 0]),
    }
    mouse = np.concatenate([np.arange(7), np.arange(7), rng.integers(7, size=66)])
    share = rng.dirichlet(np.full(5, 3.0)) * np.exp(0.4 * rng.standard_normal((7, 5)))
    size = rng.integers(5, 60, 80)
    counts = rng.poisson(size[:, None] * share[mouse] / share.sum(1)[mouse, None])
    counts[:, 0] += 1  # no cell is empty
    group = np.array([0, 1, 0, 0, 1, 1, 0])[mouse]
    return [simple, {"counts": counts.astype(float), "mouse": mouse, "group": group}]


def welch(a, b):
    """(mean a − mean b) / √(v_a/n_a + v_b/n_b), with v over n − 1."""
    v = [np.square(x - x.sum(0) / len(x)).sum(0) / (len(x) - 1) / len(x) for x in (a, b)]
    return (a.sum(0) / len(a) - b.sum(0) / len(b)) / np.sqrt(v[0] + v[1])


def student(a, b):
    n, m = len(a), len(b)
    pooled = ((n - 1) * a.var(0, ddof=1) + (m - 1) * b.var(0, ddof=1)) / (n + m - 2)
    return (a.mean(0) - b.mean(0)) / np.sqrt(pooled * (1 / n + 1 / m))


def between_mice(value=None, test=welch, units="mouse", group_of=None):
    """Welch's t between replicates; each argument puts in a mistake."""

    def outcome(counts, mouse, group):
        group = group_of(mouse) if group_of else group
        unit = mouse if units == "mouse" else np.arange(len(counts))
        groups = [[], []]
        for one in dict.fromkeys(unit.tolist()):
            rows = [i for i in range(len(unit)) if unit[i] == one]
            groups[group[rows[0]]].append((value or share_of_sums)(counts[rows]))
        return test(np.array(groups[1]), np.array(groups[0]))

    return outcome


def share_of_sums(rows, half=0.5):
    n = sum(rows)
    return np.log2((n + half) / n.sum())


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="11.1",
            title="The ratio that was left out",
            points=3,
            draw=draw_samples,
            oracle=evidence_for(),
            call="arrays",
            returns="array",  # later cells call its methods
            results=("the probability", "the log Bayes factor"),
            verified="Agrees with the mean sign of ρ_a − ρ_b and its logit, for 8 genes.",
            misconceptions=(
                Misconception(
                    "the sign turned",
                    evidence_for(lambda s: 1 - by_signs(s)),
                    "This is the probability that b is higher. Which cell comes first in "
                    "P(ρ_a > ρ_b)?",
                ),
                Misconception(
                    "both hypotheses are one",
                    evidence_for(ratio=lambda p: np.zeros_like(p)),
                    "Your probability is right, but your ratio is 1 for every gene. The source "
                    "calls both hypotheses H₁; here they need two names and two probabilities.",
                ),
                Misconception(
                    "divided by the unconditional",
                    evidence_for(ratio=lambda p: np.log(2 * p)),
                    "You divided P(H_a | x) by P(H_a), which says how much the data changed one "
                    "probability. A ratio of two hypotheses has the other one below.",
                ),
                Misconception(
                    "divided by all samples",
                    evidence_for(ratio=np.log),
                    "This is the logarithm of P itself, never above 0. What stands below the line "
                    "in the ratio of the two hypotheses?",
                ),
                Misconception(
                    "no half count",
                    evidence_for(lambda s: 0.5 + 0.5 * s.mean(0)),
                    "Without the half counts, a gene that is higher in all samples has an infinite "
                    "Bayes factor. So many samples cannot show that.",
                ),
                Misconception(
                    "ties not counted",
                    evidence_for(lambda s: ((s > 0).sum(0) + 0.5) / (len(s) + 1)),
                    "Where both are equal, you count the sample for b. Then exchanging a and b "
                    "does not turn the sign of your result. Give half of it to each side.",
                ),
                Misconception(
                    "ties counted for a",
                    evidence_for(lambda s: ((s >= 0).sum(0) + 0.5) / (len(s) + 1)),
                    "Where both are equal, you count the sample for a. Then exchanging a and b "
                    "does not turn the sign of your result. Give half of it to each side.",
                ),
                Misconception(
                    "half a count on one side",
                    evidence_for(lambda s: (0.5 * (s.sum(0) + len(s)) + 0.5) / (len(s) + 0.5)),
                    "P(a) and P(b) should sum to 1. If each side gets half a count, how many are "
                    "there in total?",
                ),
                Misconception(
                    "base 10",
                    evidence_for(ratio=lambda p: np.log10(p / (1 - p))),
                    "The probability is right. The ratio is asked for in nats.",
                ),
            ),
        ),
        Exercise(
            name="11.2",
            title="One z for all genes",
            points=2,
            draw=draw_lists,
            oracle=lowest_difference_above_zero,
            call="arrays",
            verified="Agrees with the lowest difference of each sample, for lists of 2, 4 and 7 "
            "genes.",
            misconceptions=(
                Misconception(
                    "z per gene",
                    lambda rho_a, rho_b: (rho_a > rho_b).mean(0).prod(),
                    "A product of the genes' probabilities treats them as independent, as if each "
                    "gene had a z of its own. But one z makes all genes of a sample. Look at a "
                    "whole sample at a time.",
                ),
                Misconception(
                    "the sign turned",
                    lambda rho_a, rho_b: (rho_a < rho_b).all(1).mean(),
                    "This is the probability that all genes are higher in b.",
                ),
                Misconception(
                    "one gene is enough",
                    lambda rho_a, rho_b: (rho_a > rho_b).any(1).mean(),
                    "You count samples in which any gene is higher. The list is right if all are.",
                ),
                Misconception(
                    "the mean over genes",
                    lambda rho_a, rho_b: (rho_a > rho_b).mean(),
                    "This is the expected share of right genes. The probability that none is wrong "
                    "is asked for.",
                ),
                Misconception(
                    "the weakest gene",
                    lambda rho_a, rho_b: (rho_a > rho_b).mean(0).min(),
                    "The probability of the weakest gene is an upper limit: the list can be wrong "
                    "because of any gene.",
                ),
            ),
        ),
        Exercise(
            name="11.3",
            title="The fold change of two groups",
            points=3,
            draw=draw_groups,
            oracle=fold_changes_with(),
            call="arrays",
            returns="array",  # a later cell takes a column
            verified="Agrees with sums over groups of 2 to 8 cells, for 21 draws.",
            misconceptions=(
                Misconception(
                    "the sign turned",
                    fold_changes_with(sign=-1),
                    "Positive should mean higher in a. Which group is above the line?",
                ),
                Misconception(
                    "natural logarithm",
                    fold_changes_with(log=np.log),
                    "A doubling should give 1. Which logarithm does that?",
                ),
                Misconception(
                    "mean of the logarithms",
                    of_logs,
                    "You take the logarithm of each cell before the mean. A few cells with almost "
                    "nothing then decide. Take the mean share of the group first.",
                ),
                Misconception(
                    "sums, not means",
                    fold_changes_with(mean=lambda rho: rho.sum(1)),
                    "Your result depends on how many cells a group has. With twice as many cells, "
                    "is a gene twice as high?",
                ),
                Misconception(
                    "no ε",
                    fold_changes_with(eps=0.0),
                    "ε is not in your result. Without it, a gene that hardly occurs can have any "
                    "fold change.",
                ),
                Misconception(
                    "a median cell",
                    fold_changes_with(mean=lambda rho: np.median(rho, axis=1)),
                    "This compares median cells. The mean share of each group is asked for.",
                ),
                Misconception(
                    "one pair of cells",
                    fold_changes_with(mean=lambda rho: rho[:, 0]),
                    "You compare the first cell of each group. The mean over the group's cells is "
                    "asked for.",
                ),
            ),
        ),
        Exercise(
            name="11.4",
            title="How long may the list be?",
            points=3,
            draw=draw_probabilities,
            oracle=longest(),
            call="arrays",
            verified="Agrees with trying every length, for four lists.",
            misconceptions=(
                Misconception(
                    "each gene by itself",
                    each_by_itself,
                    "You ask that each gene alone is wrong with at most this probability. The list "
                    "as a whole may be wrong so often on average: sure genes make room for less "
                    "sure ones.",
                ),
                Misconception(
                    "Benjamini–Hochberg",
                    benjamini_hochberg,
                    "1 − p is a probability that the gene is false, not a p-value. The rule of "
                    "Benjamini and Hochberg is for p-values.",
                ),
                Misconception(
                    "divided by all genes",
                    longest(over=lambda k, n: n),
                    "The rate is a share of the *called* genes. By how many did you divide?",
                ),
                Misconception(
                    "not in order",
                    longest(order=np.asarray),
                    "Your list takes the genes as they come. Which should come first?",
                ),
                Misconception(
                    "a probability as a p-value",
                    probability_as_p_value,
                    "You call genes with a *small* p. But p is the probability that the gene "
                    "changes.",
                ),
                Misconception(
                    "below the level",
                    longest(most=np.less),
                    "A list whose expected rate equals the level is allowed, too.",
                ),
                Misconception(
                    "the expected number",
                    longest(over=lambda k, n: 1),
                    "You limit the expected *number* of false genes. The rate is their share of "
                    "the list.",
                ),
            ),
        ),
        Exercise(
            name="11.5",
            title="A certificate",
            points=2,
            draw=draw_nulls,
            oracle=measured_with(),
            call="arrays",
            extreme=2,  # the empty lists
            results=("the measured rate", "the share of nulls with a call"),
            verified="Agrees with counting one null after the other, for 21 nulls.",
            misconceptions=(
                Misconception(
                    "false positives among all genes",
                    measured_with(lambda f, c, g: np.mean(f) / g),
                    "This is the share of *all* genes that a null calls. How many of the genes on "
                    "your *list* does that explain?",
                ),
                Misconception(
                    "all nulls together",
                    measured_with(lambda f, c, g: min(1.0, sum(f) / c)),
                    "You compare the calls of all nulls with those of one list. How many does one "
                    "null have?",
                ),
                Misconception(
                    "not limited to 1",
                    measured_with(lambda f, c, g: np.mean(f) / c),
                    "A share is at most 1, but your rate can be more: where the nulls have more "
                    "calls than the list.",
                ),
                Misconception(
                    "null calls as part of the list",
                    measured_with(lambda f, c, g: np.mean(f) / (np.mean(f) + c)),
                    "The null's calls are not added to the list. They estimate how many of the "
                    "genes on it are false.",
                ),
                Misconception(
                    "the worst null",
                    measured_with(lambda f, c, g: min(1.0, max(f) / c)),
                    "You took the null with the most calls. The mean over nulls is asked for.",
                ),
                Misconception(
                    "each null limited to 1",
                    measured_with(lambda f, c, g: np.mean([min(1.0, n / c) for n in f])),
                    "You limit the ratio of each null to 1 before the mean. A null with many calls "
                    "then counts for too little. Which number is a share?",
                ),
                Misconception(
                    "above the cutoff",
                    measured_with(called=lambda p, cutoff: p > cutoff),
                    "A gene whose p equals the cutoff is called, too.",
                ),
                Misconception(
                    "the share of nulls without a call",
                    measured_with(any_call=lambda shares: 1 - np.mean(shares)),
                    "The first result is right. The second counts the nulls without a call.",
                ),
            ),
        ),
        Exercise(
            name="11.6",
            title="Mice, not cells",
            points=3,
            draw=draw_mice,
            oracle=between_mice(),
            call="arrays",
            verified="Agrees with Welch's formula, for 4 and 7 mice.",
            misconceptions=(
                Misconception(
                    "cells as replicates",
                    between_mice(units="cell"),
                    "Your t has the cells as replicates. Cells of one mouse share what the mouse "
                    "has; how many independent values are there?",
                ),
                Misconception(
                    "the sign turned",
                    between_mice(test=lambda a, b: welch(b, a)),
                    "Positive should mean higher in group 1.",
                ),
                Misconception(
                    "group is not read",
                    between_mice(group_of=lambda mouse: (mouse < (mouse.max() + 1) // 2) + 0),
                    "You take the first half of the mice as group 1. The numbers of the mice do "
                    "not say which group they are in; `group` does.",
                ),
                Misconception(
                    "one variance for both groups",
                    between_mice(test=student),
                    "This is Student's t, with one variance for both groups. Welch's has one for "
                    "each.",
                ),
                Misconception(
                    "no half count",
                    between_mice(lambda rows: share_of_sums(rows, half=1e-300)),
                    "The half count is missing: a gene that one mouse does not have gives −∞.",
                ),
                Misconception(
                    "the mean of the cells",
                    between_mice(lambda rows: np.mean([share_of_sums(r[None]) for r in rows], 0)),
                    "You take logarithms of single cells, most of which have a count of 0 or 1, "
                    "and then their mean. Sum the counts of the mouse first.",
                ),
                Misconception(
                    "shares without a logarithm",
                    between_mice(lambda rows: 2 ** share_of_sums(rows)),
                    "You compare shares. Fold changes are differences of log2 shares.",
                ),
                Misconception(
                    "counts, not shares",
                    between_mice(lambda rows: np.log2(sum(rows) + 0.5)),
                    "A mouse with more cells, or deeper ones, has more of every gene in your "
                    "table. By what should its counts be divided?",
                ),
            ),
        ),
    )
}
