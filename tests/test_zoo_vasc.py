"""VASC against exact answers: the dropout summed out, drawn, and left out."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import vaelab
from vaelab import Cells
from vaelab.models import vae, zoo
from vaelab.models.zoo import vasc

from . import oracles
from .test_scvi import randomise

G = 5
mp = oracles.mp


def values(n=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((n, G)) * (rng.random((n, G)) < 0.6)
    x[0] += 0.1 * (x[0] == 0)  # no gene is zero in every cell
    return x


def as_cells(x, **options):
    return Cells.from_array(x, **options).to(dtype=torch.float64)


def make(**options):
    options = {"n_hidden": 8, "normalization": None} | options
    return randomise(zoo.VASC(G, **options).double(), 3, 0.5).eval()


def by_hand(x, logits):
    """log p(x | ŷ) by 60 digits: every zero is a dropout."""
    y = 1 / (1 + mp.exp(-mp.mpf(logits)))
    if x == 0:
        return -(y**2)
    return mp.log(-mp.expm1(-(y**2))) + sum(oracles.continuous_bernoulli(x, logits))


def p_of(logits, dtype=torch.float64, **options):
    """p(x | z) at these logits: an output layer that passes its input on."""
    layer = vasc.ZeroLayer(1, 1, options.get("zero_layer", "sum"), 1.0)
    layer.output = torch.nn.Identity()
    return layer.eval()(torch.as_tensor(logits, dtype=dtype)[:, None], torch.tensor(1.0))


# ------------------------------------------------------------------------------ the likelihood


def test_log_p_is_that_of_60_digits_and_its_gradient_is_finite():
    logits = np.array([-300, -80, -45, -20, -3, -0.3, 0, 0.1, 2, 9, 40, 90])
    for x in (0.0, 1e-6, 0.3, 1.0):
        expected = np.array([float(by_hand(x, v)) for v in logits])
        ours = p_of(logits).log_prob(torch.full((12, 1), x, dtype=torch.float64))[:, 0]
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-30)
        for dtype in (torch.float32, torch.float64):
            at = torch.tensor(logits, dtype=dtype, requires_grad=True)
            log_p = p_of(at, dtype).log_prob(torch.full((12, 1), x, dtype=dtype))
            (slope,) = torch.autograd.grad(log_p.sum(), at)
            exact = [float(mp.diff(lambda v, x=x: by_hand(x, v), mp.mpf(v))) for v in logits]
            tolerance = 1e-5 if dtype == torch.float32 else 1e-9
            np.testing.assert_allclose(log_p[:, 0].detach(), expected, rtol=tolerance, atol=1e-30)
            np.testing.assert_allclose(slope, exact, rtol=20 * tolerance, atol=tolerance)


@pytest.mark.parametrize("logits", [-4.0, -0.5, 1.0, 6.0])
def test_zeros_and_the_rest_have_probability_one_and_the_moments_are_theirs(logits):
    p = p_of(np.array([logits]))

    def density(x):
        return p.log_prob(torch.tensor([[x]]).double()).exp().item()

    moments = [integrate.quad(lambda x, k=k: x**k * density(x), 1e-300, 1)[0] for k in range(3)]
    assert density(0.0) + moments[0] == pytest.approx(1, abs=1e-8)
    assert p.mean.item() == pytest.approx(moments[1], abs=1e-8)
    assert p.variance.item() == pytest.approx(moments[2] - moments[1] ** 2, abs=1e-8)
    torch.manual_seed(0)
    x = p.sample((40_000,)).numpy()
    assert abs((x == 0).mean() - density(0.0)) < 5 * 0.5 / 200
    assert abs(x.mean() - moments[1]) < 5 * np.sqrt(p.variance.item()) / 200


def test_no_gene_is_above_zero_in_more_than_63_percent_of_cells():
    """ŷ is at most 1, and so at least exp(−1) of the values are dropped."""
    p = p_of(np.linspace(-50, 50, 101))
    assert p.log_prob(torch.zeros(101, 1).double()).min().item() == pytest.approx(-1)


# ------------------------------------------------------------------------------------- the model


def log_p_given_z(model, x, z):
    """Σ_g log p(x_g | z), with the network in numpy."""
    h = np.maximum(oracles.network(model.decoder, z), 0)
    weight, bias = (p.detach().numpy() for p in model.likelihood.output.parameters())
    logits = h @ weight.T + bias
    each = np.vectorize(lambda a, b: float(by_hand(a, b)))(*np.broadcast_arrays(x, logits))
    return each.sum(-1)


def test_each_draw_is_log_p_of_x_and_z_less_log_q(monkeypatch):
    model, drawn, x = make(), [], values()

    def remembered(mean, std, n_samples):
        drawn.append(mean + std * torch.randn(n_samples, *mean.shape, dtype=mean.dtype))
        return drawn[-1]

    monkeypatch.setattr(vae, "gaussian", remembered)
    with torch.no_grad():
        bound = model.elbo(as_cells(x), n_samples=3, analytic_kl=False)
    out, z = oracles.network(model.encoder[1], x), drawn[0].numpy()
    log_q = stats.norm.logpdf(z, out[:, :2], np.log1p(np.exp(out[:, 2:])) + 1e-4).sum(-1)
    expected = log_p_given_z(model, x, z) + stats.norm.logpdf(z).sum(-1) - log_q
    ours = sum(t.sign * t.value for t in bound.terms.values())
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_log_marginal_is_the_integral_over_z():
    model, x = make(n_latent=1), values(4)
    with torch.no_grad():  # q wider than the prior: no draw can outweigh all the others
        model.encoder[1][-1].weight[1] = 0
        model.encoder[1][-1].bias[1] = np.log(np.expm1(1.3))
    z = np.linspace(-8, 8, 801)
    log_joint = [log_p_given_z(model, x, np.full((4, 1), v)) + stats.norm.logpdf(v) for v in z]
    evidence = np.log(np.exp(log_joint).sum(0) * 0.02)
    ours = model.log_marginal(Cells.from_array(x), n_samples=20_000)
    np.testing.assert_allclose(ours, evidence, atol=0.05)
    torch.manual_seed(0)
    bound = model.elbo(as_cells(x), n_samples=2000).per_cell()
    assert (bound.detach().numpy() < evidence).all()


def test_without_zero_layer_and_noise_it_is_the_vae_with_a_continuous_bernoulli():
    x = values()
    plain = vaelab.VAE(
        G, n_latent=2, n_hidden=8, likelihood="continuous_bernoulli", dropout_rate=0.0, seed=4
    )
    ours = zoo.VASC(G, n_hidden=8, zero_layer=None, input_dropout=0.0, seed=4)
    for train in (True, False):
        bounds = []
        for model in (plain, ours):
            torch.manual_seed(5)
            bounds.append(model.train(train).elbo(Cells.from_array(x).to(), n_samples=4).per_cell())
        assert torch.equal(*bounds)


def test_gumbel_draws_while_training_and_sums_in_evaluation(monkeypatch):
    model, x, seen = make(zero_layer="gumbel", temperature=0.7, input_dropout=0.0), values(), []

    def half_kept(logits, temperature):
        seen.append((logits.detach(), temperature))
        return torch.full_like(logits, 0.5)

    summed = make(input_dropout=0.0)
    z = torch.randn(1, 12, 2, dtype=torch.float64)
    cells = as_cells(x)
    with torch.no_grad():
        same = [m.decode(z, cells).log_prob(cells.x) for m in (model, summed)]
        assert torch.equal(*same)
        monkeypatch.setattr(vasc, "gumbel_softmax", half_kept)
        ours = model.train().decode(z, cells).log_prob(cells.x)[0].numpy()
        logits = model.likelihood.output(model.decoder(z))[0]
    y = torch.sigmoid(logits).numpy()
    expected = np.vectorize(
        lambda x, p: float(sum(oracles.continuous_bernoulli(x, mp.log(p / (1 - mp.mpf(p))))))
    )(x, 0.5 * y)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    ((given, temperature),) = seen
    assert temperature == 0.7
    np.testing.assert_allclose(given.exp()[0, ..., 0], np.exp(-(y**2)), rtol=1e-9)
    np.testing.assert_allclose(given.exp()[0, ..., 1], 1 - np.exp(-(y**2)), rtol=1e-9)


def test_a_relaxed_draw_keeps_as_often_as_the_layer_says():
    layer = vasc.ZeroLayer(1, 1, "gumbel", 0.01).train()
    layer.output = torch.nn.Identity()
    torch.manual_seed(0)
    p = layer(torch.full((20_000, 1), 0.4).double(), torch.tensor(1.0))
    kept = (torch.sigmoid(p.logits) > 0.25).double().mean().item()
    y = 1 / (1 + np.exp(-0.4))
    assert abs(kept - (1 - np.exp(-(y**2)))) < 5 * 0.5 / np.sqrt(20_000)


@pytest.mark.parametrize("zero_layer", vasc.ZERO_LAYERS)
def test_it_trains_saves_and_loads(tmp_path, zero_layer):
    x = values(120, 1)
    x[:60, :2] = x[:60, :2].clip(0.5)
    x[60:, 3:] = 0
    x[:, 2] = x[:, 2].clip(0.1)  # no cell is empty
    cells = Cells.from_array(x)
    model = zoo.VASC(G, n_hidden=8, zero_layer=zero_layer)
    before = model.elbo_per_cell(cells).mean()
    vaelab.fit(model, cells, epochs=15, progress=False, validation_fraction=0.0)
    assert model.elbo_per_cell(cells).mean() > before + 0.3
    assert [*model.elbo(cells.to()).ledger().index] == ["reconstruction", "kl_z"]
    loaded = zoo.VASC.load(model.save(tmp_path / "vasc"))
    assert loaded.configuration == model.configuration
    for ask in (model.embed, model.log_marginal, model.elbo_per_cell, model.reconstruct):
        np.testing.assert_array_equal(getattr(loaded, ask.__name__)(cells), ask(cells))
    made = loaded.generate(300)
    assert (made == 0).any() == (zero_layer is not None)
    assert ((made >= 0) & (made <= 1)).all()


def test_the_encoder_sees_noise_while_training_only():
    model, cells = make(), as_cells(values())
    with torch.no_grad():
        assert torch.equal(model.encode(cells).mean, model.encode(cells).mean)
        assert not torch.equal(model.train().encode(cells).mean, model.encode(cells).mean)
        torch.manual_seed(0)
        h = model.encoder[0](torch.ones(10_000))
    assert h.unique().tolist() == [0, 2]
    assert abs((h == 0).double().mean() - 0.5) < 0.025


def test_hidden_entries_do_not_matter():
    observed = np.random.default_rng(4).random((9, G)) < 0.6
    observed[:, 0] = True
    x, model = values(9), make()
    x[:, 0] = 0.5
    one, two = (
        Cells.from_array(np.where(observed, x, other), observed=observed) for other in (0.2, 0.9)
    )
    for ask in (model.embed, model.reconstruct, model.elbo_per_cell, model.log_marginal):
        np.testing.assert_array_equal(ask(one), ask(two))


def test_what_does_not_fit_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="zero_layer is 'max'; choose from"):
        zoo.VASC(G, zero_layer="max")
    with pytest.raises(ValueError, match="between 0 and 1"):
        make().embed(Cells.from_array(np.full((3, G), 1.5)))
    for zero_layer in vasc.ZERO_LAYERS:
        with pytest.raises(ValueError, match="denoise needs a count likelihood"):
            make(zero_layer=zero_layer).denoise(Cells.from_array(values()))


def test_making_a_model_leaves_the_random_numbers_alone():
    torch.manual_seed(16)
    before = torch.get_rng_state()
    zoo.VASC(G)
    assert torch.equal(torch.get_rng_state(), before)
