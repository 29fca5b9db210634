"""VEGA: a VAE whose decoder is one layer, masked by gene sets (Seninge et al. 2021).

Generative model, for each cell with library size ℓ:

    z ~ N(0, I)                        one dimension per gene set, and ``n_free`` more
    a = (W ∘ M) z + b                  M_gk = 1 if gene g is in set k, or if k is free, else 0
    x_g ~ p(x_g | a, ℓ)                a likelihood of vaelab.likelihoods

Variational model and bound: those of :class:`vaelab.VAE` (Kingma & Welling 2014, equation 3):

    log p(x) ≥ E_q[log p(x | z)] − KL(q(z | x) ‖ p(z))

=============  ================================================================
symbol         where
=============  ================================================================
M              ``likelihood.output.mask``, from ``gene_sets``
W, b           ``likelihood.output``
W ≥ 0          ``after_step()``: negative weights become 0
p(x | z, ℓ)    ``decode(z, cells)``; there is no hidden layer
the bound      ``elbo(cells)``
which is on    ``activity(cells)`` and ``differential_activity(cells, group)``
=============  ================================================================

The box that changes is the decoder: z_k can only move the genes of set k, so that it has the name
of the set. W ≥ 0 fixes its sign: if z_k is high, the genes of the set are high.

The paper has the squared error of log-normalised values, a small weight of the KL and dropout of
z. Here the likelihood is a choice, and the weight is 1. ``likelihood="normal"`` on log-normalised
values is the nearest. If a count likelihood has ρ = softmax(a), the genes outside of the set keep
their proportions to each other, but all of their shares fall as those of the set rise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ..._internal.arguments import require_size
from ...cells import Cells
from ...networks import evaluating
from ...reparametrization import seeded
from ..vae import VAE
from .parts import Masked

__all__ = ["VEGA"]


class VEGA(VAE):
    """VAE with one latent dimension per gene set and a masked linear decoder.

    Parameters
    ----------
    n_genes
        Number of genes, G.
    gene_sets
        For the name of each set, the numbers of its genes: see :meth:`from_names`.
    n_free
        Number of latent dimensions that all genes depend on, for what no set explains.
    positive
        True for weights W ≥ 0, as in the authors' code. False leaves their signs free.
    likelihood
        Name of a likelihood in ``vaelab.LIKELIHOODS``.
    n_hidden, n_layers, dropout_rate, library, normalization, seed
        Same as in :class:`vaelab.VAE`; the hidden layers are those of the encoder.

    Raises
    ------
    ValueError
        No gene set is given, a set is empty or has the number of an unknown gene, or an option is
        out of range.
    """

    graph = {
        "z_k": {"at": (0, 1.4), "q": ("x_g",), "plates": ("cells", "sets")},
        "ℓ": {"at": (1.3, 1.4), "observed": True, "plates": ("cells",)},
        "x_g": {"at": (0, 0), "p": ("z_k", "ℓ"), "observed": True, "plates": ("cells", "genes")},
    }

    def __init__(
        self, n_genes: int, *, gene_sets: Mapping[str, Sequence[int]], n_free: int = 1,
        positive: bool = True, likelihood: str = "nb", n_hidden: int = 128, n_layers: int = 1,
        dropout_rate: float = 0.1, library: str = "observed", normalization: str | None = "batch",
        seed: int = 0,
    ):  # fmt: skip
        mask = mask_of(gene_sets, n_genes, n_free)  # (n_genes, n_sets + n_free)
        super().__init__(
            n_genes, n_latent=mask.shape[1], n_hidden=n_hidden, n_layers=n_layers,
            dropout_rate=dropout_rate, likelihood=likelihood, library=library,
            normalization=normalization, seed=seed,
        )  # fmt: skip
        self.decoder = nn.Identity()
        n_outputs = self.likelihood.output.out_features // n_genes  # such as dropout logits
        with seeded(seed):
            self.likelihood.output = Masked(mask.repeat(n_outputs, 1))
        self.set_names, self.positive = tuple(gene_sets), positive
        if positive:
            self.likelihood.output.weight.data[:n_genes].abs_()

    @classmethod
    def from_names(cls, cells: Cells, gene_sets: Mapping[str, Sequence[str]], **options) -> VEGA:
        """A model for these cells, from the names of genes; those that cells lack are left out."""
        number = {name: i for i, name in enumerate(cells.gene_names)}
        known = {k: [number[g] for g in genes if g in number] for k, genes in gene_sets.items()}
        if lost := [name for name, found in known.items() if not found]:
            raise ValueError(f"None of the genes of {lost[0]!r} is a gene of these cells.")
        return cls(cells.n_genes, gene_sets=known, **options)

    @torch.no_grad()
    def after_step(self) -> None:
        """W ≥ 0 in the rows of the means: the other outputs have no sign that means "on"."""
        if self.positive:
            self.likelihood.output.weight[: self.configuration["n_genes"]].clamp_(min=0)

    def activity(self, cells: Cells):
        """E_q[z_k | x] of each cell, as a data frame with one column per gene set.

        0 is the average of the prior. Unless ``positive``, the sign is that of the mean weight.
        """
        import pandas as pd

        weight = (self.likelihood.output.weight * self.likelihood.output.mask).detach()
        mean = weight[: self.configuration["n_genes"]].mean(0).cpu().numpy()
        activity = self.embed(cells) * np.where(mean < 0, -1, 1)
        return pd.DataFrame(activity[:, : len(self.set_names)], columns=[*self.set_names])

    def differential_activity(self, cells: Cells, group):
        """Which sets differ between a group, a boolean mask, and all other cells.

        Returns
        -------
        A data frame, with the names of the sets as index: ``p_higher``, the probability that z_k
        of a random cell of the group is above that of a random other cell; ``log_bayes_factor``,
        log p_higher / (1 − p_higher). The paper draws pairs. Here the mean over all pairs is exact,
        because the difference of two normal z_k is normal. It needs memory for n_group × n_others
        numbers. The signs are those of z.
        """
        import pandas as pd

        group, n = torch.as_tensor(np.asarray(group, dtype=bool)), len(self.set_names)
        if group.shape != (len(cells),) or group.all() or not group.any():
            raise ValueError("group must be a mask with True for some of the cells, not for all.")
        self.require_compatible(cells)
        with evaluating(self):
            q = self.encode(cells.unlabelled().to(self.device, self.dtype))
        m, v = q.mean.double().cpu()[:, :n], q.variance.double().cpu()[:, :n]
        gap = torch.stack([  # one set at a time: n_group × n_others
            torch.special.ndtr(
                (m[group, None, k] - m[~group, k]) / (v[group, None, k] + v[~group, k]).sqrt()
            ).mean()
            for k in range(n)
        ])  # fmt: skip
        table = {"p_higher": gap, "log_bayes_factor": gap.logit()}
        return pd.DataFrame(table, index=pd.Index(self.set_names, name="gene set"))


def mask_of(gene_sets: Mapping[str, Sequence[int]], n_genes: int, n_free: int) -> torch.Tensor:
    """M, of shape (n_genes, n_sets + n_free)."""
    require_size("n_genes", n_genes)
    if not (
        isinstance(gene_sets, Mapping) and gene_sets and isinstance(n_free, int) and n_free >= 0
    ):
        raise ValueError(
            "VEGA needs a gene set or more, by name with its numbers of genes, and n_free from 0; "
            f"got gene_sets={str(gene_sets)[:60]} and n_free={n_free!r}."
        )
    mask = torch.ones(n_genes, len(gene_sets) + n_free)
    for k, (name, genes) in enumerate(gene_sets.items()):
        if not genes or not {*genes} <= {*range(n_genes)}:
            raise ValueError(
                f"The gene set {name!r} needs one gene or more, as numbers from 0 to "
                f"{n_genes - 1}; got {[*genes]}."
            )
        mask[:, k] = 0
        mask[list(genes), k] = 1
    return mask
