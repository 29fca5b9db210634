"""Exercises of lesson 13: types for cells without a label."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 13.1: balanced accuracy and macro-F1


def draw_named(rng: np.random.Generator) -> list[dict]:
    """Ten cells; then 300 of unequal types, one never predicted, and two names that no cell has.

    With one such name, a mean over the names that were predicted would be right by accident.
    """
    simple = {
        "truth": np.array(["beta"] * 8 + ["alpha"] * 2),
        "predicted": np.array(["beta"] * 9 + ["alpha"]),
    }
    types = np.array(["alpha", "beta", "delta", "gamma", "schwann"])
    truth = rng.choice(types, 300, p=[0.1, 0.6, 0.2, 0.06, 0.04])
    truth[:5] = types
    named = np.append(types[:-1], ["immune", "doublet"])  # no cell is predicted to be schwann
    predicted = np.where(rng.random(300) < 0.7, truth, rng.choice(named, 300))
    predicted[truth == "schwann"] = "immune"
    predicted[np.flatnonzero(truth == "beta")[0]] = "doublet"  # for every seed
    return [simple, {"truth": truth, "predicted": predicted}]


def by_scikit_learn(truth, predicted, f1_of=None, average="macro"):
    from sklearn.metrics import f1_score, recall_score

    types = np.unique(truth)
    options = {"zero_division": 0, "average": average}
    recall = recall_score(truth, predicted, labels=types, **options)
    f1_of = types if f1_of is None else f1_of(truth, predicted)
    return np.asarray(recall), np.asarray(
        f1_score(truth, predicted, labels=f1_of, zero_division=0, average=average)
    )


def accuracy_twice(truth, predicted):
    _, macro_f1 = by_scikit_learn(truth, predicted)
    return np.asarray((truth == predicted).mean()), macro_f1


def precision_and_f1(truth, predicted):
    from sklearn.metrics import precision_score

    _, macro_f1 = by_scikit_learn(truth, predicted)
    of = {"labels": np.unique(truth), "zero_division": 0, "average": "macro"}
    return np.asarray(precision_score(truth, predicted, **of)), macro_f1


def f1_of_the_means(truth, predicted):
    precision, _ = precision_and_f1(truth, predicted)
    recall, _ = by_scikit_learn(truth, predicted)
    return recall, 2 * precision * recall / (precision + recall)


def named_types_only(truth, predicted):
    return np.intersect1d(truth, predicted)


def every_name(truth, predicted):
    return np.union1d(truth, predicted)


def means_over_predicted(truth, predicted):
    from sklearn.metrics import f1_score, recall_score

    options = {"labels": np.unique(predicted), "zero_division": 0, "average": "macro"}
    scores = recall_score(truth, predicted, **options), f1_score(truth, predicted, **options)
    return tuple(map(np.asarray, scores))


# 13.2: calibration


def draw_confident(rng: np.random.Generator) -> list[dict]:
    """Four cells in two bins; then 400 cells, one in ten of them with confidence 1."""
    simple = {
        "confidence": np.array([0.3, 0.7, 0.9, 1.0]),
        "right": np.array([True, True, True, False]),
        "n_bins": 2,
    }
    cases = [simple]
    for n_bins in (10, 15):
        confidence = 0.2 + 0.8 * rng.beta(3, 1, 400)
        confidence[:40] = 1.0
        right = (
            rng.random(400) < 0.45 + 0.3 * confidence
        )  # first underconfident, then overconfident
        cases.append({"confidence": confidence, "right": right, "n_bins": n_bins})
    return cases


def by_bins(confidence, right, n_bins):
    """The share of cells, the mean confidence and the accuracy of each bin that has cells."""
    from scipy.stats import binned_statistic

    edges = {"bins": n_bins, "range": (0, 1)}
    n = binned_statistic(confidence, confidence, "count", **edges).statistic
    used = n > 0
    mean = [
        binned_statistic(confidence, np.asarray(v, float), "mean", **edges).statistic[used]
        for v in (confidence, right)
    ]
    return n[used] / n.sum(), *mean


def calibration_error(confidence, right, n_bins):
    share, claimed, found = by_bins(confidence, right, n_bins)
    return np.asarray(share @ np.abs(claimed - found))


def calibration_with(summary):
    return lambda *case, **named: np.asarray(summary(*by_bins(*case, **named)))


def last_bin_open(confidence, right, n_bins):
    """Cells with confidence 1 belong to no bin."""
    below = confidence < 1
    share, claimed, found = by_bins(confidence[below], right[below], n_bins)
    return np.asarray(share @ np.abs(claimed - found) * below.mean())


def one_bin_more(confidence, right, n_bins):
    """Cells with confidence 1 are a bin of their own."""
    certain = confidence == 1
    claimed_too_much = abs((1.0 - right)[certain].sum()) / len(right)
    return last_bin_open(confidence, right, n_bins) + claimed_too_much


def middle_of_the_bin(confidence, right, n_bins):
    share, claimed, found = by_bins(confidence, right, n_bins)
    middle = (np.ceil(claimed * n_bins) - 0.5) / n_bins
    return np.asarray(share @ np.abs(middle - found))


def each_cell(confidence, right, n_bins):
    return np.asarray(np.abs(confidence - right).mean())


# 13.3: entropy as a flag


def draw_flagged(rng: np.random.Generator) -> list[dict]:
    """Three cells; then 200 of five types, one in four of them certain."""
    simple = {
        "q": np.array([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]]),
        "is_new": np.array([False, True, False]),
    }
    undecided = {  # zeros in a cell that is not certain
        "q": np.array([[0.5, 0.5, 0.0], [0.8, 0.1, 0.1], [1.0, 0.0, 0.0]]),
        "is_new": np.array([True, False, False]),
    }
    is_new = rng.random(200) < 0.3
    is_new[:2] = [True, False]
    q = rng.dirichlet(0.3 * np.ones(5), 200)
    q[is_new] = 0.6 * q[is_new] + 0.4 * rng.dirichlet(np.ones(5), is_new.sum())
    sure = rng.random(200) < 0.25
    q[sure] = np.eye(5)[rng.integers(5, size=sure.sum())]
    order = rng.permutation(200)
    return [simple, undecided, {"q": q[order], "is_new": is_new[order]}]


def flag_by(score):
    """Scikit-learn's AUROC of a score of each cell."""

    def auroc(q, is_new):
        from sklearn.metrics import roc_auc_score

        return np.asarray(roc_auc_score(is_new, score(q)))

    return auroc


def entropies(q):
    from scipy import special

    return special.entr(q).sum(-1)


def mean_over_pairs(count):
    """The mean of ``count(entropy, entropy)`` over all pairs of a new cell and a known one."""

    def auroc(q, is_new):
        with np.errstate(all="ignore"):
            h = entropies(q)
            return np.asarray(count(h[is_new][:, None], h[~is_new]).mean())

    return auroc


def zero_of_a_row(q, is_new):
    """The NaN of 0 log 0 replaced after the sum: the entropy of a cell with any 0 becomes 0."""
    return auroc_with(np.where((q == 0).any(1), 0.0, entropies(q)), is_new)


def nan_of_certain_cells(q, is_new):
    return auroc_with(np.where((q == 0).any(1), np.nan, entropies(q)), is_new)


def auroc_with(h, is_new):
    a, b = h[is_new][:, None], h[~is_new]
    return np.asarray(((a > b) + (a == b) / 2).mean())


# 13.4: a test against wrong labels


def draw_noise(rng: np.random.Generator) -> list[dict]:
    cases = [{"measured": 0.7, "flipped": 0.2, "n_types": 2}]
    for _ in range(20):
        n_types, flipped = int(rng.integers(2, 15)), float(rng.uniform(0.02, 0.4))
        measured = against_noise(float(rng.uniform(0.5, 1)), flipped, n_types)
        cases.append({"measured": measured, "flipped": flipped, "n_types": n_types})
    return cases


def against_noise(accuracy, flipped, n_types):
    """By enumeration: P(named | true) · P(label | true), summed over all pairs that agree."""
    named = np.full((n_types, n_types), (1 - accuracy) / (n_types - 1))
    np.fill_diagonal(named, accuracy)
    label = np.full((n_types, n_types), flipped / (n_types - 1))
    np.fill_diagonal(label, 1 - flipped)
    return float((named * label).sum() / n_types)


def true_accuracy(measured, flipped, n_types):
    """The accuracy at which the line through two enumerated points has the measured value."""
    never, always = (against_noise(a, flipped, n_types) for a in (0.0, 1.0))
    return np.interp(measured, [never, always], [0.0, 1.0])


# 13.5: the weight of one label


def draw_weights(rng: np.random.Generator) -> list[dict]:
    """Ten cells, one of them labelled; then more cells, sometimes with few labels."""
    case = {"ratio": 50.0, "n_cells": 10, "n_labelled": 1, "batch_size": 5}
    cases = [case]
    for _ in range(12):
        n_cells, batch_size = int(rng.integers(300, 4000)), int(rng.integers(16, 200))
        n_labelled = int(rng.choice([rng.integers(2, 12), rng.integers(20, 250)]))
        cases.append(
            {
                "ratio": float(rng.uniform(1, 100)),
                "n_cells": n_cells,
                "n_labelled": n_labelled,
                "batch_size": batch_size,
            }
        )
    return cases


def weight_of_a_label(ratio, n_cells, n_labelled, batch_size):
    """The mean of ratio · (cells / labelled cells) over minibatches that hold one labelled cell."""
    from scipy import stats

    others = np.arange(min(n_labelled, batch_size))  # further labelled cells of the minibatch
    p = stats.hypergeom.pmf(others, n_cells - 1, n_labelled - 1, batch_size - 1)
    return np.asarray(ratio * (p * batch_size / (1 + others)).sum())


# 13.6: the classifier's loss


def draw_logits(rng: np.random.Generator) -> list[dict]:
    """Two cells, one of them labelled; many; some with a softmax of exactly 0; none labelled."""
    cases = [{"logits": np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), "label": np.array([0, -1])}]
    for dtype in (np.float64, np.float32):
        logits = rng.normal(0, 2, (60, 6)).astype(dtype)
        label = np.where(rng.random(60) < 0.4, rng.integers(6, size=60), -1)
        label[:2] = [3, -1]
        cases.append({"logits": logits, "label": label})
    sure = np.where(np.eye(5) > 0, 900.0, 0.0)
    cases.append({"logits": sure, "label": np.array([0, 1, 2, 3, 0])})
    return [*cases, {"logits": rng.normal(0, 2, (8, 4)), "label": np.full(8, -1)}]


def classifier_loss(
    logits, label, times=1, clamp=False, over="labelled", exact=True, none=0.0, epsilon=None
):
    """The loss cell by cell, by scipy; each argument puts a mistake in."""
    from scipy import special

    logits = np.asarray(logits, float)
    for _ in range(times - 1):
        logits = special.softmax(logits, axis=-1)
    log_q = special.log_softmax(logits, axis=-1)
    if not exact:
        with np.errstate(divide="ignore"):
            log_q = np.log(special.softmax(logits, axis=-1))
    if epsilon is not None:
        log_q = np.log(special.softmax(logits, axis=-1) + epsilon)
    label = np.maximum(label, 0) if clamp else label
    each = [-row[c] for row, c in zip(log_q, label, strict=True) if c >= 0]
    n = len(label) if over == "all" else len(each)
    return np.asarray(sum(each) / n if each else none)


def loss_with(**mistakes):
    return lambda logits, label: classifier_loss(logits, label, **mistakes)


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="13.1",
            title="Two scores that count types",
            points=3,
            draw=draw_named,
            oracle=by_scikit_learn,
            call="arrays",
            results=("balanced accuracy", "macro-F1"),
            verified="Both agree with scikit-learn, also for a type that is never predicted and "
            "names that no cell has.",
            misconceptions=(
                Misconception(
                    "accuracy for balanced accuracy",
                    accuracy_twice,
                    "Your balanced accuracy counts cells. A type with 500 cells and one with 5 "
                    "should count equally.",
                ),
                Misconception(
                    "precision for recall",
                    precision_and_f1,
                    "Your balanced accuracy asks how many of those *named* beta are beta. Balanced "
                    "accuracy starts from the cells that are beta.",
                ),
                Misconception(
                    "F1 of the means",
                    f1_of_the_means,
                    "Balanced accuracy is right. In macro-F1 each type has its own F1 first; you "
                    "averaged precision and recall over types before you combined them.",
                ),
                Misconception(
                    "types never named left out",
                    lambda truth, predicted: by_scikit_learn(truth, predicted, named_types_only),
                    "Almost: a type that is never predicted is missing from your mean of F1. How "
                    "well did the annotation do on its cells?",
                ),
                Misconception(
                    "names that no cell has",
                    lambda truth, predicted: by_scikit_learn(truth, predicted, every_name),
                    "Almost: your mean of F1 includes a name that no cell has in truth. The scores "
                    "here are means over the types in truth.",
                ),
                Misconception(
                    "the two arrays exchanged",
                    lambda truth, predicted: by_scikit_learn(predicted, truth),
                    "This is the answer to by_type(predicted, truth). Recall starts from the cells "
                    "of a type in *truth*.",
                ),
                Misconception(
                    "the names that were given",
                    means_over_predicted,
                    "Your means are over the names in predicted. A type that was never predicted "
                    "then costs nothing: over which array are the types taken?",
                ),
                Misconception(
                    "weighted by size",
                    lambda truth, predicted: by_scikit_learn(truth, predicted, average="weighted"),
                    "You weighted each type by its number of cells. All types should count "
                    "equally.",
                ),
            ),
        ),
        Exercise(
            name="13.2",
            title="The expected calibration error",
            points=3,
            draw=draw_confident,
            oracle=calibration_error,
            call="arrays",
            verified="Agrees with scipy's binned statistics at 804 cells, with 2, 10 and 15 bins.",
            misconceptions=(
                Misconception(
                    "every bin equally",
                    calibration_with(lambda share, claimed, found: np.abs(claimed - found).mean()),
                    "Your mean over bins gives a bin of three cells the same weight as a bin of "
                    "three hundred.",
                ),
                Misconception(
                    "differences that cancel",
                    calibration_with(lambda share, claimed, found: abs(share @ (claimed - found))),
                    "In yours, an overconfident bin and an underconfident one cancel. How far off "
                    "each bin is should count.",
                ),
                Misconception(
                    "the largest",
                    calibration_with(lambda share, claimed, found: np.abs(claimed - found).max()),
                    "This is the worst bin, the *maximum* calibration error. The expected one is a "
                    "mean.",
                ),
                Misconception(
                    "the last bin is open",
                    last_bin_open,
                    "Cells with a confidence of exactly 1 are in none of your bins. Which one "
                    "should they be in?",
                ),
                Misconception(
                    "one bin more",
                    one_bin_more,
                    "Cells with a confidence of exactly 1 have a bin of their own in yours. What "
                    "is the number of the last bin?",
                ),
                Misconception(
                    "the middle of the bin",
                    middle_of_the_bin,
                    "You compare the share of right answers with the middle of the bin. What did "
                    "its cells claim on average?",
                ),
                Misconception(
                    "no bins",
                    each_cell,
                    "One cell is right or wrong; only a group of cells can be right in 70 % of "
                    "cases. Yours compares cell by cell.",
                ),
            ),
        ),
        Exercise(
            name="13.3",
            title="A warning, and how good it is",
            points=3,
            draw=draw_flagged,
            oracle=flag_by(entropies),
            call="arrays",
            verified="Agrees with scikit-learn at 206 cells, some of which are certain.",
            misconceptions=(
                Misconception(
                    "0 log 0",
                    nan_of_certain_cells,
                    "A cell that is certain has entropy 0. What is your entropy for q = (1, 0), "
                    "and what does a comparison with it give?",
                ),
                Misconception(
                    "0 log 0 of a row",
                    zero_of_a_row,
                    "A term with q = 0 makes the whole entropy of its cell 0 in yours. What is the "
                    "entropy of (½, ½, 0)?",
                ),
                Misconception(
                    "ties lost",
                    mean_over_pairs(lambda a, b: a > b),
                    "Many cells have the same entropy, 0. A tie counts one half; you count it as "
                    "lost.",
                ),
                Misconception(
                    "ties won",
                    mean_over_pairs(lambda a, b: a >= b),
                    "Many cells have the same entropy, 0. A tie counts one half; you count it as "
                    "won.",
                ),
                Misconception(
                    "upside down",
                    flag_by(lambda q: -entropies(q)),
                    "Your answer is 1 minus the right one. In a pair that is in the right order, "
                    "which of the two cells has the higher entropy?",
                ),
                Misconception(
                    "the largest probability",
                    flag_by(lambda q: 1 - q.max(1)),
                    "This compares the largest probabilities. That is a good warning too, but not "
                    "this one. The entropy takes all of q into account.",
                ),
            ),
        ),
        Exercise(
            name="13.4",
            title="Better than its test",
            points=2,
            draw=draw_noise,
            oracle=true_accuracy,
            verified="Agrees with an enumeration of true type, named type and label, 21 times.",
            misconceptions=(
                Misconception(
                    "no luck",
                    lambda measured, flipped, n_types: measured / (1 - flipped),
                    "You count only cells that are right and have the right label. A wrong name "
                    "and a wrong label can also agree: how often?",
                ),
                Misconception(
                    "flipped to itself",
                    lambda measured, flipped, n_types: (
                        (measured - flipped / n_types) / (1 - flipped - flipped / n_types)
                    ),
                    "A flipped label is one of the *other* types. How many of these are there?",
                ),
                Misconception(
                    "errors added",
                    lambda measured, flipped, n_types: measured + flipped,
                    "Not every flipped label costs an agreement: some fall on cells that were "
                    "predicted wrongly anyway.",
                ),
                Misconception(
                    "every error agrees",
                    lambda measured, flipped, n_types: (measured - flipped) / (1 - 2 * flipped),
                    "This is right for two types, where a wrong name and a flipped label must be "
                    "the same. With more types they can differ.",
                ),
            ),
        ),
        Exercise(
            name="13.5",
            title="The weight of one label",
            points=3,
            draw=draw_weights,
            oracle=weight_of_a_label,
            verified="Agrees with the sum over all numbers of labelled cells in a minibatch, 13 "
            "times.",
            misconceptions=(
                Misconception(
                    "a label in every minibatch",
                    lambda ratio, n_cells, n_labelled, batch_size: ratio * n_cells / n_labelled,
                    "This is the third row, the released code, where every step has labelled "
                    "cells. In the second row some minibatches have none, and their share of the "
                    "weight goes to no cell.",
                ),
                Misconception(
                    "upside down",
                    lambda ratio, n_cells, n_labelled, batch_size: ratio * n_labelled / n_cells,
                    "With fewer labels, does each of them weigh more or less? Look at which "
                    "number divides the sum.",
                ),
                Misconception(
                    "the weight of all labels",
                    lambda ratio, n_cells, n_labelled, batch_size: (
                        n_labelled * weight_of_a_label(ratio, n_cells, n_labelled, batch_size)
                    ),
                    "This is what all labels weigh together. One of them is asked for.",
                ),
                Misconception(
                    "with replacement",
                    lambda ratio, n_cells, n_labelled, batch_size: (
                        ratio
                        * n_cells
                        / n_labelled
                        * (1 - (1 - n_labelled / n_cells) ** batch_size)
                    ),
                    "Close. But a minibatch holds no cell twice: once it has taken cells without "
                    "a label, fewer of these are left.",
                ),
            ),
        ),
        Exercise(
            name="13.6",
            title="Bug hunt: a loss that will not fall",
            points=3,
            draw=draw_logits,
            oracle=classifier_loss,
            verified="Agrees with scipy for 135 cells, also where a softmax is exactly 0 and where "
            "no cell has a label.",
            extreme=2,
            returns="tensor with gradient in logits",  # section 11 trains with it
            misconceptions=(
                Misconception(
                    "both mistakes",
                    loss_with(times=2, clamp=True),
                    "This is the colleague's loss; both mistakes are still in it. What is its "
                    "value for a perfect prediction, and what does a cell with label −1 add to it?",
                ),
                Misconception(
                    "softmax twice",
                    loss_with(times=2),
                    "What does cross_entropy expect as its input, and what did it get? Try a "
                    "perfect prediction: is the loss 0?",
                ),
                Misconception(
                    "no label taken for a type",
                    loss_with(clamp=True),
                    "A cell with label −1 still adds to your loss. As a cell of which type?",
                ),
                Misconception(
                    "a mean over all cells",
                    loss_with(over="all"),
                    "Your loss shrinks when unlabelled cells are added. The mean is over those "
                    "that have a label.",
                ),
                Misconception(
                    "the logarithm of a softmax",
                    loss_with(exact=False),
                    "Right, except for a cell that is certain of a wrong type: its probability of "
                    "the right one is 0 in floats, and the logarithm of that is not finite.",
                ),
                Misconception(
                    "a small number in the logarithm",
                    loss_with(epsilon=1e-8),
                    "Nearly: you add a small number inside the logarithm, and a cell that is "
                    "certain of a wrong type then costs too little. Take the logarithm of a "
                    "softmax in one step.",
                ),
                Misconception(
                    "0/0 without labels",
                    loss_with(none=np.nan),
                    "Right, except for a minibatch without any label. A mean over no cells is 0/0, "
                    "and one NaN ruins the training.",
                ),
            ),
        ),
    )
}
