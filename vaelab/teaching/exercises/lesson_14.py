"""Exercises of lesson 14: models composed from the same parts.

The oracles use scipy's densities and sums over the components one by one. The solutions use torch.
"""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

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


# ------------------------------------------------------------------------- 14.5 a model of your own


def draw_terms(rng: np.random.Generator) -> list[dict]:
    """Logs of densities for two cells and one draw, then for more, in both precisions."""
    cases = []
    for S, n, dtype in ((1, 2, np.float64), (3, 12, np.float64), (4, 13, np.float32)):
        seen = rng.random(n) < 0.5
        seen[:2] = True, False
        values = {
            "log_px": -rng.gamma(2.0, 1.0, (S, n, 5)),
            "log_py": -rng.gamma(3.0, 1.0, (S, n, 3)),
            "log_q": rng.normal(-1, 1, (S, n, 2)),
            "log_p_k": rng.normal(-3, 2, (S, n, 4)),
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
                if proteins == "all" or (proteins == "seen" and seen[i]):
                    total += of_proteins.sum()
                top = log_p_k[s, i].max()
                total += top + np.log(np.exp(log_p_k[s, i] - top).sum())
                total -= np.log(K) if prior == "mean" else 0
                weights[s, i] = total + sign * log_q[s, i].sum()
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
        Exercise(
            name="14.5",
            title="The bound of a model that no paper has",
            points=3,
            draw=draw_terms,
            oracle=composed(),
            verified="Agrees with a sum in loops, cell by cell and draw by draw.",
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
                    "the prior without 1/K",
                    composed(prior="sum"),
                    "Each value is too large by log K: see exercise 14.1.",
                ),
                Misconception(
                    "log q with the wrong sign",
                    composed(sign=+1),
                    "log q(z|x) is added. The bound is the mean of log p(x, z) / q(z|x).",
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
