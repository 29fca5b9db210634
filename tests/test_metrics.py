"""Metrics, against definitions written out with loops."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.stats import poisson
from sklearn import metrics as reference

from vaelab import metrics


def three_groups(n=30, seed=0):
    """Three groups far apart, and their names."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0, 0, 0], [20, 0, 0], [0, 20, 0]])
    return np.repeat(centres, n, axis=0) + rng.normal(size=(3 * n, 3)), np.repeat(list("abc"), n)


def silhouette_by_loops(latent, labels):
    widths = []
    for i, label in enumerate(labels):
        distances = {
            other: [
                np.sqrt(((latent[i] - latent[j]) ** 2).sum())
                for j in range(len(labels))
                if labels[j] == other and j != i
            ]
            for other in set(labels)
        }
        if not distances[label]:
            widths.append(0.0)
            continue
        a = np.mean(distances.pop(label))
        b = min(np.mean(to_others) for to_others in distances.values())
        widths.append((b - a) / max(a, b))
    return np.mean(widths)


def rand_index_by_pairs(a, b):
    """Hubert & Arabie (1985): (pairs together in both − expected) / (mean − expected)."""
    pairs = list(combinations(range(len(a)), 2))
    in_a = np.array([a[i] == a[j] for i, j in pairs])
    in_b = np.array([b[i] == b[j] for i, j in pairs])
    expected = in_a.sum() * in_b.sum() / len(pairs)
    return ((in_a & in_b).sum() - expected) / ((in_a.sum() + in_b.sum()) / 2 - expected)


def mutual_information_by_sums(a, b):
    joint = pd.crosstab(a, b, normalize=True).to_numpy()
    p, q = joint.sum(1), joint.sum(0)
    information = sum(
        joint[i, j] * np.log(joint[i, j] / (p[i] * q[j])) for i, j in np.argwhere(joint > 0)
    )
    return information / (-(p * np.log(p)).sum() / 2 - (q * np.log(q)).sum() / 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_silhouette_is_that_of_its_definition(seed):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(25, 3))
    labels = np.array([*rng.choice(list("abc"), 24), "alone"])
    ours = metrics.average_silhouette_width(latent, labels)
    assert ours == pytest.approx(silhouette_by_loops(latent, labels), abs=1e-6)
    assert ours == pytest.approx(reference.silhouette_score(latent, labels), abs=1e-12)


def test_the_silhouette_by_hand():
    # a = 1 and b = 9.5 or 8.5, on a line.
    latent, labels = np.array([[0.0], [1.0], [9.0], [10.0]]), list("aabb")
    outer, inner = (9.5 - 1) / 9.5, (8.5 - 1) / 8.5
    assert metrics.average_silhouette_width(latent, labels) == pytest.approx((outer + inner) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_agreement_of_groupings_is_that_of_its_definition(seed):
    rng = np.random.default_rng(seed)
    a = rng.choice(list("abc"), 40)
    b = np.where(rng.random(40) < 0.6, a, rng.choice(list("wxyz"), 40))
    assert metrics.adjusted_rand_index(a, b) == pytest.approx(rand_index_by_pairs(a, b))
    assert metrics.normalized_mutual_information(a, b) == pytest.approx(
        mutual_information_by_sums(a, b)
    )


def test_agreement_by_hand():
    assert metrics.adjusted_rand_index(list("aabb"), [7, 7, 3, 3]) == 1
    # Of 6 pairs 2 are together in one and 1 in the other, 1 in both: (1 − 1/3) / (3/2 − 1/3).
    assert metrics.adjusted_rand_index(list("aabb"), [0, 0, 1, 2]) == pytest.approx(4 / 7)
    # Each cluster holds half of each type.
    assert metrics.adjusted_rand_index(list("aabb"), [0, 1, 0, 1]) == pytest.approx(-0.5)
    assert metrics.normalized_mutual_information(list("aabb"), [0, 1, 0, 1]) == 0
    # I = ln 2, entropies ln 2 and 3/2 ln 2.
    assert metrics.normalized_mutual_information(list("aabb"), [0, 0, 1, 2]) == pytest.approx(0.8)


def test_agreement_by_chance_is_zero_on_average():
    rng = np.random.default_rng(0)
    scores = [
        metrics.adjusted_rand_index(rng.integers(3, size=60), rng.integers(4, size=60))
        for _ in range(200)
    ]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(len(scores))


def test_the_activity_is_the_variance_of_the_posterior_means_over_cells():
    latent = np.array([[1.0, 5.0, -2.0], [3.0, 5.0, 2.0], [5.0, 5.0, 0.0]])
    np.testing.assert_allclose(metrics.latent_activity(latent), [4, 0, 4])
    latent = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_allclose(metrics.latent_activity(latent), np.diag(np.cov(latent.T)))


def test_a_dimension_that_the_encoder_ignores_has_activity_zero():
    latent = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    latent[:, 1] = 0.7
    activity = metrics.latent_activity(latent)
    assert activity[1] < 1e-10
    assert (activity > metrics.ACTIVE).tolist() == [True, False, True]


@pytest.mark.parametrize("latent", [np.ones((1, 3)), np.ones((0, 3)), np.ones(5), 3.0])
def test_the_activity_of_fewer_than_two_cells_is_refused(latent):
    with pytest.raises(ValueError, match=r"latent has shape .* with 2 cells or more"):
        metrics.latent_activity(latent)


@pytest.mark.parametrize(
    "method", [lambda x, s: metrics.kmeans(x, 5, s), lambda x, s: leiden(x, s)]
)
def test_one_seed_gives_one_clustering(method):
    latent = np.random.default_rng(0).normal(size=(150, 4))
    np.random.seed(1)
    first = method(latent, 3)
    np.random.seed(2)
    np.testing.assert_array_equal(first, method(latent, 3))
    others = [metrics.adjusted_rand_index(first, method(latent, seed)) for seed in range(4, 9)]
    assert min(others) < 1


def leiden(latent, seed):
    return metrics.leiden(latent, seed=seed)


def test_clusters_are_numbers_one_a_cell():
    latent, labels = three_groups()
    for clusters in (metrics.kmeans(latent, 3), metrics.leiden(latent, resolution=0.2)):
        assert clusters.shape == labels.shape
        assert clusters.dtype.kind == "i"
        assert metrics.adjusted_rand_index(labels, clusters) == 1
    assert len(np.unique(metrics.leiden(latent, resolution=3.0))) > 3


def test_types_far_apart_are_scored_as_such():
    latent, labels = three_groups(n=16)  # 15 neighbours: each type is one community
    scores = metrics.clustering_scores(latent, labels)
    assert set(scores) == {"asw", "kmeans_ari", "kmeans_nmi", "leiden_ari", "leiden_nmi"}
    assert scores["asw"] > 0.85
    assert [value for name, value in scores.items() if name != "asw"] == pytest.approx([1.0] * 4)


def test_labels_without_meaning_score_nothing():
    latent, labels = three_groups(n=60)
    shuffled = np.random.default_rng(0).permutation(labels)
    scores = metrics.clustering_scores(latent, shuffled)
    assert all(abs(score) < 0.05 for score in scores.values())


@pytest.mark.parametrize("rare", ["d", np.nan, None, pd.NA])
def test_rare_types_and_missing_labels_are_neither_clustered_nor_scored(rare, monkeypatch):
    latent, labels = three_groups(n=16)
    labels = np.array([*labels, *[rare] * 4], dtype=object)
    latent = np.vstack([latent, latent[[0, 1, 16, 32]] + 0.01])
    seen, kmeans = [], metrics.kmeans
    monkeypatch.setattr(
        metrics, "kmeans", lambda x, k, seed: seen.append((len(x), k)) or kmeans(x, k, seed)
    )
    scores = metrics.clustering_scores(latent, labels)
    assert seen == [(48, 3)]
    assert scores["kmeans_ari"] == 1
    assert scores["asw"] == metrics.average_silhouette_width(latent[:48], list(labels[:48]))
    if isinstance(rare, str):
        with_rare = metrics.clustering_scores(latent, labels, min_cells=4)
        assert with_rare["asw"] < scores["asw"]


@pytest.mark.parametrize(
    "labels_as", [list, pd.Categorical, pd.Series, lambda v: pd.factorize(v)[0]]
)
def test_labels_may_come_in_any_form(labels_as):
    latent, labels = three_groups()
    expected = metrics.clustering_scores(latent, labels)
    assert metrics.clustering_scores(latent.tolist(), labels_as(labels)) == expected


@pytest.mark.parametrize(
    ("latent", "labels", "seen"),
    [
        (np.ones((9, 2)), ["a"] * 9, "1 type"),
        (np.ones((9, 2)), [None] * 9, "0 type"),
        (np.ones((9, 2)), ["a"] * 5 + ["b"] * 4, "1 type"),
        (np.ones((9, 2)), ["a"] * 8, r"\(9, 2\) for 8 labels"),
        (np.ones(9), ["a"] * 9, r"\(9,\) for 9 labels"),
        (np.full((9, 2), np.nan), ["a"] * 9, "18 values that are NaN"),
    ],
)
def test_what_can_not_be_scored_is_refused(latent, labels, seen):
    with pytest.raises(ValueError, match=seen):
        metrics.clustering_scores(latent, labels)


# ------------------------------------------------------------------------------------- imputation


def test_the_imputation_score_is_the_poisson_log_likelihood_of_hidden_entries_alone():
    rng = np.random.default_rng(0)
    x, mean = rng.poisson(3.0, (30, 20)), rng.gamma(2, 2, (30, 20))
    observed = rng.random(x.shape) < 0.8
    expected = sum(poisson(mean[i, j]).logpmf(x[i, j]) for i, j in np.argwhere(~observed))
    assert metrics.imputation_score(x, mean, observed) == pytest.approx(expected, rel=1e-12)
    # the observed entries have no part in it
    other_mean, other_x = np.where(observed, 1e6, mean), np.where(observed, -0.5, x)
    again = metrics.imputation_score(other_x, other_mean, observed)
    assert again == pytest.approx(expected, rel=1e-12)
    in_other_forms = metrics.imputation_score(
        sparse.csr_matrix(x), mean, torch.from_numpy(observed)
    )
    assert in_other_forms == pytest.approx(expected, rel=1e-12)


def test_an_imputed_zero_is_certain_of_a_zero_and_rules_out_a_count():
    hidden = np.zeros((1, 2), bool)
    assert metrics.imputation_score([[0, 0]], np.zeros((1, 2)), hidden) == 0
    assert metrics.imputation_score([[0, 1]], np.zeros((1, 2)), hidden) == -np.inf


@pytest.mark.parametrize(
    ("x", "mean", "observed", "message"),
    [
        ([[1, 2]], [[1.0, 2]], [[True, True]], "No entry was hidden"),
        ([[1, 2]], [[1.0]], [[True, False]], r"have shapes \(1, 2\), \(1, 1\) and \(1, 2\)"),
        ([[1, 2]], [[1.0, 2]], [[0.5, 0]], "observed must be True or False"),
        ([[1, 2.5]], [[1.0, 2]], [[1, 0]], "A hidden entry of x is not a count"),
        ([[1, np.nan]], [[1.0, 2]], [[1, 0]], "A hidden entry of x is not a count"),
        ([[1, 2]], [[1.0, -1]], [[1, 0]], "imputed by a value that is negative or not finite"),
        ([[1, 2]], [[1.0, np.inf]], [[1, 0]], "imputed by a value that is negative or not finite"),
    ],
)
def test_what_cannot_be_scored_as_imputed_is_refused(x, mean, observed, message):
    with pytest.raises(ValueError, match=message):
        metrics.imputation_score(x, mean, observed)
