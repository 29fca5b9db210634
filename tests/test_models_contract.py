"""What every model promises: names tell values, options are keywords, six methods are enough."""

import copy
import inspect
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import Normal, Poisson, kl_divergence

import vaelab
import vaelab.models
from vaelab import Bound, Cells, Term
from vaelab.models import Model, Trainable, scanvi
from vaelab.reparametrization import seeded

from .test_scvi import randomise

G, N = 12, 30
CASES = {
    "VAE": [{}, {"likelihood": "nb", "dispersion": "gene-cell"}, {"likelihood": "normal"},
            {"dispersion": "scalar", "zero_inflation": "gene", "library": "none"}],
    "GMVAE": [
        {}, {"learn_weights": True}, {"estimator": "gumbel"}, {"estimator": "straight-through"},
    ],
    "SCVI": [
        {}, {"library": "latent"}, {"library": "latent", "encode_batch": True},
        {"dispersion": "gene-batch"},
    ],
    "SCANVI": [
        {}, {"library": "latent", "encode_batch": True}, {"prior_c": "learned"},
        {"prior_c": [0.7, 0.2, 0.1]}, {"label_bound": False}, {"encode_batch_z2": True},
        {"classifier_mean": False, "classifier_weight": 2.5},
    ],
}  # fmt: skip
BATCHES, LABELS = {"n_batches": 2}, {"n_labels": 3}
REST = {"GMVAE": {"n_clusters": 4}, "SCVI": BATCHES, "SCANVI": BATCHES | LABELS}
KINDS = {
    name: kind
    for name, kind in vars(vaelab.models).items()
    if inspect.isclass(kind) and issubclass(kind, Model) and kind is not Model
}
ALL = KINDS | {"Autoencoder": vaelab.Autoencoder}  # those that are trained, with a bound or without


def some_cells():
    rng = np.random.default_rng(2)
    label = [None if i % 2 else f"type {i % 3}" for i in range(N)]
    batch = [f"batch {i % 2}" for i in range(N)]
    return Cells.from_array(rng.poisson(4.0, (N, G)).astype(float), label=label, batch=batch)


@pytest.fixture(scope="module")
def cells():
    return some_cells().to(dtype=torch.float64)


def make(name, **options):
    """A model in float64 whose every parameter is random, also those that start at 0."""
    options = {"n_latent": 2, "n_hidden": 8, "normalization": None} | REST.get(name, {}) | options
    model = randomise(KINDS[name](G, **options).double(), 3, 0.25)
    if options.get("library") == "latent":
        model.library_log_mean.fill_(3.8)
        model.library_encoder[-1].bias.data += torch.tensor([3.7, -1.0])
    return model


def test_each_model_is_among_the_cases():
    assert {*CASES} == {*KINDS}
    classes = [kind for kind in vars(vaelab.models).values() if inspect.isclass(kind)]
    assert {k for k in classes if issubclass(k, Trainable)} == {Trainable, Model, *ALL.values()}


@pytest.fixture(params=[(name, i) for name, cases in CASES.items() for i in range(len(cases))],
                ids=lambda case: f"{case[0]}-{CASES[case[0]][case[1]]}")  # fmt: skip
def model(request):
    name, i = request.param
    return make(name, **CASES[name][i])


# ----------------------------------------------------------------------- a name tells its value


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("analytic_kl", [True, False])
def test_the_loss_is_minus_the_weighted_and_signed_sum_of_values(
    model, cells, analytic_kl, training
):
    torch.manual_seed(0)
    with torch.no_grad():
        bound = model.train(training).elbo(cells, n_samples=3, analytic_kl=analytic_kl)
    total, in_bound = 0.0, np.zeros(N)
    for name, term in bound.terms.items():
        value = term.value.numpy()
        assert value.shape in ((N,), (3, N))
        assert np.isfinite(value).all()
        assert term.name == name
        kl_weight = 0.3 if term.warm_up else 1.0
        total -= term.weight * kl_weight * term.sign * value.mean()
        if term.in_bound:
            in_bound += term.sign * (value.mean(0) if value.ndim == 2 else value)
    assert bound.loss(0.3).item() == pytest.approx(total, rel=1e-10)
    np.testing.assert_allclose(bound.per_cell(), in_bound, rtol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_a_kl_is_not_below_zero_and_is_subtracted(model, cells, training):
    torch.manual_seed(1)
    with torch.no_grad():
        bound = model.train(training).elbo(cells, n_samples=2)
    kls = [name for name in bound.terms if name.startswith("kl_")]
    assert kls
    for name, term in bound.terms.items():
        assert ("KL(" in term.symbol) == (name in kls)
        assert not (term.in_bound and term.symbol.startswith(("−", "-", "+")))
    for name in kls:
        assert bound.terms[name].sign == -1
        assert (bound.terms[name].value >= -1e-5).all(), name
        assert (bound[name] > 0).any(), name  # parameters are random: no q is its prior
    if "cross_entropy" in bound.terms:
        term = bound.terms["cross_entropy"]
        assert (term.sign, term.in_bound) == (-1, False)
        assert (term.value >= 0).all()
        labelled = cells.label >= 0
        assert (term.value[:, labelled] > 0).all()
        assert (term.value[:, ~labelled] == 0).all()
        assert {*bound.terms} >= {"log_q_z1", "log_p_z1", "kl_z2", "kl_c"}


def test_drawn_terms_average_to_the_terms_in_closed_form(model, cells):
    """In evaluation: no relaxed draws, whose average is another."""
    torch.manual_seed(2)
    n = 4000
    with torch.no_grad():
        closed, drawn = (model.elbo(cells, n_samples=n, analytic_kl=a) for a in (True, False))
    for name, term in drawn.terms.items():
        value = term.value
        assert value.shape == (n, N), name
        other = closed.terms[name].value
        error = (value.var(0) / n).sqrt() * np.sqrt(2) + 1e-9
        other = other.mean(0) if other.ndim == 2 else other
        assert ((value.mean(0) - other).abs() < 6 * error).all(), name
        assert term.sign == closed.terms[name].sign


@pytest.mark.parametrize("analytic_kl", [True, False])
@pytest.mark.parametrize("case", range(len(CASES["SCANVI"])))
def test_the_log_densities_of_z1_are_those_at_its_draw(monkeypatch, cells, case, analytic_kl):
    model, drawn = make("SCANVI", **CASES["SCANVI"][case]), []

    def remembered(mean, std, n_samples=None):
        shape = mean.shape if n_samples is None else (n_samples, *mean.shape)
        drawn.append(mean + std * torch.randn(shape, dtype=mean.dtype))
        return drawn[-1]

    monkeypatch.setattr(scanvi, "gaussian", remembered)
    torch.manual_seed(3)
    with torch.no_grad():
        bound, q = model.elbo(cells, analytic_kl=analytic_kl), model.encode(cells)
        z1, z2 = drawn[0], drawn[-1]  # (1, N, 2), (3, 1, N, 2)
        expected = norm.logpdf(z1.numpy()[0], q.mean.numpy(), q.stddev.numpy()).sum(-1)
        np.testing.assert_allclose(bound["log_q_z1"], expected, rtol=1e-10)
        ω, log_p = bound.posteriors["c"].numpy(), 0.0  # of one draw, ω itself
        for k, c in enumerate(torch.eye(3).double()):
            p = model.decode_z1(z2[k, 0], c.expand(N, 3))
            log_p += ω[:, k] * norm.logpdf(z1.numpy()[0], p.mean, p.stddev).sum(-1)
    np.testing.assert_allclose(bound["log_p_z1"], log_p, rtol=1e-10)
    assert (bound.terms["log_q_z1"].sign, bound.terms["log_p_z1"].sign) == (-1, +1)


# -------------------------------------------------------------------------- options are keywords


def test_no_constructor_has_a_positional_option():
    for name, kind in {**ALL, "MLP": vaelab.MLP}.items():
        _, *parameters = inspect.signature(kind.__init__).parameters.values()
        n_sizes = 2 if name == "MLP" else 1
        assert [p.name for p in parameters[:n_sizes]] == ["n_genes", "n_in", "n_out"][
            n_sizes - 1 : 2 * n_sizes - 1
        ]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[n_sizes:]), name
    model, cells, *options = inspect.signature(vaelab.fit).parameters.values()
    assert (model.name, cells.name) == ("model", "cells")
    assert options and all(p.kind is p.KEYWORD_ONLY for p in options)
    with pytest.raises(TypeError, match=r"SCVI: .*positional.*by keyword"):
        vaelab.SCVI(2000, 10)
    with pytest.raises(TypeError, match="positional"):
        vaelab.fit(make("VAE"), some_cells(), 3)


MATHEMATICS = {"prior", "blank_cells"}  # with an argument that is no option
FILES = {"save", "load"}


def test_no_method_has_a_positional_option():
    asked = set()
    for kind in (Trainable, Model, *ALL.values()):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            ours = method.__module__.startswith("vaelab.models")
            if not ours or name.startswith("_") or name in MATHEMATICS | FILES:
                continue
            for parameter in inspect.signature(method).parameters.values():
                if parameter.default is not parameter.empty:
                    assert parameter.kind is parameter.KEYWORD_ONLY, f"{kind.__name__}.{name}"
                    asked.add(name)
    assert asked >= {"elbo", "elbo_per_cell", "log_marginal", "generate", "predict", "embed"}


# ------------------------------------------------- a model written from the list in base.py alone


class PoissonFactors(Model):
    """z ~ N(0, I), x_g ~ Poisson(ℓ softmax(Wz + b)_g), and a q that is linear in log(1 + x)."""

    domain = "counts"

    def __init__(self, n_genes, *, n_latent=2, seed=0):
        super().__init__()
        with seeded(seed):
            self.to_q = nn.Linear(n_genes, 2 * n_latent)
            self.to_x = nn.Linear(n_latent, n_genes)

    def prior(self):
        return Normal(torch.zeros(self.configuration["n_latent"]), 1.0)

    def encode(self, cells):
        mean, log_std = self.to_q(self.encoder_input(cells)).chunk(2, dim=-1)
        return Normal(mean, log_std.exp())

    def decode(self, z, cells):
        return Poisson(cells.library.unsqueeze(-1) * self.to_x(z).softmax(-1))

    def elbo(self, cells, *, n_samples=1, analytic_kl=True):
        q, p = self.encode(cells), self.prior()
        z = q.rsample((n_samples,))
        log_px = self.log_likelihood(self.decode(z, cells), cells)
        kl = kl_divergence(q, p) if analytic_kl else q.log_prob(z) - p.log_prob(z)
        return Bound(
            Term("reconstruction", "E_q[log p(x|z)]", +1, log_px),
            Term("kl_z", "KL(q(z|x)‖p(z))", -1, kl.sum(-1), warm_up=True),
        )


def factor_cells():
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(2, 20))
    scores = rng.normal(size=(200, 2)) @ weights
    share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return Cells.from_array(rng.poisson(150 * share).astype(float))


def test_twenty_lines_from_the_list_make_a_model(tmp_path):
    cells, model = factor_cells(), PoissonFactors(20)
    assert model.configuration == {"n_genes": 20, "n_latent": 2, "seed": 0}
    assert model.card is None
    untrained = model.elbo_per_cell(cells).mean()
    history = vaelab.fit(model, cells, epochs=60, learning_rate=2e-2, progress=False)
    assert history.reason in vaelab.training.StopReason
    frame = history.frame
    np.testing.assert_allclose(frame["bound"], frame["reconstruction"] - frame["kl_z"])
    assert model.elbo_per_cell(cells).mean() > untrained + 50
    assert model.gene_names == cells.gene_names

    assert model.embed(cells).shape == (200, 2)
    np.testing.assert_allclose(model.reconstruct(cells).sum(1), cells.library, rtol=1e-4)
    assert model.replicate(cells).shape == (200, 20)
    made = model.generate(400)
    assert made.shape == (400, 20)
    assert np.median(made.sum(1)) == pytest.approx(cells.library.median().item(), rel=0.05)
    totals = model.generate(3, library=np.array([1e2, 1e3, 1e4])).sum(1)
    np.testing.assert_allclose(totals, [1e2, 1e3, 1e4], rtol=0.5)
    log_p = model.log_marginal(cells, n_samples=300)
    assert log_p.mean() > np.mean([model.elbo_per_cell(cells, seed=s).mean() for s in range(20)])
    ledger = model.elbo(cells.to()).ledger()
    assert list(ledger.index) == ["reconstruction", "kl_z"]
    assert list(ledger.sign) == ["+", "−"]
    assert ledger.nats["kl_z"] > 0

    loaded = PoissonFactors.load(model.save(tmp_path / "factors", note="mine"))
    assert loaded.card["note"] == "mine"
    assert loaded.configuration == model.configuration
    np.testing.assert_array_equal(loaded.embed(cells), model.embed(cells))
    np.testing.assert_array_equal(loaded.generate(5), model.generate(5))


def test_the_models_own_evidence_is_what_log_marginal_finds():
    """Two latent dimensions: log p(x) by a grid."""
    cells, model = factor_cells()[:5], PoissonFactors(20)
    vaelab.fit(model, factor_cells(), epochs=60, learning_rate=2e-2, progress=False)
    with torch.no_grad():
        model.to_q.bias[2:] += 1.2  # a q wider than the posterior: no draw outweighs the others
    grid = torch.linspace(-6, 6, 301)
    z = torch.cartesian_prod(grid, grid)  # (301², 2)
    part = cells.to()
    with torch.no_grad():
        log_px = model.log_likelihood(model.decode(z[:, None], part), part)
        log_joint = log_px + model.prior().log_prob(z).sum(-1, keepdim=True)
    evidence = (log_joint.logsumexp(0) + 2 * (grid[1] - grid[0]).log()).numpy()
    np.testing.assert_allclose(model.log_marginal(cells, n_samples=20_000), evidence, atol=0.05)


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        (Model, ("prior", "encode", "decode", "elbo", "objective")),
        (Trainable, ("objective", "embed", "reconstruct")),
    ],
)
def test_what_a_model_must_define_is_missed_at_once(base, methods):
    class Nothing(base):
        def __init__(self, n_genes):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(n_genes))

    model, cells = Nothing(20), factor_cells()
    arguments = {"prior": (), "decode": (torch.zeros(2), cells)}
    for name in methods:
        with pytest.raises(NotImplementedError):
            getattr(model, name)(*arguments.get(name, (cells,)))
    with pytest.raises(NotImplementedError):
        vaelab.fit(model, cells, progress=False)


# ----------------------------------------------------------------------- what is kept of a model


def test_the_configuration_is_every_argument_by_name():
    for name, kind in KINDS.items():
        model, options = make(name), {"n_latent": 2, "n_hidden": 8, "normalization": None}
        expected = {
            n: p.default for n, p in inspect.signature(kind).parameters.items() if n != "n_genes"
        }
        expected = {"n_genes": G} | expected | options | REST.get(name, {})
        assert model.configuration == expected
        again = kind(**model.configuration)
        assert again.configuration == expected
        for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert same.configuration == expected
            assert same.state_dict().keys() == model.state_dict().keys()


SAVED = sorted((Path(__file__).parents[1] / "saved_model_parameters").glob("*.json"))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_a_saved_model_still_loads_and_judges_cells(path):
    card = json.loads(path.read_text(encoding="utf-8"))
    model = KINDS[card["model"]].load(path)
    assert model.card == card
    assert {*card["configuration"]} == {*inspect.signature(KINDS[card["model"]]).parameters}
    x = np.random.default_rng(0).poisson(0.5, (20, len(model.gene_names))).astype(float)
    x[0] += 1  # no gene is zero in every cell
    x[:, 0] += 1
    if model.domain == "unit interval":
        x = x / x.max()
    n_batches, n_labels = (len(names or ()) for names in (model.batch_names, model.label_names))
    cells = Cells.from_array(
        x, gene_names=model.gene_names,
        batch=[model.batch_names[i % n_batches] for i in range(20)] if n_batches > 1 else None,
        label=[model.label_names[i % n_labels] for i in range(20)] if n_labels else None,
    )  # fmt: skip
    if n_batches > 1 or n_labels:
        cells = cells.named(model.batch_names or ("all",), model.label_names)
    bounds = [model.elbo_per_cell(c) for c in (cells, cells.unlabelled())]
    assert np.isfinite(bounds).all()
    assert (bounds[0] != bounds[1]).any() == (card["model"] == "SCANVI")
    kl = [n for n in model.elbo(cells.to()).terms if n.startswith("kl_")]
    assert kl
