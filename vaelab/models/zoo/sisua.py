"""RNA and proteins of the same cells from one latent space, as in SISUA.

Generative model, for each cell with RNA total ℓ:

    z ~ N(0, I)                     n_latent dimensions
    x_g ~ ZINB(ℓ ρ_g(z), θ_g, π_g(z))     RNA
    y_t ~ NB(s_t μ_t(z), φ_t)       proteins; s_t is the standard deviation of the protein

Variational model, which reads RNA only, so that cells without proteins need no other encoder:

    q(z | x) = N(m(x), diag s(x)²)

Bound (Trong et al. 2020, J. Comput. Biol. 27:1190; distributions and inputs as in their released
code; Kingma & Welling 2014, equation 3, with two likelihoods):

    log p(x, y) ≥ E_q[log p(x | z)] + E_q[log p(y | z)] − KL(q(z | x) ‖ p(z))

A cell without proteins lacks the second term. It is semi-supervision: proteins shape z where they
are known, and z predicts them where they are not.

====================  =========================================================
symbol                where
====================  =========================================================
p(z)                  ``prior()``
m, s                  ``encode(cells)``, from ``encoder``
p(x | z), p(y | z)    ``decode(z, cells)``, from ``likelihood`` and ``proteins``
s_t                   ``protein_scale``, set by the first ``prepare``
the bound             ``elbo(cells)``
====================  =========================================================

The proteins are the last columns of ``cells.x``. Hide those that were not measured in
``cells.observed``; ``impute`` then fills them. The released code can also take proteins as yes or
no, and weighs their term; here it has the weight of the bound.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from ..._internal.arguments import require, require_size
from ...bounds import Bound, Term
from ...cells import Cells
from ...distributions import NegativeBinomial, SideBySide
from ...likelihoods import make_likelihood
from ...networks import MLP
from ...reparametrization import gaussian, seeded
from ..vae import VAE

__all__ = ["SISUALike"]

SOURCE = "Trong et al. 2020"
BELOW_N_GENES = "a whole number from 1 to n_genes − 1, because n_genes counts all columns"
OF_COUNTS = "one of counts, such as 'nb'"


class SISUALike(VAE):
    """Variational autoencoder for RNA and proteins whose encoder reads RNA only.

    Parameters
    ----------
    n_genes
        Number of columns, genes and proteins together: ``cells.n_genes``.
    n_proteins
        Number of proteins, which are the last columns.
    n_latent, n_hidden, n_layers, dropout_rate, dispersion, normalization, seed
        Same as in :class:`vaelab.VAE`; the dispersion is that of the RNA.
    likelihood
        Name of the likelihood of the RNA, one of counts.
    encode_proteins
        True for an encoder that reads the proteins too; hidden ones are zeros there.

    Raises
    ------
    ValueError
        Same as in :class:`vaelab.VAE`, or there are not fewer proteins than columns, or the
        likelihood is not one of counts.
    """

    graph = {  # for plotting.graphical_model
        "ℓ": {"at": (-1.2, 1.2), "observed": True, "plates": ("cells",)},
        "z": {"at": (0, 1.2), "q": ("x_g",), "plates": ("cells",)},
        "x_g": {"at": (-0.7, 0), "p": ("z", "ℓ"), "observed": True, "plates": ("cells", "genes")},
        "y_t": {"at": (0.9, 0), "p": ("z",), "observed": "partly", "plates": ("cells", "proteins")},
    }  # fmt: skip

    def __init__(
        self, n_genes: int, *, n_proteins: int, n_latent: int = 10, n_hidden: int = 128,
        n_layers: int = 1, dropout_rate: float = 0.1, likelihood: str = "zinb",
        dispersion: str = "gene", normalization: str | None = "batch",
        encode_proteins: bool = False, seed: int = 0,
    ):  # fmt: skip
        require_size("n_genes", n_genes)
        require("n_proteins", n_proteins, Integral, lambda n: 1 <= n < n_genes, BELOW_N_GENES)
        hidden = {"n_hidden": n_hidden, "n_layers": n_layers, "normalization": normalization}
        super().__init__(
            n_genes - n_proteins, n_latent=n_latent, dropout_rate=dropout_rate,
            likelihood=likelihood, dispersion=dispersion, seed=seed, **hidden,
        )  # fmt: skip
        require("likelihood", likelihood, str, lambda _: self.domain == "counts", OF_COUNTS)
        with seeded(seed):
            if encode_proteins:
                self.encoder = MLP(n_genes, 2 * n_latent, dropout_rate=dropout_rate, **hidden)
            self.proteins = make_likelihood("nb", self.decoder.n_out, n_proteins, library="none")
        self.register_buffer("protein_scale", torch.ones(n_proteins))
        self.widths = [n_genes - n_proteins, n_proteins]

    def encoder_input(self, cells: Cells) -> Tensor:
        """log(1 + x) of the RNA, or of all columns if ``encode_proteins``."""
        return super().encoder_input(cells)[:, : self.encoder[0].in_features]

    def decode(self, z: Tensor, cells: Cells) -> Distribution:
        """p(x | z, ℓ) and p(y | z) side by side, of shape (…, n_cells, n_genes)."""
        h = self.decoder(z)
        y = self.proteins(h, cells.library)  # in units of s_t
        y = NegativeBinomial(self.protein_scale * y.mean, y.inverse_dispersion, False)
        return SideBySide(self.likelihood(h, cells.library), y)

    def elbo(self, cells: Cells, *, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        """The bound of each cell, from ``n_samples`` draws of z: see VAE.elbo."""
        require_size("n_samples", n_samples)
        q, p = self.encode(cells), self.prior()
        z = gaussian(q.mean, q.stddev, n_samples)  # (n_samples, n_cells, n_latent)
        kl_z = kl_divergence(q, p) if analytic_kl else q.log_prob(z) - p.log_prob(z)
        latents, more_terms = self.other_latents(z, cells, analytic_kl)
        log_p = self.decode(latents, cells).log_prob(cells.x)  # (n_samples, n_cells, n_genes)
        log_p = log_p if cells.observed is None else log_p.where(cells.observed, 0.0)
        log_px, log_py = (part.sum(-1) for part in log_p.split(self.widths, -1))
        return Bound(
            Term("reconstruction", "E_q[log p(x|z,ℓ)]", +1, log_px, SOURCE),
            Term("proteins", "E_q[log p(y|z)]", +1, log_py, SOURCE),
            Term("kl_z", "KL(q(z|x)‖p(z))", -1, kl_z.sum(-1), SOURCE, warm_up=True),
            *more_terms,
        )

    def other_latents(self, z: Tensor, cells: Cells, analytic_kl: bool) -> tuple[Tensor, list]:
        """What ``decode`` reads in place of z, and the terms of what was drawn: here nothing."""
        return z, []

    def prepare(self, cells: Cells) -> None:
        """Keep the scale of each protein, if this is the first fit: see Trainable.prepare."""
        first = self.gene_names is None
        super().prepare(cells)
        if first:
            std = cells.standard_deviations()[-self.widths[1] :]
            self.protein_scale.copy_(std.where(std > 0, 1.0))

    def require_compatible(self, cells: Cells) -> None:
        super().require_compatible(cells)
        require_rna_totals(cells, n_rna=self.widths[0])


def require_rna_totals(cells: Cells, n_rna: int) -> None:
    """Refuse cells whose library sizes are totals over all columns, not over the first n_rna.

    It looks at one to two thousand cells, from the first to the last, and there at those of which
    everything was observed.

    Raises
    ------
    ValueError
        In all of these cells that have proteins, the library size is the total of all counts.
    """
    some = cells[:: max(1, len(cells) // 1000)].to(dtype=torch.float64)
    counted = some.x[:, n_rna:].sum(1) > 0
    counted &= counted if some.observed is None else some.observed.all(1)
    total = some.x.sum(1)[counted]
    if len(total) and torch.allclose(total, some.library[counted], rtol=1e-6):
        raise ValueError(
            "The library sizes of these cells count the proteins too: give the RNA totals, "
            "library='rna_total' in Cells.from_anndata, or library=… in Cells.from_array."
        )
