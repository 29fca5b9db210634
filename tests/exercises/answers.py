"""How a learner's answer is tried: as the lesson's check tries it."""

import numpy as np

from vaelab.teaching.exercises import SEED, find


def verdict_on(name, answer, seed=SEED):
    exercise = find(name)
    cases = exercise.cases(seed)
    with np.errstate(all="ignore"):
        return exercise.judge(cases, exercise.outcomes(answer, cases))


def pass_all(name, answers, seeds):
    """Every one of at least five right answers passes with every seed."""
    assert len(answers) >= 5
    for number, answer in enumerate(answers):
        for seed in seeds:
            verdict = verdict_on(name, answer, seed)
            assert verdict.passed, f"variant {number}, seed {seed}: {verdict}"


def fail_by_name(name, answers, seeds):
    """Every one of at least five wrong answers fails as the mistake that stands beside it."""
    assert len(answers) >= 5
    for number, (answer, misconception) in enumerate(answers):
        for seed in seeds:
            verdict = verdict_on(name, answer, seed)
            assert not verdict.passed, f"variant {number}, seed {seed}"
            assert verdict.misconception == misconception, (
                f"variant {number}, seed {seed}: {verdict}"
            )
