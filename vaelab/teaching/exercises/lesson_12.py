"""Exercises of lesson 12: the ELBO challenge.

In the worlds of these exercises each variable has a few values. A table has four axes, for ℓ, z1, c
and z2; an axis has length 1 where the table does not depend on its variable. All right answers come
from enumeration, quadrature or a search.
"""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(30)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def log_dirichlet(rng, shape, axis, concentration=1.0):
    """Logs of probabilities that sum to 1 along an axis; none of them close to 0."""
    p = rng.gamma(concentration, size=shape) + 0.05
    return np.log(p / p.sum(axis, keepdims=True))


# 12.1 and 12.2: the two bounds


def tables(rng, n_l, n_z1, C, n_z2) -> dict:
    """p and q of one cell."""
    return {
        "log_p_x": rng.normal(-5, 1.5, (n_l, n_z1, 1, 1)),
        "log_p_library": log_dirichlet(rng, (n_l, 1, 1, 1), 0),
        "log_p_z1": log_dirichlet(rng, (1, n_z1, C, n_z2), 1),
        "log_p_c": log_dirichlet(rng, (1, 1, C, 1), 2),
        "log_p_z2": log_dirichlet(rng, (1, 1, 1, n_z2), 3),
        "log_q_z1": log_dirichlet(rng, (1, n_z1, 1, 1), 1),
        "log_q_library": log_dirichlet(rng, (n_l, 1, 1, 1), 0),
        "log_q_c": log_dirichlet(rng, (1, n_z1, C, 1), 2),
        "log_q_z2": log_dirichlet(rng, (1, n_z1, C, n_z2), 3),
    }


def draw_worlds(rng: np.random.Generator) -> list[dict]:
    return [tables(rng, *sizes) for sizes in ((1, 2, 2, 2), (2, 4, 3, 3), (3, 2, 5, 4))]


def draw_labelled(rng: np.random.Generator) -> list[dict]:
    return [{"c": c, **world} for c, world in zip((1, 0, 3), draw_worlds(rng), strict=True)]


def of_type(c, world) -> dict:
    """The tables of one type; those that do not depend on the type stay as they are."""
    return {k: v if v.shape[2] == 1 else v[:, :, c : c + 1] for k, v in world.items()}


def joint(log_p_x, log_p_library, log_p_z1, log_p_c, log_p_z2, **_):
    return log_p_x + log_p_library + log_p_z1 + log_p_c + log_p_z2


def evidence_minus_gap(log_p, log_q):
    """A bound as log evidence − KL(q ‖ exact posterior)."""
    from scipy import special

    log_evidence = special.logsumexp(log_p)
    gap = special.rel_entr(*np.broadcast_arrays(np.exp(log_q), np.exp(log_p - log_evidence)))
    return np.asarray(log_evidence - gap.sum())


def without_c(world):
    return world["log_q_library"] + world["log_q_z1"] + world["log_q_z2"]


def labelled(c, **world):
    """L, the bound on log p(x, c)."""
    world = of_type(c, world)
    return evidence_minus_gap(joint(**world), without_c(world))


def hidden(**world):
    """U, the bound on log p(x)."""
    return evidence_minus_gap(joint(**world), without_c(world) + world["log_q_c"])


def q_of_types(world):
    """q(z1) q(c | z1), shape (n_z1, C)."""
    return np.exp(world["log_q_z1"] + world["log_q_c"])[0, :, :, 0]


def labelled_with(change):
    """L plus a term that is wrong there, a function of the tables of the type."""

    def wrong(c, **world):
        return labelled(c, **world) + change(of_type(c, world))

    return wrong


def by_classifier(c, **world):
    world = of_type(c, world)
    log_q = without_c(world)
    weights = np.exp(log_q + world["log_q_c"])
    return np.asarray((weights * (joint(**world) - log_q)).sum())


def classifier_in_q(c, **world):
    """All four factors of q, at the type that was seen."""
    world = of_type(c, world)
    log_q = without_c(world) + world["log_q_c"]
    return np.asarray((np.exp(log_q) * (joint(**world) - log_q)).sum())


def not_subtracted(name):
    """L with one factor of q left out of the logarithm, and kept as a weight."""

    def wrong(c, **world):
        world = of_type(c, world)
        log_q = without_c(world)
        value = joint(**world) - (log_q - world[name])
        return np.asarray((np.exp(log_q) * value).sum())

    return wrong


def with_weights(log_weights):
    """log p − log q of the type that was seen, with weights that are wrong."""

    def wrong(c, **world):
        world = of_type(c, world)
        log_p, log_q = joint(**world), without_c(world)
        return np.asarray((np.exp(log_weights(log_p, log_q)) * (log_p - log_q)).sum())

    return wrong


def next_type(c, **world):
    return labelled((c - 1) % world["log_p_c"].size, **world)


def logsumexp_of_bounds(**world):
    from scipy import special

    bounds = [labelled(c, **world) for c in range(world["log_p_c"].size)]
    return np.asarray(special.logsumexp(bounds))


def without_log_q(log_p, log_q):
    return np.asarray((np.exp(log_q) * log_p).sum())


def hidden_with(change):
    """U plus the mean, under q(z1) q(c|z1), of a term that is wrong there."""

    def wrong(**world):
        q, log_q_c = q_of_types(world), world["log_q_c"][0, :, :, 0]
        return hidden(**world) + (q * change(q, log_q_c, world["log_p_c"][0, :, :, 0])).sum()

    return wrong


def without_factor(bound, name):
    """A bound whose log p lacks one factor."""

    def wrong(**case):
        return bound(**case | {name: np.zeros_like(case[name])})

    return wrong


def types_by_prior(**world):
    """The types weighted by p(c) in place of q(c|z1)."""
    log_q = without_c(world)
    value = joint(**world) - log_q - world["log_q_c"]
    return np.asarray((np.exp(log_q + world["log_p_c"]) * value).sum())


def sum_of_labelled(**world):
    return np.asarray(sum(labelled(c, **world) for c in range(world["log_p_c"].size)))


def one_classifier_for_all(**world):
    """q(c), the mean of q(c|z1) over z1, in place of q(c|z1)."""
    q_c = q_of_types(world).sum(0)
    bounds = [labelled(c, **world) for c in range(len(q_c))]
    return np.asarray((q_c * (bounds - np.log(q_c))).sum())


def evidence(**world):
    from scipy import special

    return np.asarray(special.logsumexp(joint(**world)))


def factors_left_out(bound) -> tuple[Misconception, ...]:
    """One mistake for each factor of p that a sum of five can lack."""
    missing = {"log_p_x": "x", "log_p_library": "ℓ", "log_p_z1": "z1", "log_p_z2": "z2"}
    return tuple(
        Misconception(
            f"p of {variable} left out",
            without_factor(bound, name),
            f"Your log p has no factor of {variable}. Go through the story of section 1 again: "
            "there is one factor per variable.",
        )
        for name, variable in missing.items()
    )


# 12.3: the best classifier


def draw_values(rng: np.random.Generator) -> list[dict]:
    """Two values of z1 and two types; then more, where some types are nearly certain."""
    first = {"value": np.array([[-1.0, -2.0], [-4.0, -3.5]]), "log_q_z1": np.log([0.25, 0.75])}
    cases = [first]
    for n_z1, C in ((8, 4), (20, 3)):
        scale = np.where(rng.random((n_z1, 1)) < 0.2, 20.0, 1.5)
        value = -300 + scale * rng.standard_normal((n_z1, C))
        cases.append({"value": value, "log_q_z1": log_dirichlet(rng, n_z1, 0)})
    return cases


def by_multiplier(value, log_q_z1):
    """Stationary points of Σ_c q_c (v_c − log q_c) + λ (1 − Σ q_c), λ from its root."""
    from scipy import optimize

    log_q, best = [], []
    for v in value:

        def excess(m, v=v):
            return np.exp(v - m).sum() - 1

        m = optimize.brentq(excess, v.max() - 1, v.max() + 10, xtol=1e-13, rtol=1e-14)
        log_q.append(v - m)
        best.append(m)
    return np.array(log_q), np.asarray(np.exp(log_q_z1) @ np.array(best))


def value_of(log_q, value, log_q_z1):
    return np.asarray((np.exp(log_q_z1)[:, None] * np.exp(log_q) * (value - log_q)).sum())


def without_doubt(value, log_q_z1):
    one_hot = value == value.max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log(one_hot.astype(float)), np.asarray(np.exp(log_q_z1) @ value.max(-1))


def mean_first(value, log_q_z1):
    from scipy import special

    log_q = special.log_softmax(np.exp(log_q_z1) @ value)
    log_q = np.broadcast_to(log_q, value.shape)
    return log_q, value_of(log_q, value, log_q_z1)


def without_entropy(value, log_q_z1):
    log_q, _ = by_multiplier(value, log_q_z1)
    return log_q, np.asarray((np.exp(log_q_z1)[:, None] * np.exp(log_q) * value).sum())


# 12.4: the terms, from one draw


def draw_cells(rng: np.random.Generator) -> list[dict]:
    """One undecided cell of two types; then six of four types: three have a label, and for one
    only two types are possible."""
    cases = [
        {
            "omega": np.array([[0.5, 0.5]]),
            "log_q_z1": np.array([-1.0]),
            "log_p_z1": np.array([[-2.0, -3.0]]),
            "mean": np.array([[[1.0], [0.0]]]),
            "variance": np.array([[[0.5], [2.0]]]),
            "log_p_c": np.log([0.25, 0.75]),
        }
    ]
    for dtype in (np.float64, np.float32):
        omega = np.exp(log_dirichlet(rng, (6, 4), 1))
        omega[::2] = np.eye(4)[rng.integers(4, size=3)]
        omega[1] = rng.permutation([0.5, 0.5, 0, 0])
        case = {
            "omega": omega,
            "log_q_z1": rng.normal(-2, 1, 6),
            "log_p_z1": rng.normal(-4, 1.5, (6, 4)),
            "mean": rng.normal(0, 1, (6, 4, 2)),
            "variance": rng.uniform(0.2, 2.5, (6, 4, 2)),
            "log_p_c": log_dirichlet(rng, 4, 0),
        }
        cases.append({name: value.astype(dtype) for name, value in case.items()})
    return cases


def kl_z2_of_types(mean, variance):
    """KL(q(z2|z1,c) ‖ N(0, I)) for each type, by Gauss–Hermite; shape (n, C)."""
    from scipy import stats

    mean, std = np.asarray(mean, float)[..., None], np.sqrt(np.asarray(variance, float))[..., None]
    z2 = mean + std * NODES
    return ((stats.norm.logpdf(z2, mean, std) - stats.norm.logpdf(z2)) @ WEIGHTS).sum(-1)


def three_terms(omega, log_q_z1, log_p_z1, mean, variance, log_p_c):
    from scipy import stats

    omega = np.asarray(omega, float)
    omega = omega / omega.sum(-1, keepdims=True)  # in float32 the sum is not exactly 1
    kl_c = stats.entropy(omega, np.exp(np.asarray(log_p_c, float))[None], axis=-1)
    types = range(omega.shape[1])
    z1 = sum(omega[:, c] * (log_p_z1[:, c].astype(float) - log_q_z1) for c in types)
    kl_z2 = kl_z2_of_types(mean, variance)
    return z1, -sum(omega[:, c] * kl_z2[:, c] for c in types), -kl_c


def terms_with(change):
    """The three terms, changed by a function of them and the case."""

    def wrong(**case):
        return change(*three_terms(**case), **case)

    return wrong


def nan_if_labelled(z1, kl_z2, kl_c, omega, **_):
    return z1, kl_z2, np.where((omega == 0).any(-1), np.nan, kl_c)


def entropy_lost(z1, kl_z2, kl_c, omega, log_p_c, **_):
    """NaN put to 0 per row, after the sum over types."""
    with np.errstate(all="ignore"):
        entropy = (omega.astype(float) * np.log(omega.astype(float))).sum(-1)
    return z1, kl_z2, (omega * log_p_c).sum(-1) - np.nan_to_num(entropy)


def kl_z2_with_std(z1, kl_z2, kl_c, omega, mean, variance, **_):
    return z1, -(omega * kl_z2_of_types(mean, variance.astype(float) ** 2)).sum(-1), kl_c


# 12.5: which line is which term

WHICH = {
    1: (0, "reconstruction"),
    2: (1, "kl_z2"),
    3: (0, "log_p_z1"),
    4: (0, "log_q_z1"),
    5: (1, "kl_c"),
    6: (1, "kl_library"),
    7: (1, "kl_library"),
    8: (0, "outside"),
    9: (0, "unknown"),
    10: (0, "unknown"),
    11: (0, "log_p_c"),
}


PLACES = {
    "reconstruction": ("E log p(x|z1, ℓ, γ)", "one draw of z1, summed over genes"),
    "log_q_z1": (
        "−E log q(z1|x)",
        "at the same draw; added to the “reconstruction loss”, so warm-up does not reach it",
    ),
    "log_p_z1": (
        "Σ_c ω_c E log p(z1|z2, c)",
        "one draw of z2 per type; the network gives a variance, hence the root; likewise added to "
        "the “reconstruction loss”",
    ),
    "kl_z2": ("−Σ_c ω_c KL(q(z2|z1, c) ‖ p(z2))", "in closed form"),
    "kl_c": (
        "−KL(q(c|z1) ‖ p(c))",
        "p(c) is uniform and never learned; for U, log p(c) is inside this line",
    ),
    "kl_library": (
        "−KL(q(ℓ|x) ‖ p(ℓ|γ))",
        "by default ℓ is taken as observed, and the term is zero",
    ),
    "log_p_c": (
        "log p(c) in L",
        "absent from the labelled branch of 0.2.4: a constant for a fixed prior, so no gradient "
        "misses it. In 1.4.2 all of L is absent",
    ),
    "outside": (
        "trained, in no bound",
        "a mean over labelled cells, at the mean of q(z1|x)",
    ),
    "unknown": (
        "I do not know",
        "50 works, and no equation says so; groups of types are not in the assignment",
    ),
}


def map_of(term_of):
    """From each term of the bounds to its lines of released code, once 12.5 is right.

    Parameters
    ----------
    term_of
        The answer to exercise 12.5.

    Returns
    -------
    A table for a notebook; before that, a sentence that says what is missing.
    """
    import html

    from IPython.display import HTML

    try:
        right = all(
            (int(bool(warm)), name) == WHICH[line]
            for line in WHICH
            for warm, name in [term_of(line)]
        )
    except Exception:  # of any answer that is not one yet
        right = False
    if not right:
        return HTML("<p>The map appears here once exercise 12.5 is right.</p>")
    rows = []
    for name, (term, note) in PLACES.items():
        of_term = [str(line) for line, (_, its) in WHICH.items() if its == name]
        cells = (term, " and ".join(of_term), note)
        rows.append(
            "<tr>"
            + "".join(f'<td style="text-align: left">{html.escape(c)}</td>' for c in cells)
            + "</tr>"
        )
    head = "".join(f'<th style="text-align: left">{h}</th>' for h in ("term", "line", "how"))
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def lines(changes):
    """The table with some of its lines changed."""
    return lambda line: as_outcome((WHICH | changes)[line])


def as_outcome(pair):
    return np.asarray(pair[0]), pair[1]


# 12.6: z drawn twice


def draw_encoded(rng: np.random.Generator) -> list[dict]:
    """One cell and two values of z, then thirty cells and seven values."""
    shared = {"log_p_z": np.log([0.5, 0.5]), "log_q_z": np.log([[0.8, 0.2]])}
    cases = [{"log_p_x": np.array([[-1.0, -3.0]]), **shared}]
    for concentration in (0.3, 3.0):
        cases.append(
            {
                "log_p_x": rng.normal(-40, 3, (30, 7)),
                "log_p_z": log_dirichlet(rng, 7, 0),
                "log_q_z": log_dirichlet(rng, (30, 7), 1, concentration),
            }
        )
    return cases


def enumerated(log_p_x, log_p_z, log_q_z):
    """The mean weight over single draws, and over pairs of draws (z, z')."""
    single, pairs = [], []
    for log_p, log_q in zip(log_p_x, log_q_z, strict=True):
        top, q, ratio = log_p.max(), np.exp(log_q), np.exp(log_p_z - log_q)
        likelihood = np.exp(log_p - top)
        places = range(len(q))
        single.append(top + np.log(sum(q[i] * likelihood[i] * ratio[i] for i in places)))
        pairs.append(
            top
            + np.log(sum(q[i] * q[j] * likelihood[j] * ratio[i] for i in places for j in places))
        )
    return np.array(single), np.array(pairs)


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="12.1",
            title="Question 1: the label is seen",
            points=3,
            draw=draw_labelled,
            oracle=labelled,
            verified="Agrees with log p(x, c) minus the KL to the exact posterior, in three "
            "enumerated worlds.",
            misconceptions=(
                Misconception(
                    "log p(c) left out",
                    labelled_with(lambda world: -world["log_p_c"].sum()),
                    "This bounds log p(x | c). One factor of the generative model is missing: the "
                    "one that released code leaves out too.",
                ),
                Misconception(
                    "the type averaged over",
                    lambda c, **world: hidden(**world),
                    "Your answer does not depend on which type was seen: you averaged over all "
                    "types. A label that is seen is not a latent variable.",
                ),
                Misconception(
                    "weighted by the classifier",
                    by_classifier,
                    "This is the right term for the right type, but multiplied by q(c|z1). That "
                    "factor is for cells whose type is not known. With which q was Jensen's "
                    "inequality applied here?",
                ),
                Misconception(
                    "log q(c|z1) subtracted",
                    labelled_with(
                        lambda world: -(np.exp(world["log_q_z1"]) * world["log_q_c"]).sum()
                    ),
                    "There is one factor too many in your q: the label was not drawn.",
                ),
                Misconception(
                    "the classifier in q",
                    classifier_in_q,
                    "Your q has the classifier q(c|z1) as a fourth factor. But c was seen, not "
                    "guessed: which variables are hidden here?",
                ),
                *(
                    Misconception(
                        f"log {factor} not subtracted",
                        not_subtracted(name),
                        f"You weight with {factor}, but its logarithm is not subtracted. Each "
                        "hidden variable has a factor in both places.",
                    )
                    for name, factor in (
                        ("log_q_library", "q(ℓ|x)"),
                        ("log_q_z1", "q(z1|x)"),
                        ("log_q_z2", "q(z2|z1,c)"),
                    )
                ),
                Misconception(
                    "no weights",
                    with_weights(lambda log_p, log_q: np.zeros_like(log_p + log_q)),
                    "You add log p − log q over all entries, each with weight 1. A mean over a "
                    "table is a sum of probability times value: whose probabilities?",
                ),
                Misconception(
                    "divided by the number of entries",
                    with_weights(lambda log_p, log_q: log_q - np.log((log_p + log_q).size)),
                    "You divide by the number of entries, as .mean() does. But your weights are "
                    "probabilities, which sum to 1 already.",
                ),
                Misconception(
                    "weighted by p",
                    with_weights(lambda log_p, log_q: log_p),
                    "You weight log p − log q by p. Jensen's inequality was applied to a mean "
                    "under q.",
                ),
                *factors_left_out(labelled),
                Misconception(
                    "summed over types",
                    lambda c, **world: sum_of_labelled(**world),
                    "This is the sum of L over all types. Only one type was seen: which entry is "
                    "its own?",
                ),
                Misconception(
                    "counted from 1",
                    next_type,
                    "This is L of the type before the one that was seen: c counts from 0.",
                ),
                Misconception(
                    "the sign turned",
                    lambda c, **world: -labelled(c, **world),
                    "This is −L, a loss. The bound itself is a lower bound of log p(x, c).",
                ),
                Misconception(
                    "no log q",
                    lambda c, **world: without_log_q(
                        joint(**of_type(c, world)), without_c(of_type(c, world))
                    ),
                    "This is E_q[log p] alone. What does Jensen's inequality subtract from it?",
                ),
                Misconception(
                    "the evidence itself",
                    lambda c, **world: evidence(**of_type(c, world)),
                    "This is log p(x, c) itself, which can be computed in our small world. The "
                    "bound is an average over q, and q does not occur in yours.",
                ),
            ),
        ),
        Exercise(
            name="12.2",
            title="Question 2: the label is hidden",
            points=3,
            draw=draw_worlds,
            oracle=hidden,
            verified="Agrees with log p(x) minus the KL to the exact posterior over ℓ, z1, c and "
            "z2, in three enumerated worlds.",
            misconceptions=(
                Misconception(
                    "log q(c|z1) left out",
                    hidden_with(lambda q, log_q_c, log_p_c: log_q_c),
                    "Your bound is too low, by the entropy of q(c|z1): a type that is drawn has "
                    "its own factor in q.",
                ),
                Misconception(
                    "log p(c) left out",
                    hidden_with(lambda q, log_q_c, log_p_c: -log_p_c),
                    "Your bound is too high: it can even be above log p(x). Which factor of the "
                    "generative model is missing?",
                ),
                Misconception(
                    "KL_c weighted twice",
                    hidden_with(
                        lambda q, log_q_c, log_p_c: (1 - np.exp(log_q_c)) * (log_q_c - log_p_c)
                    ),
                    "Everything is right except KL(q(c|z1)‖p(c)): you weight its logarithms by "
                    "q(c|z1) twice.",
                ),
                Misconception(
                    "every label at once",
                    sum_of_labelled,
                    "This is the sum of L over all types, as if the cell had each of them for "
                    "sure. How much should each type weigh?",
                ),
                Misconception(
                    "log-sum-exp of L",
                    logsumexp_of_bounds,
                    "This is the logarithm of Σ_c exp(L_c): a valid bound on log p(x), but not U. "
                    "The classifier does not occur in it, so it could not learn.",
                ),
                Misconception(
                    "the classifier left out of the weights",
                    lambda **world: (
                        sum_of_labelled(**world)
                        - (np.exp(world["log_q_z1"]) * world["log_q_c"]).sum()
                    ),
                    "You subtract log q(c|z1), but do not weight the types by q(c|z1).",
                ),
                Misconception(
                    "the sign turned",
                    lambda **world: -hidden(**world),
                    "This is −U, a loss. The bound itself is a lower bound of log p(x).",
                ),
                Misconception(
                    "log q(c|z1) added",
                    hidden_with(lambda q, log_q_c, log_p_c: 2 * log_q_c),
                    "The entropy of q(c|z1) lowers your bound. On which side of the quotient p/q "
                    "does q(c|z1) stand?",
                ),
                Misconception(
                    "all types weigh the same",
                    lambda **world: sum_of_labelled(**world) / world["log_p_c"].size,
                    "This is the mean of L with the same weight for each type. Where is the "
                    "classifier?",
                ),
                Misconception(
                    "weighted by p(c)",
                    types_by_prior,
                    "You weight the types by p(c). Which distribution over c does q have?",
                ),
                *factors_left_out(hidden),
                Misconception(
                    "one classifier for all z1",
                    one_classifier_for_all,
                    "Almost. You averaged q(c|z1) over z1 before you used it. But it depends on "
                    "z1, and so does everything that it weights.",
                ),
                Misconception(
                    "no log q",
                    lambda **world: without_log_q(
                        joint(**world), without_c(world) + world["log_q_c"]
                    ),
                    "This is E_q[log p] alone. What does Jensen's inequality subtract from it?",
                ),
                Misconception(
                    "the evidence itself",
                    evidence,
                    "This is log p(x) itself. The bound is an average over q, and q does not "
                    "occur in yours.",
                ),
            ),
        ),
        Exercise(
            name="12.3",
            title="The best classifier",
            points=2,
            draw=draw_values,
            oracle=by_multiplier,
            verified="No classifier does better: agrees with the stationary point that a Lagrange "
            "multiplier gives, at 30 values of z1.",
            rtol=1e-5,
            atol=1e-7,
            results=("the classifier", "the bound U"),
            misconceptions=(
                Misconception(
                    "no doubt allowed",
                    without_doubt,
                    "Your classifier puts all probability on one type. That gives the largest mean "
                    "value, but no entropy. Which of the two does U contain?",
                ),
                Misconception(
                    "one classifier for all z1",
                    mean_first,
                    "Your classifier gives the same probabilities at every z1. It may differ from "
                    "z1 to z1.",
                ),
                Misconception(
                    "probabilities for logarithms",
                    lambda value, log_q_z1: (
                        np.exp(by_multiplier(value, log_q_z1)[0]),
                        by_multiplier(value, log_q_z1)[1],
                    ),
                    "Your first result holds probabilities. Their logarithms are asked for, as in "
                    "all tables of this lesson.",
                ),
                Misconception(
                    "not normalised",
                    lambda value, log_q_z1: (value, by_multiplier(value, log_q_z1)[1]),
                    "The value of U is right, but the probabilities do not sum to 1 over types.",
                ),
                Misconception(
                    "the entropy left out",
                    without_entropy,
                    "The classifier is right. But your value of U lacks the entropy of q(c|z1).",
                ),
            ),
        ),
        Exercise(
            name="12.4",
            title="Question 3: what is a KL, and what is not",
            points=4,
            draw=draw_cells,
            oracle=three_terms,
            verified="Agrees with quadrature and scipy's relative entropy for 13 cells, labelled "
            "or not, in float32 and float64.",
            results=("the term of z1", "the term of z2", "the term of c"),
            misconceptions=(
                Misconception(
                    "0 log 0",
                    terms_with(nan_if_labelled),
                    "The third term is NaN for labelled cells: some ω are 0 there, and 0 · log 0 "
                    "should count as 0. Look at torch.xlogy.",
                ),
                Misconception(
                    "NaN put to 0 too late",
                    terms_with(entropy_lost),
                    "Your third term is wrong where some ω are 0 and others are between 0 and 1: "
                    "0 · log 0 is 0 per type, before the sum over types.",
                ),
                Misconception(
                    "KL_z2 not weighted",
                    terms_with(
                        lambda z1, kl_z2, kl_c, mean, variance, **_: (
                            z1,
                            -kl_z2_of_types(mean, variance).sum(-1),
                            kl_c,
                        )
                    ),
                    "Your second term adds the KLs of all types, each with weight 1.",
                ),
                Misconception(
                    "variance for standard deviation",
                    terms_with(kl_z2_with_std),
                    "Your second term takes the variance for a standard deviation. (The assignment "
                    "does not say which of the two it means; these arrays do.)",
                ),
                Misconception(
                    "only the entropy of c",
                    terms_with(
                        lambda z1, kl_z2, kl_c, omega, log_p_c, **_: (
                            z1,
                            kl_z2,
                            kl_c - (omega * log_p_c).sum(-1),
                        )
                    ),
                    "Your third term does not depend on how frequent the types are: where is p(c)?",
                ),
                Misconception(
                    "KLs with the wrong sign",
                    terms_with(lambda z1, kl_z2, kl_c, **_: (z1, -kl_z2, -kl_c)),
                    "Each term should have the sign that it has in the bound. Does a KL raise a "
                    "bound or lower it?",
                ),
                Misconception(
                    "the z1 term as a loss",
                    terms_with(lambda z1, kl_z2, kl_c, **_: (-z1, kl_z2, kl_c)),
                    "Your first term has the wrong sign: here it is added to the bound.",
                ),
            ),
        ),
        Exercise(
            name="12.5",
            title="Which line is which term?",
            points=4,
            draw=lambda rng: [{"line": line} for line in WHICH],
            oracle=lines({}),
            verified="Eleven lines have their term. Two of them have an honest answer.",
            results=("whether warm-up multiplies it", "the name of its term"),
            misconceptions=(
                *(
                    Misconception(
                        f"the z1 term as a KL, {where}",
                        lines(dict.fromkeys(wrong, (0, "kl_z1"))),
                        f"You call {where} 'kl_z1'. Lines 3 and 4 are two halves, and even "
                        "together they are not a KL: question 3 ended with the partner that they "
                        "need. Each half has its own name.",
                    )
                    for where, wrong in (
                        ("lines 3 and 4", (3, 4)),
                        ("line 3", (3,)),
                        ("line 4", (4,)),
                    )
                ),
                Misconception(
                    "the z1 term warms up",
                    lines({3: (1, "log_p_z1"), 4: (1, "log_q_z1")}),
                    "All names are right. Look at lines 3 and 4 again: to which variable are they "
                    "added, and what does the weight multiply?",
                ),
                Misconception(
                    "the two halves of z1 exchanged",
                    lines({3: (0, "log_q_z1"), 4: (0, "log_p_z1")}),
                    "Lines 3 and 4 are exchanged: pz1 is p(z1|z2, c), and qz1 is q(z1|x).",
                ),
                Misconception(
                    "the cross-entropy in the bound",
                    lines({8: (0, "kl_c")}),
                    "Line 8 is not a KL: it needs the true label, and neither bound has a term of "
                    "log q(c|z1) at the true label.",
                ),
                Misconception(
                    "nothing is missing",
                    lines({11: (0, "unknown")}),
                    "Line 11 asks for a term that is not there. Write L as a list, and cross out "
                    "what the branch of 0.2.4 has.",
                ),
                Misconception(
                    "KL_c missing from L",
                    lines({11: (0, "kl_c")}),
                    "Line 11 is about a cell with a label, and L has no KL of c: ω is 1 for one "
                    "type. What is left of KL(ω‖p(c)) then?",
                ),
                *(
                    Misconception(
                        f"a reason invented, {where}",
                        lines(dict.fromkeys(wrong, (0, "outside"))),
                        f"You give a reason for {where}. From which equation of the assignment "
                        "does it follow? If from none, say so.",
                    )
                    for where, wrong in (
                        ("lines 9 and 10", (9, 10)),
                        ("line 9", (9,)),
                        ("line 10", (10,)),
                    )
                ),
            ),
        ),
        Exercise(
            name="12.6",
            title="Bug hunt: a likelihood that is too good",
            points=3,
            draw=draw_encoded,
            oracle=enumerated,
            verified="Agrees with the mean over all single draws and all pairs of draws, for 61 "
            "cells.",
            results=("the limit with one draw", "the limit if z is drawn twice"),
            misconceptions=(
                Misconception(
                    "both are right",
                    lambda **case: (enumerated(**case)[0],) * 2,
                    "You say that this code converges to log p(x). Write down the mean of its "
                    "weight over two independent draws.",
                ),
                Misconception(
                    "exchanged",
                    lambda **case: enumerated(**case)[::-1],
                    "These are the right numbers in the wrong order.",
                ),
                Misconception(
                    "the mean of logs",
                    lambda log_p_x, log_p_z, log_q_z: (
                        enumerated(log_p_x, log_p_z, log_q_z)[0],
                        (np.exp(log_q_z) * log_p_x).sum(-1),
                    ),
                    "Your second result is E_q[log p(x|z)], a mean of logarithms. The code takes "
                    "the logarithm of a mean.",
                ),
                Misconception(
                    "a bound for the evidence",
                    lambda log_p_x, log_p_z, log_q_z: (
                        (np.exp(log_q_z) * (log_p_x + log_p_z - log_q_z)).sum(-1),
                        enumerated(log_p_x, log_p_z, log_q_z)[1],
                    ),
                    "Your first result is the ELBO. With more and more draws, importance sampling "
                    "converges to log p(x) itself.",
                ),
            ),
        ),
    )
}
