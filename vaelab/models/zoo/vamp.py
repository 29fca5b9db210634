"""A VAE whose prior is a mixture of its own posteriors (Tomczak & Welling 2018; Dony et al. 2020).

Generative model, for each cell with library size ℓ:

    z ~ (1/K) Σ_k q(z | u_k)           u_k: K learned pseudo-cells, read by the encoder
    x_g ~ p(x_g | z, ℓ)                as in :mod:`vaelab.models.vae`

Variational model: the VAE's q(z | x).

Bound (Tomczak & Welling 2018, equations 2 and 9). A mixture has no KL in closed form, so that both
of its parts stand alone:

    log p(x) ≥ E_q[log p(x | z)] − E_q[log q(z | x)] + E_q[log (1/K) Σ_k q(z | u_k)]

=============  ================================================================
symbol         where
=============  ================================================================
u_k            ``pseudo_inputs``, on the scale that the encoder reads
p(z)           ``prior()``
q(z | x)       ``encode(cells)``: the VAE's
two terms      ``prior_terms(q, z, analytic_kl)``
=============  ================================================================

The encoder reads the pseudo-cells without dropout and with running statistics, so that p(z) is one
distribution while a minibatch is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily

from ..._internal.arguments import require_size
from ...bounds import Term
from ...cells import Cells
from ...likelihoods import bounded
from ...reparametrization import seeded
from ..vae import VAE

__all__ = ["VampVAE"]

SOURCE = "Tomczak & Welling 2018, eqs. 2 and 9"


class VampVAE(VAE):
    """A VAE with the VampPrior, by default for negative binomial counts as in Dony et al. (2020).

    Parameters
    ----------
    n_genes
        Number of genes, G.
    n_pseudo
        Number of pseudo-cells, K. ``fit`` starts them at K of the cells, drawn from ``seed``.
    likelihood, seed
        Same as in :class:`vaelab.VAE`.
    options
        Other options of :class:`vaelab.VAE`.
    """

    graph = {  # for plotting.graphical_model
        "u_k": {"at": (-1.5, 1.2), "plates": ("K",)},
        "z": {"at": (0, 1.2), "p": ("u_k",), "q": ("x_g",), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "observed": True, "plates": ("cells",)},
        "x_g": {"at": (0, 0), "p": ("z", "ℓ"), "observed": True, "plates": ("cells", "genes")},
    }

    def __init__(
        self, n_genes: int, *, n_pseudo: int = 50, likelihood: str = "nb", seed: int = 0, **options
    ):
        require_size("n_pseudo", n_pseudo)
        super().__init__(n_genes, likelihood=likelihood, seed=seed, **options)
        with seeded(seed + 1):
            n_in = self.encoder[0].in_features
            self.pseudo_inputs = nn.Parameter(torch.rand(n_pseudo, n_in))

    def prior(self) -> Distribution:
        """p(z) = (1/K) Σ_k q(z | u_k), of shape (n_latent,)."""
        u = self.pseudo_inputs
        if self.domain != "real":  # counts and shares are not below 0
            u = bounded(u, 0, 1 if self.domain == "unit interval" else torch.inf)
        self.encoder.eval()
        q = self.posterior(u)  # (K, n_latent)
        self.encoder.train(self.training)
        weights = Categorical(logits=torch.zeros_like(q.mean[:, 0]))
        return MixtureSameFamily(weights, Independent(q, 1), validate_args=False)

    def prior_terms(self, q: Distribution, z: Tensor, analytic_kl: bool) -> list[Term]:
        """−E_q[log q(z | x)] and E_q[log p(z)]; ``analytic_kl`` gives the first in closed form."""
        log_q_z = -q.entropy().sum(-1) if analytic_kl else q.log_prob(z).sum(-1)
        log_p_z = self.prior().log_prob(z)  # (n_samples, n_cells)
        return [
            Term("log_q_z", "E_q[log q(z|x)]", -1, log_q_z, SOURCE, warm_up=True),
            Term("log_p_z", "E_q[log p(z)]", +1, log_p_z, SOURCE, warm_up=True),
        ]

    def prepare(self, cells: Cells) -> None:
        """Before the first fit, start the pseudo-cells at cells."""
        first = self.gene_names is None
        super().prepare(cells)
        if first:
            with seeded(self.configuration["seed"]):
                rows = torch.randint(len(cells), (len(self.pseudo_inputs),))
            some = cells[rows].to(self.device, self.dtype)
            self.pseudo_inputs.data.copy_(self.encoder_input(some))
