"""A bound is the sum of its signed terms, whatever is read off it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import vaelab
import vaelab.models
from vaelab import Bound, Term
from vaelab.bounds import Objective, ReconstructionError


def drawn(seed, n_samples=7, n_cells=5, scale=3.0):
    rng = np.random.default_rng(seed)
    return torch.tensor(-40 + scale * rng.standard_normal((n_samples, n_cells)))


def some_bound():
    """Two drawn terms and an averaged one, as of a model with an analytic KL."""
    kl = torch.tensor([1.0, 0.5, 7.0, 0.0, 2.25], dtype=torch.float64)
    return Bound(
        Term("reconstruction", "E_q[log p(x|z)]", +1, drawn(0), "a paper, eq. 1"),
        Term("entropy", "H(q)", +1, drawn(1), "a paper, eq. 2", warm_up=True),
        Term("kl_z", "KL(q(z|x)‖p(z))", -1, kl, "a paper, eq. 3", warm_up=True),
    )


def signed(ledger):
    """What each row of a ledger adds to the bound, by its weight in the loss."""
    return ledger.sign.map({"+": 1, "−": -1}) * ledger.weight * ledger.nats


def test_the_bound_of_a_cell_is_the_sum_of_its_terms_averaged_over_draws():
    bound = some_bound()
    values = [term.value.numpy() for term in bound.terms.values()]
    by_hand = [v.mean(0) if v.ndim == 2 else v for v in values]
    for name, value in zip(bound.terms, by_hand, strict=True):
        np.testing.assert_allclose(bound[name], value, rtol=1e-14)
    reconstruction, entropy, kl_z = by_hand
    np.testing.assert_allclose(bound.per_cell(), reconstruction + entropy - kl_z, rtol=1e-14)
    assert bound.per_cell().shape == (5,)


@pytest.mark.parametrize("kl_weight", [0.0, 0.1, 0.5, 1.0, 4.0])
def test_the_loss_is_read_off_the_ledger(kl_weight):
    bound = some_bound()
    loss, ledger = bound.loss(kl_weight), bound.ledger(kl_weight)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-signed(ledger).sum(), abs=1e-6)
    # and by hand: only terms that warm up are weighted
    means = [term.value.mean().item() for term in bound.terms.values()]
    assert loss.item() == pytest.approx(-(means[0] + kl_weight * (means[1] - means[2])), abs=1e-9)
    assert list(ledger.weight) == [1.0, kl_weight, kl_weight]


def test_the_loss_at_full_weight_is_minus_the_bound():
    bound = some_bound()
    assert bound.loss().item() == pytest.approx(-bound.per_cell().mean().item(), abs=1e-12)


def test_the_ledger_says_name_sign_symbol_value_and_source():
    ledger = some_bound().ledger()
    assert list(ledger.index) == ["reconstruction", "entropy", "kl_z"]
    assert list(ledger.columns) == ["sign", "symbol", "weight", "nats", "source"]
    assert list(ledger.sign) == ["+", "+", "−"]
    assert list(ledger.symbol) == ["E_q[log p(x|z)]", "H(q)", "KL(q(z|x)‖p(z))"]
    assert ledger.nats["kl_z"] == 2.15  # the KL itself: its sign is in the column beside it
    assert ledger.source["kl_z"] == "a paper, eq. 3"


def test_two_terms_of_one_name_are_refused():
    term = Term("kl_z", "KL", -1, torch.ones(5))
    with pytest.raises(ValueError, match="Two terms of this bound are named 'kl_z'"):
        Bound(term, Term("reconstruction", "E_q[log p]", +1, drawn(0)), replace(term))


@pytest.mark.parametrize("sign", [0, 2, -0.5, "−", None])
def test_a_sign_that_is_neither_plus_nor_minus_one_is_refused(sign):
    with pytest.raises(ValueError, match=r"The sign of 'kl_z' is .*; it must be"):
        Term("kl_z", "KL", sign, torch.ones(5))


def test_a_term_that_is_only_trained_is_in_the_loss_and_in_no_bound():
    trained = Term("error", "E", -1, torch.full((5,), 2.0), weight=3.0, in_bound=False)
    bound = Bound(Term("reconstruction", "E_q[log p]", +1, drawn(0)), trained)
    reconstruction = drawn(0).mean(0)
    np.testing.assert_allclose(bound.per_cell(), reconstruction)
    assert bound.loss().item() == pytest.approx(-reconstruction.mean().item() + 6, rel=1e-12)
    np.testing.assert_allclose(bound.iwae(), drawn(0).logsumexp(0) - math.log(7))
    assert list(bound.ledger().nats)[1] == 2.0


def test_the_loss_differentiates_each_term_by_its_weight():
    value = torch.zeros(4, 5, requires_grad=True)
    kl = torch.zeros(5, requires_grad=True)
    bound = Bound(Term("a", "a", +1, value), Term("b", "b", -1, kl, warm_up=True))
    bound.loss(0.3).backward()
    assert torch.allclose(value.grad, torch.full((4, 5), -1 / 20))
    assert torch.allclose(kl.grad, torch.full((5,), 0.3 / 5))


# ------------------------------------------------------------------------------------ the IWAE


def drawn_bound(n_samples, seed=0):
    return Bound(
        Term("reconstruction", "E_q[log p(x|z)]", +1, drawn(seed, n_samples)),
        Term("kl_z", "KL", -1, -drawn(seed + 1, n_samples), warm_up=True),
    )


def log_weights(bound):
    return bound.terms["reconstruction"].value - bound.terms["kl_z"].value


def test_iwae_is_the_log_of_the_mean_weight():
    bound = drawn_bound(7)
    log_w = log_weights(bound).numpy()
    by_hand = logsumexp(log_w, axis=0) - math.log(7)
    np.testing.assert_allclose(bound.iwae(), by_hand, rtol=1e-14)
    direct = np.log(np.exp(log_w + 80).mean(0)) - 80
    np.testing.assert_allclose(bound.iwae(), direct, rtol=1e-13)


def test_iwae_of_one_draw_is_the_elbo_of_that_draw():
    bound = drawn_bound(1)
    assert torch.allclose(bound.iwae(), bound.per_cell(), rtol=1e-15)


def test_iwae_never_falls_when_groups_of_draws_are_put_together():
    # Jensen on the same draws: the mean over groups of the log of a mean rises as groups join.
    # So it rises in expectation too, with no error of sampling to allow for.
    log_w = log_weights(drawn_bound(64))
    bounds = []
    for size in (1, 2, 4, 8, 16, 32, 64):
        groups = [Bound(Term("log_w", "log w", +1, part)).iwae() for part in log_w.split(size)]
        bounds.append(torch.stack(groups).mean(0))
    rises = torch.stack(bounds).diff(dim=0)
    assert (rises > 0).all()


def test_iwae_tends_to_the_log_of_the_expected_weight():
    # log w ~ N(−σ²/2, σ²) has E[w] = 1, so log E[w] = 0 and the ELBO is −σ²/2.
    σ = 1.5
    log_w = -(σ**2) / 2 + σ * torch.tensor(np.random.default_rng(3).standard_normal((1000, 400)))
    elbo, bound = (Bound(Term("w", "log w", +1, part)) for part in (log_w[:1], log_w))
    assert elbo.iwae().mean().item() == pytest.approx(-(σ**2) / 2, abs=5 * σ / 20)
    assert -0.05 < bound.iwae().mean().item() < 0.01


def test_iwae_survives_weights_that_no_float_holds():
    log_w = torch.tensor([[-1e4, -800.0], [-1e4, -801.0]], dtype=torch.float64)
    iwae = Bound(Term("w", "log w", +1, log_w)).iwae()
    np.testing.assert_allclose(iwae, [-1e4, -800 + math.log((1 + math.exp(-1)) / 2)], rtol=1e-14)


def parameters_and_bound(n_samples=6, n_cells=4):
    """A bound whose terms are functions of one parameter per draw and cell."""
    rng = np.random.default_rng(2)
    φ = torch.tensor(rng.standard_normal((n_samples, n_cells)), requires_grad=True)
    return φ, Bound(
        Term("reconstruction", "E_q[log p(x|z)]", +1, -30 + 2 * φ),
        Term("kl_z", "KL(q(z|x)‖p(z))", -1, φ.square(), warm_up=True),
        Term("cross_entropy", "cross-entropy", -1, 5 + φ[0], weight=3.0, in_bound=False),
    )


def test_the_iwae_loss_has_the_gradient_of_each_draw_times_its_share_of_the_weights():
    φ, bound = parameters_and_bound()
    loss = bound.weighted().loss()
    log_w = (-30 + 2 * φ - φ**2).detach().numpy()
    beside = (5 + φ[0]).detach().numpy()
    by_hand = -(logsumexp(log_w, axis=0) - math.log(6)).mean() + 3 * beside.mean()
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    loss.backward()
    shares = np.exp(log_w - logsumexp(log_w, axis=0))
    expected = -shares * (2 - 2 * φ.detach().numpy()) / 4  # ∇ log w, mean over four cells
    expected[0] += 3 / 4
    np.testing.assert_allclose(φ.grad, expected, rtol=1e-12)


def test_the_iwae_loss_of_one_draw_is_the_loss():
    _, bound = parameters_and_bound(n_samples=1)
    assert bound.weighted().loss().item() == pytest.approx(bound.loss().item(), rel=1e-12)


def test_iwae_of_an_analytic_kl_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"term 'kl_z' is an average .*analytic_kl=False"):
        some_bound().iwae()


def test_an_error_is_minus_the_signed_sum_and_names_itself():
    squares, penalty = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([0.5, 0.0, 2.0])
    error = ReconstructionError(
        Term("squared_error", "(x − x̂)²", -1, squares),
        Term("penalty", "‖w‖²", -1, penalty, weight=3.0),
        Term("classifier", "H", -1, penalty, in_bound=False),
    )
    assert not isinstance(error, Bound) and not hasattr(error, "iwae")
    assert error.per_cell().tolist() == [1.5, 4.0, 2.0]
    assert error.total({"squared_error": 2.0, "penalty": 0.5, "classifier": 9.0}) == 2.5
    assert error.loss().item() == pytest.approx(5 / 3 + 3 * 2.5 / 3 + 2.5 / 3)
    ledger = error.ledger()
    assert ledger.value.tolist() == pytest.approx([5 / 3, 2.5 / 3, 2.5 / 3])
    assert -(ledger.sign.map({"+": 1, "−": -1}) * ledger.weight * ledger.value).sum() == (
        pytest.approx(error.loss().item())
    )
    assert (error.name, error.sign) == ("error", -1) and (Bound.name, Bound.sign) == ("bound", 1)
    assert issubclass(Bound, Objective)
    with pytest.raises(ValueError, match="Two terms of this error are named 'a'"):
        ReconstructionError(*[Term("a", "a", -1, squares)] * 2)


# ----------------------------------------------------------------------------- a model's bound


@pytest.fixture(scope="module")
def cells():
    return vaelab.Cells.from_array(np.random.default_rng(4).poisson(3.0, (6, 8))).to()


MODELS = [
    kind
    for kind in vars(vaelab.models).values()
    if isinstance(kind, type) and issubclass(kind, vaelab.models.Model) and "elbo" in vars(kind)
    and kind is not vaelab.models.Model
]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS, ids=lambda kind: kind.__name__)
def model(request):
    """Every model there is: its bound is known by ``elbo(cells)`` alone."""
    options = {"n_labels": 4} if request.param is vaelab.SCANVI else {}
    return request.param(n_genes=8, n_latent=3, n_hidden=16, **options).eval()


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("analytic_kl", [True, False])
def test_a_models_ledger_sums_to_its_loss(model, cells, kl_weight, analytic_kl):
    torch.manual_seed(0)
    half = replace(cells, observed=torch.arange(48).reshape(6, 8) % 2 == 0).to()
    for seen in (cells, half):
        bound = model.elbo(seen, n_samples=3, analytic_kl=analytic_kl)
        ledger = bound.ledger(kl_weight)
        loss = bound.loss(kl_weight).item()
        assert loss == pytest.approx(-signed(ledger).sum(), rel=1e-6)
        per_cell = sum(
            term.sign * bound[name] * ledger.weight[name] for name, term in bound.terms.items()
        )
        assert loss == pytest.approx(-per_cell.mean().item(), rel=1e-6)


def test_a_models_kls_are_subtracted_and_not_below_zero(model, cells):
    bound = model.elbo(cells)
    assert (bound["reconstruction"] < 0).all()  # log-probabilities of counts
    for name, row in bound.ledger().iterrows():
        assert row.symbol[0] not in "−-+" or not bound.terms[name].in_bound
        if "KL" in row.symbol:
            assert (bound[name] > 0).all()
            assert row.sign == "−"
            assert name.startswith("kl_")


def test_only_a_models_kl_warms_up(model, cells):
    bound = model.elbo(cells)
    for kl_weight in (0.0, 0.3, 1.0):
        latent = sum(
            term.sign * bound[name] for name, term in bound.terms.items()
            if term.in_bound and name != "reconstruction"
        )  # fmt: skip
        expected = -(bound["reconstruction"] + kl_weight * latent).mean()
        assert torch.allclose(bound.loss(kl_weight), expected)


def test_a_models_iwae_needs_draws(model, cells):
    with pytest.raises(ValueError, match="analytic_kl=False"):
        model.elbo(cells, n_samples=5).iwae()
    bound = model.elbo(cells, n_samples=5, analytic_kl=False)
    assert bound.iwae().shape == (6,)
    assert (bound.iwae() >= bound.per_cell()).all()  # Jensen, on the same draws


def test_more_draws_average_the_same_bound(model, cells):
    torch.manual_seed(1)
    many = model.elbo(cells, n_samples=4000)
    one_by_one = many.terms["reconstruction"].value.detach()
    assert one_by_one.shape == (4000, 6)
    assert torch.allclose(many["reconstruction"], one_by_one.mean(0))
    torch.manual_seed(2)
    others = torch.stack([model.elbo(cells)["reconstruction"].detach() for _ in range(300)])
    error = (one_by_one.var(0) / 4000 + others.var(0) / 300).sqrt()
    assert ((many["reconstruction"] - others.mean(0)).abs() < 5 * error).all()
