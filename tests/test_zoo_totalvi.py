"""TotalVILike: a mixture of negative binomials against scipy, and its bound against quadrature."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit, logsumexp
from sklearn.metrics import roc_auc_score

import vaelab
from vaelab import Cells, simulate
from vaelab.models import zoo
from vaelab.models.zoo.totalvi import OverBackground

from . import oracles
from .test_scvi import randomise
from .test_zoo_sisua import G, N, P, as_cells, counts, some_observed

SCALE = np.array([12.0, 20.0, 31.0])


def make(n_proteins=P, **options):
    options = {"n_latent": 1, "n_hidden": 4, "normalization": None} | options
    model = randomise(
        zoo.TotalVILike(G + n_proteins, n_proteins=n_proteins, **options).double(), 3, 0.4
    )
    model.protein_scale.copy_(torch.tensor(SCALE[:n_proteins]))
    return model.eval()


# ------------------------------------------------------------------------- over a background


def a_mixture():
    rng = np.random.default_rng(1)
    background, fold = rng.gamma(2, 5, (4, 3)), 1 + rng.gamma(2, 3, (4, 3))
    phi, logits = rng.gamma(4, 1, 3), rng.normal(0, 2, (4, 3))
    tensors = (torch.tensor(v) for v in (background, fold, phi, logits))
    return OverBackground(*tensors), (background, fold, phi, expit(logits))


def nb(y, mean, phi):
    return stats.nbinom.pmf(y, phi, phi / (phi + mean))


def test_the_mixture_is_that_of_scipy():
    p, (β, α, φ, π) = a_mixture()
    y = np.random.default_rng(2).poisson(20, (4, 3)).astype(float)
    y[0] = 0
    expected = π * nb(y, β, φ) + (1 - π) * nb(y, α * β, φ)
    np.testing.assert_allclose(p.log_prob(torch.tensor(y)), np.log(expected), rtol=1e-10)
    mean = π * β + (1 - π) * α * β
    np.testing.assert_allclose(p.mean, mean)
    second = π * (β + β**2 / φ + β**2) + (1 - π) * (α * β + (α * β) ** 2 * (1 + 1 / φ))
    np.testing.assert_allclose(p.variance, second - mean**2)
    foreground = (1 - π) * nb(y, α * β, φ) / expected
    np.testing.assert_allclose(p.posterior(torch.tensor(y))[..., 1], foreground, rtol=1e-9)
    after = (π * nb(y + 1, β, φ) + (1 - π) * nb(y + 1, α * β, φ)) / expected
    robbins = (y + 1) * after
    np.testing.assert_allclose(p.posterior_mean(torch.tensor(y)), robbins, rtol=1e-9)


def test_draws_of_the_mixture_have_its_mean_and_variance():
    torch.manual_seed(0)
    p, n = a_mixture()[0], 40_000
    drawn = p.sample((n,))
    assert drawn.shape == (n, 4, 3)
    assert ((drawn.mean(0) - p.mean).abs() < 5 * (p.variance / n).sqrt()).all()
    np.testing.assert_allclose(drawn.var(0), p.variance, rtol=0.1)


# --------------------------------------------------------------------------------- exactness


def parameters(model, z):
    """Of the proteins at points z of shape (…,): b, r, α, π, each (…, P), and the hidden layer."""
    h = oracles.network(model.decoder, z[..., None])
    weight, bias = (p.detach().numpy() for p in model.proteins.output.parameters())
    b, r, a, logits = np.split(h @ weight.T + bias, 4, axis=-1)
    return h, b, np.log1p(np.exp(r)) + 1e-4, 1 + np.log1p(np.exp(a + 2)), expit(logits)


def own(model, *names):
    return (getattr(model.proteins, name).detach().numpy() for name in names)


def log_rna(model, x, h, library):
    weight, bias = (p.detach().numpy() for p in model.likelihood.output.parameters())
    scores = h @ weight.T + bias
    log_mean = scores - logsumexp(scores, axis=-1, keepdims=True) + np.log(library)[..., None]
    log_theta = model.likelihood.log_inverse_dispersion.detach().numpy()
    return oracles.log_nb(x[:, :G], log_mean, log_theta).sum(-1)


def log_protein(model, y, log_beta, alpha, pi):
    """log p(y_t | z, β_t), from the mixture written out."""
    (log_phi,) = own(model, "log_inverse_dispersion")
    low = oracles.log_nb(y, log_beta, log_phi)
    high = oracles.log_nb(y, log_beta + np.log(alpha), log_phi)
    return np.logaddexp(np.log(pi) + low, np.log1p(-pi) + high)


@pytest.mark.parametrize("masked", [False, True])
def test_the_drawn_terms_are_a_log_importance_weight(masked):
    """Σ signed terms = log p(x, y, z, β) − log q(z | x, y) − log q(β | z), draw by draw."""
    x = counts()
    observed = some_observed() if masked else np.ones((N, G + P), dtype=bool)
    model, cells = make(), as_cells(x, observed if masked else None).to(dtype=torch.float64)
    torch.manual_seed(4)
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=6, analytic_kl=False)
        torch.manual_seed(4)
        ε_z = torch.randn(6, N, 1, dtype=torch.float64).numpy()[..., 0]
        ε_β = torch.randn(6, N, P, dtype=torch.float64).numpy()
    out = oracles.network(model.encoder, np.log1p(np.where(observed, x, 0)))
    m, s = out[:, 0], np.log1p(np.exp(out[:, 1])) + 1e-4
    z = m + s * ε_z
    h, b, r, alpha, pi = parameters(model, z)
    c, log_d = own(model, "log_background", "log_background_std")
    log_beta = c + b + r * ε_β  # in units of the scale
    log_w = log_rna(model, x, h, cells.library.numpy())
    log_w += stats.norm.logpdf(z) - stats.norm.logpdf(z, m, s)
    for_each = log_protein(model, x[:, G:], log_beta + np.log(SCALE), alpha, pi)
    for_each += stats.norm.logpdf(log_beta, c, np.exp(log_d)) - stats.norm.logpdf(
        log_beta, c + b, r
    )
    log_w += np.where(observed[:, G:], for_each, 0).sum(-1)
    ours = sum(term.sign * term.value for term in bound.terms.values())
    np.testing.assert_allclose(ours, log_w, atol=1e-9, rtol=0)
    kl = np.log(np.exp(log_d) / r) + (r**2 + b**2) / (2 * np.exp(2 * log_d)) - 0.5
    torch.manual_seed(4)
    with torch.no_grad():
        closed = model.elbo(cells, n_samples=6).terms["kl_background"].value
    kl = np.where(observed[:, G:], kl, 0).sum(-1)
    np.testing.assert_allclose(closed, kl, atol=1e-9, rtol=0)


def test_log_marginal_is_the_integral_over_z_and_beta():
    """Each p(y_t | z) is an integral over β_t of its own; then one over z. Both by quadrature."""
    x = counts()
    model, cells = make(), as_cells(x)
    with torch.no_grad():  # a q near the prior: with a random one the weights would vary too much
        for parameter in model.encoder.parameters():
            parameter *= 0.1
        model.proteins.output.weight[: 2 * P] *= 0.1
        model.proteins.output.bias[: 2 * P] = 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    log_weights = np.log(weights / weights.sum())
    h, _, _, alpha, pi = parameters(model, nodes)  # (n_z, …)
    c, log_d = own(model, "log_background", "log_background_std")
    log_beta = np.log(SCALE) + c + np.exp(log_d) * nodes[:, None]  # (n_β, P)
    exact = []
    for row, size in zip(x, cells.library.double().numpy(), strict=True):
        given_beta = log_protein(model, row[G:], log_beta[:, None], alpha, pi)  # (n_β, n_z, P)
        log_py = logsumexp(given_beta + log_weights[:, None, None], axis=0).sum(-1)
        log_px = log_rna(model, row[None], h, np.full(60, size))
        exact.append(logsumexp(log_px + log_py + log_weights))
    ours = [model.log_marginal(cells, n_samples=4000, seed=seed) for seed in range(5)]
    error = np.std(ours, axis=0, ddof=1) / np.sqrt(5) + 2e-3
    assert error.max() < 0.1
    assert (np.abs(np.mean(ours, 0) - exact) < 6 * error).all(), np.abs(np.mean(ours, 0) - exact)


def test_if_pi_is_1_and_beta_is_certain_it_is_sisua_with_an_encoder_of_both():
    """The part that TotalVILike changes, switched off: one negative binomial of mean β."""
    model = make(n_latent=2)
    other = zoo.SISUALike(G + P, n_proteins=P, n_latent=2, n_hidden=4, normalization=None,
                          likelihood="nb", encode_proteins=True).double().eval()  # fmt: skip
    for part in ("encoder", "decoder", "likelihood"):
        getattr(other, part).load_state_dict(getattr(model, part).state_dict())
    other.protein_scale.copy_(model.protein_scale)
    with torch.no_grad():
        weight, bias = model.proteins.output.weight, model.proteins.output.bias
        weight.zero_()
        bias.zero_()
        bias[P : 2 * P] = -40.0  # r: almost no spread
        bias[3 * P :] = 40.0  # π = 1
        c = model.proteins.log_background
        other.proteins.output.weight.zero_()
        other.proteins.output.bias.copy_(torch.log(torch.expm1(c.exp())))  # softplus gives β
        other.proteins.log_inverse_dispersion.copy_(model.proteins.log_inverse_dispersion)
    cells = as_cells(counts()).to(dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(0)
        ours = model.elbo(cells)
        torch.manual_seed(0)
        theirs = other.elbo(cells)
    for name in ("reconstruction", "kl_z"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-10)
    torch.testing.assert_close(ours["proteins"], theirs["proteins"], rtol=0, atol=0.05)  # r = 1e-4


# ---------------------------------------------------------------------- what it promises to do


@pytest.mark.parametrize("n_samples", [None, 3])
def test_foreground_is_bayes_rule_at_the_median_background(n_samples):
    x, observed = counts(), some_observed()
    model, cells = make(), as_cells(x, observed)
    found = model.foreground(cells, n_samples=n_samples, seed=1)
    assert found.shape == (N, P)
    if n_samples is None:
        z = model.embed(cells)[:, 0]
        _, b, _, alpha, pi = parameters(model, z)
        (c, log_phi) = own(model, "log_background", "log_inverse_dispersion")
        beta, phi, y = SCALE * np.exp(c + b), np.exp(log_phi), x[:, G:]
        high = (1 - pi) * nb(y, alpha * beta, phi)
        expected = np.where(observed[:, G:], high / (high + pi * nb(y, beta, phi)), 1 - pi)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    else:
        assert (np.abs(found - model.foreground(cells)) > 1e-6).any()
        np.testing.assert_array_equal(found, model.foreground(cells, n_samples=3, seed=1))


def test_hidden_entries_do_not_matter():
    x, observed = counts(), some_observed()
    other = np.where(observed, x, x + 50)
    library = x[:, :G].sum(1) + 1
    cells = [Cells.from_array(v, library=library, observed=observed) for v in (x, other)]
    model = make()
    for of in (model.embed, model.elbo_per_cell, model.impute, model.denoise, model.foreground):
        np.testing.assert_array_equal(*(of(c) for c in cells))


def test_a_new_cell_has_a_background_from_its_prior():
    """The spread of log y over new cells is that of p(β), not of its median."""
    model, n = make(), 20_000
    with torch.no_grad():
        model.proteins.output.weight.zero_()
        model.proteins.output.bias.zero_()
        model.proteins.output.bias[3 * P :] = 40.0  # background only
        model.proteins.log_background_std.fill_(-0.5)
        model.proteins.log_inverse_dispersion.fill_(6.0)
    y = model.generate(n, library=50.0)[:, G:]
    c, d = model.proteins.log_background.exp().detach().numpy() * SCALE, np.exp(-0.5)
    mean = c * np.exp(d**2 / 2)
    variance = mean + c**2 * np.exp(d**2) * (np.exp(d**2) * (1 + np.exp(-6.0)) - 1)
    assert (np.abs(y.mean(0) - mean) < 5 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(y.var(0), variance, rtol=0.2)


def test_the_ledger_names_the_background():
    ledger = make().elbo(as_cells(counts()).to(dtype=torch.float64)).ledger()
    assert [*ledger.index] == ["reconstruction", "proteins", "kl_z", "kl_background"]
    assert [*ledger["sign"]] == ["+", "+", "−", "−"]
    assert ledger.loc["kl_background", "nats"] > 0
    with pytest.raises(ValueError, match="is an average over q"):
        make().elbo(as_cells(counts()).to(dtype=torch.float64)).iwae()


@pytest.mark.filterwarnings("error")
def test_it_fits_separates_saves_and_loads(tmp_path):
    """On simulated cells it beats the counts, finds the background, and comes back from a file."""
    adata = simulate.cite_seq(simulate.dataset(300, 60, seed=5), n_proteins=6, seed=5)
    cells = Cells.from_anndata(adata, library="rna_total")
    model = zoo.TotalVILike(cells.n_genes, n_proteins=6, n_hidden=32, n_latent=5)
    before = model.elbo_per_cell(cells).mean()
    vaelab.fit(model, cells, epochs=60, progress=False)
    assert model.elbo_per_cell(cells).mean() > before + 1
    truth, y = adata.obsm["foreground"], adata.X.toarray()[:, -6:]
    ours, by_count = (
        np.mean([roc_auc_score(truth[:, t], score[:, t]) for t in range(6)])
        for score in (model.foreground(cells), y)
    )
    assert ours > by_count + 0.02
    background = (model.proteins.log_background + model.protein_scale.log()).detach().numpy()
    true_background = np.log(np.median(adata.obsm["background"], 0))
    assert np.abs(background - true_background).mean() < 0.5
    model.save(tmp_path / "model")
    again = zoo.TotalVILike.load(tmp_path / "model")
    np.testing.assert_array_equal(again.foreground(cells), model.foreground(cells))
    np.testing.assert_array_equal(again.generate(3, seed=2), model.generate(3, seed=2))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_proteins": 8}, r"n_proteins is 8; it must be a whole number from 1 to n_genes − 1"),
        (
            {"n_proteins": 2, "likelihood": "normal"},
            r"likelihood is 'normal'; it must be one of co",
        ),
    ],
)
def test_bad_arguments_get_one_clear_sentence(options, match):
    with pytest.raises(ValueError, match=match):
        zoo.TotalVILike(8, **options)
