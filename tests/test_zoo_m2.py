"""M2's two bounds against enumeration of y and quadrature over z (Kingma et al. 2014)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

import vaelab
from vaelab import Cells
from vaelab.models import scvi, zoo
from vaelab.models.zoo import m2

from .oracles import log_p_x, network, q_of
from .test_scvi import randomise

G, N, S = 4, 6, 60
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(S)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
LABEL = np.array([0, -1, 1, -1, 0, -1])
TERMS = ("reconstruction", "kl_z", "kl_y")


def tiny(C=2, seed=0, **options):
    """An M2 in float64 whose every parameter is random, with one latent dimension."""
    options = {"likelihood": "nb", "n_latent": 1, "n_hidden": 6, "normalization": None} | options
    return randomise(zoo.M2(G, n_labels=C, seed=seed, **options).double(), seed, 0.3)


def some_cells(C=2, label=LABEL):
    x = np.random.default_rng(1).poisson(3, size=(N, G)).astype(float)
    names = [f"type {c}" if c >= 0 else None for c in label]
    cells = Cells.from_array(x, label=names).to(dtype=torch.float64)
    return replace(cells, label_names=tuple(f"type {c}" for c in range(C)))


# ------------------------------------------- an oracle in numpy, from the model's numbers alone


def q_y(model, x):
    scores = network(model.classifier, np.log1p(x))
    return np.exp(scores - logsumexp(scores, axis=-1, keepdims=True))


def given(model, x, k):
    """Mean and deviation of q(z | x, y = k), and log p(x | z, y = k) as a function of z (n, …)."""
    C = len(model.given_y.encoder[0].weight[0]) - G  # columns of the first layer beyond the genes
    m, s = q_of(model.given_y.encoder, x, np.eye(C)[k])

    def log_p(z):
        log_library = np.broadcast_to(np.log(x.sum(1))[:, None], z.shape)
        return log_p_x(model.given_y, x, z, log_library, np.full(len(x), k))

    return m, s, log_p


def enumerated(model, x, label, C):
    """The terms of both bounds: y by enumeration, z by quadrature, the KLs too."""
    of_y, terms = q_y(model, x), dict.fromkeys(TERMS, 0.0)
    for k in range(C):
        m, s, log_p = given(model, x, k)
        z = m[:, None] + s[:, None] * NODES
        ω = np.where(label >= 0, label == k, of_y[:, k])
        kl = norm.logpdf(z, m[:, None], s[:, None]) - norm.logpdf(z)
        terms["reconstruction"] += ω * (log_p(z) @ WEIGHTS)
        terms["kl_z"] += ω * (kl @ WEIGHTS)
        terms["kl_y"] += np.where(label >= 0, ω * np.log(C), ω * np.log(of_y[:, k] * C))
    return terms


def total(terms):
    return terms["reconstruction"] - terms["kl_z"] - terms["kl_y"]


def evidence(model, x, label, C):
    """log p(x, y) of the labelled, log p(x) of the others: y by enumeration, z on a grid."""
    z = np.tile(np.linspace(-12, 12, 4001), (len(x), 1))
    step = z[0, 1] - z[0, 0]
    joint = [logsumexp(given(model, x, k)[2](z) + norm.logpdf(z), axis=1) for k in range(C)]
    joint = np.array(joint) + np.log(step) - np.log(C)  # (C, n_cells)
    known = joint[np.maximum(label, 0), np.arange(len(x))]
    return np.where(label >= 0, known, logsumexp(joint, axis=0))


# ------------------------------------------------------------------------------ the exact bounds


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("C", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_bounds_are_those_of_enumeration(monkeypatch, C, likelihood, seed):
    model, cells = tiny(C, seed, likelihood=likelihood), some_cells(C)
    nodes = torch.tensor(NODES)[:, None, None]
    monkeypatch.setattr(scvi, "gaussian", lambda mean, std, n: mean + std * nodes)
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=S)
    for name, expected in enumerated(model, cells.x.numpy(), LABEL, C).items():
        value = bound.terms[name].value.numpy()
        value = WEIGHTS @ value if value.ndim == 2 else value
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-8, err_msg=name)
    q = q_y(model, cells.x.numpy())
    log_C, entropy = np.log(C), -(q * np.log(q)).sum(1)
    expected = np.where(LABEL >= 0, log_C, log_C - entropy)
    np.testing.assert_allclose(bound["kl_y"], expected, rtol=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_no_bound_is_above_its_evidence(seed):
    model, x = tiny(3, seed), some_cells().x.numpy()
    assert (total(enumerated(model, x, LABEL, 3)) < evidence(model, x, LABEL, 3)).all()


def test_log_marginal_tends_to_the_evidence():
    model, cells = tiny(2, 1), some_cells()
    with_label, without = (evidence(model, cells.x.numpy(), n, 2) for n in (LABEL, np.full(N, -1)))
    np.testing.assert_allclose(model.log_marginal(cells, n_samples=20_000), with_label, atol=0.05)
    log_p = model.log_marginal(cells.unlabelled(), n_samples=20_000)
    np.testing.assert_allclose(log_p, without, atol=0.05)
    assert (without - with_label)[LABEL >= 0].min() > 0.05


@pytest.mark.parametrize("C", [2, 3])
def test_the_terms_of_a_draw_are_a_log_weight(monkeypatch, C):
    """log p(x, y, z) − log q(y | x) q(z | x, y) of each draw; no q(y | x) of a known type."""
    model, cells, drawn = tiny(C, 2), some_cells(C), {}
    in_place_of_batch = m2._as_types

    def as_types(cells, y):
        drawn["y"] = y
        return in_place_of_batch(cells, y)

    def gaussian(mean, std, n):
        drawn["z"] = mean + std * torch.randn(n, *mean.shape, dtype=mean.dtype)
        return drawn["z"]

    monkeypatch.setattr(m2, "_as_types", as_types)
    monkeypatch.setattr(scvi, "gaussian", gaussian)
    torch.manual_seed(0)
    with torch.no_grad():
        bound = model.elbo(cells, n_samples=50, analytic_kl=False)
    x, y, z = cells.x.numpy(), drawn["y"].numpy(), drawn["z"].numpy().reshape(50, N).T
    expected, of_y = np.zeros((50, N)), q_y(model, x)
    for k in range(C):
        m, s, log_p = given(model, x, k)
        log_w = log_p(z) + norm.logpdf(z) - norm.logpdf(z, m[:, None], s[:, None]) - np.log(C)
        log_w = log_w.T - np.where(LABEL >= 0, 0, np.log(of_y[:, k]))
        expected = np.where(y == k, log_w, expected)
    assert (y == LABEL)[:, LABEL >= 0].all()
    assert all((y == k)[:, LABEL < 0].any() for k in range(C))
    np.testing.assert_allclose(
        total({name: bound.terms[name].value.numpy() for name in TERMS}), expected, rtol=1e-9
    )


def test_without_a_label_the_bound_is_the_mean_over_types_and_the_entropy():
    """Kingma et al. 2014, equation 7: −U(x) = Σ_y q(y | x) (−L(x, y)) + H(q(y | x))."""
    model, cells = tiny(3, 1), some_cells(3).unlabelled()

    def of(label):
        torch.manual_seed(0)
        with torch.no_grad():
            known = replace(cells, label=torch.full((N,), label))
            return model.elbo(known).per_cell().numpy()

    q = q_y(model, cells.x.numpy())
    mixed = sum(q[:, k] * of(k) for k in range(3)) - (q * np.log(q)).sum(1)
    np.testing.assert_allclose(of(-1), mixed, rtol=1e-10)


def test_with_one_type_it_is_scvi():
    model, cells = tiny(1), some_cells(1, np.full(N, -1))
    plain = vaelab.SCVI(G, likelihood="nb", n_latent=1, n_hidden=6, normalization=None).double()
    plain.load_state_dict(model.given_y.state_dict())
    bounds = []
    for one in (model, plain.eval()):
        torch.manual_seed(0)
        with torch.no_grad():
            bounds.append(one.elbo(cells, n_samples=3))
    for name in ("reconstruction", "kl_z"):
        np.testing.assert_allclose(bounds[0][name], bounds[1][name], rtol=1e-12)
    np.testing.assert_allclose(bounds[0]["kl_y"], 0, atol=1e-12)
    np.testing.assert_allclose(bounds[0].per_cell(), bounds[1].per_cell(), rtol=1e-12)


# ------------------------------------------------------------------- what is trained besides it


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_cross_entropy_is_in_the_loss_and_in_no_bound(weight):
    model, cells = tiny(3, classifier_weight=weight), some_cells(3)
    with torch.no_grad():
        bound = model.elbo(cells)
    expected = -np.log(q_y(model, cells.x.numpy())[np.arange(N), LABEL])
    expected = np.where(LABEL >= 0, expected, 0)
    np.testing.assert_allclose(bound["cross_entropy"], expected, rtol=1e-10)
    assert bound.ledger().weight["cross_entropy"] == weight
    in_bound = total({name: bound[name] for name in TERMS})
    np.testing.assert_allclose(bound.per_cell(), in_bound, rtol=1e-12)
    loss = -in_bound.mean().item() + weight * expected.mean()
    assert bound.loss().item() == pytest.approx(loss, rel=1e-10)


def test_the_type_is_read_in_training_with_batch_normalisation():
    """If one type at a time went through the networks, all types would have the same bound."""
    model, cells = tiny(2, normalization="batch", dropout_rate=0.0).train(), some_cells()
    values = []
    for label in (0, 1):
        torch.manual_seed(0)
        known = replace(cells, label=torch.full((N,), label))
        with torch.no_grad():
            values.append(model.elbo(known))
    for name in ("reconstruction", "kl_z"):
        assert (values[0][name] - values[1][name]).abs().min() > 1e-3


# ------------------------------------------------------------------------- using a fitted model


def two_types(n_cells=240, n_genes=20, n_labels=10, seed=0):
    """Poisson counts; type b has its first five genes at five times the rate (simulated)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=n_cells)
    rate = np.full((n_cells, n_genes), 3.0)
    rate[truth == 1, :5] *= 5
    label = np.where(np.arange(n_cells) < n_labels, np.array(["a", "b"])[truth], None)
    return Cells.from_array(rng.poisson(rate).astype(float), label=label), truth


@pytest.fixture(scope="module")
def fitted():
    cells, truth = two_types()
    model = zoo.M2(20, n_labels=2, n_latent=2, n_hidden=16, likelihood="poisson")
    before = model.elbo_per_cell(cells).mean()
    vaelab.fit(model, cells, epochs=60, validation_fraction=0, progress=False)
    return model, cells, truth, before


def test_it_learns_types_from_few_labels(fitted):
    model, cells, truth, before = fitted
    assert model.elbo_per_cell(cells).mean() > before + 5
    p = model.predict(cells)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (p.argmax(1) == truth)[10:].mean() > 0.97


def test_cells_are_encoded_decoded_and_drawn_at_their_type(fitted):
    model, cells, *_ = fitted
    for name, first in (("a", 3.0), ("b", 15.0)):
        x = model.generate(400, label=name)
        share = x[:, :5].sum() / x.sum()
        assert share == pytest.approx(5 * first / (5 * first + 45), rel=0.15)
    x = model.generate(400, library=60.0)
    assert x.sum(1).mean() == pytest.approx(60, rel=0.05)
    both = model.generate(2000)
    expected = np.mean([5 * f / (5 * f + 45) for f in (3.0, 15.0)])
    assert (both[:, :5].sum(1) / both.sum(1)).mean() == pytest.approx(expected, rel=0.15)
    found = model.predict(cells).argmax(1)
    at_type = replace(cells.unlabelled().to(), batch=torch.tensor(found))
    with torch.no_grad():
        z = model.given_y.encode(at_type).mean
        x = model.given_y.decode(z, at_type).mean
    np.testing.assert_allclose(model.embed(cells), z, atol=1e-6)
    np.testing.assert_allclose(model.reconstruct(cells), x, rtol=1e-4)
    wrong = replace(cells.to(), label=torch.tensor(1 - found))  # a label counts for more than q
    with torch.no_grad():
        assert (model.decode(z, wrong).mean - x).abs().mean() > 0.5


def test_a_saved_model_answers_alike(fitted, tmp_path):
    model, cells, *_ = fitted
    loaded = zoo.M2.load(model.save(tmp_path / "m2"))
    assert loaded.label_names == ("a", "b")
    assert loaded.configuration == model.configuration
    for ask in (
        lambda m: m.predict(cells), lambda m: m.embed(cells), lambda m: m.elbo_per_cell(cells),
        lambda m: m.generate(6), lambda m: m.generate(6, label="b"),
    ):  # fmt: skip
        np.testing.assert_array_equal(ask(loaded), ask(model))


def test_hidden_entries_and_batches_do_not_matter():
    rng = np.random.default_rng(2)
    x = rng.poisson(5.0, (N, G)) + 1
    observed = rng.random((N, G)) < 0.6
    observed[:, 0] = True
    model, bounds = tiny().float(), []
    for values in (x, np.where(observed, x, 40)):
        batch = ["one"] * N if values is x else [*"abcdef"]
        options = {"label": [*"ab"] * 3, "observed": observed, "batch": batch}
        cells = Cells.from_array(values.astype(float), library=x.sum(1), **options)
        bounds.append(model.elbo_per_cell(cells))
    np.testing.assert_array_equal(*bounds)


def test_arguments_and_cells_that_do_not_fit_get_one_clear_sentence(fitted):
    model, cells, *_ = fitted
    for options, told in (
        ({"n_labels": 0}, "n_labels is 0; it must be a whole number"),
        ({"classifier_weight": -1.0}, "classifier_weight is -1.0"),
        ({"likelihood": "gauss"}, "likelihood is 'gauss'"),
    ):
        with pytest.raises(ValueError, match=told):
            zoo.M2(G, **{"n_labels": 2} | options)
    with pytest.raises(ValueError, match="None of these cells has a label, and this model learns"):
        vaelab.fit(zoo.M2(20, n_labels=2), cells.unlabelled(), progress=False)
    with pytest.raises(ValueError, match="label is 'c'; choose from those of the model: a, b"):
        model.generate(3, label="c")
    with pytest.raises(ValueError, match="n_cells is -1"):
        model.generate(-1)
    with pytest.raises(ValueError, match="n_samples is 0"):
        model.elbo(cells.to(), n_samples=0, analytic_kl=False)
    other = replace(cells, label_names=("a", "c"))
    for judge in (model.elbo, model.elbo_per_cell, lambda c: vaelab.fit(model, c, progress=False)):
        with pytest.raises(ValueError, match="label"):
            judge(other.to())
