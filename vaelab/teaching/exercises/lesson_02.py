"""Exercises of lesson 02: a bound on what can't be computed."""

from __future__ import annotations

from functools import partial

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 02.1: a conjugate prior for the negative binomial


def draw_cells(rng: np.random.Generator) -> list[dict]:
    """Counts of one gene in cells that share p: one cell, then from two to forty."""
    cases = [{"x": np.array([1.0]), "r": 1.0, "a": 1.0, "b": 1.0}]
    for n_cells in (2, 5, 12, 40):
        r, a, b = 10 ** rng.uniform((-0.5, 0, 0), (1, 1, 1))
        p = rng.beta(a, b, size=1).clip(0.05, 0.95)
        x = rng.negative_binomial(r, p, size=n_cells).astype(float)
        cases.append({"x": x, "r": float(r), "a": float(a), "b": float(b)})
    return cases


def evidence_by_quadrature(x, r, a, b):
    """∫ Π NB(x; r, p) Beta(p; a, b) dp by the trapezoidal rule in u = logit p."""
    from scipy import special, stats

    u = np.linspace(-40, 40, 8_001)
    log_p, log_1_minus_p = special.log_expit(u), special.log_expit(-u)  # dp = p (1 − p) du
    n, total = x.size, x.sum()
    log_f = (a + n * r) * log_p + (b + total) * log_1_minus_p - special.betaln(a, b)
    at_half = stats.nbinom.logpmf(x, r, 0.5).sum() - (n * r + total) * np.log(0.5)
    return np.asarray(special.logsumexp(log_f) + np.log(u[1] - u[0]) + at_half)


def evidence_one_p_for_each_cell(x, r, a, b):
    return np.asarray(sum(evidence_by_quadrature(x[i : i + 1], r, a, b) for i in range(x.size)))


def evidence_at_the_prior_mean(x, r, a, b):
    from scipy import stats

    return np.asarray(stats.nbinom.logpmf(x, r, a / (a + b)).sum())


def evidence_without_coefficient(x, r, a, b):
    from scipy.special import betaln

    return np.asarray(betaln(a + x.size * r, b + x.sum()) - betaln(a, b))


def evidence_without_n(x, r, a, b, at_half=False):
    """r counted once for all cells: by beta functions, or by Bayes turned around at p = ½."""
    from scipy import special

    wrong = special.betaln(a + r, b + x.sum()) - special.betaln(a + x.size * r, b + x.sum())
    bayes = (x.size - 1) * r * np.log(2) if at_half else 0.0
    return evidence_by_quadrature(x, r, a, b) + wrong - bayes


def evidence_exchanged(x, r, a, b):
    """The posterior Beta(a + Σx, b + nr); at p = ½ Bayes turned around gives the same."""
    from scipy import special

    nr, total = x.size * r, x.sum()
    wrong = special.betaln(a + total, b + nr) - special.betaln(a + nr, b + total)
    return evidence_by_quadrature(x, r, a, b) + wrong


# 02.2 and 02.6: values and slopes


def difference(f, at, h):
    """The derivative of f at ``at`` by a central difference of fourth order."""
    return (8 * (f(at + h) - f(at - h)) - (f(at + 2 * h) - f(at - 2 * h))) / (12 * h)


def with_slopes(f):
    """What the call "slopes" finds for the function f: its values, and the slopes of their sum in
    every real input but x. The columns of an input with a row per value act apart.
    """

    def both(**case):
        values = np.asarray(f(**case), dtype=float)
        slopes = []
        for name in [k for k, v in case.items() if k != "x" and np.asarray(v).dtype.kind == "f"]:
            at = np.asarray(case[name], dtype=float)
            by_row = at.ndim == 2 and len(at) == len(values)
            entries = [(..., j) for j in range(at.shape[1])] if by_row else np.ndindex(at.shape)
            slope = np.empty_like(at)
            for entry in entries:

                def total(part, name=name, at=at, entry=entry, by_row=by_row):
                    moved = at.copy()
                    moved[entry] = part
                    found = np.asarray(f(**case | {name: moved}), dtype=float)
                    return found.reshape(len(found), -1).sum(-1) if by_row else found.sum()

                step = 1e-3 * np.maximum(np.abs(at[entry]), 0.1)
                slope[entry] = difference(total, at[entry], step)
            slopes.append(slope)
        # Where q is the prior, rounding leaves 1e-13 of what is 0.
        return tuple(np.where(np.abs(v) < 1e-10, 0.0, v) for v in (values, *slopes))

    return both


# 02.2: the KL to the prior


def draw_gaussians(rng: np.random.Generator) -> list[dict]:
    """q = p in one dimension, then cells × dimensions in both precisions."""
    cases = [{"mean": np.zeros((1, 1)), "std": np.ones((1, 1))}]
    for dtype in (np.float64, np.float32):
        mean, std = rng.normal(0, 1.5, (30, 4)), 10 ** rng.uniform(-1.5, 0.5, (30, 4))
        cases.append({"mean": mean.astype(dtype), "std": std.astype(dtype)})
    return cases


def kl_by_quadrature(mean, std):
    """E_q[log q − log p] by Gauss–Hermite; exact, since the integrand is a parabola."""
    from scipy import stats

    ε, weight = np.polynomial.hermite_e.hermegauss(8)
    m, s = (np.asarray(v, dtype=float)[..., None] for v in (mean, std))
    z = m + s * ε
    log_ratio = stats.norm.logpdf(z, m, s) - stats.norm.logpdf(z)
    return (log_ratio * weight / weight.sum()).sum(-1).sum(-1)


def kl_terms(mean, std, constant=-1.0, log=2.0, sign=1.0):
    mean, std = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
    return sign * 0.5 * (mean**2 + std**2 + constant - log * np.log(std))


def kl_the_other_way(mean, std):
    mean, std = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
    return (0.5 * ((1 + mean**2) / std**2 - 1) + np.log(std)).sum(-1)


# 02.3 to 02.5: three derivations, on models with finitely many states of z


def log_simplex(rng: np.random.Generator, *shape) -> np.ndarray:
    logits = rng.normal(0, 1.5, shape)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def draw_model(rng: np.random.Generator, *shape) -> dict:
    """log p(z), log p(x | z) and log q(z) for every state of z, the last axis."""
    return {
        "log_prior": log_simplex(rng, *shape),
        "log_likelihood": rng.normal(-4, 2, shape),
        "log_q": log_simplex(rng, *shape),
    }


def joint_and_posterior(log_prior, log_likelihood):
    from scipy.special import logsumexp

    log_joint = log_prior + log_likelihood
    log_evidence = logsumexp(log_joint, axis=-1)
    return log_joint, log_joint - log_evidence[..., None], log_evidence


def kl(log_a, log_b):
    from scipy.special import rel_entr

    return rel_entr(np.exp(log_a), np.exp(log_b)).sum(-1)


def mean_of(log_q, values):
    return (np.exp(log_q) * values).sum(-1)


def draw_jensen(rng: np.random.Generator) -> list[dict]:
    """Two states, then more; the last q is the posterior."""
    half = np.log([0.5, 0.5])
    cases = [{"log_prior": half, "log_likelihood": np.log([0.1, 0.3]), "log_q": half}]
    cases += [draw_model(rng, n_states) for n_states in (3, 10, 40)]
    tight = draw_model(rng, 5)
    tight["log_q"] = joint_and_posterior(tight["log_prior"], tight["log_likelihood"])[1]
    return [*cases, tight]


def jensen(log_prior, log_likelihood, log_q):
    """log p(x), and log p(x) minus the gap."""
    _, log_posterior, log_evidence = joint_and_posterior(log_prior, log_likelihood)
    return log_evidence, log_evidence - kl(log_q, log_posterior)


def jensen_of(log_ratio):
    """Both lines with another ratio under E."""

    def lines(log_prior, log_likelihood, log_q):
        values = log_ratio(log_prior, log_likelihood, log_q)
        return np.log(mean_of(log_q, np.exp(values))), mean_of(log_q, values)

    return lines


def jensen_not_exchanged(log_prior, log_likelihood, log_q):
    log_evidence = jensen(log_prior, log_likelihood, log_q)[0]
    return log_evidence, log_evidence


def jensen_swapped(log_prior, log_likelihood, log_q):
    return jensen(log_prior, log_likelihood, log_q)[::-1]


def draw_by_kl(rng: np.random.Generator) -> list[dict]:
    cases = draw_jensen(rng)
    for case in cases:
        _, posterior, _ = joint_and_posterior(case["log_prior"], case["log_likelihood"])
        case["log_posterior"] = posterior
    return cases


def by_kl(log_prior, log_likelihood, log_q, log_posterior):
    """Reconstruction, KL to the prior, and gap; the first follows from log p(x) and the others."""
    log_evidence = joint_and_posterior(log_prior, log_likelihood)[2]
    to_prior, gap = kl(log_q, log_prior), kl(log_q, log_posterior)
    return log_evidence - gap + to_prior, to_prior, gap


def by_kl_with(change):
    """The three terms, with a mistake in one or two of them."""

    def terms(log_prior, log_likelihood, log_q, log_posterior):
        right = by_kl(log_prior, log_likelihood, log_q, log_posterior)
        return change(right, log_prior, log_likelihood, log_q, log_posterior)

    return terms


def draw_many_cells(rng: np.random.Generator) -> list[dict]:
    """One cell with two states, then several cells; in the last case each q is the posterior."""
    cases = [draw_jensen(rng)[0]] + [draw_model(rng, *shape) for shape in ((3, 4), (50, 10))]
    cases[0] = {name: values[None] for name, values in cases[0].items()}
    cases.append(draw_model(rng, 20, 3))
    made = []
    for case in cases:
        joint, posterior, _ = joint_and_posterior(case["log_prior"], case["log_likelihood"])
        made.append({"log_joint": joint, "log_posterior": posterior, "log_q": case["log_q"]})
    made[-1]["log_q"] = made[-1]["log_posterior"].copy()
    return made


def sums_over_cells(log_joint, log_posterior, log_q):
    """Sums over cells of bound and gap; the bound is log p(x) minus the gap."""
    from scipy.special import logsumexp

    gap = kl(log_q, log_posterior)
    return np.asarray((logsumexp(log_joint, axis=-1) - gap).sum()), np.asarray(gap.sum())


def sums_with(change):
    def both(log_joint, log_posterior, log_q):
        bound = mean_of(log_q, log_joint - log_q)
        return change(bound, mean_of(log_q, log_q - log_posterior), log_joint, log_q)

    return both


# 02.6: probabilistic PCA


def draw_linear_models(rng: np.random.Generator) -> list[dict]:
    """One gene and one dimension, then five genes and two; in the last, q has the best mean."""
    one = {"x": np.zeros((1, 1)), "W": np.ones((1, 1)), "b": np.zeros(1), "m": np.zeros((1, 1))}
    cases = [one | {"s": np.ones((1, 1)), "sigma": np.array(1.0)}]
    for n_cells, n_genes, n_latent in ((4, 5, 2), (30, 8, 3), (30, 4, 4)):
        W, b = rng.standard_normal((n_genes, n_latent)), rng.standard_normal(n_genes)
        sigma = np.array(rng.uniform(0.3, 2.0))
        z = rng.standard_normal((n_cells, n_latent))
        x = z @ W.T + b + sigma * rng.standard_normal((n_cells, n_genes))
        m, s = rng.normal(0, 1, z.shape), 10 ** rng.uniform(-1, 0.3, z.shape)
        cases.append({"x": x, "W": W, "b": b, "m": m, "s": s, "sigma": sigma})
    last = cases[-1]
    last["m"] = (last["x"] - last["b"]) @ posterior(last["W"], last["sigma"])[0].T
    return cases


def posterior(W, sigma):
    """A and V of the posterior N(A (x − b), V)."""
    M = W.T @ W + sigma**2 * np.eye(W.shape[1])
    return np.linalg.solve(M, W.T), sigma**2 * np.linalg.inv(M)


def linear_bound(x, W, b, m, s, sigma):
    """log p(x) from the marginal, minus the KL from q to the posterior."""
    from scipy import stats

    evidence = stats.multivariate_normal(b, W @ W.T + sigma**2 * np.eye(len(b))).logpdf(x)
    A, V = posterior(W, sigma)
    precision, d = np.linalg.inv(V), m - (x - b) @ A.T
    distance = np.einsum("ni,ij,nj->n", d, precision, d)
    log_dets = np.linalg.slogdet(V)[1] - 2 * np.log(s).sum(-1)
    gap = 0.5 * ((s**2 @ np.diag(precision)) + distance - m.shape[1] + log_dets)
    return np.atleast_1d(evidence) - gap


def linear_bound_with(
    x, W, b, m, s, sigma, spread=1.0, n_constants=None, power=2, genes=np.sum, extra=0.0, kl=1.0
):
    """The bound from its terms; each option puts a mistake into one of them."""
    error = genes((x - b - m @ W.T) ** 2 + spread * s**2 @ (W**2).T, axis=1)
    n_constants = x.shape[1] if n_constants is None else n_constants
    log_2pi = n_constants * np.log(2 * np.pi * sigma**2)
    kl_to_prior = kl_terms(m, s, constant=-1 + extra).sum(-1)
    return -0.5 * log_2pi - error / (2 * sigma**power) - kl * kl_to_prior


def variance_as_std(x, W, b, m, s, sigma):
    """The bound if s is taken for a variance."""
    return linear_bound_with(x, W, b, m, np.sqrt(s), sigma)


def slope_without_constant(**case):
    """The bound, and its slope in sigma if no gradient flows through the constant."""
    *right, slope = with_slopes(linear_bound)(**case)
    return *right, slope + case["x"].size / case["sigma"]


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="02.1",
            title="A prior for the negative binomial",
            points=2,
            draw=draw_cells,
            oracle=evidence_by_quadrature,
            call="arrays",
            rtol=1e-7,  # the quadrature is right to 1e-11
            verified="Agrees with numerical integration for five sets of cells, of 1 to 40 cells.",
            misconceptions=(
                Misconception(
                    "one p for each cell",
                    evidence_one_p_for_each_cell,
                    "This is right for one cell. With several cells you added up their evidences, "
                    "as if each cell had its own p. Here one p is drawn, and all cells share it. "
                    "What does the posterior look like after n cells?",
                ),
                Misconception(
                    "the prior's mean for p",
                    evidence_at_the_prior_mean,
                    "This is the likelihood at one p, the prior's mean. The evidence is the "
                    "average of the likelihood over *all* values of p, weighted by the prior.",
                ),
                Misconception(
                    "without the binomial coefficient",
                    evidence_without_coefficient,
                    "Almost. The factor of each NB that does not depend on p is missing. It "
                    "cancels in the posterior, but not in the evidence.",
                ),
                *(
                    Misconception(
                        f"r once for all cells{way}",
                        partial(evidence_without_n, at_half=at_half),
                        "This is right for one cell. Each of the n cells contributes a factor "
                        "p^r. How often does r go into the posterior's first number?",
                    )
                    for way, at_half in ((" (at p = ½)", True), ("", False))
                ),
                Misconception(
                    "the posterior's numbers exchanged",
                    evidence_exchanged,
                    "You added r to b and the counts to a. In this negative binomial p has the "
                    "power r, and 1 − p the power x. Which of them does a belong to?",
                ),
            ),
        ),
        Exercise(
            name="02.2",
            title="Fix a KL",
            points=2,
            draw=draw_gaussians,
            oracle=with_slopes(kl_by_quadrature),
            call="slopes",
            returns="tensor with gradient",
            rtol=1e-5,  # so right numbers pass that were computed in float32
            atol=1e-6,
            results=("KL", "slope in mean", "slope in std"),
            verified="The KL and its slopes in mean and std agree with numerical integration for "
            "61 cells, in float32 and float64; the KL is 0 where q is the prior.",
            misconceptions=(
                Misconception(
                    "one nat too large for each dimension",
                    with_slopes(lambda mean, std: kl_terms(mean, std, constant=1.0).sum(-1)),
                    "Try it where you know the answer: mean 0 and std 1 make q the prior, and the "
                    "KL from a distribution to itself is 0. Yours is not.",
                ),
                Misconception(
                    "half a nat too large for each dimension",
                    with_slopes(lambda mean, std: kl_terms(mean, std, constant=0.0).sum(-1)),
                    "Closer. Try q = p once more: how far from 0 is your KL, per dimension?",
                ),
                Misconception(
                    "variance for standard deviation",
                    with_slopes(lambda mean, std: kl_terms(mean, np.sqrt(std)).sum(-1)),
                    "This treats std as a variance. Which power of std is in the formula?",
                ),
                Misconception(
                    "averaged over dimensions",
                    with_slopes(lambda mean, std: kl_terms(mean, std).mean(-1)),
                    "The dimensions of z are independent under q and under p, so their densities "
                    "multiply. What is the logarithm of a product: a sum or a mean of logarithms?",
                ),
                Misconception(
                    "not summed over dimensions",
                    with_slopes(kl_terms),
                    "This gives one number per dimension. Each cell has one KL.",
                ),
                Misconception(
                    "the other way round",
                    with_slopes(kl_the_other_way),
                    "This is KL(p‖q), the average under the prior. Under which of the two do we "
                    "average?",
                ),
                Misconception(
                    "minus the KL",
                    with_slopes(lambda mean, std: kl_terms(mean, std, sign=-1.0).sum(-1)),
                    "A KL is never negative. The bound subtracts it, but here the KL itself is "
                    "asked for.",
                ),
            ),
        ),
        Exercise(
            name="02.3",
            title="First derivation: Jensen",
            points=2,
            draw=draw_jensen,
            oracle=jensen,
            call="densities",
            rtol=1e-9,
            results=("line (b)", "line (c)"),
            verified="On five models line (b) is log p(x); line (c) is never above it, and equal "
            "to it after KL(q‖posterior) is added.",
            misconceptions=(
                Misconception(
                    "lines exchanged",
                    jensen_swapped,
                    "Both numbers are right, but in the other order: line (b) comes first.",
                ),
                Misconception(
                    "the logarithm stayed outside",
                    jensen_not_exchanged,
                    "Your line (c) equals log p(x) for every q, so it is still line (b). Is the "
                    "logarithm inside or outside of E in line (c)?",
                ),
                Misconception(
                    "q left out",
                    jensen_of(lambda prior, likelihood, q: prior + likelihood),
                    "A sum over z is not yet an average under q. What must p(x, z) be divided by, "
                    "so that Σ_z q(z) · (…) is Σ_z p(x, z)?",
                ),
                Misconception(
                    "prior left out",
                    jensen_of(lambda prior, likelihood, q: likelihood - q),
                    "p(x | z) alone is not p(x, z).",
                ),
                Misconception(
                    "posterior average of the likelihood",
                    jensen_of(lambda prior, likelihood, q: likelihood),
                    "This averages the likelihood under q instead of under the prior. Which factor "
                    "corrects for drawing z from q instead of from p(z)?",
                ),
                Misconception(
                    "upside down",
                    jensen_of(lambda prior, likelihood, q: q - prior - likelihood),
                    "Your ratio is upside down.",
                ),
            ),
        ),
        Exercise(
            name="02.4",
            title="Second derivation: from the KL to the posterior",
            points=3,
            draw=draw_by_kl,
            oracle=by_kl,
            call="densities",
            rtol=1e-9,
            results=("reconstruction", "KL", "gap"),
            verified="On five models reconstruction − KL is never above log p(x), and equal to it "
            "after the gap is added.",
            misconceptions=(
                Misconception(
                    "the bound for the reconstruction",
                    by_kl_with(
                        lambda t, prior, likelihood, q, posterior: (t[0] - t[1], *t[1:]),
                    ),
                    "Your first number is the whole bound: the KL is subtracted from it already. "
                    "The reconstruction is the one average in which only p(x | z) stands.",
                ),
                *(
                    Misconception(
                        f"exchanged, {order}",
                        by_kl_with(
                            lambda t, prior, likelihood, q, posterior, order=order: tuple(
                                t[i] for i in order
                            ),
                        ),
                        "The three numbers are right, but in another order: asked for are "
                        "reconstruction, KL to the prior, gap.",
                    )
                    for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
                ),
                Misconception(
                    "the prior counted twice",
                    by_kl_with(
                        lambda t, prior, likelihood, q, posterior: (
                            mean_of(q, prior + likelihood),
                            *t[1:],
                        )
                    ),
                    "Your reconstruction contains log p(z), and so does the KL: the prior is "
                    "counted twice.",
                ),
                Misconception(
                    "the KL's sign",
                    by_kl_with(
                        lambda t, prior, likelihood, q, posterior: (t[0], -t[1], t[2]),
                    ),
                    "Your KL to the prior is negative, but a KL never is. Which logarithm comes "
                    "first?",
                ),
                Misconception(
                    "the gap's sign",
                    by_kl_with(
                        lambda t, prior, likelihood, q, posterior: (t[0], t[1], -t[2]),
                    ),
                    "Your gap is negative. Added to the bound, it leads away from log p(x).",
                ),
                Misconception(
                    "the prior for the posterior",
                    by_kl_with(
                        lambda t, prior, likelihood, q, posterior: (t[0], t[1], t[1]),
                    ),
                    "Your gap is the KL to the prior. To which distribution is q compared in the "
                    "gap?",
                ),
                Misconception(
                    "entropy for KL",
                    by_kl_with(
                        lambda t, prior, likelihood, q, posterior: (t[0], mean_of(q, q), t[2]),
                    ),
                    "This is E_q[log q], minus the entropy of q. The prior is missing.",
                ),
            ),
        ),
        Exercise(
            name="02.5",
            title="Third derivation: multiply by one, and sum over cells",
            points=2,
            draw=draw_many_cells,
            oracle=sums_over_cells,
            call="densities",
            rtol=1e-9,
            results=("bound", "gap"),
            verified="For 1, 3, 50 and 20 cells bound + gap = Σ log p(x_n); the gap is 0 where "
            "each q is its posterior.",
            misconceptions=(
                Misconception(
                    "exchanged",
                    sums_with(lambda bound, gap, joint, q: (gap.sum(), bound.sum())),
                    "Both numbers are right, but in the other order: the bound comes first.",
                ),
                Misconception(
                    "averaged over cells",
                    sums_with(lambda bound, gap, joint, q: (bound.mean(), gap.mean())),
                    "This is right for one cell. For several cells it is the mean of their bounds. "
                    "The probability of independent cells is a product: what is its logarithm?",
                ),
                Misconception(
                    "not summed over cells",
                    sums_with(lambda bound, gap, joint, q: (bound, gap)),
                    "E gives one number per cell. Here one number for the whole data set is asked "
                    "for. What is the logarithm of a product?",
                ),
                Misconception(
                    "the gap's sign",
                    sums_with(lambda bound, gap, joint, q: (bound.sum(), -gap.sum())),
                    "Your gap is negative. You multiplied by one, written as a ratio. Which part "
                    "of the ratio belongs to which term?",
                ),
                Misconception(
                    "q left out of the bound",
                    sums_with(
                        lambda bound, gap, joint, q: (mean_of(q, joint).sum(), gap.sum()),
                    ),
                    "Your bound has no q inside the logarithm. What is p(x, z) divided by?",
                ),
                Misconception(
                    "upside down",
                    sums_with(lambda bound, gap, joint, q: (-bound.sum(), gap.sum())),
                    "The ratio in your bound is upside down.",
                ),
            ),
        ),
        Exercise(
            name="02.6",
            title="The bound of a linear model, without a draw",
            points=3,
            draw=draw_linear_models,
            oracle=with_slopes(linear_bound),
            call="slopes",
            returns="tensor with gradient",
            rtol=1e-5,  # so right numbers pass that were computed in float32
            atol=1e-4,
            results=("bound", *(f"slope in {v}" for v in ("W", "b", "m", "s", "sigma"))),
            verified="For 65 cells of four models the bound is log p(x) minus the KL to the "
            "posterior, and its slopes in W, b, m, s and sigma are right.",
            misconceptions=(
                Misconception(
                    "decoded at the mean of q",
                    with_slopes(partial(linear_bound_with, spread=0.0)),
                    "This decodes only z = m. But z varies around m with standard deviation s, so "
                    "Wz varies too. The mean of a square is the square of the mean plus something. "
                    "(Without it, some of your values are above log p(x), so they are not a lower "
                    "bound.)",
                ),
                Misconception(
                    "without the constant of the normal distribution",
                    with_slopes(partial(linear_bound_with, n_constants=0)),
                    "The squared error is not yet a log-density: which factor is in front of the "
                    "exponential in a normal density?",
                ),
                Misconception(
                    "the constant once for all genes",
                    with_slopes(partial(linear_bound_with, n_constants=1)),
                    "This is right for one gene. Each gene has a normal density of its own, so "
                    "how often is −½ log 2πσ² there?",
                ),
                Misconception(
                    "the reconstruction alone",
                    with_slopes(partial(linear_bound_with, kl=0.0)),
                    "This is the reconstruction. What does the bound subtract from it?",
                ),
                Misconception(
                    "the KL added",
                    with_slopes(partial(linear_bound_with, kl=-1.0)),
                    "You added the KL to the prior. It is what z costs: which sign has it in the "
                    "bound?",
                ),
                Misconception(
                    "sigma for its square",
                    with_slopes(partial(linear_bound_with, power=1)),
                    "Which power of σ divides the squared error?",
                ),
                Misconception(
                    "mean over genes",
                    with_slopes(partial(linear_bound_with, genes=np.mean)),
                    "This is a mean squared error. Genes are independent given z: is their log-"
                    "probability a sum or a mean?",
                ),
                Misconception(
                    "a KL that is one nat too large for each dimension",
                    with_slopes(partial(linear_bound_with, extra=2.0)),
                    "Your bound is too low by the same number for each cell, whatever q is. Is "
                    "this the KL that you fixed in exercise 02.2?",
                ),
                Misconception(
                    "variance for standard deviation",
                    with_slopes(variance_as_std),
                    "s is a standard deviation, and this treats it as a variance.",
                ),
                Misconception(
                    "no gradient in the constant",
                    slope_without_constant,
                    "The numbers are right, but no gradient flows through the logarithm of sigma. "
                    "Was it taken by math or numpy, or is there a float() or detach()?",
                ),
            ),
        ),
    )
}
