"""Exercises of lesson 03: a gradient through dice."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception
from .lesson_02 import kl_terms

__all__ = ["EXERCISES"]


# 03.1: standard deviation from a log-variance


def draw_noise(rng: np.random.Generator) -> list[dict]:
    """One draw, then cells × dimensions in both precisions."""
    one = np.ones((1, 1))
    cases = [{"noise": one, "mean": 0 * one, "log_var": -2.0 * one}]
    for dtype in (np.float64, np.float32):
        noise, mean = rng.standard_normal((30, 4)), rng.normal(0, 2, (30, 4))
        case = {"noise": noise, "mean": mean, "log_var": rng.uniform(-6, 3, (30, 4))}
        cases.append({name: value.astype(dtype) for name, value in case.items()})
    return cases


def drawn(noise, mean, log_var):
    """z as the quantile of N(mean, var) at the noise's level in N(0, 1), and its slope."""
    from scipy import stats

    noise, mean, log_var = (np.asarray(v, dtype=float) for v in (noise, mean, log_var))

    def quantile(log_var):
        below = stats.norm.cdf(-np.abs(noise))  # in the lower tail no digits are lost
        return -np.sign(noise) * stats.norm.ppf(below, scale=np.sqrt(np.exp(log_var)))

    slope = (quantile(log_var + 1e-4) - quantile(log_var - 1e-4)) / 2e-4
    return mean + quantile(log_var), slope


def drawn_with(scale, slope):
    """The draw and its slope, with the noise multiplied by another number."""

    def wrong(noise, mean, log_var):
        noise, mean, log_var = (np.asarray(v, dtype=float) for v in (noise, mean, log_var))
        return mean + scale(log_var) * noise, slope(log_var) * noise

    return wrong


# 03.2 and 03.4: estimators, judged by mean and variance. f(z) = constant − ½ (x − w·z)²

N_CELLS = 100_000  # as many as calls._estimates has
# Logarithms of variances and means have one tolerance, 0.07. A logarithm is off by 0.013 at most,
# and so is a mean, as the largest variance is 17: 0.07 is 5.3 of these. (24 numbers of 3 cases: a
# right answer fails once in 300,000 seeds.) The means are so large that a bias of 2 % is seen.
TOLERANCE, LARGEST = 0.07, 17.0


def reported(variances, means, most=0.0):
    """What calls._estimates reports for estimators with these moments."""
    known = [np.sqrt(v / N_CELLS) < 0.02 for v in variances]
    means = [np.where(k, m, np.nan) for k, m in zip(known, means, strict=True)]
    return *(np.log(np.maximum(v, most)) for v in variances), *means


def nodes(mean, std):
    """Nodes ε of the noise, their weights (exact up to polynomials of degree 19), and z there."""
    one, weight = np.polynomial.hermite_e.hermegauss(10)
    ε = np.stack(np.meshgrid(*[one] * len(mean), indexing="ij"), -1).reshape(-1, len(mean))
    weights = np.stack(np.meshgrid(*[weight / weight.sum()] * len(mean)), -1)
    return ε, weights.reshape(-1, len(mean)).prod(1), mean + std * ε


def f_of(z, x, w, constant):
    return constant - 0.5 * (x - z @ w) ** 2


def moments_of_one_draw(x, w, constant, mean, std, estimator="pathwise"):
    """Mean and variance of a single draw's estimates: of the gradient in m, then of that in s."""
    ε, weight, z = nodes(mean, std if estimator != "variance" else np.sqrt(std))
    if estimator == "score":
        f = f_of(z, x, w, constant)[:, None]
        estimates = f * ε / std, f * (ε**2 - 1) / std
    else:
        slope = (x - z @ w)[:, None] * w
        estimates = slope, slope * ε / (2 * np.sqrt(std) if estimator == "variance" else 1)
    means = [weight @ g for g in estimates]
    variances = [weight @ (g - m) ** 2 for g, m in zip(estimates, means, strict=True)]
    return np.stack(means), np.stack(variances)


def draw_pathwise(rng: np.random.Generator) -> list[dict]:
    """One latent dimension and one draw, then more of both.

    x − w·m is about one standard deviation of w·z: farther out the gradient in std drowns in noise,
    closer in that in mean.
    """
    one = np.ones(1)
    cases = [{"x": 1.8, "w": 1.8 * one, "constant": -3.0, "mean": 0 * one, "std": 0.5 * one}]
    cases[0]["n_samples"] = 1
    for n_latent, n_samples in ((2, 8), (3, 16)):
        case = {"w": rng.choice([-1, 1], n_latent) * rng.uniform(0.6, 1.2, n_latent)}
        case |= {"mean": rng.normal(0, 0.5, n_latent), "std": rng.uniform(0.5, 1.2, n_latent)}
        away = rng.uniform(0.8, 1.2) * np.linalg.norm(case["w"] * case["std"])
        case |= {"x": case["w"] @ case["mean"] + away, "constant": -60.0}
        scale = (moments_of_one_draw(**case)[1].max() / n_samples / LARGEST) ** 0.25
        case |= {"x": case["x"] / scale, "w": case["w"] / scale, "n_samples": n_samples}
        cases.append(case)
    return [{**case, "seed": int(rng.integers(2**31))} for case in cases]


def pathwise(n_samples, seed, std, w, mean, x, constant):
    """The gradients of E_q[f] = constant − ½ ((x − w·m)² + Σ w² s²), and the variance of a mean
    over draws.
    """
    _, variance = moments_of_one_draw(x, w, constant, mean, std)
    return reported(variance / n_samples, ((x - w @ mean) * w, -(w**2) * std))


def pathwise_with(change=lambda m, v, n: (m, v / n), estimator="pathwise"):
    def wrong(n_samples, seed, **case):
        means, variances = change(*moments_of_one_draw(**case, estimator=estimator), n_samples)
        return reported(variances, means)

    return wrong


# 03.3: the score function


def draw_score(rng: np.random.Generator) -> list[dict]:
    """One draw, then 20 in three dimensions, in both precisions."""
    one = np.ones(1)
    cases = [{"f_z": 2 * one, "z": 2 * np.ones((1, 1)), "mean": one, "std": 0.5 * one}]
    for dtype in (np.float64, np.float32):
        mean, std = rng.normal(0, 1, 3), 10 ** rng.uniform(-0.7, 0.5, 3)
        z = mean + std * rng.standard_normal((20, 3))
        case = {"f_z": rng.normal(-3, 2, 20), "z": z, "mean": mean, "std": std}
        cases.append({name: value.astype(dtype) for name, value in case.items()})
    return cases


def score(f_z, z, mean, std):
    """f times the slopes of scipy's log-density, by Richardson extrapolation."""
    from scipy import stats

    f_z, z, mean, std = (np.asarray(v, dtype=float) for v in (f_z, z, mean, std))

    def slope(log_q, at, h):
        def central(h):
            return (log_q(at + h) - log_q(at - h)) / (2 * h)

        return (4 * central(h) - central(2 * h)) / 3

    in_mean = slope(lambda m: stats.norm.logpdf(z, m, std), mean, 1e-3 * std)
    in_std = slope(lambda s: stats.norm.logpdf(z, mean, s), std, 1e-3 * std)
    return f_z[:, None] * in_mean, f_z[:, None] * in_std


def score_with(in_mean, in_std):
    def wrong(f_z, z, mean, std):
        f_z, z, mean, std = (np.asarray(v, dtype=float) for v in (f_z, z, mean, std))
        return f_z[:, None] * in_mean(z - mean, std), f_z[:, None] * in_std(z - mean, std)

    return wrong


# 03.4: a baseline


def covariance_moments(n_samples, x, w, constant, mean, std):
    """Covariance of f and the score per dimension, E[(f − Ef)² score²], and both variances."""
    ε, weight, z = nodes(mean, std)
    f = f_of(z, x, w, constant)
    centred, scores = (f - weight @ f)[:, None], ε / std
    return (
        weight @ (centred * scores),
        weight @ (centred * scores) ** 2,
        weight @ centred**2,
        weight @ scores**2,
    )


def variance_with_baseline(n_samples, **case):
    """Variance of Σ (f_i − f̄) score_i / (n − 1), the unbiased sample covariance of n pairs."""
    n, (cov, fourth, of_f, of_score) = n_samples, covariance_moments(n_samples, **case)
    return (fourth - cov**2) / n + (of_f * of_score + cov**2) / (n * (n - 1))


def draw_black_boxes(rng: np.random.Generator) -> list[dict]:
    """One dimension, then two and three; the limit of the variance is LARGEST."""
    one = np.ones(1)
    cases = [{"x": 2.0, "w": one, "constant": -100.0, "mean": 0 * one, "std": one, "n_samples": 4}]
    for n_latent, n_samples in ((2, 16), (3, 32)):
        case = {"x": rng.uniform(2, 4), "w": rng.uniform(0.5, 1.5, n_latent)}
        case |= {"constant": rng.uniform(-400, -100), "mean": rng.normal(0, 0.2, n_latent)}
        cases.append({**case, "std": rng.uniform(0.4, 0.8, n_latent), "n_samples": n_samples})
    for case in cases:
        # the constant needs no scale
        scale = (2 * variance_with_baseline(**case).max() / LARGEST) ** 0.25
        case["x"], case["w"] = case["x"] / scale, case["w"] / scale
        case["most"] = 2 * variance_with_baseline(**case)
        case["spread"] = 50.0  # each cell has its own level, which a baseline of all cells misses
        case["seed"] = int(rng.integers(2**31))
    return cases


def with_baseline(x, w, mean, most, **case):
    return reported([most], [(x - w @ mean) * w], most)


def baseline_with(change):
    """An estimator with the mean and variance that ``change(case, n_samples, moments)`` gives.

    The variance, a parabola in f's constant, is averaged over the cells' constants. The mean does
    not depend on them.
    """

    def wrong(seed, most, spread, **case):
        at, weights = np.polynomial.legendre.leggauss(3)
        total = 0.0
        for u, weight in zip((1 + at) / 2, weights / 2, strict=True):
            there = case | {"constant": case["constant"] + spread * u}
            mean, variance = change(there, there["n_samples"], covariance_moments(**there))
            total = total + weight * variance
        return reported([total], [mean], most)

    return wrong


def constant_left(case, n, moments, share):
    """Mean and variance if the baseline is the sum of the other n − 1 values, divided by n: a
    share of E[f] stays in the weights.
    """
    ε, weight, z = nodes(case["mean"], case["std"])
    level = weight @ f_of(z, case["x"], case["w"], case["constant"])
    third = weight @ (
        (f_of(z, case["x"], case["w"], case["constant"]) - level)[:, None] * (ε / case["std"]) ** 2
    )
    cov, fourth, of_f, of_score = moments
    # weights are a = f − Ef − Σ_{j≠i} (f_j − Ef)/n + share·Ef
    own = fourth - cov**2 + 2 * share * level * third + (share * level) ** 2 * of_score
    pairs = (n - 1) * (of_f * of_score + cov**2) / n**2
    return cov, (own + pairs) / n


def no_baseline(case, n, moments):
    means, variances = moments_of_one_draw(
        **{k: v for k, v in case.items() if k != "n_samples"}, estimator="score"
    )
    return means[0], variances[0] / n


def of_all_cells(seed, most, spread, **case):
    """The level of all cells together as baseline: E[f] and half the spread are subtracted."""
    _, weight, z = nodes(case["mean"], case["std"])
    level = weight @ f_of(z, case["x"], case["w"], 0.0)
    case |= {"constant": -level - spread / 2}
    return baseline_with(no_baseline)(seed=seed, most=most, spread=spread, **case)


# 03.5: AEVB


def draw_minibatches(rng: np.random.Generator) -> list[dict]:
    """One cell and one gene, then several; the last input is the weight of the gradient's call.

    There are two hidden units per latent dimension, so that all weights fit into one array. Its
    rows are the encoder's, those of W2 transposed, those of W1, and b1.
    """
    cases = []
    for n_cells, n_genes, n_latent, n_draws in ((1, 1, 1, 1), (3, 4, 2, 1), (6, 5, 3, 4)):
        encoder, x = (
            rng.normal(0, 0.4, (n_genes, 2 * n_latent)),
            rng.normal(0, 1, (n_cells, n_genes)),
        )
        if n_genes == 1:
            encoder, x = np.array([[0.8, -1.0]]), np.array([[1.5]])  # a KL of 1 nat
        decoder = rng.normal(0, 1, (n_genes + n_latent + 1, 2 * n_latent))
        case = {
            "weights": np.concatenate([encoder, decoder]),
            "n_genes": n_genes,
            "x": x,
            "noise": rng.standard_normal((n_draws, n_cells, n_latent)),
            "sigma": float(rng.uniform(0.5, 1.5)),
            "weight": np.array(1.0),
        }
        cases.append(case)
    return cases


def bound_of_minibatch(
    weights, n_genes, x, noise, sigma, weight, drawn_from=None, decoded_by=None, power=0.5,
    kl_power=0.5, kl_of=np.sum, genes=np.sum, of_cells=np.mean, of_draws=np.mean, sign=-1.0,
    swapped=False,
):  # fmt: skip
    """The bound by scipy's densities; each option puts a mistake into one term."""
    from scipy import stats

    def m_and_v(weights):
        halves = np.split(x @ weights[:n_genes], 2, axis=1)
        return halves[::-1] if swapped else halves

    m, v = m_and_v(weights)
    at, scale = m_and_v(weights if drawn_from is None else drawn_from)
    decoder = weights if decoded_by is None else decoded_by
    W2, W1, b1 = decoder[n_genes : 2 * n_genes].T, decoder[2 * n_genes : -1], decoder[-1]
    hidden = np.tanh((at + np.exp(power * scale) * noise) @ W1 + b1)
    values = of_draws(genes(stats.norm.logpdf(x, hidden @ W2, sigma), axis=-1), axis=0)
    bounds = values + sign * kl_of(kl_terms(m, np.exp(kl_power * v)), axis=-1)
    return np.asarray(of_cells(bounds))


def with_gradient(fixed=None, **mistake):
    """What the call "gradient" finds: the bound, and its slopes in the weights.

    ``fixed`` names the use of the weights that no gradient goes through.
    """

    def both(**case):
        options = mistake | ({fixed: case["weights"]} if fixed else {})
        gradient, h = np.zeros_like(case["weights"]), 1e-3
        for at in np.ndindex(gradient.shape):

            def moved(k, at=at):
                weights = case["weights"].copy()
                weights[at] += k * h
                return bound_of_minibatch(**case | {"weights": weights}, **options)

            slope = 8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))
            wider = 8 * (moved(2) - moved(-2)) - (moved(4) - moved(-4))
            gradient[at] = (16 * slope / 12 - wider / 24) / (15 * h)
        return bound_of_minibatch(**case, **options), gradient

    return both


# 03.6: what is estimated if z is drawn twice


def draw_cells(rng: np.random.Generator) -> list[dict]:
    """One cell whose q is the posterior, then 30 with a q of their own."""
    one, half = np.ones(1), 0.5 * np.ones(1)
    cases = [{"x": one, "sigma": 1.0, "mean": half, "std": np.sqrt(half)}]
    for sigma in rng.uniform(0.4, 1.5, 2):
        x = rng.normal(0, 1.5, 30)
        mean, std = x / (1 + sigma**2) + rng.normal(0, 0.2, 30), rng.uniform(0.2, 1, 30)
        cases.append({"x": x, "sigma": float(sigma), "mean": mean, "std": std})
    return cases


def by_trapezoids(x, sigma, mean, std):
    """log ∫ q(z) p(x | z) dz."""
    from scipy import special, stats

    ε = np.linspace(-15, 15, 6001)
    z = mean[:, None] + std[:, None] * ε
    log_f = stats.norm.logpdf(ε) + stats.norm.logpdf(x[:, None], z, sigma)
    return special.logsumexp(log_f, axis=1) + np.log(ε[1] - ε[0])


def log_normal(x, mean, std):
    from scipy import stats

    return stats.norm.logpdf(x, mean, std)


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="03.1",
            title="A bug hunt: the scale of a Dense layer",
            points=2,
            draw=draw_noise,
            oracle=drawn,
            call="slope",
            rtol=1e-6,  # the oracle's slope is good to 1e-8
            verified="Draws, and their slopes in log_var, agree with quantiles of scipy's normal "
            "distribution at 241 points.",
            misconceptions=(
                Misconception(
                    "variance for standard deviation",
                    drawn_with(np.exp, np.exp),
                    "This is the code as it was published: your noise is multiplied by the "
                    "variance. What is the standard deviation, if its square is exp(log_var)?",
                ),
                Misconception(
                    "the log-variance itself",
                    drawn_with(lambda v: v, lambda v: np.ones_like(v)),
                    "You multiply the noise by log_var itself. A standard deviation is positive.",
                ),
                Misconception(
                    "root of the log-variance",
                    drawn_with(np.sqrt, lambda v: 0.5 / np.sqrt(v)),
                    "You took the square root of log_var itself, which may be negative. Of which "
                    "quantity is the standard deviation the root?",
                ),
                Misconception(
                    "no gradient in the standard deviation",
                    drawn_with(lambda v: np.exp(v / 2), lambda v: np.full_like(v, np.nan)),
                    "The draws are right, but no gradient flows back to log_var. Is there a "
                    "no_grad, a detach or a sample in your code?",
                ),
            ),
        ),
        Exercise(
            name="03.2",
            title="A pathwise estimator of your own",
            points=3,
            draw=draw_pathwise,
            oracle=pathwise,
            call="estimates",
            rtol=0.0,
            atol=TOLERANCE,
            rtol32=0.0,
            seconds=20.0,
            results=(
                "log variance of the gradient in mean",
                "log variance of the gradient in std",
                "mean of the gradient in mean",
                "mean of the gradient in std",
            ),
            verified="For 100,000 equal cells, in three settings, the mean of your gradients is "
            "the derivative of the closed form, and their variance falls with the draws "
            "as it should.",
            misconceptions=(
                Misconception(
                    "score function",
                    pathwise_with(estimator="score"),
                    "Your estimator has no bias, but its variance is that of the score function. "
                    "Does the gradient go through f, as the exercise asks?",
                ),
                Misconception(
                    "results swapped",
                    pathwise_with(lambda m, v, n: (m[::-1], v[::-1] / n)),
                    "Both gradients are right, in the other order: first the one in mean, then the "
                    "one in std.",
                ),
                Misconception(
                    "summed over draws",
                    pathwise_with(lambda m, v, n: (m * n, v * n)),
                    "Your gradients are n_samples times too large.",
                ),
                Misconception(
                    "averaged over cells",
                    pathwise_with(lambda m, v, n: (m / N_CELLS, v / n / N_CELLS**2)),
                    "Your gradients are too small by the number of cells. Each cell's own gradient "
                    "is asked for: over which dimension may you average, and over which only sum?",
                ),
                Misconception(
                    "one draw for each cell",
                    pathwise_with(lambda m, v, n: (m, v)),
                    "The means are right, but the variance does not fall with n_samples. How many "
                    "different ε does each cell get?",
                ),
                Misconception(
                    "variance for standard deviation",
                    pathwise_with(estimator="variance"),
                    "Your z varies by the square root of std: you treat std as a variance.",
                ),
            ),
        ),
        Exercise(
            name="03.3",
            title="The score-function estimator",
            points=3,
            draw=draw_score,
            oracle=score,
            returns="tensor",
            results=("the estimate in mean", "the estimate in std"),
            rtol=1e-6,
            verified="Agrees with f times numerical slopes of scipy's log-density for 41 draws.",
            misconceptions=(
                Misconception(
                    "slope in z",
                    score_with(lambda d, s: -d / s**2, lambda d, s: (d**2 / s**2 - 1) / s),
                    "The sign of the first result is wrong. Is it the slope of log q in z, or in "
                    "the mean?",
                ),
                Misconception(
                    "the constant has no slope",
                    score_with(lambda d, s: d / s**2, lambda d, s: d**2 / s**3),
                    "The first result is right. In the second a term is missing: the factor in "
                    "front of the exponential of a normal density depends on s too.",
                ),
                Misconception(
                    "standard deviation for variance",
                    score_with(lambda d, s: d / s, lambda d, s: d**2 / s**2 - 1),
                    "Almost: count the powers of s. In what unit is a slope of log q in the mean, "
                    "if z and s are in metres?",
                ),
                Misconception(
                    "slope in the variance",
                    score_with(lambda d, s: d / s**2, lambda d, s: (d**2 / s**2 - 1) / (2 * s**2)),
                    "The first result is right. The second is the slope in the variance s²; the "
                    "slope in s is asked for.",
                ),
                Misconception(
                    "results swapped",
                    lambda **case: score(**case)[::-1],
                    "Both results are right, in the other order: first the one for mean, then the "
                    "one for std.",
                ),
                Misconception(
                    "slope in the logarithm of s",
                    score_with(lambda d, s: d / s**2, lambda d, s: d**2 / s**2 - 1),
                    "The first result is right. The second is the slope in log s; the slope in s "
                    "is asked for.",
                ),
                Misconception(
                    "a baseline",
                    lambda f_z, **case: score(np.asarray(f_z) - np.mean(f_z), **case),
                    "You subtract the mean of f_z. Here f(z) itself is asked for; section 4 has "
                    "more on what may be subtracted.",
                ),
                Misconception(
                    "f left out",
                    lambda f_z, **case: score(np.ones_like(f_z), **case),
                    "This is the score alone. What is averaged in the last line of the derivation?",
                ),
            ),
        ),
        Exercise(
            name="03.4",
            title="Only values: an estimator with a baseline",
            points=3,
            draw=draw_black_boxes,
            oracle=with_baseline,
            call="estimates",
            rtol=0.0,
            atol=TOLERANCE,
            rtol32=0.0,
            seconds=20.0,
            # Not at_most: a mistake with a larger variance would then fit every other one.
            results=(
                "log variance of the gradient (the limit, if it is lower)",
                "mean of the gradient",
            ),
            verified="For 100,000 cells of different levels, in three settings, your gradients "
            "have no bias, and the level of f does not add to their variance.",
            misconceptions=(
                Misconception(
                    "the mean over draws and cells",
                    of_all_cells,
                    "There is no bias. But your baseline is the same number for all cells, and "
                    "each cell has its own level. Over which dimension of the values may you "
                    "average?",
                ),
                Misconception(
                    "no baseline",
                    baseline_with(no_baseline),
                    "There is no bias. But f is about −50 or −300 whatever z is, and every score "
                    "is multiplied by that. What could you subtract from f without changing the "
                    "mean of the gradient?",
                ),
                Misconception(
                    "a draw in its own baseline",
                    baseline_with(
                        lambda case, n, moments: (
                            moments[0] * (1 - 1 / n),
                            variance_with_baseline(**case) * (1 - 1 / n) ** 2,
                        )
                    ),
                    "The variance is low, but the gradient is too small, by a factor that depends "
                    "on n_samples: there is a bias. The baseline of a draw must not depend on that "
                    "draw. Does yours?",
                ),
                Misconception(
                    "the others' sum, divided by all",
                    baseline_with(
                        lambda case, n, moments: constant_left(case, n, moments, share=1 / n)
                    ),
                    "There is no bias, but a part of f's mean is left. How many values do you sum, "
                    "and by what do you divide?",
                ),
                Misconception(
                    "summed over draws",
                    baseline_with(
                        lambda case, n, moments: (
                            moments[0] * n,
                            variance_with_baseline(**case) * n**2,
                        )
                    ),
                    "Your gradients are n_samples times too large.",
                ),
                Misconception(
                    "score in units of ε",
                    baseline_with(
                        lambda case, n, moments: (
                            moments[0] * case["std"],
                            variance_with_baseline(**case) * case["std"] ** 2,
                        )
                    ),
                    "Your gradients are off by a factor of std. Look at the score again: which "
                    "power of std divides z − mean?",
                ),
            ),
        ),
        Exercise(
            name="03.5",
            title="AEVB, steps 2 to 5",
            points=3,
            draw=draw_minibatches,
            oracle=with_gradient(),
            call="gradient",
            rtol=1e-6,  # the oracle's slopes are good to 1e-9
            atol=1e-8,
            results=("the bound", "its gradient in the weights"),
            verified="For three minibatches the bound, and its gradient in all weights, agree with "
            "scipy's densities and their differences.",
            misconceptions=(
                Misconception(
                    "blocked gradient",
                    with_gradient(fixed="drawn_from"),
                    "The bound is right, but the gradient reaches the encoder by way of the KL "
                    "alone: it is blocked between z and the encoder. Section 1 has what does that.",
                ),
                Misconception(
                    "variance for standard deviation",
                    with_gradient(power=1.0),
                    "Your noise is multiplied by the variance. The encoder's second half is the "
                    "logarithm of the variance, as in exercise 03.1.",
                ),
                Misconception(
                    "log-variance for log standard deviation",
                    with_gradient(power=1.0, kl_power=1.0),
                    "You treat the encoder's second half as the logarithm of the standard "
                    "deviation. It is the logarithm of the variance.",
                ),
                Misconception(
                    "a decoder without gradient",
                    with_gradient(fixed="decoded_by"),
                    "The bound is right, but no gradient reaches the decoder's weights. Step 6 "
                    "trains both networks. Is there a detach or a no_grad in your code?",
                ),
                Misconception(
                    "no KL",
                    with_gradient(sign=0.0),
                    "This is the average of log p(x|z) alone. The bound has a second term.",
                ),
                Misconception(
                    "the halves swapped",
                    with_gradient(swapped=True),
                    "You take the encoder's first half as the log-variance and its second half as "
                    "the mean. Read again which is which.",
                ),
                Misconception(
                    "the KL added",
                    with_gradient(sign=1.0),
                    "The KL has the wrong sign: it is what z costs.",
                ),
                Misconception(
                    "the loss",
                    lambda **case: tuple(-v for v in with_gradient()(**case)),
                    "This is minus the bound, the loss that an optimiser would lower. The bound "
                    "itself is asked for.",
                ),
                Misconception(
                    "mean over genes",
                    with_gradient(genes=np.mean),
                    "Genes are independent given z: is their log-probability a sum or a mean?",
                ),
                Misconception(
                    "mean over latent dimensions",
                    with_gradient(kl_of=np.mean),
                    "The KL is averaged over latent dimensions. Dimensions are independent: is "
                    "their KL a sum or a mean?",
                ),
                Misconception(
                    "sum over cells",
                    with_gradient(of_cells=np.sum),
                    "This is the bound of all cells together; the average over cells is asked for.",
                ),
                Misconception(
                    "sum over draws",
                    with_gradient(of_draws=np.sum),
                    "This is right for one draw. With several, log p(x|z) is averaged over them.",
                ),
            ),
        ),
        Exercise(
            name="03.6",
            title="A bug hunt: z drawn twice",
            points=2,
            draw=draw_cells,
            oracle=by_trapezoids,
            verified="Agrees with numerical integration for 61 cells.",
            misconceptions=(
                Misconception(
                    "log p(x)",
                    lambda x, sigma, mean, std: log_normal(x, 0.0, np.sqrt(1 + sigma**2)),
                    "This is log p(x), which the code should have given. What is the mean of a "
                    "product whose factors are drawn independently of each other?",
                ),
                Misconception(
                    "the mean of the logarithm",
                    lambda x, sigma, mean, std: (
                        log_normal(x, mean, sigma) - std**2 / (2 * sigma**2)
                    ),
                    "This is E_q[log p(x|z)]. In the code the logarithm is taken after the mean.",
                ),
                Misconception(
                    "decoded at the mean of q",
                    lambda x, sigma, mean, std: log_normal(x, mean, sigma),
                    "This is p(x|z) only at z = m. The second z varies around m too.",
                ),
                Misconception(
                    "standard deviations added",
                    lambda x, sigma, mean, std: log_normal(x, mean, sigma + std),
                    "Two independent noises are added, that of z and that of x given z. Which of "
                    "their moments add up?",
                ),
            ),
        ),
    )
}
