"""Entries that were not observed: neither the bound nor an imputed value depends on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

import vaelab
from vaelab import Cells

from .test_models_contract import CASES, G, N, make, some_cells

EACH = pytest.mark.parametrize(
    ("name", "i"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))]
)
SARKAR = {
    "poisson": {},
    "nb": {"dispersion": "scalar"},
    "zinb": {"dispersion": "scalar", "zero_inflation": "scalar"},
}
X = some_cells().to(dtype=torch.float64).x
OBSERVED = torch.rand(N, G, generator=torch.Generator().manual_seed(1)) < 0.7


def hidden(x):
    """Cells with these values, of which some are hidden; their library sizes are given."""
    return replace(some_cells(), x=x, observed=OBSERVED).to(dtype=torch.float64)


def two_versions():
    """The same cells, which differ in the hidden entries before these were hidden."""
    return hidden(X), hidden(X.where(OBSERVED, 1000.0 - X))


def sarkars(likelihood, **options):
    """One of the three models of Sarkar (2019), small, with random parameters."""
    options = {"library": "none", "likelihood": likelihood} | SARKAR[likelihood] | options
    return make("VAE", **options)


def bound_of(model, cells, **options):
    torch.manual_seed(0)
    return model.eval().elbo(cells, **options)


@EACH
def test_the_bound_and_its_gradient_do_not_depend_on_hidden_entries(name, i):
    model, gradients, bounds = make(name, **CASES[name][i]), [], []
    for cells in two_versions():
        model.zero_grad()
        bound = bound_of(model, cells, n_samples=2)
        bound.loss().backward()
        bounds.append(bound.per_cell().detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert torch.equal(*bounds)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert not torch.equal(bounds[0], bound_of(model, hidden(cells.x + 1)).per_cell())


def test_cells_made_from_an_array_do_not_depend_on_hidden_entries():
    a, b = (
        Cells.from_array(x.numpy(), observed=OBSERVED.numpy()) for x in (X, X.where(OBSERVED, 77.0))
    )
    assert torch.equal(a.library, b.library)
    assert torch.equal(a.to().x, b.to().x)


@pytest.mark.parametrize("likelihood", SARKAR)
@pytest.mark.parametrize("library", ["observed", "none"])
def test_the_likelihood_is_masked_and_the_kl_is_whole(likelihood, library):
    """Σ_j w_j log p(x_j | z) − KL(q(z | w∘x) ‖ p(z)), term by term."""
    model, (cells, _) = sarkars(likelihood, library=library), two_versions()
    with torch.no_grad():
        bound = bound_of(model, cells, n_samples=3)
        q = model.encode(replace(cells, observed=None))  # of zero-filled cells
        torch.manual_seed(0)
        z = q.mean + q.stddev * torch.randn(3, N, 2, dtype=torch.float64)
        log_px = model.decode(z, cells).log_prob(cells.x)
        expected = (log_px * OBSERVED).sum(-1)
    torch.testing.assert_close(bound.terms["reconstruction"].value, expected)
    torch.testing.assert_close(bound["kl_z"], kl_divergence(q, model.prior()).sum(-1))


@pytest.mark.parametrize("likelihood", SARKAR)
def test_a_cell_with_nothing_observed_has_minus_the_kl(likelihood):
    cells = replace(hidden(X), observed=torch.zeros(N, G, dtype=bool))
    with torch.no_grad():
        bound = bound_of(sarkars(likelihood), cells.to(dtype=torch.float64))
    assert (bound["reconstruction"] == 0).all()
    assert torch.equal(bound.per_cell(), -bound["kl_z"])


# ------------------------------------------------------------------------------------ imputation


@EACH
@pytest.mark.parametrize("n_samples", [None, 3])
def test_impute_keeps_what_was_observed_and_does_not_see_the_rest(name, i, n_samples):
    model = fitted(make(name, **CASES[name][i]))
    (cells, other), draws = two_versions(), {"n_samples": n_samples, "seed": 3}
    found = model.impute(cells, **draws)
    observed = OBSERVED.numpy()
    np.testing.assert_array_equal(found[observed], cells.x.numpy()[observed])
    np.testing.assert_array_equal(found, model.impute(other, **draws))
    mean = model.reconstruct(cells, **draws)
    np.testing.assert_array_equal(found[~observed], mean[~observed])


def test_an_average_over_draws_leaves_observed_values_as_they_are_to_the_bit():
    model, cells = fitted(make("VAE", likelihood="normal")), hidden(X / 7)
    found = model.impute(cells, n_samples=7)[OBSERVED.numpy()]
    np.testing.assert_array_equal(found, (X / 7)[OBSERVED])


def fitted(model):
    """The model as if it had been fitted to the cells."""
    model.prepare(some_cells())
    return model.eval()


def test_the_plug_in_mean_is_that_at_the_mean_of_z_and_the_other_the_mean_over_z():
    model, (cells, _) = fitted(sarkars("nb")), two_versions()
    with torch.no_grad():
        q = model.encode(cells)
        plug_in = model.decode(q.mean, cells).mean.numpy()
        torch.manual_seed(5)
        draws = model.decode(q.sample((5_000,)), cells).mean
    np.testing.assert_allclose(model.reconstruct(cells), plug_in, rtol=1e-12)
    mean, error = draws.mean(0).numpy(), draws.std(0).numpy() / np.sqrt(800)
    found = model.reconstruct(cells, n_samples=800)
    assert (np.abs(found - mean) < 5 * error).all()
    assert (np.abs(plug_in - mean) > 5 * error).mean() > 0.5  # they are different quantities
    np.testing.assert_array_equal(model.reconstruct(cells, n_samples=7, seed=1),
                                  model.reconstruct(cells, n_samples=7, seed=1))  # fmt: skip
    assert (model.reconstruct(cells, n_samples=7) != model.reconstruct(cells, n_samples=8)).all()


@pytest.mark.parametrize("verb", ["impute", "denoise", "reconstruct"])
@pytest.mark.parametrize("n_samples", [0, -1, 1.5, True, "2"])
def test_a_number_of_draws_that_is_none_is_refused(verb, n_samples):
    with pytest.raises(ValueError, match=r"n_samples is .*; it must be a whole number, at least 1"):
        getattr(fitted(make("VAE")), verb)(two_versions()[0], n_samples=n_samples)


def test_without_hidden_entries_there_is_nothing_to_impute():
    with pytest.raises(ValueError, match="All entries of these cells were observed"):
        fitted(make("VAE")).impute(some_cells())
    with pytest.raises(TypeError, match="A model reads Cells, not ndarray"):
        fitted(make("VAE")).impute(X.numpy())


# ------------------------------------------------------------------------------------ denoising


@pytest.mark.parametrize("likelihood", SARKAR)
def test_denoise_is_the_posterior_mean_of_the_rate(likelihood):
    model, cells = fitted(sarkars(likelihood)), some_cells()
    dense = cells.to(dtype=torch.float64)
    with torch.no_grad():
        p = model.decode(model.encode(dense).mean, dense)
        x, base = dense.x, getattr(p, "base", p)
        expected = base.mean
        if likelihood != "poisson":  # λ = μu is Gamma with shape θ and rate θ/μ
            θ, μ = base.inverse_dispersion, base.mean
            expected = (x + θ) / (1 + θ / μ)
        if likelihood == "zinb":
            zero = (1 - torch.sigmoid(p.logits)) * (θ / (θ + μ)) ** θ
            kept = zero / (zero + torch.sigmoid(p.logits))
            expected = torch.where(x > 0, expected, expected * kept)
    np.testing.assert_allclose(model.denoise(cells), expected, rtol=1e-9)
    if likelihood == "poisson":
        np.testing.assert_array_equal(model.denoise(cells), model.reconstruct(cells))


@EACH
def test_denoise_uses_the_mean_where_nothing_was_observed(name, i):
    model = fitted(make(name, **CASES[name][i]))
    cells, other = two_versions()
    if model.domain != "counts":
        with pytest.raises(ValueError, match=r"denoise needs a count likelihood, but .* a Normal"):
            model.denoise(cells)
        return
    found, mean = model.denoise(cells), model.reconstruct(cells)
    observed = OBSERVED.numpy()
    np.testing.assert_array_equal(found[~observed], mean[~observed])
    assert (found[observed] != mean[observed]).any()
    np.testing.assert_array_equal(found, model.denoise(other))


def test_denoise_averages_over_draws_of_z():
    model, cells = fitted(sarkars("zinb")), some_cells()
    dense = cells.to(dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(5)
        draws = model.decode(model.encode(dense).sample((5_000,)), dense).posterior_mean(dense.x)
    mean, error = draws.mean(0).numpy(), draws.std(0).numpy() / np.sqrt(800)
    assert (np.abs(model.denoise(cells, n_samples=800) - mean) < 5 * error + 1e-12).all()


# ---------------------------------------------------------------------------- the three models


@pytest.mark.parametrize("likelihood", SARKAR)
def test_the_sources_models_train_save_and_load(likelihood, tmp_path):
    x = vaelab.simulate.sarkar().X[:60]
    cells = Cells.from_array(x)
    model = vaelab.VAE(100, n_latent=3, likelihood=likelihood, library="none", **SARKAR[likelihood])
    before = model.elbo_per_cell(cells).mean()
    vaelab.fit(model, cells, epochs=20, validation_fraction=0, progress=False)
    assert model.elbo_per_cell(cells).mean() > before + 10
    own = dict(model.likelihood.named_parameters(recurse=False))
    expected = {"poisson": set(), "nb": {"log_inverse_dispersion"}}
    assert {*own} == expected.get(likelihood, {"log_inverse_dispersion", "dropout_logits"})
    assert all(p.shape == () and p.item() != 0 for p in own.values())
    again = vaelab.VAE.load(model.save(tmp_path / "model"))
    np.testing.assert_array_equal(again.denoise(cells), model.denoise(cells))
    totals = [model.generate(20, library=size).sum() for size in (1.0, 1e6)]
    assert totals[0] == totals[1]  # no part of the model reads ℓ
