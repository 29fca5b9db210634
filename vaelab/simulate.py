"""Simulated counts with known ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from ._internal.arguments import require, require_seed

__all__ = ["cite_seq", "dataset", "profiles", "sarkar", "thin", "two_groups"]


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


def profiles(
    n_cells: int = 6000,
    n_genes: int = 1000,
    n_types: int = 3,
    background: float = 1.0,
    fold: float = 4.0,
    depth: float = 0.3,
    seed: int = 0,
):
    """A data set of counts in which each cell type has a block of genes turned up.

        s ~ log-normal(median 1, log-scale ``depth``)
        x_g ~ Poisson(s · background · fold)    if gene g is in the block of the cell's type,
              Poisson(s · background)           otherwise

    The types have equally many cells, in order, and equally many genes, up to one. With the default
    sizes, these are the three profiles of the autoencoder example of the course MCB128 (2026),
    whose own counts are not published.

    Parameters
    ----------
    n_cells, n_genes, n_types
        Number of cells, genes and cell types.
    background
        Mean count of a gene outside the block of the cell's type, in a cell of median depth.
    fold
        How many times larger the mean is inside the block.
    depth
        Standard deviation of log s: how much the depth of sequencing differs between cells.
    seed
        Random seed; the same seed gives the same data set.

    Returns
    -------
    An AnnData with counts in ``X`` (CSR), ``obs`` "cell_type" and "depth" (s), ``var`` "up_in" (the
    type in which the gene is turned up), and ``layers["mean"]``.

    Raises
    ------
    ValueError
        An argument is out of range.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    for name, value in {"n_cells": n_cells, "n_genes": n_genes, "n_types": n_types}.items():
        if not value >= 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if n_types > min(n_cells, n_genes):
        raise ValueError(
            f"n_types is {n_types}; it must be at most the number of cells and of genes, of which "
            "each type needs one."
        )
    for name, value in {"background": background, "fold": fold}.items():
        if not 0 < value < 1e6:
            raise ValueError(f"{name} is {value}; it must be above 0 and below 10⁶.")
    if not 0 <= depth < 100:
        raise ValueError(f"depth is {depth}; it must be from 0 to below 100.")
    rng = np.random.default_rng(seed)
    cell_type, up_in = (np.arange(n) * n_types // n for n in (n_cells, n_genes))
    s = np.exp(depth * rng.standard_normal(n_cells))
    mean = background * s[:, None] * np.where(cell_type[:, None] == up_in, fold, 1.0)
    names = [f"type {c + 1}" for c in range(n_types)]
    return anndata.AnnData(
        sparse.csr_matrix(rng.poisson(mean), dtype=np.float32),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical.from_codes(cell_type, names), "depth": s},
            index=[f"cell {i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(
            {"up_in": pd.Categorical.from_codes(up_in, names)},
            index=[f"gene {g}" for g in range(n_genes)],
        ),
        layers={"mean": mean.astype(np.float32)},
    )


def sarkar(kind: str = "validation", *, inverse_dispersion: float | None = None, seed: int = 0):
    """The two simulations of Sarkar (2019), in which each count has a random effect of its own.

        μ = L Fᵀ,    L and F log-normal (log-scale ½), of rank 3
        u ~ Gamma(mean 1, shape θ)
        x ~ Poisson(λ),    λ = μ u

    With the default arguments, the numbers are those of the source, bit for bit.

    Parameters
    ----------
    kind
        "validation" for θ = 0.1 and a second count that is drawn from the same λ. "imputation" for
        θ = 1 / var μ and a mask that hides 10 % of the entries.
    inverse_dispersion
        θ; None for that of the source.
    seed
        Random seed, from 0 to 2³² − 1. The source has 0.

    Returns
    -------
    An AnnData of 500 cells × 100 genes with counts in ``X`` (CSR), ``layers["mean"]`` = μ and
    ``layers["rate"]`` = λ, ``obsm["loadings"]`` = L, ``varm["factors"]`` = F, and
    ``uns["inverse_dispersion"]`` = θ. The second count is ``layers["validation"]``, and the mask is
    ``layers["observed"]``.

    Raises
    ------
    ValueError
        The kind is unknown, or a number is out of range.
    """
    import anndata
    from scipy import sparse

    if kind not in ("validation", "imputation"):
        raise ValueError(f"kind is {kind!r}; choose from ['validation', 'imputation']")
    if inverse_dispersion is not None:
        expected = "None or a number above 0"
        require("inverse_dispersion", inverse_dispersion, Real, lambda v: 0 < v < np.inf, expected)
    require_seed(seed, bits=32)
    n_cells, n_genes, rank = 500, 100, 3
    rng = np.random.RandomState(seed)  # the generator of the source
    L = rng.lognormal(sigma=0.5, size=(n_cells, rank))
    F = rng.lognormal(sigma=0.5, size=(n_genes, rank))
    mean = L @ F.T
    scale = 10 if kind == "validation" else mean.var()  # 1/θ, rounded as in the source
    theta = 0.1 if kind == "validation" else 1 / mean.var()
    if inverse_dispersion is not None:
        theta, scale = inverse_dispersion, 1 / inverse_dispersion
    rate = mean * rng.gamma(shape=theta, scale=scale, size=mean.shape)
    x = rng.poisson(rate)
    if kind == "validation":
        more = {"validation": rng.poisson(rate)}
    else:
        more = {"observed": rng.uniform(size=x.shape) < 0.9}
    return anndata.AnnData(
        sparse.csr_matrix(x, dtype=np.float32),
        obsm={"loadings": L},
        varm={"factors": F},
        layers={"mean": mean, "rate": rate, **more},
        uns={"inverse_dispersion": float(theta)},
    )


def thin(x, p: float, *, seed: int = 0):
    """Binomial thinning: each molecule goes to the first part with probability p.

    The first part is Binomial(x, p), and the two parts sum to x. If x is Poisson with rate λ, the
    parts are independent Poissons with rates pλ and (1 − p)λ. Given μ, the parts of an
    overdispersed count depend on each other, because they share its random effect. Two draws from
    one λ, as in :func:`sarkar`, do not sum to a given x.

    Parameters
    ----------
    x
        Counts, dense or scipy-sparse.
    p
        Probability that a molecule goes to the first part, from 0 to 1.
    seed
        Random seed; the same seed gives the same parts.

    Returns
    -------
    The two parts, of the shape and dtype of x; CSR if x is sparse.

    Raises
    ------
    ValueError
        A value of x is not a count, or p is not a probability.
    """
    require("p", p, Real, lambda v: 0 <= v <= 1, "a probability, from 0 to 1")
    require_seed(seed)
    in_csr = hasattr(x, "tocsr")
    x = x.tocsr() if in_csr else np.asarray(x)
    first = x.copy()
    counts = first.data if in_csr else first
    counted = counts.dtype.kind in "iuf" and np.isfinite(counts).all()
    if not (counted and (counts >= 0).all() and (counts % 1 == 0).all()):
        raise ValueError("x must hold counts: whole numbers, 0 or more, and none missing.")
    counts[...] = np.random.default_rng(seed).binomial(counts.astype(np.int64), p)
    return first, x - first


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


def cite_seq(
    rna=None,
    *,
    label: str = "cell_type",
    panel=None,
    n_proteins: int = 10,
    purity: float = 0.95,
    background: float = 20.0,
    ambient: float = 0.5,
    fold: float = 5.0,
    inverse_dispersion: float = 5.0,
    seed: int = 0,
):
    """RNA counts, simulated or real, with simulated counts of surface proteins as in CITE-seq.

        v_nt = 1 (foreground) with probability ``purity`` if type c_n has protein t, and with
               probability 1 − ``purity`` otherwise
        log β_nt = log b_t + ``ambient`` (a_n + e_nt),    a_n ~ N(0, ½), e_nt ~ N(0, ½)
        y_nt ~ NB(mean β_nt α_t^v_nt, inverse dispersion φ)

    with b_t log-normal around ``background`` (log-scale 1), and α_t − 1 log-normal around
    ``fold`` − 1 (log-scale ½). β is the background, from antibodies that are free in the droplet
    or bind to anything. a_n is shared by all proteins of a cell, e_nt is not.

    Parameters
    ----------
    rna
        An AnnData of counts with the types in ``obs[label]``. None for ``dataset(500, 300)`` with
        this seed.
    label
        Column of ``rna.obs`` with the types.
    panel
        A data frame of types × proteins that is True if the type has the protein. None for a random
        one of ``n_proteins`` proteins, each of which some types have and others do not.
    n_proteins
        Number of proteins, if there is no panel.
    purity
        Share of the cells of a type that agree with the panel.
    background
        Median of b_t, in counts per cell.
    ambient
        Standard deviation of log β within a protein.
    fold
        Median of α_t, the ratio of foreground and background.
    inverse_dispersion
        φ, of all proteins.
    seed
        Random seed; the same seed gives the same data set.

    Returns
    -------
    An AnnData whose columns are the genes and then the proteins, with counts in ``X`` (CSR), the
    columns of ``rna.obs``, ``obs["rna_total"]``, ``var["measurement"]`` ("RNA" or "protein"), and
    ``obsm``: "foreground" (v), "background" (β) and "fold" (α_t), cells × proteins.
    ``Cells.from_anndata(adata, label=…, library="rna_total")`` reads it for a model.

    Raises
    ------
    ValueError
        An argument is out of range, or the panel lacks a type.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    positive = {"background": background, "inverse_dispersion": inverse_dispersion}
    for name, value in positive.items():
        require(name, value, Real, lambda v: 0 < v < 1e6, "above 0 and below 10⁶")
    require("purity", purity, Real, lambda v: 0 <= v <= 1, "a probability, from 0 to 1")
    require("ambient", ambient, Real, lambda v: 0 <= v < 10, "from 0 to below 10")
    require("fold", fold, Real, lambda v: 1 < v < 1e6, "above 1 and below 10⁶")
    require("n_proteins", n_proteins, Integral, lambda n: n >= 1, "a whole number, at least 1")
    require_seed(seed)
    rna = dataset(500, 300, seed=seed) if rna is None else rna
    types = pd.Categorical(rna.obs[label])
    rng = np.random.default_rng([seed, 1])
    if panel is None:
        shares = rng.random((len(types.categories), n_proteins))
        panel = pd.DataFrame(shares < np.median(shares, 0), types.categories)
        panel.columns = [f"protein {t + 1}" for t in range(n_proteins)]
    if lacking := [name for name in types.categories if name not in panel.index]:
        raise ValueError(f"The panel has no row for {lacking}; each type needs one.")
    has = panel.loc[types.categories].to_numpy(bool)[types.codes]  # cells × proteins
    n, n_proteins = has.shape
    v = rng.random((n, n_proteins)) < np.where(has, purity, 1 - purity)
    b = background * np.exp(rng.standard_normal(n_proteins))
    alpha = 1 + (fold - 1) * np.exp(0.5 * rng.standard_normal(n_proteins))
    a, e = rng.standard_normal((n, 1)), rng.standard_normal((n, n_proteins))
    beta = b * np.exp(ambient * (a + e) / np.sqrt(2))
    rate = beta * np.where(v, alpha, 1) * rng.gamma(inverse_dispersion, size=v.shape)
    y = rng.poisson(rate / inverse_dispersion)
    x = sparse.csr_matrix(rna.X)
    measurement = ["RNA"] * x.shape[1] + ["protein"] * n_proteins
    return anndata.AnnData(
        sparse.hstack([x, sparse.csr_matrix(y)], format="csr", dtype=np.float32),
        obs=rna.obs.assign(rna_total=np.asarray(x.sum(1)).ravel()),
        var=pd.DataFrame({"measurement": measurement}, [*rna.var_names, *map(str, panel.columns)]),
        obsm={"foreground": v, "background": beta, "fold": np.broadcast_to(alpha, v.shape).copy()},
    )
