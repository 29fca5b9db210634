"""Exercises of lesson 05: count likelihoods.

The right answers come from scipy and from quadrature; ``tests/test_exercises.py`` compares
these with 50 digits. The tolerance for float32 is derived: a log-gamma of 6,000 (x near 1,000) is
known to 6,000 · 1.2e-7 ≈ 7e-4, and a textbook formula adds three of them. Hence atol32 = 5e-3 where
heavy tails are drawn.
"""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]

PRECISIONS = (np.float64, np.float32)


def by_count(quantity: str, transform=lambda value: value):
    """A picture of the right values and the answer's, for each count of one gene.

    If the entries have different means, the answer is plotted over the right values.
    """

    def picture(ax, case, expected, got) -> None:
        with np.errstate(all="ignore"):
            expected, got = (transform(np.asarray(v, dtype=float)) for v in (expected, got))
        if len(np.unique(case["mean"])) == 1:
            ax.bar(case["x"], expected, color="0.8", label="right")
            ax.plot(case["x"], got, "o", color="#D55E00", label="yours")
            ax.set(xlabel="count", ylabel=quantity)
        else:
            shown = np.isfinite(expected) & np.isfinite(got)
            ax.plot(expected[shown], expected[shown], color="0.6", label="right")
            ax.plot(expected[shown], got[shown], "o", ms=4, color="#D55E00", label="yours")
            ax.set(xlabel=f"right {quantity}", ylabel=f"your {quantity}")

    return picture


def nb_pmf(x, mean, theta):
    from scipy import stats

    x, mean, theta = (np.asarray(v, dtype=float) for v in (x, mean, theta))
    return stats.nbinom.pmf(x, theta, theta / (theta + mean))


# --------------------------------------------------------------------------- 05.1 the NB


def draw_counts(rng: np.random.Generator) -> list[dict]:
    """One gene's counts from 0 to 10; 200 entries in both precisions; 40 with means near 1e-9 in
    both. There 1 − p keeps its digits in float64, and is 0 in float32.
    """
    cases = [{"x": np.arange(11.0), "mean": np.full(11, 3.0), "theta": np.full(11, 2.0)}]
    for dtype in PRECISIONS:
        most = 4 if dtype == np.float64 else 1.5  # float32 log-gammas cancel at large θ: see §7
        mean, theta = 10 ** rng.uniform(-2, 2, 200), 10 ** rng.uniform(-1, most, 200)
        x = rng.poisson(mean * rng.gamma(theta) / theta)
        values = {"x": x, "mean": mean, "theta": theta}
        cases.append({name: value.astype(dtype) for name, value in values.items()})
    tiny, theta = 10 ** rng.uniform(-9.5, -8.5, 40), rng.uniform(0.5, 5, 40)
    values = {"x": rng.integers(0, 4, 40).astype(float), "mean": tiny, "theta": theta}
    return cases + [{k: v.astype(dtype) for k, v in values.items()} for dtype in PRECISIONS]


def nb(x, mean, theta):
    from scipy import stats

    x, mean, theta = (np.asarray(v, dtype=float) for v in (x, mean, theta))
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean))


def nb_of_1_minus_p(x, mean, theta):
    from scipy import stats

    return stats.nbinom.logpmf(x, theta, mean / (theta + mean))


def nb_with_epsilon(x, mean, theta, before_division):
    """1e-8 added to μ/(θ+μ), or to μ before the division, inside the logarithm."""
    x, mean, theta = (np.asarray(v, dtype=float) for v in (x, mean, theta))
    added = 1e-8 / mean * (1 if before_division else theta + mean)
    return nb(x, mean, theta) + x * np.log1p(added)


def nb_of_rounded_p(x, mean, theta):
    """1 − p by subtraction, in the precision of the inputs."""
    rounded = 1 - theta / (theta + mean)
    return np.where(rounded > 0, nb(x, mean, theta), np.where(x == 0, np.nan, -np.inf))


def nb_of_clamped_probs(x, mean, theta):
    """As torch.distributions does: probs are at least the precision of their type."""
    x, theta, eps = x.astype(float), theta.astype(float), np.finfo(mean.dtype).eps
    probs = mean / (theta + mean)
    clamped = np.clip(probs, eps, 1 - eps)
    moved = x * np.log(clamped / probs) + theta * (np.log1p(-clamped) - np.log1p(-probs))
    return nb(x, mean, theta) + moved


def nb_without_factorial(x, mean, theta):
    from scipy.special import gammaln

    return nb(x, mean, theta) + gammaln(np.asarray(x, dtype=float) + 1)


# --------------------------------------------------------------------------- 05.2 conversion


def draw_r_p(rng: np.random.Generator) -> list[dict]:
    """One pair, then 50 in both precisions."""
    cases = [{"r": np.array([2.0]), "p": np.array([0.25])}]
    r, p = 10 ** rng.uniform(-1, 2, 50), rng.uniform(0.02, 0.98, 50)
    return cases + [{"r": r.astype(dtype), "p": p.astype(dtype)} for dtype in PRECISIONS]


def converted(r, p):
    """From the moments of scipy's nbinom alone."""
    from scipy import stats

    mean, variance = stats.nbinom.stats(r.astype(float), p.astype(float), moments="mv")
    return mean, mean**2 / (variance - mean), 1 - mean / variance


# --------------------------------------------------------------------------- 05.3 zeros


def draw_table(rng: np.random.Generator) -> list[dict]:
    """2 cells and 3 genes, then 60 cells and 40 genes in both precisions. Some means are 0."""
    cases = [{"depth": np.array([0.5, 1.5]), "mean": np.array([1.0, 4.0, 0.0]), "theta": 2.0}]
    for dtype in PRECISIONS:
        depth, mean = rng.lognormal(0, 0.8, 60), 10 ** rng.uniform(-1.5, 1.5, 40)
        mean[:4] = 0
        theta = float(rng.choice([rng.uniform(0.2, 0.6), rng.uniform(1.8, 5)]))
        arrays = {"depth": depth / depth.mean(), "mean": rng.permutation(mean)}
        cases.append({k: v.astype(dtype) for k, v in arrays.items()} | {"theta": theta})
    return cases


def zeros(depth, mean, theta):
    """p(0) of each entry, shape (n_cells, n_genes)."""
    return nb_pmf(0, np.multiply.outer(depth.astype(float), mean.astype(float)), theta)


# --------------------------------------------------------------------------- 05.4 the ZINB


def draw_zero_inflated(rng: np.random.Generator) -> list[dict]:
    """One gene's counts from 0 to 10; 100 entries of usual size in both precisions; and 40 whose
    probabilities underflow in their precision. Values in between are left out.
    """
    constant = {"mean": 4.0, "theta": 2.0, "logits": -1.0}
    cases = [{"x": np.arange(11.0)} | {k: np.full(11, v) for k, v in constant.items()}]
    for dtype in PRECISIONS:
        mean, theta = 10 ** rng.uniform(-2, 2, 100), 10 ** rng.uniform(-1, 1.5, 100)
        x = rng.poisson(mean * rng.gamma(theta) / theta) * (rng.random(100) < 0.6)
        values = {"x": x, "mean": mean, "theta": theta, "logits": rng.uniform(-8, 8, 100)}
        cases.append({name: value.astype(dtype) for name, value in values.items()})
    for dtype, size in zip(PRECISIONS, (10, 1), strict=True):
        values = {
            "x": rng.integers(0, 3, 40) * 4,
            "mean": rng.uniform(1e3, 1e4, 40),
            "theta": size * rng.uniform(40, 90, 40),
            "logits": size * rng.uniform(120, 400, 40) * rng.choice([-1, -1, 1], 40),
        }
        cases.append({name: value.astype(dtype) for name, value in values.items()})
    return cases


def zinb(x, mean, theta, logits):
    """log of a sum of two exponentials, by scipy."""
    from scipy.special import log_expit, logsumexp

    base = nb(x, mean, theta)
    dropped = np.where(x == 0, 0.0, -np.inf)
    g = np.asarray(logits, dtype=float)
    return logsumexp([dropped + log_expit(g), base + log_expit(-g)], axis=0)


def zinb_of_probabilities(x, mean, theta, logits, epsilon=0.0, everywhere=False, sign=1):
    """Computed from π and NB(x), in the precision of the inputs."""
    from scipy.special import expit

    pi, p = expit(sign * logits), nb_pmf(x, mean, theta).astype(x.dtype)
    inflated = np.where((x == 0) | everywhere, pi + (1 - pi) * p, (1 - pi) * p)
    return np.log(inflated + x.dtype.type(epsilon))


def zinb_with_epsilon_at_zero(x, mean, theta, logits):
    with np.errstate(divide="ignore"):
        at_zero = np.logaddexp(np.log(1e-8), zinb(x, mean, theta, logits))
    return np.where(x == 0, at_zero, zinb(x, mean, theta, logits))


def zinb_of_rounded_sigmoid(x, mean, theta, logits):
    """The logarithms of σ(g) and 1 − σ(g), in the precision of the inputs."""
    from scipy.special import expit

    pi = expit(logits)
    with np.errstate(divide="ignore"):
        dropped, kept = np.log(pi), np.log(1 - pi) + nb(x, mean, theta)
    return np.where(x == 0, np.logaddexp(dropped, kept), kept)


def zinb_with(at_zero=None, above=None):
    """A mistake at zero or above it: a function of log π, log(1 − π) and log NB(x)."""

    def wrong(x, mean, theta, logits):
        from scipy.special import log_expit

        g, right = np.asarray(logits, dtype=float), zinb(x, mean, theta, logits)
        parts = log_expit(g), log_expit(-g), nb(x, mean, theta)
        return np.where(
            x == 0, at_zero(*parts) if at_zero else right, above(*parts) if above else right
        )

    return wrong


def zinb_not_scaled(x, mean, theta, logits):
    return np.where(x == 0, zinb(x, mean, theta, logits), nb(x, mean, theta))


# --------------------------------------------------------------------------- 05.5 denoising


def draw_observed(rng: np.random.Generator) -> list[dict]:
    """One gene's counts from 0 to 8; 100 entries in both precisions, some without dropout (−∞)."""
    constant = {"mean": 2.0, "theta": 1.0, "logits": 0.0}
    cases = [{"x": np.arange(9.0)} | {k: np.full(9, v) for k, v in constant.items()}]
    for dtype in PRECISIONS:
        mean, theta = 10 ** rng.uniform(-1, 2, 100), 10 ** rng.uniform(-0.5, 1, 100)
        x = rng.poisson(mean * rng.gamma(theta) / theta) * (rng.random(100) < 0.6)
        logits = np.where(rng.random(100) < 0.2, -np.inf, rng.uniform(-6, 4, 100))
        values = {"x": x, "mean": mean, "theta": theta, "logits": logits}
        cases.append({name: value.astype(dtype) for name, value in values.items()})
    return cases


def denoised(x, mean, theta, logits):
    """Robbins (1956): for any mixture of Poissons, E[λ|x] = (x+1) p(x+1)/p(x)."""
    x = np.asarray(x, dtype=float)
    ratio = zinb(x + 1, mean, theta, logits) - zinb(x, mean, theta, logits)
    return (x + 1) * np.exp(ratio)


def denoised_with(at_zero):
    """A mistake at zero: a factor of the NB's rate in place of the probability of no dropout."""

    def wrong(x, mean, theta, logits):
        from scipy.special import expit

        x, mean, theta, g = (np.asarray(v, dtype=float) for v in (x, mean, theta, logits))
        factor = at_zero(expit, nb(0, mean, theta), g)
        return np.where(x > 0, 1.0, factor) * mean * (x + theta) / (mean + theta)

    return wrong


def kept(logits):
    from scipy.special import expit

    return expit(-np.asarray(logits, dtype=float))


# --------------------------------------------------------------------------- 05.6 the CB


def draw_unit_interval(rng: np.random.Generator) -> list[dict]:
    """One entry; λ = ½; anything; near ½; near 0 and 1; float32 with 1 − 2λ either 0 or above 0.05;
    float32 near ½, where the closed form loses the digits of the slope.
    """
    x, lam = rng.random(200), rng.uniform(0.02, 0.98, 200)
    near = 0.5 + rng.choice([-1, 1], 50) * 10 ** rng.uniform(-4, -2, 50)
    nearer = 0.5 + rng.choice([-1, 1], 50) * 10 ** rng.uniform(-6.5, -3.5, 50)
    end = np.concatenate([[1e-6, 1e-3], 10 ** rng.uniform(-6, -2, 48)])
    end = np.where(np.arange(50) < 25, end, 1 - end[::-1])
    single = np.where(np.abs(lam - 0.5) < 0.025, 0.5, lam)
    return [
        {"x": np.array([0.5]), "lam": np.array([0.25])},
        {"x": np.array([0.0, 0.3, 1.0]), "lam": np.array([0.5, 0.5, 0.5])},
        {"x": x, "lam": lam},
        {"x": x[:50], "lam": near},
        {"x": x[50:100], "lam": end},
        {"x": x.astype(np.float32), "lam": single.astype(np.float32)},
        {"x": x[:50].astype(np.float32), "lam": nearer.astype(np.float32)},
    ]


def cb(x, lam):
    """The integral of λ^t (1−λ)^(1−t) by Gauss–Legendre; the slope is a score minus its mean."""
    x, lam = np.asarray(x, dtype=float)[:, None], np.asarray(lam, dtype=float)[:, None]
    t, weight = np.polynomial.legendre.leggauss(40)
    t, weight = (t + 1) / 2, weight / 2
    density = weight * lam**t * (1 - lam) ** (1 - t)
    normalizer = density.sum(1)
    score = (density * (t / lam - (1 - t) / (1 - lam))).sum(1) / normalizer
    value, slope = bce(x[:, 0], lam[:, 0])
    return value - np.log(normalizer), slope - score


def bce(x, lam):
    x, lam = np.asarray(x, dtype=float), np.asarray(lam, dtype=float)
    value = x * np.log(lam) + (1 - x) * np.log1p(-lam)
    return value, x / lam - (1 - x) / (1 - lam)


def cb_divided(x, lam):
    return tuple(2 * a - b for a, b in zip(bce(x, lam), cb(x, lam), strict=True))


def nan_at_half(x, lam, in_value=True):
    value, slope = cb(x, lam)
    half = np.asarray(lam) == 0.5
    return np.where(half & in_value, np.nan, value), np.where(half, np.nan, slope)


# --------------------------------------------------------------------------- declarations

EPSILON = (
    "Right for means of usual size. But a mean can be 1e-9, and next to it a constant of 1e-8 is "
    "not small. Nothing here needs it: a mean above 0 has a logarithm."
)

EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="05.1",
            title="The negative binomial by mean and inverse dispersion",
            points=3,
            draw=draw_counts,
            oracle=nb,
            verified="Agrees with scipy at 491 points, down to means of 1e-9, also in float32.",
            atol32=5e-3,
            extreme=1,
            misconceptions=(
                Misconception(
                    "1 − p that rounds to 0",
                    nb_of_rounded_p,
                    "Right in float64. But in float32, at a mean near 1e-9, p rounds to 1, so that "
                    "1 − p is 0 and its logarithm −∞. Which fraction is 1 − p? Take the logarithm "
                    "of that.",
                ),
                Misconception(
                    "clamped probs",
                    nb_of_clamped_probs,
                    "Right except at tiny means in float32: `torch.distributions` moves `probs` to "
                    "at least 1.2e-7 there. Which other argument does it take?",
                ),
                Misconception(
                    "negated",
                    lambda **case: -nb(**case),
                    "This is minus the log-probability. A loss has this sign; the exercise asks "
                    "for the log-probability itself.",
                ),
                Misconception(
                    "bits for nats",
                    lambda **case: nb(**case) / np.log(2),
                    "These are logarithms to base 2, in bits. Nats need the natural logarithm.",
                ),
                Misconception(
                    "p for 1 − p",
                    nb_of_1_minus_p,
                    "This is the probability with p and 1 − p exchanged. Look at the line with the "
                    "mean of the (r, p) form: to which outcome does p belong?",
                ),
                Misconception(
                    "dispersion for inverse dispersion",
                    lambda x, mean, theta: nb(x, mean, 1 / theta),
                    "Your θ acts as its own inverse: your distribution gets wider as θ grows. Look "
                    "at the variance again, and at what θ → ∞ should give.",
                ),
                Misconception(
                    "probability for its log",
                    nb_pmf,
                    "These are probabilities. The exercise asks for their natural logarithm.",
                ),
                Misconception(
                    "epsilon in the logarithm",
                    lambda **case: nb_with_epsilon(**case, before_division=False),
                    EPSILON,
                ),
                Misconception(
                    "epsilon added to the mean",
                    lambda **case: nb_with_epsilon(**case, before_division=True),
                    EPSILON,
                ),
                Misconception(
                    "no factorial",
                    nb_without_factorial,
                    "Right at 0 and 1, but wrong above, and more so for larger counts: one of the "
                    "three gamma functions of the formula is missing.",
                ),
            ),
            picture=by_count("probability", np.exp),
        ),
        Exercise(
            name="05.2",
            title="From (r, p) to everybody else's",
            points=2,
            draw=draw_r_p,
            oracle=converted,
            results=("mean", "inverse dispersion", "probs"),
            verified="Mean, inverse dispersion and torch's probs fit scipy's moments, 101 times.",
            misconceptions=(
                Misconception(
                    "mean of the other outcome",
                    lambda r, p: (r * p / (1 - p), r, 1 - p),
                    "Inverse dispersion and probs are right. But your mean grows with p. In the "
                    "formula here a large p means small counts.",
                ),
                Misconception(
                    "order of the results",
                    lambda r, p: (r, r * (1 - p) / p, 1 - p),
                    "All three numbers are right, in another order: the mean comes first, then "
                    "the inverse dispersion.",
                ),
                Misconception(
                    "torch's p",
                    lambda r, p: (r * p / (1 - p), r, p),
                    "You read p as torch does. In the formula here, what is raised to the power x: "
                    "p, or 1 − p? Here a large p means small counts.",
                ),
                Misconception(
                    "probs passed on",
                    lambda r, p: (r * (1 - p) / p, r, p),
                    "Mean and inverse dispersion are right. But torch's probs belong to the "
                    "other outcome: draw a sample with them and look at its mean.",
                ),
                Misconception(
                    "dispersion for inverse dispersion",
                    lambda r, p: (r * (1 - p) / p, 1 / r, 1 - p),
                    "The second result is DESeq2's dispersion. Compare the variance (1−p) r/p² "
                    "with mean + mean²/θ.",
                ),
                Misconception(
                    "trials for failures",
                    lambda r, p: (r / p, r, 1 - p),
                    "Your mean is never below r. But a count can be zero: x does not include the r "
                    "successes, so its mean does not either.",
                ),
            ),
            rtol32=1e-4,
        ),
        Exercise(
            name="05.3",
            title="How many zeros should a table have?",
            points=3,
            draw=draw_table,
            oracle=lambda **case: zeros(**case).mean(),
            verified="The expected share of zeros agrees with scipy for three tables.",
            misconceptions=(
                Misconception(
                    "the average cell",
                    lambda depth, mean, theta: nb_pmf(0, mean, theta).mean(),
                    "This is the share of zeros if every cell had the average depth. The "
                    "probability of a zero is a curved function of the mean: what comes first, the "
                    "average or the function?",
                ),
                Misconception(
                    "the average gene",
                    lambda depth, mean, theta: zeros(depth, mean.mean(keepdims=True), theta).mean(),
                    "This is the share of zeros if every gene had the average mean. The "
                    "probability of a zero is a curved function of the mean: what comes first, the "
                    "average or the function?",
                ),
                Misconception(
                    "Poisson's zeros",
                    lambda depth, mean, theta: np.exp(
                        -np.multiply.outer(depth.astype(float), mean.astype(float))
                    ).mean(),
                    "These are the zeros of a Poisson: θ does not occur in your result. Insert x = "
                    "0 into the negative binomial.",
                ),
                Misconception(
                    "dispersion for inverse dispersion",
                    lambda depth, mean, theta: zeros(depth, mean, 1 / theta).mean(),
                    "Your θ acts as its own inverse. A larger θ means a narrower distribution, "
                    "and fewer zeros.",
                ),
                Misconception(
                    "genes left out",
                    lambda depth, mean, theta: zeros(depth, mean[mean > 0], theta).mean(),
                    "You left out the genes that were never seen. Their entries are zeros of the "
                    "table too: what is p(0) if the mean is 0?",
                ),
                Misconception(
                    "0 times −∞",
                    lambda depth, mean, theta: np.nan,
                    "The result is NaN: for a gene that was never seen, the mean is 0 and its "
                    "logarithm is −∞. At x = 0 the formula needs no logarithm of the mean.",
                ),
                Misconception(
                    "a share for each gene",
                    lambda **case: zeros(**case).mean(0),
                    "You have a share for each gene. The exercise asks for one number, the share "
                    "of zeros in the whole table.",
                ),
                Misconception(
                    "a share for each cell",
                    lambda **case: zeros(**case).mean(1),
                    "You have a share for each cell. The exercise asks for one number, the share "
                    "of zeros in the whole table.",
                ),
                Misconception(
                    "a table",
                    zeros,
                    "You have p(0) of each entry. The exercise asks for one number, the expected "
                    "share of zeros in the whole table.",
                ),
            ),
        ),
        Exercise(
            name="05.4",
            title="Zero inflation, in logits",
            points=3,
            draw=draw_zero_inflated,
            oracle=zinb,
            verified="Agrees with scipy at 291 points, down to probabilities of e^−4000.",
            atol32=5e-3,
            extreme=2,
            misconceptions=(
                Misconception(
                    "epsilon in the logarithm",
                    lambda **case: zinb_of_probabilities(**case, epsilon=1e-8),
                    "Nothing in your result is below −18.42 = log 1e-8. A constant inside a "
                    "logarithm is not negligible where the probability is smaller still: stay in "
                    "logs.",
                ),
                Misconception(
                    "epsilon in the logarithm of zeros",
                    zinb_with_epsilon_at_zero,
                    "Positive counts are right. At zero, nothing in your result is below −18.42 = "
                    "log 1e-8: a constant inside a logarithm is not negligible where the "
                    "probability is smaller still. Stay in logs.",
                ),
                Misconception(
                    "probabilities that underflow",
                    zinb_of_probabilities,
                    "Right for probabilities of usual size, but −∞ where they underflow. Stay in "
                    "logs: which function adds two probabilities that are given as logs?",
                ),
                Misconception(
                    "a sigmoid that underflows",
                    zinb_of_rounded_sigmoid,
                    "Right for logits of usual size. But for large logits σ(g) rounds to 0 or 1, "
                    "and you take the logarithm after that. `logsigmoid` gives log σ(g) without "
                    "computing σ(g).",
                ),
                Misconception(
                    "zeros not scaled",
                    zinb_with(at_zero=lambda log_pi, log_rest, base: np.logaddexp(log_pi, base)),
                    "Positive counts are right. At zero you add π and NB(0). How often does the "
                    "base get a chance to give its zero?",
                ),
                Misconception(
                    "logs added at zero",
                    zinb_with(at_zero=lambda log_pi, log_rest, base: log_pi + log_rest + base),
                    "Positive counts are right. At zero you added logarithms, which multiplies the "
                    "probabilities. There p(0) is a sum.",
                ),
                Misconception(
                    "positive counts inflated",
                    zinb_with(
                        above=lambda log_pi, log_rest, base: np.logaddexp(log_pi, log_rest + base)
                    ),
                    "You gave π to every count. Dropout makes zeros: which counts can it explain?",
                ),
                Misconception(
                    "positive counts not scaled",
                    zinb_not_scaled,
                    "Right at zero. But above it your probabilities are those of the NB, and "
                    "altogether they sum to more than 1.",
                ),
                Misconception(
                    "sign of the logits",
                    lambda x, mean, theta, logits: zinb(x, mean, theta, -logits),
                    "Your zeros become rarer as the logits grow. π is the probability of dropout, "
                    "and π = σ(g).",
                ),
            ),
            picture=by_count("probability", np.exp),
        ),
        Exercise(
            name="05.5",
            title="Spot the error: denoising",
            points=3,
            draw=draw_observed,
            oracle=denoised,
            verified="Agrees at 209 points with (x+1) p(x+1)/p(x), which is E[λ|x] for every "
            "mixture of Poissons.",
            misconceptions=(
                Misconception(
                    "as published",
                    lambda x, mean, theta, logits: kept(logits) * (x + theta) / (mean + theta),
                    "This is what was published. Both errors are still in it: which units does u "
                    "have, and which does λ have? And can a positive count be a dropout?",
                ),
                Misconception(
                    "E[u|x] for E[λ|x]",
                    lambda x, mean, theta, logits: denoised(x, mean, theta, logits) / mean,
                    "The dropout is right. But this is the mean of u, which is near 1 for every "
                    "gene; λ is in counts. How are the two related?",
                ),
                Misconception(
                    "positive counts dropped",
                    lambda x, mean, theta, logits: (
                        kept(logits) * mean * (x + theta) / (mean + theta)
                    ),
                    "The units are right. But you also shrink positive counts by 1 − π. What is "
                    "the probability that a count of 5 was dropped out?",
                ),
                Misconception(
                    "prior for posterior",
                    lambda x, mean, theta, logits: (
                        np.where(x > 0, 1, kept(logits)) * mean * (x + theta) / (mean + theta)
                    ),
                    "Positive counts are right. At zero you use π, the probability of dropout "
                    "before the count was seen. A zero changes it, by Bayes' rule.",
                ),
                Misconception(
                    "no dropout",
                    denoised_with(lambda expit, log_zero, g: 1.0),
                    "Positive counts are right. At zero this is the mean under the NB, as if no "
                    "count were ever dropped: the logits do not occur in it.",
                ),
                Misconception(
                    "dropped for kept",
                    denoised_with(lambda expit, log_zero, g: expit(g - log_zero)),
                    "Positive counts are right. At zero you multiply the rate by the probability "
                    "that the count *was* dropped. Which part of the zeros tells of the rate?",
                ),
                Misconception(
                    "0 at zero",
                    denoised_with(lambda expit, log_zero, g: 0.0),
                    "Positive counts are right. But you give every zero a rate of 0, and some "
                    "zeros were not dropped: they were counted.",
                ),
                Misconception(
                    "sign of the logits",
                    denoised_with(lambda expit, log_zero, g: expit(log_zero + g)),
                    "Positive counts are right. At zero, your rate rises with the logits. π is the "
                    "probability of dropout, and π = σ(g).",
                ),
            ),
            picture=by_count("E[λ|x] (counts)"),
        ),
        Exercise(
            name="05.6",
            title="Spot the error: the constant that is undefined at ½",
            points=2,
            draw=draw_unit_interval,
            oracle=cb,
            verified="Value and slope agree with numerical integration at 554 points: at λ = ½, "
            "next to it in float32, and at 1e-6 from 0 and 1.",
            call="slope",
            extreme=1,
            results=("log-density", "gradient in lam"),
            atol=1e-7,
            misconceptions=(
                Misconception(
                    "binary cross-entropy",
                    bce,
                    "This is minus the binary cross-entropy: a density that does not integrate to "
                    "1. The missing factor depends on λ, so the slope is wrong too.",
                ),
                Misconception(
                    "0/0 at ½",
                    nan_at_half,
                    "Right, except at λ = ½, where it is NaN: as printed, the constant is 0/0 "
                    "there. What is its limit? Use another expression near ½.",
                ),
                Misconception(
                    "NaN gradient through where",
                    lambda x, lam: nan_at_half(x, lam, in_value=False),
                    "All values are right, but the slope at λ = ½ is NaN. torch.where takes the "
                    "gradient of both branches, also of the one not chosen. Make sure that the "
                    "other branch never gets ½.",
                ),
                Misconception(
                    "constant divided",
                    cb_divided,
                    "You have the constant, but with the wrong sign. Your density should integrate "
                    "to 1: does C multiply or divide?",
                ),
            ),
        ),
    )
}
