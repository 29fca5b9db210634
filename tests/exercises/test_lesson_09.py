"""Lesson 09: right answers that learners write, and wrong ones, each with what it is told."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln
from torch.distributions import Binomial, Normal, kl_divergence

from vaelab.distributions import NegativeBinomial, Poisson, ZeroInflated
from vaelab.teaching.exercises import SEED

from .answers import fail_by_name, pass_all, verdict_on

SEEDS = [SEED, 1]

# ----------------------------------------------------------------------- 09.1 posterior mean


def rate_in_torch(x, mean, theta, logits):
    rate = mean * (x + theta) / (mean + theta)
    at_zero = torch.sigmoid(-theta * torch.log1p(mean / theta) - logits)
    return torch.where(x > 0, rate, at_zero * rate)


def rate_by_bayes(x, mean, theta, logits):
    x, mean, theta, pi = x.numpy(), mean.numpy(), theta.numpy(), torch.sigmoid(logits).numpy()
    zero = (theta / (theta + mean)) ** theta
    kept = np.where(x == 0, (1 - pi) * zero / (pi + (1 - pi) * zero), 1)
    return kept * stats.gamma.mean(x + theta, scale=mean / (mean + theta))


def rate_by_robbins(x, mean, theta, logits):
    p = ZeroInflated(NegativeBinomial(mean, theta), logits)
    return (x + 1) * (p.log_prob(x + 1) - p.log_prob(x)).exp()


def rate_as_list(*case):
    return rate_by_bayes(*case).tolist()


def rate_in_single_precision(*case):
    return rate_in_torch(*case).float()


def rate_entry_by_entry(x, mean, theta, logits):
    """For one row only; section 4 passes tables."""
    each = zip(x, mean, theta, logits, strict=True)
    return torch.stack([rate_in_torch(*(v.reshape(()) for v in entry)) for entry in each])


def effect_alone(x, mean, theta, logits):
    return rate_in_torch(x, mean, theta, logits) / mean


def as_printed(x, mean, theta, logits):
    return (x + theta) / (mean + theta) * torch.sigmoid(-logits)


def unseen(x, mean, theta, logits):
    return mean * torch.sigmoid(-logits)


def uninflated(x, mean, theta, logits):
    return mean * (x + theta) / (mean + theta)


def kept_everywhere(x, mean, theta, logits):
    return uninflated(x, mean, theta, logits) * torch.sigmoid(-logits)


def kept_by_the_prior(x, mean, theta, logits):
    rate = uninflated(x, mean, theta, logits)
    return torch.where(x > 0, rate, rate * torch.sigmoid(-logits))


# ----------------------------------------------------------------------------- 09.2 thinning


def thin_by_quantile(x, p, u, v):
    part = stats.binom.ppf(u, x, p)
    return part, np.asarray(x) - part


def thin_one_by_one(x, p, u, v):
    part = [float(stats.binom(int(n), p).ppf(float(a))) for n, a in zip(x, u, strict=True)]
    return part, [float(n) - k for n, k in zip(x, part, strict=True)]


def thin_by_search(x, p, u, v):
    k = torch.arange(x.max() + 1, dtype=torch.float64)
    n = torch.as_tensor(x, dtype=torch.float64)[:, None]
    log_p = Binomial(n, p, validate_args=False).log_prob(torch.minimum(k, n))
    cdf = torch.where(k <= n, log_p.exp(), 0).cumsum(1)
    part = (cdf < torch.as_tensor(u, dtype=torch.float64)[:, None]).sum(1)
    return part, torch.as_tensor(x) - part


def thin_stacked(x, p, u, v):
    return np.stack(thin_by_quantile(x, p, u, v))


def thin_in_single_precision(x, p, u, v):
    return tuple(
        torch.tensor(np.asarray(a), dtype=torch.float32) for a in thin_one_by_one(x, p, u, v)
    )


def two_poissons(x, p, u, v):
    return stats.poisson.ppf(u, x * p), stats.poisson.ppf(v, x * (1 - p))


def two_binomials(x, p, u, v):
    return stats.binom.ppf(u, x, p), stats.binom.ppf(v, x, 1 - p)


def poisson_part(x, p, u, v):
    part = stats.poisson.ppf(u, x * p)
    return part, np.asarray(x) - part


def one_coin(x, p, u, v):
    part = x * (u < p)
    return part, x - part


def expected_parts(x, p, u, v):
    return p * x, (1 - p) * x


def rounded_parts(x, p, u, v):
    part = (p * x).round()
    return part, x - part


def exchanged(x, p, u, v):
    return thin_by_quantile(x, 1 - p, u, v)


# ------------------------------------------------------------------------- 09.3 masked bound


def bound_of(encode="observed", score="observed", price=lambda kl, observed: kl, scale=False):
    def masked_bound(x, observed, A, s, W, eps):
        filled = torch.where(observed, x, 0)
        m = torch.log1p(filled if encode == "observed" else x) @ A
        counts = x if score == "all" else filled
        rate = ((m + s * eps) @ W).exp()
        log_px = torch.distributions.Poisson(rate, validate_args=False).log_prob(counts)
        if score == "observed":
            log_px = torch.where(observed, log_px, 0)
        kl = kl_divergence(Normal(m, s, validate_args=False), Normal(0.0, 1.0)).sum(1)
        log_px = log_px.sum(1) / (observed.double().mean(1) if scale else 1)
        return log_px - price(kl, observed)

    return masked_bound


def bound_in_arrays(x, observed, A, s, W, eps):
    x, observed, A, s, W, eps = (np.asarray(a) for a in (x, observed, A, s, W, eps))
    m = np.log1p(np.where(observed, x, 0)) @ A
    rate = np.exp((m + s * eps) @ W)
    log_px = stats.poisson.logpmf(np.nan_to_num(x), rate)
    kl = 0.5 * (m**2 + s**2 - 1 - 2 * np.log(s)).sum(1)
    return np.where(observed, log_px, 0).sum(1) - kl


def bound_with_weights_after_filling(x, observed, A, s, W, eps):
    """A product with the mask is right if the hidden entries have been replaced first."""
    x, w = torch.nan_to_num(x) * observed, observed.to(x.dtype)
    m = torch.log1p(x) @ A
    log_px = Poisson(((m + s * eps) @ W).exp()).log_prob(x)
    return (w * log_px).sum(1) - 0.5 * (m**2 + s**2 - 1 - 2 * s.log()).sum(1)


def bound_cell_by_cell(x, observed, A, s, W, eps):
    found = []
    for counts, seen, e in zip(x, observed, eps, strict=True):
        m = torch.log1p(counts[seen]) @ A[seen]
        rate = ((m + s * e) @ W[:, seen]).exp()
        log_px = torch.distributions.Poisson(rate).log_prob(counts[seen]).sum()
        found.append(log_px - kl_divergence(Normal(m, s), Normal(0.0, 1.0)).sum())
    return torch.stack(found)


def bound_by_masked_fill(x, observed, A, s, W, eps):
    x = x.masked_fill(~observed, 0)
    m = x.log1p() @ A
    eta = (m + eps * s) @ W
    log_px = (x * eta - eta.exp() - torch.lgamma(x + 1)).masked_fill(~observed, 0)
    return log_px.sum(-1) - (m.square() / 2 + s.square() / 2 - 0.5 - s.log()).sum(-1)


def bound_in_single_precision(x, observed, A, s, W, eps):
    return bound_of()(x.float(), observed, A.float(), s.float(), W.float(), eps.float())


def scored_then_masked(x, observed, A, s, W, eps):
    """Right values, but the gradient is NaN where a hidden entry is infinite."""
    m = torch.log1p(torch.where(observed, x, 0)) @ A
    rate = ((m + s * eps) @ W).exp()
    log_px = torch.distributions.Poisson(rate, validate_args=False).log_prob(x)
    kl = kl_divergence(Normal(m, s), Normal(0.0, 1.0)).sum(1)
    return torch.where(observed, log_px, 0).sum(1) - kl


def bound_cut_off_from_the_encoder(x, observed, A, s, W, eps):
    return bound_by_masked_fill(x, observed, A.detach(), s, W, eps)


def mean_of_the_observed(x, observed, A, s, W, eps):
    """0/0 for a cell of which nothing was observed."""
    m = torch.log1p(torch.where(observed, x, 0)) @ A
    kl = 0.5 * (m**2 + s**2 - 1 - 2 * s.log()).sum(1)
    log_px = bound_by_masked_fill(x, observed, A, s, W, eps) + kl
    return log_px / observed.sum(1) * observed.sum(1) - kl


def multiplied_by_the_mask(x, observed, A, s, W, eps):
    m = torch.log1p(x * observed) @ A
    log_px = torch.distributions.Poisson(((m + s * eps) @ W).exp(), validate_args=False)
    kl = kl_divergence(Normal(m, s, validate_args=False), Normal(0.0, 1.0)).sum(1)
    return (observed * log_px.log_prob(x)).sum(1) - kl


# -------------------------------------------------------------------------------- 09.4 score


def score_in_scipy(x, mean, observed):
    return stats.poisson.logpmf(x, mean)[~observed].sum()


def score_by_where(x, mean, observed):
    return np.where(observed, 0, stats.poisson.logpmf(x, mean)).sum()


def score_by_logical_not(x, mean, observed):
    return stats.poisson.logpmf(x, mean)[np.logical_not(observed)].sum()


def score_by_invert(x, mean, observed):
    return stats.poisson.logpmf(x[np.invert(observed)], mean[np.invert(observed)]).sum()


def score_by_product(x, mean, observed):
    return (stats.poisson.logpmf(x, mean) * (1 - observed)).sum()


def score_of_integers(x, mean, observed):
    return stats.poisson(mean).logpmf(x.astype(int))[observed == 0].sum()


def score_by_package(x, mean, observed):
    x, mean, observed = (torch.as_tensor(a) for a in (x, mean, observed))
    return Poisson(mean).log_prob(x).masked_fill(observed, 0).sum().float()


def score_as_float(x, mean, observed):
    return float(np.sum(~observed * (x * np.log(mean) - mean - gammaln(x + 1))))


def score_of_tensors(x, mean, observed):
    """Breaks in the next cell, which passes arrays."""
    return torch.distributions.Poisson(mean).log_prob(x)[~observed].sum()


# --------------------------------------------------------------------------------- 09.5 IWAE


def log_weights(x, m, s, z, below=None):
    log_p = Normal(z, 1.0).log_prob(x) + Normal(0.0, 1.0).log_prob(z)
    return log_p - Normal(m, s).log_prob(z if below is None else below)


def iwae_in_torch(x, m, s, eps, more_eps):
    return log_weights(x, m, s, m + s * eps).logsumexp(0) - np.log(len(eps))


def iwae_by_logaddexp(x, m, s, eps, more_eps):
    log_w = log_weights(x, m, s, m + s * eps).numpy()
    return np.logaddexp.reduce(log_w, axis=0) - np.log(len(log_w))


def iwae_shifted(x, m, s, eps, more_eps):
    log_w = log_weights(x, m, s, m + s * eps)
    top = log_w.max(0).values
    return top + (log_w - top).exp().mean(0).log()


def iwae_as_list(*case):
    return iwae_in_torch(*case).tolist()


def iwae_in_single_precision(*case):
    return iwae_in_torch(*case).float()


def as_given(x, m, s, eps, more_eps):
    return log_weights(x, m, s, m + s * eps, m + s * more_eps).mean(0)


def separate(x, m, s, eps, more_eps):
    return log_weights(x, m, s, m + s * eps, m + s * more_eps).logsumexp(0) - np.log(len(eps))


def elbo(x, m, s, eps, more_eps):
    return log_weights(x, m, s, m + s * eps).mean(0)


def summed(x, m, s, eps, more_eps):
    return log_weights(x, m, s, m + s * eps).logsumexp(0)


def underflowing(x, m, s, eps, more_eps):
    return log_weights(x, m, s, m + s * eps).exp().mean(0).log()


def largest(x, m, s, eps, more_eps):
    return log_weights(x, m, s, m + s * eps).max(0).values


RIGHT = {
    "09.1": [rate_in_torch, rate_by_bayes, rate_by_robbins, rate_as_list, rate_in_single_precision],
    "09.2": [
        thin_by_quantile, thin_one_by_one, thin_by_search, thin_stacked, thin_in_single_precision,
    ],
    "09.3": [
        bound_of(), bound_by_masked_fill, bound_with_weights_after_filling, bound_cell_by_cell,
        bound_in_single_precision,
    ],
    "09.4": [
        score_in_scipy, score_by_where, score_by_logical_not, score_by_invert, score_by_product,
        score_of_integers, score_by_package, score_as_float,
    ],
    "09.5": [
        iwae_in_torch, iwae_by_logaddexp, iwae_shifted, iwae_as_list, iwae_in_single_precision,
    ],
}  # fmt: skip

WRONG = {
    "09.1": [
        (effect_alone, "E[u|x] in place of E[λ|x]"),
        (as_printed, "E[u|x] times 1 − π, as the source had it"),
        (unseen, "the mean before x was seen"),
        (uninflated, "no inflation"),
        (kept_everywhere, "1 − π everywhere"),
        (kept_by_the_prior, "1 − π at zeros"),
    ],
    "09.2": [
        (two_poissons, "thinning as two draws"),
        (two_binomials, "two binomials"),
        (poisson_part, "a Poisson part"),
        (one_coin, "one coin for all molecules"),
        (expected_parts, "shares, not counts"),
        (rounded_parts, "rounded shares"),
        (exchanged, "p and 1 − p exchanged"),
    ],
    "09.3": [
        (bound_of(encode="all"), "mask only the likelihood"),
        (bound_of(score="all"), "mask only the encoder's input"),
        (bound_of(score="filled"), "zeros scored as if they were observed"),
        (bound_of(encode="all", score="all"), "no mask at all"),
        (bound_of(price=lambda kl, w: kl * w.to(kl).mean(1)), "reweight the KL"),
        (bound_of(scale=True), "likelihood scaled up"),
        (bound_of(price=lambda kl, w: 0), "KL left out"),
        (multiplied_by_the_mask, "multiplied by the mask"),
        (scored_then_masked, "masked afterwards"),
    ],
    "09.4": [
        (lambda x, mean, observed: score_in_scipy(x, mean, ~observed), "the observed entries"),
        (lambda x, mean, observed: score_in_scipy(x, mean, observed & False), "all entries"),
        (lambda x, mean, observed: score_in_scipy(x, mean, observed) / (~observed).sum(), "a mean"),
        (
            lambda x, mean, observed: score_in_scipy(x * observed, mean, observed),
            "hidden counts as zeros",
        ),
        (
            lambda x, mean, observed: np.where(observed, stats.poisson.logpmf(x, mean), 0).sum(),
            "the observed entries",
        ),
    ],
    "09.5": [
        (as_given, "all of the bugs"),
        (separate, "separate draws above and below"),
        (elbo, "the mean of the logarithms"),
        (summed, "a sum for a mean"),
        (underflowing, "weights that underflow"),
        (largest, "the largest weight"),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    pass_all(name, RIGHT[name], SEEDS)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_told_what_is_wrong(name):
    fail_by_name(name, WRONG[name], SEEDS)


@pytest.mark.parametrize(
    "name, answer", [("09.1", rate_entry_by_entry), ("09.4", score_of_tensors)]
)
def test_an_answer_that_breaks_in_a_later_cell_fails(name, answer):
    assert "raised" in str(verdict_on(name, answer))


@pytest.mark.filterwarnings("error")
def test_the_function_that_the_text_names_gives_no_warning():
    assert verdict_on("09.2", thin_by_quantile).passed


@pytest.mark.parametrize(
    "answer, told",
    [
        (bound_in_arrays, "raised RuntimeError: Can't call numpy() on Tensor that requires grad"),
        (bound_cut_off_from_the_encoder, "Slope in A"),
        (mean_of_the_observed, "1 of 6 values are NaN"),
    ],
)
def test_a_bound_that_no_model_can_be_trained_on_fails(answer, told):
    verdict = verdict_on("09.3", answer)
    assert not verdict.passed and told in str(verdict), verdict
