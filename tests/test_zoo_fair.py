"""The fair VAE: its MMD against quadrature and against the kernel, and its bound against SCANVI."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import vaelab
from vaelab import Cells
from vaelab.models import zoo
from vaelab.models.zoo import fair

from .test_scvi import randomise

G, N = 6, 40
SIZES = {"n_labels": 2, "n_latent": 2, "n_hidden": 8, "likelihood": "nb"}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def tiny(kind=zoo.FairVAE, n_batches=2, **options):
    options = SIZES | {"normalization": None, "encode_batch": True} | options
    return randomise(kind(G, n_batches=n_batches, **options).double(), 3, 0.3)


def some_cells(n_batches=2, n_cells=N, seed=1):
    rng = np.random.default_rng(seed)
    label = [[*"ab"][i % 2] if i % 3 == 0 else None for i in range(n_cells)]
    batch = [f"b{i % n_batches if i < 30 else 0}" for i in range(n_cells)]
    x = rng.poisson(4.0, (n_cells, G)) + 1.0
    return Cells.from_array(x, label=label, batch=batch).to(dtype=torch.float64)


def mmd_by_quadrature(model, m, v, batch, n_batches):
    """The penalty with E_q[ψ(z1)] by quadrature along each direction w: z·w is a Gaussian."""
    W, b = model.frequencies.numpy(), model.phases.numpy()
    mean, std = m @ W, np.sqrt(v @ W**2)  # (n_cells, D)
    at = mean[..., None] + std[..., None] * NODES + b[:, None]
    features = np.sqrt(2 / len(b)) * np.cos(at) @ WEIGHTS
    of = [features[batch == s].mean(0) for s in range(n_batches) if (batch == s).any()]
    if n_batches == 2:
        return ((of[0] - of[1]) ** 2).sum()
    return sum(((one - features.mean(0)) ** 2).sum() for one in of)


@pytest.mark.parametrize("n_batches", [2, 3])
def test_the_penalty_is_that_of_quadrature(n_batches):
    model, cells = tiny(n_batches=n_batches, n_features=30), some_cells(n_batches)
    with torch.no_grad():
        q, bound = model.encode(cells), model.elbo(cells, n_samples=2)
    expected = mmd_by_quadrature(
        model, q.mean.numpy(), q.variance.numpy(), cells.batch.numpy(), n_batches
    )
    assert expected > 1e-3
    assert bound.terms["mmd"].value.shape == (N,)
    np.testing.assert_allclose(bound["mmd"], expected, rtol=1e-9)


@pytest.mark.parametrize("bandwidth", [None, 1.5])
def test_with_many_features_it_is_the_mmd_of_the_gaussian_kernel(bandwidth):
    """E exp(−‖a − b‖²/γ) for Gaussian a and b has a closed form, without any feature."""
    model, rng = tiny(n_features=200_000, bandwidth=bandwidth), np.random.default_rng(0)
    γ, cells = bandwidth or 4.0, some_cells()
    batch = cells.batch.numpy()
    m = rng.normal(size=(N, 2)) + 0.8 * batch[:, None]
    v = rng.uniform(0.1, 0.5, (N, 2))
    c = γ + 2 * (v[:, None] + v[None])
    k = (np.sqrt(γ / c) * np.exp(-((m[:, None] - m[None]) ** 2) / c)).prod(-1)
    sign = np.where(batch == 0, 1 / (batch == 0).sum(), -1 / (batch == 1).sum())
    (term,) = model.penalties(cells, Normal(torch.tensor(m), torch.tensor(v).sqrt()))
    # k(a, a') for two draws of one cell, too: ψ is averaged before it is squared
    np.testing.assert_allclose(term.value[0], sign @ k @ sign, rtol=0.03)


def test_all_else_is_scanvi():
    cells, bounds = some_cells(), []
    model, plain = tiny(mmd_weight=7.0), tiny(vaelab.SCANVI)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for one in (model, plain):
        torch.manual_seed(0)
        with torch.no_grad():
            bounds.append(one.elbo(cells, n_samples=3))
    assert {*bounds[0].terms} == {*bounds[1].terms, "mmd"}
    for name in bounds[1].terms:
        assert torch.equal(bounds[0][name], bounds[1][name]), name
    assert torch.equal(bounds[0].per_cell(), bounds[1].per_cell())
    added = bounds[0].loss() - bounds[1].loss()
    np.testing.assert_allclose(added, 7 * bounds[0]["mmd"][0], rtol=1e-10)
    row = bounds[0].ledger().loc["mmd"]
    assert (row.sign, row.weight) == ("−", 7.0)
    none = tiny(mmd_weight=0.0)
    torch.manual_seed(0)
    assert none.elbo(cells, n_samples=3).loss().item() == bounds[1].loss().item()


def test_encoder_and_decoder_receive_the_batch_as_in_the_paper():
    model = zoo.FairVAE(G, n_batches=2, **SIZES)
    assert (model.encoder.n_conditions, model.decoder.n_conditions) == (2, 2)


def test_log_marginal_is_that_of_scanvi():
    cells = some_cells()
    models = (tiny(), tiny(vaelab.SCANVI))
    np.testing.assert_array_equal(*(m.log_marginal(cells, n_samples=20) for m in models))


def test_a_batch_without_cells_adds_nothing():
    model, cells = tiny(), some_cells()
    alone = cells[cells.batch.numpy() == 0]
    bound = model.elbo(alone)
    assert (bound["mmd"] == 0).all()
    bound.loss().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    three, cells = tiny(n_batches=3), some_cells(3)
    part = cells[cells.batch.numpy() != 1]
    with torch.no_grad():
        q = three.encode(part)
        mmd = three.elbo(part)["mmd"]
    m, v, batch = q.mean.numpy(), q.variance.numpy(), part.batch.numpy()
    np.testing.assert_allclose(mmd, mmd_by_quadrature(three, m, v, batch, 3), rtol=1e-9)


def test_means_are_over_the_parts_of_all_processes(monkeypatch):
    """The sums of the other part arrive through ``total``; the value is that of all cells."""
    model, cells, sums = tiny(), some_cells(), []
    with torch.no_grad():
        whole = model.elbo(cells)["mmd"][0]
        parts = [cells[:13], cells[13:]]
        monkeypatch.setattr(fair, "total", lambda x: sums.append(x) or x)
        alone = [model.elbo(part)["mmd"][0] for part in parts]
        monkeypatch.setattr(fair, "total", lambda x: sum(sums))
        together = [model.elbo(part)["mmd"][0] for part in parts]
    np.testing.assert_allclose(together, [whole] * 2, rtol=1e-10)
    assert all(abs(value - whole) > 1e-6 for value in alone)


def test_the_penalty_moves_the_encoder_and_nothing_else():
    model = tiny()
    model.elbo(some_cells())["mmd"].mean().backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"encoder"}


# --------------------------------------------------------------------------------- in training


def two_batches(seed=0, n_cells=300):
    """Two types and two batches, whose effect is on other genes (simulated)."""
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(2, size=(2, n_cells))
    rate = np.full((n_cells, 20), 4.0)
    rate[kind == 1, :5] *= 4
    rate[batch == 1, 5:12] *= 3
    label = np.where(batch == 0, np.array([*"ab"])[kind], None)
    x = rng.poisson(rate).astype(float)
    return Cells.from_array(x, label=label, batch=batch.astype(str)), kind


@pytest.fixture(scope="module")
def fitted():
    cells, kind = two_batches()
    models = {}
    for weight in (0.0, 100.0):
        model = zoo.FairVAE(20, n_batches=2, mmd_weight=weight, **SIZES)
        history = vaelab.fit(model, cells, epochs=40, validation_fraction=0, progress=False)
        models[weight] = model, history.frame
    return models, cells, kind


def test_training_lowers_the_penalty_and_keeps_the_types(fitted):
    models, cells, kind = fitted
    mmd = {}
    for weight, (model, frame) in models.items():
        with torch.no_grad():
            mmd[weight] = model.elbo(cells.to())["mmd"][0].item()
        assert np.isfinite(frame["mmd"]).all()
        assert frame["bound"].iloc[-1] > frame["bound"].iloc[0] + 5
        asked = (cells.label < 0).numpy()
        assert (model.predict(cells).argmax(1) == kind)[asked].mean() > 0.9
    assert mmd[100.0] < 0.5 * mmd[0.0]


def test_a_saved_model_has_the_same_features(fitted, tmp_path):
    models, cells, _ = fitted
    model = models[100.0][0]
    loaded = zoo.FairVAE.load(model.save(tmp_path / "fair"))
    assert loaded.configuration == model.configuration
    for name in ("frequencies", "phases"):
        assert torch.equal(getattr(loaded, name), getattr(model, name))
    np.testing.assert_array_equal(loaded.predict(cells), model.predict(cells))
    np.testing.assert_array_equal(loaded.generate(5, batch="1"), model.generate(5, batch="1"))
    for one in (model, loaded):
        torch.manual_seed(0)
        with torch.no_grad():
            value = one.elbo(cells.to())["mmd"][0]
    assert value > 0
    other = zoo.FairVAE(20, n_batches=2, seed=1, **SIZES)
    assert not torch.equal(other.frequencies, model.frequencies)


def test_it_is_extended_by_a_new_batch_like_scanvi(fitted):
    models, cells, _ = fitted
    model = models[100.0][0]
    extended = model.extend(batches="2")
    assert torch.equal(extended.frequencies, model.frequencies)
    aligned = cells.aligned_to(extended)
    np.testing.assert_array_equal(extended.embed(aligned), model.embed(cells))


def test_hidden_entries_do_not_matter():
    cells = some_cells()
    observed = torch.tensor(np.random.default_rng(2).random((N, G)) < 0.7)
    observed[:, 0] = True
    model, values = tiny(), []
    for x in (cells.x, torch.where(observed, cells.x, 30.0)):
        torch.manual_seed(0)
        with torch.no_grad():
            bound = model.elbo(replace(cells, x=x, observed=observed).to(dtype=torch.float64))
        values.append(torch.stack([bound.per_cell(), bound["mmd"]]))
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_batches": 1}, "n_batches is 1; it must be 2 or more"),
        ({"mmd_weight": -1.0}, "mmd_weight is -1.0"),
        ({"mmd_weight": math.inf}, "mmd_weight is inf"),
        ({"n_features": 0}, "n_features is 0"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0; it must be a number above 0"),
        ({"n_labels": 0}, "n_labels is 0"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(options, told):
    with pytest.raises(ValueError, match=told):
        zoo.FairVAE(G, **{"n_batches": 2} | SIZES | options)
