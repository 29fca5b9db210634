"""Scores of a latent space and of clusters, and the activity of latent dimensions."""

from __future__ import annotations

import numpy as np

from ._internal.machine import steady_threads

__all__ = [
    "ACTIVE",
    "adjusted_rand_index",
    "average_silhouette_width",
    "clustering_scores",
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

    The diagonal of the covariance of the posterior means. A dimension that the encoder ignores
    has activity 0; one is active above ``ACTIVE``.

    Parameters
    ----------
    latent
        Posterior means, shape (n_cells, n_latent).

    Raises
    ------
    ValueError
        Another shape, or fewer than two cells.
    """
    if np.ndim(latent) != 2 or len(latent) < 2:
        raise ValueError(
            f"latent has shape {np.shape(latent)}; it must be (n_cells, n_latent), with 2 cells or "
            "more."
        )
    return np.var(latent, axis=0, ddof=1)


def average_silhouette_width(latent: np.ndarray, labels: np.ndarray) -> float:
    """Mean over cells of (b − a) / max(a, b) (Rousseeuw 1987), in [−1, 1].

    a is a cell's mean distance to the other cells of its type, b that to the nearest other type.
    It rewards tight types that are far apart, whatever their shape means. A type of one cell
    counts 0.
    """
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(latent, labels))


def adjusted_rand_index(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Agreement of two groupings over pairs of cells: 1 if the same, 0 on average by chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels, clusters))


def normalized_mutual_information(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Mutual information of two groupings over the mean of their entropies, in [0, 1]."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels, clusters))


def kmeans(latent: np.ndarray, n_clusters: int, seed: int = 0) -> np.ndarray:
    """k-means clusters (the best of 10 starts); shape (n_cells,)."""
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(latent)


def leiden(
    latent: np.ndarray, resolution: float = 1.0, n_neighbors: int = 15, seed: int = 0
) -> np.ndarray:
    """Leiden communities of the graph of nearest neighbours; shape (n_cells,)."""
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
    """How well a latent space holds known types apart.

    Parameters
    ----------
    latent
        Shape (n_cells, n_dimensions).
    labels
        Type of each cell, shape (n_cells,).
    min_cells
        Cells of unknown type (a missing value), or of a type with fewer cells than this, are
        left out, of the clustering too.
    seed
        Of k-means, of the graph and of Leiden.

    Returns
    -------
    "asw"; "kmeans_ari" and "kmeans_nmi" with as many clusters as scored types; "leiden_ari" and
    "leiden_nmi" at resolution 1.

    Raises
    ------
    ValueError
        Fewer than two types to score, or a latent space that is not finite or of another shape.
    """
    import pandas as pd

    latent, labels = np.asarray(latent), pd.Series(np.asarray(labels, dtype=object))
    if latent.ndim != 2 or len(latent) != len(labels) or not np.isfinite(latent).all():
        raise ValueError(
            f"latent has shape {latent.shape} for {len(labels)} labels, and "
            f"{(~np.isfinite(latent)).sum()} values that are NaN or infinite; it must hold "
            "numbers, of shape (n_cells, n_dimensions)."
        )
    n_of_type = labels.map(labels.value_counts())  # NaN for a missing value
    scored = (n_of_type >= min_cells).to_numpy()
    latent, types = latent[scored], labels[scored].to_numpy(dtype=str)
    n_types = len(np.unique(types))
    if n_types < 2:
        raise ValueError(
            f"{n_types} type(s) have {min_cells} cells or more; two are needed to tell apart."
        )
    by_kmeans, by_leiden = kmeans(latent, n_types, seed), leiden(latent, seed=seed)
    return {
        "asw": average_silhouette_width(latent, types),
        "kmeans_ari": adjusted_rand_index(types, by_kmeans),
        "kmeans_nmi": normalized_mutual_information(types, by_kmeans),
        "leiden_ari": adjusted_rand_index(types, by_leiden),
        "leiden_nmi": normalized_mutual_information(types, by_leiden),
    }


def usage(shares: np.ndarray) -> dict[str, float]:
    """How many clusters are in use, of the share of the cells that each has.

    Parameters
    ----------
    shares
        The aggregate posterior, the mean over cells of q(y | x); shape (n_clusters,), sums to 1.

    Returns
    -------
    "used", clusters with a share above ``USED``; "entropy", nats: log K if all K are used alike.
    """
    from scipy.stats import entropy

    shares = np.asarray(shares)
    return {"used": int((shares > USED).sum()), "entropy": float(entropy(shares))}
