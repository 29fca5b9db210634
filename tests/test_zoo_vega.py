"""VEGA against exact answers, and what a mask, a sign and a gene set promise."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax
from torch import nn

import vaelab
from vaelab import Cells
from vaelab.models import vae, zoo
from vaelab.models.zoo.parts import Masked

from . import oracles
from .test_scvi import randomise

G, SIGMA = 6, 0.7
SETS = {"a": [0, 1], "b": [2, 3, 4]}
OVERLAPPING = {"a": [0, 1, 2], "b": [5, 2], "c": [4]}


def by_hand(model, sets, n_free=0):
    """W with zeros outside of the sets, and b, written from the sets alone."""
    weight, bias = (p.detach().numpy() for p in model.likelihood.output.parameters())
    W = np.zeros_like(weight)
    for k, genes in enumerate([*sets.values(), *n_free * [range(G)]]):
        for block in range(len(W) // G):
            for g in genes:
                W[block * G + g, k] = weight[block * G + g, k]
    return W, bias


def counts(n=20, seed=0):
    return np.random.default_rng(seed).poisson(4.0, (n, G)).astype(float)


def as_cells(x, **options):
    return Cells.from_array(x, **options).to(dtype=torch.float64)


def make(sets=OVERLAPPING, **options):
    options = {"n_hidden": 8, "normalization": None, "dropout_rate": 0.0} | options
    return randomise(zoo.VEGA(G, gene_sets=sets, **options).double(), 3, 0.4).eval()


# --------------------------------------------------------------------------------- exactness


def test_with_the_posterior_every_draw_gives_the_evidence_of_the_masked_weights():
    """log p(x) = log N(x; b, W̃W̃ᵀ + σ²I) with W̃ = W ∘ M: disjoint sets are orthogonal columns."""
    model = make(SETS, n_free=0, likelihood="normal", positive=False)
    W, b = by_hand(model, SETS)
    A, V = oracles.linear_posterior(W, SIGMA)
    model.encoder = nn.Linear(G, 4).double()
    with torch.no_grad():
        model.likelihood.log_std.fill_(np.log(SIGMA))
        model.encoder.weight.copy_(torch.tensor(np.vstack([A, np.zeros_like(A)])))
        std = np.log(np.expm1(np.sqrt(np.diag(V)) - 1e-4))
        model.encoder.bias.copy_(torch.tensor(np.concatenate([-A @ b, std])))
    x = np.random.default_rng(1).normal(size=(20, G))
    evidence = oracles.linear_log_evidence(x, W, b, SIGMA)
    torch.manual_seed(0)
    with torch.no_grad():
        bound = model.elbo(as_cells(x), n_samples=30, analytic_kl=False)
    each = bound.terms["reconstruction"].value - bound.terms["kl_z"].value
    np.testing.assert_allclose(each, np.broadcast_to(evidence, (30, 20)), atol=1e-10, rtol=0)
    ours = model.log_marginal(Cells.from_array(x), n_samples=3)
    np.testing.assert_allclose(ours, evidence, atol=1e-10, rtol=0)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("n_free", [0, 2])
def test_each_draw_is_log_p_of_x_and_z_less_log_q(monkeypatch, likelihood, n_free):
    model, drawn = make(likelihood=likelihood, n_free=n_free), []

    def remembered(mean, std, n_samples):
        drawn.append(mean + std * torch.randn(n_samples, *mean.shape, dtype=mean.dtype))
        return drawn[-1]

    monkeypatch.setattr(vae, "gaussian", remembered)
    x = counts()
    with torch.no_grad():
        cells, (m, s) = as_cells(x), model.encoder(torch.log1p(torch.tensor(x))).chunk(2, -1)
        bound = model.elbo(cells, n_samples=7, analytic_kl=False)
    z, W_b = drawn[0].numpy(), by_hand(model, OVERLAPPING, n_free)
    out = z @ W_b[0].T + W_b[1]
    mean = x.sum(1)[:, None] * np.exp(log_softmax(out[..., :G], axis=-1))
    theta = np.exp(model.likelihood.log_inverse_dispersion.detach().numpy())
    p = stats.nbinom.pmf(x, theta, theta / (theta + mean))
    if likelihood == "zinb":
        dropout = 1 / (1 + np.exp(-out[..., G:]))
        p = dropout * (x == 0) + (1 - dropout) * p
    log_q = stats.norm.logpdf(z, m, np.log1p(np.exp(s.numpy())) + 1e-4)
    expected = np.log(p).sum(-1) + stats.norm.logpdf(z).sum(-1) - log_q.sum(-1)
    ours = sum(t.sign * t.value for t in bound.terms.values())
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_if_every_set_holds_all_genes_it_is_a_vae_with_a_linear_decoder():
    vega = make({"a": [*range(G)], "b": [*range(G)]}, n_free=1, likelihood="zinb")
    plain = vaelab.VAE(G, n_latent=3, n_hidden=8, normalization=None, dropout_rate=0.0).double()
    plain.decoder = nn.Identity()
    plain.likelihood.output = nn.Linear(3, 2 * G)
    state = vega.state_dict()
    state.pop("likelihood.output.mask")
    plain.double().load_state_dict(state)
    bounds = []
    for model in (vega, plain.eval()):
        torch.manual_seed(5)
        bounds.append(model.elbo(as_cells(counts()), n_samples=4).per_cell().detach().numpy())
    np.testing.assert_allclose(*bounds, rtol=1e-12)


# ------------------------------------------------------------------- what a set can move, and how


def test_a_dimension_moves_the_genes_of_its_set_only():
    model = make(n_free=1)
    slope = torch.autograd.functional.jacobian(
        model.likelihood.output, torch.zeros(4, dtype=torch.float64)
    ).numpy()  # (G, 4)
    expected = np.zeros((G, 4), dtype=bool)
    expected[[0, 1, 2], 0] = expected[[5, 2], 1] = expected[4, 2] = expected[:, 3] = True
    np.testing.assert_array_equal(slope != 0, expected)


def test_genes_outside_the_set_keep_their_proportions_but_lose_share():
    model = make(SETS, n_free=0)
    with torch.no_grad():
        model.likelihood.output.weight.abs_()
        z = torch.tensor([[0.0, 0.0], [1.5, 0.0]]).double()
        low, high = model.decode(z, model.blank_cells(2, 100.0)).mean.numpy()
    assert (high[:2] > low[:2]).any() and (high[2:] < low[2:]).all()
    np.testing.assert_allclose(high[2:] / high[2:].sum(), low[2:] / low[2:].sum(), rtol=1e-12)


def test_a_masked_layer_is_a_linear_layer_without_some_weights_also_in_its_gradient():
    torch.manual_seed(0)
    layer, h = Masked(torch.tensor([[1, 0, 1], [0, 0, 1]])), torch.randn(4, 5, 3)
    weight = layer.weight.detach().numpy() * [[1, 0, 1], [0, 0, 1]]
    expected = h.numpy() @ weight.T + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(h).detach(), expected, atol=1e-6)
    layer(h).square().sum().backward()
    np.testing.assert_array_equal(layer.weight.grad != 0, layer.mask.bool())


def test_training_keeps_weights_above_zero_only_if_asked_and_lowers_the_loss():
    x = counts(200, 1)
    x[:100, :2] += 9
    smallest = {}
    for positive in (True, False):
        model = zoo.VEGA(G, gene_sets=SETS, positive=positive, n_hidden=8, likelihood="zinb")
        weight = model.likelihood.output.weight
        assert (weight[:G] >= 0).all() == positive
        before = model.elbo_per_cell(Cells.from_array(x)).mean()
        vaelab.fit(model, Cells.from_array(x), epochs=20, progress=False, validation_fraction=0)
        smallest[positive] = weight[:G].min().item()
        assert model.elbo_per_cell(Cells.from_array(x)).mean() > before + 1
        dropout = (weight * model.likelihood.output.mask)[G:]
        assert not positive or (dropout < 0).any()  # no other output has a sign to keep
    assert smallest[True] >= 0 > smallest[False]


def test_the_activity_of_the_set_that_is_on_is_high():
    x = counts(300, 2)
    x[:100, :2] += 9
    model = zoo.VEGA(G, gene_sets=SETS, n_hidden=8, n_free=0)
    vaelab.fit(model, Cells.from_array(x), epochs=40, progress=False)
    activity = model.activity(Cells.from_array(x))
    assert [*activity] == ["a", "b"]
    assert activity["a"][:100].mean() > activity["a"][100:].mean() + 1
    table = model.differential_activity(Cells.from_array(x), np.arange(300) < 100)
    assert table["log_bayes_factor"].idxmax() == "a"


def test_a_sign_that_is_free_is_turned_to_that_of_the_weights():
    model, cells = make(positive=False), Cells.from_array(counts())
    before = model.activity(cells).to_numpy()
    with torch.no_grad():
        model.likelihood.output.weight[:, 0] *= -1
        last = model.encoder[-1]
        last.weight[0] *= -1
        last.bias[0] *= -1
    turned = model.embed(cells)[:, 0]
    np.testing.assert_allclose(model.activity(cells).to_numpy(), before, rtol=1e-12)
    mean = by_hand(model, OVERLAPPING, 1)[0].mean(0)[0]
    np.testing.assert_allclose(before[:, 0], np.sign(mean) * turned, rtol=1e-12)


def test_differential_activity_is_the_mean_over_all_pairs():
    model, x = make(), counts(9)
    group = np.arange(9) % 3 == 0
    with torch.no_grad():
        q = model.encode(as_cells(x))
    m, s = q.mean.numpy(), q.stddev.numpy()
    pairs = [(i, j) for i in range(9) for j in range(9) if group[i] and not group[j]]
    expected = [
        np.mean([stats.norm.sf(0, m[i, k] - m[j, k], np.hypot(s[i, k], s[j, k])) for i, j in pairs])
        for k in range(3)
    ]
    table = model.differential_activity(Cells.from_array(x), group)
    assert [*table.index] == [*OVERLAPPING]
    np.testing.assert_allclose(table["p_higher"], expected, rtol=1e-10)
    factor = np.log(expected) - np.log1p(-np.array(expected))
    np.testing.assert_allclose(table["log_bayes_factor"], factor, rtol=1e-8)
    turned = model.differential_activity(Cells.from_array(x), ~group)
    np.testing.assert_allclose(turned["p_higher"], 1 - table["p_higher"], rtol=1e-10)


# ----------------------------------------------------------------------------- as all models


def test_sets_come_from_names_and_are_saved(tmp_path):
    names = [f"gene {g}" for g in range(G)]
    cells = Cells.from_array(counts(), gene_names=names)
    sets = {"a": ["gene 1", "nobody", "gene 4"], "b": ["gene 0"]}
    model = zoo.VEGA.from_names(cells, sets, n_hidden=8, n_free=2, seed=3)
    assert model.configuration["gene_sets"] == {"a": [1, 4], "b": [0]}
    vaelab.fit(model, cells, epochs=1, progress=False)
    loaded = zoo.VEGA.load(model.save(tmp_path / "vega"))
    assert loaded.configuration == model.configuration
    assert torch.equal(loaded.likelihood.output.mask, model.likelihood.output.mask)
    np.testing.assert_array_equal(loaded.log_marginal(cells), model.log_marginal(cells))
    assert loaded.activity(cells).equals(model.activity(cells))
    assert model.generate(5).shape == model.reconstruct(cells[:5]).shape == (5, G)
    with pytest.raises(ValueError, match="None of the genes of 'a' is a gene"):
        zoo.VEGA.from_names(cells, {"a": ["nobody"]})


def test_the_ledger_has_the_terms_of_the_vae():
    ledger = make().elbo(as_cells(counts())).ledger()
    assert [*ledger.index] == ["reconstruction", "kl_z"]
    assert [*ledger.sign] == ["+", "−"]


def test_hidden_entries_do_not_matter():
    observed = np.random.default_rng(4).random((9, G)) < 0.6
    observed[:, 0] = True
    x, model = counts(9) + 1, make()
    other = np.where(observed, x, 77.0)
    one, two = (Cells.from_array(values, observed=observed) for values in (x, other))
    for ask in (model.embed, model.reconstruct, model.elbo_per_cell, model.log_marginal):
        np.testing.assert_array_equal(ask(one), ask(two))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gene_sets": {}}, "needs a gene set or more"),
        ({"gene_sets": [[0, 1]]}, "needs a gene set or more"),
        ({"gene_sets": {"a": []}}, "'a' needs one gene or more, as numbers from 0 to 5; got"),
        ({"gene_sets": {"a": [6]}}, r"numbers from 0 to 5; got \[6\]"),
        ({"gene_sets": {"a": [-1]}}, "numbers from 0 to 5"),
        ({"gene_sets": {"a": ["CD3D"]}}, "numbers from 0 to 5"),
        ({"gene_sets": SETS, "n_free": -1}, "n_free from 0"),
        ({"gene_sets": SETS, "likelihood": "gauss"}, "likelihood is 'gauss'"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(options, told):
    with pytest.raises(ValueError, match=told):
        zoo.VEGA(G, **options)


@pytest.mark.parametrize("group", [np.ones(20), np.zeros(20), np.ones(3)])
def test_a_group_must_be_a_part_of_the_cells(group):
    with pytest.raises(ValueError, match="group must be a mask"):
        make().differential_activity(Cells.from_array(counts()), group)


def test_making_a_model_leaves_the_random_numbers_alone():
    torch.manual_seed(16)
    before = torch.get_rng_state()
    zoo.VEGA(G, gene_sets=SETS)
    assert torch.equal(torch.get_rng_state(), before)
