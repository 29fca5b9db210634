"""Exercises of lesson 14: models composed from the same parts.

The oracles use scipy's densities and entropies, 60 digits, and sums in loops. The solutions use
torch.
"""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception
from .lesson_02 import with_slopes

__all__ = ["EXERCISES"]

PRECISIONS = (np.float64, np.float32)


def _log_mean_exp(values, axis):
    """log of the mean of exp, without overflow."""
    top = values.max(axis, keepdims=True)
    return np.log(np.exp(values - top).mean(axis)) + top.squeeze(axis)


# ------------------------------------------------------------------------------ 14.1 the VampPrior


def draw_mixture(rng: np.random.Generator) -> list[dict]:
    """One point between two components; tables in both precisions; points far from all."""
    cases = [
        {
            "z": np.array([[0.5]]),
            "mean": np.array([[0.0], [2.0]]),
            "std": np.array([[1.0], [0.5]]),
        }
    ]
    for n, K, dtype, far in (
        (20, 3, np.float64, 1),
        (21, 4, np.float32, 1),
        (5, 3, np.float64, 60),
    ):
        values = {"z": far * rng.normal(size=(n, 2)), "mean": rng.normal(size=(K, 2))}
        values["std"] = rng.uniform(0.3, 1.2, (K, 2))
        cases.append({name: value.astype(dtype) for name, value in values.items()})
    return cases


def mixture(how: str = "mixture", std_is_variance: bool = False):
    """log (1/K) Σ_k N(z; mean_k, std_k²); the options make one mistake each."""

    def log_prior(z, mean, std):
        from scipy import stats

        z, mean, std = (np.asarray(value, dtype=float) for value in (z, mean, std))
        scale = np.sqrt(std) if std_is_variance else std
        each = stats.norm.logpdf(z[:, None], mean, scale)  # (n, K, D)
        of_k = each.sum(-1)
        return {
            "mixture": lambda: _log_mean_exp(of_k, 1),
            "sum": lambda: _log_mean_exp(of_k, 1) + np.log(len(mean)),
            "mean of logs": lambda: of_k.mean(1),
            "each dimension": lambda: _log_mean_exp(each, 1).sum(-1),
            "nearest": lambda: of_k.max(1) - np.log(len(mean)),
        }[how]()

    return log_prior


# ------------------------------------------------------------------- 14.2 the two bounds of M2


def draw_types(rng: np.random.Generator) -> list[dict]:
    """Two cells and two types; 20 and 21 cells in both precisions; one label for all, none; and
    cells that are sure of their type.
    """
    cases = [
        {
            "braces": np.array([[-10.0, -12.0], [-8.0, -9.0]]),
            "log_q": np.log([[0.75, 0.25], [0.5, 0.5]]),
            "log_p": np.log([0.6, 0.4]),
            "label": np.array([1, -1]),
            "alpha": 2.0,
        }
    ]
    for n, C, dtype, far in ((20, 4, np.float64, 1.5), (21, 3, np.float32, 1.5),
                             (6, 3, np.float64, 1.0), (7, 3, np.float64, 300.0)):  # fmt: skip
        score, prior = far * rng.normal(size=(n, C)), rng.dirichlet(np.full(C, 3.0))
        log_q = score - np.logaddexp.reduce(score, axis=1)[:, None]
        label = np.where(rng.random(n) < 0.5, rng.integers(C, size=n), -1)
        label[:2] = 0, -1
        values = {"braces": rng.normal(-60, 4, (n, C)), "log_q": log_q, "log_p": np.log(prior)}
        cases.append({name: v.astype(dtype) for name, v in values.items()})
        cases[-1] |= {"label": label, "alpha": float(rng.uniform(1, 5))}
    cases[3]["label"] = np.full(6, -1)
    return cases


def cell_by_cell(
    braces, log_q, log_p, label, alpha, entropy=1.0, prior="both", weights="q", all_unknown=False,
    last=False, counted=False, every=False, mean=None, sign=1.0, bound_sign=-1.0,
):  # fmt: skip
    """Both results from scipy's entropies, one cell at a time; each option puts a mistake in."""
    from scipy import special

    braces, log_q, log_p = (np.asarray(v, float) for v in (braces, log_q, log_p))
    p, bounds, costs = np.exp(log_p), [], []
    for of_types, log_share, c in zip(braces, log_q, np.asarray(label).tolist(), strict=True):
        q, known = np.exp(log_share), (c >= 0 or last) and not all_unknown
        if known:
            bound = of_types[c] + (log_p[c] if prior in ("both", "known") else 0.0)
        else:
            w = p if weights == "p" else q
            cross = -sum(w * log_p) if prior in ("both", "unknown") else 0.0  # −Σ w log p(y)
            bound = sum(w * of_types) - cross + entropy * special.entr(q).sum()
        cost = -log_share[c] if c >= 0 or last or every else 0.0
        bounds.append(bound - alpha * cost if counted else bound)
        costs.append(cost)
    n_known = int(sum(np.asarray(label) >= 0))
    n = {None: len(costs), "labelled": max(1, n_known), "0 / 0": n_known or np.nan, "sum": 1}[mean]
    fit = np.sum(bounds) if mean == "sum" else np.mean(bounds)
    loss = bound_sign * fit + sign * (0.0 if counted else alpha * sum(costs) / n)
    return np.array(bounds), np.asarray(loss)


def two_bounds(**mistakes):
    def answer(braces, log_q, log_p, label, alpha):
        return cell_by_cell(braces, log_q, log_p, label, alpha, **mistakes)

    return answer


TWO_BOUNDS = Exercise(
    name="14.2",
    title="The two bounds of M2",
    points=3,
    draw=draw_types,
    oracle=cell_by_cell,
    results=("the bound of each cell", "the loss"),
    extreme=1,
    verified="Both agree with scipy's entropies, cell by cell, for 56 cells, also where none has a "
    "label.",
    misconceptions=(
        Misconception(
            "the entropy forgotten",
            two_bounds(entropy=0.0),
            "The bound of a cell without a label is a mean over y of log p − log q. Your bound has "
            "no log q(y | x): a cell that is unsure of its type is judged as if it were sure.",
        ),
        Misconception(
            "the sign of the entropy",
            two_bounds(entropy=-1.0),
            "Almost. In a bound, log q is subtracted. Does your bound get higher or lower if "
            "q(y | x) becomes less sure and all else stays the same?",
        ),
        Misconception(
            "without p(y)",
            two_bounds(prior=None),
            "The bound of a labelled cell is on log p(x, y), and y has a prior too. What is "
            "missing in both kinds of cells?",
        ),
        Misconception(
            "without p(y) where y is known",
            two_bounds(prior="unknown"),
            "The cells without a label are right. The bound of a labelled cell is on log p(x, y): "
            "a type that is known is still a draw from its prior.",
        ),
        Misconception(
            "without p(y) where y is not known",
            two_bounds(prior="known"),
            "The labelled cells are right. For a cell without a label, y is a latent variable with "
            "a prior: what does it add to the side of p?",
        ),
        Misconception(
            "weighted by p(y)",
            two_bounds(weights="p"),
            "You average over types as they are before the cell is seen. Which distribution of y "
            "is in the variational model?",
        ),
        Misconception(
            "labels not used",
            two_bounds(all_unknown=True),
            "Your bound is the same with and without labels. For a cell whose type is known, there "
            "is nothing to average over.",
        ),
        Misconception(
            "−1 taken for a type",
            two_bounds(last=True),
            "A label of −1 means that there is none. As an index, −1 is the last type.",
        ),
        Misconception(
            "α in the bound",
            two_bounds(counted=True),
            "The loss is right. But the cross-entropy is not a part of log p(x, y): with it, your "
            "first result is not a bound on anything. Where does α belong?",
        ),
        Misconception(
            "the sign of the cross-entropy",
            two_bounds(sign=-1.0),
            "The bound is right. The loss is minimised: should a low q of the true type make it "
            "smaller or larger?",
        ),
        Misconception(
            "a mean over the labelled cells",
            two_bounds(mean="labelled"),
            "The bound is right. In your loss, a label weighs more if few cells have one. Here all "
            "means are over all cells.",
        ),
        Misconception(
            "a mean over no labelled cell",
            two_bounds(mean="0 / 0"),
            "The bound is right. In your loss, a label weighs more if few cells have one, and if "
            "none has, the loss is NaN. Here all means are over all cells.",
        ),
        Misconception(
            "sums in the loss",
            two_bounds(mean="sum"),
            "The bound is right. Your loss is a sum over cells, and grows with the minibatch.",
        ),
        Misconception(
            "the bound minimised",
            two_bounds(bound_sign=1.0),
            "The bound is right. But the loss is minimised: your model would learn to make the "
            "bound as low as it can.",
        ),
        Misconception(
            "cross-entropy of cells without a label",
            two_bounds(every=True),
            "The bound is right. In your loss, cells without a label pay a cross-entropy too. "
            "Against which type?",
        ),
    ),
)


# ------------------------------------------------------------------- 14.3 a decoder with a mask


def draw_sets(rng: np.random.Generator) -> list[dict]:
    """One cell, three genes, two sets; 20 and 21 cells in both precisions, the 20 with weights
    below zero. The last gene is in no set, and one gene is in two.
    """
    cases = []
    for n, n_genes, n_sets, dtype, sign in (
        (1, 3, 2, np.float64, 1),
        (20, 8, 3, np.float64, -1),
        (21, 7, 4, np.float32, 1),
    ):
        mask = rng.random((n_genes, n_sets)) < 0.4
        mask[:2] = False
        mask[0, 0], mask[1] = True, True
        mask[-1] = False
        values = {
            "z": rng.normal(size=(n, n_sets)),
            "weight": sign * rng.uniform(0.3, 1.5, (n_genes, n_sets)),
            "mask": mask,
            "bias": rng.normal(size=n_genes),
        }
        cases.append({k: v if k == "mask" else v.astype(dtype) for k, v in values.items()})
    return cases


def scores_set_by_set(z, weight, mask, bias, where: str = "weight"):
    """(W ∘ M) z + b by loops over genes and sets; ``where`` is the place of the mask."""
    z, weight, bias = (np.asarray(v, dtype=float) for v in (z, weight, bias))
    weight = np.maximum(weight, 0) if where == "weights above 0" else weight
    a = np.empty((len(z), len(weight)))
    for g, in_set in enumerate(mask):
        here = where in ("weight", "weights above 0", "bias too", "no bias")
        counted = np.flatnonzero(in_set) if here else range(len(in_set))
        moved = sum((z[:, k] * weight[g, k] for k in counted), np.zeros(len(z)))
        in_any = float(in_set.any())
        a[:, g] = moved * (in_any if where in ("output", "everything") else 1)
        a[:, g] += bias[g] * {"everything": in_any, "bias too": in_any, "no bias": 0}.get(where, 1)
    return a


def log_shares_with(where: str = "weight", normalized: bool = True):
    def log_shares(z, weight, mask, bias):
        from scipy.special import logsumexp

        a = scores_set_by_set(z, weight, mask, bias, where)
        return a - logsumexp(a, axis=1, keepdims=True) if normalized else a

    return with_slopes(log_shares)


def over_cells(z, weight, mask, bias):
    """A softmax over cells, which then depend on each other; slopes by hand."""
    from scipy.special import log_softmax

    log_p = log_softmax(scores_set_by_set(z, weight, mask, bias), axis=0)
    slope = 1 - len(z) * np.exp(log_p)  # of the sum, in each score
    found = log_p, slope @ (weight * mask), (slope.T @ z) * mask, slope.sum(0)
    return tuple(np.where(np.abs(v) < 1e-10, 0.0, v) for v in found)


def masked_once(z, weight, mask, bias):
    """The right values; but the gradient reaches weights outside of the mask, too."""
    masked = np.asarray(weight, dtype=float) * mask
    return log_shares_with("nowhere")(z=z, weight=masked, mask=mask, bias=bias)


PATHWAY = Exercise(
    name="14.3",
    title="What a pathway can move",
    points=3,
    draw=draw_sets,
    oracle=log_shares_with(),
    call="slopes",
    rtol=1e-5,  # so right numbers pass that were computed in float32
    atol=1e-6,
    results=("log ρ", *(f"slope in {name}" for name in ("z", "weight", "bias"))),
    verified="Agrees with a loop over genes and sets for 42 cells; so do the gradients.",
    misconceptions=(
        Misconception(
            "no mask",
            log_shares_with("nowhere"),
            "Every gene depends on every dimension here. If you masked z: z has one value per set, "
            "and each set has genes. Which of the tensors has a value for each gene and each set?",
        ),
        Misconception(
            "mask on the output",
            log_shares_with("output"),
            "You switch off the genes that are in no set. But a gene of set 1 still depends on all "
            "other dimensions. For each gene, which dimensions may count?",
        ),
        Misconception(
            "mask on the output and its bias",
            log_shares_with("everything"),
            "You multiply the finished scores by the mask. Genes in no set then lose their bias, "
            "and genes in a set still depend on all dimensions.",
        ),
        Misconception(
            "mask on the bias",
            log_shares_with("bias too"),
            "A gene in no set is expressed as well: it has its base level, which no pathway moves. "
            "What happened to its bias?",
        ),
        Misconception(
            "bias left out",
            log_shares_with("no bias"),
            "With z = 0, all genes would have the same share. Which input gives each gene its base "
            "level?",
        ),
        Misconception(
            "weights below 0 left out",
            log_shares_with("weights above 0"),
            "You set weights below zero to zero. In VEGA the training does that after each step; "
            "this function takes W as it is. With a clamp inside, no gradient reaches them.",
        ),
        Misconception(
            "softmax over cells",
            over_cells,
            "Your shares sum to 1 over the cells. They are shares of the molecules of *one* cell.",
        ),
        Misconception(
            "scores, not shares",
            log_shares_with(normalized=False),
            "These are the scores before the softmax: their exponentials do not sum to 1.",
        ),
        Misconception(
            "masked once",
            masked_once,
            "The values are right. But a gradient reaches the weights outside of the mask, and the "
            "next step of the optimiser moves them. The mask must be a part of the function.",
        ),
    ),
)


# ------------------------------------------- 14.4 foreground or background (goes into lesson_14.py)


def draw_two_counts(rng: np.random.Generator) -> list[dict]:
    """Six counts of one protein; 200 in both precisions; and counts for which both densities
    underflow, or the odds overflow; in the last two, the count says more than an extreme prior.
    """
    one = {"y": np.array([0.0, 5.0, 10.0, 20.0, 40.0, 80.0]), "background": np.full(6, 10.0)}
    cases = [one | {"fold": np.full(6, 5.0), "phi": np.full(6, 4.0), "logits": np.full(6, 1.0)}]
    for dtype in (np.float64, np.float32):
        background, fold = 10 ** rng.uniform(0, 2, 200), 1 + 10 ** rng.uniform(-0.5, 1, 200)
        phi, logits = 10 ** rng.uniform(0, 1, 200), rng.uniform(-3, 3, 200)
        mean = background * np.where(rng.random(200) < 0.5, fold, 1)
        values = {"y": rng.poisson(mean * rng.gamma(phi) / phi), "background": background}
        values |= {"fold": fold, "phi": phi, "logits": logits}
        cases.append({k: v.astype(dtype).reshape(20, 10) for k, v in values.items()})
    far = {"y": [0, 3e4, 2e4, 100, 0, 3e4, 0], "background": [5e3, 10, 8, 10, 10, 10, 5e3]}
    far |= {"fold": [40, 20, 30, 5, 5, 20, 40], "phi": [500, 400, 300, 4, 4, 400, 500]}
    far |= {"logits": [2, -1, 0.5, 900, -900, 900, -900]}
    cases.append({k: np.array(v, dtype=float) for k, v in far.items()})
    return cases


def by_two_densities(y, background, fold, phi, logits):
    """Bayes' rule with 60 digits, which neither underflow nor overflow."""
    import mpmath

    mp = mpmath.MPContext()
    mp.dps = 60

    def one(*numbers):
        y, low, ratio, phi, logit = map(mp.mpf, map(float, numbers))

        def density(mean):  # without what both have in common
            return mp.exp(phi * mp.log(phi / (phi + mean)) + y * mp.log(mean / (phi + mean)))

        pi = 1 / (1 + mp.exp(-logit))
        rest = 1 / (1 + mp.exp(logit))
        high = rest * density(low * ratio)
        return float(high / (high + pi * density(low)))

    return np.vectorize(one, otypes=[float])(y, background, fold, phi, logits)


def foreground_with(prior: str = "right", swapped: bool = False, value: str = "posterior"):
    """P(foreground | y) in logs; the options make one mistake each."""

    def foreground(y, background, fold, phi, logits):
        from scipy import stats
        from scipy.special import expit

        y, low, fold, phi, logits = (
            np.asarray(v, dtype=float) for v in (y, background, fold, phi, logits)
        )
        low_and_high = (low, fold * low)
        log_low, log_high = (stats.nbinom.logpmf(y, phi, phi / (phi + m)) for m in low_and_high)
        g = {"right": logits, "forgotten": 0.0, "other way round": -logits}[prior]
        if value == "mean of the mixture":
            return expit(g) * low + expit(-g) * fold * low
        if value == "1 − π":
            return expit(-g)
        log_odds = log_high - log_low - g
        return expit(-log_odds if swapped else log_odds)

    return foreground


def without_logs(of: str):
    """0/0 where both densities underflow; ∞/∞ where exp overflows, or ∞ from the log of 0."""

    def foreground(y, background, fold, phi, logits):
        from scipy import stats
        from scipy.special import expit

        y, low, fold, phi, logits = (
            np.asarray(v, dtype=float) for v in (y, background, fold, phi, logits)
        )
        p = phi / (phi + low), phi / (phi + fold * low)
        with np.errstate(all="ignore"):
            odds = np.exp(logits)
            pi = odds / (1 + odds) if of == "densities and odds" else expit(logits)
            if of == "π":
                log_low, log_high = (stats.nbinom.logpmf(y, phi, share) for share in p)
                return expit(log_high - log_low + np.log(1 - pi) - np.log(pi))
            low, high = (stats.nbinom.pmf(y, phi, share) for share in p)
            return (1 - pi) * high / ((1 - pi) * high + pi * low)

    return foreground


FOREGROUND = Exercise(
    name="14.4",
    title="Foreground or background",
    points=2,
    draw=draw_two_counts,
    oracle=by_two_densities,
    verified="Agrees with Bayes' rule in 60 digits at 413 counts, also where they underflow.",
    extreme=1,
    rtol=1e-7,
    misconceptions=(
        Misconception(
            "prior forgotten",
            foreground_with(prior="forgotten"),
            "You compare the two densities as if both were equally probable before the count was "
            "seen. Which of your inputs says how probable the background is?",
        ),
        Misconception(
            "π and 1 − π swapped",
            foreground_with(prior="other way round"),
            "The densities are in the right places, but the prior is not. Of what is π the "
            "probability: read the line that defines v.",
        ),
        Misconception(
            "the background's posterior",
            foreground_with(swapped=True),
            "This is a posterior probability, but of the other component. Try a very large count: "
            "what should the answer be near?",
        ),
        Misconception(
            "the mean of the mixture",
            foreground_with(value="mean of the mixture"),
            "This is the expected count, before y was seen. The answer is a probability, and it "
            "depends on y.",
        ),
        Misconception(
            "the prior alone",
            foreground_with(value="1 − π"),
            "This is the probability before the count was seen: it is the same for each y. What "
            "does y say?",
        ),
        Misconception(
            "underflow or overflow",
            without_logs("densities and odds"),
            "The formula is right. But for some counts both densities are 0 in the computer, or "
            "exp is infinite, and you divide 0 by 0. Stay in logarithms until the last step.",
        ),
        Misconception(
            "densities that underflow",
            without_logs("densities"),
            "The formula is right. But for some counts both densities are 0 in the computer, and "
            "you divide 0 by 0. Stay in logarithms until the last step.",
        ),
        Misconception(
            "the log of a π that is rounded",
            without_logs("π"),
            "The formula is right. But in the computer, sigmoid(900) is exactly 1. The log of "
            "1 − π is then −∞, whatever the count says. What is log π − log(1 − π), on paper?",
        ),
    ),
)


# ------------------------------------------------------------------------- 14.5 a model of your own


def draw_terms(rng: np.random.Generator) -> list[dict]:
    """Logs of densities for two cells and one draw; for more, in both precisions; and for draws
    so far from all pseudo-cells that their densities are 0 in the computer.
    """
    cases = []
    for S, n, dtype, far in ((1, 2, np.float64, 0), (3, 12, np.float64, 0),
                             (4, 13, np.float32, 0), (2, 5, np.float64, 2000)):  # fmt: skip
        seen = rng.random(n) < 0.5
        seen[:2] = True, False
        values = {
            "log_px": -rng.gamma(2.0, 1.0, (S, n, 5)),
            "log_py": -rng.gamma(3.0, 1.0, (S, n, 3)),
            "log_q": rng.normal(-1, 1, (S, n, 2)),
            "log_p_k": rng.normal(-3 - far, 2, (S, n, 4)),
        }
        values = {name: value.astype(dtype) for name, value in values.items()}
        cases.append({**values, "seen": seen})
    return cases


def composed(
    proteins: str = "seen",
    prior: str = "mean",
    sign: int = -1,
    draws: str = "mean",
    genes: str = "sum",
):
    """The bound of each cell, with loops; the options make one mistake each."""

    def bound(log_px, log_py, log_q, log_p_k, seen):
        log_px, log_py, log_q, log_p_k = (
            np.asarray(value, dtype=float) for value in (log_px, log_py, log_q, log_p_k)
        )
        S, n, K = log_p_k.shape
        weights = np.empty((S, n))
        for s in range(S):
            for i in range(n):
                of_genes, of_proteins = log_px[s, i], log_py[s, i]
                total = of_genes.sum() if genes == "sum" else of_genes.mean()
                if proteins == "all" or (proteins in ("seen", "only") and seen[i]):
                    total += of_proteins.sum()
                if prior == "mean of logs":
                    total += log_p_k[s, i].mean()
                else:
                    top = 0 if prior == "no logs" else log_p_k[s, i].max()
                    with np.errstate(divide="ignore"):
                        total += top + np.log(np.exp(log_p_k[s, i] - top).sum())
                    total -= 0 if prior == "sum" else np.log(K)
                weights[s, i] = total + sign * log_q[s, i].sum()
                if proteins == "only" and not seen[i]:
                    weights[s, i] = 0
        if draws == "sum":
            return weights.sum(0)
        return weights.mean(0) if draws == "mean" else _log_mean_exp(weights, 0)

    return bound


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="14.1",
            title="A prior made of posteriors",
            points=2,
            draw=draw_mixture,
            oracle=mixture(),
            verified="Agrees with scipy's normal densities at 47 points, 5 of them far from every "
            "component.",
            extreme=1,
            returns="tensor with gradient in mean, std",
            misconceptions=(
                Misconception(
                    "without 1/K",
                    mixture("sum"),
                    "Each value is too large by log K. What is the weight of each component?",
                ),
                Misconception(
                    "the mean of the logs",
                    mixture("mean of logs"),
                    "This is the mean of K logs. By Jensen it lies below the log of the mean of K "
                    "densities, which is the prior.",
                ),
                Misconception(
                    "a mixture for each dimension",
                    mixture("each dimension"),
                    "Here each dimension may choose another component. In the model one k gives "
                    "all dimensions of z: what has to happen before the sum over k?",
                ),
                Misconception(
                    "the nearest component alone",
                    mixture("nearest"),
                    "Only the nearest component counts here. Between two components both matter.",
                ),
                Misconception(
                    "std as a variance",
                    mixture(std_is_variance=True),
                    "The spread is that of a variance. `std` is a standard deviation already.",
                ),
            ),
        ),
        TWO_BOUNDS,
        PATHWAY,
        FOREGROUND,
        Exercise(
            name="14.5",
            title="The bound of a model that no paper has",
            points=3,
            draw=draw_terms,
            oracle=composed(),
            verified="Agrees with a sum in loops, cell by cell and draw by draw.",
            extreme=1,
            misconceptions=(
                Misconception(
                    "proteins that nobody measured",
                    composed(proteins="all"),
                    "The proteins of every cell are counted. What does a cell without proteins "
                    "contribute (lesson 09)?",
                ),
                Misconception(
                    "no proteins at all",
                    composed(proteins="none"),
                    "This is the bound of the genes. Cells with proteins have a second likelihood.",
                ),
                Misconception(
                    "cells without proteins left out",
                    composed(proteins="only"),
                    "A cell without proteins gets 0 here. It has a bound too: that of its genes.",
                ),
                Misconception(
                    "the prior without 1/K",
                    composed(prior="sum"),
                    "Each value is too large by log K: see exercise 14.1.",
                ),
                Misconception(
                    "the mean of the pseudo-cells' logs",
                    composed(prior="mean of logs"),
                    "You take the mean of K logs. The prior is a mean of K densities: see exercise "
                    "14.1.",
                ),
                Misconception(
                    "a prior that underflows",
                    composed(prior="no logs"),
                    "The formula is right. But a draw may lie so far from all pseudo-cells that "
                    "each density is 0 in the computer: see exercise 14.1.",
                ),
                Misconception(
                    "log q with the wrong sign",
                    composed(sign=+1),
                    "log q(z|x) is added. The bound is the mean of log (p(x, z) / q(z|x)).",
                ),
                Misconception(
                    "without log q",
                    composed(sign=0),
                    "Your bound has no log q(z|x): an encoder that names one point for each cell "
                    "would pay nothing for it.",
                ),
                Misconception(
                    "a sum over draws",
                    composed(draws="sum"),
                    "Your bound grows with the number of draws. It is a mean over them.",
                ),
                Misconception(
                    "the log of the mean weight",
                    composed(draws="log"),
                    "This is the importance-weighted bound (lesson 09): the log of a mean over "
                    "draws. The ELBO is the mean of the logs.",
                ),
                Misconception(
                    "a mean over genes",
                    composed(genes="mean"),
                    "The genes are averaged. Independent genes multiply, so that their logs add.",
                ),
            ),
        ),
    )
}
