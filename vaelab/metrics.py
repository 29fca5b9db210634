"""Scores of latent spaces, clusters and imputed values, and the activity of latent dimensions."""

from __future__ import annotations

import warnings

import numpy as np

from ._internal.machine import steady_threads
from ._internal.reading import UNKNOWN, looks_missing, unmasked

__all__ = [
    "ACTIVE",
    "USED",
    "adjusted_rand_index",
    "average_silhouette_width",
    "clustering_scores",
    "imputation_score",
    "kmeans",
    "latent_activity",
    "leiden",
    "normalized_mutual_information",
    "usage",
]

ACTIVE = 0.01
"""A latent dimension is active above this variance of its posterior mean (Burda et al. 2016)."""

USED = 0.01
"""A cluster is in use above this share of the cells."""


def latent_activity(latent: np.ndarray) -> np.ndarray:
    """Var over cells of E_q[z_d | x], for each latent dimension d (Burda et al. 2016, section 5.2).

    This is the diagonal of the covariance of the posterior means. A dimension that the encoder
    ignores has activity 0. A dimension is active if its activity is above ``ACTIVE``.

    Parameters
    ----------
    latent
        Posterior means, shape (n_cells, n_latent).

    Raises
    ------
    ValueError
        ``latent`` has another shape, or fewer than two cells.
    """
    if np.ndim(latent) != 2 or len(latent) < 2:
        raise ValueError(
            f"latent has shape {np.shape(latent)}; it must be (n_cells, n_latent), with 2 cells or "
            "more."
        )
    return np.var(latent, axis=0, ddof=1)


def average_silhouette_width(latent: np.ndarray, labels: np.ndarray) -> float:
    """Mean over cells of (b − a) / max(a, b) (Rousseeuw 1987), in [−1, 1].

    a is the mean distance of a cell to the other cells of its type, and b its mean distance to the
    cells of the nearest other type. The score is high for compact types that are far apart; it does
    not ask whether their shape makes sense. The only cell of a type counts 0.

    Parameters
    ----------
    latent
        Positions, shape (n_cells, n_dimensions).
    labels
        Type of each cell, shape (n_cells,). Cells of unknown type are left out: see
        :func:`clustering_scores`.
    """
    from sklearn.metrics import silhouette_score

    known, labels = _known(labels, len(latent))
    return float(silhouette_score(np.asarray(latent)[known], labels))


def adjusted_rand_index(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Agreement of two groupings over pairs of cells: 1 if they are the same, 0 by chance.

    Cells whose label is unknown are left out: see :func:`clustering_scores`.
    """
    from sklearn.metrics import adjusted_rand_score

    known, labels = _known(labels, len(clusters))
    return float(adjusted_rand_score(labels, np.asarray(clusters)[known]))


def normalized_mutual_information(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Mutual information of two groupings over the mean of their entropies, in [0, 1].

    Cells whose label is unknown are left out: see :func:`clustering_scores`.
    """
    from sklearn.metrics import normalized_mutual_info_score

    known, labels = _known(labels, len(clusters))
    return float(normalized_mutual_info_score(labels, np.asarray(clusters)[known]))


def _known(labels, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cells have a known type, and their types as text."""
    import pandas as pd

    labels = pd.Series(unmasked(labels))
    if len(labels) != n_cells:
        raise ValueError(f"There are {len(labels)} labels for {n_cells} cells; one each is needed.")
    known = (labels.notna() & (labels.map(str) != UNKNOWN)).to_numpy()
    types = labels[known].to_numpy(dtype=str)
    if suspects := [name for name in np.unique(types) if looks_missing(name)]:
        warnings.warn(
            f"The label {str(suspects[0])!r} is scored as a cell type. If it means that a type is "
            "not known, replace it by None.",
            stacklevel=3,
        )
    return known, types


def kmeans(latent: np.ndarray, n_clusters: int, seed: int = 0) -> np.ndarray:
    """The cluster of each cell by k-means (the best of 10 starts), shape (n_cells,)."""
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(latent)


def leiden(
    latent: np.ndarray, resolution: float = 1.0, n_neighbors: int = 15, seed: int = 0
) -> np.ndarray:
    """The cluster of each cell by Leiden on the nearest-neighbour graph, shape (n_cells,)."""
    import anndata
    import scanpy as sc

    adata = anndata.AnnData(np.asarray(latent, dtype=np.float32))
    with steady_threads():
        sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
        sc.tl.leiden(
            adata,
            resolution=resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=seed,
        )
    return adata.obs["leiden"].to_numpy().astype(int)


def clustering_scores(
    latent: np.ndarray, labels: np.ndarray, min_cells: int = 5, seed: int = 0
) -> dict[str, float]:
    """How well a latent space separates known types.

    Parameters
    ----------
    latent
        Positions in the latent space, shape (n_cells, n_dimensions).
    labels
        Type of each cell, shape (n_cells,).
    min_cells
        Smallest number of cells of a type that is scored. Cells of smaller types and of unknown
        type are left out before the clustering. A type is unknown if it is a missing value or the
        word "unknown", as in ``Cells.labels``.
    seed
        Random seed for k-means, the nearest-neighbour graph and Leiden.

    Returns
    -------
    A dictionary: "asw", the average silhouette width; "kmeans_ari" and "kmeans_nmi", with as many
    clusters as scored types; "leiden_ari" and "leiden_nmi", at resolution 1.

    Raises
    ------
    ValueError
        Fewer than two types can be scored, or ``latent`` has another shape or values that are not
        finite.
    """
    import pandas as pd

    latent = np.asarray(latent)
    if latent.ndim != 2 or len(latent) != len(labels) or not np.isfinite(latent).all():
        raise ValueError(
            f"latent has shape {latent.shape} for {len(labels)} labels, and "
            f"{(~np.isfinite(latent)).sum()} values that are NaN or infinite; it must hold "
            "numbers, of shape (n_cells, n_dimensions)."
        )
    known, types = _known(labels, len(latent))
    scored = (pd.Series(types).map(pd.Series(types).value_counts()) >= min_cells).to_numpy(bool)
    latent, types = latent[known][scored], types[scored]
    n_types = len(np.unique(types))
    if n_types < 2:
        raise ValueError(
            f"{n_types} type(s) have {min_cells} cells or more; at least two are needed. Lower "
            "min_cells, or give more cells."
        )
    by_kmeans, by_leiden = kmeans(latent, n_types, seed), leiden(latent, seed=seed)
    return {
        "asw": average_silhouette_width(latent, types),
        "kmeans_ari": adjusted_rand_index(types, by_kmeans),
        "kmeans_nmi": normalized_mutual_information(types, by_kmeans),
        "leiden_ari": adjusted_rand_index(types, by_leiden),
        "leiden_nmi": normalized_mutual_information(types, by_leiden),
    }


def imputation_score(x, mean: np.ndarray, observed) -> float:
    """Σ log Poisson(x; mean) over the entries that were hidden; nats, higher is better.

    The observed entries have no part in it: they say how well a model fits, and a model that
    overfits gets better at them.

    Parameters
    ----------
    x
        The true counts, shape (n_cells, n_genes), dense or scipy-sparse.
    mean
        The imputed values, of the same shape, such as ``model.impute(cells)``.
    observed
        The mask, False for the hidden entries, of the same shape: a matrix or ``cells.observed``.

    Raises
    ------
    ValueError
        The shapes differ, no entry is hidden, or a hidden entry is not a count or was imputed by
        a value that is negative or not finite.
    """
    from scipy.special import gammaln, xlogy

    x, mean, observed = (
        np.asarray(m.toarray() if hasattr(m, "toarray") else m) for m in (x, mean, observed)
    )
    if not x.shape == mean.shape == observed.shape or not np.isin(observed, (0, 1)).all():
        raise ValueError(
            f"x, mean and observed have shapes {x.shape}, {mean.shape} and {observed.shape}; they "
            "must have the same one, and observed must be True or False."
        )
    hidden = observed == 0
    if not hidden.any():
        raise ValueError("No entry was hidden, so that there is nothing to score.")
    x, mean = x[hidden].astype(np.float64), mean[hidden].astype(np.float64)
    if not ((x >= 0) & (x % 1 == 0)).all():
        raise ValueError("A hidden entry of x is not a count; the score is one of true counts.")
    if not (np.isfinite(mean) & (mean >= 0)).all():
        raise ValueError("A hidden entry was imputed by a value that is negative or not finite.")
    return float((xlogy(x, mean) - mean - gammaln(x + 1)).sum())


def usage(shares: np.ndarray) -> dict[str, float]:
    """How many clusters are in use, from each cluster's share of the cells.

    Parameters
    ----------
    shares
        The aggregate posterior, which is the mean of q(y | x) over cells; shape (n_clusters,), sums
        to 1.

    Returns
    -------
    A dictionary: "used", the number of clusters with a share above ``USED``; and "entropy", the
    entropy of the shares in nats, which is log K if all K clusters are used equally.
    """
    from scipy.stats import entropy

    shares = np.asarray(shares)
    return {"used": int((shares > USED).sum()), "entropy": float(entropy(shares))}
