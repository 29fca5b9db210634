"""Matrix factorisations: against scikit-learn, against scipy, and against their own likelihood."""

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.optimize import check_grad, minimize
from sklearn.decomposition import NMF

from vaelab import baselines


def counts(n_cells=40, n_genes=25, rank=2, theta=None, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0, 0.5, (n_cells, rank)) @ rng.lognormal(0, 0.5, (n_genes, rank)).T
    return rng.poisson(mean if theta is None else mean * rng.gamma(theta, 1 / theta, mean.shape))


def some_mask(x, share=0.8, seed=1):
    return np.random.default_rng(seed).random(x.shape) < share


def kl(x, mean):
    """Σ x log(x/μ) − x + μ, by scikit-learn's definition of the loss."""
    return np.where(x > 0, x * np.log(np.where(x > 0, x, 1) / mean), 0).sum() - x.sum() + mean.sum()


def nb_log_likelihood(x, mean, theta, observed):
    return stats.nbinom(theta, theta / (theta + mean)).logpmf(x)[observed].sum()


# ------------------------------------------------------------------------------- full and masked


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_with_a_full_mask_nmf_is_scikit_learns_step_by_step(rank):
    x = counts()
    for steps in (1, 7, 200):
        options = {"max_iter": steps, "tol": 0, "seed": 3}
        L, F = baselines.nmf(x, rank, **options)
        L_w, F_w = baselines.nmf(x, rank, observed=np.ones(x.shape, bool), **options)
        np.testing.assert_allclose(L_w, L, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(F_w, F, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_with_a_full_mask_nmf_stops_where_scikit_learn_does(rank):
    x = counts()
    for tol in (1e-3, 1e-5):
        L, F = baselines.nmf(x, rank, tol=tol)
        L_w, F_w = baselines.nmf(x, rank, observed=np.ones(x.shape), tol=tol)
        np.testing.assert_allclose(L_w @ F_w.T, L @ F.T, rtol=1e-7)


def test_nmf_fits_as_well_as_the_class_of_scikit_learn():
    x = counts()
    theirs = NMF(3, init="random", solver="mu", beta_loss="kullback-leibler", max_iter=3000,
                 random_state=0)  # fmt: skip
    expected = kl(x, theirs.fit_transform(x) @ theirs.components_)
    ours = min(kl(x, L @ F.T) for L, F in (baselines.nmf(x, 3, seed=s) for s in range(4)))
    assert ours == pytest.approx(expected, rel=0.03)
    assert kl(x, np.outer(*rank_one(x))) > ours


def rank_one(x):
    """The Poisson fit of rank 1 in closed form: row totals and column shares."""
    return x.sum(1), x.sum(0) / x.sum()


def test_rank_one_is_the_closed_form_and_masked_it_is_the_poisson_regression():
    x = counts()
    L, F = baselines.nmf(x, 1)
    np.testing.assert_allclose(L @ F.T, np.outer(*rank_one(x)), rtol=1e-4)
    observed = some_mask(x)
    L, F = baselines.nmf(x, 1, observed=observed, tol=1e-12)
    mean = L @ F.T  # the score equations: totals of cells and of genes are fitted exactly
    for axis in (0, 1):
        np.testing.assert_allclose(
            (mean * observed).sum(axis), (x * observed).sum(axis), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("fit", [baselines.nmf, baselines.nb_factorization])
def test_hidden_entries_have_no_influence(fit):
    x = counts()
    observed = some_mask(x)
    a, b = fit(x, 2, observed=observed), fit(np.where(observed, x, 999), 2, observed=observed)
    assert all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))
    assert not np.array_equal(a[0], fit(x + 1, 2, observed=observed)[0])


# ------------------------------------------------------------------------------ the likelihoods


@pytest.mark.parametrize("kind", ["poisson", "nb"])
@pytest.mark.parametrize("masked", [False, True])
def test_no_update_lowers_the_likelihood_and_the_last_is_at_a_maximum(kind, masked):
    x = counts(theta=None if kind == "poisson" else 0.7)
    observed = some_mask(x) if masked else np.ones(x.shape, bool)
    values = []
    for n in (1, 3, 10, 30, 100, 3000):
        options = {"observed": observed, "max_iter": n, "tol": 0.0 if n < 3000 else 1e-13}
        if kind == "poisson":
            (L, F), theta = baselines.nmf(x, 2, **options), 1e9
            log_p = stats.poisson(L @ F.T).logpmf(x)[observed].sum()
        else:
            L, F, theta = baselines.nb_factorization(x, 2, **options)
            log_p = nb_log_likelihood(x, L @ F.T, theta, observed)
        values.append(log_p)
    assert (np.diff(values) > -1e-9).all()
    assert values[-1] > values[0] + 10

    def minus_log_p(flat):
        L_, F_ = np.exp(flat[: L.size]).reshape(L.shape), np.exp(flat[L.size :]).reshape(F.shape)
        mean = L_ @ F_.T
        if kind == "poisson":
            return -stats.poisson(mean).logpmf(x)[observed].sum()
        return -nb_log_likelihood(x, mean, theta, observed)

    start = np.log(np.maximum(np.concatenate([L.ravel(), F.ravel()]), 1e-8))
    further = minimize(minus_log_p, start, method="L-BFGS-B", options={"maxfun": 2000})
    assert -further.fun < values[-1] + 0.5


def test_nb_factorization_finds_the_dispersion_and_is_the_poissons_if_there_is_none():
    x = counts(150, 60, theta=0.5)
    L, F, theta = baselines.nb_factorization(x, 2, max_iter=300, tol=1e-8)
    assert theta == pytest.approx(0.5, rel=0.25)  # a fit finds less noise
    observed = np.ones(x.shape, bool)
    best = nb_log_likelihood(x, L @ F.T, theta, observed)
    for factor in (0.97, 1.03):
        assert nb_log_likelihood(x, L @ F.T, factor * theta, observed) < best
    assert best > stats.poisson(np.matmul(*nmf_of(x))).logpmf(x).sum() + 1000
    x = counts(150, 60)
    L, F, theta = baselines.nb_factorization(x, 2, max_iter=200, tol=1e-9)
    assert theta > 30
    L_p, F_p = baselines.nmf(x, 2, max_iter=200, tol=1e-9)
    np.testing.assert_allclose(L @ F.T, L_p @ F_p.T, rtol=0.1, atol=0.05)


def nmf_of(x):
    L, F = baselines.nmf(x, 2)
    return L, F.T


def test_the_slope_of_the_nb_loss_vanishes_at_the_end():
    x = counts(theta=0.7)
    L, F, theta = baselines.nb_factorization(x, 1, tol=1e-14)
    row = L[0, 0]

    def loss(value):
        return -stats.nbinom(theta, theta / (theta + value[0] * F[:, 0])).logpmf(x[0]).sum()

    assert check_grad(loss, lambda value: np.zeros(1), np.array([row])) < 1e-2


@pytest.mark.parametrize("rank", range(1, 31))
def test_every_rank_of_the_lesson_can_be_fitted(rank):
    x = counts(60, 40, theta=0.5)
    observed = some_mask(x, 0.9)
    x[:, 7] = 0  # a gene that no cell expresses
    x[3] = 0
    for L, F, *_ in (
        baselines.nmf(x, rank, observed=observed, max_iter=20),
        baselines.nb_factorization(x, rank, observed=observed, max_iter=20),
    ):
        assert (L.shape, F.shape) == ((60, rank), (40, rank))
        assert np.isfinite(L).all() and np.isfinite(F).all()
        assert (L >= 0).all() and (F >= 0).all()
        assert (L @ F.T)[3].max() < 1e-6


def test_one_seed_gives_one_factorisation_and_sparse_counts_give_the_same():
    x = counts()
    for fit in (baselines.nmf, baselines.nb_factorization):
        first = fit(x, 2, seed=5)
        for again in (fit(sparse.csr_matrix(x), 2, seed=5), fit(x.astype(np.float32), 2, seed=5)):
            assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], fit(x, 2, seed=6)[0])


@pytest.mark.parametrize("fit", [baselines.nmf, baselines.nb_factorization])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number, at least 1"),
        ({"x": -counts()}, "x must hold counts: numbers that are finite and 0 or more"),
        ({"x": counts() * np.nan}, "x must hold counts"),
        ({"x": counts()[0]}, r"x has shape \(25,\); it must be \(n_cells, n_genes\)"),
        ({"observed": np.ones((2, 2))}, r"of x's shape \(40, 25\), but has shape \(2, 2\)"),
        ({"observed": np.full((40, 25), 0.5)}, "observed must be a matrix of True and False"),
        ({"observed": np.arange(40)[:, None] * np.ones(25) != 7}, "No entry of the cell 7 was"),
        ({"observed": np.ones(40)[:, None] * np.arange(25) != 3}, "No entry of the gene 3 was"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
    ],
)
def test_what_cannot_be_factorised_is_refused_in_a_sentence(fit, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"x": counts(), "rank": 2} | arguments)
