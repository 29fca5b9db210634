"""Every exercise: its solution, its mistakes, its messages, and its place in the lesson.

Generic over all lessons that have exercises. What an exercise owes is in
``vaelab/teaching/exercises/core.py``; whether learners' editions and marks are right is tested
elsewhere.
"""

import ast
import re
import time
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path

import jupytext
import matplotlib
import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix

import vaelab
from vaelab.teaching.exercises import SEED, CheckFailed, box, find, lessons
from vaelab.teaching.exercises.calls import Outcome, as_data
from vaelab.teaching.exercises.core import Verdict, plain

from . import oracles

matplotlib.use("agg")
COURSE = Path(__file__).parents[1] / "course"
SEEDS = [SEED, 1, 2, 3]
DECLARED = {
    lesson: import_module(f"vaelab.teaching.exercises.lesson_{lesson}").EXERCISES
    for lesson in lessons()
}
NAMES = [name for exercises in DECLARED.values() for name in exercises]
every_exercise = pytest.mark.parametrize("name", NAMES)


@cache
def cells_of(lesson: str):
    [path] = COURSE.glob(f"{lesson}_*.py")
    return jupytext.read(path).cells


def marked(name: str, what: str) -> list:
    """Cells of an exercise: its answer's ("solution") or its check's ("grade")."""
    wanted = name if what == "solution" else f"{name}-check"
    cells = [c for c in cells_of(name[:2]) if c.metadata.get("nbgrader", {}).get(what)]
    return [
        c for c in cells if c.metadata["nbgrader"]["grade_id"] in (wanted, wanted.replace(".", "-"))
    ]


def solution_of(name: str):
    """The lesson's own answer: what stands in its check cell, after its imports and answers."""
    call = ast.parse(marked(name, "grade")[0].source).body[-1].value
    return eval(ast.unparse(call.args[1]), namespace(name[:2]))


@cache
def namespace(lesson: str) -> dict:
    """The lesson's answers, the functions that its check cells call, and the imports of both."""
    checks = "\n".join(marked(name, "grade")[0].source for name in DECLARED[lesson])
    answers = [marked(name, "solution")[0].source for name in DECLARED[lesson]]
    imports, found = [], {}
    for cell in cells_of(lesson):
        if cell.cell_type != "code" or cell.source.startswith("%"):
            continue
        for node in ast.parse(cell.source).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imports.append(node)
            elif (
                isinstance(node, ast.FunctionDef)
                and "nbgrader" not in cell.metadata
                and re.search(rf"\b{node.name}\b", checks)
            ):
                answers.append(ast.unparse(node))
    answers = "\n".join(answers)
    for node in imports:
        bound = [(a.asname or a.name).partition(".")[0] for a in node.names]
        if any(re.search(rf"\b{b}\b", answers) for b in bound):  # others may be slow
            exec(ast.unparse(node), found)
    exec(answers, found)
    return found


def as_learner(case: dict, data):
    """Numbers as an answer would give them: in the precision of its inputs."""
    if isinstance(data, tuple):
        return tuple(as_learner(case, part) for part in data)
    data = as_data(data)
    single = any(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in case.values())
    is_float = isinstance(data, np.ndarray) and data.dtype.kind == "f"
    with np.errstate(all="ignore"):
        return data.astype(np.float32) if single and is_float else data


def judged(exercise, answer, seed=SEED) -> Verdict:
    """The verdict on ``answer``, a function of a case's inputs by name that returns plain data."""
    cases = exercise.cases(seed)
    with np.errstate(all="ignore"):
        outcomes = [Outcome("value", as_learner(case, answer(**case))) for case in cases]
    return exercise.judge(cases, outcomes)


def checked(exercise, answer, seed=SEED) -> Verdict:
    """The verdict on a learner's answer, called as the check calls it."""
    cases = exercise.cases(seed)
    return exercise.judge(cases, exercise.outcomes(answer, cases))


def shaped(data, fill):
    """Data of the same build, with ``fill(array)`` for each array."""
    if isinstance(data, tuple):
        return tuple(shaped(part, fill) for part in data)
    return data if isinstance(data, str) else fill(np.asarray(data))


# ------------------------------------------------------------------------------ right answers


@every_exercise
def test_the_solution_passes_on_100_seeds(name):
    exercise, solution = find(name), solution_of(name)
    for seed in range(100):
        verdict = checked(exercise, solution, seed)
        assert verdict.passed, f"seed {seed}: {verdict}"
    assert verdict.points == exercise.points > 0
    assert str(verdict).startswith(f"✔ {name} {exercise.title}")


def nb_by_products(x, mean, theta):
    """The rising factorial as a product, entry by entry, in double precision."""
    result = []
    for k, m, t in zip(x.tolist(), mean.tolist(), theta.tolist(), strict=True):
        ways = sum(np.log((t + i) / (1 + i)) for i in range(int(k)))
        result.append(ways + t * np.log(t / (t + m)) + k * np.log(m / (t + m)))
    return np.array(result)


def zinb_by_max(x, mean, theta, logits):
    """Larger of two logs, plus log(1 + e^−difference), in numpy."""
    x, mean, theta, g = (v.double().numpy() for v in (x, mean, theta, logits))
    base = nb_by_products(*(torch.as_tensor(v) for v in (x, mean, theta)))
    log_1_minus_pi = -np.maximum(g, 0) - np.log1p(np.exp(-np.abs(g)))
    a, b = log_1_minus_pi + g, log_1_minus_pi + base
    at_zero = np.maximum(a, b) + np.log1p(np.exp(-np.abs(a - b)))
    return np.where(x == 0, at_zero, b)


def denoise_by_probabilities(x, mean, theta, logits):
    x, mean, theta, g = (v.double() for v in (x, mean, theta, logits))
    pi, p0 = torch.sigmoid(g), (theta / (theta + mean)) ** theta
    rate = (x + theta) * mean / (mean + theta)
    return torch.where(x == 0, (1 - pi) * p0 / (pi + (1 - pi) * p0), 1.0) * rate


def cb_by_replacing(x, lam):
    """The closed form everywhere; λ is moved off ½ and the linear part is put back."""
    u = 1 - 2 * lam
    small = u.abs() < 1e-2
    safe = u.masked_fill(small, 1e-1)
    c = torch.where(small, 2 * (1 + u**2 / 3 + u**4 / 5 + u**6 / 7), 2 * safe.atanh() / safe)
    return torch.log(c * lam**x * (1 - lam) ** (1 - x))


def straight_through_by_custom_function(logits, exponential, temperature):
    class Hard(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return torch.zeros_like(y).scatter_(-1, y.argmax(-1, keepdim=True), 1)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    return Hard.apply(torch.softmax((logits - exponential.log()) / temperature, -1))


def score_by_autograd(logits, drawn, f):
    log_q = torch.func.jacrev(lambda logits: logits.log_softmax(-1)[drawn])(logits)
    return (f - f.mean())[:, None] * log_q * len(f) / (len(f) - 1)


def evidence_cell_by_cell(x, r, a, b):
    from scipy.special import betaln, gammaln

    total = 0.0
    for k in x:  # what was seen so far is the prior of the next
        total += gammaln(k + r) - gammaln(r) - gammaln(k + 1) + betaln(a + r, b + k) - betaln(a, b)
        a, b = a + r, b + k
    return total


def linear_bound_by_torch(x, W, b, m, s, sigma):
    Normal, KL = torch.distributions.Normal, torch.distributions.kl_divergence
    at_mean = Normal(b + m @ W.T, sigma).log_prob(x).sum(1)
    spread = (s**2 @ (W**2).sum(0)) / (2 * sigma**2)
    return at_mean - spread - KL(Normal(m, s), Normal(0 * m, s / s)).sum(1)


def pathwise_by_rsample(f, mean, std, n_samples):
    mean.requires_grad_(), std.requires_grad_()
    f(torch.distributions.Normal(mean, std).rsample((n_samples,))).sum().backward()
    return mean.grad / n_samples, std.grad / n_samples


def antithetic_differences(f, mean, std, n_samples):
    noise = torch.randn(n_samples // 2, *mean.shape, dtype=mean.dtype)
    difference = f(mean + std * noise) - f(mean - std * noise)
    return (difference[..., None] * noise / (2 * std)).mean(0)


def value_at_the_mean_as_baseline(f, mean, std, n_samples):
    z = torch.distributions.Normal(mean, std).sample((n_samples,))
    return ((f(z) - f(mean))[..., None] * (z - mean) / std**2).mean(0)


def aevb_by_loop(weights, n_genes, x, noise, sigma):
    encoder, W2, W1 = weights[:n_genes], weights[n_genes : 2 * n_genes].T, weights[2 * n_genes : -1]
    b1 = weights[-1]
    Normal, KL = torch.distributions.Normal, torch.distributions.kl_divergence
    half, total = encoder.shape[1] // 2, 0.0
    for cell, ε in zip(x, noise.transpose(0, 1), strict=True):
        q = Normal(cell @ encoder[:, :half], (cell @ encoder[:, half:]).exp().sqrt())
        p = Normal((((q.mean + q.stddev * ε) @ W1 + b1).tanh()) @ W2, sigma)
        total += p.log_prob(cell).sum() / len(ε) - KL(q, Normal(0 * q.mean, 1.0)).sum()
    return total / len(x)


def two_kls_by_torch(log_q, m, s, log_prior, means, stds):
    Normal, Cat = torch.distributions.Normal, torch.distributions.Categorical
    of_z = torch.distributions.kl_divergence(Normal(m, s), Normal(means, stds)).sum(-1)
    prior = Cat(logits=log_prior.expand_as(log_q))
    of_y = torch.distributions.kl_divergence(Cat(logits=log_q), prior)
    return torch.einsum("nk,nk->n", log_q.exp(), of_z), of_y


def gmvae_bound_on_a_grid(x, log_q, m, s, log_prior, means, stds, a, b):
    Normal, Poisson = torch.distributions.Normal, torch.distributions.Poisson
    u = torch.linspace(-9, 9, 2001, dtype=x.dtype)[:, None, None]
    z, q = m + s * u, log_q.exp()  # (grid, n, K)
    log_p = Poisson((a + b * z[..., None]).exp()).log_prob(x[:, None]).sum(-1)
    inside = log_p + Normal(means, stds).log_prob(z) - Normal(m, s).log_prob(z)
    weights = Normal(0.0, 1.0).log_prob(u).exp() * (u[1] - u[0])
    return (q * ((weights * inside).sum(0) + log_prior - log_q)).sum(-1)


def clusters_by_second_moments(q, m, s):
    q, m, s = (v.numpy() for v in (q, m, s))
    total = q.sum(0)[:, None]
    means = np.einsum("nk,nkd->kd", q, m) / total
    squares = np.einsum("nk,nkd->kd", q, m**2 + s**2) / total
    return means, np.sqrt(squares - means**2)


def scores_by_counting(truth, predicted):
    types = sorted(set(truth))
    recall = [np.mean(predicted[truth == name] == name) for name in types]
    n = {name: np.sum(truth == name) + np.sum(predicted == name) for name in types}
    right = truth[truth == predicted]
    return sum(recall) / len(types), np.mean([2 * np.sum(right == t) / n[t] for t in types])


def auroc_by_ranks(q, is_new):
    from scipy import special, stats

    rank = stats.rankdata(special.entr(q).sum(1))
    return (rank[is_new].mean() - (is_new.sum() + 1) / 2) / (~is_new).sum()


def mixing_cell_by_cell(latent, batch, cell_type, k):
    found = chance = 0.0
    for i, name in enumerate(cell_type):
        others = [j for j in np.flatnonzero(cell_type == name) if j != i]
        if len(others) >= k:
            near = sorted(others, key=lambda j, i=i: ((latent[i] - latent[j]) ** 2).sum())[:k]
            found += np.mean([batch[j] != batch[i] for j in near])
            chance += np.mean([batch[j] != batch[i] for j in others])
    return found / chance


DIFFERENT = {
    "02.1": [evidence_cell_by_cell],
    "02.2": [
        lambda mean, std: torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, std), torch.distributions.Normal(0 * mean, std / std)
        ).sum(1),
    ],
    "02.3": [
        lambda E, p, x, q: (
            np.log(E(lambda z: np.exp(p(z)) * np.exp(x(z)) / np.exp(q(z)))), E(p) + E(x) - E(q)
        ),
    ],
    "02.4": [lambda E, p, x, q, post: (torch.tensor(E(x)), float(E(q) - E(p)), E(q) - E(post))],
    "02.5": [lambda E, joint, post, q: (sum(E(joint) - E(q)), np.sum(E(q)) - np.sum(E(post)))],
    "02.6": [linear_bound_by_torch],
    "03.1": [lambda noise, mean, v: torch.sqrt(v.exp()) * noise + mean],
    "03.2": [pathwise_by_rsample],
    "03.3": [
        lambda f, z, m, s: (
            f.outer(s**-2) * (z - m),
            f[:, None] * ((z - m - s) * (z - m + s) / s**3),
        )
    ],
    "03.4": [antithetic_differences, value_at_the_mean_as_baseline],
    "03.5": [aevb_by_loop],
    "03.6": [
        lambda x, v, m, s: (
            -(x - m) ** 2 / (2 * (v**2 + s**2)) - torch.log(2 * torch.pi * (v**2 + s**2)) / 2
        )
    ],
    "05.1": [
        nb_by_products,
        lambda x, m, t: vaelab.distributions.NegativeBinomial(m, t).log_prob(x),
        lambda x, m, t: torch.distributions.NegativeBinomial(t, logits=(m / t).log()).log_prob(x),
    ],
    "05.2": [
        lambda r, p: (r / p - r, r * 1, 1 - p),
        lambda r, p: tuple(v.numpy() for v in (r * (1 / p - 1), r, 1.0 - p)),
    ],
    "05.3": [
        lambda depth, mean, theta: sum(
            float(((1 + depth * m / theta) ** -theta).mean()) for m in mean
        ) / len(mean),
    ],
    "05.4": [
        zinb_by_max,
        lambda x, m, t, g: vaelab.distributions.ZeroInflated(
            vaelab.distributions.NegativeBinomial(m, t), g
        ).log_prob(x),
    ],
    "05.5": [denoise_by_probabilities],
    "05.6": [
        cb_by_replacing,
        lambda x, lam: vaelab.distributions.ContinuousBernoulli.from_probs(lam).log_prob(x),
    ],
    "07.1": [
        lambda logits, log_p_x, log_prior: (logits.softmax(-1) * log_p_x).sum(-1)
        - torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=logits),
            torch.distributions.Categorical(logits=log_prior.expand_as(logits)),
        ),
    ],
    "07.2": [lambda logits, u: (torch.log(-torch.log(u)) - logits.log_softmax(-1)).argmin(-1)],
    "07.3": [
        lambda difference, temperature: np.mean(
            1 / (1 + np.exp(-(difference + np.log(u := (np.arange(1e5) + 0.5) / 1e5)
                              - np.log1p(-u)) / temperature))
        ),
    ],
    "07.4": [score_by_autograd],
    "07.5": [straight_through_by_custom_function],
    "07.6": [
        lambda logits: np.log(logits.shape[-1])
        - torch.distributions.Categorical(logits=logits).entropy(),
    ],
    "08.1": [two_kls_by_torch],
    "08.2": [gmvae_bound_on_a_grid],
    "08.3": [clusters_by_second_moments],
    "08.4": [
        lambda q: (
            torch.xlogy(q, q / q.mean(0)).nan_to_num().sum(1).mean(),
            torch.xlogy(q.mean(0), q.mean(0) * q.shape[1]).sum(),
        ),
    ],
    "08.5": [
        lambda truth, found: (t := contingency_matrix(truth, found))[
            linear_sum_assignment(-t)
        ].sum() / len(truth),
    ],
    "10.1": [
        lambda u_w, u_y, u_h, size, rho, theta, pi: (u_h >= pi) * stats.poisson(
            size * stats.chi2(2 * theta).ppf(u_w) * rho / (2 * theta)
        ).ppf(u_y),
    ],
    "10.2": [
        lambda library, batch, n: tuple(
            np.array([f(np.log(library)[batch == b]) for b in range(n)]) for f in (np.mean, np.var)
        ),
    ],
    "10.3": [
        lambda m, v, m0, v0: torch.distributions.kl_divergence(
            torch.distributions.LogNormal(m, v.sqrt()), torch.distributions.LogNormal(m0, v0.sqrt())
        ),
    ],
    "10.4": [mixing_cell_by_cell],
    "10.5": [
        lambda logits: torch.stack(
            [(g - g.logsumexp(-1, keepdim=True)).exp() for g in logits.flatten(0, 1)]
        ).mean(0),
    ],
    "12.1": [
        lambda c, px, pl, p1, pc, p2, q1, ql, _, q2: pc[0, 0, c, 0] + torch.einsum(
            "l,z,zw,lzw->", *(q.exp() for q in (ql[:, 0, 0, 0], q1[0, :, 0, 0], q2[0, :, c])),
            (px + pl - ql + p1 - q1 + p2 - q2)[:, :, c],
        ),
    ],
    "12.2": [
        lambda px, pl, p1, pc, p2, q1, ql, qc, q2: (
            (px * (q1 + ql).exp()).sum() - (ql.exp() * (ql - pl)).sum() - (q1.exp() * q1).sum()
            + ((q1 + qc + q2).exp() * (p1 + p2 - q2)).sum() + ((q1 + qc).exp() * (pc - qc)).sum()
        ),
    ],
    "12.3": [
        lambda value, log_q_z1: (
            torch.log(best := torch.softmax(value - value.mean(), -1)),
            (log_q_z1.exp()[:, None] * (best * value - torch.xlogy(best, best))).sum(),
        ),
    ],
    "12.4": [
        lambda w, log_q_z1, log_p_z1, mean, variance, log_p_c: (
            torch.einsum("nc,nc->n", w, log_p_z1 - log_q_z1[:, None]),
            -(w[..., None] * torch.distributions.kl_divergence(
                torch.distributions.Normal(mean, variance.sqrt()),
                torch.distributions.Normal(0 * mean, 1),
            )).sum((1, 2)),
            torch.special.entr(w).sum(1) + w @ log_p_c,
        ),
    ],
    "12.5": [
        lambda line: (
            line in (2, 5, 6, 7),
            ["reconstruction", "kl_z2", "log_p_z1", "log_q_z1", "kl_c", "kl_library", "kl_library",
             "outside", "unknown", "unknown", "log_p_c"][line - 1],
        ),
    ],
    "12.6": [
        lambda log_p_x, log_p_z, log_q_z: (
            log_p_x.max() + ((log_p_x - log_p_x.max()).exp() @ log_p_z.exp()).log(),
            torch.logsumexp(log_p_x.double() + log_q_z, dim=1),
        ),
    ],
    "13.1": [scores_by_counting],
    "13.2": [
        lambda confidence, right, n: np.abs(
            np.bincount(np.minimum((confidence * n).astype(int), n - 1), confidence - right)
        ).sum() / len(right),
    ],
    "13.3": [auroc_by_ranks],
    "13.4": [lambda measured, flipped, n: (measured * (n - 1) - flipped) / (n - 1 - n * flipped)],
    "13.5": [
        lambda ratio, n_cells, n_labelled, size: ratio * n_cells / n_labelled * (
            1 - np.prod([(n_cells - size - i) / (n_cells - i) for i in range(n_labelled)])
        ),
    ],
    "13.6": [
        lambda logits, label: torch.nn.functional.nll_loss(
            logits.log_softmax(-1), label, ignore_index=-1, reduction="sum"
        ) / max(1, int((label >= 0).sum())),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_right_answers_written_in_another_way_pass(name):
    for number, answer in enumerate(DIFFERENT[name]):
        for seed in SEEDS:
            verdict = checked(find(name), answer, seed)
            assert verdict.passed, f"number {number}, seed {seed}: {verdict}"


# ------------------------------------------------------------------------------ wrong answers


@every_exercise
def test_each_misconception_is_recognised_by_its_own_hint_and_no_other(name):
    exercise = find(name)
    assert len({m.name for m in exercise.misconceptions}) == len(exercise.misconceptions) >= 2
    for seed in SEEDS:
        cases = exercise.cases(seed)
        right = [exercise.oracle(**case) for case in cases]

        def fitting(answer, known, cases=cases, right=right):
            """The misconception that judge finds, of ``known`` ones; the oracle is asked once."""
            again = iter(right)
            asked = replace(exercise, oracle=lambda **_: next(again), misconceptions=known)
            verdict = asked.judge(cases, answer)
            assert not verdict.passed and verdict.points == 0
            assert verdict.misconception is None or str(verdict).endswith(plain(known[-1].hint))
            return verdict.misconception

        for wrong in exercise.misconceptions:
            with np.errstate(all="ignore"):
                given = [Outcome("value", as_learner(case, wrong.wrong(**case))) for case in cases]
            found = [fitting(given, (known,)) for known in exercise.misconceptions]
            assert [*filter(None, found)] == [wrong.name], f"seed {seed}: {wrong.name}"


@every_exercise
def test_an_answer_of_no_known_mistake_is_told_the_smallest_difference(name):
    exercise = find(name)

    def off(**case):
        def moved(a):
            return a + 1 if a.dtype.kind in "iub" else a * 1.37 + 0.113

        return shaped(exercise.oracle(**case), moved)

    verdict = judged(exercise, off)
    assert not verdict.passed and verdict.misconception is None
    said = ("should be", "not the right", "at most")
    assert any(words in verdict.message for words in said), verdict.message


def fail(*_, **__):
    raise ZeroDivisionError("by hand")


def undone(*_, **__):
    raise NotImplementedError("Exercise")


def endless(*_, **__):
    while True:
        pass


@every_exercise
@pytest.mark.parametrize(
    "answer, said",
    [
        (undone, "still to be done"),
        (fail, "raised ZeroDivisionError: by hand"),
        (lambda *_: None, "Expected"),
        (lambda *_: object(), "Expected"),
        (endless, "still running after 0.05 s"),
    ],
    ids=["undone", "raises", "None", "object", "endless"],
)
def test_an_answer_without_a_value_is_told_so(name, answer, said):
    verdict = checked(replace(find(name), seconds=0.05), answer)
    assert not verdict.passed and said in verdict.message, verdict.message


def test_an_endless_answer_that_catches_every_exception_is_stopped():
    def stubborn(*_):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                while time.monotonic() < end:
                    pass
            except Exception:
                pass
        return 0.0

    verdict = checked(replace(find("05.1"), seconds=0.05), stubborn)
    assert "still running" in verdict.message


@every_exercise
def test_every_case_counts_and_no_tolerance_hides_a_fifth(name):
    exercise = find(name)
    cases = exercise.cases(SEED)
    right = [as_learner(case, exercise.oracle(**case)) for case in cases]

    def off(a):
        if a.dtype.kind in "iub":
            return a + 1
        tiny = np.abs(np.nan_to_num(a)).max() < 1e-3
        return a + a.dtype.type(0.1) if tiny else a * a.dtype.type(1.2)

    for i, value in enumerate(right):
        moved = shaped(value, off) if not isinstance(value, str) else f"not {value}"
        given = [Outcome("value", v) for v in (*right[:i], moved, *right[i + 1 :])]
        assert not exercise.judge(cases, given).passed, f"case {i} may be anything"


@every_exercise
@pytest.mark.parametrize(
    "fill, said",
    [
        (lambda a: np.full(a.shape, np.nan), "NaN"),
        (lambda a: np.zeros((*a.shape, 2)), "has shape"),
        (lambda a: "forty-two", "Expected numbers, but your answer gave the word 'forty-two'"),
    ],
    ids=["NaN", "shape", "word"],
)
def test_a_value_of_the_wrong_kind_is_told_so(name, fill, said):
    exercise = find(name)
    if isinstance(exercise.oracle(**exercise.cases(SEED)[0]), str):
        pytest.skip("asks for a word")
    bare = replace(exercise, misconceptions=())
    verdict = judged(bare, lambda **case: shaped(exercise.oracle(**case), fill))
    assert not verdict.passed and said in verdict.message, verdict.message
    verdict = judged(exercise, lambda **case: shaped(exercise.oracle(**case), fill))
    assert not verdict.passed


@every_exercise
def test_a_message_never_holds_the_solution(name):
    exercise = find(name)
    source = marked(name, "solution")[0].source
    inside = re.search(r"### BEGIN SOLUTION\n(.*?)\n\s*### END SOLUTION", source, re.S)[1]
    squeezed = [
        re.sub(r"\s|^return", "", line.partition("#")[0].strip()) for line in inside.split("\n")
    ]
    lines = [line for line in squeezed if len(line) > 8]
    answers = [m.wrong for m in exercise.misconceptions]
    answers.append(
        lambda **case: shaped(exercise.oracle(**case), lambda a: np.full(a.shape, np.nan))
    )
    for answer in answers:
        said = re.sub(r"\s", "", str(judged(exercise, answer)))
        assert not [line for line in lines if line in said]


@every_exercise
def test_pictures_can_be_drawn_of_every_comparable_mistake(name):
    exercise = find(name)
    verdicts = [judged(exercise, m.wrong) for m in exercise.misconceptions]
    for verdict in verdicts:
        figure = box.picture_of(verdict)
        assert (figure is not None) == (exercise.picture is not None and verdict.comparable)
        if figure is not None:
            [axes] = figure.axes
            assert axes.get_title() and axes.get_legend_handles_labels()[1]
    for other in (np.float64(1), "word", (np.zeros(2), np.zeros(2)), None):
        assert not replace(verdicts[0], expected=np.zeros(3), got=other).comparable


# --------------------------------------------------------------------------- in the lesson


@every_exercise
def test_one_answer_cell_and_one_check_cell(name):
    assert len(marked(name, "solution")) == len(marked(name, "grade")) == 1
    [answer], [check] = marked(name, "solution"), marked(name, "grade")
    cells = cells_of(name[:2])
    assert cells.index(answer) < cells.index(check)
    assert len(re.findall("### (?:BEGIN|END) SOLUTION", answer.source)) == 2
    assert not answer.metadata["nbgrader"]["grade"] and not answer.metadata["nbgrader"]["locked"]
    assert check.metadata["nbgrader"]["locked"] and not check.metadata["nbgrader"]["solution"]
    assert check.metadata["nbgrader"]["points"] == find(name).points
    assert re.match(rf'vaelab\.check\("{re.escape(name)}", ', check.source)


@every_exercise
def test_its_text_has_its_title_its_points_and_a_hint(name):
    exercise = find(name)
    text = "\n".join(c.source for c in cells_of(name[:2]) if c.cell_type == "markdown")
    points = "1 point" if exercise.points == 1 else f"{exercise.points} points"
    heading = re.escape(f"### Exercise {name} · {exercise.title}")
    found = re.findall(rf"^{heading}\n[★☆]{{3}} · \d+ minutes · {points}$", text, re.M)
    assert len(found) == 1, f"not once in the lesson: {heading}, its stars, minutes, and {points}"
    after = text.partition(found[0])[2].partition("### Exercise")[0]
    assert "<summary>Hint</summary>" in after


@pytest.mark.parametrize("lesson", DECLARED)
def test_a_lesson_has_the_declared_exercises_and_no_others(lesson):
    ids = [c.metadata["nbgrader"]["grade_id"] for c in cells_of(lesson) if "nbgrader" in c.metadata]
    wanted = [part for name in DECLARED[lesson] for part in (name, f"{name}-check")]
    assert [i.replace("-", ".", 1) if i[2] == "-" else i for i in ids] == wanted
    assert all(exercise.name == name for name, exercise in DECLARED[lesson].items())


def test_every_lesson_with_exercise_cells_declares_them():
    for path in COURSE.glob("[0-9]*.py"):
        if "vaelab.check(" in path.read_text(encoding="utf-8"):
            assert path.name[:2] in DECLARED


# ------------------------------------------------------------------- the check, and the oracles


@every_exercise
def test_a_seed_always_draws_the_same(name):
    def flat(seed):
        return [
            (k, np.asarray(v).tolist()) for case in find(name).cases(seed) for k, v in case.items()
        ]

    assert flat(3) == flat(3)
    assert flat(3) != flat(4) or len({str(flat(s)) for s in range(3)}) == 1


def test_check_prints_what_passed_and_raises_what_did_not(capsys):
    vaelab.check("05.1", solution_of("05.1"))
    assert capsys.readouterr().out.startswith("✔ 05.1 The negative binomial")
    with pytest.raises(CheckFailed, match=r"✘ 05\.1") as failed:
        vaelab.check("05.1", lambda x, mean, theta: x * torch.nan)
    assert failed.value._render_traceback_() == str(failed.value).splitlines()
    with pytest.raises(KeyError, match=r"no exercise '05.99'"):
        vaelab.check("05.99", None)


def test_an_embedding_is_told_the_mode_that_it_was_made_in():
    """The encoder of 04.2 draws as the declaration foresees, whoever drew before."""

    def embed(encoder, x, batch_size, before=True, after=None):
        mode = encoder.training
        encoder.train(mode and before)
        with torch.no_grad():
            means = [encoder(part).chunk(2, dim=-1)[0] for part in x.split(batch_size)]
        encoder.train(mode if after is None else after)
        return torch.cat(means)

    torch.manual_seed(1)
    for name, answer in {
        "training mode": embed,
        "training mode, all cells at once": lambda encoder, x, _: embed(encoder, x, len(x)),
        "left in evaluation mode": lambda *case: embed(*case, before=False, after=False),
        "left in training mode": lambda *case: embed(*case, before=False, after=True),
    }.items():
        assert [checked(find("04.2"), answer, seed).misconception for seed in SEEDS] == [name] * 4


class TestOraclesOfLesson05:
    """The declarations' right answers against 60 digits, or against another integral."""

    def some(self, name, n=12):
        for case in find(name).cases(7):
            if all(np.asarray(v).dtype != np.float32 for v in case.values()):
                arrays = [np.atleast_1d(v) for v in case.values()]
                yield from zip(*(a[:n] for a in (*arrays, find(name).oracle(**case))), strict=True)

    def test_negative_binomial(self):
        for x, mean, theta, found in self.some("05.1"):
            assert found == pytest.approx(
                float(sum(oracles.negative_binomial(int(x), mean, theta)))
            )

    def test_zero_inflated(self):
        for x, mean, theta, g, found in self.some("05.4", n=3):
            with oracles.mp.workdps(60 if abs(g) < 100 else 2000):  # e^−4000 and 1 − e^−4000
                base = oracles.negative_binomial(int(x), mean, theta)
                truth = float(sum(oracles.zero_inflated(int(x), base, logits=g)))
            assert found == pytest.approx(truth)

    def test_denoised(self):
        """∫ λ Poisson(x; λ) Gamma(λ) dλ, with dropout as a point mass at λ = 0."""
        for x, mean, theta, g, found in self.some("05.5", n=5):

            def weight(u, x=x, mean=mean, theta=theta):
                rate = mean * u
                return u ** (theta - 1) * mpmath.exp(-theta * u - rate) * rate**x

            scale = theta**theta / mpmath.gamma(theta)
            ends = [0, 0.1, 1, 3, 10, 40, mpmath.inf]
            kept = 1 / (1 + mpmath.exp(g)) * scale
            evidence = kept * mpmath.quad(weight, ends) + (1 - 1 / (1 + mpmath.exp(g))) * (x == 0)
            mean_rate = kept * mpmath.quad(lambda u: mean * u * weight(u), ends) / evidence  # noqa: B023
            assert found == pytest.approx(float(mean_rate), rel=1e-5)

    def test_continuous_bernoulli(self):
        for case in find("05.6").cases(7)[:4]:
            value, slope = find("05.6").oracle(**case)
            for x, lam, v, s in zip(
                *(a[:10] for a in (case["x"], case["lam"], value, slope)), strict=True
            ):
                point = (float(x), float(lam))
                assert v == pytest.approx(float(sum(oracles.continuous_bernoulli_of_probs(*point))))
                if lam != 0.5:  # there the definition is 0/0, and so is a difference of it
                    [truth] = oracles.derivatives(
                        oracles.continuous_bernoulli_of_probs, 1, [x], [lam]
                    )
                    assert s == pytest.approx(truth, rel=1e-7, abs=1e-9)
                else:
                    assert s == pytest.approx(4 * x - 2, abs=1e-12)  # C has its minimum there
