"""Simulated cells: they follow the model that their docstring states.

Tolerances are standard errors: a check on n draws allows 5 of them.
"""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from vaelab import Cells, metrics, simulate


def parts(adata):
    """x, mean and θ as arrays (n_cells, n_genes)."""
    x, mean = adata.X.toarray().astype(np.float64), adata.layers["mean"].astype(np.float64)
    return x, mean, np.broadcast_to(adata.var["inverse_dispersion"].to_numpy(), mean.shape)


def assert_mean_is(values, expected):
    values = np.asarray(values, dtype=np.float64).ravel()
    error = values.std(ddof=1) / np.sqrt(values.size)
    assert abs(values.mean() - expected) < 5 * error, (values.mean(), expected, error)


def test_the_anndata_holds_what_the_docstring_says():
    adata = simulate.dataset(n_cells=90, n_genes=40, n_types=3, n_batches=2, n_factors=4)
    assert adata.shape == (90, 40)
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert set(adata.obs["cell_type"]) == {"type 1", "type 2", "type 3"}
    assert set(adata.obs["batch"]) == {"batch 1", "batch 2"}
    assert adata.obsm["z"].shape == (90, 4)
    assert adata.varm["W"].shape == (40, 4)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    np.testing.assert_allclose(adata.layers["mean"].sum(1), adata.obs["library"], rtol=1e-5)
    cells = Cells.from_anndata(adata, label="cell_type", batch="batch", library="library")
    cells.require_domain("counts")


def test_one_seed_gives_one_data_set_and_another_seed_another():
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first, again, other = (simulate.dataset(50, 30, seed=seed) for seed in (7, 7, 8))
    assert (first.X != again.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert np.array_equal(first.obsm["z"], again.obsm["z"])
    assert (first.X != other.X).nnz > 0
    assert (np.random.get_state()[1] == state).all()


def test_the_mean_is_that_of_the_factor_model():
    adata = simulate.dataset(n_cells=60, n_genes=40, n_factors=3, n_types=2, seed=2)
    log_rho = np.log(adata.layers["mean"] / adata.obs["library"].to_numpy()[:, None])
    explained = adata.obsm["z"] @ adata.varm["W"].T / np.sqrt(3)
    rest = log_rho - explained  # baseline of the gene − log normaliser of the cell
    rest -= rest.mean(0)
    rest -= rest.mean(1, keepdims=True)
    assert np.abs(rest).max() < 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inverse_dispersion", [0.5, 2.0, 20.0])
def test_counts_have_the_mean_and_variance_of_a_negative_binomial(inverse_dispersion, seed):
    adata = simulate.dataset(
        n_cells=1000, n_genes=100, inverse_dispersion=inverse_dispersion, seed=seed
    )
    x, mean, theta = parts(adata)
    well_seen = mean > 0.5
    z = ((x - mean) / np.sqrt(mean + mean**2 / theta))[well_seen]
    assert_mean_is(z, 0)
    assert_mean_is(z**2, 1)
    # The check can fail: the counts are no Poisson, and not of another dispersion.
    assert np.mean((x - mean)[well_seen] ** 2 / mean[well_seen]) > 1.5
    other = ((x - mean) ** 2 / (mean + 2 * mean**2 / theta))[well_seen]
    assert abs(other.mean() - 1) > 5 * other.std() / np.sqrt(other.size)


def test_the_share_of_zeros_is_that_of_the_negative_binomial():
    x, mean, theta = parts(simulate.dataset(n_cells=1000, n_genes=100, library=200.0))
    assert_mean_is((x == 0) - (theta / (theta + mean)) ** theta, 0)


@pytest.mark.parametrize("dropout", [0.2, 0.7])
def test_dropout_sets_that_share_of_counts_to_zero(dropout):
    adata = simulate.dataset(n_cells=1000, n_genes=100, dropout=dropout)
    x, mean, theta = parts(adata)
    assert_mean_is((x - (1 - dropout) * mean) / np.sqrt(mean + mean**2), 0)
    nonzero = (1 - dropout) * (1 - (theta / (theta + mean)) ** theta)
    assert_mean_is((x > 0) - nonzero, 0)


def test_a_smaller_library_gives_more_zeros():
    zeros = [
        1 - simulate.dataset(300, 200, library=library).X.nnz / 60_000
        for library in (50_000, 5_000, 500, 50)
    ]
    assert np.diff(zeros).min() > 0.1


def test_libraries_are_log_normal_around_their_median():
    log_library = np.log(simulate.dataset(4000, 2, library=700.0).obs["library"])
    assert_mean_is(log_library, np.log(700))
    assert_mean_is((log_library - np.log(700)) ** 2, 0.3**2)


def test_types_and_batches_are_uniform_and_independent():
    adata = simulate.dataset(n_cells=4000, n_genes=2, n_types=4, n_batches=3)
    table = pd.crosstab(adata.obs["cell_type"], adata.obs["batch"]).to_numpy()
    chi_squared = ((table - 4000 / 12) ** 2 / (4000 / 12)).sum()
    assert chi_squared < 11 + 5 * np.sqrt(2 * 11)


def test_types_are_as_far_apart_as_asked_for():
    adata = simulate.dataset(2000, 2, n_types=40, n_factors=20, separation=3.0)
    z, types = adata.obsm["z"], adata.obs["cell_type"].to_numpy()
    centres = pd.DataFrame(z).groupby(types).transform("mean").to_numpy()
    np.testing.assert_allclose((z - centres).std(), np.sqrt(1 - 40 / 2000), rtol=0.02)
    assert_mean_is(np.unique(centres, axis=0) ** 2, 3.0**2 + 40 / 2000)


@pytest.mark.parametrize("seed", range(3))
def test_types_can_be_found_again_in_the_truth_and_in_the_counts(seed):
    adata = simulate.dataset(n_cells=300, n_genes=100, n_types=4, separation=4.0, seed=seed)
    types = adata.obs["cell_type"]
    assert metrics.adjusted_rand_index(types, metrics.kmeans(adata.obsm["z"], 4)) > 0.95
    shares = np.log1p(adata.X.toarray() / adata.obs["library"].to_numpy()[:, None] * 1e4)
    centred = shares - shares.mean(0)
    principal = np.linalg.svd(centred, full_matrices=False)[0][:, :5] * 100
    assert metrics.adjusted_rand_index(types, metrics.kmeans(principal, 4)) > 0.6


def test_batches_shift_each_gene_by_the_effect_asked_for():
    def shift(batch_effect, n_batches=2):
        adata = simulate.dataset(
            400, 1000, n_types=1, n_batches=n_batches, batch_effect=batch_effect, seed=5
        )
        W = adata.varm["W"] / np.sqrt(5)
        log_rho = np.log(adata.layers["mean"]) - adata.obsm["z"] @ W.T
        log_rho -= log_rho.mean(1, keepdims=True)
        first = (adata.obs["batch"] == "batch 1").to_numpy()
        if n_batches == 1:
            return log_rho.std(0)
        return log_rho[first].mean(0) - log_rho[~first].mean(0)

    np.testing.assert_allclose(shift(0.0), 0, atol=1e-4)
    np.testing.assert_allclose(shift(0.5, n_batches=1), 0, atol=1e-4)
    assert_mean_is(shift(0.5) ** 2, 2 * 0.5**2)
    assert_mean_is(shift(2.0) ** 2, 2 * 2.0**2)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_cells", [0, -1, np.nan]),
        ("n_genes", [0, -3]),
        ("n_types", [0]),
        ("n_batches", [0]),
        ("n_factors", [0]),
        ("library", [0, -5, np.nan, np.inf]),
        ("inverse_dispersion", [0, -1, np.nan, np.inf]),
        ("separation", [-1, np.nan, np.inf]),
        ("batch_effect", [-1, np.nan, np.inf]),
        ("dropout", [-0.1, 1, 1.5, np.nan]),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} is {value}; it "):
            simulate.dataset(**{name: value})


@pytest.mark.parametrize("arguments", [{"n_cells": 1}, {"n_genes": 1}, {"n_types": 50}])
def test_the_smallest_data_sets_can_be_made(arguments):
    adata = simulate.dataset(**{"n_cells": 5, "n_genes": 5} | arguments)
    assert np.isfinite(adata.X.toarray()).all()


# ------------------------------------------------------------------------------------ profiles


def test_the_profiles_hold_what_the_docstring_says():
    adata = simulate.profiles(n_cells=90, n_genes=31, n_types=3)
    assert adata.shape == (90, 31)
    assert sparse.isspmatrix_csr(adata.X) and adata.X.dtype == np.float32
    assert adata.obs["cell_type"].value_counts().tolist() == [30, 30, 30]
    assert sorted(adata.var["up_in"].value_counts()) == [10, 10, 11]
    assert [*adata.obs["cell_type"].cat.categories] == ["type 1", "type 2", "type 3"]
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    Cells.from_anndata(adata, label="cell_type").require_domain("counts")
    assert simulate.profiles(n_genes=30).n_obs == 6000
    assert simulate.profiles(n_cells=30).n_vars == 1000


def test_one_seed_gives_the_same_profiles_and_another_seed_others():
    first, again, other = (simulate.profiles(60, 30, seed=seed) for seed in (7, 7, 8))
    assert (first.X != again.X).nnz == 0 < (first.X != other.X).nnz
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert (first.obs["depth"] != other.obs["depth"]).all()


def test_genes_are_turned_up_in_their_own_type_by_the_fold_asked_for():
    adata = simulate.profiles(900, 300, background=2.0, fold=5.0, depth=0.2, seed=3)
    x, depth = adata.X.toarray().astype(float), adata.obs["depth"].to_numpy()[:, None]
    up = (
        adata.obs["cell_type"].astype(str).to_numpy()[:, None]
        == adata.var["up_in"].astype(str).to_numpy()
    )
    assert up.mean() == pytest.approx(1 / 3)
    assert_mean_is((x / depth)[up], 10.0)
    assert_mean_is((x / depth)[~up], 2.0)
    np.testing.assert_allclose(adata.layers["mean"], depth * np.where(up, 10, 2), rtol=1e-6)
    assert_mean_is((x - adata.layers["mean"]) ** 2 - adata.layers["mean"], 0)  # Poisson
    assert np.log(depth).std() == pytest.approx(0.2, rel=0.1)
    assert_mean_is(np.log(depth), 0)
    assert np.ptp(simulate.profiles(9, 9, depth=0).obs["depth"]) == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_cells", [0, np.nan]),
        ("n_genes", [0, -3]),
        ("n_types", [0, 11]),
        ("background", [0, -1, np.nan, np.inf]),
        ("fold", [0, np.nan, np.inf]),
        ("depth", [-1, np.nan, np.inf]),
    ],
)
def test_arguments_of_profiles_out_of_range_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} is {value}; it "):
            simulate.profiles(**{"n_cells": 10, "n_genes": 20} | {name: value})


# ------------------------------------------------------------------------- Sarkar's simulations


def printed(kind):
    """The source's code, line by line, with its global generator."""
    np.random.seed(0)
    n, p, k = 500, 100, 3
    l = np.random.lognormal(sigma=0.5, size=(n, k))  # noqa: E741
    f = np.random.lognormal(sigma=0.5, size=(p, k))
    mu = l @ f.T
    if kind == "validation":
        u = np.random.gamma(shape=0.1, scale=10, size=(n, p))
    else:
        u = np.random.gamma(shape=1 / mu.var(), scale=mu.var(), size=(n, p))
    lam = mu * u
    x = np.random.poisson(lam=lam)
    if kind == "validation":
        return mu, lam, x, np.random.poisson(lam=lam)
    return mu, lam, x, np.random.uniform(size=x.shape) < 0.9


@pytest.mark.parametrize(
    ("kind", "last", "theta"), [("validation", "validation", 0.1), ("imputation", "observed", None)]
)
def test_sarkars_simulations_are_those_that_the_source_prints(kind, last, theta):
    state = np.random.get_state()
    try:
        mu, lam, x, more = printed(kind)
    finally:
        np.random.set_state(state)
    adata = simulate.sarkar(kind)
    assert np.array_equal(np.random.get_state()[1], state[1])  # the global generator is untouched
    for name, expected in {"mean": mu, "rate": lam, last: more}.items():
        assert adata.layers[name].tobytes() == expected.tobytes(), name
    np.testing.assert_array_equal(adata.X.toarray(), x)
    np.testing.assert_array_equal(adata.obsm["loadings"] @ adata.varm["factors"].T, mu)
    assert adata.uns["inverse_dispersion"] == (theta or 1 / mu.var())
    assert {*adata.layers} == {"mean", "rate", last}


def test_the_sums_of_sarkars_simulations_are_the_known_ones():
    adata = simulate.sarkar("validation")
    assert (adata.X.sum(), adata.layers["validation"].sum()) == (190_661, 190_076)
    assert round((adata.X.toarray() == 0).mean(), 3) == 0.699
    adata = simulate.sarkar("imputation")
    assert (adata.X.sum(), (~adata.layers["observed"]).sum()) == (191_920, 4_934)
    cells = Cells.from_anndata(adata, observed="observed")
    assert int((~cells.observed).sum()) == 4_934


@pytest.mark.parametrize("kind", ["validation", "imputation"])
def test_another_seed_or_dispersion_follows_the_same_model(kind):
    adata = simulate.sarkar(kind, inverse_dispersion=4.0, seed=3)
    x, mean, rate = adata.X.toarray(), adata.layers["mean"], adata.layers["rate"]
    assert adata.uns["inverse_dispersion"] == 4.0
    assert_mean_is(rate / mean, 1)
    assert_mean_is((rate / mean - 1) ** 2, 1 / 4)
    assert_mean_is((x - rate) / np.sqrt(mean), 0)
    assert_mean_is((x - rate) ** 2 / rate, 1)
    assert (x != simulate.sarkar(kind, inverse_dispersion=4.0, seed=4).X.toarray()).any()
    if kind == "validation":
        assert_mean_is((x - rate) * (adata.layers["validation"] - rate) / rate, 0)
    else:
        assert_mean_is(adata.layers["observed"], 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "thinning"}, r"kind is 'thinning'; choose from \['validation', 'imputation'\]"),
        ({"inverse_dispersion": 0}, "inverse_dispersion is 0; it must be None or a number above 0"),
        ({"inverse_dispersion": np.nan}, "inverse_dispersion is nan; it must be"),
        ({"seed": 2**32}, "seed is 4294967296; it must be a whole number from 0 to 2³² − 1"),
        ({"seed": 0.5}, "seed is 0.5; it must be"),
    ],
)
def test_sarkar_refuses_what_it_cannot_simulate(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate.sarkar(**arguments)


# ------------------------------------------------------------------------------------- thinning


def test_the_two_parts_of_a_count_sum_to_it_and_the_first_is_binomial():
    x = np.array([0, 1, 7, 400] * 5000)
    first, rest = simulate.thin(x, 0.3)
    np.testing.assert_array_equal(first + rest, x)
    assert (first >= 0).all() and (rest >= 0).all() and first.dtype == x.dtype
    for n in (1, 7, 400):
        part = first[x == n]
        assert_mean_is(part, 0.3 * n)
        assert_mean_is((part - 0.3 * n) ** 2, n * 0.3 * 0.7)
    assert (first[x == 0] == 0).all()
    assert (simulate.thin(x, 0.3)[0] == first).all()
    assert (simulate.thin(x, 0.3, seed=1)[0] != first).any()
    for p, share in ((0.0, 0), (1, 1)):
        np.testing.assert_array_equal(simulate.thin(x, p)[0], share * x)


def test_the_parts_are_independent_for_a_poisson_and_not_for_an_overdispersed_count():
    rng = np.random.default_rng(0)
    first, rest = simulate.thin(rng.poisson(6.0, 40_000), 0.4)
    assert_mean_is((first - 2.4) * (rest - 3.6), 0)
    first, rest = simulate.thin(rng.poisson(6.0 * rng.gamma(2.0, 0.5, 40_000)), 0.4)
    assert_mean_is((first - 2.4) * (rest - 3.6), 2.4 * 3.6 / 2)  # the variance of u is 1/2


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.coo_array])
def test_a_sparse_matrix_is_thinned_without_its_zeros(form):
    x = np.random.default_rng(0).poisson(1.0, (30, 20)).astype(np.float32)
    given = form(x)
    first, rest = simulate.thin(given, 0.5)
    assert first.format == rest.format == "csr" and first.dtype == np.float32
    np.testing.assert_array_equal(first.toarray() + rest.toarray(), x)
    np.testing.assert_array_equal(given.toarray(), x)  # what was given is unchanged
    assert 0 < first.sum() < x.sum()


@pytest.mark.parametrize("x", [[-1, 2], [0.5, 1], [np.nan, 1], ["a"], [[np.inf]]])
def test_what_is_not_a_count_is_not_thinned(x):
    with pytest.raises(ValueError, match=r"^x must hold counts: whole numbers, 0 or more"):
        simulate.thin(x, 0.5)


@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan, "0.5", None])
def test_a_share_that_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"^p is .*; it must be a probability, from 0 to 1"):
        simulate.thin([1, 2], p)


# -------------------------------------------------------------------------------- two groups


def test_fold_changes_between_two_groups_are_those_stated():
    adata = simulate.two_groups(8000, 60, log2_fold_changes=(0.5, 2.0), library=20_000, seed=1)
    lfc = adata.var["log2_fold_change"].to_numpy()
    assert sorted(np.unique(lfc)) == [-2, -0.5, 0, 0.5, 2]
    assert (lfc != 0).sum() == 12
    assert lfc.sum() == 0
    x, in_a = adata.X.toarray(), (adata.obs["group"] == "a").to_numpy()
    share = x / adata.obs["library"].to_numpy()[:, None]
    mean, error = (
        np.array([f(share[side]) for side in (in_a, ~in_a)])
        for f in (lambda s: s.mean(0), lambda s: s.std(0) / np.sqrt(len(s)) / s.mean(0))
    )
    found = np.log2(mean[0] / mean[1])
    allowed = 5 * np.hypot(*error) / np.log(2)
    assert (np.abs(found - lfc) < allowed).all()
    assert allowed.max() < 0.25
    np.testing.assert_allclose(adata.var["share"], mean.mean(0), rtol=0.2)


def test_depth_and_replicates_of_two_groups_are_those_asked_for():
    adata = simulate.two_groups(3000, 50, library=500, library_ratio=4, n_replicates=3, seed=2)
    a, b = (adata[adata.obs["group"] == g].obs for g in "ab")
    assert len(a) == len(b)
    assert a["library"].median() / b["library"].median() == pytest.approx(4, rel=0.1)
    assert set(a["replicate"]) == {"a1", "a2", "a3"}
    assert set(b["replicate"]) == {"b1", "b2", "b3"}
    assert a["replicate"].value_counts().tolist() == [500, 500, 500]
    total = adata.X.sum(1).A1 / adata.obs["library"]
    assert total.mean() == pytest.approx(1, rel=0.05)


def test_replicates_differ_only_if_they_should():
    def spread(effect):
        adata = simulate.two_groups(2000, 40, library=1e4, n_replicates=2, replicate_effect=effect)
        shares = [adata[adata.obs["replicate"] == r].X.sum(0).A1 for r in ("b1", "b2")]
        kept = (shares[0] > 2000) & (adata.var["log2_fold_change"] == 0)
        return np.log(shares[0] / shares[1])[kept].std()

    assert spread(0.0) < 0.15
    assert 0.3 < spread(0.4) < 1.0  # √2 · 0.4 = 0.57


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_cells": 1}, "n_cells is 1; it must be from 2 to"),
        ({"share_changed": 1.5}, "share_changed is 1.5"),
        ({"n_replicates": 0}, "n_replicates is 0"),
        ({"library_ratio": 0}, "library_ratio is 0"),
        ({"replicate_effect": float("nan")}, "replicate_effect is nan"),
        ({"log2_fold_changes": ()}, "log2_fold_changes is ()"),
        ({"log2_fold_changes": (40.0,)}, "log2_fold_changes is"),
    ],
)
def test_two_groups_refuse_what_is_out_of_range(options, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        simulate.two_groups(**{"n_cells": 20, "n_genes": 10} | options)


# ----------------------------------------------------------------------------------- CITE-seq


def test_cite_seq_keeps_the_rna_and_adds_proteins_as_the_last_columns():
    rna = simulate.dataset(80, 30, n_types=3, seed=4)
    adata = simulate.cite_seq(rna, n_proteins=4, seed=4)
    assert adata.shape == (80, 34)
    assert sparse.isspmatrix_csr(adata.X)
    assert (adata[:, :30].X != rna.X).nnz == 0
    assert [*adata.var["measurement"]] == ["RNA"] * 30 + ["protein"] * 4
    np.testing.assert_array_equal(adata.obs["rna_total"], rna.X.toarray().sum(1))
    assert "rna_total" not in rna.obs
    assert {*adata.obs.columns} >= {*rna.obs.columns}
    for name in ("foreground", "background", "fold"):
        assert adata.obsm[name].shape == (80, 4)
    cells = Cells.from_anndata(adata, label="cell_type", library="rna_total")
    cells.require_domain("counts")
    np.testing.assert_array_equal(cells.library, adata.obs["rna_total"].astype("float32"))


def test_cite_seq_follows_its_docstring():
    """v from the panel, log β from three normals, y a negative binomial with mean β α^v."""
    rna = simulate.dataset(20_000, 2, n_types=2, seed=1)
    panel = pd.DataFrame({"CD3": [True, False], "CD19": [False, True]}, ["type 2", "type 1"])
    adata = simulate.cite_seq(
        rna, panel=panel, purity=0.9, ambient=0.4, inverse_dispersion=3.0, fold=4.0, seed=1
    )
    assert [*adata.var_names[2:]] == ["CD3", "CD19"]
    v, beta, fold = (adata.obsm[name] for name in ("foreground", "background", "fold"))
    has = panel.loc[adata.obs["cell_type"].astype(str)].to_numpy()
    assert_mean_is(v[has], 0.9)
    assert_mean_is(v[~has], 0.1)
    log_beta = np.log(beta)
    np.testing.assert_allclose(log_beta.std(0), 0.4, rtol=0.03)
    assert np.corrcoef(log_beta.T)[0, 1] == pytest.approx(0.5, abs=0.03)
    y, mean = adata.X.toarray()[:, 2:].astype(float), beta * fold**v
    assert (fold > 1).all()
    assert (np.ptp(fold, 0) == 0).all()
    assert_mean_is(y / mean, 1.0)
    assert_mean_is(((y - mean) ** 2 - mean) / mean**2, 1 / 3)


def test_cite_seq_has_proteins_that_some_types_have_and_others_do_not():
    adata = simulate.cite_seq(simulate.dataset(500, 5, n_types=4, seed=2), purity=1.0, seed=2)
    for of in adata.obsm["foreground"].T:
        share = pd.Series(of).groupby(adata.obs["cell_type"].to_numpy()).mean()
        assert {*share} == {0.0, 1.0}


def test_one_seed_of_cite_seq_gives_one_data_set():
    first, again, other = (simulate.cite_seq(seed=seed) for seed in (3, 3, 4))
    assert first.shape == (500, 310)
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fold": 1}, "fold is 1; it must be above 1"),
        ({"purity": 1.2}, "purity is 1.2; it must be a probability"),
        ({"background": 0}, "background is 0; it must be above 0"),
        ({"n_proteins": 0}, "n_proteins is 0"),
        ({"ambient": -1}, "ambient is -1"),
        ({"panel": pd.DataFrame({"CD3": [True]}, ["type 1"])}, r"no row for \['type 2', 'type 3'"),
    ],
)
def test_cite_seq_refuses_what_is_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        simulate.cite_seq(**options)
