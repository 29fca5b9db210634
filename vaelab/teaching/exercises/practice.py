"""The exercise of the START page, on which a learner sees how a check answers."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


def draw_tables(rng: np.random.Generator) -> list[dict]:
    """A small table, and five larger ones of Poisson counts."""
    cases = [{"counts": np.array([[0, 2, 0], [1, 0, 5]])}]
    for mean in (0.1, 0.5, 1, 2, 4):
        shape = rng.integers(3, 9), rng.integers(9, 30)
        cases.append({"counts": rng.poisson(mean, shape)})
    return cases


def share_of_zeros(counts):
    n_genes = np.shape(counts)[1]
    values, times = np.unique(counts, return_counts=True)
    return dict(zip(values.tolist(), times, strict=True)).get(0, 0) / (len(counts) * n_genes)


EXERCISES = {
    "00.1": Exercise(
        name="00.1",
        title="The share of zeros",
        points=0,
        call="arrays",
        draw=draw_tables,
        oracle=share_of_zeros,
        verified="Agrees with a count of every value, for six tables.",
        misconceptions=(
            Misconception(
                "divided by the number of rows",
                lambda counts: share_of_zeros(counts) * np.shape(counts)[1],
                "`len(counts)` is the number of rows of a table. How many entries does it have?",
            ),
            Misconception(
                "the share that is not zero",
                lambda counts: 1 - share_of_zeros(counts),
                "This is the share of the other entries: those above zero.",
            ),
            Misconception(
                "a number instead of a share",
                lambda counts: share_of_zeros(counts) * np.size(counts),
                "This is the number of zeros. A share lies between 0 and 1.",
            ),
        ),
    )
}
