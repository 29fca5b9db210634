"""Exercises of lesson 10: scVI."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 10.1: w, y and h


def draw_dice(rng: np.random.Generator) -> list[dict]:
    """One gene in four cells, then 300 entries, each with parameters of its own."""
    simple = {
        "u_w": np.array([0.2, 0.5, 0.8, 0.9]),
        "u_y": np.array([0.4, 0.5, 0.7, 0.6]),
        "u_h": np.array([0.9, 0.6, 0.5, 0.1]),
        "library": np.full(4, 1000.0),
        "rho": np.full(4, 0.01),
        "theta": np.full(4, 2.0),
        "pi": np.full(4, 0.25),
    }
    many = {name: rng.uniform(0.001, 0.999, 300) for name in ("u_w", "u_y", "u_h")}
    many |= {"library": 10 ** rng.uniform(2.5, 4, 300), "rho": 10 ** rng.uniform(-3.5, -2, 300)}
    many |= {"theta": 10 ** rng.uniform(-0.3, 1, 300), "pi": rng.uniform(0, 0.6, 300)}
    return [simple, many]


def gamma_quantile(u, shape, rate):
    """The quantile by bisection of the distribution function, in log w."""
    from scipy.special import gammainc

    low, high = np.full(np.shape(u), -400.0), np.full(np.shape(u), 20.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = gammainc(shape, rate * np.exp(middle)) < u
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.exp(high)


def poisson_quantile(u, rate):
    """The first k with P(y ≤ k) ≥ u, by bisection of an incomplete gamma function of the rate."""
    from scipy.special import gammaincc

    low, high = np.full(np.shape(u), -1.0), 40 + 20 * np.ceil(rate)
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        below = gammaincc(middle + 1, rate) < u
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high


def counts_with(shape=None, rate=None, kept=None, mean=None):
    """The three dice; each argument puts a mistake in the place of the right step."""

    def outcome(u_w, u_y, u_h, library, rho, theta, pi):
        a = theta if shape is None else shape(rho, theta)
        w = gamma_quantile(u_w, a, (rate or (lambda r, t: t / r))(rho, theta))
        y = poisson_quantile(u_y, (mean or np.multiply)(library, w))
        return np.where((kept or np.greater_equal)(u_h, pi), y, 0.0)

    return outcome


def counts_without_w(u_w, u_y, u_h, library, rho, theta, pi):
    return np.where(u_h >= pi, poisson_quantile(u_y, library * rho), 0.0)


# 10.2: the prior of log ℓ


def draw_libraries(rng: np.random.Generator) -> list[dict]:
    """Two cells in each of two batches, then 150 in three, one of them sequenced deeper."""
    cases = [
        {
            "library": np.array([100.0, 200.0, 1000.0, 4000.0]),
            "batch": np.array([0, 0, 1, 1]),
            "n_batches": 2,
        }
    ]
    batch = np.concatenate([[0, 0, 1, 1, 2, 2], rng.integers(3, size=144)])
    log_library = np.array([7.0, 8.1, 6.5])[batch] + np.array([0.4, 0.9, 0.6])[
        batch
    ] * rng.standard_normal(150)
    return [
        *cases,
        {"library": np.exp(log_library).round() + 1, "batch": batch, "n_batches": 3},
    ]


def per_batch(mean, spread):
    def both(library, batch, n_batches):
        parts = [library[batch == b] for b in range(n_batches)]
        return tuple(np.array([float(f(part)) for part in parts]) for f in (mean, spread))

    return both


def geometric_variance(part):
    from scipy.stats import gstd

    return np.log(gstd(part, ddof=0)) ** 2


def geometric_mean(part):
    from scipy.stats import gmean

    return np.log(gmean(part))


def one_prior_for_all(library, batch, n_batches):
    pair = geometric_mean(library), geometric_variance(library)
    return tuple(np.full(n_batches, float(value)) for value in pair)


# 10.3: the KL of ℓ


def draw_log_normals(rng: np.random.Generator) -> list[dict]:
    """One cell that is sure, then forty of two batches."""
    one = {
        "mean": np.array([7.0]),
        "variance": np.array([0.04]),
        "prior_mean": np.array([7.0]),
        "prior_variance": np.array([0.5]),
    }
    return [
        one,
        {
            "mean": rng.normal(7, 0.7, 40),
            "variance": 10 ** rng.uniform(-3, 0, 40),
            "prior_mean": np.where(rng.random(40) < 0.5, 6.8, 7.2),
            "prior_variance": np.where(rng.random(40) < 0.5, 0.5, 0.8),
        },
    ]


def kl_by_quadrature(mean, variance, prior_mean, prior_variance):
    """∫ q(ℓ) log (q(ℓ)/p(ℓ)) dℓ with the densities of ℓ itself, over ±12 standard deviations."""
    from scipy import stats

    s, prior_s = np.sqrt(variance), np.sqrt(prior_variance)
    t = np.linspace(-12, 12, 4001)[:, None]
    library = np.exp(mean + s * t)
    q, p = (stats.lognorm(std, scale=np.exp(m)) for m, std in ((mean, s), (prior_mean, prior_s)))
    ratio = q.logpdf(library) - p.logpdf(library)
    return (q.pdf(library) * ratio * library * s).sum(0) * (t[1, 0] - t[0, 0])


# 10.4: mixing


def draw_spaces(rng: np.random.Generator) -> list[dict]:
    """Nine cells on a line; then three types in three uneven batches, and two that are too small.

    The type "schwann" has fewer cells than k, and "immune" has k.
    """
    line = {
        "latent": np.array([[0.0], [1.0], [2.1], [3.3], [4.6], [20.0], [21.0], [22.1], [23.3]]),
        "batch": np.array([0, 1, 0, 0, 0, 1, 1, 1, 0]),
        "cell_type": np.array(["alpha"] * 5 + ["beta"] * 4),
        "k": 2,
    }
    cell_type = np.repeat(["alpha", "beta", "ductal", "schwann", "immune"], [30, 60, 25, 4, 6])
    other = {"alpha": 0.8, "beta": 0.4, "ductal": 0.15, "schwann": 0.5, "immune": 0.5}
    batch = np.array([int(rng.random() < other[name]) for name in cell_type])
    batch[rng.random(len(batch)) < 0.25] = 2
    batch[[0, 1, 30, 31, 90, 91, 115, 116, 119, 120]] = [0, 1] * 5
    centre = {name: 0.7 * rng.standard_normal(3) for name in other}
    latent = np.array([centre[name] for name in cell_type]) + rng.standard_normal((125, 3))
    latent[:, 0] += 0.7 * batch
    order = rng.permutation(125)
    return [
        line,
        {"latent": latent[order], "batch": batch[order], "cell_type": cell_type[order], "k": 6},
    ]


def mixing_with(
    itself=False, any_type=False, chance=None, small=False, of_k=False, first=False, ratio_of="sums"
):
    """The score by scikit-learn's neighbours; each argument puts a mistake in."""

    def score(latent, batch, cell_type, k):
        from sklearn.neighbors import NearestNeighbors

        if first:
            batch = (batch == np.unique(batch)[0]).astype(int)
        found, expected = [], []
        for name in np.unique(cell_type):
            own = np.flatnonzero(cell_type == name)
            if len(own) <= k and not small and not (of_k and len(own) == k):
                continue
            among = np.arange(len(batch)) if any_type else own
            k_here = min(k, len(own) - 1)
            search = NearestNeighbors(n_neighbors=k_here + 1).fit(latent[among])
            near = among[search.kneighbors(latent[own], return_distance=False)]
            near = near[:, :k_here] if itself else near[:, 1:]
            found.append((batch[near] != batch[own, None]).mean(1))
            differ = batch[own] != batch[own, None]
            expected.append(differ.sum(1) / (len(own) - 1))
            if chance is not None:
                expected[-1] = chance(batch, own)
        if ratio_of == "types":
            return np.mean([f.mean() / e.mean() for f, e in zip(found, expected, strict=True)])
        found, expected = np.concatenate(found), np.concatenate(expected)
        if ratio_of == "cells":
            return np.asarray((found / np.where(expected > 0, expected, 1)).mean())
        return np.asarray(found.mean() / (expected.mean() if ratio_of == "sums" else 1))

    return score


def mixing_across_types(latent, batch, cell_type, k):
    return mixing_with()(latent, batch, np.zeros(len(batch)), k)


# 10.5: normalised expression


def draw_logits(rng: np.random.Generator) -> list[dict]:
    """One draw, two batches, one cell, two genes; then more of each."""
    one = np.array([[[[0.0, 0.0]], [[2.0, 0.0]]]])
    return [{"logits": one}, {"logits": rng.normal(0, 2, (4, 3, 5, 6))}]


def shares(logits):
    """ρ_g = 1 / Σ_h exp(l_h − l_g), draw by draw and batch by batch."""
    total = 0.0
    for of_batches in logits:
        for logit in of_batches:
            total = total + 1 / np.exp(logit[:, None, :] - logit[:, :, None]).sum(-1)
    return total / (logits.shape[0] * logits.shape[1])


def softmax(logits, axis=-1):
    from scipy import special

    return special.softmax(logits, axis=axis)


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="10.1",
            title="Three dice for one count",
            points=3,
            draw=draw_dice,
            oracle=counts_with(),
            call="arrays",
            verified="Agrees with distribution functions inverted by bisection, 304 times.",
            misconceptions=(
                Misconception(
                    "Gamma(ρ, θ) read as shape and rate",
                    counts_with(shape=lambda r, t: r, rate=lambda r, t: t),
                    "You read Gamma(ρ, θ) as shape ρ and rate θ. Its mean is then ρ/θ. Which of "
                    "the two says how much the cells vary, and which is their average?",
                ),
                Misconception(
                    "Gamma(ρ, θ) read as shape and scale",
                    counts_with(shape=lambda r, t: r, rate=lambda r, t: 1 / t),
                    "You read Gamma(ρ, θ) as shape ρ and scale θ. Its mean is then ρθ. Which of "
                    "the two says how much the cells vary, and which is their average?",
                ),
                Misconception(
                    "rate for scale",
                    counts_with(rate=lambda r, t: r / t),
                    "The shape is right. But scipy's scale is one over the rate: what is the mean "
                    "of your w?",
                ),
                Misconception(
                    "ρ for the scale",
                    counts_with(rate=lambda r, t: 1 / r),
                    "The shape is right. But with scale ρ the mean of your w is θρ. Which mean "
                    "should it have?",
                ),
                Misconception(
                    "a mean of 1",
                    counts_with(rate=lambda r, t: t),
                    "Your w has mean 1, whatever ρ is. That is the u of lesson 05. Where does the "
                    "gene's share enter?",
                ),
                Misconception(
                    "no w",
                    counts_without_w,
                    "Your y has mean ℓρ in every cell: the first die does not occur in the result.",
                ),
                Misconception(
                    "no library size",
                    counts_with(mean=lambda library, w: w),
                    "Your counts don't grow with ℓ. What is the mean of y, given w?",
                ),
                Misconception(
                    "dropout upside down",
                    counts_with(kept=np.less),
                    "You keep a count with probability π. h = 1 means dropout.",
                ),
                Misconception(
                    "no dropout",
                    counts_with(kept=lambda u_h, pi: u_h >= 0),
                    "w and y are right. The third die does not occur in your result.",
                ),
            ),
        ),
        Exercise(
            name="10.2",
            title="Spot the error: one prior for every mouse",
            points=2,
            draw=draw_libraries,
            oracle=per_batch(geometric_mean, geometric_variance),
            call="arrays",
            verified="Agrees with scipy's geometric mean and geometric standard deviation.",
            misconceptions=(
                Misconception(
                    "one prior for all batches",
                    one_prior_for_all,
                    "All batches get the same two numbers. What does a cell pay if its batch was "
                    "sequenced more deeply, or less deeply, than that?",
                ),
                Misconception(
                    "the logarithm of the mean",
                    per_batch(lambda part: np.log(part.mean()), geometric_variance),
                    "The variances are right. The logarithm of a mean is above the mean of the "
                    "logarithms; which of them is the mean of log ℓ?",
                ),
                Misconception(
                    "logarithms of both",
                    per_batch(lambda part: np.log(part.mean()), lambda part: np.log(part.var())),
                    "You took logarithms of a mean and of a variance. The prior is normal for "
                    "log ℓ: whose mean and variance does it have?",
                ),
                Misconception(
                    "no logarithm",
                    per_batch(np.mean, np.var),
                    "These are mean and variance of ℓ itself. The prior is normal for log ℓ.",
                ),
                Misconception(
                    "standard deviation for variance",
                    per_batch(geometric_mean, lambda part: np.log(part).std()),
                    "The means are right. Your second result is a standard deviation.",
                ),
                Misconception(
                    "divided by n − 1",
                    per_batch(geometric_mean, lambda part: np.log(part).var(ddof=1)),
                    "Close. The prior is the normal distribution with the highest likelihood for "
                    "these cells. By what does its variance divide?",
                ),
                Misconception(
                    "one added",
                    per_batch(
                        lambda part: np.log1p(part).mean(), lambda part: np.log1p(part).var()
                    ),
                    "You took log(1 + ℓ). Every cell has at least one count, so ℓ is never 0.",
                ),
                Misconception(
                    "base 10",
                    per_batch(
                        lambda part: np.log10(part).mean(), lambda part: np.log10(part).var()
                    ),
                    "Nats are natural logarithms.",
                ),
            ),
        ),
        Exercise(
            name="10.3",
            title="What a cell pays for its size",
            points=2,
            draw=draw_log_normals,
            oracle=kl_by_quadrature,
            rtol=1e-5,
            atol=1e-7,
            verified="Agrees with the integral over ℓ itself, for 41 cells.",
            misconceptions=(
                Misconception(
                    "variance taken for standard deviation",
                    lambda mean, variance, prior_mean, prior_variance: kl_by_quadrature(
                        mean, variance**2, prior_mean, prior_variance**2
                    ),
                    "You squared a number that is already a variance. In Normal(a, b), is b here a "
                    "variance or a standard deviation?",
                ),
                Misconception(
                    "the other direction",
                    lambda mean, variance, prior_mean, prior_variance: kl_by_quadrature(
                        prior_mean, prior_variance, mean, variance
                    ),
                    "This is KL(p ‖ q). The mean is taken under the first of the two, which should "
                    "be q.",
                ),
                Misconception(
                    "the half forgotten",
                    lambda *case, **named: 2 * kl_by_quadrature(*case, **named),
                    "Your KL is twice too large. Where did the ½ in the exponent of a normal "
                    "density go?",
                ),
                Misconception(
                    "the logarithms not halved",
                    lambda mean, variance, prior_mean, prior_variance: (
                        kl_by_quadrature(mean, variance, prior_mean, prior_variance)
                        + 0.5 * np.log(prior_variance / variance)
                    ),
                    "The quadratic part is right. A normal density has 1/√v in front of it: what "
                    "is its logarithm?",
                ),
                Misconception(
                    "minus a half left out",
                    lambda mean, variance, prior_mean, prior_variance: (
                        kl_by_quadrature(mean, variance, prior_mean, prior_variance) + 0.5
                    ),
                    "Your KL is a half too large for every cell. What is the mean under q of "
                    "(t − m)²/2v, the exponent of q itself?",
                ),
                Misconception(
                    "the prior of z",
                    lambda mean, variance, prior_mean, prior_variance: kl_by_quadrature(
                        mean, variance, np.zeros(1), np.ones(1)
                    ),
                    "This is the KL to N(0, 1), the prior of z. The prior of log ℓ has a mean and "
                    "a variance of its own.",
                ),
                Misconception(
                    "only the means",
                    lambda mean, variance, prior_mean, prior_variance: (
                        (mean - prior_mean) ** 2 / (2 * prior_variance)
                    ),
                    "With equal means you get 0. But if q is narrower than the prior, that costs "
                    "something too.",
                ),
            ),
        ),
        Exercise(
            name="10.4",
            title="Are the mice mixed?",
            points=3,
            draw=draw_spaces,
            oracle=mixing_with(),
            call="arrays",
            verified="Agrees with scikit-learn's neighbours, with 3 types in 3 uneven batches and "
            "two that are too small.",
            misconceptions=(
                Misconception(
                    "a cell is its own neighbour",
                    mixing_with(itself=True),
                    "Your score is too low: the nearest of your neighbours is at distance 0, and "
                    "always of the same batch. Which cell is that?",
                ),
                Misconception(
                    "neighbours of any type",
                    mixing_with(any_type=True),
                    "Your neighbours may be of another type. Types are not equally frequent in the "
                    "batches, so this says nothing about mixing. Look within each type.",
                ),
                Misconception(
                    "types ignored",
                    mixing_across_types,
                    "You don't use the types. They are not equally frequent in the batches, so "
                    "this says nothing about mixing. Look within each type.",
                ),
                Misconception(
                    "half expected",
                    mixing_with(chance=lambda batch, own: np.full(len(own), 0.5)),
                    "You expect one neighbour in two from the other batch. What if a type has "
                    "182 cells in one batch and 9 in the other?",
                ),
                Misconception(
                    "expected over all types",
                    mixing_with(
                        chance=lambda batch, own: (
                            (batch != batch[own, None]).sum(1) / (len(batch) - 1)
                        )
                    ),
                    "You expect the other batch's share of all cells. Within a type its share can "
                    "be very different.",
                ),
                Misconception(
                    "the cell itself expected",
                    mixing_with(chance=lambda batch, own: (batch[own] != batch[own, None]).mean(1)),
                    "Almost. How many cells of its type can be a cell's neighbours?",
                ),
                Misconception(
                    "nothing expected",
                    mixing_with(ratio_of="nothing"),
                    "This is the observed share itself. With what is it compared in the "
                    "definition?",
                ),
                Misconception(
                    "small types counted",
                    mixing_with(small=True),
                    "In a type of k cells or fewer, all cells are neighbours of each other, so it "
                    "looks mixed in any space. Leave such types out.",
                ),
                Misconception(
                    "types of k cells counted",
                    mixing_with(of_k=True),
                    "A type of exactly k cells is counted. Each of its cells has only k − 1 other "
                    "cells of its type. From how many cells on does a type count?",
                ),
                Misconception(
                    "one batch against the rest",
                    mixing_with(first=True),
                    "With two batches you are right. Here are three, and you count two of them as "
                    "one. When is a neighbour from another batch?",
                ),
                Misconception(
                    "a mean of ratios",
                    mixing_with(ratio_of="cells"),
                    "You divide cell by cell. Where one mouse has almost all cells of a type, one "
                    "neighbour from the other mouse can then count as twenty. Sum first.",
                ),
                Misconception(
                    "a mean over types",
                    mixing_with(ratio_of="types"),
                    "You divide type by type, so that a rare type counts as much as a common one. "
                    "The definition takes both means over cells.",
                ),
            ),
        ),
        Exercise(
            name="10.5",
            title="Bug hunt: normalised expression",
            points=2,
            draw=draw_logits,
            oracle=shares,
            verified="Agrees with 1 / Σ_h exp(l_h − l_g), draw by draw and batch by batch.",
            misconceptions=(
                Misconception(
                    "softmax of the mean",
                    lambda logits: softmax(logits.mean((0, 1))),
                    "You average first and take the softmax afterwards. The mean of ρ is asked "
                    "for, and a softmax is not linear.",
                ),
                Misconception(
                    "softmax of the mean over draws",
                    lambda logits: softmax(logits.mean(0)).mean(0),
                    "Over batches you average shares, but over draws you still average logits.",
                ),
                Misconception(
                    "softmax of the mean over batches",
                    lambda logits: softmax(logits.mean(1)).mean(0),
                    "Over draws you average shares, but over batches you still average logits.",
                ),
                Misconception(
                    "shares of cells",
                    lambda logits: softmax(logits, axis=2).mean((0, 1)),
                    "Sum your result over the genes of one cell: it is not 1. Over which axis does "
                    "the softmax run?",
                ),
                Misconception(
                    "softmax of the mean, over cells",
                    lambda logits: softmax(logits.mean((0, 1)), axis=0),
                    "Two of the bugs are still there: the order of mean and softmax, and the axis "
                    "of the softmax.",
                ),
                Misconception(
                    "one batch",
                    lambda logits: softmax(logits[:, 0]).mean(0),
                    "This is the expression as if all cells were in the first batch. What is asked "
                    "for is a mean over batches.",
                ),
                Misconception(
                    "a sum over batches",
                    lambda logits: softmax(logits).mean(0).sum(0),
                    "A cell's shares should sum to 1, but yours sum to the number of batches.",
                ),
                Misconception(
                    "mean of the logarithms",
                    lambda logits: np.exp(np.log(softmax(logits)).mean((0, 1))),
                    "This is a geometric mean: its shares sum to less than 1. Which mean is asked "
                    "for?",
                ),
            ),
        ),
    )
}
