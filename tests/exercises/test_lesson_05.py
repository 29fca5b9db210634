"""Answers to lesson 05 as learners write them: right ones pass, wrong ones are named."""

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.nn.functional import logsigmoid, softplus

from vaelab.distributions import NegativeBinomial, ZeroInflated
from vaelab.teaching.exercises import SEED

from .answers import fail_by_name, pass_all

SEEDS = [SEED, 1, 2]


def nb_of_p(x, mean, theta, one_minus_p=None, epsilon=0.0):
    """The formula of the lesson, with p by division."""
    p = theta / (theta + mean)
    q = 1 - p if one_minus_p is None else one_minus_p
    ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return ways + theta * (p + epsilon).log() + x * (q + epsilon).log()


def nb_in_python(x, mean, theta):
    from math import lgamma, log, log1p

    def one(k, m, t):
        ways = lgamma(k + t) - lgamma(t) - lgamma(k + 1)
        return ways - t * log1p(m / t) + k * (log(m) - log(t + m))

    return [one(*row) for row in zip(x.tolist(), mean.tolist(), theta.tolist(), strict=True)]


def p0(depth, mean, theta):
    return (1 + depth[:, None] * mean / theta) ** -theta


def zinb(x, mean, theta, g, base=None):
    base = NegativeBinomial(mean, theta).log_prob(x) if base is None else base
    kept = logsigmoid(-g) + base
    return torch.where(x == 0, torch.logaddexp(logsigmoid(g), kept), kept)


def zinb_of_softplus(x, mean, theta, g):
    """As scVI has it."""
    base = NegativeBinomial(mean, theta).log_prob(x)
    zero = softplus(base - g) - softplus(-g)
    return torch.where(x == 0, zero, -g - softplus(-g) + base)


def zinb_by_masks(x, mean, theta, g):
    result = logsigmoid(-g) + NegativeBinomial(mean, theta).log_prob(x)
    result[x == 0] = torch.logaddexp(logsigmoid(g), result)[x == 0]
    return result


def zinb_in_numpy(x, mean, theta, g):
    x, mean, theta, g = (v.double().numpy() for v in (x, mean, theta, g))
    kept = special.log_expit(-g) + stats.nbinom.logpmf(x, theta, theta / (theta + mean))
    return np.where(x == 0, np.logaddexp(special.log_expit(g), kept), kept)


def zinb_of_probabilities(x, mean, theta, g, epsilon=0.0):
    pi, base = torch.sigmoid(g), NegativeBinomial(mean, theta).log_prob(x).exp()
    return torch.log(torch.where(x == 0, pi + (1 - pi) * base, (1 - pi) * base) + epsilon)


def zinb_of_rounded_sigmoid(x, mean, theta, g):
    pi = torch.sigmoid(g)
    kept = (1 - pi).log() + NegativeBinomial(mean, theta).log_prob(x)
    return torch.where(x == 0, torch.logaddexp(pi.log(), kept), kept)


def posterior(x, mean, theta, g):
    """E[λ|x], by probabilities."""
    pi, zero = torch.sigmoid(g), (theta / (theta + mean)) ** theta
    kept = torch.where(x > 0, 1.0, (1 - pi) * zero / (pi + (1 - pi) * zero))
    return kept * mean * (x + theta) / (mean + theta)


def posterior_of_zinb(x, mean, theta, g):
    dropped = (
        torch.sigmoid(g) / ZeroInflated(NegativeBinomial(mean, theta), g).log_prob_zero().exp()
    )
    return torch.where(x == 0, 1 - dropped, 1.0) * (x + theta) / (1 + theta / mean)


def posterior_entry_by_entry(x, mean, theta, g):
    rows = zip(*(v.double().tolist() for v in (x, mean, theta, g)), strict=True)
    return [posterior(*torch.tensor(row, dtype=torch.float64)).item() for row in rows]


def robbins(x, mean, theta, g):
    here = ZeroInflated(NegativeBinomial(mean.double(), theta.double()), g.double())
    return (x + 1) * (here.log_prob(x.double() + 1) - here.log_prob(x.double())).exp()


def cb(x, lam, constant):
    return constant + x * lam.log() + (1 - x) * (1 - lam).log()


def cb_of_two_wheres(x, lam, limit=0.01, terms=3):
    u = 1 - 2 * lam
    near = torch.abs(u) < limit
    safe = torch.where(near, torch.full_like(u, 0.3), u)
    powers = [u**2 / 3, 13 * u**4 / 90, 251 * u**6 / 2835][:terms]
    closed = torch.log(torch.log((1 + safe) / (1 - safe)) / safe)
    return cb(x, lam, torch.where(near, np.log(2) + sum(powers), closed))


def cb_by_index(x, lam):
    u = 1 - 2 * lam
    far = u.abs() > 0.015
    constant = np.log(2) + u**2 / 3 + 13 * u**4 / 90
    return cb(x, lam, constant.masked_scatter(far, torch.log(2 * torch.atanh(u[far]) / u[far])))


def cb_of_squares(x, lam):
    """Everything in u², so that only 0 itself needs care."""
    v = (1 - 2 * lam) ** 2
    near = v < 4e-4
    root = torch.where(near, 0.25, v).sqrt()
    return cb(x, lam, torch.where(near, 2 * (1 + v / 3 + v**2 / 5), 2 * root.atanh() / root).log())


def cb_entry_by_entry(x, lam):
    return torch.stack([cb_of_two_wheres(*pair) for pair in zip(x, lam, strict=True)])


def cb_of_logits(x, lam):
    from vaelab.distributions import ContinuousBernoulli

    return ContinuousBernoulli(torch.logit(lam)).log_prob(x)


def closed(lam):
    u = 1 - 2 * lam
    return torch.log(2 * torch.atanh(u) / u)


RIGHT = {
    "05.1": [
        nb_in_python,
        lambda x, m, t: nb_of_p(x, m, t, m / (t + m)),
        lambda x, m, t: NegativeBinomial(m, t).log_prob(x).numpy(),
        lambda x, m, t: torch.distributions.NegativeBinomial(t, logits=(m / t).log()).log_prob(x),
        lambda x, m, t: stats.nbinom.logpmf(
            x.numpy(), t.numpy(), t.double() / (t.double() + m.double())
        ),
        lambda x, m, t: (
            torch.lgamma(x + t) - torch.lgamma(t) - torch.lgamma(x + 1)
            + t * t.log() + x * m.log() - (x + t) * (t + m).log()
        ),
    ],
    "05.2": [
        lambda r, p: (r * (1 - p) / p, r, 1 - p),
        lambda r, p: [r / p - r, r, 1 - p],
        lambda r, p: torch.stack([r * (1 - p) / p, r, 1 - p]),
        lambda r, p: np.stack([(r * (1 - p) / p).numpy(), r.numpy(), (1 - p).numpy()]),
        lambda r, p: (m := r * (1 - p) / p, r, m / (m + r)),
        lambda r, p: tuple(v.tolist() for v in (r * (1 / p - 1), r, 1 - p)),
    ],
    "05.3": [
        lambda d, m, t: p0(d, m, t).mean(),
        lambda d, m, t: p0(d, m, t).mean().item(),
        lambda d, m, t: p0(m, d, t).numpy().mean(),
        lambda d, m, t: torch.exp(-t * torch.log1p(torch.outer(d, m) / t)).sum() / len(d) / len(m),
        lambda d, m, t: torch.stack([((t / (t + k * m)) ** t).mean() for k in d]).mean(),
        lambda d, m, t: stats.nbinom.cdf(0, t, t / (t + np.outer(d, m))).mean(),
    ],
    "05.4": [zinb, zinb_of_softplus, zinb_by_masks, zinb_in_numpy,
             lambda x, m, t, g: ZeroInflated(NegativeBinomial(m, t), g).log_prob(x),
             lambda x, m, t, g: zinb(x, m, t, g, base=nb_of_p(x, m, t, m / (t + m)))],
    "05.5": [posterior, posterior_of_zinb, posterior_entry_by_entry, robbins,
             lambda *case: posterior(*case).numpy()],
    "05.6": [cb_of_two_wheres, cb_by_index, cb_of_squares, cb_entry_by_entry, cb_of_logits,
             lambda x, lam: cb_of_two_wheres(x, lam, limit=0.02, terms=2)],
}  # fmt: skip

OTHER = None  # no mistake that has a name: the message shows numbers
WRONG = {
    "05.1": [
        (lambda x, m, t: nb_of_p(x, m, t, m / (t + m), 1e-8), OTHER),
        (lambda x, m, t: nb_of_p(x, m, t, m / (t + m) + 1e-8), "epsilon in the logarithm"),
        (lambda x, m, t: nb_of_p(x, m, t, (m + 1e-8) / (t + m)), "epsilon added to the mean"),
        (lambda x, m, t: nb_of_p(x, m, 1 / t), "dispersion for inverse dispersion"),
        (lambda x, m, t: nb_of_p(x, m, t).exp(), "probability for its log"),
        (lambda x, m, t: torch.distributions.NegativeBinomial(t, t / (t + m)).log_prob(x),
         "p for 1 − p"),
        (lambda x, m, t: nb_of_p(x, m, t) + torch.lgamma(x + 1), "no factorial"),
        (nb_of_p, "1 − p that rounds to 0"),
        (lambda x, m, t: torch.distributions.NegativeBinomial(t, m / (t + m)).log_prob(x),
         "clamped probs"),
        (lambda x, m, t: -nb_of_p(x, m, t), "negated"),
        (lambda x, m, t: nb_of_p(x, m, t) / np.log(2), "bits for nats"),
        (lambda x, m, t: nb_of_p(x, m, t).sum(), OTHER),
        (lambda x, m, t: torch.distributions.Poisson(m).log_prob(x), OTHER),
    ],
    "05.2": [
        (lambda r, p: (r * p / (1 - p), r, p), "torch's p"),
        (lambda r, p: (r * (1 - p) / p, r, p), "probs passed on"),
        (lambda r, p: (r * (1 - p) / p, 1 / r, 1 - p), "dispersion for inverse dispersion"),
        (lambda r, p: (r / p, r, 1 - p), "trials for failures"),
        (lambda r, p: (r, r * (1 - p) / p, 1 - p), "order of the results"),
        (lambda r, p: (r * p / (1 - p), r, 1 - p), "mean of the other outcome"),
        (lambda r, p: (r * (1 - p) / p, r), OTHER),
    ],
    "05.3": [
        (lambda d, m, t: p0(d, m, 1 / t).mean(), "dispersion for inverse dispersion"),
        (lambda d, m, t: p0(torch.ones_like(d), m, t).mean(), "the average cell"),
        (lambda d, m, t: p0(d, m.mean()[None], t).mean(), "the average gene"),
        (lambda d, m, t: p0(d, m, t).mean(0), "a share for each gene"),
        (lambda d, m, t: p0(d, m, t).mean(1), "a share for each cell"),
        (p0, "a table"),
        (lambda d, m, t: (-torch.outer(d, m)).exp().mean(), "Poisson's zeros"),
        (lambda d, m, t: p0(d, m[m > 0], t).mean(), "genes left out"),
        (lambda d, m, t: nb_of_p(0 * torch.outer(d, m), torch.outer(d, m), torch.tensor(t)).mean(),
         "0 times −∞"),
        (lambda d, m, t: p0(d, m, t).log().mean(), OTHER),
    ],
    "05.4": [
        (zinb_of_probabilities, "probabilities that underflow"),
        (lambda *c: zinb_of_probabilities(*c, epsilon=1e-8), "epsilon in the logarithm"),
        (lambda x, m, t, g: torch.where(
            x == 0, torch.log(zinb(x, m, t, g).exp() + 1e-8), zinb(x, m, t, g)),
         "epsilon in the logarithm of zeros"),
        (lambda *c: zinb_of_probabilities(*c, epsilon=1e-10), OTHER),
        (lambda x, m, t, g: zinb(x, m, t, -g), "sign of the logits"),
        (lambda x, m, t, g: torch.where(
            x == 0, zinb(x, m, t, g), NegativeBinomial(m, t).log_prob(x)),
         "positive counts not scaled"),
        (lambda x, m, t, g: torch.logaddexp(
            logsigmoid(g), logsigmoid(-g) + NegativeBinomial(m, t).log_prob(x)),
         "positive counts inflated"),
        (lambda x, m, t, g: torch.where(
            x == 0, torch.logaddexp(logsigmoid(g), NegativeBinomial(m, t).log_prob(x)),
            zinb(x, m, t, g)), "zeros not scaled"),
        (lambda x, m, t, g: torch.where(x == 0, logsigmoid(g), 0.0)
         + logsigmoid(-g) + NegativeBinomial(m, t).log_prob(x), "logs added at zero"),
        (zinb_of_rounded_sigmoid, "a sigmoid that underflows"),
        (lambda x, m, t, g: zinb(x, m, t, torch.sigmoid(g)), OTHER),
    ],
    "05.5": [
        (lambda x, m, t, g: torch.sigmoid(-g) * (x + t) / (m + t), "as published"),
        (lambda x, m, t, g: posterior(x, m, t, g) / m, "E[u|x] for E[λ|x]"),
        (lambda x, m, t, g: torch.sigmoid(-g) * m * (x + t) / (m + t), "positive counts dropped"),
        (lambda x, m, t, g: torch.where(x > 0, 1, torch.sigmoid(-g)) * m * (x + t) / (m + t),
         "prior for posterior"),
        (lambda x, m, t, g: posterior(x, m, t, -g), "sign of the logits"),
        (lambda x, m, t, g: m * (x + t) / (m + t), "no dropout"),
        (lambda x, m, t, g: torch.where(x > 0, posterior(x, m, t, g), 0.0), "0 at zero"),
        (lambda x, m, t, g: torch.where(
            x > 0, 0.0, m * t / (m + t)) + posterior(x, m, t, g) * (1 - 2.0 * (x == 0)),
         "dropped for kept"),
    ],
    "05.6": [
        (lambda x, lam: cb(x, lam, 0.0), "binary cross-entropy"),
        (lambda x, lam: cb(x, lam, closed(lam)), "0/0 at ½"),
        (lambda x, lam: cb(x, lam, torch.where(
            (lam - 0.5).abs() < 0.01, np.log(2) + (1 - 2 * lam) ** 2 / 3
            + 13 * (1 - 2 * lam) ** 4 / 90, closed(lam))), "NaN gradient through where"),
        (lambda x, lam: 2 * cb(x, lam, 0.0) - cb_of_logits(x, lam), "constant divided"),
        (lambda x, lam: cb_of_two_wheres(x, lam, limit=0.2, terms=0), OTHER),
        (lambda x, lam: cb_of_two_wheres(x, lam, limit=0.5, terms=2), OTHER),
        (lambda x, lam: cb_of_two_wheres(x, lam, limit=1e-6, terms=0), OTHER),
        (lambda x, lam: cb_of_two_wheres(x, lam, limit=1e-10, terms=1), OTHER),
        (lambda x, lam: cb_of_two_wheres(x, lam.clamp(0.01, 0.99)), OTHER),
        (lambda x, lam: cb_of_two_wheres(x, lam.clamp(1e-4, 1 - 1e-4)), OTHER),
        (lambda x, lam: cb_of_two_wheres(x, lam).detach(), OTHER),
        (lambda x, lam: cb_of_two_wheres(x, lam).exp(), OTHER),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    pass_all(name, RIGHT[name], SEEDS)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_fail_by_name(name):
    fail_by_name(name, WRONG[name], SEEDS)
