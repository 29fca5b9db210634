"""The VAE against exact answers: where its decoder is linear, log p(x) and the posterior are known.

With p(z) = N(0, I) and p(x | z) = N(Wz + b, σ²I), the evidence is log N(x; b, WWᵀ + σ²I). The
posterior is diagonal if W has orthogonal columns, and then a mean-field q can be the posterior.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import vaelab
from vaelab import Cells

from . import oracles

G, D, SIGMA = 6, 2, 0.7


def weights(orthogonal=True, seed=0, n_genes=G, n_latent=D):
    """W with columns of lengths 1.5, 1, …, orthogonal or not, and b."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((n_genes, n_latent))
    if orthogonal:
        W = np.linalg.qr(W)[0] * np.linspace(1.5, 1, n_latent)
    return W, rng.standard_normal(n_genes)


def linear_vae(W, b, sigma=SIGMA, seen=None, shift=0.0, factor=1.0):
    """A VAE whose decoder is Wz + b and whose q is the mean-field posterior, or near it.

    ``seen`` are the genes that the encoder uses. ``shift`` moves q's mean, in its standard
    deviations, and ``factor`` multiplies its standard deviation.
    """
    n_genes, n_latent = W.shape
    seen = np.ones(n_genes, dtype=bool) if seen is None else seen
    model = vaelab.VAE(n_genes, n_latent=n_latent, n_hidden=n_latent, likelihood="normal").double()
    model.decoder = nn.Identity()
    model.encoder = nn.Linear(n_genes, 2 * n_latent).double()
    A, V = oracles.linear_posterior(W[seen], sigma)
    std = factor / np.sqrt(np.diag(np.linalg.inv(V)))  # the best mean-field q has V⁻¹'s diagonal
    weight, bias = np.zeros((2 * n_latent, n_genes)), np.zeros(2 * n_latent)
    weight[:n_latent, seen] = A
    bias[:n_latent] = shift * std - A @ b[seen]
    bias[n_latent:] = np.log(np.expm1(std - 1e-4))  # the encoder adds 1e-4 to the softplus
    with torch.no_grad():
        model.likelihood.output.weight.copy_(torch.tensor(W))
        model.likelihood.output.bias.copy_(torch.tensor(b))
        model.likelihood.log_std.fill_(np.log(sigma))
        model.encoder.weight.copy_(torch.tensor(weight))
        model.encoder.bias.copy_(torch.tensor(bias))
    return model.eval()


def simulate(W, b, n_cells=20, sigma=SIGMA, seed=1):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_cells, W.shape[1]))
    return z @ W.T + b + sigma * rng.standard_normal((n_cells, len(b)))


def draws(model, x, n_samples, seed=0, **options):
    """The bound of ``n_samples`` draws, from a seed, without gradients."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.elbo(as_cells(x), n_samples=n_samples, **options)


def log_weights(bound):
    """log p(x, z) − log q(z | x) of each draw, shape (n_samples, n_cells)."""
    return bound.terms["reconstruction"].value - bound.terms["kl_z"].value


def as_cells(x, **options):
    return Cells.from_array(x, **options).to(dtype=torch.float64)


# --------------------------------------------------------------- q is the posterior: no gap at all


def test_with_the_posterior_every_draw_gives_the_exact_evidence():
    W, b = weights()
    x = simulate(W, b)
    evidence = oracles.linear_log_evidence(x, W, b, SIGMA)
    bound = draws(linear_vae(W, b), x, 50, analytic_kl=False)
    each = log_weights(bound)
    assert each.shape == (50, 20)
    np.testing.assert_allclose(each, np.broadcast_to(evidence, (50, 20)), atol=1e-10, rtol=0)
    np.testing.assert_allclose(bound.per_cell(), evidence, atol=1e-10, rtol=0)
    np.testing.assert_allclose(bound.iwae(), evidence, atol=1e-10, rtol=0)


def test_with_the_posterior_log_marginal_is_the_exact_evidence_with_any_number_of_samples():
    W, b = weights()
    x = simulate(W, b)
    evidence = oracles.linear_log_evidence(x, W, b, SIGMA)
    model, cells = linear_vae(W, b), Cells.from_array(x)
    for n_samples in (1, 2, 37):
        ours = model.log_marginal(cells, n_samples=n_samples)
        np.testing.assert_allclose(ours, evidence, atol=1e-10, rtol=0)


def test_log_marginal_may_draw_its_samples_in_portions():
    W, b = weights(n_genes=30_000)  # four draws at once, at most
    x = simulate(W, b, n_cells=2)
    d = W / SIGMA**2  # Woodbury: no 30,000 × 30,000 matrix
    M = np.eye(D) + W.T @ d
    r = x - b
    quadratic = (r**2).sum(1) / SIGMA**2 - ((r @ d) @ np.linalg.inv(M) * (r @ d)).sum(1)
    log_det = np.linalg.slogdet(M)[1] + 30_000 * np.log(SIGMA**2)
    evidence = -0.5 * (30_000 * np.log(2 * np.pi) + log_det + quadratic)
    ours = linear_vae(W, b).log_marginal(Cells.from_array(x), n_samples=10)
    np.testing.assert_allclose(ours, evidence, rtol=1e-11)


def test_with_the_posterior_and_an_analytic_kl_the_elbo_is_exact_on_average():
    W, b = weights()
    x = simulate(W, b)
    evidence = oracles.linear_log_evidence(x, W, b, SIGMA)
    bound = draws(linear_vae(W, b), x, 20_000)
    error = bound.terms["reconstruction"].value.std(0).numpy() / np.sqrt(20_000)
    assert (error < 0.02).all()
    assert (np.abs(bound.per_cell().numpy() - evidence) < 5 * error).all()


# ----------------------------------------------------- q is not the posterior: the gap is their KL


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("analytic_kl", [True, False])
@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (0.8, 1.0), (0.0, 0.4), (-0.5, 1.6)])
def test_the_gap_is_the_kl_to_the_posterior(orthogonal, analytic_kl, shift, factor):
    W, b = weights(orthogonal)
    x = simulate(W, b, n_cells=5)
    evidence = oracles.linear_log_evidence(x, W, b, SIGMA)
    model = linear_vae(W, b, shift=shift, factor=factor)
    with torch.no_grad():
        q = model.encode(as_cells(x))
    A, V = oracles.linear_posterior(W, SIGMA)
    gap = oracles.gaussian_kl(q.mean.numpy(), q.stddev.numpy(), (x - b) @ A.T, V)
    if orthogonal and (shift, factor) == (0.0, 1.0):
        assert gap.max() < 1e-12
    else:
        assert gap.min() > 0.01
    bound = draws(model, x, 20_000, analytic_kl=analytic_kl)
    each = log_weights(bound)
    error = each.std(0).numpy() / np.sqrt(20_000) + 1e-10
    assert (np.abs(bound.per_cell().numpy() - (evidence - gap)) < 5 * error).all()


def test_the_bound_never_passes_the_evidence_and_tends_to_it_from_below():
    W, b = weights()
    x = simulate(W, b)
    evidence = oracles.linear_log_evidence(x, W, b, SIGMA)
    for seed in range(20):  # other directions to be wrong in
        direction = np.random.default_rng(seed).standard_normal((2, D))
        shift, log_factor = direction / np.linalg.norm(direction)
        gaps = []
        for size in (1.0, 0.5, 0.25, 0.125):
            model = linear_vae(W, b, shift=size * shift, factor=np.exp(size * log_factor))
            bound = draws(model, x, 4000, seed=seed, analytic_kl=False).per_cell()
            gaps.append((evidence - bound.numpy()).mean())
        assert gaps[-1] > 0
        assert (np.diff(gaps) < 0).all()  # the same ε every time: little noise in the difference
        assert gaps[-1] < 0.1 * gaps[0]  # quadratic, but for noise: 1/64


def test_iwae_closes_the_gap_as_draws_are_added():
    W, b = weights()
    x = simulate(W, b)
    evidence = oracles.linear_log_evidence(x, W, b, SIGMA)
    model = linear_vae(W, b, shift=0.7, factor=1.3)
    bound = draws(model, x, 4096, analytic_kl=False)
    each = log_weights(bound)
    gaps = [
        (torch.tensor(evidence) - part.logsumexp(1) + np.log(part.shape[1])).mean().item()
        for part in (each.reshape(-1, n, 20) for n in (1, 4, 16, 64))
    ]
    assert (np.diff(gaps) < 0).all()
    assert gaps[0] > 0.5
    assert 0 < gaps[-1] < 0.02
    ours = model.log_marginal(Cells.from_array(x), n_samples=20_000)
    np.testing.assert_allclose(ours, evidence, atol=0.03)


@pytest.mark.parametrize("likelihood", list(vaelab.LIKELIHOODS))
def test_the_bound_holds_for_a_nonlinear_decoder_by_quadrature(likelihood):
    model = vaelab.VAE(3, n_latent=1, n_hidden=8, likelihood=likelihood, dropout_rate=0.0, seed=3)
    model = model.double().eval()
    for parameter in model.decoder.parameters():
        parameter.data.mul_(3)  # a decoder that is far from constant
    with torch.no_grad():  # q wider than the prior: no draw can outweigh all the others
        model.encoder[-1].weight[1] = 0
        model.encoder[-1].bias[1] = np.log(np.expm1(1.3))
    x = np.array([[0.0, 3, 5], [2, 0, 1], [1, 1, 7]])
    if model.domain == "unit interval":
        x = x / 8
    cells = as_cells(x)
    # p(x) = ∫ p(z) p(x|z) dz, by the trapezium rule: exact where everything is smooth and ends flat
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    with torch.no_grad():
        log_px = model.decode(z[:, None, None].expand(-1, 3, 1), cells)
        log_px = log_px.log_prob(cells.x).sum(-1).numpy()
    log_pz = -0.5 * z.numpy() ** 2 - 0.5 * np.log(2 * np.pi)
    evidence = np.log((np.exp(log_pz[:, None] + log_px) * 0.009).sum(0))

    bound = draws(model, x, 20_000, analytic_kl=False)
    each = log_weights(bound).numpy()
    assert (each.mean(0) < evidence).all()
    w = np.exp(each - evidence)
    assert (np.abs(w.mean(0) - 1) < 5 * w.std(0) / np.sqrt(20_000)).all()  # E_q[w] = p(x)
    np.testing.assert_allclose(
        model.log_marginal(Cells.from_array(x), n_samples=20_000), evidence, atol=0.05
    )


# ------------------------------------------------------------------------------ the KL, by itself


def test_the_kl_term_is_the_closed_form_and_its_draws_average_to_it():
    model = vaelab.VAE(G, n_latent=3, n_hidden=8).double().eval()
    x = np.random.default_rng(5).poisson(4.0, (7, G))
    with torch.no_grad():
        q = model.encode(as_cells(x))
    m, s = q.mean.numpy(), q.stddev.numpy()
    by_hand = 0.5 * (m**2 + s**2 - 1 - np.log(s**2)).sum(1)
    analytic = draws(model, x, 2)
    assert analytic.terms["kl_z"].value.shape == (7,)
    np.testing.assert_allclose(analytic["kl_z"], by_hand, rtol=1e-12)
    drawn = draws(model, x, 20_000, analytic_kl=False).terms["kl_z"].value.numpy()
    assert (np.abs(drawn.mean(0) - by_hand) < 5 * drawn.std(0) / np.sqrt(20_000)).all()


def test_the_reconstruction_term_is_a_sum_over_genes():
    model = vaelab.VAE(G, n_latent=3, n_hidden=8, likelihood="poisson").double().eval()
    with torch.no_grad():  # a decoder that does not look at z: nothing is random
        model.likelihood.output.weight.zero_()
        model.likelihood.output.bias.zero_()
    x = np.random.default_rng(6).poisson(4.0, (7, G))
    rates = np.broadcast_to(x.sum(1, keepdims=True) / G, x.shape)
    by_hand = [
        float(sum(sum(oracles.poisson(int(n), rate)) for n, rate in zip(*cell, strict=True)))
        for cell in zip(x, rates, strict=True)
    ]
    np.testing.assert_allclose(draws(model, x, 3)["reconstruction"], by_hand, rtol=1e-12)


def test_a_gaussian_draw_has_the_standard_deviation_that_it_is_given():
    from vaelab.reparametrization import gaussian

    torch.manual_seed(7)
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.1, 3.0], requires_grad=True)
    z = gaussian(mean, std, 100_000)
    assert z.shape == (100_000, 2)
    assert gaussian(mean, std).shape == (2,)
    error = std.detach() / np.sqrt(100_000)
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    assert ((z.std(0) - std).abs() < 5 * error / np.sqrt(2)).all()
    (by_std,) = torch.autograd.grad((z**2).mean(0).sum(), std)  # d E[z²]/ds = 2s
    assert torch.allclose(by_std, 2 * std, rtol=0.05, atol=0.02)


# ------------------------------------------------------------------------------- learnt, not given


class LinearVAE(vaelab.VAE):
    """Probabilistic PCA as a VAE: z → Wz + b, one σ for all genes, and q's mean linear in x."""

    def __init__(self, n_genes, n_latent):
        super().__init__(n_genes, n_latent=n_latent, n_hidden=n_latent, likelihood="normal")
        self.encoder = nn.Linear(n_genes, 2 * n_latent)
        self.decoder = nn.Identity()
        self.likelihood.log_std = nn.Parameter(torch.zeros(1))

    def prepare(self, cells):
        super().prepare(cells)
        self.likelihood.scale = torch.ones(1).to(self.likelihood.log_std)  # not one per gene


def test_training_a_linear_vae_brings_its_bound_to_the_exact_evidence():
    W, b = weights(orthogonal=False, seed=8)
    x, held_out = simulate(W, b, 1000, seed=9), simulate(W, b, 500, seed=10)
    torch.manual_seed(0)
    model = LinearVAE(G, D).double()
    for learning_rate in (3e-2, 3e-3, 3e-4):
        vaelab.fit(
            model,
            Cells.from_array(x),
            epochs=20,
            batch_size=100,
            learning_rate=learning_rate,
            epsilon=1e-8,
            likelihood_learning_rate=learning_rate,
            validation_fraction=0.0,
            progress=False,
        )
    own_W, own_b = (p.detach().numpy() for p in model.likelihood.output.parameters())
    own_sigma = model.likelihood.std.item()
    for cells, best, tolerance in (
        (x, oracles.most_evidence(x, D), 0.02),
        (held_out, oracles.linear_log_evidence(held_out, W, b, SIGMA).mean(), 0.05),
    ):
        bound = draws(model, cells, 500).per_cell().mean().item()
        own = oracles.linear_log_evidence(cells, own_W, own_b, own_sigma).mean()
        assert own - 0.02 < bound < own  # q has become the posterior of the learnt decoder,
        assert abs(own - best) < tolerance  # and the decoder the best there is


# ------------------------------------------------------------------------------- missing entries


@pytest.mark.filterwarnings("ignore:2 of 6 genes are zero in every cell")
def test_the_masked_bound_is_the_evidence_of_the_entries_that_were_seen():
    W, b = weights(seed=11)
    seen = np.array([True, False, True, True, False, True])
    W[seen] = np.linalg.qr(W[seen])[0] * [1.2, 0.8]  # orthogonal among the seen genes
    x = simulate(W, b)
    evidence = oracles.linear_log_evidence(x[:, seen], W[seen], b[seen], SIGMA)
    model = linear_vae(W, b, seen=seen)
    cells = as_cells(x, observed=np.tile(seen, (20, 1)))
    torch.manual_seed(0)
    bound = model.elbo(cells, n_samples=10, analytic_kl=False)
    np.testing.assert_allclose(bound.per_cell().detach(), evidence, atol=1e-10, rtol=0)
    np.testing.assert_allclose(bound.iwae().detach(), evidence, atol=1e-10, rtol=0)
    unmasked = draws(model, x, 10, analytic_kl=False).iwae().numpy()
    assert (np.abs(unmasked - evidence) > 0.1).all()


@pytest.mark.parametrize("likelihood", ["normal", "zinb"])
def test_the_masked_bound_does_not_depend_on_hidden_entries(likelihood):
    rng = np.random.default_rng(12)
    observed = rng.random((9, G)) < 0.6
    observed[:, 0] = True
    x = rng.poisson(5.0, (9, G)) + 1
    other = np.where(observed, x, rng.poisson(50.0, (9, G)))
    model = vaelab.VAE(G, n_latent=D, n_hidden=8, likelihood=likelihood).eval()
    bounds = []
    for values in (x, other):
        model.zero_grad()
        torch.manual_seed(0)
        bound = model.elbo(Cells.from_array(values, observed=observed).to(), n_samples=3)
        bound.loss().backward()
        gradients = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        bounds.append((bound["reconstruction"], bound["kl_z"], gradients))
        cells = Cells.from_array(values, observed=observed)
        bounds[-1] += tuple(
            torch.tensor(ask(cells))
            for ask in (model.embed, model.reconstruct, model.elbo_per_cell, model.log_marginal)
        )
    for one, two in zip(*bounds, strict=True):
        assert torch.equal(one, two)


def test_with_everything_missing_the_bound_is_minus_the_kl():
    for likelihood in vaelab.LIKELIHOODS:
        model = vaelab.VAE(G, n_latent=D, n_hidden=8, likelihood=likelihood).eval()
        cells = Cells.from_array(np.ones((4, G)))
        cells = replace(cells, observed=torch.zeros(4, G, dtype=torch.bool)).to()
        bound = model.elbo(cells, n_samples=2)
        assert (bound["reconstruction"] == 0).all()
        assert torch.equal(bound.per_cell(), -bound["kl_z"])
        bound.loss().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -------------------------------------------------------------- questions asked of a fitted model


@pytest.fixture(scope="module")
def cells():
    return Cells.from_array(np.random.default_rng(13).poisson(2.0, (1100, 7)) + 1)


@pytest.fixture
def model():
    return vaelab.VAE(7, n_latent=3, n_hidden=16, dropout_rate=0.5, normalization="batch")


QUESTIONS = {
    "embed": (lambda model, cells: model.embed(cells), (1100, 3)),
    "reconstruct": (lambda model, cells: model.reconstruct(cells), (1100, 7)),
    "bound": (lambda model, cells: model.elbo_per_cell(cells), (1100,)),
    "log_marginal": (lambda model, cells: model.log_marginal(cells, n_samples=5), (1100,)),
    "generate": (lambda model, cells: model.generate(12, library=50.0), (12, 7)),
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_a_question_changes_neither_the_model_nor_the_random_numbers(name, training, model, cells):
    ask, shape = QUESTIONS[name]
    model.train(training)
    torch.manual_seed(14)
    before = torch.get_rng_state()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    answer = ask(model, cells)
    assert isinstance(answer, np.ndarray)
    assert answer.shape == shape
    assert answer.dtype == np.float32
    assert np.isfinite(answer).all()
    assert model.training == model.encoder.training == training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    torch.manual_seed(15)
    np.testing.assert_array_equal(ask(model, cells), answer)  # dropout is off, draws are seeded


def test_other_seeds_give_other_draws_and_other_weights(model, cells):
    some = cells[:20]
    for ask in (
        lambda seed: model.generate(12, library=50.0, seed=seed),
        lambda seed: model.log_marginal(some, n_samples=5, seed=seed),
        lambda seed: model.elbo_per_cell(some, seed=seed),
        lambda seed: vaelab.VAE(7, n_latent=3, seed=seed).embed(some),
    ):
        np.testing.assert_array_equal(ask(1), ask(1))
        assert (ask(1) != ask(2)).any()


def test_making_a_model_leaves_the_random_numbers_alone():
    torch.manual_seed(16)
    before = torch.get_rng_state()
    vaelab.VAE(7, n_latent=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cell_is_answered_alike_in_any_company(model, cells):
    some = slice(1000, 1050)  # across the border of two minibatches
    alone = cells[some]
    np.testing.assert_allclose(model.embed(cells)[some], model.embed(alone), atol=1e-5)
    np.testing.assert_allclose(model.reconstruct(cells)[some], model.reconstruct(alone), rtol=1e-4)


def test_embed_is_the_posterior_mean_of_logged_counts(model, cells):
    model.eval()
    logged = torch.log1p(torch.tensor(cells.x.numpy()))
    m, s = model.encoder(logged).detach().chunk(2, dim=-1)
    np.testing.assert_allclose(model.embed(cells), m, atol=1e-6)
    q = model.encode(cells)
    assert torch.allclose(q.stddev, nn.functional.softplus(s) + 1e-4, atol=1e-6)


def test_reconstructions_are_expected_counts_at_the_cells_own_library(cells):
    for likelihood in ("poisson", "nb"):
        model = vaelab.VAE(7, n_latent=3, n_hidden=16, likelihood=likelihood)
        total = model.reconstruct(cells).sum(1)
        np.testing.assert_allclose(total, cells.library, rtol=1e-5)
    zinb = vaelab.VAE(7, n_latent=3, n_hidden=16)
    nn.init.zeros_(zinb.likelihood.output.weight)
    nn.init.zeros_(zinb.likelihood.output.bias)  # π = ½ for every gene
    np.testing.assert_allclose(zinb.reconstruct(cells).sum(1), cells.library / 2, rtol=1e-5)


def test_generated_cells_have_the_librarys_size():
    model = vaelab.VAE(7, n_latent=3, n_hidden=16, likelihood="poisson")
    x = model.generate(2000, library=100.0)
    assert (x == np.round(x)).all()
    assert (x >= 0).all()
    assert abs(x.sum(1).mean() - 100) < 5 * np.sqrt(100 / 2000)
    assert abs(x.sum(1).var() - 100) < 5 * 100 * np.sqrt(2 / 2000)  # a Poisson's total is Poisson
    library = np.repeat([10.0, 1000.0], 500)
    library.flags.writeable = False  # as pandas 3 lends a column
    x = model.generate(1000, library=library)
    assert abs(x[:500].sum(1).mean() - 10) < 5 * np.sqrt(10 / 500)
    assert abs(x[500:].sum(1).mean() - 1000) < 5 * np.sqrt(1000 / 500)


def test_generated_cells_have_the_moments_of_the_model():
    W, b = weights()
    x = linear_vae(W, b).generate(50_000)
    covariance = W @ W.T + SIGMA**2 * np.eye(G)
    variance = np.diag(covariance)
    assert (np.abs(x.mean(0) - b) < 5 * np.sqrt(variance / 50_000)).all()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / 50_000)
    assert (np.abs(np.cov(x.T) - covariance) < 5 * error).all()


def test_without_a_library_cells_are_of_the_typical_size_of_the_fitted_ones(cells):
    model = vaelab.VAE(7, n_latent=3, n_hidden=16, likelihood="poisson")
    vaelab.fit(model, cells[:200], epochs=1, progress=False)
    median = cells[:200].library.median().item()
    assert abs(model.generate(2000).sum(1).mean() - median) < 5 * np.sqrt(median / 2000)
    np.testing.assert_array_equal(model.generate(9), model.generate(9, library=median))


def test_every_likelihood_makes_a_model_that_answers_and_learns():
    rng = np.random.default_rng(17)
    for name, kind in vaelab.LIKELIHOODS.items():
        x = rng.random((30, G)) if kind.domain == "unit interval" else rng.poisson(3.0, (30, G))
        for dispersion in {*kind.dispersions} - {"gene-batch"}:
            cells = Cells.from_array(x)
            model = vaelab.VAE(G, n_latent=D, n_hidden=8, likelihood=name, dispersion=dispersion)
            assert model.domain == kind.domain
            model.elbo(cells.to()).loss().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())
            assert model.generate(4, library=20.0).shape == (4, G)
            assert model.reconstruct(cells).shape == (30, G)


def test_data_that_the_likelihood_can_not_hold_are_refused():
    fractions = Cells.from_array(np.full((3, G), 1.5))
    with pytest.raises(ValueError, match="needs raw counts"):
        vaelab.VAE(G, n_latent=D).embed(fractions)
    with pytest.raises(ValueError, match="between 0 and 1"):
        vaelab.VAE(G, n_latent=D, likelihood="continuous_bernoulli").log_marginal(fractions)
    with pytest.raises(ValueError, match="has 5 genes, these cells have 6"):
        vaelab.VAE(5, n_latent=D, likelihood="normal").embed(fractions)
    with pytest.raises(ValueError, match="likelihood is 'gauss'"):
        vaelab.VAE(G, n_latent=D, likelihood="gauss")
