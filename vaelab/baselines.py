"""Factorisations of a count matrix, x ≈ L Fᵀ with L, F ≥ 0, to which a VAE must be compared.

================  =====================================  ====================================
function          x_ij                                   source
================  =====================================  ====================================
nmf               Poisson((L Fᵀ)_ij)                     Lee & Seung (2001); scikit-learn
nb_factorization  NegativeBinomial((L Fᵀ)_ij, θ)         Gouvert et al. (2018)
================  =====================================  ====================================

Both maximise the likelihood of the observed entries by multiplicative updates, of which none lowers
it. Other than a VAE, they have a free row of L for each cell, and no prior: more factors and more
updates drive some means towards 0, where a hidden count costs hundreds of nats. The number of
updates is therefore part of the baseline; the defaults are those of scikit-learn.
"""

from __future__ import annotations

import warnings

import numpy as np

from ._internal.arguments import require_seed, require_size

__all__ = ["nb_factorization", "nmf"]

TINY = np.finfo(np.float64).tiny


def nmf(x, rank: int, *, observed=None, max_iter: int = 200, tol: float = 1e-4, seed: int = 0):
    """Non-negative factorisation under a Poisson likelihood (generalised Kullback-Leibler loss).

    Without a mask, it is scikit-learn's NMF. With one, it does the same updates, and the hidden
    entries are left out of every sum (Zhang et al. 2006).

    Parameters
    ----------
    x
        Counts, shape (n_cells, n_genes), dense or scipy-sparse.
    rank
        Number of factors.
    observed
        Mask of the entries that were observed, of x's shape; None if all were.
    max_iter, tol
        Largest number of updates, and the relative improvement of the loss over ten updates below
        which they end.
    seed
        Random seed for the start.

    Returns
    -------
    The matrices L (n_cells, rank) and F (n_genes, rank); the mean of x is ``L @ F.T``.

    Raises
    ------
    ValueError
        A value of x is negative or not finite, the mask has another shape, or a cell or gene has no
        observed entry.
    """
    x, w = _matrices(x, observed)
    L, F = _start(x, w, rank, seed)
    if w is None:
        from sklearn.decomposition import non_negative_factorization
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # to end at max_iter is a choice
            L, H, _ = non_negative_factorization(
                x, L, F.T, init="custom", n_components=rank, solver="mu",
                beta_loss="kullback-leibler", tol=tol, max_iter=max_iter,
            )  # fmt: skip
        return L, H.T
    return _updated(x, w, L, F, np.inf, max_iter, tol)[:2]


def nb_factorization(
    x, rank: int, *, observed=None, max_iter: int = 200, tol: float = 1e-4, seed: int = 0
):
    """Non-negative factorisation under a negative binomial likelihood, with one θ for all entries.

    The parameters mean the same as in :func:`nmf`.

    Returns
    -------
    The matrices L (n_cells, rank) and F (n_genes, rank), and the inverse dispersion θ.
    """
    x, w = _matrices(x, observed)
    L, F = _start(x, w, rank, seed)
    return _updated(x, np.ones_like(x) if w is None else w, L, F, 1.0, max_iter, tol)


def _updated(x, w, L, F, theta: float, max_iter: int, tol: float):
    """L, F and θ after multiplicative updates; θ = ∞ is the Poisson, and it stays."""

    def ratio_and_weight():
        mean = np.maximum(L @ F.T, TINY)
        # E[u | x] of each entry, by which an outlier counts less; 1 for the Poisson.
        u = 1.0 if np.isinf(theta) else (x + theta) / (mean + theta)
        return x / mean, w * u  # hidden entries of x are 0

    first = previous = _loss(x, w, L @ F.T, theta)
    for n_done in range(1, max_iter + 1):
        ratio, weight = ratio_and_weight()
        L = L * (ratio @ F) / np.maximum(weight @ F, TINY)
        ratio, weight = ratio_and_weight()
        F = F * (ratio.T @ L) / np.maximum(weight.T @ L, TINY)
        if n_done % 10 == 0:
            mean = L @ F.T
            theta = _best_theta(x, w, mean, theta)
            loss = _loss(x, w, mean, theta)
            if previous - loss < tol * first:
                break
            previous = loss
    return L, F, theta


def _loss(x, w, mean, theta: float) -> float:
    """√(2 KL) for the Poisson, as in scikit-learn, and minus the log-likelihood for the NB."""
    from scipy.special import gammaln, xlogy

    mean = np.maximum(mean, TINY)
    if np.isinf(theta):
        return float(np.sqrt(2 * max(0.0, (w * (xlogy(x, x / mean) - x + mean)).sum())))
    log_p = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    log_p += xlogy(x, mean / (mean + theta)) - theta * np.log1p(mean / theta)
    return float(-(w * log_p).sum())


def _best_theta(x, w, mean, theta: float) -> float:
    """The most likely θ within a factor of e⁴ of the present one."""
    from scipy.optimize import minimize_scalar

    if np.isinf(theta):
        return theta
    now = np.log(theta)
    low, high = max(now - 4, -12), min(now + 4, 12)  # the limits of the package's likelihoods
    best = minimize_scalar(
        lambda log_theta: _loss(x, w, mean, np.exp(log_theta)), bounds=(low, high), method="bounded"
    )
    return float(np.exp(best.x)) if best.fun < _loss(x, w, mean, theta) else theta


def _matrices(x, observed) -> tuple[np.ndarray, np.ndarray | None]:
    """x and the mask as float64 arrays; hidden entries of x are 0."""
    x = np.array(x.toarray() if hasattr(x, "toarray") else x, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}; it must be (n_cells, n_genes).")
    if observed is not None:
        observed = np.asarray(observed.toarray() if hasattr(observed, "toarray") else observed)
        if observed.shape != x.shape or not np.isin(observed, (0, 1)).all():
            raise ValueError(
                f"observed must be a matrix of True and False of x's shape {x.shape}, but has "
                f"shape {observed.shape} and dtype {observed.dtype}."
            )
        x[observed == 0] = 0
        for kind, axis in (("cell", 1), ("gene", 0)):
            if (empty := (observed == 0).all(axis)).any():
                raise ValueError(f"No entry of the {kind} {int(np.argmax(empty))} was observed.")
        observed = observed.astype(np.float64)
    if not (np.isfinite(x) & (x >= 0)).all():
        raise ValueError("x must hold counts: numbers that are finite and 0 or more.")
    return x, observed


def _start(x, w, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random L and F whose product has about the mean of x."""
    require_size("rank", rank)
    require_seed(seed)
    mean = x.mean() if w is None else x.sum() / w.sum()
    rng = np.random.default_rng(seed)
    L, F = (np.abs(rng.standard_normal((n, rank))) for n in x.shape)
    return L * np.sqrt(mean / rank), F * np.sqrt(mean / rank)
