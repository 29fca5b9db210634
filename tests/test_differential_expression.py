"""Differential expression: its probabilities, its groups, its null, and what it must not hold."""

import re
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

import vaelab
from vaelab import GMVAE, SCANVI, SCVI, VAE, Cells, simulate
from vaelab import differential_expression as differ
from vaelab.differential_expression import (
    _certificate,
    _Counts,
    _fdr_in_null,
    _null_masks,
    _p_with_prior,
    _Task,
    expected_fdr,
    pseudobulk,
)

N, G = 60, 8
SIZES = {"n_latent": 2, "n_hidden": 8, "dropout_rate": 0.0}
QUIET = {"progress": False}
PURE = QUIET | {"count_noise": False}


def some_cells(n=N, n_genes=G, seed=0, n_batches=1) -> Cells:
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1, 4, size=(1, n_genes)), size=(n, n_genes))
    x[:, 0] += 1  # no empty cells
    batch = [f"day {i % n_batches + 1}" for i in range(n)] if n_batches > 1 else None
    return Cells.from_array(x, label=np.array(["p", "q", "r"])[np.arange(n) % 3], batch=batch)


def some_model(cells, kind=SCVI, strength=6.0, seed=1, certain=False, **options):
    """A model that was not trained, whose ρ depends on z; if certain, q(z | x) is narrow."""
    if kind is SCVI and len(cells.batch_names) > 1:
        options["n_batches"] = len(cells.batch_names)
    model = kind(cells.n_genes, seed=seed, **{"likelihood": "nb"} | SIZES | options)
    model.prepare(cells)
    with torch.no_grad():
        model.likelihood.output.weight[: cells.n_genes] *= strength
        if certain:
            model.encoder[-1].weight[2:] = 0
            model.encoder[-1].bias[2:] = -20
            model.encoder[-1].weight[:2] *= 3
    return model.eval()


@pytest.fixture(scope="module")
def fitted():
    """Cells of two groups with known fold changes, a fitted model, and the fold changes."""
    adata = simulate.two_groups(300, 60, log2_fold_changes=(2.0,), library=3000, seed=3)
    cells = Cells.from_anndata(adata, label="group")
    model = SCVI(cells.n_genes, likelihood="nb", n_hidden=32)
    vaelab.fit(model, cells, epochs=40, batch_size=32, seed=0, progress=False)
    return cells, model, adata.var["log2_fold_change"]


def shares(model, z):
    """ρ for each z, shape (len(z), G), in numpy."""
    with torch.no_grad():
        z = torch.as_tensor(z, dtype=torch.float32)
        p = model.decode(z, model.blank_cells(len(z), 1.0))
        return getattr(p, "base", p).mean.double().numpy()


# -------------------------------------------------------------------------- what the numbers mean


@pytest.mark.parametrize("mode", ["groups", "pairs"])
def test_two_cells_agree_with_quadrature(mode):
    cells = some_cells()
    model = some_model(cells, n_latent=1)
    table = differ(model, cells, 3, 8, n_samples=600, delta=0.5, mode=mode, **PURE)
    table = table.loc[[*cells.gene_names]]
    with torch.no_grad():
        q = model.encode(cells[[3, 8]].to())
    nodes = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    ρ = [shares(model, (m + s * nodes)[:, None]) for m, s in zip(q.mean[:, 0].numpy(),
         q.stddev[:, 0].numpy(), strict=True)]  # fmt: skip
    ε = 0.1 / cells[[3, 8]].library.median().item()
    for g in range(G):
        lfc = np.log2(ρ[0][:, None, g] + ε) - np.log2(ρ[1][None, :, g] + ε)
        gene = table.iloc[g]
        assert gene["p_higher"] == pytest.approx((lfc > 0).mean(), abs=0.03)
        assert gene["p_change"] == pytest.approx((np.abs(lfc) > 0.5).mean(), abs=0.03)
        spread = lfc.std() / np.sqrt(6000)
        assert gene["lfc"] == pytest.approx(np.median(lfc), abs=8 * spread)
        low, high = np.quantile(lfc, [0.025, 0.975])
        assert gene["lfc_low"] == pytest.approx(low, abs=0.1 * (high - low))
        assert gene["lfc_high"] == pytest.approx(high, abs=0.1 * (high - low))
    assert (np.abs(table["p_higher"] - 0.5) < 0.45).any()  # else the check would be easy


def test_all_genes_of_a_cell_come_from_one_draw_of_z():
    """Two genes with the same decoder have the same share in each draw, and so the same row."""
    cells = some_cells()
    model = some_model(cells)
    with torch.no_grad():
        model.likelihood.output.weight[2] = model.likelihood.output.weight[5]
        model.likelihood.output.bias[2] = model.likelihood.output.bias[5]
    for mode in ("groups", "pairs"):
        table = differ(model, cells, "p", "q", n_samples=5, mode=mode, **PURE)
        same = ["lfc", "lfc_low", "lfc_high", "p_higher", "p_change", "mean_group"]
        a, b = (table.loc[cells.gene_names[g], same].to_numpy(float) for g in (2, 5))
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_equal_shares_count_half():
    cells = some_cells()
    model = some_model(cells)
    with torch.no_grad():
        model.likelihood.output.bias[4] = -80  # a share far below what is added to it
    row = differ(model, cells, "p", "q", n_samples=5, **PURE).loc[cells.gene_names[4]]
    assert row["p_higher"] == 0.5
    assert row["log_bayes_factor"] == 0
    assert row["lfc"] == 0


def test_certain_changes_stay_finite():
    cells = some_cells()
    model = some_model(cells, strength=300.0, certain=True)
    table = differ(model, cells, [0], [1], n_samples=3, **PURE)
    assert np.isfinite(table.select_dtypes(float).to_numpy()).all()
    top = table["p_higher"].max()
    assert top == pytest.approx(30.5 / 31)
    assert table["log_bayes_factor"].max() == pytest.approx(np.log(30.5 / 0.5))


def test_groups_are_weighted_by_the_bayesian_bootstrap():
    """The spread of LFC is that of means over cells drawn again, computed here with numpy."""
    cells = some_cells(90)
    model = some_model(cells, certain=True)
    table = differ(model, cells, "p", "q", n_samples=100, **PURE).loc[[*cells.gene_names]]
    ρ, rng = shares(model, model.embed(cells)), np.random.default_rng(5)
    ε = 0.1 / cells[(cells.label < 2).numpy()].library.median().item()
    logs = []
    for label in (0, 1):
        w = rng.dirichlet(np.ones(30), size=4000)
        logs.append(np.log2(w @ ρ[cells.label.numpy() == label] + ε))
    low, high = np.quantile(logs[0] - logs[1], [0.025, 0.975], axis=0)
    width = (table["lfc_high"] - table["lfc_low"]).to_numpy()
    np.testing.assert_allclose(width, high - low, rtol=0.2)
    own = shares(model, model.embed(cells))[cells.label.numpy() == 0].mean(0)
    np.testing.assert_allclose(table["mean_group"], 1e4 * own, rtol=0.03)


def test_known_changes_are_found_with_their_sign(fitted):
    cells, model, truth = fitted
    table = differ(model, cells, "a", "b", **QUIET)
    truth = truth.loc[table.index]
    changed = truth != 0
    called = table["called"]
    assert (np.sign(table["lfc"]) == np.sign(truth))[changed].mean() > 0.9
    assert (called & changed).sum() >= 5
    assert (called & changed).sum() > 4 * (called & ~changed).sum()
    known = table["observed_reference"] > 20
    ratio = np.log2(table["observed_group"] / table["observed_reference"])[known & changed]
    np.testing.assert_allclose(ratio, truth[known & changed], atol=0.5)
    assert table["p_change"].is_monotonic_decreasing
    assert table["fdr"].is_monotonic_increasing


def test_count_noise_is_the_spread_of_the_counts_themselves():
    """The variance of the log ratio of shares, against a bootstrap of cells."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 4, size=(400, 30)))
    cells = Cells.from_array(counts, batch=["day 1", "day 2"] * 200)
    group = rng.random(400) < 0.4
    task = _Task(cells, torch.tensor(np.array([[group, ~group]])), "groups", 1, 0.1)
    counts = _Counts(task)
    x, size = cells.x.double().numpy(), cells.library.double().numpy()
    ε = 0.1 / np.median(size)
    logs = []
    for side in (group, ~group):
        again = rng.choice(np.flatnonzero(side), size=(1500, side.sum()))
        logs.append(np.log2(x[again].sum(1) / size[again].sum(1, keepdims=True) + ε))
    np.testing.assert_allclose(counts.variance[0], (logs[0] - logs[1]).var(0), rtol=0.25)
    np.testing.assert_allclose(counts.share[0], x[group].sum(0) / size[group].sum())
    np.testing.assert_allclose(counts.detected[1], (x[~group] > 0).mean(0))


def test_count_noise_widens_the_intervals(fitted):
    cells, model, _ = fitted
    pure, wide = (
        differ(model, cells, "a", "b", n_samples=20, count_noise=noise, **QUIET)
        for noise in (False, True)
    )
    width = [table["lfc_high"] - table["lfc_low"] for table in (pure, wide)]
    assert (width[1] > 1.3 * width[0].loc[wide.index]).mean() > 0.9


def test_genes_with_means_near_zero_are_not_called():
    """A gene of which the model expects far less than a count per cell, whatever its ratio."""
    cells = some_cells()
    model = some_model(cells, strength=30.0, certain=True)
    with torch.no_grad():
        model.likelihood.output.bias[4] -= 30
    table = differ(model, cells, [0], [1], n_samples=5, **PURE)
    gene = table.loc[cells.gene_names[4]]
    assert gene["mean_group"] != gene["mean_reference"]
    assert abs(gene["lfc"]) < 0.01
    assert not gene["called"]
    little = differ(model, cells, [0], [1], n_samples=5, pseudocount=1e-22, **PURE)
    assert abs(little.loc[cells.gene_names[4], "lfc"]) > 1


# ------------------------------------------------------------------------------------ symmetries


@pytest.mark.parametrize("options", [{}, {"mode": "pairs"}, {"null": "split", "n_nulls": 2}])
@pytest.mark.parametrize("groups", [("p", "q"), ("q", "p"), ([4], "p"), ("r", None)])
def test_groups_that_change_places_change_every_sign(groups, options):
    cells = some_cells()
    model = some_model(cells)
    given = {"n_samples": 4} | options | QUIET
    a, b = groups
    b = b or ["p", "q"]
    if a == [4]:
        b = "p"
    one, other = differ(model, cells, a, b, **given), differ(model, cells, b, a, **given)
    other = other.loc[one.index]
    assert (one["lfc"] == -other["lfc"]).all()
    assert (one["lfc_low"] == -other["lfc_high"]).all()
    assert (one["log_bayes_factor"] == -other["log_bayes_factor"]).all()
    np.testing.assert_allclose(one["p_higher"], 1 - other["p_higher"], atol=1e-15)
    assert (one["p_change"] == other["p_change"]).all()
    for what in ("mean", "observed", "detected"):
        assert (one[f"{what}_group"] == other[f"{what}_reference"]).all()
        assert (one[f"{what}_group"] != one[f"{what}_reference"]).any()
    if "null" in options:
        assert one.attrs["null"] == other.attrs["null"]


@pytest.mark.parametrize("mode", ["groups", "pairs"])
def test_the_order_of_the_cells_does_not_matter(mode):
    cells = some_cells()
    model = some_model(cells)
    shuffled = cells[np.random.default_rng(0).permutation(N)]
    options = {"n_samples": 4, "mode": mode, "null": "split", "n_nulls": 2} | QUIET
    one, other = (differ(model, c, "p", "q", **options) for c in (cells, shuffled))
    other = other.loc[one.index]
    for name in one.select_dtypes(float):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=2e-5)


def test_one_seed_gives_one_result_and_leaves_other_draws_alone():
    cells = some_cells()
    model = some_model(cells)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (differ(model, cells, "p", n_samples=3, seed=s, **QUIET) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    pd.testing.assert_frame_equal(one, again)
    assert (one["lfc"] != other["lfc"].loc[one.index]).any()


# --------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("mode", ["groups", "pairs"])
def test_batches_are_averaged_over_as_normalized_expression_does(mode):
    cells = some_cells(80, n_batches=2)
    model = some_model(cells, strength=2.0, certain=True, normalization=None)
    with torch.no_grad():
        model.decoder[0].weight[:, -2:] *= 6  # the batch matters
    p = (cells.label == 0).numpy()
    found = {}
    for batch in ("all", None, "day 1", ["day 1", "day 2"]):
        options = PURE | {"batch": batch, "n_samples": 300, "mode": mode}
        found[str(batch)] = differ(model, cells, "p", "q", **options)["mean_group"].loc[
            [*cells.gene_names]
        ]
        names = ["day 1", "day 2"] if batch == "all" else batch
        expected = 1e4 * model.normalized_expression(cells[p], batch=names, n_samples=200).mean(0)
        np.testing.assert_allclose(found[str(batch)], expected, rtol=0.06)
    assert (np.abs(found["all"] / found["day 1"] - 1) > 0.2).any()
    assert (found["all"] == found["['day 1', 'day 2']"]).all()


def test_batches_of_a_model_without_batches_are_refused():
    cells = some_cells()
    model = some_model(cells, kind=VAE)
    with pytest.raises(ValueError, match="a VAE has no batches"):
        differ(model, cells, "p", batch="day 1", **QUIET)
    with pytest.raises(ValueError, match="batch is empty"):
        differ(some_model(some_cells(n_batches=2)), some_cells(n_batches=2), "p", batch=[], **QUIET)


# ---------------------------------------------------------------------------------------- memory


class Held(TorchDispatchMode):
    """The most bytes that tensors made here held at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                n = tensor.untyped_storage().nbytes()
                self.now += n
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self._release, n)
        return made

    def _release(self, n):
        self.now -= n


@pytest.mark.parametrize("mode", ["groups", "pairs"])
def test_samples_of_all_cells_are_never_held(mode):
    n_samples, n_genes = 100, 200
    cells = some_cells(900, n_genes)
    model = some_model(cells)
    with Held() as held:
        differ(model, cells, "p", "q", n_samples=n_samples, mode=mode, **QUIET)
    of_one_draw = 4 * 600 * n_genes
    results = 4 * 10 * n_samples * n_genes
    assert held.most > results  # the instrument sees something
    assert held.most < 20 * of_one_draw < n_samples * of_one_draw / 4


# ---------------------------------------------------------------------------------------- groups


def test_groups_can_be_given_in_many_ways():
    cells = some_cells(n_batches=2)
    model = some_model(cells)
    label, expected = cells.labels, differ(model, cells, "p", "q", n_samples=2, **QUIET)
    for group in (["p"], label == "p", np.flatnonzero(label == "p"), pd.Series(label == "p"),
                  torch.tensor(label == "p"), [*np.flatnonzero(label == "p")]):  # fmt: skip
        found = differ(model, cells, group, label == "q", n_samples=2, **QUIET)
        pd.testing.assert_frame_equal(found, expected)
    rest = differ(model, cells, "p", n_samples=2, **QUIET)
    named = differ(model, cells, "p", ["q", "r"], n_samples=2, **QUIET)
    pd.testing.assert_frame_equal(rest, named)
    of_batch = differ(model, cells, "day 1", "day 2", n_samples=2, **QUIET)
    mask = (cells.batch == 0).numpy()
    pd.testing.assert_frame_equal(of_batch, differ(model, cells, mask, n_samples=2, **QUIET))


@pytest.mark.parametrize(
    ("group", "reference", "kind", "says"),
    [
        ("s", None, ValueError, "group is 's'; these cells have the labels and batches p, q, r."),
        ("p", "t", ValueError, "reference is 't'; these cells have"),
        ([], "p", ValueError, "group holds none of these cells."),
        ("p", np.zeros(N, bool), ValueError, "reference holds none of these cells."),
        ("p", ["p", "q"], ValueError, "20 cells are in both group and reference, for example "
         "number 0; a cell can be in one of them only."),
        ("p", [0, 1], ValueError, "1 cells are in both"),
        (["p", "q", "r"], None, ValueError, "group holds all the cells, so that none is left"),
        ([0, N], None, ValueError, f"group has cell number {N}; the {N} cells have numbers from 0"),
        ([-1], None, ValueError, "group has cell number -1"),
        (np.ones(7, bool), None, ValueError, f"group is a mask of 7 for {N} cells."),
        ([0.5], None, TypeError, "group has shape (1,) and dtype float64; give the name"),
        (np.ones((2, 2), bool), None, TypeError, "group has shape (2, 2)"),
    ],
)  # fmt: skip
def test_groups_that_are_not_clear_are_refused(group, reference, kind, says):
    cells = some_cells()
    with pytest.raises(kind, match=re.escape(says)):
        differ(some_model(cells), cells, group, reference, **QUIET)


def test_a_name_that_is_label_and_batch_is_refused():
    cells = Cells.from_array(some_cells().x, label=["p", "q"] * 30, batch=["p"] * 30 + ["q"] * 30)
    with pytest.raises(ValueError, match="'p', which is a label and also a batch: give a mask"):
        differ(some_model(cells), cells, "p", **QUIET)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delta": 0.0}, "delta is 0.0; it must be a finite number above 0."),
        ({"delta": float("nan")}, "delta is nan"),
        ({"fdr": 1.0}, "fdr is 1.0; it must be between 0 and 1."),
        ({"pseudocount": 0}, "pseudocount is 0; it must be a finite number above 0."),
        ({"mode": "cells"}, "mode is 'cells'; choose from ['groups', 'pairs']"),
        ({"null": "labels"}, "null is 'labels'; choose from ['split', 'permutation'], or None"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"n_nulls": 0}, "n_nulls is 0"),
        ({"batch": "day 9"}, "day 9"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    cells = some_cells(n_batches=2)
    with pytest.raises(ValueError, match=re.escape(says)):
        differ(some_model(cells), cells, "p", **QUIET | options)


def test_what_is_not_a_model_or_not_cells_is_refused():
    cells = some_cells()
    with pytest.raises(TypeError, match="model must be a fitted model, or a list of fitted models"):
        differ([], cells, "p", **QUIET)
    with pytest.raises(TypeError, match="Expected Cells, not ndarray"):
        differ(some_model(cells), np.ones((3, G)), "p", **QUIET)
    real = VAE(G, likelihood="normal", **SIZES)
    real.prepare(cells)
    with pytest.raises(ValueError, match="'normal', which has no shares ρ"):
        differ(real, cells, "p", **QUIET)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(VAE, {"likelihood": "zinb"}), (GMVAE, {"n_clusters": 3, "likelihood": "poisson"}),
     (SCANVI, {"n_labels": 3, "likelihood": "zinb"})],
)  # fmt: skip
def test_every_model_of_counts_can_be_asked(kind, options):
    cells = some_cells()
    model = some_model(cells, kind=kind, **options)
    table = differ(model, cells, "p", "q", n_samples=200, **PURE).loc[[*cells.gene_names]]
    assert np.isfinite(table.select_dtypes(float).to_numpy()).all()
    rows = (cells.label == 0).numpy()
    with torch.no_grad():
        part = cells[rows].unlabelled().to()
        z = model.encode(part).sample((200,)).flatten(0, 1)
    np.testing.assert_allclose(table["mean_group"], 1e4 * shares(model, z).mean(0), rtol=0.1)


# ------------------------------------------------------------------------------- the certificate


def test_expected_fdr_is_the_mean_error_of_the_genes_so_far():
    p = np.array([0.6, 0.99, 0.9, 0.9, 0.2])
    expected = [(0.01 + 0.1 + 0.1 + 0.4) / 4, 0.01, 0.07, 0.07, (0.01 + 0.1 + 0.1 + 0.4 + 0.8) / 5]
    np.testing.assert_allclose(expected_fdr(p), expected)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_prior_shared_by_all_genes_makes_the_expected_fdr_hold(share):
    """On genes with known fold changes; a flat prior fails here."""
    rng, calls, false, flat = np.random.default_rng(4), 0, 0, []
    for _ in range(5):
        std = 0.2 * np.exp(0.5 * rng.standard_normal(2000))
        lfc = np.where(rng.random(2000) < share, rng.choice([-2, -1, -0.5, 0.5, 1, 2], 2000), 0)
        mean = lfc + std * rng.standard_normal(2000)
        called = expected_fdr(_p_with_prior(mean, std, 0.25)) <= 0.05
        calls, false = calls + called.sum(), false + (called & (lfc == 0)).sum()
        p = stats.norm.sf((0.25 - mean) / std) + stats.norm.cdf((-0.25 - mean) / std)
        called = expected_fdr(p) <= 0.05
        flat.append((called & (lfc == 0)).sum() / called.sum())
    assert np.mean(flat) > 0.2
    if share:
        assert calls > 1000
        assert 0.03 < false / calls < 0.07
    else:
        assert calls <= 2


def test_the_prior_gives_the_posterior_of_its_mixture():
    """Against numerical integration under the true prior, in which half of the genes are at 0."""
    rng = np.random.default_rng(1)
    lfc = np.where(rng.random(20_000) < 0.5, 0.8 * rng.standard_normal(20_000), 0)
    mean = lfc + 0.3 * rng.standard_normal(20_000)
    p = _p_with_prior(mean, np.full(20_000, 0.3), 0.5)
    grid = np.linspace(-6, 6, 4001)
    for at in (0.0, 0.6, 1.2, -2.0):
        g = np.abs(mean - at).argmin()
        wide = stats.norm.pdf(grid, 0, 0.8) * stats.norm.pdf(mean[g], grid, 0.3)
        narrow = stats.norm.pdf(mean[g], 0, 0.3) / (grid[1] - grid[0])
        expected = wide[np.abs(grid) > 0.5].sum() / (wide.sum() + narrow)
        assert p[g] == pytest.approx(expected, abs=0.05)


def test_fdr_in_a_null_is_a_ratio_of_counts():
    p, p_null = np.array([0.9, 0.5, 0.95, 0.1]), np.array([[0.5, 0.2, 0.0, 0.0], [0.92, 0.1, 0, 0]])
    # at 0.95: 0 of 1; 0.9: ½ of 2; 0.5: 1 of 3; 0.1: 2 of 4
    np.testing.assert_allclose(_fdr_in_null(p, p_null), [0.25, 1 / 3, 0, 0.5])
    p_null[1, 0] = 0.99  # ½ of 1 at 0.95, but ½ of 2 at 0.9
    np.testing.assert_allclose(_fdr_in_null(p, p_null), [0.25, 1 / 3, 0.25, 0.5])


def test_the_certificate_counts_calls_in_the_nulls():
    fdr = np.array([0.001, 0.02, 0.03, 0.08, 0.5])
    p_null = np.array([[0.999, 0.93, 0.1, 0, 0], [0.0, 0.5, 0.2, 0, 0]])  # 0.001, 0.0355, … and 0.5
    assert _certificate(fdr, p_null) == {
        "claimed": [0.01, 0.05, 0.1],
        "calls": [1, 3, 4],
        "false_calls": [0.5, 1.0, 1.0],
        "measured": pytest.approx([0.5, 1 / 3, 1 / 4]),
        "any_call": [0.5, 0.5, 0.5],
    }
    nothing = _certificate(np.ones(5), np.array([[0.999, 0, 0, 0, 0]]))
    assert nothing["measured"] == [1.0, 1.0, 1.0]
    assert _certificate(np.ones(5), np.zeros((1, 5)))["measured"] == [0.0, 0.0, 0.0]


def test_null_groups_do_not_differ_and_keep_the_batches():
    rng = np.random.default_rng(0)
    first, batch = rng.random(200) < 0.7, rng.integers(3, size=200)
    real, *permuted = _null_masks(first, batch, "permutation", 20, seed=0)
    assert (real == [first, ~first]).all()
    for one, other in permuted:
        assert (one ^ other).all()
        assert all(one[batch == b].sum() == first[batch == b].sum() for b in range(3))
        assert (one != first).any()
    drawn = np.mean([one for one, _ in permuted], axis=0)
    assert abs(drawn[first].mean() - drawn[~first].mean()) < 0.1
    _, *split = _null_masks(first, batch, "split", 20, seed=0)
    for one, other in split:  # both within the larger group, in the proportion of the two
        assert ((one | other) == first).all()
        assert not (one & other).any()
        assert one.sum() == round(first.sum() * first.mean())
        for b in range(3):
            here = (first & (batch == b)).sum()
            assert abs(one[batch == b].sum() - here * first.mean()) <= 1.5
    drawn = np.mean([one for one, _ in split], axis=0)[first]
    assert drawn.min() > 0.2  # no cell always stays on one side
    assert drawn.max() < 1 or len(np.unique(drawn)) > 3
    assert len({one.tobytes() for one, _ in split}) == 20


def test_a_null_is_measured_with_the_same_rule(fitted):
    cells, model, _ = fitted
    options = {"n_samples": 30, "n_nulls": 4} | PURE
    table = differ(model, cells, "a", "b", null="permutation", **options)
    null = table.attrs["null"]
    assert null["kind"] == "permutation"
    assert null["calls"][1] == table["called"].sum()
    assert null["false_calls"][1] <= 3
    assert table["fdr_null"].is_monotonic_increasing
    # groups that differ more than the splits: the calls are not those of the null
    assert null["calls"][1] >= 5
    # the question itself does not depend on whether a null is asked for
    alone = differ(model, cells, "a", "b", **options)
    np.testing.assert_allclose(alone["lfc"], table["lfc"].loc[alone.index], atol=0.2)


def test_a_null_that_cannot_be_made_is_refused():
    cells = some_cells(n_batches=2)
    model = some_model(cells)
    with pytest.raises(ValueError, match="Each batch has cells of one group only"):
        differ(model, cells, "day 1", "day 2", null="permutation", **QUIET)
    with pytest.raises(ValueError, match="one cell only, which cannot be split"):
        differ(model, cells, [0], [1], null="split", **QUIET)


def test_several_models_give_the_stability_of_each_call():
    cells = some_cells()
    one, other = (some_model(cells, seed=seed, certain=True) for seed in (1, 2))
    options = {"n_samples": 20, "delta": 0.1, "fdr": 0.2} | PURE
    both = differ([one, other], cells, "p", "q", **options)
    alone = [differ(m, cells, "p", "q", **options).loc[both.index] for m in (one, other)]
    assert set(both["agreement"]) <= {0, 0.5, 1}
    assert (both["stable"] == (both["agreement"] != 0.5)).all()
    same = differ([one, one], cells, "p", "q", **options)
    assert same["stable"].mean() > 0.7
    np.testing.assert_allclose(
        both["mean_group"], (alone[0]["mean_group"] + alone[1]["mean_group"]) / 2, rtol=0.1
    )
    assert (both["lfc_low"] <= alone[0]["lfc"]).all()  # the samples of both are in it
    assert "stable" not in alone[0]


def test_progress_is_shown_only_if_wanted(capfd):
    cells = some_cells()
    model = some_model(cells)
    differ(model, cells, "p", "q", n_samples=3, progress=False)
    assert capfd.readouterr() == ("", "")
    differ(model, cells, "p", "q", n_samples=3)
    assert re.search(r"/3 .*draw/s", capfd.readouterr().out)


# ------------------------------------------------------------------------------------ pseudobulk


def test_pseudobulk_tests_the_shares_of_replicates():
    cells = some_cells(60)
    replicate = np.array([f"{'pqr'[i % 3]} {i // 3 % 4}" for i in range(60)])
    table = pseudobulk(cells, "p", "q", replicate).loc[[*cells.gene_names]]
    x, size = cells.x.double().numpy(), cells.library.double().numpy()
    values = {}
    for name in np.unique(replicate):
        rows = replicate == name
        values.setdefault(name[0], []).append(np.log2((x[rows].sum(0) + 0.5) / size[rows].sum()))
    a, b = np.array(values["p"]), np.array(values["q"])
    np.testing.assert_allclose(table["lfc"], a.mean(0) - b.mean(0))
    expected = stats.ttest_ind(a, b, equal_var=False).pvalue
    np.testing.assert_allclose(table["p_value"], expected)
    np.testing.assert_allclose(table["q_value"], stats.false_discovery_control(expected))
    with pytest.raises(ValueError, match="The group has cells of 1 replicate; a test needs two"):
        pseudobulk(cells, "p", "q", np.array(["one"] * 60))
    with pytest.raises(ValueError, match=r"replicate has shape \(3,\) for 60 cells"):
        pseudobulk(cells, "p", "q", ["a", "b", "c"])
