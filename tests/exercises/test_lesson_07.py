"""Lesson 07: right answers that learners write, and wrong ones, each with what it is told."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from vaelab.teaching.exercises import SEED, find

from .answers import verdict_on

Categorical = torch.distributions.Categorical


def as_arrays(answer):
    """The same answer written in numpy."""
    return lambda *inputs: answer(
        *(v.numpy() if isinstance(v, torch.Tensor) else v for v in inputs)
    )


# ------------------------------------------------------------------------------ right answers


def bound_by_loop(logits, log_p_x, log_prior):
    total, log_q = 0, logits - logits.logsumexp(-1, keepdim=True)
    for k in range(logits.shape[-1]):
        total = total + log_q[:, k].exp() * (log_p_x[:, k] + log_prior[k] - log_q[:, k])
    return total


def bound_by_evidence(logits, log_p_x, log_prior):
    joint = log_p_x + log_prior
    posterior = Categorical(logits=joint)
    return joint.logsumexp(-1) - torch.distributions.kl_divergence(
        Categorical(logits=logits), posterior
    )


def bound_in_arrays(logits, log_p_x, log_prior):
    log_q = special.log_softmax(logits, axis=-1)
    return np.einsum("nk,nk->n", np.exp(log_q), log_p_x + log_prior - log_q)


def kl_by_xlogy(logits):
    q = logits.softmax(-1)
    return torch.xlogy(q, q * logits.shape[-1]).sum(-1)


def kl_less(log_p):
    """The KL with this logarithm of 1/K."""

    def answer(logits):
        log_q = logits.log_softmax(-1)
        return (log_q.exp() * (log_q - log_p(logits.shape[1]))).sum(-1)

    return answer


def rloo_by_two_sums(logits, drawn, f):
    terms, q = [], logits.softmax(0)
    for s, y in enumerate(drawn):
        others = [f[r] for r in range(len(f)) if r != s]
        one_hot = torch.nn.functional.one_hot(y, len(logits))
        terms.append((f[s] - sum(others) / len(others)) * (one_hot - q))
    return torch.stack(terms)


def rloo_by_backward(logits, drawn, f):
    rows = []
    for y, value in zip(drawn, f - (f.sum() - f) / (len(f) - 1), strict=True):
        at = logits.clone().requires_grad_()
        (value * at.log_softmax(0)[y]).backward()
        rows.append(at.grad)
    return torch.stack(rows)


def rloo_in_arrays(logits, drawn, f):
    score = np.eye(len(logits))[drawn] - special.softmax(logits)
    return ((f - f.mean()) * len(f) / (len(f) - 1))[:, None] * score


def st_with_where(logits, e, temperature):
    y = torch.softmax((logits - torch.log(e)) / temperature, dim=-1)
    hard = torch.where(y == y.amax(-1, keepdim=True), 1.0, 0.0)
    return hard - y.detach() + y


def st_with_scatter(logits, e, temperature):
    y = torch.softmax((logits + -e.log()) / temperature, -1)
    hard = torch.zeros_like(y).scatter_(-1, y.argmax(-1, keepdim=True), 1)
    return (hard - y).detach() + y


def st_by_race(logits, e, temperature):
    winner = (e.log() - logits.detach()).argmin(-1)
    y = ((logits - e.log()) / temperature).softmax(-1)
    return torch.nn.functional.one_hot(winner, logits.shape[-1]) + y - y.detach()


RIGHT = {
    "07.1": [
        bound_by_loop,
        bound_by_evidence,
        as_arrays(bound_in_arrays),
        lambda *inputs: (bound_by_loop(*inputs)).float(),
        lambda a, b, c: (a.log_softmax(1).exp() * (b + c)).sum(1) + Categorical(logits=a).entropy(),
    ],
    "07.2": [
        lambda logits, u: (-torch.log(u) / logits.exp()).argmin(1),
        lambda logits, u: torch.max(logits - torch.log(-torch.log(u)), dim=-1).indices,
        lambda logits, u: (
            logits.softmax(0).log() + torch.from_numpy(stats.gumbel_r.ppf(u.numpy()))
        ).argmax(-1),
        as_arrays(lambda logits, u: np.argmax(logits - np.log(-np.log(u)), axis=1)),
        lambda logits, u: [int((logits - (-row.log()).log()).argmax()) for row in u],
        lambda logits, u: (logits - (-u.log()).log()).float().argmax(-1),
        lambda logits, u: (logits.float() - (-u.log()).float().log()).argmax(-1),
    ],
    "07.3": [
        lambda d, t: integrate.quad(
            lambda s: special.expit((d + s) / t) * special.expit(s) * special.expit(-s), -40, 40
        )[0],
        lambda d, t: np.mean(
            special.expit((d + special.logit((np.arange(1e5) + 0.5) / 1e5)) / t)
        ),
        lambda d, t: torch.trapezoid(
            ((d + (s := torch.linspace(-40, 40, 40_001))) / t).sigmoid()
            * s.sigmoid() * (1 - s.sigmoid()), s,
        ),
        lambda d, t: float(stats.logistic.expect(lambda s: special.expit((d + s) / t))),
        lambda d, t: 1 - integrate.quad(
            lambda s: special.expit(-(d + s) / t) * stats.logistic.pdf(s), -np.inf, np.inf
        )[0],
    ],
    "07.4": [
        rloo_by_two_sums,
        rloo_by_backward,
        as_arrays(rloo_in_arrays),
        lambda logits, drawn, f: rloo_by_two_sums(logits, drawn, f).float().double(),
        lambda logits, drawn, f: torch.outer(f - (f.sum() - f) / (len(f) - 1), torch.ones(
            len(logits), dtype=f.dtype
        )) * (torch.eye(len(logits))[drawn] - torch.exp(logits - logits.logsumexp(0))),
        lambda *inputs: list(rloo_by_two_sums(*inputs)),
        lambda *inputs: tuple(rloo_by_two_sums(*inputs)),
    ],
    "07.5": [
        st_with_where,
        st_with_scatter,
        st_by_race,
        lambda a, e, t: st_with_scatter(a.log_softmax(-1), e, t),
        lambda a, e, t: torch.stack([st_with_where(*row, t) for row in zip(a, e, strict=True)]),
    ],
    "07.6": [
        kl_by_xlogy,
        lambda logits: torch.distributions.kl_divergence(
            Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits))
        ),
        as_arrays(lambda logits: np.log(logits.shape[1]) - stats.entropy(
            special.softmax(logits, -1), axis=-1
        )),
        lambda logits: torch.nn.functional.kl_div(
            torch.full_like(logits, 1 / logits.shape[-1]).log(), logits.softmax(-1),
            reduction="none",
        ).sum(-1),
        lambda logits: kl_by_xlogy(logits).tolist(),
        # the constant in float32
        kl_less(lambda k: torch.log(torch.tensor(1 / k))),
        kl_less(lambda k: -torch.log(torch.tensor(float(k)))),
        kl_less(lambda k: -torch.tensor(k).log()),
        kl_less(lambda k: torch.full((k,), 1 / k).log()),
        kl_less(lambda k: (torch.ones(k) / k).log()),
        kl_less(lambda k: torch.zeros(k).log_softmax(0)),
        kl_less(lambda k: -np.float32(np.log(k))),
        lambda logits: torch.distributions.kl_divergence(
            Categorical(logits=logits), Categorical(probs=torch.ones(logits.shape[1]))
        ),
    ],
}  # fmt: skip

# ------------------------------------------------------------------------------ wrong answers


def bound_of_a_draw(logits, log_p_x, log_prior):
    q = Categorical(logits=logits)
    y = q.sample()
    return log_p_x.gather(1, y[:, None])[:, 0] + log_prior[y] - q.log_prob(y)


def bound_with_softmax(logits, log_p_x, log_prior):
    q = logits.softmax(-1)
    return (q * (log_p_x + log_prior - q.log())).sum(-1)


def bound_as_printed(logits, log_p_x, log_prior):
    log_q = logits.log_softmax(-1)
    q = log_q.exp()
    return (q * (log_p_x - q * (log_q - log_prior))).sum(-1)


def race(inner=0.0, outer=0.0, low=0.0, high=1.0, of=lambda logits: logits):
    """Gumbel-max with epsilons, with u clamped, or with something else done to the logits."""

    def answer(logits, u):
        wait = -(u.clamp(low, high) + inner).log()
        return (of(logits) - (wait + outer).log()).argmax(-1)

    return answer


def rloo_with(score):
    def terms(logits, drawn, f):
        others = (f.sum() - f) / (len(f) - 1)
        return (f - others)[:, None] * score(torch.eye(len(logits))[drawn], logits)

    return terms


def reinforce(logits, drawn, f):
    return f[:, None] * (torch.eye(len(logits))[drawn] - logits.softmax(0))


def st_without_detach(logits, e, temperature):
    y = ((logits - e.log()) / temperature).softmax(-1)
    return torch.eye(y.shape[-1], dtype=y.dtype)[y.argmax(-1)]


def st_by_product(logits, e, temperature):
    y = ((logits - e.log()) / temperature).softmax(-1)
    return st_with_where(logits, e, temperature).detach() * y / y.detach()


def mean_on_a_wide_grid(difference, temperature):
    s = np.linspace(-1000, 1000, 200_001)
    with np.errstate(all="ignore"):
        density = np.exp(-s) / (1 + np.exp(-s)) ** 2
    return (special.expit((difference + s) / temperature) * density).sum() * (s[1] - s[0])


def st_warm(logits, e, temperature):
    return st_with_scatter(logits, e, 1.0)


WRONG = {
    "07.1": [
        (bound_with_softmax, "the logarithm of a softmax"),
        (bound_as_printed, "the KL weighted twice"),
        (bound_of_a_draw, None),
        (lambda a, b, c: bound_by_loop(a, b, 0 * c), None),
        (lambda a, b, c: bound_by_loop(a, b, c).mean(), None),
        (lambda a, b, c: (a.softmax(-1) * b).sum(-1), "no KL"),
    ],
    "07.2": [
        (lambda logits, u: (logits.softmax(0) - (-u.log()).log()).argmax(-1),
         "noise on probabilities"),
        (race(inner=1e-20, outer=1e-20), "u kept away from 0"),
        (race(inner=1e-10), "u raised above 1"),
        (race(inner=1e-5), "u raised above 1"),
        (race(inner=1e-30), "u kept away from 0"),
        (race(low=1e-10), "u kept away from 0"),
        (race(outer=1e-3), "u kept away from 1"),
        (race(outer=1e-5), "u kept away from 1"),
        (race(outer=1e-10), "u kept away from 1"),
        (race(outer=1e-15), "u kept away from 1"),
        (race(high=1 - 1e-3), "u kept away from 1"),
        (race(inner=1e-5, outer=1e-5), "u kept away from 0 and 1"),
        (race(low=1e-6, high=1 - 1e-6), "u kept away from 0 and 1"),
        (race(of=lambda logits: (logits.softmax(-1) + 1e-4).log()), "something added to q"),
        (race(of=lambda logits: (logits.softmax(-1) + 1e-8).log()), "something added to q"),
        (race(of=lambda logits: 1.03 * logits), None),
        (race(of=lambda logits: 0.99 * logits), None),
        (race(of=lambda logits: logits.half()), None),
        (lambda logits, u: race()(logits.half(), u.half()), None),
        (lambda logits, u: (logits - (-u.log()).log()).argmin(-1), "the last of the race"),
        (lambda logits, u: race()(logits, u) + 1, None),
        (lambda logits, u: race()(logits, 1 - u), "1 − u for u"),
        (lambda logits, u: (logits + (-u.log()).log()).argmax(-1), "the noise upside down"),
        (lambda logits, u: (logits - (-u.log()).log()).max(-1).values, None),
        (lambda logits, u: (logits - (-u.log()).log()).argmax(0), None),
        (lambda logits, u: Categorical(logits=logits).sample((len(u),)), None),
    ],
    "07.3": [
        (lambda d, t: special.expit(d / t), "no noise"),
        (lambda d, t: special.expit(d), "the probability"),
        (lambda d, t: np.mean(special.expit((d + stats.norm.ppf(
            (np.arange(20_000) + 0.5) / 20_000)) / t)), "normal noise"),
        (lambda d, t: integrate.quad(lambda s: special.expit((d + s) / t), -30, 30)[0], None),
        (lambda d, t: special.expit((d + stats.logistic.ppf(np.random.default_rng(0).random(
            100))) / t).mean(), None),
        (lambda d, t: integrate.quad(lambda s: special.expit((d + s) / t) * stats.logistic.pdf(s),
            -30, 30), "the integral and its error"),
        (mean_on_a_wide_grid, "the density overflows"),
    ],
    "07.4": [
        (rloo_with(lambda one_hot, logits: one_hot), "no −q in the gradient of log q"),
        (rloo_with(lambda one_hot, logits: one_hot - logits), "logits in place of q"),
        (rloo_with(lambda one_hot, logits: one_hot / logits.softmax(0)),
         "the gradient with respect to q"),
        (rloo_with(lambda one_hot, logits: one_hot * (1 - logits.softmax(0))), None),
        (reinforce, "no baseline"),
        (lambda *inputs: -rloo_by_backward(*inputs), "the sign turned"),
        (lambda a, y, f: reinforce(a, y, f - f.mean()), "a draw in its own baseline"),
        (lambda a, y, f: rloo_by_backward(a, y, f).mean(0), "the mean over draws"),
    ],
    "07.5": [
        (st_without_detach, "the gradient is lost"),
        (st_warm, "the temperature forgotten"),
        (lambda a, e, t: ((a - e.log()) / t).softmax(-1), "soft forward"),
        (lambda a, e, t: st_with_scatter(a, e, t) + a - a.detach(), None),
        (lambda a, e, t: st_with_scatter(a, e, t).detach(), "the gradient is lost"),
        (lambda a, e, t: st_with_scatter(a, e, t).detach().numpy(), "the gradient is lost"),
        (lambda a, e, t: torch.nn.functional.gumbel_softmax(a, t, hard=True), None),
        (lambda a, e, t: 2 * st_with_where(a, e, t).detach() - st_with_where(a, e, t),
         "the gradient with a minus"),
        (st_by_product, "the winner's entry alone"),
    ],
    "07.6": [
        (lambda a: (a.softmax(-1) * a.log_softmax(-1)).sum(-1) - np.log(0.1),
         "ten classes, always"),
        (lambda a: (a.softmax(-1) * (a.softmax(-1) + 1e-8).log()).sum(-1) + math.log(a.shape[1]),
         None),
        (lambda a: (a.softmax(-1) * a.softmax(-1).log()).sum(-1) + math.log(a.shape[1]),
         "the logarithm of a softmax"),
        (lambda a: (a.softmax(-1) * (a.softmax(-1) * a.shape[1]).log()).sum(-1),
         "the logarithm of a softmax"),
        (lambda a: -kl_by_xlogy(a), "minus the KL"),
        (lambda a: torch.nn.functional.kl_div(
            a.log_softmax(-1), torch.full_like(a, 1 / a.shape[1]), reduction="none").sum(-1),
         "the KL from the prior to q"),
        (lambda a: kl_by_xlogy(a) / math.log(2), "bits"),
        (lambda a: kl_by_xlogy(a) + 1e-5, None),
        (lambda a: Categorical(logits=a).entropy(), "the entropy"),
        (lambda a: kl_by_xlogy(a).mean(), None),
        (lambda a: kl_by_xlogy(a).abs() / 2, None),
    ],
}  # fmt: skip


def numbered(variants):
    return [
        pytest.param(name, number, id=f"{name}-{number}")
        for name, answers in variants.items()
        for number in range(len(answers))
    ]


@pytest.mark.parametrize("name, number", numbered(RIGHT))
@pytest.mark.parametrize("seed", [SEED, 1])
def test_a_right_answer_passes(name, number, seed):
    verdict = verdict_on(name, RIGHT[name][number], seed)
    assert verdict.passed, verdict


@pytest.mark.parametrize("name, number", numbered(WRONG))
@pytest.mark.parametrize("seed", [SEED, 1])
def test_a_wrong_answer_fails_and_is_named_if_known(name, number, seed):
    answer, known = WRONG[name][number]
    verdict = verdict_on(name, answer, seed)
    assert not verdict.passed and verdict.misconception == known, verdict


def test_in_the_mean_of_rloo_nothing_shows_whether_q_was_subtracted():
    """Why 07.4 asks for the terms: the mean of a wrong answer is right."""
    for case in find("07.4").cases(SEED):
        inputs = [torch.from_numpy(v) for v in case.values()]
        wrong = rloo_with(lambda one_hot, logits: one_hot)(*inputs)
        torch.testing.assert_close(wrong.mean(0), rloo_by_backward(*inputs).mean(0))
        assert not torch.allclose(wrong, rloo_by_backward(*inputs))


def test_an_undecided_cell_is_told_zero_and_never_a_rounded_negative():
    exercise = find("07.6")
    assert exercise.oracle(**exercise.cases(SEED)[0]).min() == 0


def test_a_difference_in_a_term_is_shown_with_all_draws_and_without_a_warning():
    answer = rloo_with(lambda one_hot, logits: one_hot * (1 - logits.softmax(0)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        message = verdict_on("07.4", answer).message
    assert "drawn = [0, 1, 1]" in message and "f = [1, 2, 4]" in message
    assert not seen, seen


def test_rows_in_a_list_have_their_gradient_and_are_asked_to_be_one_tensor():
    verdict = verdict_on("07.5", lambda *inputs: list(st_with_where(*inputs)))
    assert not verdict.passed and verdict.misconception is None
    assert "a list, and this exercise needs a torch tensor" in verdict.message


def test_the_undecided_cell_is_shown_with_its_logits():
    message = verdict_on("07.6", lambda logits: kl_by_xlogy(logits) - 1).message
    assert "logits = [0, 0, 0" in message, message
