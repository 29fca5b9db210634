"""The fair VAE: SCANVI whose latent space must not tell the batches apart (Louizos et al. 2016).

Generative and variational model: those of :mod:`vaelab.models.scanvi`, with an observed library
size. The nuisance variable s is the batch γ; encoder and decoder both receive it
(Louizos et al. 2016, section 2.2):

    z2 ~ N(0, I),  y ~ Cat(p(y)),  z1 | z2, y ~ N(f(z2, y), diag g(z2, y)),  x | z1, s
    q(z1 | x, s) q(y | z1) q(z2 | z1, y)

The bounds are SCANVI's. One more term is trained and is part of no bound: the maximum mean
discrepancy (MMD) between the batches (section 2.3). For two batches it is

    ‖ E_{x | s=0} E_{q(z1|x,s=0)}[ψ(z1)] − E_{x | s=1} E_{q(z1|x,s=1)}[ψ(z1)] ‖²

and for more the sum over batches of the same between the batch and all cells. The features ψ are
those of a Gaussian kernel exp(−‖a − b‖²/γ) (random Fourier features; Rahimi & Recht 2007):

    ψ(z) = √(2/D) cos(√(2/γ) z W + b),    W ~ N(0, I),  b ~ U(0, 2π)

W and b are drawn once for each model. The expectation over a Gaussian q has a closed form,

    E_{N(m, diag v)}[cos(z w + b)] = cos(m w + b) exp(−½ v w²)

so that nothing is drawn. The expectations over x are means over the cells of a minibatch.

=================  ============================================================
symbol             where
=================  ============================================================
√(2/γ) W, b        ``frequencies``, ``phases``; γ is ``bandwidth``
MMD                ``penalties(cells, q_z1)``
all others         :mod:`vaelab.models.scanvi`
=================  ============================================================

z1 cannot be told from its batch only if the types are equally frequent in all batches. If they are
not, the penalty works against the labels.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch.distributions import Distribution

from ..._internal.arguments import require, require_size
from ..._internal.processes import total
from ...bounds import Term
from ...cells import Cells
from ...reparametrization import seeded
from ..scanvi import SCANVI

__all__ = ["FairVAE"]

SOURCE = "Louizos et al. 2016, section 2.3"


class FairVAE(SCANVI):
    """SCANVI with a penalty on what the latent space says about the batch.

    Parameters that are not listed are the same as in :class:`vaelab.SCANVI`.

    Parameters
    ----------
    n_batches
        Number of batches, at least 2: ``len(cells.batch_names)``.
    encode_batch
        True if the encoder receives the batch as input too, as in the paper.
    mmd_weight
        Weight of the MMD, where the bound of a cell weighs 1; 0 for none.
    n_features
        Number of random Fourier features, D.
    bandwidth
        The bandwidth γ of the kernel; None for twice the number of latent dimensions, which is the
        mean squared distance of two cells of the prior p(z2).

    Raises
    ------
    ValueError
        Same as in :class:`vaelab.SCANVI`, or there is a single batch, or a number is out of range.
    """

    graph = SCANVI.graph | {  # for plotting.graphical_model
        "z1": {"at": (0, 2.4), "p": ("z2", "c"), "q": ("x_g", "γ"), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "observed": True, "plates": ("cells",)},
    }

    def __init__(
        self, n_genes: int, *, n_labels: int, n_batches: int, mmd_weight: float = 100.0,
        n_features: int = 500, bandwidth: float | None = None, encode_batch: bool = True,
        n_latent: int = 10, seed: int = 0, **options,
    ):  # fmt: skip
        super().__init__(
            n_genes, n_labels=n_labels, n_batches=n_batches, encode_batch=encode_batch,
            n_latent=n_latent, seed=seed, **options,
        )  # fmt: skip
        require("n_batches", n_batches, Integral, lambda n: n >= 2, "2 or more: MMD compares them")
        require("mmd_weight", mmd_weight, Real, lambda w: 0 <= w < math.inf, "a number, 0 or more")
        require_size("n_features", n_features)
        bandwidth = 2 * n_latent if bandwidth is None else bandwidth
        require("bandwidth", bandwidth, Real, lambda b: 0 < b < math.inf, "a number above 0")
        with seeded(seed + 2):
            W = torch.randn(n_latent, n_features) * math.sqrt(2 / bandwidth)
            self.register_buffer("frequencies", W)
            self.register_buffer("phases", 2 * math.pi * torch.rand(n_features))

    def penalties(self, cells: Cells, q_z1: Distribution) -> list[Term]:
        """MMD between the batches of these cells; a batch without cells adds nothing."""
        W, b = self.frequencies, self.phases
        damped = torch.exp(-0.5 * q_z1.variance @ W**2)
        ψ = (
            math.sqrt(2 / len(b)) * torch.cos(q_z1.mean @ W + b) * damped
        )  # E_q[ψ(z1)], (n_cells, D)
        s = self.one_hot_batch(cells)  # (n_cells, n_batches)
        sums, n = total(torch.cat([s.T @ ψ, s.sum(0)[:, None]], 1)).split([len(b), 1], dim=1)
        means, rest = sums / n.clamp(min=1), sums.sum(0) / n.sum()  # of each batch, and of all
        if len(n) == 2:
            difference = (means[:1] - means[1:]) * (n > 0).all()
        else:
            difference = (means - rest) * (n > 0)
        mmd = difference.square().sum().expand(len(cells))  # one value, the same for each cell
        symbol, weight = "MMD²(q(z1|s); all s)", self.configuration["mmd_weight"]
        return [Term("mmd", symbol, -1, mmd, SOURCE, weight=weight, in_bound=False)]
