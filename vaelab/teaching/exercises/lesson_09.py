"""Exercises of lesson 09: missing data and random effects.

The oracles use Robbins' identity, sums of binomial probabilities and scipy's densities. The
solutions use closed forms, quantile functions and torch.
"""

from __future__ import annotations

import math

import numpy as np

from .core import Exercise, Misconception
from .lesson_02 import with_slopes

__all__ = ["EXERCISES"]

PRECISIONS = (np.float64, np.float32)


def _double(*values):
    return tuple(np.asarray(value, dtype=float) for value in values)


# -------------------------------------------------------------------- 09.1 the posterior mean


def draw_rates(rng: np.random.Generator) -> list[dict]:
    """Counts 0 to 6 of one gene; the same without inflation; a table in both precisions."""
    one = {"x": np.arange(7.0), "mean": np.full(7, 3.0), "theta": np.full(7, 2.0)}
    cases = [one | {"logits": np.full(7, -1.0)}, one | {"logits": np.full(7, -40.0)}]
    for dtype in PRECISIONS:
        mean, theta = 10 ** rng.uniform(-1, 1.5, 200), 10 ** rng.uniform(-1, 1, 200)
        x = rng.poisson(mean * rng.gamma(theta) / theta) * (rng.random(200) < 0.8)
        values = {"x": x, "mean": mean, "theta": theta, "logits": rng.uniform(-3, 3, 200)}
        cases.append({k: v.astype(dtype).reshape(20, 10) for k, v in values.items()})
    return cases


def by_robbins(x, mean, theta, logits):
    """(x + 1) p(x + 1) / p(x), which holds for every mixture of Poissons (Robbins 1956)."""
    from scipy import stats
    from scipy.special import expit

    x, mean, theta, logits = _double(x, mean, theta, logits)

    def p(k):
        nb = stats.nbinom.pmf(k, theta, theta / (theta + mean))
        return np.where(k == 0, expit(logits), 0) + expit(-logits) * nb

    return (x + 1) * p(x + 1) / p(x)


def rate_with(effect: bool = False, kept: str = "posterior"):
    """μ(x+θ)/(μ+θ), or without the μ, times what is thought to be P(not inflated | x)."""

    def posterior_mean(x, mean, theta, logits):
        from scipy.special import expit

        x, mean, theta, logits = _double(x, mean, theta, logits)
        prior, at_zero = expit(-logits), (1 + mean / theta) ** -theta
        posterior = np.where(x > 0, 1, prior * at_zero / (1 - prior + prior * at_zero))
        factor = {
            "posterior": posterior,
            "prior": prior,
            "prior at zero": np.where(x > 0, 1, prior),
            "all": 1.0,
        }[kept]
        return factor * (x + theta) / (mean + theta) * (1 if effect else mean)

    return posterior_mean


def prior_mean(x, mean, theta, logits):
    from scipy.special import expit

    return expit(-np.asarray(logits, dtype=float)) * np.asarray(mean, dtype=float)


def mean_one_prior(x, mean, theta, logits):
    x, mean, theta, logits = _double(x, mean, theta, logits)
    right = rate_with()(x, mean, theta, logits)
    return right * (mean + theta) / (mean * (1 + theta))


# ------------------------------------------------------------------------------ 09.2 thinning


def draw_thinning(rng: np.random.Generator) -> list[dict]:
    """Five counts, then 60 and 61 in both precisions, with another share each time."""
    cases = [
        {
            "x": np.array([0.0, 1.0, 2.0, 5.0, 20.0]),
            "p": 0.25,
            "u": np.array([0.3, 0.6, 0.9, 0.5, 0.2]),
            "v": np.array([0.7, 0.8, 0.1, 0.65, 0.35]),
        }
    ]
    for n, dtype in zip((60, 61), PRECISIONS, strict=True):
        values = {"x": rng.poisson(rng.gamma(0.7, 12, n)), "p": float(rng.uniform(0.55, 0.8))}
        values |= {"u": rng.uniform(0.02, 0.98, n), "v": rng.uniform(0.02, 0.98, n)}
        cases.append({k: v if k == "p" else v.astype(dtype) for k, v in values.items()})
    return cases


def thinned(x, p, u, v):
    """The part, by adding up binomial probabilities until u is reached; and the rest."""
    part = []
    for count, level in zip(x.astype(int).tolist(), u.tolist(), strict=True):
        k, reached = 0, (1 - p) ** count
        while reached < level:
            k += 1
            reached += math.comb(count, k) * p**k * (1 - p) ** (count - k)
        part.append(k)
    part = np.array(part, dtype=float)
    return part, x.astype(float) - part


def two_draws(of: str):
    def thin(x, p, u, v):
        from scipy import stats

        x, u, v = _double(x, u, v)
        if of == "poisson":
            return stats.poisson.ppf(u, p * x), stats.poisson.ppf(v, (1 - p) * x)
        return stats.binom.ppf(u, x, p), stats.binom.ppf(v, x, 1 - p)

    return thin


def poisson_and_rest(x, p, u, v):
    part = two_draws("poisson")(x, p, u, v)[0]
    return part, x - part


def all_or_nothing(x, p, u, v):
    part = np.where(u < p, x, 0.0)
    return part, x - part


def shares(x, p, u, v):
    return p * x.astype(float), (1 - p) * x.astype(float)


def rounded_shares(x, p, u, v):
    part = np.round(p * x.astype(float))
    return part, x - part


# ----------------------------------------------------------------------- 09.3 the masked bound


def draw_masked(rng: np.random.Generator) -> list[dict]:
    """Two cells; 20 and 21 in both precisions; and 6 whose hidden entries are infinite, one of
    which has no observed gene.
    """
    cases = []
    for n, n_genes, n_latent, dtype in (
        (2, 3, 1, np.float64),
        (20, 8, 2, np.float64),
        (21, 8, 2, np.float32),
        (6, 5, 2, np.float64),
    ):
        observed = rng.random((n, n_genes)) < 0.7
        observed[0], observed[0, 0], observed[1, 0] = True, False, True
        W = 0.5 * rng.normal(size=(n_latent, n_genes))
        values = {
            "x": rng.poisson(4.0, (n, n_genes)).astype(float),
            "observed": observed,
            "A": 0.4 * rng.normal(size=(n_genes, n_latent)),
            "s": rng.uniform(0.3, 0.9, n_latent),
            "W": W,
            "eps": rng.normal(size=(n, n_latent)),
        }
        cases.append({k: v if k == "observed" else v.astype(dtype) for k, v in values.items()})
    cases[-1]["observed"][2] = False
    cases[-1]["x"] = np.where(cases[-1]["observed"], cases[-1]["x"], np.inf)
    return cases


def masked_with(
    encoded: str = "observed",
    scored: str = "observed",
    kl: float | str = 1.0,
    rescaled: bool = False,
    multiplied: bool = False,
):
    """The masked bound; the options make one mistake each."""

    def masked_bound(x, observed, A, s, W, eps):
        from scipy import stats

        x, A, s, W, eps = _double(x, A, s, W, eps)
        filled = x * observed if multiplied else np.where(observed, x, 0.0)
        m = np.log1p({"observed": filled, "all": x, "hidden": x - filled}[encoded]) @ A
        counts = x if scored in ("all", "hidden") else filled
        log_px = stats.poisson.logpmf(counts, np.exp((m + s * eps) @ W))
        keep = {"observed": observed, "hidden": ~observed}.get(scored, np.ones_like(observed))
        log_px = np.where(keep, log_px, 0.0).sum(1)
        seen = observed.mean(1)
        price = (np.square(m) / 2 + np.square(s) / 2 - 0.5 - np.log(s)).sum(1)
        return log_px / (seen if rescaled else 1.0) - price * (seen if kl == "seen" else kl)

    return with_slopes(masked_bound)


def masked_afterwards(x, observed, **inputs):
    """The right values; but 0 · ∞ on the way back, wherever an infinite hidden entry was scored."""
    value, A, s, W, eps = masked_with()(x=x, observed=observed, **inputs)
    scored = ~np.isfinite(x)
    if scored.any():
        A, s = np.full_like(A, np.nan), np.full_like(s, np.nan)
    W = np.where(scored.any(0), np.nan, W)
    return value, A, s, W, np.where(scored.any(1)[:, None], np.nan, eps)


# ------------------------------------------------------------------- 09.4 the score of imputing


def draw_hidden(rng: np.random.Generator) -> list[dict]:
    cases = [
        {
            "x": np.array([[1.0, 0.0], [4.0, 2.0]]),
            "mean": np.array([[2.0, 1.0], [3.0, 0.5]]),
            "observed": np.array([[True, False], [True, True]]),
        }
    ]
    for n, dtype in zip((30, 31), PRECISIONS, strict=True):
        mean = rng.gamma(2.0, 2.0, (n, 12)) + 0.05
        values = {"x": rng.poisson(mean), "mean": mean}
        cases.append({k: v.astype(dtype) for k, v in values.items()})
        cases[-1]["observed"] = rng.random((n, 12)) < 0.8
    return cases


def score_of(entries: str, average: bool = False):
    def imputation_score(x, mean, observed):
        from scipy import stats

        x, mean = _double(x, mean)
        keep = {"hidden": ~observed, "observed": observed, "all": observed | True}[entries]
        score = stats.poisson.logpmf(x[keep], mean[keep])
        return score.mean() if average else score.sum()

    return imputation_score


def blanked(x, mean, observed):
    """Hidden entries scored as zeros."""
    return score_of("hidden")(np.where(observed, x, 0.0), mean, observed)


# ------------------------------------------------------------------------------- 09.5 IWAE


def draw_weights(rng: np.random.Generator) -> list[dict]:
    """One cell and two draws; 20 and 21 cells in both precisions; cells whose weights underflow."""
    cases = []
    for n, n_draws, dtype, far in (
        (1, 2, np.float64, 1.0),
        (20, 5, np.float64, 1.5),
        (21, 6, np.float32, 1.5),
        (7, 4, np.float64, 80.0),
    ):
        x = far * rng.normal(1, 0.3, n) * rng.choice([-1, 1], n)
        values = {
            "x": x,
            "m": 0.4 * x + 0.2 * rng.normal(size=n),
            "s": rng.uniform(0.5, 1.2, n),
            "eps": rng.normal(size=(n_draws, n)),
            "more_eps": rng.normal(size=(n_draws, n)),
        }
        cases.append({name: value.astype(dtype) for name, value in values.items()})
    return cases


def weights_of(together, separate: bool = False):
    def iwae(x, m, s, eps, more_eps):
        from scipy import stats

        x, m, s, eps, more_eps = _double(x, m, s, eps, more_eps)
        z = m + s * eps
        above = stats.norm.logpdf(x, z, 1) + stats.norm.logpdf(z)
        below = stats.norm.logpdf(m + s * more_eps if separate else z, m, s)
        return together(above, below)

    return iwae


def log_mean(values):
    largest = values.max(0)
    return largest + np.log(np.exp(values - largest).mean(0))


def naive_log_mean(values):
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values).mean(0))


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="09.1",
            title="The rate of an entry, given its count",
            points=3,
            draw=draw_rates,
            oracle=by_robbins,
            verified="Agrees with Robbins' identity, (x + 1) p(x + 1) / p(x), at 414 entries.",
            rtol=1e-7,
            misconceptions=(
                Misconception(
                    "E[u|x] in place of E[λ|x]",
                    rate_with(effect=True),
                    "This is the posterior mean of u, a factor near 1. What is λ, if you know u?",
                ),
                Misconception(
                    "E[u|x] times 1 − π, as the source had it",
                    rate_with(effect=True, kept="prior"),
                    "This is what the old code returned: the posterior mean of u, with *all* "
                    "entries multiplied by 1 − π. Two things are wrong with it: the units, and "
                    "what a positive count says about inflation.",
                ),
                Misconception(
                    "the mean before x was seen",
                    prior_mean,
                    "This is the mean of λ before x is seen: it is the same for every x. What does "
                    "x say about u?",
                ),
                Misconception(
                    "no inflation",
                    rate_with(kept="all"),
                    "Right for every positive count. A zero may also be an inflated one: how "
                    "probable is that, now that x = 0 was seen?",
                ),
                Misconception(
                    "1 − π everywhere",
                    rate_with(kept="prior"),
                    "You multiply positive counts by 1 − π, too. Can a positive count come from an "
                    "inflated entry?",
                ),
                Misconception(
                    "1 − π at zeros",
                    rate_with(kept="prior at zero"),
                    "Almost. At a zero you use 1 − π, the probability *before* x is seen. Use "
                    "Bayes' rule: how probable is the zero in each of the two ways?",
                ),
                Misconception(
                    "μ left out of the posterior",
                    mean_one_prior,
                    "You treat λ as if its prior mean were 1. Write λ = μu: what are shape and "
                    "rate of u after a count x from Poisson(μu)?",
                ),
            ),
        ),
        Exercise(
            name="09.2",
            title="One experiment made into two",
            points=2,
            draw=draw_thinning,
            oracle=thinned,
            call="arrays",  # for scipy.stats, which the text names
            results=("the part", "the rest"),
            verified="Agrees with a sum of binomial probabilities for 126 counts; nothing is lost.",
            misconceptions=(
                Misconception(
                    "thinning as two draws",
                    two_draws("poisson"),
                    "These are two new draws, and they do not add up to x. Thinning *divides* the "
                    "molecules that were counted: each goes to one side or the other.",
                ),
                Misconception(
                    "two binomials",
                    two_draws("binomial"),
                    "The part is right. But you drew the rest independently, so some molecules are "
                    "counted twice and some are lost. Where does a molecule go if it is not in the "
                    "part?",
                ),
                Misconception(
                    "a Poisson part",
                    poisson_and_rest,
                    "The two sum to x, but a Poisson can give more molecules than x, and the rest "
                    "is then negative. How many of x coins show heads?",
                ),
                Misconception(
                    "one coin for all molecules",
                    all_or_nothing,
                    "All molecules of an entry go to one side. Each should have a coin of its own.",
                ),
                Misconception(
                    "shares, not counts",
                    shares,
                    "These are expected counts, without chance. The parts must be whole numbers, "
                    "and drawn.",
                ),
                Misconception(
                    "rounded shares",
                    rounded_shares,
                    "Whole numbers, but without chance: u is not used. How many of x coins show "
                    "heads?",
                ),
                Misconception(
                    "p and 1 − p exchanged",
                    lambda x, p, u, v: thinned(x, 1 - p, u, v),
                    "Your part has the share 1 − p of the molecules. It should have p.",
                ),
                Misconception(
                    "the other uniform number",
                    lambda x, p, u, v: thinned(x, p, v, u),
                    "This is a thinning, made with v. The check needs the quantile at u.",
                ),
            ),
        ),
        Exercise(
            name="09.3",
            title="A bound that does not look",
            points=3,
            draw=draw_masked,
            oracle=masked_with(),
            call="slopes",
            extreme=1,
            rtol=1e-5,  # so right numbers pass that were computed in float32
            atol=1e-6,
            results=("bound", *(f"slope in {name}" for name in ("A", "s", "W", "eps"))),
            verified="Agrees with scipy for 49 cells, and does not change if hidden entries do.",
            misconceptions=(
                Misconception(
                    "mask only the likelihood",
                    masked_with(encoded="all"),
                    "The hidden counts still go through the encoder: change one of them, and your "
                    "bound changes. Where else does x enter?",
                ),
                Misconception(
                    "mask only the encoder's input",
                    masked_with(scored="all"),
                    "You hide the entries from the encoder, and still score them. The bound on the "
                    "observed entries has no term for a hidden one.",
                ),
                Misconception(
                    "zeros scored as if they were observed",
                    masked_with(scored="filled"),
                    "You fill hidden entries with 0, and then score these zeros as if they had "
                    "been observed.",
                ),
                Misconception(
                    "no mask at all",
                    masked_with(encoded="all", scored="all"),
                    "The mask is not used yet: it enters twice.",
                ),
                Misconception(
                    "reweight the KL",
                    masked_with(kl="seen"),
                    "You multiply the KL by the share of observed genes. z belongs to the whole "
                    "cell: its price does not depend on how many genes were seen.",
                ),
                Misconception(
                    "likelihood scaled up",
                    masked_with(rescaled=True),
                    "You divide by the share of observed genes, as if the others had been seen, "
                    "too. Then it is no longer a bound on log p of what was observed.",
                ),
                Misconception(
                    "mask inverted",
                    masked_with(scored="hidden"),
                    "You score the hidden entries. The mask is True where an entry was observed.",
                ),
                Misconception(
                    "KL left out",
                    masked_with(kl=0.0),
                    "The likelihood is right. The bound has a second term.",
                ),
                Misconception(
                    "multiplied by the mask",
                    masked_with(multiplied=True),
                    "Right, unless a hidden entry is infinite or NaN: 0 · ∞ is NaN. *Choose* with "
                    "the mask (torch.where) before you compute; do not multiply by it.",
                ),
                Misconception(
                    "masked afterwards",
                    masked_afterwards,
                    "The bound is right, but its gradient is NaN. You scored a hidden entry that "
                    "is infinite, and left it out afterwards: on the way back, 0 · ∞ is NaN. "
                    "Replace hidden entries *before* you compute.",
                ),
            ),
        ),
        Exercise(
            name="09.4",
            title="Spot the error: which entries?",
            points=1,
            draw=draw_hidden,
            oracle=score_of("hidden"),
            call="arrays",  # as the cell after it calls the answer
            verified="Agrees with scipy's Poisson, summed over the hidden entries of three tables.",
            misconceptions=(
                Misconception(
                    "the observed entries",
                    score_of("observed"),
                    "This sums the entries that the model was fitted to, as the source does. Which "
                    "entries were imputed?",
                ),
                Misconception(
                    "all entries",
                    score_of("all"),
                    "You sum all entries. Nine in ten of them were seen by the model.",
                ),
                Misconception(
                    "a mean",
                    score_of("hidden", average=True),
                    "The right entries. The sum is asked for, not the mean.",
                ),
                Misconception(
                    "hidden counts as zeros",
                    blanked,
                    "You compare the imputed values with 0. The true counts of the hidden entries "
                    "are in x.",
                ),
            ),
        ),
        Exercise(
            name="09.5",
            title="Bug hunt: weights from other draws",
            points=2,
            draw=draw_weights,
            oracle=weights_of(lambda above, below: log_mean(above - below)),
            extreme=1,
            verified="Agrees with scipy for 49 cells, seven of which are far from what q expects.",
            misconceptions=(
                Misconception(
                    "separate draws above and below",
                    weights_of(lambda above, below: log_mean(above - below), separate=True),
                    "Only one bug is left: z above and z below the fraction are different draws. A "
                    "weight compares p and q *at the same z*.",
                ),
                Misconception(
                    "all of the bugs",
                    weights_of(lambda above, below: (above - below).mean(0), separate=True),
                    "This is still the code as given, in effect. Ask of each z: where was it "
                    "drawn? And what stands inside the logarithm?",
                ),
                Misconception(
                    "the mean of the logarithms",
                    weights_of(lambda above, below: (above - below).mean(0)),
                    "A mean of logarithms is the ELBO, whatever S is. IWAE takes the logarithm of "
                    "a mean.",
                ),
                Misconception(
                    "a sum for a mean",
                    weights_of(lambda above, below: log_mean(above - below) + np.log(len(above))),
                    "Too large by log S: you sum the weights, but the bound is on their mean.",
                ),
                Misconception(
                    "two means",
                    weights_of(lambda above, below: log_mean(above) - log_mean(below)),
                    "You average p and q apart, and then divide. A weight is a ratio for each "
                    "draw; the mean is of ratios.",
                ),
                Misconception(
                    "weights that underflow",
                    weights_of(lambda above, below: naive_log_mean(above - below)),
                    "Right, until the weights are below 1e-308: their exponentials are then 0. Use "
                    "logsumexp.",
                ),
                Misconception(
                    "the largest weight",
                    weights_of(lambda above, below: (above - below).max(0)),
                    "This is the largest weight alone. All S count.",
                ),
            ),
        ),
    )
}
