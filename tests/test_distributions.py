"""Distributions against the textbook with 60 digits, and against their own samples and sums.

Tolerances. A log-probability is a sum of logs of factors, and each is right to a few units in
its own last place. So the error is counted in units of ε · Σ |log factor|, never in units of the
result, which may be any small difference of large logs. The same holds for derivatives, with the
summands of the derivative.
"""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from vaelab._internal.negative_binomial import log_rising_factorial
from vaelab.distributions import (
    ContinuousBernoulli,
    CountDistribution,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)

from . import oracles

EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23}
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def tensor(values, dtype=torch.float64, requires_grad=False):
    return torch.tensor(np.asarray(values, dtype=float), dtype=dtype, requires_grad=requires_grad)


# ----------------------------------------------------------------------------- where we look


class Grid:
    """Points at corners and at random, as float64 arrays of numbers that the dtype can hold.

    So the oracles see just what the code sees, and rounding of the input is no error.
    """

    def __init__(self, dtype, n_random, seed=0):
        rng = np.random.default_rng(seed)
        wide = dtype == torch.float64
        mean, theta = ((-8, 8), (-6, 6)) if wide else ((-3, 4), (-2, 4))
        logit = 80 if wide else 40
        corners = [
            (x, 10.0**m, t, g)
            for x in (0, 1, 100_000)
            for m in (mean[0], 0, mean[1])
            for t in (10.0 ** theta[0], 29.9, 30.1, 10.0 ** theta[1])
            for g in (-logit, logit)
        ]
        m, t = rng.uniform(*mean, n_random), rng.uniform(*theta, n_random)
        x = np.floor(10 ** rng.uniform(-0.5, 5, n_random))  # a tenth are zero
        x[::3] = np.minimum(rng.poisson(10 ** m[::3]), 100_000)  # a third lie where p is
        g = rng.uniform(-logit, logit, n_random)
        g[::2] /= 20
        points = np.vstack([corners, np.column_stack([x, 10**m, 10**t, g])])
        rounded = tensor(points, dtype).double().numpy()
        self.x, self.mean, self.theta, self.logits = rounded.T
        probs = tensor(1 / (1 + np.exp(-self.logits.clip(max=15))), dtype).double().numpy()
        self.probs = np.where(rng.random(len(probs)) < 0.05, 0.5, probs)
        self.counts = [int(x) for x in self.x]  # for mpmath
        self.dtype = dtype

    def tensors(self, *names, requires_grad=False):
        return [tensor(getattr(self, name), self.dtype, requires_grad) for name in names]


GRIDS = {dtype: Grid(dtype, n_random=1500) for dtype in EPSILON}
SMALL_GRIDS = {dtype: Grid(dtype, n_random=250) for dtype in EPSILON}  # derivatives cost more


def assert_close(ours, truth, scale, dtype, units=64):
    """|ours − truth| ≤ units · ε · Σ |summand|, and every value finite."""
    ours = ours.detach().double().numpy()
    assert np.isfinite(ours).all()
    bound = units * EPSILON[dtype] * scale
    excess = np.abs(ours - truth) - bound
    worst = int(np.argmax(excess))
    assert excess[worst] <= 0, (
        f"point {worst}: {ours[worst]!r} should be {truth[worst]!r} ± {bound[worst]:.1e}"
    )


def assert_log_probs(ours, factors, dtype, *points):
    """64 ulp of the summed logs in float64, 16 in float32.

    Float64 gets more for its wider grid: logits of ±80, rounded to half an ulp before they are
    exponentiated, cost 40 ulp, and those of ±40 in float32 at most 8 that are seen.
    """
    truth, scale = oracles.values_and_scales(factors, *points)
    assert_close(ours, truth, scale, dtype, units=64 if dtype == torch.float64 else 16)


def zip_factors(x, rate, logits):
    return oracles.zero_inflated(x, oracles.poisson(x, rate), logits)


def zinb_factors(x, mean, theta, logits):
    return oracles.zero_inflated(x, oracles.negative_binomial(x, mean, theta), logits)


# -------------------------------------------------------------- log-probabilities of the counts


@BOTH
def test_poisson_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    x, mean = grid.tensors("x", "mean")
    ours = Poisson(mean).log_prob(x)
    assert_log_probs(ours, oracles.poisson, dtype, grid.counts, grid.mean)


@BOTH
def test_negative_binomial_by_mean_and_inverse_dispersion_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    x, mean, theta = grid.tensors("x", "mean", "theta")
    ours = NegativeBinomial(mean, theta).log_prob(x)
    assert_log_probs(ours, oracles.negative_binomial, dtype, grid.counts, grid.mean, grid.theta)


@BOTH
def test_negative_binomial_by_mean_and_dispersion_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    x, mean, dispersion = grid.tensors("x", "mean", "theta")

    def factors(x, mean, dispersion):
        return oracles.negative_binomial(x, mean, 1 / oracles.mp.mpf(dispersion))

    ours = NegativeBinomial.from_dispersion(mean, dispersion).log_prob(x)
    assert_log_probs(ours, factors, dtype, grid.counts, grid.mean, grid.theta)


@BOTH
def test_negative_binomial_by_r_and_p_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    probs = np.maximum(grid.probs, 1e-6)
    x, r = grid.tensors("x", "theta")
    p = tensor(probs, dtype)

    def factors(x, r, p):
        r, p = oracles.mp.mpf(r), oracles.mp.mpf(p)
        return oracles.negative_binomial(x, r * (1 - p) / p, r)

    ours = NegativeBinomial.from_r_p(r, p).log_prob(x)
    assert_log_probs(ours, factors, dtype, grid.counts, grid.theta, p.double().numpy())


@BOTH
def test_negative_binomial_by_torchs_probs_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    keep = grid.probs > 1e-30  # below, μ = 0 to float32
    x, total_count, probs = (t[torch.from_numpy(keep)] for t in grid.tensors("x", "theta", "probs"))

    def factors(x, r, probs):
        r, probs = oracles.mp.mpf(r), oracles.mp.mpf(probs)
        return oracles.negative_binomial(x, r * probs / (1 - probs), r)

    ours = NegativeBinomial.from_total_count(total_count, probs=probs).log_prob(x)
    points = np.array(grid.counts)[keep].tolist(), grid.theta[keep], grid.probs[keep]
    assert_log_probs(ours, factors, dtype, *points)


@BOTH
def test_negative_binomial_by_torchs_logits_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    x, total_count, logits = grid.tensors("x", "theta", "logits")

    def factors(x, r, logits):
        return oracles.negative_binomial(x, r * oracles.mp.exp(logits), r)

    ours = NegativeBinomial.from_total_count(total_count, logits=logits).log_prob(x)
    assert_log_probs(ours, factors, dtype, grid.counts, grid.theta, grid.logits)


@BOTH
def test_zero_inflated_poisson_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    x, mean, logits = grid.tensors("x", "mean", "logits")
    ours = ZeroInflated(Poisson(mean), logits).log_prob(x)
    assert_log_probs(ours, zip_factors, dtype, grid.counts, grid.mean, grid.logits)


@BOTH
def test_zero_inflated_negative_binomial_by_logits_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    x, mean, theta, logits = grid.tensors("x", "mean", "theta", "logits")
    ours = ZeroInflated(NegativeBinomial(mean, theta), logits).log_prob(x)
    points = grid.counts, grid.mean, grid.theta, grid.logits
    assert_log_probs(ours, zinb_factors, dtype, *points)


@BOTH
def test_zero_inflated_negative_binomial_by_probs_is_the_textbooks(dtype):
    grid = GRIDS[dtype]
    x, mean, theta, probs = grid.tensors("x", "mean", "theta", "probs")

    def factors(x, mean, theta, probs):
        return oracles.zero_inflated(x, oracles.negative_binomial(x, mean, theta), probs=probs)

    ours = ZeroInflated.from_probs(NegativeBinomial(mean, theta), probs).log_prob(x)
    assert_log_probs(ours, factors, dtype, grid.counts, grid.mean, grid.theta, grid.probs)


def test_negative_binomial_is_a_poisson_with_a_gamma_rate():
    for x, mean, theta in ((0, 3.0, 0.5), (4, 3.0, 2.0), (20, 7.0, 1.5), (1, 0.1, 40.0)):

        def integrand(u, x=x, mean=mean, theta=theta):
            mp = oracles.mp
            gamma = theta**theta * u ** (theta - 1) * mp.exp(-theta * u) / mp.gamma(theta)
            return mp.exp(sum(oracles.poisson(x, mean * u))) * gamma

        with oracles.mp.workdps(20):
            mixture = float(oracles.mp.log(oracles.mp.quad(integrand, [0, 0.5, 1, 3, 10, 60])))
        ours = NegativeBinomial(tensor(mean), tensor(theta)).log_prob(tensor(x)).item()
        assert ours == pytest.approx(mixture, rel=1e-9)


def test_conversions_agree_with_scipy_and_torch():
    rng = np.random.default_rng(1)
    r, p = rng.uniform(0.1, 20, 50), rng.uniform(0.05, 0.95, 50)
    x = rng.integers(0, 60, 50)
    theirs = scipy.stats.nbinom(r, p)
    ours = NegativeBinomial.from_r_p(tensor(r), tensor(p))
    np.testing.assert_allclose(ours.log_prob(tensor(x)), theirs.logpmf(x), rtol=1e-11)
    np.testing.assert_allclose(ours.mean, theirs.mean(), rtol=1e-12)
    np.testing.assert_allclose(ours.variance, theirs.var(), rtol=1e-12)

    by_probs = {"probs": tensor(1 - p)}
    by_logits = {"logits": tensor(np.log1p(-p) - np.log(p))}
    for probability in (by_probs, by_logits):
        theirs = torch.distributions.NegativeBinomial(tensor(r), **probability)
        ours = NegativeBinomial.from_total_count(tensor(r), **probability)
        assert torch.allclose(ours.log_prob(tensor(x)), theirs.log_prob(tensor(x)), rtol=1e-11)
        assert torch.allclose(ours.mean, theirs.mean, rtol=1e-12)
        assert torch.allclose(ours.variance, theirs.variance, rtol=1e-12)


def test_deseqs_dispersion_is_the_quadratic_part_of_the_variance():
    mean, dispersion = tensor([0.5, 5.0, 40.0]), tensor([0.1, 0.2, 3.0])
    nb = NegativeBinomial.from_dispersion(mean, dispersion)
    assert torch.allclose(nb.variance, mean + dispersion * mean**2, rtol=1e-14)
    assert torch.equal(nb.inverse_dispersion, 1 / dispersion)
    with pytest.raises(ValueError, match="is a Poisson"):
        NegativeBinomial.from_dispersion(mean, tensor([0.1, 0.0, 3.0]))


def test_total_count_needs_just_one_of_probs_and_logits():
    one = torch.ones(())
    for wrong in ({}, {"probs": one / 2, "logits": one}):
        with pytest.raises(ValueError, match="Give one of probs and logits"):
            NegativeBinomial.from_total_count(one, **wrong)


# --------------------------------------------------------------------------------------- limits


def test_zero_inflated_without_dropout_is_its_base():
    x, mean, theta = GRIDS[torch.float64].tensors("x", "mean", "theta")
    nb = NegativeBinomial(mean, theta)
    base = nb.log_prob(x)
    for limit in (
        ZeroInflated(nb, tensor(-torch.inf)),
        ZeroInflated(nb, -torch.inf),
        ZeroInflated.from_probs(nb, tensor(0.0)),
    ):
        assert torch.equal(limit.log_prob(x), base)
        assert torch.equal(limit.mean, nb.mean)
        assert torch.equal(limit.variance, nb.variance)
    # At logits g, log p moves by less than π (1 − p(0)) / p(0), with π < e^g.
    x, nb = tensor([0, 0, 1, 9]), NegativeBinomial(tensor([0.1, 20, 3, 4]), tensor([2, 5, 0.1, 40]))
    for g in (-5.0, -20.0, -60.0):
        difference = ZeroInflated(nb, g).log_prob(x) - nb.log_prob(x)
        assert (difference[:2] >= 0).all()
        assert (difference[2:] <= 0).all()
        assert (difference.abs() <= math.exp(g) / nb.log_prob_zero().exp() + 1e-14).all()


def test_everything_dropped_is_zero_for_certain():
    nb = NegativeBinomial(tensor(2.0), tensor(3.0))
    dropped = ZeroInflated(nb, tensor(torch.inf))
    assert dropped.log_prob(tensor([0.0, 1.0, 7.0])).tolist() == [0, -torch.inf, -torch.inf]
    assert dropped.mean == dropped.variance == 0
    assert (dropped.sample((100,)) == 0).all()


def test_negative_binomial_with_large_theta_is_the_poisson():
    x = tensor(np.arange(40))
    mean = tensor([0.3, 4.0, 25.0])[:, None]
    poisson = Poisson(mean).log_prob(x)
    # log NB = log Poisson + ((x−μ)² − x)/2θ + O(1/θ²)
    slope = ((x - mean) ** 2 - x) / 2
    for theta in (1e5, 1e6, 1e8, 1e12):
        nb = NegativeBinomial(mean, tensor(theta)).log_prob(x)
        rest = nb - poisson - slope / theta
        assert (rest.abs() <= 40**3 / theta**2 + 64 * EPSILON[x.dtype] * 200).all()


def test_large_theta_is_the_poisson_in_float32_too():
    x = torch.arange(40.0)
    mean = torch.tensor([0.3, 4.0, 25.0])[:, None]
    difference = NegativeBinomial(mean, torch.tensor(1e7)).log_prob(x) - Poisson(mean).log_prob(x)
    assert difference.abs().max() < 16 * EPSILON[x.dtype] * 200 + 40**2 / 2e7


def test_negative_binomial_of_mean_zero_is_zero_for_certain():
    for dtype in EPSILON:
        mean = torch.zeros(4, dtype=dtype, requires_grad=True)
        theta = tensor([1e-6, 1.0, 29.0, 1e6], dtype, requires_grad=True)
        nb = NegativeBinomial(mean, theta)
        at_zero = nb.log_prob(torch.zeros(4, dtype=dtype))
        assert (at_zero == 0).all()
        by_mean, by_theta = torch.autograd.grad(at_zero.sum(), (mean, theta))
        assert torch.allclose(by_mean, -torch.ones_like(by_mean))
        assert (by_theta == 0).all()
        for x in (1.0, 3.0, 1e5):
            assert (nb.log_prob(torch.full((4,), x, dtype=dtype)) == -torch.inf).all()
        assert nb.mean.sum() == nb.variance.sum() == nb.sample((10,)).sum() == 0


def test_log_rising_factorial_counts_up_from_theta():
    theta = tensor([1e-3, 1.0, 29.5, 30.5, 1e4])
    product = torch.zeros_like(theta)
    for x in range(20):
        ours = log_rising_factorial(theta, tensor(x))
        assert torch.allclose(ours, product, rtol=1e-13, atol=1e-13)
        product = product + torch.log(theta + x)


# ---------------------------------------------------------------------------------- derivatives


def gradients(log_prob, *parameters):
    return torch.autograd.grad(log_prob.sum(), parameters)


def nb_scales(x, mean, theta):
    """Σ |summand| of ∂ log NB/∂μ and of ∂ log NB/∂θ, as the formula for log NB has them.

    ∂μ: −θ/(θ+μ) and xθ/(μ(θ+μ)). The second goes through σ(log θ − log μ), and an ulp of a
    logarithm as large as 18 is 18 ulp of σ: within the 64 that a derivative gets here.

    ∂θ: −log(1+μ/θ), μ/(θ+μ), −x/(θ+μ), and for x > 0 the derivative of log Γ(x+θ) − log Γ(θ):
    n steps of 1/(θ+i) − 1/(x+θ+i), then log(1 + x/(θ+n)), and two series that begin with 1/2(θ+n).
    """
    both, n_steps = mean + theta, 5
    by_mean = theta / both + x * theta / (both * mean)
    steps = sum(x / ((theta + i) * (x + theta + i)) for i in range(n_steps))
    rising = np.where(x > 0, steps + np.log1p(x / (theta + n_steps)) + 1 / (theta + n_steps), 0)
    return by_mean, rising + np.log1p(mean / theta) + mean / both + x / both


@BOTH
def test_poissons_derivative_is_right_everywhere(dtype):
    grid = SMALL_GRIDS[dtype]
    x, mean = grid.tensors("x", "mean", requires_grad=True)
    (by_mean,) = gradients(Poisson(mean).log_prob(x.detach()), mean)
    truth = oracles.derivatives(oracles.poisson, 1, grid.counts, grid.mean)
    assert_close(by_mean, truth, grid.x / grid.mean + 1, dtype)


@BOTH
def test_negative_binomials_derivatives_are_right_everywhere(dtype):
    grid = SMALL_GRIDS[dtype]
    x, mean, theta = grid.tensors("x", "mean", "theta", requires_grad=True)
    ours = gradients(NegativeBinomial(mean, theta).log_prob(x.detach()), mean, theta)
    points = grid.counts, grid.mean, grid.theta
    scales = nb_scales(grid.x, grid.mean, grid.theta)
    for position, derivative, scale in zip((1, 2), ours, scales, strict=True):
        truth = oracles.derivatives(oracles.negative_binomial, position, *points)
        assert_close(derivative, truth, scale, dtype)


@BOTH
def test_zero_inflated_derivatives_are_right_everywhere(dtype):
    grid = SMALL_GRIDS[dtype]
    x, mean, theta, logits = grid.tensors("x", "mean", "theta", "logits", requires_grad=True)
    zinb = ZeroInflated(NegativeBinomial(mean, theta), logits)
    ours = gradients(zinb.log_prob(x.detach()), mean, theta, logits)

    # With r = P(dropped | x): ∂μ and ∂θ are 1−r times the base's, ∂g is r(1−π) − (1−r)π. Here
    # π, r and their complements are exponentials of logits a, and half an ulp in a is |a|/2 ulp
    # of e^a: 42 for the smallest that float32 holds, 1e-36.
    def share(logits):
        return scipy.special.expit(logits).clip(min=1e-36)

    log_base_zero, zero = -grid.theta * np.log1p(grid.mean / grid.theta), grid.x == 0
    r = np.where(zero, share(grid.logits - log_base_zero), 0)
    not_r = np.where(zero, share(log_base_zero - grid.logits), 1)
    by_mean, by_theta = nb_scales(grid.x, grid.mean, grid.theta)
    by_logits = r * share(-grid.logits) + not_r * share(grid.logits)
    points = grid.counts, grid.mean, grid.theta, grid.logits
    for position, derivative, scale in zip(
        (1, 2, 3), ours, (not_r * by_mean, not_r * by_theta, by_logits), strict=True
    ):
        truth = oracles.derivatives(zinb_factors, position, *points)
        assert_close(derivative, truth, scale, dtype, units=64 + 2 * 42)


def test_autograd_and_finite_differences_agree_at_moderate_points():
    x = tensor([0, 0, 1, 5, 40])
    mean = tensor([0.5, 30, 0.2, 7, 33], requires_grad=True)
    theta = tensor([0.3, 2, 31, 45, 4], requires_grad=True)
    logits = tensor([-3, 0, 0.5, 2, -1], requires_grad=True)

    def log_prob(mean, theta, logits):
        return ZeroInflated(NegativeBinomial(mean, theta), logits).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (mean, theta, logits))


def every_count_distribution(mean, theta, logits):
    poisson, nb = Poisson(mean), NegativeBinomial(mean, theta)
    return [poisson, nb, ZeroInflated(poisson, logits), ZeroInflated(nb, logits)]


@pytest.mark.parametrize("kind", range(4), ids=["poisson", "nb", "zip", "zinb"])
def test_log_prob_and_its_gradient_are_those_of_the_textbooks_formula(kind):
    # Where nothing in that formula cancels: θ up to 100 and moderate logits, in float64.
    rng = np.random.default_rng(0)
    mean, theta, logits = (
        tensor(values, requires_grad=True)
        for values in (10 ** rng.uniform(-2, 2, 400), 10 ** rng.uniform(-1, 2, 400),
                       rng.uniform(-5, 5, 400))
    )  # fmt: skip
    x = torch.poisson(mean.detach() * tensor(rng.gamma(2, 0.5, 400)))
    assert 0.2 < (x == 0).double().mean() < 0.5
    px = every_count_distribution(mean, theta, logits)[kind]
    fast, textbook = px.log_prob(x), px.log_prob_textbook(x)
    assert torch.allclose(fast, textbook, rtol=1e-9, atol=1e-11)
    weight = tensor(rng.normal(size=400))  # so that a gradient is not merely summed
    parameters = mean, theta, logits
    for ours, theirs in zip(
        *(
            torch.autograd.grad((weight * f).sum(), parameters, materialize_grads=True)
            for f in (fast, textbook)
        ),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (30, 1), (1, 7), (4, 30, 7)], ids=str)
@pytest.mark.parametrize("kind", [1, 3], ids=["nb", "zinb"])
def test_the_gradient_by_hand_is_that_of_autograd(kind, shape):
    # For parameters of every shape that broadcasts, with more draws of z than values of x too.
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.rand(4, 30, 7, generator=generator, dtype=torch.float64)
    theta = 0.1 + 50 * torch.rand(shape, generator=generator, dtype=torch.float64)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.poisson(mean[0], generator=generator)
    weight = torch.randn(4, 30, 7, generator=generator, dtype=torch.float64)
    parameters = [p.requires_grad_() for p in (mean, theta, logits)]
    px = every_count_distribution(*parameters)[kind]
    by_hand, plain = px.log_prob(x), CountDistribution.log_prob(px, x)
    assert torch.allclose(by_hand, plain, rtol=1e-12, atol=1e-13)
    for ours, autograds in zip(
        *(
            torch.autograd.grad((weight * f).sum(), parameters, materialize_grads=True)
            for f in (by_hand, plain)
        ),
        strict=True,
    ):
        assert ours.shape == autograds.shape
        assert torch.allclose(ours, autograds, rtol=1e-10, atol=1e-12)


def test_a_second_derivative_is_refused_rather_than_wrong():
    mean = tensor([1.0, 2.0], requires_grad=True)
    log_prob = NegativeBinomial(mean, tensor(2.0)).log_prob(tensor([0.0, 3.0]))
    (by_mean,) = torch.autograd.grad(log_prob.sum(), mean, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        by_mean.sum().backward()


@BOTH
def test_tiny_theta_leaves_the_derivative_finite(dtype):
    # Stirling's series at θ itself would hold 1/θ⁶.
    theta = tensor([1e-6, 1e-9, 1e-12], dtype, requires_grad=True)
    log_prob = NegativeBinomial(torch.ones(3, dtype=dtype), theta).log_prob(tensor(3, dtype))
    (by_theta,) = gradients(log_prob, theta)
    assert torch.allclose(by_theta * theta, torch.ones(3, dtype=dtype), rtol=1e-4)  # p(x) ∝ θ


def test_zero_inflated_derivatives_are_finite_without_dropout():
    logits = torch.full((2,), -torch.inf, requires_grad=True)
    mean = torch.ones(2, requires_grad=True)
    zinb = ZeroInflated(NegativeBinomial(mean, torch.ones(2)), logits)
    for gradient in gradients(zinb.log_prob(torch.tensor([0.0, 3.0])), mean, logits):
        assert gradient.isfinite().all()


# -------------------------------------------------------- sums, moments and samples of the counts

COUNTS = {
    "poisson": (lambda: Poisson(tensor(3.7)), oracles.poisson, (3.7,)),
    "rare poisson": (lambda: Poisson(tensor(0.02)), oracles.poisson, (0.02,)),
    "nb": (
        lambda: NegativeBinomial(tensor(4.0), tensor(1.5)),
        oracles.negative_binomial,
        (4.0, 1.5),
    ),
    "nb, mostly zero": (
        lambda: NegativeBinomial(tensor(0.4), tensor(0.2)),
        oracles.negative_binomial,
        (0.4, 0.2),
    ),
    "nb, large theta": (
        lambda: NegativeBinomial(tensor(9.0), tensor(200.0)),
        oracles.negative_binomial,
        (9.0, 200.0),
    ),
    "zip": (lambda: ZeroInflated(Poisson(tensor(5.0)), -0.5), zip_factors, (5.0, -0.5)),
    "zinb": (
        lambda: ZeroInflated(NegativeBinomial(tensor(6.0), tensor(2.0)), 0.8),
        zinb_factors,
        (6.0, 2.0, 0.8),
    ),
}
EACH_COUNT = pytest.mark.parametrize("name", COUNTS)


@EACH_COUNT
def test_probabilities_sum_to_one_and_moments_are_their_sums(name):
    make, factors, parameters = COUNTS[name]
    ours, x = make(), tensor(np.arange(400))
    p = ours.log_prob(x).exp()
    mean = (p * x).sum()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert ours.mean.item() == pytest.approx(mean.item(), rel=1e-11)
    assert ours.variance.item() == pytest.approx((p * (x - mean) ** 2).sum().item(), rel=1e-11)
    assert ours.stddev.item() == pytest.approx(ours.variance.item() ** 0.5)
    # and the textbook's probabilities have the same moments
    p = np.array([float(oracles.mp.exp(sum(factors(n, *parameters)))) for n in range(400)])
    mean = (p * np.arange(400)).sum()
    assert ours.mean.item() == pytest.approx(mean, rel=1e-11)
    variance = (p * (np.arange(400) - mean) ** 2).sum()
    assert ours.variance.item() == pytest.approx(variance, rel=1e-11)


@EACH_COUNT
def test_the_posterior_mean_of_the_rate_is_what_robbins_identity_says(name):
    """E[λ | x] = (x + 1) p(x + 1) / p(x), with 60 digits (Robbins 1956)."""
    make, factors, parameters = COUNTS[name]
    counts = np.r_[0:40, 100, 399]
    ours = make().posterior_mean(tensor(counts)).numpy()
    p = {int(n): sum(factors(int(n), *parameters)) for n in {*counts, *(counts + 1)}}
    expected = [float((n + 1) * oracles.mp.exp(p[int(n) + 1] - p[int(n)])) for n in counts]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@BOTH
def test_the_posterior_mean_lies_between_mean_and_count_everywhere(dtype):
    grid = Grid(dtype, 400)
    x, mean, theta, logits = (
        tensor(v, dtype) for v in (grid.x, grid.mean, grid.theta, grid.logits)
    )
    base = NegativeBinomial(mean, theta)
    found = base.posterior_mean(x)
    slack = 8 * EPSILON[dtype]
    assert found.isfinite().all()
    assert (found >= torch.minimum(mean, x) * (1 - slack)).all()
    assert (found <= torch.maximum(mean, x) * (1 + slack)).all()
    inflated = ZeroInflated(base, logits).posterior_mean(x)
    assert torch.equal(inflated[x > 0], found[x > 0])  # a count above zero was not dropped
    assert (inflated <= found).all()


@EACH_COUNT
def test_the_mean_of_the_posterior_mean_is_the_mean(name):
    ours, x = COUNTS[name][0](), tensor(np.arange(2000))
    mean = (ours.log_prob(x).exp() * ours.posterior_mean(x)).sum()
    assert mean.item() == pytest.approx(ours.mean.item(), rel=1e-9)


def test_the_posterior_mean_is_that_of_drawn_rates():
    """λ drawn from a point-Gamma, and x from it: the mean λ of those with a certain x."""
    rng = np.random.default_rng(0)
    rate = 3.0 * rng.gamma(0.8, 1 / 0.8, 400_000) * (rng.random(400_000) < 0.7)
    x = rng.poisson(rate)
    p = ZeroInflated.from_probs(NegativeBinomial(tensor(3.0), tensor(0.8)), tensor(0.3))
    for n in (0, 1, 5):
        of = rate[x == n]
        error = of.std() / np.sqrt(len(of))
        assert abs(of.mean() - p.posterior_mean(tensor(n)).item()) < 5 * error


@EACH_COUNT
def test_samples_have_the_right_mean_variance_and_zeros(name):
    ours = COUNTS[name][0]()
    torch.manual_seed(0)
    n = 100_000
    x = ours.sample((n,))
    assert x.shape == (n,)
    assert x.dtype == torch.float64
    assert ours.support.check(x).all()
    # Five standard errors: a right sampler fails at one seed in two million.
    p_zero = ours.log_prob(tensor(0.0)).exp()
    d = x - ours.mean
    for found, expected, variance in (
        (x.mean(), ours.mean, ours.variance),
        ((d**2).mean(), ours.variance, (d**2).var()),
        ((x == 0).double().mean(), p_zero, p_zero * (1 - p_zero)),
    ):
        assert abs(found - expected) < 5 * (variance / n) ** 0.5


def assert_as_often(x, distribution):
    """A chi-square test of counts against ``log_prob``; rare counts are taken together."""
    expected = len(x) * distribution.log_prob(tensor(np.arange(1000))).exp().numpy()
    seen = np.bincount(x, minlength=1000)
    common = expected >= 20
    seen = np.append(seen[common], seen[~common].sum())
    expected = np.append(expected[common], len(x) - expected[common].sum())
    assert scipy.stats.chisquare(seen, expected).pvalue > 1e-5


@EACH_COUNT
def test_samples_come_as_often_as_log_prob_says(name):
    ours = COUNTS[name][0]()
    torch.manual_seed(1)
    assert_as_often(ours.sample((100_000,)).long().numpy(), ours)


def test_negative_binomial_is_what_gamma_poisson_sampling_gives():
    rng = np.random.default_rng(2)
    mean, theta = 4.0, 1.5
    x = rng.poisson(rng.gamma(theta, mean / theta, 200_000))
    assert_as_often(x, NegativeBinomial(tensor(mean), tensor(theta)))


def test_samples_of_batches_keep_their_shapes_and_means():
    mean, theta = tensor([[0.5], [8.0]]), tensor([0.7, 3.0, 50.0])
    torch.manual_seed(3)
    for ours in (
        Poisson(mean.expand(2, 3)),
        NegativeBinomial(mean, theta),
        ZeroInflated(NegativeBinomial(mean, theta), tensor([-2.0, 0.0, 2.0])),
    ):
        x = ours.sample((40_000,))
        assert x.shape == (40_000, 2, 3)
        assert ((x.mean(0) - ours.mean).abs() < 5 * (ours.variance / 40_000).sqrt()).all()
        assert ours.sample().shape == (2, 3)


# --------------------------------------------------------------------------- shapes and refusals


def batches():
    """Distributions of batch shapes (), (G,), (B,G) and (B,1)+(G,), each of every family."""
    rng = np.random.default_rng(4)

    def positive(*shape):
        return tensor(rng.gamma(1, 2, shape))

    for shape in ((), (3,), (4, 3)):
        nb = NegativeBinomial(positive(*shape), positive(*shape))
        yield from (Poisson(positive(*shape)), nb, ZeroInflated(nb, positive(*shape)))
    nb = NegativeBinomial(positive(4, 1), positive(3))
    yield from (nb, ZeroInflated(nb, positive(3)), ZeroInflated(Poisson(positive(3)), nb.mean))


VALUES = {
    "mixed": lambda *shape: torch.randint(0, 3, shape).double(),
    "all zero": lambda *shape: torch.zeros(shape, dtype=torch.float64),
    "all positive": lambda *shape: torch.randint(1, 9, shape).double(),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 3), (2, 4, 3), (0, 4, 3), (2, 0, 3)])
def test_values_broadcast_with_the_batch(kind, shape):
    torch.manual_seed(5)
    value = VALUES[kind](*shape)
    for ours in batches():
        try:
            expected = torch.broadcast_shapes(ours.batch_shape, shape)
        except RuntimeError:
            with pytest.raises(ValueError):
                ours.log_prob(value)
            continue
        log_prob = ours.log_prob(value)
        assert log_prob.shape == expected
        one_by_one = [
            ours.expand(expected).take(torch.tensor([i])).log_prob(x.reshape(1))
            for i, x in enumerate(value.expand(expected).reshape(-1))
        ]
        if one_by_one:
            assert torch.allclose(log_prob.reshape(-1), torch.cat(one_by_one), rtol=1e-13)


def test_an_empty_batch_is_no_problem():
    nothing = torch.zeros(0, 3)
    ours = ZeroInflated(NegativeBinomial(nothing, torch.ones(3)), torch.zeros(3))
    assert ours.log_prob(nothing).shape == (0, 3)
    assert ours.sample().shape == (0, 3)


def test_expand_and_take_keep_each_parameter_in_its_place():
    mean, theta, logits = tensor([[1.0], [2.0]]), tensor([3.0, 4.0, 5.0]), tensor([-1.0, 0.0, 1.0])
    zinb = ZeroInflated(NegativeBinomial(mean, theta), logits)
    assert zinb.batch_shape == zinb.base.batch_shape == (2, 3)
    wide = zinb.expand((7, 2, 3))
    assert wide.batch_shape == wide.base.batch_shape == wide.mean.shape == (7, 2, 3)
    assert torch.equal(wide.mean[4], zinb.mean)
    taken = zinb.take(torch.tensor([5, 1]))
    assert taken.batch_shape == (2,)
    assert torch.equal(taken.logits, tensor([1.0, 0.0]))
    assert torch.equal(taken.base.mean, tensor([2.0, 1.0]))
    assert torch.equal(taken.base.inverse_dispersion, tensor([5.0, 4.0]))


def test_the_answer_is_as_precise_as_the_parameters():
    x = torch.tensor([7, 0])
    mean, theta = tensor([1.7, 2.3]), tensor([2.1, 0.3])
    for ours, single in (
        (NegativeBinomial(mean, theta), NegativeBinomial(mean.float(), theta.float())),
        (Poisson(mean), Poisson(mean.float())),
        (ZeroInflated(Poisson(mean), -1.3), ZeroInflated(Poisson(mean.float()), -1.3)),
    ):
        truth = ours.log_prob(x.double())
        assert torch.equal(ours.log_prob(x), truth)
        assert torch.equal(ours.log_prob(x.float()), truth)
        for value in (x, x.float(), x.double()):
            assert single.log_prob(value).dtype == torch.float32
    with_number = ZeroInflated(Poisson(mean), -1.3).log_prob(x)
    assert torch.equal(with_number, ZeroInflated(Poisson(mean), tensor(-1.3)).log_prob(x))


@pytest.mark.parametrize("value", [-1.0, 0.5, 2.000001, math.nan])
def test_values_that_are_no_counts_are_refused(value):
    nb = NegativeBinomial(torch.ones(3), torch.ones(3))
    for ours in (nb, Poisson(torch.ones(3)), ZeroInflated(nb, torch.zeros(3))):
        with pytest.raises(ValueError, match="support"):
            ours.log_prob(torch.tensor([0.0, value, 1.0]))


def test_parameters_out_of_range_are_refused():
    one = torch.ones(2)
    wrong = torch.tensor([1.0, -1.0])
    for make in (
        lambda: Poisson(wrong),
        lambda: NegativeBinomial(wrong, one),
        lambda: NegativeBinomial(one, wrong),
        lambda: NegativeBinomial(one, torch.tensor([1.0, 0.0])),
        lambda: ZeroInflated(Poisson(one), torch.tensor([0.0, math.nan])),
        lambda: ZeroInflated.from_probs(Poisson(one), torch.tensor([0.5, 1.5])),
        lambda: ContinuousBernoulli(torch.tensor([0.0, math.nan])),
        lambda: ContinuousBernoulli.from_probs(torch.tensor([0.5, 0.0])),
        lambda: ContinuousBernoulli.from_probs(torch.tensor([0.5, 1.0])),
    ):
        with pytest.raises(ValueError):
            make()


# ------------------------------------------------------------------------- continuous Bernoulli

# Both sides of 0, of the change from series to closed form at ¼, and far out.
LOGITS = [0.0, 1e-30, 1e-12, 1e-5, 0.01, 0.2, 0.2499, 0.25, 0.2501, 0.3, 1.0, 5.0, 17.0, 30.0]
LOGITS = np.array([*LOGITS, 80.0, 500.0, 1e4])
LOGITS = np.concatenate([LOGITS, -LOGITS, np.random.default_rng(6).uniform(-80, 80, 60)])
VALUES_01 = np.array([0.0, 1e-6, 0.3, 0.5, 0.99, 1.0])


def logits_and_values(dtype):
    """Every pair, as numbers that the dtype can hold."""
    pairs = np.array([(x, η) for x in VALUES_01 for η in LOGITS])
    return tensor(pairs, dtype).double().numpy().T


@BOTH
def test_continuous_bernoulli_by_logits_is_the_textbooks(dtype):
    x, logits = logits_and_values(dtype)
    ours = ContinuousBernoulli(tensor(logits, dtype)).log_prob(tensor(x, dtype))
    truth, scale = oracles.values_and_scales(oracles.continuous_bernoulli, x, logits)
    assert_close(ours, truth, scale + series_rest(logits, 0), dtype, units=16)


@BOTH
def test_continuous_bernoulli_by_probs_is_the_textbooks(dtype):
    rng = np.random.default_rng(7)
    lam = [0.5, 0.5 + 1e-9, 0.5 - 1e-5, 0.4999, 0.44, 0.56, 1e-30, 1 - 1e-7]
    lam = tensor(np.concatenate([lam, rng.uniform(0, 1, 100)]), dtype).double().numpy()
    pairs = np.array([(x, λ) for x in VALUES_01 for λ in lam])
    x, lam = tensor(pairs, dtype).double().numpy().T
    ours = ContinuousBernoulli.from_probs(tensor(lam, dtype)).log_prob(tensor(x, dtype))
    assert_log_probs(ours, oracles.continuous_bernoulli_of_probs, dtype, x, lam)


def log_normalizer_scale(logits):
    """Σ |summand| of ∂ log((e^η − 1)/η)/∂η: 1, 1/(e^|η| − 1) and 1/|η|, or ½ and η/12."""
    a = np.abs(logits)
    with np.errstate(all="ignore"):
        closed = 1 + 1 / np.expm1(a) + 1 / a
    return np.where(a < 0.25, 0.5 + a / 12, closed)


def series_rest(logits, n_derivatives):
    """The first term that the series for log((e^η − 1)/η) leaves out, in units of 16 ε.

    It is B₁₀/(10·10!) η¹⁰ = 2.1e-9 η¹⁰; at |η| = ¼ 2e-15, and its derivatives are 8e-14 and 3e-12.
    """
    η = np.abs(logits)
    factor = math.perm(10, n_derivatives) * 5 / 66 / (10 * math.factorial(10))
    rest = factor * η ** (10 - n_derivatives)
    return np.where(η < 0.25, rest, 0) / (16 * EPSILON[torch.float64])


@BOTH
def test_continuous_bernoullis_derivative_is_right_everywhere(dtype):
    x, logits = logits_and_values(dtype)
    η = tensor(logits, dtype, requires_grad=True)
    (ours,) = gradients(ContinuousBernoulli(η).log_prob(tensor(x, dtype)), η)
    truth = oracles.derivatives(oracles.continuous_bernoulli, 1, x, logits)
    scale = np.abs(x) + log_normalizer_scale(logits) + series_rest(logits, 1)
    assert_close(ours, truth, scale, dtype, units=16)


@BOTH
def test_continuous_bernoullis_derivative_by_probs_is_right_at_one_half(dtype):
    x = tensor([0.0, 0.3, 1.0], dtype)
    lam = torch.full((3,), 0.5, dtype=dtype, requires_grad=True)
    (ours,) = gradients(ContinuousBernoulli.from_probs(lam).log_prob(x), lam)
    assert torch.allclose(ours, 4 * (x - 0.5), rtol=0, atol=16 * EPSILON[dtype])


@BOTH
def test_continuous_bernoullis_moments_are_the_integrals(dtype):
    logits = tensor([0, 1e-9, 0.1, -0.2499, 0.25, -0.26, 2, -9, 40, -80], dtype)
    ours = ContinuousBernoulli(logits)
    for η, mean, variance in zip(logits.tolist(), ours.mean, ours.variance, strict=True):

        def density(x, η=η):
            return oracles.mp.exp(sum(oracles.continuous_bernoulli(x, η)))

        with oracles.mp.workdps(25):
            quad, near_ends = oracles.mp.quad, [0, 0.05, 0.5, 0.95, 1]
            total = quad(density, near_ends)
            m = quad(lambda x: x * density(x), near_ends)
            v = quad(lambda x, m=m: (x - m) ** 2 * density(x), near_ends)
        assert float(total) == pytest.approx(1, abs=1e-12)
        # The closed forms subtract numbers near 1/η and 1/η².
        a, unit = max(abs(η), 0.25), 16 * EPSILON[dtype]
        tolerance = unit * (1 + 1 / a + series_rest(η, 1))
        assert mean.item() == pytest.approx(float(m), rel=0, abs=tolerance)
        tolerance = unit * (1 / a**2 + series_rest(η, 2))
        assert variance.item() == pytest.approx(float(v), rel=0, abs=tolerance)


def test_continuous_bernoullis_density_integrates_to_one():
    for η in (0.0, 0.2, -0.3, 4.0, -25.0, 80.0):
        ours = ContinuousBernoulli(tensor(η))
        area, _ = scipy.integrate.quad(
            lambda x, ours=ours: ours.log_prob(tensor(x)).exp().item(),
            0,
            1,
            points=[0.05, 0.95],
            epsabs=1e-12,
        )
        assert area == pytest.approx(1, abs=1e-10)


@BOTH
def test_continuous_bernoullis_moments_have_finite_derivatives(dtype):
    η = tensor([-1e4, -800, -90, -1, 0, 1, 90, 800, 1e4], dtype, requires_grad=True)
    ours = ContinuousBernoulli(η)
    (by_mean,) = gradients(ours.mean, η)
    assert torch.allclose(by_mean, ours.variance, rtol=1e-3, atol=4 * EPSILON[dtype])
    (by_variance,) = gradients(ours.variance, η)
    assert by_variance.isfinite().all()


@pytest.mark.parametrize("η", [0.0, 1e-7, 0.7, -3.0, 25.0, -80.0])
def test_continuous_bernoullis_samples_follow_its_distribution_function(η):
    torch.manual_seed(8)
    ours = ContinuousBernoulli(tensor(η))
    x = ours.sample((20_000,))
    assert ours.log_prob(x).isfinite().all()  # none outside [0, 1]

    def distribution_function(x):
        return x if abs(η) < 1e-6 else np.expm1(η * x) / np.expm1(η)

    assert scipy.stats.kstest(x.numpy(), distribution_function).pvalue > 1e-5
    assert abs(x.mean() - ours.mean) < 5 * (ours.variance / 20_000).sqrt()
    assert ours.sample((2, 3)).shape == (2, 3)


def test_torchs_continuous_bernoulli_agrees_in_the_middle():
    logits = tensor([-9, -3, -0.5, 0.1, 0.3, 2, 8])[:, None]
    x = tensor(VALUES_01)
    theirs = torch.distributions.ContinuousBernoulli(logits=logits, lims=(0.49999, 0.50001))
    ours = ContinuousBernoulli(logits)
    assert torch.allclose(ours.log_prob(x), theirs.log_prob(x), rtol=1e-9, atol=1e-9)
    assert torch.allclose(ours.mean, theirs.mean, rtol=1e-8)
    assert torch.allclose(ours.variance, theirs.variance, rtol=1e-6)


def test_ours_is_right_where_torchs_is_clamped():
    logits = torch.tensor([17.0, 30.0, -17.0, -30.0])
    x = torch.tensor([1.0, 1.0, 0.0, 0.0])
    truth = torch.tensor([17.0, 30.0, 17.0, 30.0]).log()  # η e^η / (e^η − 1), but for 4e-8
    theirs = torch.distributions.ContinuousBernoulli(logits=logits).log_prob(x)
    assert torch.allclose(ContinuousBernoulli(logits).log_prob(x), truth, rtol=1e-5)
    assert (theirs - truth).abs().min() > 0.05  # once torch is right, ours can go


def test_continuous_bernoulli_refuses_values_outside_the_unit_interval():
    for value in (-1e-6, 1.001, math.nan):
        with pytest.raises(ValueError, match="support"):
            ContinuousBernoulli(torch.zeros(())).log_prob(torch.tensor(value))
