"""scVAE's mixture model with free nats (Grønbech et al. 2020; Kingma et al. 2016).

The models are those of :mod:`vaelab.models.gmvae`. What changes is the loss: the first nats of the
cluster's KL cost nothing, so that the encoder is not paid for giving up clusters. With

    λ = free_nats · H(p(y)),    KL_y = mean over the minibatch of KL(q(y | x) ‖ p(y))

the loss has max(KL_y, λ) in place of KL_y, as in scVAE 2.1.4. Here it is written as a term that is
trained and is not part of the bound: KL_y − min(KL_y, λ) = max(KL_y, λ) − λ, the same up to a
constant.

=============  ================================================================
symbol         where
=============  ================================================================
the bound      ``GMVAE.elbo(cells)``, with all of KL_y
min(KL_y, λ)   the term ``free_nats``
=============  ================================================================

The start from k-means is ``GMVAE.start_from``, the warm-up is ``fit``'s.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch.distributions import Categorical

from ..._internal.arguments import require
from ..._internal.processes import total
from ...bounds import Bound, Term
from ...cells import Cells
from ..gmvae import GMVAE

__all__ = ["ScVAE"]


class ScVAE(GMVAE):
    """A :class:`vaelab.GMVAE` whose q(y | x) may tell clusters apart at no cost, up to a limit.

    Parameters
    ----------
    n_genes
        Number of genes, G.
    free_nats
        The limit λ as a share of H(p(y)), from 0 to 1.
    options
        Options of :class:`vaelab.GMVAE`.
    """

    graph = GMVAE.graph | {"y": GMVAE.graph["y"] | {"at": (-1, 1.9)}}  # no arrow through z

    def __init__(self, n_genes: int, *, free_nats: float = 0.8, **options):
        require("free_nats", free_nats, Real, lambda share: 0 <= share <= 1, "from 0 to 1")
        super().__init__(n_genes, **options)

    def elbo(self, cells: Cells, **options) -> Bound:
        """The bound, and the free nats in the loss: see ``GMVAE.elbo``."""
        bound = super().elbo(cells, **options)
        limit = self.configuration["free_nats"] * Categorical(logits=self.log_weights).entropy()
        kl_y = bound["kl_y"]  # (n_cells,)
        n_cells, sum_of_kl = total(torch.stack([kl_y.new_tensor(len(kl_y)), kl_y.sum()]))
        free = (sum_of_kl / n_cells).minimum(limit).expand(len(kl_y))
        symbol, source = "min(KL(q(y|x)‖p(y)), λ)", "Grønbech et al. 2020, scVAE 2.1.4"
        term = Term("free_nats", symbol, +1, free, source, warm_up=True, in_bound=False)
        return Bound(*bound.terms.values(), term, posteriors=bound.posteriors)
