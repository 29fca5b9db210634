"""Lesson 14: right answers that learners write, and wrong ones, each with what it is told."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaelab.distributions import NegativeBinomial
from vaelab.teaching.exercises import SEED

from .answers import fail_by_name, pass_all, verdict_on

SEEDS = [SEED, 1]
RIGHT, WRONG = {}, {}

# ------------------------------------------------------------------------- 14.1 the VampPrior


def mixture_in_torch(z, mean, std):
    return Normal(mean, std).log_prob(z[:, None]).sum(-1).logsumexp(1) - np.log(len(mean))


def mixture_by_library(z, mean, std):
    weights = Categorical(torch.ones(len(mean)))
    return MixtureSameFamily(weights, Independent(Normal(mean, std), 1)).log_prob(z)


def mixture_by_hand(z, mean, std):
    square = ((z[:, None] - mean) / std).square().sum(-1)
    log_p = -square / 2 - std.log().sum(1) - z.shape[1] / 2 * np.log(2 * np.pi)
    return torch.logsumexp(log_p - np.log(len(mean)), 1)


def mixture_with_softmax(z, mean, std):
    weights = torch.full((len(mean),), 1 / len(mean), dtype=mean.dtype)
    return (Normal(mean, std).log_prob(z[:, None]).sum(2) + weights.log()).logsumexp(-1)


def mixture_row_by_row(z, mean, std):
    return torch.stack([mixture_in_torch(row[None], mean, std)[0] for row in z])


RIGHT["14.1"] = [
    mixture_in_torch, mixture_by_library, mixture_by_hand, mixture_with_softmax, mixture_row_by_row,
]  # fmt: skip
WRONG["14.1"] = [
    (lambda z, m, s: mixture_in_torch(z, m, s) + np.log(len(m)), "without 1/K"),
    (lambda z, m, s: Normal(m, s).log_prob(z[:, None]).sum(-1).mean(1), "the mean of the logs"),
    (
        lambda z, m, s: (Normal(m, s).log_prob(z[:, None]).logsumexp(1) - np.log(len(m))).sum(-1),
        "a mixture for each dimension",
    ),
    (
        lambda z, m, s: Normal(m, s).log_prob(z[:, None]).sum(-1).amax(1) - np.log(len(m)),
        "the nearest component alone",
    ),
    (lambda z, m, s: mixture_in_torch(z, m, s.sqrt()), "std as a variance"),
]


def test_a_density_that_underflows_is_shown():
    def naive(z, mean, std):
        return Normal(mean, std).log_prob(z[:, None]).sum(-1).exp().mean(1).log()

    verdict = verdict_on("14.1", naive)
    assert not verdict.passed
    assert "inf" in str(verdict)


# ------------------------------------------------------------------------------ 14.2 M2


def m2_in_torch(braces, log_q, log_p, label, alpha):
    seen, index = label >= 0, label.clamp(min=0)[:, None]
    known = (braces + log_p).gather(1, index)[:, 0]
    unknown = (log_q.exp() * (braces + log_p - log_q)).sum(1)
    bound = torch.where(seen, known, unknown)
    cost = torch.where(seen, -log_q.gather(1, index)[:, 0], 0)
    return bound, -bound.mean() + alpha * cost.mean()


def m2_in_arrays(braces, log_q, log_p, label, alpha):
    braces, log_q, log_p, label = (np.asarray(v) for v in (braces, log_q, log_p, label))
    w = np.where(label[:, None] >= 0, label[:, None] == np.arange(len(log_p)), np.exp(log_q))
    bound = (w * (braces + log_p)).sum(1) + np.where(label < 0, -(w * log_q).sum(1), 0)
    cost = np.where(label >= 0, -(w * log_q).sum(1), 0)
    return bound, alpha * cost.mean() - bound.mean()


def m2_by_one_hot(braces, log_q, log_p, label, alpha):
    one = torch.nn.functional.one_hot(label + 1, len(log_p) + 1)[:, 1:].to(braces)
    known = one.any(1, keepdim=True)
    w, log_w = torch.where(known, one, log_q.exp()), torch.where(known, 0, log_q)
    bound = (w * (braces + log_p - log_w)).sum(1)
    return bound, -(bound + alpha * (one * log_q).sum(1)).mean()


def m2_cell_by_cell(braces, log_q, log_p, label, alpha):
    bound, cost = [], 0.0
    for b, q, c in zip(braces, log_q, label, strict=True):
        if c >= 0:
            bound.append(b[c] + log_p[c])
            cost = cost - q[c]
        else:
            bound.append(q.exp() @ (b + log_p) + Categorical(logits=q).entropy())
    bound = torch.stack(bound)
    return bound, -bound.mean() + alpha * cost / len(bound)


def m2_in_single_precision(*case):
    return tuple(v.float() for v in m2_in_torch(*case))


def m2_loss(bound, cost, alpha, seen):
    return -bound.mean() + alpha * cost.mean()


def m2_with(
    entropy=1.0, prior=1.0, prior_known=None, weight="q", known=True, loss=m2_loss, counted=False,
    clamp=True,
):  # fmt: skip
    def answer(braces, log_q, log_p, label, alpha):
        index = (label.clamp(min=0) if clamp else label % len(log_p))[:, None]
        seen = (label >= 0) if clamp else label > -2
        w = log_p.exp().expand_as(log_q) if weight == "p" else log_q.exp()
        entropies = -(log_q.exp() * log_q).sum(1)
        unknown = (w * (braces + prior * log_p)).sum(1) + entropy * entropies
        here = prior if prior_known is None else prior_known
        bound = (braces + here * log_p).gather(1, index)[:, 0]
        bound = torch.where(seen, bound, unknown) if known else unknown
        cost = -log_q.gather(1, index)[:, 0] * seen
        if counted:
            bound = bound - alpha * cost
            return bound, -bound.mean()
        return bound, loss(bound, cost, alpha, seen)

    return answer


def m2_cost_of_all(braces, log_q, log_p, label, alpha):
    bound, _ = m2_in_torch(braces, log_q, log_p, label, alpha)
    return bound, -bound.mean() - alpha * log_q[torch.arange(len(label)), label].mean()


M2_RIGHT = [m2_in_torch, m2_in_arrays, m2_by_one_hot, m2_cell_by_cell, m2_in_single_precision]
M2_WRONG = [
    (m2_with(entropy=0.0), "the entropy forgotten"),
    (m2_with(entropy=-1.0), "the sign of the entropy"),
    (m2_with(prior=0.0), "without p(y)"),
    (m2_with(prior_known=0.0), "without p(y) where y is known"),
    (m2_with(prior=0.0, prior_known=1.0), "without p(y) where y is not known"),
    (m2_with(weight="p"), "weighted by p(y)"),
    (m2_with(known=False), "labels not used"),
    (m2_with(clamp=False), "−1 taken for a type"),
    (m2_with(counted=True), "α in the bound"),
    (
        m2_with(loss=lambda bound, cost, alpha, seen: -bound.mean() - alpha * cost.mean()),
        "the sign of the cross-entropy",
    ),
    (
        m2_with(loss=lambda bound, cost, alpha, seen:
                -bound.mean() + alpha * cost.sum() / seen.sum().clamp(min=1)),
        "a mean over the labelled cells",
    ),
    (
        m2_with(loss=lambda bound, cost, alpha, seen: -bound.mean() + alpha * cost[seen].mean()),
        "a mean over no labelled cell",
    ),
    (
        m2_with(loss=lambda bound, cost, alpha, seen: -bound.sum() + alpha * cost.sum()),
        "sums in the loss",
    ),
    (
        m2_with(loss=lambda bound, cost, alpha, seen: bound.mean() + alpha * cost.mean()),
        "the bound minimised",
    ),
    (m2_cost_of_all, "cross-entropy of cells without a label"),
]  # fmt: skip
RIGHT["14.2"], WRONG["14.2"] = M2_RIGHT, M2_WRONG


# ------------------------------------------------------------------- 14.3 a decoder with a mask


def shares_by_product(z, weight, mask, bias):
    return torch.log_softmax(z @ (weight * mask).T + bias, -1)


def shares_by_linear(z, weight, mask, bias):
    return torch.nn.functional.linear(z, weight * mask.to(weight.dtype), bias).log_softmax(1)


def shares_by_where(z, weight, mask, bias):
    scores = torch.einsum("nk,gk->ng", z, torch.where(mask, weight, 0.0)) + bias
    return scores - scores.logsumexp(1, keepdim=True)


def shares_by_fill(z, weight, mask, bias):
    return (z @ weight.masked_fill(~mask, 0).T + bias).softmax(-1).log()


def shares_in_single_precision(z, weight, mask, bias):
    return shares_by_product(z.float(), weight.float(), mask, bias.float())


def shares_gene_by_gene(z, weight, mask, bias):
    scores = [z[:, m] @ w[m] + b for w, m, b in zip(weight, mask, bias, strict=True)]
    return torch.stack(scores, 1).log_softmax(1)


def masked_z(z, weight, mask, bias):
    return ((z * mask.any(0)) @ weight.T + bias).log_softmax(-1)


def masked_output(z, weight, mask, bias):
    return ((z @ weight.T) * mask.any(1) + bias).log_softmax(-1)


def masked_scores(z, weight, mask, bias):
    return ((z @ weight.T + bias) * mask.any(1)).log_softmax(-1)


def masked_bias(z, weight, mask, bias):
    return (z @ (weight * mask).T + bias * mask.any(1)).log_softmax(-1)


def without_bias(z, weight, mask, bias):
    return (z @ (weight * mask).T).log_softmax(-1)


def clamped_weights(z, weight, mask, bias):
    return shares_by_product(z, weight.clamp(min=0), mask, bias)


def over_cells(z, weight, mask, bias):
    return (z @ (weight * mask).T + bias).log_softmax(0)


def scores_only(z, weight, mask, bias):
    return z @ (weight * mask).T + bias


def masked_in_place(z, weight, mask, bias):
    weight.data *= mask
    return (z @ weight.T + bias).log_softmax(-1)


RIGHT["14.3"] = [
    shares_by_product, shares_by_linear, shares_by_where, shares_by_fill,
    shares_in_single_precision, shares_gene_by_gene,
]  # fmt: skip
WRONG["14.3"] = [
    (masked_z, "no mask"),
    (masked_output, "mask on the output"),
    (masked_scores, "mask on the output and its bias"),
    (masked_bias, "mask on the bias"),
    (without_bias, "bias left out"),
    (clamped_weights, "weights below 0 left out"),
    (over_cells, "softmax over cells"),
    (scores_only, "scores, not shares"),
    (masked_in_place, "masked once"),
]


# ------------------------------------- 14.4 foreground (into tests/exercises/test_lesson_14.py)


def log_nb(y, mean, phi):
    return torch.distributions.NegativeBinomial(
        phi, logits=mean.log() - phi.log(), validate_args=False
    ).log_prob(y)


def foreground_in_torch(y, background, fold, phi, logits):
    high, low = log_nb(y, fold * background, phi), log_nb(y, background, phi)
    return torch.sigmoid(high - low - logits)


def foreground_by_softmax(y, background, fold, phi, logits):
    from torch.nn.functional import logsigmoid

    low = logsigmoid(logits) + NegativeBinomial(background, phi).log_prob(y)
    high = logsigmoid(-logits) + NegativeBinomial(fold * background, phi).log_prob(y)
    return torch.stack([low, high]).softmax(0)[1]


def foreground_by_hand(y, background, fold, phi, logits):
    """What both densities share is left out: Γ and the factorial."""
    y, low, fold, phi, logits = (v.double().numpy() for v in (y, background, fold, phi, logits))
    high = fold * low
    log_odds = y * np.log(fold) + (y + phi) * (np.log(phi + low) - np.log(phi + high)) - logits
    return np.exp(-np.logaddexp(0, -log_odds))


def foreground_by_logaddexp(y, background, fold, phi, logits):
    low, logits, y = background.double().numpy(), logits.double().numpy(), y.double().numpy()
    fold, phi = fold.double().numpy(), phi.double().numpy()
    low, high = (stats.nbinom.logpmf(y, phi, phi / (phi + m)) for m in (low, low * fold))
    low, high = low - np.logaddexp(0, -logits), high - np.logaddexp(0, logits)
    return np.exp(high - np.logaddexp(low, high))


def foreground_as_list(*case):
    return foreground_by_logaddexp(*case).tolist()


def foreground_in_single_precision(*case):
    return foreground_in_torch(*case).float()


def no_prior(y, background, fold, phi, logits):
    return foreground_in_torch(y, background, fold, phi, 0 * logits)


def prior_swapped(y, background, fold, phi, logits):
    return foreground_in_torch(y, background, fold, phi, -logits)


def background_instead(*case):
    return 1 - foreground_in_torch(*case)


def mixture_mean(y, background, fold, phi, logits):
    π = torch.sigmoid(logits)
    return π * background + (1 - π) * fold * background


def prior_alone(y, background, fold, phi, logits):
    return torch.sigmoid(-logits)


def in_probabilities(y, background, fold, phi, logits):
    π = logits.exp() / (1 + logits.exp())
    low, high = log_nb(y, background, phi).exp(), log_nb(y, fold * background, phi).exp()
    return (1 - π) * high / ((1 - π) * high + π * low)


def in_densities(y, background, fold, phi, logits):
    π = torch.sigmoid(logits)
    low, high = log_nb(y, background, phi).exp(), log_nb(y, fold * background, phi).exp()
    return (1 - π) * high / ((1 - π) * high + π * low)


def log_of_sigmoid(y, background, fold, phi, logits):
    π = torch.sigmoid(logits)
    low, high = log_nb(y, background, phi), log_nb(y, fold * background, phi)
    return torch.sigmoid(high + (1 - π).log() - low - π.log())


RIGHT["14.4"] = [
    foreground_in_torch, foreground_by_softmax, foreground_by_hand, foreground_by_logaddexp,
    foreground_as_list, foreground_in_single_precision,
]  # fmt: skip
WRONG["14.4"] = [
    (no_prior, "prior forgotten"),
    (prior_swapped, "π and 1 − π swapped"),
    (background_instead, "the background's posterior"),
    (mixture_mean, "the mean of the mixture"),
    (prior_alone, "the prior alone"),
    (in_probabilities, "underflow or overflow"),
    (in_densities, "densities that underflow"),
    (log_of_sigmoid, "the log of a π that is rounded"),
]


# --------------------------------------------------------------------- 14.5 a model of one's own


def bound_in_torch(log_px, log_py, log_q, log_p_k, seen):
    log_pz = log_p_k.logsumexp(-1) - np.log(log_p_k.shape[-1])
    return (log_px.sum(-1) + log_py.sum(-1) * seen + log_pz - log_q.sum(-1)).mean(0)


def bound_in_numpy(log_px, log_py, log_q, log_p_k, seen):
    log_px, log_py, log_q, log_p_k, seen = (
        np.asarray(v) for v in (log_px, log_py, log_q, log_p_k, seen)
    )
    proteins = np.where(seen, log_py.sum(2), 0).mean(0)
    prior = np.logaddexp.reduce(log_p_k, axis=2).mean(0) - np.log(log_p_k.shape[2])
    return log_px.sum(2).mean(0) + proteins + prior - log_q.sum(2).mean(0)


def bound_by_mask(log_px, log_py, log_q, log_p_k, seen):
    log_py = log_py.masked_fill(~seen[None, :, None], 0)
    both = torch.cat([log_px, log_py, -log_q], -1).sum(-1)
    return (both + log_p_k.log_softmax(-1).neg()[..., 0] + log_p_k[..., 0]
            - np.log(log_p_k.shape[-1])).mean(0)  # fmt: skip


def bound_as_list(*case):
    return bound_in_torch(*case).tolist()


def bound_cell_by_cell(log_px, log_py, log_q, log_p_k, seen):
    found = []
    for i in range(len(seen)):
        each = log_px[:, i].sum(-1) - log_q[:, i].sum(-1)
        each = each + torch.logsumexp(log_p_k[:, i], -1) - np.log(log_p_k.shape[-1])
        found.append((each + log_py[:, i].sum(-1) if seen[i] else each).mean())
    return torch.stack(found)


def bound_of(
    *, log_py=1.0, all_seen=False, log_k=True, sign=-1.0, mean=False, weights=False, prior=None
):
    def bound(log_px, py, log_q, log_p_k, seen):
        log_pz = log_p_k.logsumexp(-1) - (np.log(log_p_k.shape[-1]) if log_k else 0)
        log_pz = prior(log_p_k) if prior else log_pz
        genes = log_px.mean(-1) if mean else log_px.sum(-1)
        proteins = log_py * py.sum(-1) * (1 if all_seen else seen)
        each = genes + proteins + log_pz + sign * log_q.sum(-1)
        return each.logsumexp(0) - np.log(len(each)) if weights else each.mean(0)

    return bound


RIGHT["14.5"] = [
    bound_in_torch, bound_in_numpy, bound_by_mask, bound_as_list, bound_cell_by_cell,
]  # fmt: skip
WRONG["14.5"] = [
    (bound_of(all_seen=True), "proteins that nobody measured"),
    (bound_of(log_py=0.0), "no proteins at all"),
    (bound_of(log_k=False), "the prior without 1/K"),
    (bound_of(sign=1.0), "log q with the wrong sign"),
    (bound_of(weights=True), "the log of the mean weight"),
    (bound_of(mean=True), "a mean over genes"),
    (lambda *case: bound_in_torch(*case) * case[-1], "cells without proteins left out"),
    (bound_of(prior=lambda log_p_k: log_p_k.mean(-1)), "the mean of the pseudo-cells' logs"),
    (bound_of(prior=lambda log_p_k: log_p_k.exp().mean(-1).log()), "a prior that underflows"),
    (bound_of(sign=0.0), "without log q"),
    (lambda *case: bound_in_torch(*case) * len(case[0]), "a sum over draws"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    pass_all(name, RIGHT[name], SEEDS)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_told_what_is_wrong(name):
    fail_by_name(name, WRONG[name], SEEDS)
