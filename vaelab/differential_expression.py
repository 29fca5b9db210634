"""Differential expression between two groups of cells, with a certificate.

For a cell n, z_n ~ q(z | x_n) is drawn once, and all genes of ρ_n = ρ(z_n) come from that draw
(Lopez et al. 2018). For two groups a and b, one posterior sample of the log2 fold change is

    LFC_g = log2((ρ_ag + ε) / (ρ_bg + ε)) + η_g

================  ==============================================================================
``mode``          ρ_a
================  ==============================================================================
"groups"          Σ_n w_n ρ_n / Σ_n w_n over the cells of a, with w_n ~ Exponential(1)
"pairs"           ρ_n of one cell of a, chosen at random
================  ==============================================================================

The weights are the Bayesian bootstrap (Rubin 1981): they add the uncertainty that comes from having
these cells and not others. Without them, the mean over many cells would be almost certain.

ρ takes the decoder as known, but the decoder was fitted to the same counts and follows their noise.
With ``count_noise``, η_g ~ N(0, max(s_g² − v_g, 0)): s_g² is the variance that the log2 ratio of
the counts' own shares has over draws of cells and counts, and v_g that of the ratio of mean ρ over
draws of cells. Without it, η = 0.

With S samples, and half a count added to each side so that nothing is infinite,

    P(ρ_a > ρ_b) = (#{LFC > 0} + ½ #{LFC = 0} + ½) / (S + 1)
    log Bayes factor = log P(ρ_a > ρ_b) / P(ρ_a < ρ_b)
    P(|LFC| > δ) = (#{|LFC| > δ} + ½) / (S + 1)

This takes every fold change as equally probable in advance. But most genes hardly change, and of
many genes with LFC = 0 some lie above δ by chance. With ``count_noise``, P(|LFC| > δ) is therefore
the posterior probability under a prior that all genes share (Stephens 2017):

    m_g ~ N(LFC_g, s_g²),    LFC_g ~ π_0 δ_0 + Σ_k π_k N(0, σ_k²)

with m_g and s_g the mean and the standard deviation of the samples, and π fitted to all genes.

The expected false discovery rate is the mean of 1 − P(|LFC| > δ) over the genes that are called. It
holds only as far as the model does. ``null`` measures it: the same calls are made between groups
that do not differ. The models stay as they are, so that a null cannot show what the training on the
two groups themselves does; only a simulation with known fold changes can.

A change that the latent space does not hold is not found: if z has the same distribution in both
groups, so has ρ, whatever the counts say. Where groups are halves of one cell type and few counts
per gene differ, a test on the counts finds more. See tests/benchmarks/differential_expression.py.

The weights take each cell as a replicate: that mice differ from each other is not in the result.
:func:`pseudobulk` tests between replicates. Several models with other seeds show which calls depend
on the training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ._internal.arguments import require, require_size
from ._internal.names import index_of
from ._internal.reading import name_of
from .cells import Cells
from .models.base import Model
from .networks import evaluating
from .reparametrization import seeded

__all__ = ["differential_expression", "pseudobulk"]

LEVELS = (0.01, 0.05, 0.10)  # claimed false discovery rates at which a null is measured
WEIGHTINGS = 10  # bootstrap weightings, or pairs of cells, for each draw of z
PSEUDOCOUNT = 0.1  # counts per cell of median library size
FIRST = 10  # draws of z for a first estimate of the model's fold changes
PER = 1e4  # means are per ten thousand counts


def differential_expression(
    model: Model | Sequence[Model],
    cells: Cells,
    group,
    reference=None,
    *,
    mode: str = "groups",
    delta: float = 0.25,
    fdr: float = 0.05,
    count_noise: bool = True,
    batch: str | Sequence[str] | None = "all",
    n_samples: int = 100,
    pseudocount: float = PSEUDOCOUNT,
    null: str | None = None,
    n_nulls: int = 10,
    seed: int = 0,
    progress: bool = True,
):
    """The genes that differ between two groups of cells, in one data frame.

    If the groups change places, every log fold change changes its sign. The result does not depend
    on the order of the cells, apart from rounding. The memory does not depend on the number of
    cells.

    Parameters
    ----------
    model
        A fitted model of counts, or several that differ only in their seeds.
    cells
        The cells.
    group, reference
        The two groups: the name of a label or of a batch, several such names, a boolean mask, or
        the numbers of cells. None as the reference means all other cells.
    mode
        "groups" compares the mean expression of the groups. "pairs" compares a random cell of the
        one with a random cell of the other, so that differences within a group count too.
    delta
        Smallest change of interest, δ, in units of log2 fold change, above 0.
    fdr
        Expected false discovery rate of the genes that are called.
    count_noise
        True to widen the samples by the noise of the counts that the decoder was fitted to, and to
        use a prior of the fold changes that is fitted to all genes. False for the posterior samples
        of ρ alone, whose false discovery rates are far too low. Pairs of cells, and a group of one
        cell, are always compared without it.
    batch
        Batch in which to predict the expression of all cells, or several to average over; "all" for
        all batches of the model, None for each cell's own batch.
    n_samples
        Number of draws of z per cell. Each is used with 10 bootstrap weightings, or 10 pairs of
        cells, so that there are 10 times as many samples of the fold change.
    pseudocount
        Counts per cell of median library size that are added to both means, which gives ε. Fold
        changes of genes with much smaller means shrink to 0. A larger one loses changes of genes
        with few counts; a smaller one makes the fold changes of genes without counts large.
    null
        How to make groups that do not differ: "split" for random parts of the larger group, or
        "permutation" for the labels of both groups permuted. Both keep how many cells of each batch
        are in each group. None for no measurement.
    n_nulls
        Number of splits or permutations.
    seed
        Random seed for all draws.
    progress
        True for a progress bar.

    Returns
    -------
    A pandas DataFrame, with the gene names as index and the most certain changes first.

    ========================================  ====================================================
    column                                    what it is
    ========================================  ====================================================
    lfc, lfc_low, lfc_high                    median log2 fold change, group over reference, and
                                              its 95 % interval
    p_higher                                  P(ρ_group > ρ_reference)
    log_bayes_factor                          natural logarithm of p_higher / (1 − p_higher)
    p_change                                  P(\\|LFC\\| > δ); with ``count_noise``, under a prior
                                              that is fitted to all genes
    fdr                                       expected false discovery rate of this gene and all
                                              above it
    called                                    True if that is at most ``fdr``
    mean_group, mean_reference                mean of ρ, per ten thousand counts
    observed_group, observed_reference        counts of the gene per ten thousand of all genes
    detected_group, detected_reference        share of the cells with a count of the gene
    agreement, stable                         with several models: share of them that call the gene;
                                              True if all agree
    fdr_null                                  with ``null``: false discovery rate of this gene and
                                              all above it, if as many are false as in the null
    ========================================  ====================================================

    With ``null``, ``attrs["null"]`` holds what was measured at each ``claimed`` rate: the number of
    ``calls``, the mean number of ``false_calls`` in a null, their ratio ``measured``, and
    ``any_call``, the share of nulls in which a gene is called.

    Raises
    ------
    TypeError
        The model is not one, or the groups are neither names, a mask nor numbers.
    ValueError
        A group is empty or unknown, a cell is in both, an option is out of range, the model has no
        shares ρ, or the labels cannot be permuted within batches.

    References
    ----------
    Lopez et al. 2018 (Bayes factors); Boyeau et al. 2023 (P(|LFC| > δ) and expected false discovery
    rates); Rubin 1981 (Bayesian bootstrap); Stephens 2017 (a prior that all genes share).
    """
    import pandas as pd
    from tqdm import tqdm

    models = [model] if isinstance(model, Model) else [*model]
    _require_options(models, mode, delta, fdr, pseudocount, null, n_samples, n_nulls)
    rows, in_group = _two_groups(cells, group, reference)
    order = np.lexsort(models[0].embed(cells[rows]).T)  # one order, whatever that of the cells
    cells, in_group = cells[rows[order]], in_group[order]
    count_noise = count_noise and mode == "groups" and min(in_group.sum(), (~in_group).sum()) > 1
    turned = not in_group[0]  # computed in one direction only, so that signs are exactly opposite
    masks = _null_masks(in_group ^ turned, cells.batch.cpu().numpy(), null, n_nulls, seed)
    task = _Task(cells, torch.from_numpy(masks), mode, n_samples, pseudocount)
    bar = tqdm(
        total=len(models) * n_samples, unit="draw", disable=not progress, file=sys.stdout,
        leave=False,
    )  # fmt: skip
    counts = _Counts(task)
    samples, means, in_null = [], [], _Moments(delta, count_noise)
    with bar, seeded(seed):
        for one in models:
            blocks, mean = [], 0.0
            for lfc, shares in task.draws(one, batch, counts if count_noise else None):
                blocks.append(lfc[0])
                in_null.add(lfc[1:])
                mean = mean + shares / n_samples
                bar.update()
            samples.append(torch.cat(blocks).cpu().numpy())  # (10 n_samples, G)
            means.append(mean.cpu().numpy())
    sign = -1 if turned else 1

    def summary(lfc: np.ndarray) -> dict[str, np.ndarray]:
        found, p = _summary(lfc), _Moments(delta, count_noise)
        for block in np.array_split(lfc, n_samples):  # in float64, a few samples at a time
            p.add(block[None])
        return found | {"p_change": p.p_change()[0]}

    table = summary(sign * np.concatenate(samples))
    names = ("reference", "group") if turned else ("group", "reference")
    for i, name in enumerate(names):
        table[f"mean_{name}"] = PER * np.mean(means, axis=0)[i]
        table[f"observed_{name}"] = PER * counts.share[i]
        table[f"detected_{name}"] = counts.detected[i]
    table = pd.DataFrame(table, index=pd.Index(cells.gene_names, name="gene"))
    if len(models) > 1:
        calls = [expected_fdr(summary(one)["p_change"]) <= fdr for one in samples]
        table["agreement"] = np.mean(calls, axis=0)
        table["stable"] = table["agreement"].isin([0.0, 1.0])
    table["fdr"] = expected_fdr(table["p_change"].to_numpy())
    table["called"] = table["fdr"] <= fdr
    columns = [*COLUMNS, "agreement", "stable"]
    if null is not None:
        p_null = in_null.p_change()  # (n_nulls, G)
        table["fdr_null"] = _fdr_in_null(table["p_change"].to_numpy(), p_null)
        table.attrs["null"] = {"kind": null, "n_nulls": n_nulls} | _certificate(
            table["fdr"].to_numpy(), p_null
        )
        columns.append("fdr_null")
    attributes = table.attrs
    order = np.lexsort([-table["lfc"].abs(), -table["p_change"]])
    table = table.iloc[order][[name for name in columns if name in table]]
    table.attrs = attributes | {"delta": float(delta), "level": float(fdr)}
    return table


COLUMNS = (
    "lfc", "lfc_low", "lfc_high", "p_higher", "log_bayes_factor", "p_change", "fdr", "called",
    "mean_group", "mean_reference", "observed_group", "observed_reference", "detected_group",
    "detected_reference",
)  # fmt: skip


@dataclass
class _Task:
    """Cells, and who is in which group: first the question itself, then the nulls.

    ``masks`` has shape (1 + n_nulls, 2, n_cells).
    """

    cells: Cells
    masks: Tensor
    mode: str
    n_samples: int
    pseudocount: float

    @property
    def added(self) -> float:
        """ε, the share that is added to both means."""
        return self.pseudocount / self.cells.library.median().item()

    @torch.no_grad()
    def draws(self, model: Model, batch, counts: _Counts | None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each draw of z: LFC, (1 + n_nulls, 10, G), and the mean ρ of both groups, (2, G).

        With ``counts``, LFC is widened by their noise.
        """
        at_once = max(1, 2**22 // model.n_values)  # cells: 16 MiB for each float32 tensor
        parts = torch.arange(len(self.cells)).split(at_once)
        batches = _batches(model, batch)
        masks = self.masks.to(model.device, model.dtype)
        with evaluating(model):
            posteriors = [  # q(z | x) of each part; ρ needs no more of the cells than their batch
                model.encode(self.cells[rows].unlabelled().to(model.device, model.dtype))
                for rows in parts
            ]

            def draw_z() -> Tensor:
                return torch.cat([q.sample() for q in posteriors])  # (n_cells, n_latent)

            noise = None
            if counts is not None:
                of_model = self._variance(model, draw_z, masks, batches, parts).double().cpu()
                noise = (counts.variance - of_model).clamp(min=0).sqrt()[:, None].to(masks)
            draw = self._of_groups if self.mode == "groups" else self._of_pairs
            for _ in range(self.n_samples):
                ρ = draw(model, draw_z(), masks, batches, parts)  # (1 + n_nulls, 2, 10, G)
                log_ρ = (ρ + self.added).log2()
                lfc = log_ρ[:, 0] - log_ρ[:, 1]
                if noise is not None:
                    lfc = lfc + noise * torch.randn_like(lfc)
                yield lfc, ρ[0].mean(1)

    def _variance(self, model, draw_z, masks, batches, parts) -> Tensor:
        """The variance of the LFC of mean ρ if other cells were drawn; (1 + n_nulls, G)."""
        total, squares = 0.0, 0.0
        for _ in range(FIRST):
            z = draw_z()
            for rows in parts:
                ρ = self._shares(model, z, rows, batches)
                total = total + masks[:, :, rows] @ ρ / FIRST
                squares = squares + masks[:, :, rows] @ ρ**2 / FIRST
        n = masks.sum(-1, keepdim=True)
        mean = total / n
        variance = (squares / n - mean**2).clamp(min=0) / (n - 1)
        return _variance_of_log_ratio(mean, variance, self.added)

    def _of_groups(self, model, z, masks, batches, parts) -> Tensor:
        """Weighted means of ρ over the cells of each group, with 10 weightings."""
        total, weight = 0.0, 0.0
        for rows in parts:
            w = torch.empty(WEIGHTINGS, len(rows)).to(z).exponential_()
            w = masks[:, :, None, rows] * w  # (1 + n_nulls, 2, 10, cells of the part)
            total = total + w @ self._shares(model, z, rows, batches)
            weight = weight + w.sum(-1, keepdim=True)
        return total / weight

    def _of_pairs(self, model, z, masks, batches, parts) -> Tensor:
        """ρ of 10 random cells of each group."""
        chosen = torch.multinomial(masks.flatten(0, 1), WEIGHTINGS, replacement=True).cpu()
        unique, at = chosen.unique(return_inverse=True)
        return self._shares(model, z, unique, batches)[at].unflatten(0, masks.shape[:2])

    def _shares(self, model, z, rows, batches) -> Tensor:
        """ρ of some cells, averaged over batches; (cells, G)."""
        total = 0.0
        for b in batches:
            b = self.cells.batch[rows] if b is None else b
            p = model.decode(z[rows], model.blank_cells(len(rows), 1.0, b))
            total = total + getattr(p, "base", p).mean  # not zero-inflated
        return total / len(batches)


def _variance_of_log_ratio(mean: Tensor, variance: Tensor, added: float) -> Tensor:
    """The variance of the log2 ratio of two means, to first order; (…, 2, G) to (…, G)."""
    return (variance / ((mean + added) * np.log(2)) ** 2).sum(-2)


class _Counts:
    """What the counts say without the model.

    Attributes
    ----------
    share, detected
        Counts over library sizes, and share of cells with a count, of both groups; (2, G).
    variance
        Variance of the log2 fold change of the shares, if other cells of the same batches and other
        counts of them were drawn; (1 + n_nulls, G).
    """

    def __init__(self, task: _Task):
        cells, masks = task.cells, task.masks.double()
        of_all, squares = 0.0, 0.0
        for b in cells.batch.unique():
            sums = 0.0
            for rows in torch.nonzero(cells.batch == b)[:, 0].split(max(1, 2**20 // cells.n_genes)):
                part = cells[rows].to("cpu", torch.float64)
                seen = torch.ones_like(part.x) if part.observed is None else part.observed.double()
                x, size = part.x, part.library[:, None] * seen
                values = (x, size, seen, (x > 0).double(), x * x, x * size, size * size)
                sums = sums + torch.stack([masks[:, :, rows] @ v for v in values])
            of_all = of_all + sums[:4]
            Σx, Σℓ, n, _, Σxx, Σxℓ, Σℓℓ = sums  # (1 + n_nulls, 2, G) each
            m = Σx / Σℓ.clamp(min=1e-300)
            squares = squares + (Σxx - 2 * m * Σxℓ + m * m * Σℓℓ) * n / (n - 1).clamp(min=1)
        Σx, Σℓ, n, n_detected = of_all
        Σℓ = Σℓ.clamp(min=1e-300)
        self.share, self.detected = (Σx / Σℓ)[0].numpy(), (n_detected / n.clamp(min=1))[0].numpy()
        pooled = (Σx.sum(1, keepdim=True) + 0.5) / Σℓ.sum(1, keepdim=True)
        variance = torch.maximum(squares / Σℓ**2, pooled / Σℓ)  # at least that of a Poisson
        self.variance = _variance_of_log_ratio(Σx / Σℓ, variance, task.added)


class _Moments:
    """P(|LFC| > δ) from samples that come in blocks, (…, samples, G), and are not kept."""

    def __init__(self, delta: float, with_prior: bool):
        self.delta, self.with_prior = delta, with_prior
        self.n, self.beyond, self.sum, self.squares = 0, 0.0, 0.0, 0.0

    def add(self, lfc) -> None:
        lfc = torch.as_tensor(lfc).double()
        self.n += lfc.shape[-2]
        self.beyond = self.beyond + (lfc.abs() > self.delta).sum(-2)
        self.sum, self.squares = self.sum + lfc.sum(-2), self.squares + lfc.square().sum(-2)

    def p_change(self) -> np.ndarray:
        """Shape (…, G)."""
        p = np.asarray(((self.beyond + 0.5) / (self.n + 1)).cpu())
        if self.with_prior:
            mean = (self.sum / self.n).cpu().numpy()
            std = (self.squares.cpu().numpy() / self.n - mean**2).clip(0) ** 0.5
            p = np.array([_p_with_prior(m, s, self.delta) for m, s in zip(mean, std, strict=True)])
            p = p.clip(0.5 / (self.n + 1), 1 - 0.5 / (self.n + 1))  # the samples say no more
        return p


def _p_with_prior(mean: np.ndarray, std: np.ndarray, delta: float) -> np.ndarray:
    """P(|LFC| > δ) of each gene, under a prior fitted to all genes; shapes (G,).

    The prior is a mixture of a point at 0 and normal distributions around 0. EM finds its weights;
    the point at 0 has 9 genes more than are seen, as in Stephens (2017).
    """
    from scipy.special import ndtr

    σ = np.append(0, 0.1 * 2 ** np.arange(0, 6.5, 0.5))  # (K,), up to 6.4
    std = std.clip(0.01)[:, None]
    variance = std**2 + σ**2  # (G, K)
    log_density = -0.5 * (mean[:, None] ** 2 / variance + np.log(variance))
    density = np.exp(log_density - log_density.max(1, keepdims=True))
    π = np.full(len(σ), 1 / len(σ))
    for _ in range(200):
        of_gene = π * density
        of_gene /= of_gene.sum(1, keepdims=True)
        π = of_gene.sum(0) + 9 * (σ == 0)
        π /= π.sum()
    m, s = σ**2 / variance * mean[:, None], (σ * std / variance**0.5).clip(1e-9)
    return (of_gene * (ndtr((m - delta) / s) + ndtr((-m - delta) / s))).sum(1)


def _summary(lfc: np.ndarray) -> dict[str, np.ndarray]:
    """What the samples of the log fold change say about each gene; lfc has shape (S, G)."""
    S = len(lfc)
    higher = (lfc > 0).sum(0) + 0.5 * (lfc == 0).sum(0)
    lower = S - higher
    in_order = np.sort(lfc, axis=0)
    tail = int(0.025 * S)
    return {
        "lfc": (in_order[(S - 1) // 2] + in_order[S // 2]) / 2,
        "lfc_low": in_order[tail],
        "lfc_high": in_order[S - 1 - tail],
        "p_higher": (higher + 0.5) / (S + 1),
        "log_bayes_factor": np.log(higher + 0.5) - np.log(lower + 0.5),
    }


def expected_fdr(p_change: np.ndarray) -> np.ndarray:
    """For each gene, the mean of 1 − p over the genes whose p is at least as large."""
    p = np.asarray(p_change, dtype=float)
    order = np.argsort(-p, kind="stable")
    mean = np.cumsum(1 - p[order]) / np.arange(1, len(p) + 1)
    n_as_large = np.searchsorted(-p[order], -p, side="right")  # of equal ones, all or none
    return mean[n_as_large - 1]


def _fdr_in_null(p: np.ndarray, p_null: np.ndarray) -> np.ndarray:
    """For each gene, (mean number of genes in a null with such a p) / (number here), at most 1."""
    order = np.argsort(-p, kind="stable")
    here = np.searchsorted(-p[order], -p[order], side="right")
    there = np.searchsorted(np.sort(-p_null.ravel()), -p[order], side="right") / len(p_null)
    fdr = np.empty(len(p))  # a longer list with a lower rate includes the shorter one
    fdr[order] = np.minimum.accumulate(np.minimum(there / here, 1)[::-1])[::-1]
    return fdr


def _certificate(fdr: np.ndarray, p_null: np.ndarray) -> dict[str, list]:
    """Claimed and measured false discovery rates, as plain lists that a file can hold."""
    fdr_null = np.array([expected_fdr(p) for p in p_null])
    calls = [int((fdr <= level).sum()) for level in LEVELS]
    in_null = [(fdr_null <= level).sum(1) for level in LEVELS]  # (n_nulls,) for each level
    false_calls = [float(n.mean()) for n in in_null]
    return {
        "claimed": [*LEVELS],
        "calls": calls,
        "false_calls": false_calls,
        "measured": [
            float(min(1, f / max(n, f))) if f else 0.0
            for f, n in zip(false_calls, calls, strict=True)
        ],
        "any_call": [float((n > 0).mean()) for n in in_null],
    }


def _batches(model: Model, batch) -> list[int | None]:
    """The indices of the batches to predict in; None for each cell's own."""
    n_batches = model.configuration.get("n_batches", 1)
    if batch is None:
        return [None]
    if isinstance(batch, str) and batch == "all":
        return [*range(n_batches)]
    if "n_batches" not in model.configuration:
        raise ValueError(f"batch is {batch!r}, but a {type(model).__name__} has no batches.")
    names = [batch] if np.ndim(batch) == 0 else [*batch]
    if not names:
        raise ValueError('batch is empty; name one or more, "all", or None for each cell\'s own.')
    return [index_of("batch", name, model.batch_names) for name in names]


def _require_options(models, mode, delta, fdr, pseudocount, null, n_samples, n_nulls) -> None:
    if not models or not all(isinstance(one, Model) for one in models):
        raise TypeError("model must be a fitted model, or a list of fitted models.")
    for one in models:
        if one.domain != "counts":
            raise ValueError(
                f"The likelihood is {one.configuration.get('likelihood')!r}, which has no shares ρ "
                "of the counts; differential expression needs a count likelihood, such as 'nb'."
            )
    if mode not in ("groups", "pairs"):
        raise ValueError(f"mode is {mode!r}; choose from ['groups', 'pairs']")
    if null not in (None, "split", "permutation"):
        raise ValueError(f"null is {null!r}; choose from ['split', 'permutation'], or None")
    positive = "a finite number above 0"
    require("delta", delta, Real, lambda d: 0 < d < np.inf, positive)
    require("pseudocount", pseudocount, Real, lambda c: 0 < c < np.inf, positive)
    require("fdr", fdr, Real, lambda level: 0 < level < 1, "between 0 and 1")
    require_size("n_samples", n_samples)
    require_size("n_nulls", n_nulls)


def _two_groups(cells: Cells, group, reference) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the cells of both groups in order, and which of them are in the group."""
    if not isinstance(cells, Cells):
        raise TypeError(
            f"Expected Cells, not {type(cells).__name__}: make them with Cells.from_anndata(adata)."
        )
    in_group = _members(cells, group, "group")
    in_reference = ~in_group if reference is None else _members(cells, reference, "reference")
    if not in_reference.any():
        raise ValueError("group holds all the cells, so that none is left for the reference.")
    if (both := np.flatnonzero(in_group & in_reference)).size:
        raise ValueError(
            f"{both.size:,} cells are in both group and reference, for example number {both[0]}; a "
            "cell can be in one of them only."
        )
    rows = np.flatnonzero(in_group | in_reference)
    return rows, in_group[rows]


def _members(cells: Cells, which, name: str) -> np.ndarray:
    """A mask of the cells of a group, shape (n_cells,)."""
    values = np.atleast_1d(which.cpu() if isinstance(which, Tensor) else which)
    mask = np.zeros(len(cells), dtype=bool)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "biuUOS"):
        raise TypeError(
            f"{name} has shape {values.shape} and dtype {values.dtype}; give the name of a label "
            "or a batch, a boolean mask, or the numbers of cells."
        )
    if values.dtype.kind == "O" and values.size and all(isinstance(v, bool) for v in values):
        values = values.astype(bool)
    if values.dtype.kind == "b":
        if len(values) != len(cells):
            raise ValueError(f"{name} is a mask of {len(values):,} for {len(cells):,} cells.")
        mask = values.copy()
    elif values.dtype.kind in "iu":
        if (outside := values[(values < 0) | (values >= len(cells))]).size:
            raise ValueError(
                f"{name} has cell number {outside[0]}; the {len(cells):,} cells have numbers from "
                f"0 to {len(cells) - 1:,}."
            )
        mask[values] = True
    else:
        for value in values:
            mask |= _named(cells, value, name)
    if not mask.any():
        shown = f" is {which!r}: it" if values.dtype.kind in "UOS" else ""
        raise ValueError(f"{name}{shown} holds none of these cells.")
    return mask


def _named(cells: Cells, value, name: str) -> np.ndarray:
    """A mask of the cells of one label or batch."""
    label = name_of(value)
    has_label, has_batch = label in cells.label_names, label in cells.batch_names
    if has_label and has_batch:
        raise ValueError(f"{name} is {label!r}, which is a label and also a batch: give a mask.")
    if not has_label and not has_batch:
        known = [*cells.label_names, *(cells.batch_names if len(cells.batch_names) > 1 else ())]
        raise ValueError(
            f"{name} is {label!r}; these cells have the labels and batches {', '.join(known)}."
            if known
            else f"{name} is {label!r}, but these cells have no labels: give a mask, or name their "
            "column, Cells.from_anndata(adata, label=…)."
        )
    index = (cells.label_names if has_label else cells.batch_names).index(label)
    return ((cells.label if has_label else cells.batch) == index).cpu().numpy()


def _null_masks(in_first, batch, null: str | None, n_nulls: int, seed: int) -> np.ndarray:
    """Masks of both groups, and of groups that do not differ: (1 + n_nulls, 2, n_cells)."""
    masks = [np.array([in_first, ~in_first])]
    if null is None:
        return np.array(masks)
    rng = np.random.default_rng(seed)
    if null == "permutation":
        used = np.ones(len(in_first), dtype=bool)
    else:  # the larger group; the first one of two equal ones
        used = in_first if in_first.sum() >= len(in_first) / 2 else ~in_first
    strata = [np.flatnonzero(used & (batch == b)) for b in np.unique(batch[used])]
    if null == "permutation" and not any(0 < in_first[rows].mean() < 1 for rows in strata):
        raise ValueError(
            "Each batch has cells of one group only, so that permuting the labels within batches "
            'changes nothing. Use null="split".'
        )
    if null == "split" and used.sum() < 2:
        raise ValueError("Both groups have one cell only, which cannot be split.")
    for _ in range(n_nulls):
        first = np.zeros(len(in_first), dtype=bool)
        if null == "permutation":
            for rows in strata:
                first[rows] = rng.permutation(in_first[rows])
        else:
            shuffled = np.concatenate([rng.permutation(rows) for rows in strata])
            n = round(used.sum() * in_first.mean())
            n = min(max(n, 1), used.sum() - 1)
            # Every batch in the same proportion: the k-th of n among N when k n / N passes a number
            at = np.arange(1, len(shuffled) + 1) * n // len(shuffled)
            first[shuffled[np.diff(at, prepend=0) > 0]] = True
        masks.append(np.array([first, used & ~first]))
    return np.array(masks)


def pseudobulk(cells: Cells, group, reference, replicate):
    """Welch's t-test between replicates, such as mice, and not between cells.

    The counts of all cells of a replicate are summed. Its log2 share of each gene, with half a
    count added to the gene, is one value. This is the test that is valid if cells of one replicate
    resemble each other more than cells of different replicates (Squair et al. 2021).

    Parameters
    ----------
    cells, group, reference
        Same as in :func:`differential_expression`.
    replicate
        Name of each cell's replicate, shape (n_cells,).

    Returns
    -------
    A pandas DataFrame with the gene names as index and the smallest p values first: "lfc", the
    difference of the mean log2 shares; "p_value", two-sided; "q_value", by Benjamini and Hochberg.

    Raises
    ------
    ValueError
        A group has cells of fewer than two replicates.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control, ttest_ind

    rows, in_group = _two_groups(cells, group, reference)
    replicate = np.asarray(replicate).astype(str)
    if replicate.shape != (len(cells),):
        raise ValueError(f"replicate has shape {replicate.shape} for {len(cells):,} cells.")
    log_shares = []
    for name, mask in (("group", in_group), ("reference", ~in_group)):
        found = np.unique(replicate[rows[mask]])
        if len(found) < 2:
            raise ValueError(
                f"The {name} has cells of {len(found)} replicate; a test needs two or more."
            )
        sums = [
            cells[rows[mask & (replicate[rows] == one)]].to("cpu", torch.float64) for one in found
        ]
        log_shares.append(
            [np.log2((part.x.sum(0).numpy() + 0.5) / part.library.sum().item()) for part in sums]
        )
    a, b = map(np.array, log_shares)  # (replicates, G)
    with np.errstate(all="ignore"):  # a gene without counts has the same value in all replicates
        p = ttest_ind(a, b, equal_var=False).pvalue
    p = np.where(np.isnan(p), 1.0, p)
    table = {"lfc": a.mean(0) - b.mean(0), "p_value": p, "q_value": false_discovery_control(p)}
    index = pd.Index(cells.gene_names, name="gene")
    return pd.DataFrame(table, index=index).sort_values("p_value", kind="stable")
