"""Independent answers that the tests hold the package to; nothing here imports vaelab.

Log-probabilities come from the textbook definition with 60 digits (mpmath). Each function takes
one outcome and its parameters, and returns the logs of the definition's factors, so that
``sum(factors)`` is the log-probability and ``scale(factors)`` says how much a sum of such factors
can lose to rounding.
"""

import mpmath
import numpy as np
from scipy.special import gammaln, logsumexp

mp = mpmath.MPContext()  # a context of our own: no other user of mpmath sees its precision
mp.dps = 60


# ------------------------------------------------------------------------------ textbook factors


def poisson(x, rate):
    """μ^x e^{−μ} / x!"""
    return [x * mp.log(rate), -mp.mpf(rate), -mp.log(mp.factorial(x))]


def negative_binomial(x, mean, theta):
    """Γ(x+θ) / (Γ(θ) x!) · p^θ (1−p)^x with p = θ/(θ+μ)."""
    mean, theta = mp.mpf(mean), mp.mpf(theta)
    return [
        mp.log(mp.gamma(x + theta) / mp.gamma(theta)),
        -mp.log(mp.factorial(x)),
        theta * mp.log(theta / (theta + mean)),
        x * mp.log(mean / (theta + mean)),
    ]


def zero_inflated(x, base, logits=None, probs=None):
    """π + (1−π) base(0) at 0, (1−π) base(x) above; ``base`` are the base's factors at x."""
    pi = 1 / (1 + mp.exp(-mp.mpf(logits))) if probs is None else mp.mpf(probs)
    if x > 0:
        return [mp.log(1 - pi), *base]
    summands = mp.log(pi), mp.log(1 - pi) + sum(base)
    log_p = mp.log(sum(map(mp.exp, summands)))
    return [max(summands), log_p - max(summands)]  # p = larger · (1 + smaller/larger)


def continuous_bernoulli(x, logits):
    """e^{ηx} / ∫ e^{ηt} dt over [0, 1]."""
    eta = mp.mpf(logits)
    return [x * eta, -mp.log(mp.expm1(eta) / eta) if eta else mp.mpf(0)]


def continuous_bernoulli_of_probs(x, lam):
    """C(λ) λ^x (1−λ)^{1−x} with C = 2 artanh(1−2λ)/(1−2λ): Loaiza-Ganem & Cunningham (2019)."""
    lam, x = mp.mpf(lam), mp.mpf(x)
    u = 1 - 2 * lam
    constant = 2 * mp.atanh(u) / u if u else mp.mpf(2)
    return [mp.log(constant), x * mp.log(lam), (1 - x) * mp.log(1 - lam)]


def scale(factors):
    """Σ |factor|: one unit of rounding in each factor is this many units in the sum."""
    return sum(abs(factor) for factor in factors)


def values_and_scales(factors, *points):
    """The log-probability and its scale at each point, as float64 arrays."""
    lists = [factors(*point) for point in zip(*points, strict=True)]
    return (
        np.array([float(sum(factors)) for factors in lists]),
        np.array([float(scale(factors)) for factors in lists]),
    )


def derivatives(factors, position, *points):
    """∂ log p / ∂ argument number ``position`` at each point, by differences with 60 digits."""

    def slope(point):
        def along(value):
            return sum(factors(*point[:position], value, *point[position + 1 :]))

        return float(mp.diff(along, mp.mpf(point[position])))

    return np.array([slope(point) for point in zip(*points, strict=True)])


# ------------------------------------------------------------------------ the linear-Gaussian VAE


def gaussian_log_density(x, mean, covariance):
    """log N(x; mean, covariance) of each row of x."""
    d = (x - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    log_det = np.linalg.slogdet(covariance)[1]
    return -0.5 * (len(covariance) * np.log(2 * np.pi) + log_det + (d**2).sum(-1))


def linear_log_evidence(x, W, b, sigma):
    """log p(x) = log N(x; b, WWᵀ + diag σ²) of each row of x."""
    return gaussian_log_density(x, b, W @ W.T + np.diag(np.broadcast_to(sigma, b.shape) ** 2))


def most_evidence(x, n_latent):
    """The most that any linear-Gaussian model gives x, a cell: Tipping & Bishop (1999), eq. 8."""
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    n_genes, rest = len(eigenvalues), eigenvalues[n_latent:]
    log_det = np.log(eigenvalues[:n_latent]).sum() + len(rest) * np.log(rest.mean())
    return -0.5 * (n_genes * np.log(2 * np.pi) + log_det + n_genes)


def linear_posterior(W, sigma):
    """A and V of the posterior N(A (x − b), V) of z, for one σ shared by all genes."""
    M = W.T @ W + sigma**2 * np.eye(W.shape[1])
    return np.linalg.solve(M, W.T), sigma**2 * np.linalg.inv(M)


def gaussian_kl(mean, std, other_mean, other_covariance):
    """KL(N(mean, diag std²) ‖ N(other_mean, other_covariance)) of each row of the means."""
    inverse = np.linalg.inv(other_covariance)
    d = mean - other_mean
    trace = (np.diag(inverse) * std**2).sum(-1)
    log_dets = np.linalg.slogdet(other_covariance)[1] - 2 * np.log(std).sum(-1)
    return 0.5 * (trace + np.einsum("ni,ij,nj->n", d, inverse, d) - d.shape[-1] + log_dets)


# ------------------------------------- models of one latent dimension, from their numbers alone


def network(mlp, x, conditions=None):
    """A network of at most one hidden layer, without normalisation."""
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy())
              for m in mlp if hasattr(m, "in_features")]  # fmt: skip
    if conditions is not None:
        shape = (*x.shape[:-1], conditions.shape[-1])
        x = np.concatenate([x, np.broadcast_to(conditions, shape)], axis=-1)
    if len(mlp) == 1:
        return x @ layers[0][0].T + layers[0][1]
    h = np.maximum(x @ layers[0][0].T + layers[0][1], 0)
    return h if len(layers) == 1 else h @ layers[1][0].T + layers[1][1]


def log_nb(x, log_mean, log_theta):
    theta, log_total = np.exp(log_theta), np.logaddexp(log_theta, log_mean)
    log_p = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    return log_p + theta * (log_theta - log_total) + x * (log_mean - log_total)


def log_p_x(model, x, z, log_library, batch):
    """log p(x | z, ℓ, γ); z and log ℓ of shape (n, …), one row a cell."""
    likelihood, G = model.likelihood, x.shape[-1]
    inner = (1,) * (z.ndim - 1)
    γ = np.eye(model.configuration["n_batches"])[batch].reshape(len(batch), *inner, -1)
    weight, bias = (p.detach().numpy() for p in likelihood.output.parameters())
    out = network(model.decoder, z[..., None], γ if γ.shape[-1] > 1 else None) @ weight.T + bias
    scores, rest = out[..., :G], out[..., G:]
    log_mean = log_library[..., None] + scores - logsumexp(scores, axis=-1, keepdims=True)
    log_theta = likelihood.log_inverse_dispersion.detach().numpy()
    if log_theta.ndim == 2:
        log_theta = log_theta[batch].reshape(len(batch), *inner, G)
    x = x.reshape(len(x), *inner, G)
    log_p = log_nb(x, log_mean, log_theta)
    if rest.shape[-1]:  # zero-inflated
        log_pi, log_rest = -np.logaddexp(0, -rest), -np.logaddexp(0, rest)
        log_p = np.where(x == 0, np.logaddexp(log_pi, log_rest + log_p), log_rest + log_p)
    return log_p.sum(-1)


def q_of(mlp, x, conditions=None):
    """Mean and standard deviation: the network's second half is a log-variance."""
    out = network(mlp, np.log1p(x), conditions)
    d = out.shape[1] // 2
    return out[:, :d].squeeze(1), np.sqrt(np.exp(out[:, d:]) + 1e-4).squeeze(1)
