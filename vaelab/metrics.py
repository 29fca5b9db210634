"""Scores of a latent space and of clusters, and the activity of latent dimensions."""

from __future__ import annotations

import numpy as np

__all__ = [
    "ACTIVE",
    "adjusted_rand_index",
    "average_silhouette_width",
    "clustering_scores",
    "kmeans",
    "latent_activity",
    "leiden",
    "normalized_mutual_information",
]

ACTIVE = 0.01
"""A latent dimension is active above this variance of its posterior mean (Burda et al. 2016)."""


def latent_activity(latent: np.ndarray) -> np.ndarray:
    """Var over cells of E_q[z_d | x], for each latent dimension d (Burda et al. 2016, section 5.2).

    The diagonal of the covariance of the posterior means. A dimension that the encoder ignores
    has activity 0; one is active above ``ACTIVE``.

    Parameters
    ----------
    latent
        Posterior means, shape (n_cells, n_latent).
    """
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
        Clusters are made of all cells; types with fewer cells than this are not scored.
    seed
        Of k-means, of the graph and of Leiden.

    Returns
    -------
    "asw"; "kmeans_ari" and "kmeans_nmi" with as many clusters as scored types; "leiden_ari" and
    "leiden_nmi" at resolution 1.
    """
    labels = np.asarray(labels, dtype=str)
    names, counts = np.unique(labels, return_counts=True)
    scored = np.isin(labels, names[counts >= min_cells])
    latent, labels = np.asarray(latent)[scored], labels[scored]
    by_kmeans = kmeans(latent, len(np.unique(labels)), seed)
    by_leiden = leiden(latent, seed=seed)
    return {
        "asw": average_silhouette_width(latent, labels),
        "kmeans_ari": adjusted_rand_index(labels, by_kmeans),
        "kmeans_nmi": normalized_mutual_information(labels, by_kmeans),
        "leiden_ari": adjusted_rand_index(labels, by_leiden),
        "leiden_nmi": normalized_mutual_information(labels, by_leiden),
    }
