"""Draws that gradients pass through, against closed forms, quadrature and torch's own.

Every test is seeded. Limits on what was drawn are such that a right sampler would fail for one seed
in a million: p-values above 1e-6, means within 4.9 standard errors.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from vaelab.reparametrization import gumbel_softmax, score_function, seeded

RARE = 1e-6
LOGITS = [1.0, -0.5, 0.3, -2.0, 0.0]
TEMPERATURES = [1e-30, 0.1, 1.0, 10.0]


def draws(logits, temperature, n_samples, seed=0, dtype=torch.float64, **options):
    with seeded(seed):
        logits = torch.as_tensor(logits, dtype=dtype)
        return gumbel_softmax(logits, temperature, n_samples=n_samples, **options)


def expected(function):
    """E[function(s)] over s ~ Logistic(0, 1), the difference of two Gumbels."""
    return integrate.quad(lambda s: function(s) * stats.logistic.pdf(s), -40, 40, limit=500)[0]


# Gumbel-max: which entry is the largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [*TEMPERATURES, 1e8])
def test_hard_draws_are_categorical_at_any_temperature(temperature, dtype):
    y = draws(LOGITS, temperature, 50_000, dtype=dtype, hard=True)
    n_drawn = y.sum(0).numpy()
    assert stats.chisquare(n_drawn, 50_000 * special.softmax(LOGITS)).pvalue > RARE


def test_the_largest_entry_of_a_soft_draw_is_categorical():
    n_drawn = np.bincount(draws(LOGITS, 2.0, 50_000).argmax(-1), minlength=5)
    assert stats.chisquare(n_drawn, 50_000 * special.softmax(LOGITS)).pvalue > RARE


def test_rare_classes_are_drawn_as_often_as_they_should():
    """An epsilon in a logarithm is a ceiling for the noise, and shows in its tail first."""
    n_drawn = draws([math.log(1e-4), 0.0], 1.0, 1_000_000, dtype=torch.float32, hard=True)[:, 0]
    assert stats.binomtest(int(n_drawn.sum()), 1_000_000, 1e-4 / (1 + 1e-4)).pvalue > RARE


def test_hard_and_soft_come_from_the_same_noise():
    soft, hard = (draws(LOGITS, 0.7, 1000, hard=hard) for hard in (False, True))
    assert (soft.argmax(-1) == hard.argmax(-1)).all()


def test_draws_are_independent_over_samples_and_cells():
    y = draws(np.zeros((3, 2)), 1.0, 20_000)[..., 0].numpy()  # (S, cells)
    lagged = [np.corrcoef(y[1:, i], y[:-1, i])[0, 1] for i in range(3)]
    between = np.corrcoef(y.T)[np.triu_indices(3, 1)]
    assert np.abs([*lagged, *between]).max() < 4.9 / math.sqrt(20_000)


# The relaxation


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("theirs", ["functional", "distribution"])
def test_draws_are_distributed_as_torchs(theirs, temperature):
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    with seeded(1):
        if theirs == "functional":
            y = torch.nn.functional.gumbel_softmax(logits.expand(20_000, -1), temperature)
        else:
            relaxed = torch.distributions.RelaxedOneHotCategorical(temperature, logits=logits)
            y = relaxed.sample((20_000,))
    ours = draws(LOGITS, temperature, 20_000).log().numpy()
    y = y.log().numpy()
    for i in range(5):
        assert stats.ks_2samp(ours[:, i], y[:, i]).pvalue > RARE
        j = (i + 1) % 5  # a ratio of two entries sees how they go together
        assert stats.ks_2samp(ours[:, i] - ours[:, j], y[:, i] - y[:, j]).pvalue > RARE


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("difference", [-2.0, 0.0, 1.0])
def test_the_mean_of_two_classes_is_that_of_quadrature(difference, temperature):
    y = draws([difference, 0.0], temperature, 50_000)[:, 0].numpy()
    mean = expected(lambda s: special.expit((difference + s) / temperature))
    assert abs(y.mean() - mean) < 4.9 * y.std() / math.sqrt(len(y))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_gradient_of_the_mean_is_that_of_quadrature(temperature, hard):
    logits = torch.tensor([0.7, 0.0], dtype=torch.float64).repeat(50_000, 1).requires_grad_()
    with seeded(0):
        gumbel_softmax(logits, temperature, hard)[:, 0].sum().backward()
    each = logits.grad[:, 0].numpy()

    def slope(s):
        y = special.expit((0.7 + s) / temperature)
        return y * (1 - y) / temperature

    assert abs(each.mean() - expected(slope)) < 4.9 * each.std() / math.sqrt(len(each))
    np.testing.assert_allclose(logits.grad[:, 1], -each, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cold_draw_is_one_hot_and_a_hot_one_uniform(dtype):
    cold = draws(LOGITS, 1e-37, 1000, dtype=dtype)
    assert ((cold == 0) | (cold == 1)).all() and (cold.sum(-1) == 1).all()
    hot = draws(LOGITS, 1e6, 1000, dtype=dtype)
    torch.testing.assert_close(hot, torch.full_like(hot, 0.2), rtol=1e-4, atol=0)


# Straight-through


def test_straight_through_is_exactly_one_hot():
    y = draws(LOGITS, 1.0, 100_000, dtype=torch.float32, hard=True)
    assert ((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all()


def test_straight_through_has_the_gradient_of_the_relaxation():
    """Jacobian of softmax(scores/τ): (diag y − y yᵀ)/τ, at the relaxed y."""
    temperature, weight = 0.6, torch.tensor([[2.0, -1.0, 0.5, 3.0, -4.0]], dtype=torch.float64)
    logits = torch.tensor([LOGITS] * 20, dtype=torch.float64, requires_grad=True)
    with seeded(3):
        hard = gumbel_softmax(logits, temperature, hard=True)
    (weight * hard).sum().backward()
    with seeded(3):
        y = gumbel_softmax(logits.detach(), temperature)
    by_hand = y * (weight - (y * weight).sum(-1, keepdim=True)) / temperature
    torch.testing.assert_close(logits.grad, by_hand)
    assert by_hand.abs().min() > 1e-8


# Numbers that are hard on it, shapes, and refusals


@pytest.mark.parametrize("temperature", [1e-37, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("hard", [False, True])
def test_extreme_logits_give_finite_draws_and_gradients_in_float32(temperature, hard):
    logits = torch.tensor([[1e30, 0.0, -1e30], [-math.inf, 0.0, 1.0], [80.0, 0.0, -80.0]])
    logits = logits.repeat(1000, 1, 1).requires_grad_()
    y = gumbel_softmax(logits, temperature, hard)
    (y * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    assert y.isfinite().all() and logits.grad.isfinite().all()
    torch.testing.assert_close(y.sum(-1), torch.ones(1000, 3))
    assert (y[:, 0, 0] == 1).all() and (y[:, 1, 0] == 0).all()


@pytest.mark.parametrize("n_samples, lead", [(None, ()), (1, (1,)), (4, (4,))])
def test_samples_come_in_a_new_first_dimension(n_samples, lead):
    y = gumbel_softmax(torch.zeros(2, 3, 5), 1.0, n_samples=n_samples)
    assert y.shape == (*lead, 2, 3, 5) and y.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, 1e-50])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=rf"temperature is {temperature}; .* pass hard=True"):
        gumbel_softmax(torch.zeros(3), temperature)


# The score function


def score_gradients(f, parameters, make, n_samples, baseline, n_cells=100_000):
    """Each cell's estimate of the gradient, for cells all alike; values and gradients."""
    rows = torch.tensor(parameters, dtype=torch.float64).expand(n_cells, -1).clone()
    rows.requires_grad_()
    with seeded(0):
        values = score_function(f, make(rows), n_samples, baseline)
    values.sum().backward()
    return values.detach(), rows.grad.numpy()


@pytest.mark.parametrize("n_samples, baseline", [(1, False), (3, False), (2, True), (5, True)])
@pytest.mark.parametrize("kind", ["normal", "categorical"])
def test_the_score_function_has_no_bias(kind, n_samples, baseline):
    """f = (1 + z₁ + 2 z₂)², or a table of categories; expectations in closed form."""
    if kind == "normal":
        parameters, right = [0.4, -0.3], [2 * 0.8, 4 * 0.8]  # E[f] = (1 + m₁ + 2 m₂)² + const
        values, gradients = score_gradients(
            lambda z: (1 + z[..., 0] + 2 * z[..., 1]) ** 2, parameters,
            lambda m: torch.distributions.Normal(m, 0.7), n_samples, baseline,
        )  # fmt: skip
        mean = 0.8**2 + 5 * 0.49
    else:
        parameters, table = [0.5, -1.0, 0.2], np.array([3.0, -2.0, 7.0])
        values, gradients = score_gradients(
            lambda y: torch.as_tensor(table)[y], parameters,
            lambda g: torch.distributions.Categorical(logits=g), n_samples, baseline,
        )  # fmt: skip
        π = special.softmax(parameters)
        mean, right = π @ table, π * (table - π @ table)
    error = gradients.std(0) / math.sqrt(len(gradients))
    assert (np.abs(gradients.mean(0) - right) < 4.9 * error).all()
    assert abs(values.mean() - mean) < 4.9 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("baseline", [False, True])
def test_the_variance_of_the_score_function_is_that_of_the_closed_form(baseline):
    """f = 100 + z, q = N(0, 1): E[f² z²] = 10,003, minus 1; with a baseline that of a sample
    covariance of z with itself, 2/(S − 1).
    """
    _, gradients = score_gradients(
        lambda z: 100 + z[..., 0], [0.0], lambda m: torch.distributions.Normal(m, 1.0), 5, baseline
    )
    assert gradients.var() == pytest.approx(2 / 4 if baseline else 10_002 / 5, rel=0.05)


def test_what_f_depends_on_gets_its_own_gradient():
    scale = torch.tensor(3.0, requires_grad=True)
    with seeded(0):
        score_function(lambda z: scale * z, torch.distributions.Normal(2.0, 0.1), 50).backward()
    with seeded(0):
        z = torch.distributions.Normal(2.0, 0.1).sample((50,))
    torch.testing.assert_close(scale.grad, z.mean())


def test_a_baseline_from_one_draw_is_refused():
    with pytest.raises(ValueError, match="n_samples is 1; draw at least two"):
        score_function(lambda z: z, torch.distributions.Normal(0.0, 1.0), 1, baseline=True)
