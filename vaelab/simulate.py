"""Simulated counts with known ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["dataset", "two_groups"]


def dataset(
    n_cells: int = 1000,
    n_genes: int = 500,
    n_types: int = 5,
    n_batches: int = 1,
    n_factors: int = 5,
    library: float = 2000.0,
    inverse_dispersion: float = 2.0,
    separation: float = 2.0,
    batch_effect: float = 0.5,
    dropout: float = 0.0,
    seed: int = 0,
):
    """A data set of counts from a negative-binomial factor model with types and batches.

        type c ~ uniform, batch b ~ uniform
        z ~ N(centre_c, I),    centre_c ~ N(0, separation² I)
        ρ = softmax(baseline + W z / √n_factors + shift_b),    W ~ N(0, ½²), baseline ~ N(0, 1.5²)
        ℓ ~ log-normal(median ``library``, log-scale 0.3)
        x_g ~ NB(mean ℓ ρ_g, inverse dispersion θ_g), then 0 with probability ``dropout``

    with θ_g log-normal around ``inverse_dispersion``.

    Parameters
    ----------
    n_cells, n_genes, n_types, n_batches
        Number of cells, genes, cell types and batches.
    n_factors
        Dimension of z, the ground truth that a model's latent space should find.
    library
        Median of the library size ℓ, in counts per cell. A smaller one gives more zeros.
    inverse_dispersion
        Median of θ over genes.
    separation
        Standard deviation of the centres, in units of the standard deviation within a type.
    batch_effect
        Standard deviation of shift_b, in nats of log ρ.
    dropout
        Probability that a count is replaced by 0.
    seed
        Random seed; the same seed gives the same data set.

    Returns
    -------
    An AnnData with counts in ``X`` (CSR), ``obs`` "cell_type", "batch" and "library" (ℓ),
    ``obsm["z"]``, ``varm["W"]``, ``var["inverse_dispersion"]`` and ``layers["mean"]`` = ℓρ.

    Raises
    ------
    ValueError
        An argument is out of range.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    sizes = {"n_cells": n_cells, "n_genes": n_genes, "n_types": n_types}
    for name, value in (sizes | {"n_batches": n_batches, "n_factors": n_factors}).items():
        if not value >= 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    for name, value in {"library": library, "inverse_dispersion": inverse_dispersion}.items():
        if not 0 < value < 1e9:
            raise ValueError(f"{name} is {value}; it must be above 0 and below 10⁹.")
    for name, value in {"separation": separation, "batch_effect": batch_effect}.items():
        if not 0 <= value < 100:
            raise ValueError(f"{name} is {value}; it must be from 0 to below 100.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it is a probability, from 0 to below 1.")
    rng = np.random.default_rng(seed)
    cell_type = rng.integers(n_types, size=n_cells)
    batch = rng.integers(n_batches, size=n_cells)
    centres = separation * rng.standard_normal((n_types, n_factors))
    z = centres[cell_type] + rng.standard_normal((n_cells, n_factors))
    W = 0.5 * rng.standard_normal((n_genes, n_factors))
    baseline = 1.5 * rng.standard_normal(n_genes)
    shift = batch_effect * rng.standard_normal((n_batches, n_genes)) * (n_batches > 1)
    log_rho = baseline + z @ W.T / np.sqrt(n_factors) + shift[batch]
    rho = np.exp(log_rho - log_rho.max(1, keepdims=True))
    rho /= rho.sum(1, keepdims=True)
    size = library * np.exp(0.3 * rng.standard_normal(n_cells))
    mean = size[:, None] * rho
    theta = inverse_dispersion * np.exp(0.5 * rng.standard_normal(n_genes))
    x = rng.poisson(mean * rng.gamma(theta, 1 / theta, size=mean.shape))
    x = x * (rng.random(x.shape) >= dropout)
    return anndata.AnnData(
        sparse.csr_matrix(x, dtype=np.float32),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type {c + 1}" for c in cell_type]),
                "batch": pd.Categorical([f"batch {b + 1}" for b in batch]),
                "library": size,
            },
            index=[f"cell {i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(
            {"inverse_dispersion": theta}, index=[f"gene {g}" for g in range(n_genes)]
        ),
        obsm={"z": z},
        varm={"W": W},
        layers={"mean": mean.astype(np.float32)},
    )


def two_groups(
    n_cells: int = 1000,
    n_genes: int = 500,
    share_changed: float = 0.2,
    log2_fold_changes: Sequence[float] = (0.5, 1.0, 2.0),
    n_factors: int = 5,
    library: float = 2000.0,
    library_ratio: float = 1.0,
    inverse_dispersion: float = 2.0,
    n_replicates: int = 1,
    replicate_effect: float = 0.0,
    seed: int = 0,
):
    """Two groups of cells, whose fold changes are known exactly.

        ρ ∝ exp(baseline + W z / √n_factors ± ½ log(2) LFC + shift_r),    z ~ N(0, I)
        ℓ ~ log-normal(log-scale 0.3)
        x_g ~ NB(mean ℓ ρ_g, inverse dispersion θ_g)

    with + in group a and − in group b; z has the same distribution in both. Changed genes come in
    pairs that share baseline and W: one is higher in group a, the other lower by as much. The sum
    over genes is then the same in both groups, and the ratio of a gene's shares is exactly 2^LFC.

    Parameters
    ----------
    n_cells, n_genes
        Number of cells, half of them in each group, and of genes.
    share_changed
        Share of the genes that change.
    log2_fold_changes
        Sizes of the changes, used in turn.
    n_factors
        Dimension of z.
    library
        Median of the library size ℓ, in counts per cell: the depth.
    library_ratio
        Median library size of group a over that of group b.
    inverse_dispersion
        Median of θ over genes.
    n_replicates
        Number of replicates, such as mice, in each group.
    replicate_effect
        Standard deviation of shift_r between replicates, in nats of log ρ. It is not part of the
        fold change.
    seed
        Random seed; the same seed gives the same data set.

    Returns
    -------
    An AnnData with counts in ``X`` (CSR), ``obs`` "group" ("a" or "b"), "replicate" and "library",
    and ``var`` "log2_fold_change" (a over b, 0 for genes that do not change) and "share" (the
    gene's mean share of the counts).

    Raises
    ------
    ValueError
        An argument is out of range.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    for name, value, low, high in (
        ("n_cells", n_cells, 2, 1e9), ("n_genes", n_genes, 2, 1e9),
        ("n_factors", n_factors, 1, 1e4),
        ("n_replicates", n_replicates, 1, n_cells // 2), ("share_changed", share_changed, 0, 1),
        ("library", library, 1, 1e9), ("library_ratio", library_ratio, 1e-3, 1e3),
        ("inverse_dispersion", inverse_dispersion, 1e-6, 1e9),
        ("replicate_effect", replicate_effect, 0, 100),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must be from {low:g} to {high:g}.")
    effects = np.atleast_1d(np.asarray(log2_fold_changes, dtype=float))
    if not effects.size or not (np.abs(effects) < 20).all():
        raise ValueError(f"log2_fold_changes is {log2_fold_changes}; give numbers below 20.")
    rng = np.random.default_rng(seed)
    in_a = np.arange(n_cells) % 2 == 0
    replicate = np.arange(n_cells) // 2 % n_replicates
    baseline = 1.5 * rng.standard_normal(n_genes)
    W = 0.5 * rng.standard_normal((n_genes, n_factors))
    n_pairs = int(share_changed * n_genes / 2)
    up, down = rng.permutation(n_genes)[: 2 * n_pairs].reshape(2, n_pairs)
    baseline[down], W[down] = baseline[up], W[up]
    lfc = np.zeros(n_genes)
    lfc[up] = np.resize(effects, n_pairs)
    lfc[down] = -lfc[up]
    shift = replicate_effect * rng.standard_normal((2, n_replicates, n_genes))
    z = rng.standard_normal((n_cells, n_factors))
    log_rho = baseline + z @ W.T / np.sqrt(n_factors) + shift[1 - in_a, replicate]
    log_rho += 0.5 * np.log(2) * lfc * np.where(in_a, 1, -1)[:, None]
    rho = np.exp(log_rho - log_rho.max(1, keepdims=True))
    rho /= rho.sum(1, keepdims=True)
    size = library * library_ratio ** np.where(in_a, 0.5, -0.5)
    size = size * np.exp(0.3 * rng.standard_normal(n_cells))
    theta = inverse_dispersion * np.exp(0.5 * rng.standard_normal(n_genes))
    x = rng.poisson(size[:, None] * rho * rng.gamma(theta, 1 / theta, size=rho.shape))
    groups = np.where(in_a, "a", "b")
    return anndata.AnnData(
        sparse.csr_matrix(x, dtype=np.float32),
        obs=pd.DataFrame(
            {
                "group": pd.Categorical(groups),
                "replicate": pd.Categorical(
                    [f"{g}{r + 1}" for g, r in zip(groups, replicate, strict=True)]
                ),
                "library": size,
            },
            index=[f"cell {i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(
            {"log2_fold_change": lfc, "share": rho.mean(0)},
            index=[f"gene {g}" for g in range(n_genes)],
        ),
    )
