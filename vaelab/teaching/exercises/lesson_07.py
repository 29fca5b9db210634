"""Exercises of lesson 07: Gumbel-softmax."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


def softmax(logits, temperature=1.0):
    from scipy import special

    return special.softmax(np.asarray(logits, dtype=float) / temperature, axis=-1)


def log_softmax(logits):
    from scipy import special

    return special.log_softmax(np.asarray(logits, dtype=float), axis=-1)


# 07.1: the bound with y summed out


def draw_cells_of_types(rng: np.random.Generator) -> list[dict]:
    """One cell that is undecided between two types, then forty and five, some of them certain."""
    cases = [
        {
            "logits": np.zeros((1, 2)),
            "log_p_x": np.array([[-1.0, -2.0]]),
            "log_prior": np.log([0.25, 0.75]),
        }
    ]
    for dtype in (np.float64, np.float32):
        logits = rng.normal(0, 1, (40, 5)) * np.where(rng.random((40, 1)) < 0.2, 300, 1.5)
        cases.append(
            {
                "logits": logits.astype(dtype),
                "log_p_x": (-20 + 3 * rng.standard_normal((40, 5))).astype(dtype),
                "log_prior": np.log(rng.dirichlet(np.ones(5))).astype(dtype),
            }
        )
    return cases


def summed_out(logits, log_p_x, log_prior):
    """The bound as log p(x) − KL(q(y) ‖ p(y|x))."""
    from scipy import special

    joint = np.asarray(log_p_x, float) + np.asarray(log_prior, float)
    log_evidence = special.logsumexp(joint, axis=-1)
    log_q = log_softmax(logits)
    gap = special.rel_entr(np.exp(log_q), np.exp(joint - log_evidence[:, None])).sum(-1)
    return log_evidence - gap


def logarithm_of_softmax(logits, log_p_x, log_prior):
    """The bound with log(softmax): NaN where a probability is rounded to 0, in its precision."""
    import torch

    q = torch.from_numpy(logits).softmax(-1)
    terms = torch.from_numpy(log_p_x) + torch.from_numpy(log_prior) - q.log()
    return (q * terms).sum(-1).numpy()


def bound_with(kl):
    """The bound with another KL, which is a function of q, log q and the log prior."""

    def wrong(logits, log_p_x, log_prior):
        log_q = log_softmax(logits)
        q = np.exp(log_q)
        return (q * log_p_x).sum(-1) - kl(q, log_q, np.broadcast_to(log_prior, q.shape))

    return wrong


# 07.2: Gumbel-max


def draw_uniforms(rng: np.random.Generator) -> list[dict]:
    """One draw of two classes, many of four, u close to 0 and to 1, and races that are close.

    In a close race the first two waits differ by 0.2 to 1 %. There u is not close to 0 or 1: then
    an epsilon of any size fails in the same draws, those made for it.
    """
    low = {"logits": np.array([0.0, -6.7]), "u": np.array([[1e-300, 0.5], [0.5, 0.5]])}
    high = {"logits": np.array([0.0, -36.0]), "u": np.full((3, 2), 0.5)}
    high["u"][:, 1] = 1 - np.array([2.0**-53, 1e-15, 1e-12])
    logits, u = rng.uniform(20, 21.5, 4), rng.uniform(0.05, 0.95, (100_000, 4))
    first, second, *_ = np.sort(waits(logits, u)).T
    is_close = (second > 1.002 * first) & (second < 1.01 * first) & (u.max(1) < 0.6)
    many = {"logits": logits, "u": u[second > 1.05 * first][:300]}
    close = {"logits": logits, "u": u[is_close]}
    one = {"logits": np.log([0.2, 0.8]), "u": np.array([[0.9, 0.3]])}
    return [one, many, low, high, close]


def waits(logits, u):
    """The waits of the clocks: −log u_k / q_k for class k, but for a unit."""
    return -np.log(u) / np.exp(logits - logits.max())


def first_of_the_race(logits, u):
    return waits(logits, u).argmin(-1)


def race_with(inner=0.0, outer=0.0, low=0.0, high=1.0):
    """Gumbel-max with an epsilon in each logarithm, and with u clamped."""

    def wrong(logits, u):
        wait = -np.log(np.clip(u, low, high) + inner)
        return (logits - np.log(wait + outer)).argmax(-1)

    return wrong


# 07.3: the mean of a relaxed draw


def draw_differences(rng: np.random.Generator) -> list[dict]:
    cases = [{"difference": 1.0, "temperature": 1.0}]
    for temperature in (0.2, 0.5, 1.0, 2.0, 5.0):
        for sign in (-1, 1):
            difference = sign * float(rng.uniform(0.5, 3))
            cases.append({"difference": difference, "temperature": temperature})
    return cases


def mean_by_quadrature(difference, temperature):
    """E[y₁] = E[σ(δ + τ·t)], t ~ Logistic(0, 1): the integral of the lesson, by parts."""
    from scipy import integrate, special

    def integrand(t):
        return special.expit(difference + temperature * t) * special.expit(t) * special.expit(-t)

    return np.asarray(integrate.quad(integrand, -40, 40, limit=500)[0])


def mean_with(noise, score=lambda difference, temperature, s: (difference + s) / temperature):
    """The mean with another noise (a name in scipy.stats), or with the noise in another place."""

    def wrong(difference, temperature):
        from scipy import special, stats

        s = getattr(stats, noise).ppf((np.arange(20_000) + 0.5) / 20_000)
        return np.asarray(special.expit(score(difference, temperature, s)).mean())

    return wrong


# 07.4: RLOO, one term for each draw


def draw_scores(rng: np.random.Generator) -> list[dict]:
    """Three draws of two classes, then a few and many of four."""
    cases = [{"logits": np.zeros(2), "drawn": np.array([0, 1, 1]), "f": np.array([1.0, 2.0, 4.0])}]
    for n_samples in (2, 50):
        logits = rng.normal(0, 1, 4)
        drawn = rng.choice(4, size=n_samples, p=softmax(logits))
        cases.append({"logits": logits, "drawn": drawn, "f": rng.normal(-7, 2, n_samples)})
    return cases


def log_q_by_differences(logits, drawn):
    """∇log q of each draw: central differences of the logarithm of its probability."""
    steps = 1e-5 * np.eye(len(logits))
    columns = [log_softmax(logits + h)[drawn] - log_softmax(logits - h)[drawn] for h in steps]
    return np.stack(columns, axis=-1) / 2e-5


def mean_of_others(f):
    return np.array([np.delete(f, s).sum() for s in range(len(f))]) / max(1, len(f) - 1)


def rloo_terms(logits, drawn, f):
    return (f - mean_of_others(f))[:, None] * log_q_by_differences(logits, drawn)


def terms_with(baseline=mean_of_others, score=log_q_by_differences):
    """The terms with another baseline, or with something else in place of ∇log q."""

    def wrong(logits, drawn, f):
        return (f - baseline(f))[:, None] * score(logits, drawn)

    return wrong


def one_hot_less(what):
    """1[y = k] less a function of the logits, in place of ∇log q."""
    return lambda logits, drawn: np.eye(len(logits))[drawn] - what(logits)


# 07.5: straight-through


def draw_straight_through(rng: np.random.Generator) -> list[dict]:
    """One draw of two classes, then thirty of four at three temperatures."""
    cases = [
        {
            "logits": np.array([[0.5, 0.0]]),
            "e": np.array([[1.0, 0.7]]),
            "temperature": 0.5,
            "weight": np.array([[1.0, 0.0]]),
        }
    ]
    for temperature in (0.3, 0.8, 3.0):
        logits, weight = rng.normal(0, 1, (2, 30, 4))
        e = rng.exponential(size=(30, 4))
        cases.append(
            {
                "logits": logits,
                "e": e,
                "temperature": temperature,
                "weight": weight,
            }
        )
    return cases


def relaxed(logits, e, temperature):
    return softmax(logits - np.log(e), temperature)


def pulled_back(y, temperature, weight):
    """weightᵀ times the Jacobian of softmax(scores/τ): (diag y − y yᵀ)/τ, written out."""
    jacobian = np.einsum("nk,kl->nkl", y, np.eye(y.shape[-1])) - np.einsum("nk,nl->nkl", y, y)
    return np.einsum("nk,nkl->nl", weight, jacobian) / temperature


def one_hot_and_gradient(logits, e, temperature, weight):
    winner = (e / np.exp(logits)).argmin(-1)
    y = relaxed(logits, e, temperature)
    return np.eye(logits.shape[-1])[winner], pulled_back(y, temperature, weight)


def with_gradient(gradient):
    """A one-hot value with another gradient."""

    def wrong(logits, e, temperature, weight):
        value, _ = one_hot_and_gradient(logits, e, temperature, weight)
        return value, gradient(logits, e, temperature, weight)

    return wrong


def soft_value(logits, e, temperature, weight):
    y = relaxed(logits, e, temperature)
    return y, pulled_back(y, temperature, weight)


# 07.6: the KL to a uniform prior


def draw_logits_of_many(rng: np.random.Generator) -> list[dict]:
    """An undecided cell of 12 classes, cells of 3, 10, 14, some certain, and one of 1,000.

    With 1,000 classes an epsilon of 1e-8 in the logarithm changes more than rounding does.
    """
    cases = [{"logits": np.zeros((1, 12))}]
    for n_classes in (3, 10, 14):
        scale = np.where(rng.random((20, 1)) < 0.2, 800, 1.5)
        cases.append({"logits": rng.normal(0, 1, (20, n_classes)) * scale})
    return [*cases, {"logits": np.zeros((1, 1000))}]


def kl_to_uniform(logits):
    from scipy import stats

    q = softmax(logits)
    return np.maximum(stats.entropy(q, np.ones_like(q), axis=-1), 0)  # rounding gives −3e-16


def kl_with_logarithm_of_softmax(logits):
    """The KL with log(softmax): NaN where a probability is rounded to 0."""
    q = softmax(logits)
    return (q * np.log(q)).sum(-1) + np.log(q.shape[-1])


def negative_entropy(logits):
    from scipy import special

    return -special.entr(softmax(logits)).sum(-1)


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="07.1",
            title="Spot the error: a bound that needs no draw",
            points=3,
            draw=draw_cells_of_types,
            oracle=summed_out,
            verified="Agrees with log p(x) minus the KL to the true posterior for 81 cells, in "
            "float32 and float64.",
            misconceptions=(
                Misconception(
                    "the logarithm of a softmax",
                    logarithm_of_softmax,
                    "Some cells give NaN. They are certain: a probability is so small that it is "
                    "rounded to 0, and 0 · log 0 is NaN. Can you get log q without going through "
                    "q?",
                ),
                Misconception(
                    "the KL weighted twice",
                    bound_with(lambda q, log_q, log_prior: (q * q * (log_q - log_prior)).sum(-1)),
                    "Your KL is not a KL. How many times do you weight log q_k − log π_k by q_k?",
                ),
                Misconception(
                    "the KL once for each class",
                    bound_with(
                        lambda q, log_q, log_prior: q.shape[-1] * (q * (log_q - log_prior)).sum(-1)
                    ),
                    "Your KL is too large. It is one number per cell: how often did you subtract "
                    "it?",
                ),
                Misconception(
                    "the KL added",
                    bound_with(lambda q, log_q, log_prior: -(q * (log_q - log_prior)).sum(-1)),
                    "Your bound rises as q moves away from the prior. Should the KL raise the "
                    "bound, or lower it?",
                ),
                Misconception(
                    "no KL",
                    bound_with(lambda q, log_q, log_prior: 0.0),
                    "This is the reconstruction alone. The term for how far q is from the prior is "
                    "missing.",
                ),
                Misconception(
                    "a uniform prior",
                    bound_with(lambda q, log_q, log_prior: (q * log_q).sum(-1) + np.log(q[0].size)),
                    "You assumed that all types are equally frequent. log_prior says how frequent "
                    "they are.",
                ),
            ),
        ),
        Exercise(
            name="07.2",
            title="Gumbel-max",
            points=2,
            draw=draw_uniforms,
            oracle=first_of_the_race,
            verified="Names the winner of the same race of clocks: in 300 draws, where u is close "
            "to 0 or to 1, and where the race is close.",
            misconceptions=(
                Misconception(
                    "noise on probabilities",
                    lambda logits, u: (softmax(logits) - np.log(-np.log(u))).argmax(-1),
                    "The noise belongs on log q, and you added it to q.",
                ),
                Misconception(
                    "one logarithm",
                    lambda logits, u: (logits - np.log(u)).argmax(-1),
                    "−log u is the waiting time of a clock. Which function turned waiting times "
                    "into scores?",
                ),
                Misconception(
                    "the noise upside down",
                    lambda logits, u: (logits + np.log(-np.log(u))).argmax(-1),
                    "A short wait should give a high score. Which sign does log e get?",
                ),
                Misconception(
                    "u kept away from 0",
                    race_with(inner=1e-20),
                    "Almost. It goes wrong where u is close to 0. What was added to u, or was u "
                    "clamped?",
                ),
                Misconception(
                    "u raised above 1",
                    race_with(inner=1e-10),
                    "Almost. It goes wrong where u is close to 0, and where it is close to 1. What "
                    "was added to u, and where is u then?",
                ),
                Misconception(
                    "u kept away from 1",
                    race_with(outer=1e-10),
                    "Almost. It goes wrong where u is close to 1. What was added to −log u, or was "
                    "u clamped?",
                ),
                Misconception(
                    "u kept away from 0 and 1",
                    race_with(low=1e-10, high=1 - 1e-10),
                    "Almost. It goes wrong where u is close to 0, and where it is close to 1. What "
                    "was added in the logarithms, or was u clamped?",
                ),
                Misconception(
                    "something added to q",
                    lambda logits, u: first_of_the_race(np.log(softmax(logits) + 1e-8), u),
                    "Almost. It goes wrong for a class with a very small q. What was added to q? "
                    "The logits are log q but for a constant, and need no logarithm.",
                ),
                Misconception(
                    "the last of the race",
                    lambda logits, u: waits(logits, u).argmax(-1),
                    "This is the clock that rings last. Which score belongs to the shortest wait: "
                    "the largest, or the smallest?",
                ),
                Misconception(
                    "1 − u for u",
                    lambda logits, u: first_of_the_race(logits, 1 - u),
                    "You took 1 − u for u. That too gives draws from q, but it is another race: "
                    "here the waits are −log u.",
                ),
                Misconception(
                    "no noise",
                    lambda logits, u: np.full(len(u), logits.argmax()),
                    "This gives the most probable class each time. Where does u come in?",
                ),
            ),
        ),
        Exercise(
            name="07.3",
            title="The mean of a relaxed draw",
            points=3,
            draw=draw_differences,
            oracle=mean_by_quadrature,
            rtol=1e-3,
            atol=1e-4,
            verified="Agrees with quadrature to three digits, at 11 settings.",
            misconceptions=(
                Misconception(
                    "the probability",
                    lambda difference, temperature: np.asarray(1 / (1 + np.exp(-difference))),
                    "This is q₁, the mean of a one-hot draw. A relaxed draw has another mean.",
                ),
                Misconception(
                    "no noise",
                    lambda difference, temperature: np.asarray(
                        1 / (1 + np.exp(-difference / temperature))
                    ),
                    "This is softmax(log q / τ), without any noise. What is the mean of y over s?",
                ),
                Misconception(
                    "the integral and its error",
                    lambda difference, temperature: (
                        mean_by_quadrature(difference, temperature),
                        np.asarray(0.0),
                    ),
                    "The mean is right, but you returned two numbers. `quad` gives the integral "
                    "and an estimate of its error. Only the first is asked for.",
                ),
                Misconception(
                    "the density overflows",
                    lambda difference, temperature: np.asarray(np.nan),
                    "Your mean is NaN. Most often an exponential has overflowed: for s = −1,000, "
                    "exp(−s) is infinite, and ∞/∞ is NaN. How far out is there any mass? And "
                    "which sigmoid does not overflow?",
                ),
                Misconception(
                    "one Gumbel in place of a difference of two",
                    mean_with("gumbel_r"),
                    "Each of the two classes has its own noise. How is their difference "
                    "distributed?",
                ),
                Misconception(
                    "normal noise",
                    mean_with("norm"),
                    "The difference of two Gumbel variables is bell-shaped, but not normal.",
                ),
                Misconception(
                    "noise not divided by the temperature",
                    mean_with("logistic", lambda d, temperature, s: d / temperature + s),
                    "The temperature divides the score, and the noise is part of the score.",
                ),
            ),
        ),
        Exercise(
            name="07.4",
            title="RLOO: a baseline from the other draws",
            points=3,
            draw=draw_scores,
            oracle=rloo_terms,
            atol=1e-7,
            verified="Each term agrees with the numerical derivative of log q, for 2, 3 and 50 "
            "draws.",
            misconceptions=(
                Misconception(
                    "no −q in the gradient of log q",
                    terms_with(score=one_hot_less(lambda logits: 0.0)),
                    "The baseline is right, but this is not the gradient of log q. Softmax divides "
                    "by a sum that contains every logit: what does that add to the derivative?",
                ),
                Misconception(
                    "logits in place of q",
                    terms_with(score=one_hot_less(lambda logits: logits)),
                    "The baseline is right, but in the gradient of log q you subtract the logits. "
                    "They are not probabilities.",
                ),
                Misconception(
                    "the gradient with respect to q",
                    terms_with(
                        score=lambda logits, drawn: np.eye(len(logits))[drawn] / softmax(logits)
                    ),
                    "This differentiates log q_y with respect to q. What is the gradient of log "
                    "softmax(logits)_y with respect to the logits?",
                ),
                Misconception(
                    "a draw in its own baseline",
                    terms_with(baseline=np.mean),
                    "Your answer is too small by a factor of (S − 1)/S. Does a draw's baseline "
                    "depend on the draw itself?",
                ),
                Misconception(
                    "no baseline",
                    terms_with(baseline=lambda f: 0.0),
                    "This is REINFORCE: unbiased, but its variance grows with the size of f. What "
                    "is subtracted from each f?",
                ),
                Misconception(
                    "the sign turned",
                    lambda logits, drawn, f: -rloo_terms(logits, drawn, f),
                    "Your terms have the wrong sign. Which is subtracted from which: the baseline "
                    "from f, and q from the one-hot draw?",
                ),
                Misconception(
                    "the mean over draws",
                    lambda logits, drawn, f: rloo_terms(logits, drawn, f).mean(0),
                    "Your answer is the mean over draws. Return the terms before it is taken, one "
                    "row for each draw.",
                ),
                Misconception(
                    "divided by the number of draws",
                    lambda logits, drawn, f: rloo_terms(logits, drawn, f) / len(f),
                    "Your terms are too small by a factor of S. The mean is taken later.",
                ),
            ),
        ),
        Exercise(
            name="07.5",
            title="Straight-through",
            points=2,
            draw=draw_straight_through,
            oracle=one_hot_and_gradient,
            call="gradient",
            results=("one-hot draws", "gradient in the logits"),
            verified="One-hot forward; backward the gradient of the softmax, at 91 draws.",
            misconceptions=(
                Misconception(
                    "the gradient is lost",
                    with_gradient(lambda logits, *_: np.zeros_like(logits)),
                    "The value is right, but no gradient flows back. Does anything in your result "
                    "still depend on the logits?",
                ),
                Misconception(
                    "the gradient with a minus",
                    with_gradient(
                        lambda logits, e, temperature, weight: (
                            -pulled_back(relaxed(logits, e, temperature), temperature, weight)
                        )
                    ),
                    "The value is right, but the gradient has the wrong sign. Which of y and its "
                    "detached copy is subtracted?",
                ),
                Misconception(
                    "the winner's entry alone",
                    with_gradient(
                        lambda logits, e, temperature, weight: pulled_back(
                            relaxed(logits, e, temperature),
                            temperature,
                            weight
                            * one_hot_and_gradient(logits, e, temperature, weight)[0]
                            / relaxed(logits, e, temperature),
                        )
                    ),
                    "The value is right, but the gradient passes through the winner's entry of y "
                    "alone. A product with one-hot removes the others: can you add instead?",
                ),
                Misconception(
                    "soft forward",
                    soft_value,
                    "This is the relaxed draw itself: the gradient is right, but the value is not "
                    "one-hot.",
                ),
                Misconception(
                    "the gradient goes past the softmax",
                    with_gradient(lambda logits, e, temperature, weight: weight),
                    "Your gradient reaches the logits unchanged. It should be that of the relaxed "
                    "draw.",
                ),
                Misconception(
                    "the temperature forgotten",
                    with_gradient(
                        lambda logits, e, temperature, weight: pulled_back(
                            relaxed(logits, e, 1.0), 1.0, weight
                        )
                    ),
                    "This is the gradient at temperature 1. Where does the temperature enter?",
                ),
            ),
        ),
        Exercise(
            name="07.6",
            title="Bug hunt: a KL below zero",
            points=2,
            draw=draw_logits_of_many,
            oracle=kl_to_uniform,
            atol=2e-6,  # log K, or a row of 1/K, in float32
            verified="Agrees with scipy's KL (`scipy.stats.entropy`) for 3 to 1,000 classes, and "
            "for cells that are certain.",
            misconceptions=(
                Misconception(
                    "the logarithm of a softmax",
                    kl_with_logarithm_of_softmax,
                    "Some cells give NaN. They are certain: a probability is so small that it is "
                    "rounded to 0, and 0 · log 0 is NaN. Can you get log q without going through "
                    "q?",
                ),
                Misconception(
                    "minus the KL",
                    lambda logits: -kl_to_uniform(logits),
                    "This is minus the KL: it is never above 0, and a KL is never below. Which "
                    "logarithm is subtracted?",
                ),
                Misconception(
                    "the KL from the prior to q",
                    lambda logits: -np.log(logits.shape[-1]) - log_softmax(logits).mean(-1),
                    "This is KL(prior ‖ q). Which of the two distributions is the mean taken over "
                    "in KL(q ‖ prior)?",
                ),
                Misconception(
                    "bits",
                    lambda logits: kl_to_uniform(logits) / np.log(2),
                    "This KL is in bits. The lesson counts in nats: which logarithm belongs to "
                    "them?",
                ),
                Misconception(
                    "ten classes, always",
                    lambda logits: negative_entropy(logits) - np.log(0.1),
                    "This is right for ten classes. What is 0.1?",
                ),
                Misconception(
                    "the entropy",
                    lambda logits: -negative_entropy(logits),
                    "This is the entropy of q. It is largest where q equals the prior; the KL is 0 "
                    "there.",
                ),
                Misconception(
                    "minus the entropy",
                    negative_entropy,
                    "This is Σ q log q. The prior is not in it.",
                ),
                Misconception(
                    "the entropy for its negative",
                    lambda logits: np.log(logits.shape[-1]) - negative_entropy(logits),
                    "An undecided q equals the prior and should cost nothing. In yours it costs "
                    "the most.",
                ),
                Misconception(
                    "a mean over classes",
                    lambda logits: kl_to_uniform(logits) / logits.shape[-1],
                    "Your KL is too small by a factor of the number of classes. Should it be a sum "
                    "or a mean?",
                ),
            ),
        ),
    )
}
