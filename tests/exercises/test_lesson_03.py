"""Lesson 03: answers that were once accepted or rejected wrongly, and what the check says now."""

import pytest
import torch
from torch.distributions import Normal

from vaelab.teaching.exercises import find
from vaelab.teaching.exercises.core import plain

from ..test_exercises import checked, namespace, solution_of

path, rloo, score = (solution_of(f"03.{i}") for i in (2, 4, 3))
aevb = namespace("03")["aevb_bound"]


def of_weights(answer):
    return lambda weights, n, *rest: answer(
        weights[:n], weights[2 * n : -1], weights[-1], weights[n : 2 * n].T, *rest
    )


def sampled(f, mean, std, n_samples):
    mean, std = mean.clone().requires_grad_(), std.clone().requires_grad_()
    z = Normal(mean, std).sample((n_samples,))
    return torch.autograd.grad(f(z).mean(0).sum(), (mean, std))


def cells_first(f, mean, std, n_samples):
    z = mean[:, None] + std[:, None] * torch.randn(len(mean), n_samples, mean.shape[1])
    return (f(z)[..., None] * (z - mean[:, None]) / std[:, None] ** 2).mean(1)


def without(kl):
    """The bound with something else in place of its KL, or with other parts of the encoder."""

    def answer(encoder, W1, b1, W2, x, noise, sigma):
        m, v = (x @ encoder).chunk(2, -1)
        log_p = Normal(torch.tanh((m + torch.exp(v / 2) * noise) @ W1 + b1) @ W2, sigma).log_prob(x)
        return (log_p.sum(-1) - kl(m, v)).mean()

    return of_weights(answer)


def halves_swapped(encoder, *rest):
    return aevb(encoder.roll(encoder.shape[1] // 2, 1), *rest)


def decoder_detached(encoder, W1, b1, W2, *rest):
    return aevb(encoder, W1.detach(), b1.detach(), W2.detach(), *rest)


WRONG = {
    "0.98 times": ("03.2", lambda *a: tuple(0.98 * g for g in path(*a)), "should be"),
    "1.02 times": ("03.2", lambda *a: tuple(1.02 * g for g in path(*a)), "should be"),
    "std only": ("03.2", lambda *a: (path(*a)[0], 1.03 * path(*a)[1]), "should be"),
    "swapped": ("03.2", lambda *a: path(*a)[::-1], ""),
    "one": ("03.2", lambda *a: path(*a)[0], "two gradients, in mean and in std; got 1"),
    "sample": ("03.2", sampled, "No gradient goes from the values of f"),
    "numpy": ("03.3", lambda *a: [g.numpy() for g in score(*a)], "a torch tensor"),
    "order": ("03.3", lambda *a: score(*a)[::-1], "in the other order"),
    "log s": ("03.3", lambda f, z, m, s: (score(f, z, m, s)[0], s * score(f, z, m, s)[1]), "log s"),
    "own baseline": ("03.3", lambda f, *a: score(f - f.mean(), *a), "subtract the mean"),
    "0.97 times": ("03.4", lambda *a: 0.97 * rloo(*a), "should be"),
    "1.03 times": ("03.4", lambda *a: 1.03 * rloo(*a), "should be"),
    "2n draws": ("03.4", lambda f, m, s, n: rloo(f, m, s, 2 * n), "8 points for each cell"),
    "cells first": ("03.4", cells_first, "f takes z of shape (n_draws, n_cells, n_latent)"),
    "decoder": ("03.5", of_weights(decoder_detached), "no gradient reaches the decoder"),
    "no KL": ("03.5", without(lambda m, v: 0.0), "has a second term"),
    "halves": ("03.5", of_weights(halves_swapped), "which is which"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_answers_are_told_why(mistake):
    name, answer, said = WRONG[mistake]
    verdict = checked(find(name), answer)
    assert not verdict.passed
    assert said in plain(verdict.message)
    assert "?." not in verdict.message


def test_values_of_one_draw_may_be_asked_for_twice():
    def twice(f, mean, std, n_samples):
        z = Normal(mean, std).sample((n_samples,))
        values = torch.stack([f(part) for part in z])
        return ((values - f(z).mean(0))[..., None] * (z - mean) / std**2).sum(0) / (n_samples - 1)

    verdict = checked(find("03.4"), twice)
    assert verdict.passed, verdict
