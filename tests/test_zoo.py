"""The zoo: each model keeps the promises of all models, on one page of code. VampVAE and ScVAE."""

import ast
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

import vaelab
from vaelab import Cells
from vaelab.models import Model, vae, zoo
from vaelab.models.zoo import ScVAE, VampVAE

from .oracles import log_p_x, network
from .test_imports import lines_of_code
from .test_scvi import randomise

G, N = 12, 40
CASES = {
    "VampVAE": {"n_pseudo": 6},
    "ScVAE": {"n_clusters": 4, "free_nats": 0.5},
    "M2": {"n_labels": 3},
    "FairVAE": {"n_labels": 3, "n_batches": 2},
    "VEGA": {"gene_sets": {"a": [0, 1, 2], "b": [2, 3]}, "n_free": 1},
    "VASC": {},
    "SISUALike": {"n_proteins": 3},
    "TotalVILike": {"n_proteins": 3},
}
KINDS = {name: getattr(zoo, name) for name in zoo.__all__}
ABOVE = np.linspace(-40, 40, 40_001)  # a grid for one latent dimension


def test_each_model_is_among_the_cases():
    assert {*CASES} == {*KINDS}
    assert all(inspect.isclass(kind) and issubclass(kind, Model) for kind in KINDS.values())


@pytest.fixture
def cells():
    rng = np.random.default_rng(3)
    x = rng.poisson(4.0, (N, G)).astype(float)
    label = [None if i % 2 else f"type {i % 3}" for i in range(N)]
    batch = [f"batch {i % 4 // 2}" for i in range(N)]
    return Cells.from_array(x, label=label, batch=batch, library=x[:, :9].sum(1) + 1.0)


def made(name, **options):
    small = {"n_latent": 2, "n_hidden": 8}
    takes = KINDS[name].__new__(KINDS[name], G).configuration
    return KINDS[name](G, **{n: v for n, v in small.items() if n in takes} | CASES[name] | options)


def fitting(name, cells):
    """The cells as this model can read them."""
    if made(name).domain == "unit interval":
        return Cells.from_array(cells.x / cells.x.max())
    return cells


@pytest.mark.parametrize("name", CASES)
def test_a_page_of_code_is_enough(name):
    source = Path(inspect.getsourcefile(KINDS[name])).read_text(encoding="utf-8")
    code = lines_of_code(source)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            size = sum(node.lineno <= i <= node.end_lineno for i in code)
            assert size <= (60 if node.name == name else 20), f"{node.name}: {size} lines"


@pytest.mark.parametrize("name", CASES)
def test_it_trains_answers_and_comes_back_from_its_file(name, cells, tmp_path):
    cells = fitting(name, cells)
    model = made(name)
    before = model.elbo(cells.to()).loss().item()
    vaelab.fit(model, cells, epochs=12, batch_size=20, seed=0, learning_rate=1e-2)
    assert model.elbo(cells.to()).loss().item() < before
    assert model.embed(cells).shape[0] == N
    assert model.reconstruct(cells).shape == model.generate(N, library=30.0).shape == (N, G)
    model.save(tmp_path / "model")
    again = KINDS[name].load(tmp_path / "model")
    np.testing.assert_array_equal(again.embed(cells), model.embed(cells))
    np.testing.assert_array_equal(again.elbo_per_cell(cells), model.elbo_per_cell(cells))
    assert json.dumps(again.configuration) == json.dumps(model.configuration)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("analytic_kl", [True, False])
def test_the_ledger_has_a_source_for_each_term_and_the_loss_is_their_sum(name, cells, analytic_kl):
    cells = fitting(name, cells).to()
    bound = made(name).eval().elbo(cells, n_samples=3, analytic_kl=analytic_kl)
    ledger = bound.ledger(0.3)
    assert (ledger["source"] != "").all()
    signed = np.where(ledger["sign"] == "+", 1, -1) * ledger["weight"] * ledger["nats"]
    assert bound.loss(0.3).item() == pytest.approx(-signed.sum(), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_drawn_terms_average_to_the_terms_in_closed_form(name, cells):
    model, cells = made(name).double().eval(), fitting(name, cells)[:6].to(dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        closed = model.elbo(cells, n_samples=8000)
        drawn = model.elbo(cells, n_samples=8000, analytic_kl=False)
    for term in closed.terms:
        values = drawn.terms[term].value
        error = values.std(0) / 8000**0.5 if values.ndim == 2 else torch.zeros(6)
        assert ((drawn[term] - closed[term]).abs() <= 7 * error + 1e-2).all(), term
    # each draw is a log-weight, so that more draws cannot lower the bound on average
    assert (drawn.iwae() >= drawn.per_cell() - 1e-9).all()


@pytest.mark.parametrize("name", CASES)
def test_hidden_entries_do_not_matter(name, cells):
    x = fitting(name, cells).x.numpy()
    observed = np.ones((N, G), bool)
    observed[::3, -2:] = False
    model, found = made(name).eval(), []
    for value in (0.0, 1.0):
        changed = np.where(observed, x, value)
        hidden = Cells.from_array(changed, observed=observed, library=np.full(N, 30.0),
                                  label=list(cells.labels), unlabelled="unknown",
                                  batch=cells.batch.numpy())  # fmt: skip
        found.append(model.elbo_per_cell(hidden))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", CASES)
def test_an_option_that_there_is_not_is_refused_by_name(name):
    with pytest.raises(TypeError, match=f"{name}.*n_laten.*every other option by keyword"):
        made(name, n_laten=3)


# ------------------------------------------------------------------------------------- VampVAE


@pytest.fixture
def vamp():
    model = VampVAE(3, n_latent=1, n_hidden=8, n_pseudo=4, normalization=None, dropout_rate=0.3)
    return randomise(model.double(), 5, 0.4).eval()


def log_prior(model, z):
    """log (1/K) Σ_k N(z; m(u_k), s(u_k)²), from the numbers alone; clipped at 0 as counts are."""
    u = np.maximum(model.pseudo_inputs.detach().numpy(), 0)
    m, s = network(model.encoder, u).T
    s = np.log1p(np.exp(s)) + 1e-4
    return logsumexp(norm.logpdf(z[..., None], m, s), axis=-1) - np.log(len(u))


def counts():
    return Cells.from_array([[3.0, 0, 2], [1, 5, 0], [0, 1, 9]]).to(dtype=torch.float64)


def log_joint(model, cells, z):
    model.configuration.setdefault("n_batches", 1)
    log_library = cells.library.log().numpy().reshape(-1, *[1] * (z.ndim - 1))
    log_px = log_p_x(model, cells.x.numpy(), z, log_library, np.zeros(len(cells), int))
    return log_px + log_prior(model, z)


def test_the_prior_is_the_mixture_of_the_pseudo_cells_posteriors(vamp):
    vamp.pseudo_inputs.data[0, 0] = -2.0
    with torch.no_grad():
        ours = vamp.train().prior().log_prob(torch.tensor(ABOVE)[:, None]).numpy()
    np.testing.assert_allclose(ours, log_prior(vamp, ABOVE), atol=1e-9)
    assert vamp.training and vamp.encoder.training


def test_each_draw_is_a_log_weight(vamp):
    cells = counts()
    torch.manual_seed(1)
    q = vamp.encode(cells)
    torch.manual_seed(1)
    with torch.no_grad():
        bound = vamp.elbo(cells, n_samples=5, analytic_kl=False)
        torch.manual_seed(1)
        z = (q.mean + q.stddev * torch.randn(5, 3, 1, dtype=torch.float64))[..., 0].numpy()
    log_q = norm.logpdf(z, q.mean.detach().numpy()[:, 0], q.stddev.detach().numpy()[:, 0])
    expected = log_joint(vamp, cells, z.T).T - log_q
    signed = sum(term.sign * term.value for term in bound.terms.values())
    np.testing.assert_allclose(signed, expected, atol=1e-8)


def test_the_bound_plus_its_gap_is_the_evidence(vamp, monkeypatch):
    """log p(x) = ELBO + KL(q ‖ posterior): the model's terms are asked for on a grid of z."""
    cells, width = counts(), ABOVE[1] - ABOVE[0]
    grid = torch.tensor(ABOVE)[:, None, None].expand(-1, 3, 1)
    monkeypatch.setattr(vae, "gaussian", lambda mean, std, n_samples: grid)
    with torch.no_grad():
        q = vamp.encode(cells)
        bound = vamp.elbo(cells, n_samples=1, analytic_kl=False)
    log_q = norm.logpdf(ABOVE[:, None], q.mean.numpy()[:, 0], q.stddev.numpy()[:, 0])
    weight = np.exp(log_q) * width
    signed = sum(term.sign * term.value for term in bound.terms.values()).numpy()
    joint = log_joint(vamp, cells, np.tile(ABOVE, (3, 1))).T
    evidence = logsumexp(joint, axis=0) + np.log(width)
    gap = (weight * (log_q - (joint - evidence))).sum(0)
    np.testing.assert_allclose((weight * signed).sum(0) + gap, evidence, atol=1e-6)
    np.testing.assert_allclose(
        logsumexp(signed + log_q, axis=0) + np.log(width), evidence, atol=1e-8
    )
    monkeypatch.undo()
    with torch.no_grad():  # the entropy of q in closed form, and draws
        closed = vamp.elbo(cells, n_samples=40_000).per_cell().numpy()
    np.testing.assert_allclose(closed, (weight * signed).sum(0), atol=0.05)


def test_pseudo_cells_that_say_nothing_give_the_plain_vae(vamp):
    """If the encoder sends each pseudo-cell to N(0, 1), the bound is that of the VAE."""
    plain = vaelab.VAE(3, n_latent=1, n_hidden=8, likelihood="nb", normalization=None).double()
    shared = {n: v for n, v in vamp.state_dict().items() if n in plain.state_dict()}
    plain.load_state_dict(shared)
    constant = torch.nn.Linear(8, 2).double()
    constant.weight.data.zero_()
    constant.bias.data = torch.tensor([0.0, float(np.log(np.expm1(1 - 1e-4)))]).double()
    for model in (vamp, plain.eval()):
        model.encoder[-1] = constant
    torch.manual_seed(2)
    theirs = plain.elbo(counts(), n_samples=4000, analytic_kl=False).per_cell()
    torch.manual_seed(2)
    ours = vamp.elbo(counts(), n_samples=4000, analytic_kl=False).per_cell()
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_training_starts_the_pseudo_cells_at_cells_and_moves_them(cells):
    model = made("VampVAE")
    model.prepare(cells)
    start = model.pseudo_inputs.detach().clone()
    logged = torch.log1p(cells.x.to(start))
    assert all((logged == row).all(1).any() for row in start)
    vaelab.fit(model, cells, epochs=3, batch_size=20, seed=0)
    assert not torch.equal(model.pseudo_inputs, start)
    kept = model.pseudo_inputs.detach().clone()
    model.prepare(cells)  # a later fit goes on
    torch.testing.assert_close(model.pseudo_inputs.detach(), kept)


# --------------------------------------------------------------------------------------- ScVAE


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_the_loss_has_the_larger_of_kl_and_free_nats(cells, share):
    model = made("ScVAE", free_nats=share).double().eval()
    randomise(model, 1, 0.5)
    cells, limit = cells.to(dtype=torch.float64), share * np.log(4)
    torch.manual_seed(0)
    bound = model.elbo(cells)
    torch.manual_seed(0)
    plain = vaelab.GMVAE.elbo(model, cells)
    kl_y = plain["kl_y"].mean().item()
    expected = plain.loss().item() - kl_y + max(kl_y, limit) - limit
    assert bound.loss().item() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(bound.per_cell(), plain.per_cell())  # the bound itself stays


def test_below_the_limit_the_kl_pulls_at_nothing(cells):
    model = randomise(made("ScVAE", free_nats=1.0).eval(), 1, 0.3)
    x = cells.to()
    with torch.no_grad():
        assert 0 < model.elbo(x)["kl_y"].mean() < np.log(4)
    bound = model.elbo(x)
    pull = -bound["free_nats"].mean() + bound["kl_y"].mean()
    gradient = torch.autograd.grad(pull, model.to_y.weight)[0]
    assert gradient.abs().max() < 1e-7


def test_a_share_of_free_nats_is_from_0_to_1():
    with pytest.raises(ValueError, match=r"free_nats is 1\.5; it must be from 0 to 1"):
        ScVAE(G, free_nats=1.5)


# ------------------------------------------------------------------------------- two boxes at once


class Both(VampVAE, zoo.SISUALike):
    """The prior of one and the second measurement of the other."""


def test_two_boxes_that_change_make_one_model(cells):
    """Its bound, draw by draw, from the densities that each of the two gives."""
    model = Both(G, n_proteins=3, n_latent=2, n_hidden=8, n_pseudo=4).double().eval()
    assert {"n_pseudo", "n_proteins", "dropout_rate"} <= {*model.configuration}
    observed = np.ones((N, G), bool)
    observed[::2, -3:] = False
    cells = Cells.from_array(
        cells.x.numpy(), observed=observed, library=cells.library.numpy()
    ).to(dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        q = model.encode(cells)
        torch.manual_seed(0)
        bound = model.elbo(cells, n_samples=4, analytic_kl=False)
        torch.manual_seed(0)
        z = q.mean + q.stddev * torch.randn(4, N, 2, dtype=torch.float64)
        log_p = model.decode(z, cells).log_prob(cells.x).where(cells.observed, 0.0).sum(-1)
        mixture = model.prior().component_distribution.base_dist
        means, stds = mixture.mean.numpy(), mixture.stddev.numpy()
    each = norm.logpdf(z.numpy()[..., None, :], means, stds).sum(-1)
    log_pz = logsumexp(each, axis=-1) - np.log(4)
    expected = log_p.numpy() + log_pz - norm.logpdf(z, q.mean, q.stddev).sum(-1)
    assert [*bound.terms] == ["reconstruction", "proteins", "log_q_z", "log_p_z"]
    signed = sum(term.sign * term.value for term in bound.terms.values())
    np.testing.assert_allclose(signed, expected, atol=1e-8)
