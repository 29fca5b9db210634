"""Exercises of lesson 05: count likelihoods."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


def draw_counts(rng: np.random.Generator) -> list[dict]:
    """Counts, means and inverse dispersions: one entry, then 200 in both precisions."""
    cases = [{"x": np.array([0.0]), "mean": np.array([1.0]), "theta": np.array([2.0])}]
    for dtype in (np.float64, np.float32):
        mean, theta = 10 ** rng.uniform(-2, 2, 200), 10 ** rng.uniform(-1, 1.5, 200)
        x = rng.poisson(mean * rng.gamma(theta) / theta)
        cases.append(
            {"x": x.astype(dtype), "mean": mean.astype(dtype), "theta": theta.astype(dtype)}
        )
    return cases


def nb(x, mean, theta):
    from scipy import stats

    x, mean, theta = (np.asarray(v, dtype=float) for v in (x, mean, theta))
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean))


def nb_of_1_minus_p(x, mean, theta):
    from scipy import stats

    return stats.nbinom.logpmf(x, theta, mean / (theta + mean))


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="05.1",
            title="The negative binomial by mean and inverse dispersion",
            points=3,
            draw=draw_counts,
            oracle=nb,
            verified="Agrees with scipy at 401 points, in float32 and float64.",
            misconceptions=(
                Misconception(
                    "p for 1 − p",
                    nb_of_1_minus_p,
                    "This is the probability with p and 1 − p exchanged: see the table of "
                    "parametrisations, and ask which outcome p belongs to.",
                ),
            ),
        ),
    )
}
