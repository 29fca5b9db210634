"""SISUALike against quadrature over z, and two likelihoods side by side against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import vaelab
from vaelab import Cells
from vaelab.distributions import NegativeBinomial, Poisson, SideBySide
from vaelab.models import zoo

from . import oracles
from .test_scvi import randomise

G, P, N = 5, 3, 20  # genes, proteins, cells


def counts(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(2.0, [1.0] * G + [20.0] * P, (n, G + P))).astype(float)


def as_cells(x, observed=None):
    return Cells.from_array(x, library=x[:, :G].sum(1) + 1, observed=observed)


def some_observed():
    """Every third cell has no proteins, and one protein of the second cell is missing."""
    observed = np.ones((N, G + P), dtype=bool)
    observed[::3, G:] = False
    observed[1, G + 1] = False
    return observed


def make(**options):
    options = {"n_latent": 1, "n_hidden": 4, "normalization": None, "likelihood": "nb"} | options
    model = randomise(zoo.SISUALike(G + P, n_proteins=P, **options).double(), 3, 0.4)
    model.protein_scale.copy_(torch.tensor([12.0, 20.0, 31.0]))
    return model.eval()


# ------------------------------------------------------------------------------ side by side


def two_sections(dtype=torch.float64):
    mean = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    return SideBySide(NegativeBinomial(mean, torch.tensor(2.0, dtype=dtype)),
                      Poisson(torch.tensor([[5.0], [6.0]], dtype=dtype)))  # fmt: skip


def test_side_by_side_is_each_part_on_its_own_columns():
    p, x = two_sections(), np.array([[0.0, 3.0, 7.0], [4.0, 0.0, 2.0]])
    assert p.batch_shape == (2, 3)
    mean = np.array([[1.0, 2.0], [3.0, 4.0]])
    rate = np.array([[5.0], [6.0]])
    expected = [
        stats.nbinom.logpmf(x[:, :2], 2, 2 / (2 + mean)),
        stats.poisson.logpmf(x[:, 2:], rate),
    ]
    np.testing.assert_allclose(p.log_prob(torch.tensor(x)), np.hstack(expected), rtol=1e-12)
    np.testing.assert_allclose(p.mean, np.hstack([mean, rate]))
    np.testing.assert_allclose(p.variance, np.hstack([mean + mean**2 / 2, rate]))
    robbins = (x + 1) * (
        p.log_prob(torch.tensor(x + 1)) - p.log_prob(torch.tensor(x))
    ).exp().numpy()
    np.testing.assert_allclose(p.posterior_mean(torch.tensor(x)), robbins, rtol=1e-10)


def test_draws_have_the_mean_of_their_columns_and_any_sample_shape():
    torch.manual_seed(0)
    p, n = two_sections(), 20_000
    drawn = p.sample((n,))
    assert drawn.shape == (n, 2, 3)
    error = (p.variance / n).sqrt()
    assert ((drawn.mean(0) - p.mean).abs() < 5 * error).all()


# --------------------------------------------------------------------------------- exactness


def log_likelihood(model, x, observed, z, library):
    """log p(x, y | z) at each point of z, shape (n_cells, n_points), from the numbers alone."""
    h = oracles.network(model.decoder, z[:, None])  # (n_points, n_hidden)

    def outputs(likelihood):
        weight, bias = (p.detach().numpy() for p in likelihood.output.parameters())
        return h @ weight.T + bias, likelihood.log_inverse_dispersion.detach().numpy()

    scores, log_theta = outputs(model.likelihood)
    log_rna = scores - logsumexp(scores, axis=1, keepdims=True) + np.log(library)[:, None, None]
    out, log_phi = outputs(model.proteins)
    log_protein = np.log(np.log1p(np.exp(out)) * model.protein_scale.numpy())
    log_p = np.concatenate([
        oracles.log_nb(x[:, None, :G], log_rna, log_theta),
        oracles.log_nb(x[:, None, G:], log_protein[None], log_phi),
    ], -1)  # fmt: skip
    return np.where(observed[:, None, :], log_p, 0).sum(-1)


@pytest.mark.parametrize("masked", [False, True])
def test_the_drawn_terms_are_a_log_importance_weight(masked):
    """Σ signed terms = log p(x, y, z) − log q(z | x), draw by draw."""
    x = counts()
    observed = some_observed() if masked else np.ones((N, G + P), dtype=bool)
    model, cells = make(), as_cells(x, observed if masked else None).to(dtype=torch.float64)
    torch.manual_seed(4)
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=6, analytic_kl=False)
        torch.manual_seed(4)
        ε = torch.randn(6, N, 1, dtype=torch.float64).numpy()[..., 0]
    out = oracles.network(model.encoder, np.log1p(x[:, :G]))
    m, s = out[:, 0], np.log1p(np.exp(out[:, 1])) + 1e-4
    z = m + s * ε
    log_p = np.stack([
        np.diagonal(log_likelihood(model, x, observed, row, cells.library.numpy())) for row in z
    ])  # fmt: skip
    log_w = log_p + stats.norm.logpdf(z) - stats.norm.logpdf(z, m, s)
    ours = sum(term.sign * term.value for term in bound.terms.values())
    np.testing.assert_allclose(ours, log_w, atol=1e-9, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_log_marginal_is_the_integral_over_z(masked):
    x = counts()
    observed = some_observed() if masked else np.ones((N, G + P), dtype=bool)
    model, cells = make(), as_cells(x, observed if masked else None)
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    log_p = log_likelihood(model, x, observed, nodes, cells.library.numpy())
    exact = logsumexp(log_p + np.log(weights / weights.sum()), axis=1)
    ours = [model.log_marginal(cells, n_samples=4000, seed=seed) for seed in range(5)]
    error = np.std(ours, axis=0, ddof=1) / np.sqrt(5) + 1e-3
    assert (np.abs(np.mean(ours, 0) - exact) < 6 * error).all(), np.abs(np.mean(ours, 0) - exact)
    assert error.max() < 0.2


def test_without_any_protein_it_is_the_vae_of_the_rna():
    """Cells without proteins: bound, embedding and rates are those of the VAE of their RNA."""
    x, observed = counts(), np.ones((N, G + P), dtype=bool)
    observed[:15, G:] = False
    model = make(n_latent=2)
    vae = vaelab.VAE(G, n_latent=2, n_hidden=4, normalization=None, likelihood="nb").double().eval()
    for part in ("encoder", "decoder", "likelihood"):
        getattr(vae, part).load_state_dict(getattr(model, part).state_dict())
    both = as_cells(x, observed)[:15]
    rna = Cells.from_array(x[:15, :G], library=x[:15, :G].sum(1) + 1)
    np.testing.assert_array_equal(model.elbo_per_cell(both, seed=3), vae.elbo_per_cell(rna, seed=3))
    np.testing.assert_array_equal(model.embed(both), vae.embed(rna))
    np.testing.assert_array_equal(model.reconstruct(both)[:, :G], vae.reconstruct(rna))


# ---------------------------------------------------------------------- what it promises to do


def test_the_encoder_reads_rna_only_unless_it_is_told_to_read_both():
    x, other = counts(), counts()
    other[:, G:] = counts(seed=9)[:, G:]
    library = x[:, :G].sum(1) + 1
    two = [Cells.from_array(values, library=library) for values in (x, other)]
    alone, together = make(), make(encode_proteins=True)
    np.testing.assert_array_equal(*(alone.embed(cells) for cells in two))
    assert (np.abs(np.subtract(*(together.embed(cells) for cells in two))) > 1e-3).any()


@pytest.mark.parametrize("encode_proteins", [False, True])
def test_hidden_entries_do_not_matter(encode_proteins):
    x, observed = counts(), some_observed()
    other = np.where(observed, x, x + 50)
    library = x[:, :G].sum(1) + 1
    cells = [Cells.from_array(v, library=library, observed=observed) for v in (x, other)]
    model = make(encode_proteins=encode_proteins)
    for of in (model.embed, model.elbo_per_cell, model.impute, model.denoise):
        np.testing.assert_array_equal(*(of(c) for c in cells))
    imputed = model.impute(cells[0])
    np.testing.assert_array_equal(imputed[observed], x[observed].astype(imputed.dtype))
    np.testing.assert_allclose(imputed[~observed], model.reconstruct(cells[0])[~observed])


def test_the_ledger_names_two_likelihoods():
    ledger = make().elbo(as_cells(counts()).to(dtype=torch.float64)).ledger()
    assert [*ledger.index] == ["reconstruction", "proteins", "kl_z"]
    assert [*ledger["sign"]] == ["+", "+", "−"]


@pytest.mark.filterwarnings("error")
def test_it_fits_saves_loads_and_generates(tmp_path):
    x, observed = counts(200), np.ones((200, G + P), dtype=bool)
    observed[::2, G:] = False
    cells = as_cells(x, observed)
    model = zoo.SISUALike(G + P, n_proteins=P, n_latent=2, n_hidden=16)
    before = model.elbo_per_cell(cells).mean()
    vaelab.fit(model, cells, epochs=30, progress=False)
    assert model.elbo_per_cell(cells).mean() > before + 1
    spread = np.sqrt(np.array([np.var(x[1::2, G + t]) for t in range(P)]))
    np.testing.assert_allclose(model.protein_scale, spread, rtol=1e-5)
    model.save(tmp_path / "model")
    again = zoo.SISUALike.load(tmp_path / "model")
    np.testing.assert_array_equal(again.reconstruct(cells), model.reconstruct(cells))
    np.testing.assert_array_equal(again.log_marginal(cells, n_samples=5),
                                  model.log_marginal(cells, n_samples=5))  # fmt: skip
    drawn = model.generate(2000, library=cells.library.mean().item())
    assert drawn.shape == (2000, G + P)
    assert drawn[:, :G].sum(1).mean() == pytest.approx(cells.library.mean().item(), rel=0.1)
    assert drawn[:, G:].mean() == pytest.approx(x[1::2, G:].mean(), rel=0.25)
    scale = model.protein_scale.clone()
    vaelab.fit(model, as_cells(counts(100, seed=5)), epochs=1, progress=False)
    assert torch.equal(model.protein_scale, scale)  # a later fit keeps the units


# -------------------------------------------------------------------------- one clear sentence


def test_a_library_that_counts_the_proteins_is_refused():
    x = counts()
    observed = some_observed()
    for cells in (Cells.from_array(x), Cells.from_array(x, observed=observed)):
        for use in (make().embed, lambda c: vaelab.fit(make(), c, epochs=1, progress=False)):
            with pytest.raises(ValueError, match=r"count the proteins too: give the RNA totals"):
                use(cells)
    make().require_compatible(as_cells(x))
    make().require_compatible(Cells.from_array(x, observed=observed)[::3])  # no protein to count


def test_the_library_is_looked_at_in_the_last_cells_too():
    x = np.tile(counts(), (150, 1))
    observed = np.ones(x.shape, dtype=bool)
    observed[:2000, G:] = False  # the first experiment has no proteins
    with pytest.raises(ValueError, match="count the proteins too"):
        make().require_compatible(Cells.from_array(x, observed=observed))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_proteins": 0}, r"n_proteins is 0; it must be a whole number from 1 to n_genes − 1"),
        ({"n_proteins": 8}, r"n_proteins is 8; it must be a whole number from 1 to n_genes − 1"),
        ({"n_proteins": 2.0}, r"n_proteins is 2.0; it must be a whole number"),
        (
            {"n_proteins": 2, "likelihood": "normal"},
            r"likelihood is 'normal'; it must be one of co",
        ),
        ({"n_proteins": 2, "likelihood": "nbb"}, r"likelihood is 'nbb'; choose from"),
        ({"n_proteins": 2, "n_latent": 0}, r"n_latent is 0"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(options, match):
    with pytest.raises(ValueError, match=match):
        zoo.SISUALike(8, **options)


def test_a_constant_protein_keeps_the_scale_1():
    x = counts()
    x[:, G] = 7
    model = zoo.SISUALike(G + P, n_proteins=P)
    model.prepare(as_cells(x))
    assert model.protein_scale[0] == 1
