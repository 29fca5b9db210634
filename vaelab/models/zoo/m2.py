"""M2: scVI whose batch is the cell type, which is known for some cells only (Kingma et al. 2014).

Generative model, for each cell with library size ℓ (Kingma et al. 2014, equation 2):

    y ~ Cat(1/C)                       cell type, observed for some cells
    z ~ N(0, I)                        n_latent dimensions: what the type does not say
    x_g ~ p(x_g | y, z, ℓ)             a likelihood of vaelab.likelihoods

Variational model (equation 4):

    q(y | x) q(z | x, y) = Cat(y; r(x)) N(z; m(x, y), diag v(x, y))

Bounds. For a cell with an observed type, ω_y is 1 for this type and 0 for the others, and the bound
is on log p(x, y) (equation 6). For a cell without, ω_y = q(y | x), and it is on log p(x) (equation
7):

    Σ_y ω_y { E_{q(z|x,y)}[log p(x | y, z)] − KL(q(z | x, y) ‖ p(z)) } − KL(ω ‖ p(y))

KL(ω ‖ p(y)) is log C for an observed type, and log C minus the entropy of q(y | x) for the others.
Equation 9 trains one more term, which is part of no bound: α times the cross-entropy −log q(y | x)
of each cell with a label, where α is ``classifier_weight``.

The braces are the bound of :class:`vaelab.SCVI` with the type in place of the batch, in encoder
and decoder. So M2 is an SCVI and a classifier.

================  =============================================================
symbol            where
================  =============================================================
p(z)              ``prior()``
r(x)              ``classify(cells)``, from ``classifier``
m, v              ``given_y.encode``
p(x | y, z, ℓ)    ``given_y.decode``
the braces        ``given_y.elbo``
both bounds       ``elbo(cells)``
================  =============================================================

All types pass through the networks together. Batch normalisation over the cells of one type alone
would subtract what the first layer was told about the type.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from ..._internal.arguments import require, require_size
from ..._internal.names import index_of
from ...bounds import Bound, Term
from ...cells import Cells
from ...networks import MLP
from ...reparametrization import seeded
from .._labelled import Labelled
from ..base import Model
from ..scvi import SCVI
from ..vae import VAE

__all__ = ["M2"]

SOURCE = "Kingma et al. 2014, eqs. 6, 7"
EXTRA = "Kingma et al. 2014, eq. 9"


class M2(Labelled, Model):
    """VAE of cells with types; some of the cells have labels.

    Parameters that are not listed are the same as in :class:`vaelab.SCVI`.

    Parameters
    ----------
    n_labels
        Number of types, C: ``len(cells.label_names)``.
    classifier_weight
        The weight α of the cross-entropy of one label, which is trained in addition to the bound.
        The bound of a cell weighs 1. In Kingma et al. (2014) α is a tenth of the number of cells.

    Raises
    ------
    ValueError
        Same as in :class:`vaelab.SCVI`, or the weight is out of range.
    """

    graph = VAE.graph | {  # for plotting.graphical_model
        "y": {"at": (-1, 1.2), "q": ("x_g",), "observed": "partly", "plates": ("cells",)},
        "z": {"at": (0, 1.2), "q": ("x_g", "y"), "plates": ("cells",)},
        "x_g": {"at": (0, 0), "p": ("y", "z", "ℓ"), "observed": True, "plates": ("cells", "genes")}
    }  # fmt: skip

    def __init__(
        self, n_genes: int, *, n_labels: int, classifier_weight: float = 10.0, n_latent: int = 10,
        n_hidden: int = 128, n_layers: int = 1, dropout_rate: float = 0.1,
        likelihood: str = "zinb", normalization: str | None = "batch", seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        require_size("n_labels", n_labels)
        require("classifier_weight", classifier_weight, Real, lambda w: 0 <= w < np.inf, ">= 0")
        shared = {"n_hidden": n_hidden, "n_layers": n_layers, "normalization": normalization}
        shared["dropout_rate"] = dropout_rate
        options = {"n_latent": n_latent, "likelihood": likelihood, "seed": seed}
        self.given_y = SCVI(n_genes, n_batches=n_labels, encode_batch=True, **options, **shared)
        with seeded(seed + 1):
            self.classifier = MLP(n_genes, n_labels, **shared)
        self.domain = self.given_y.domain

    def prior(self) -> Distribution:
        """p(z) = N(0, I), of shape (n_latent,)."""
        return self.given_y.prior()

    def classify(self, cells: Cells) -> Tensor:
        """log q(y | x), shape (n_cells, C)."""
        return self.classifier(self.encoder_input(cells)).log_softmax(-1)

    def at_type(self, cells: Cells) -> Cells:
        """The cells with their type in place of the batch: the label, or else the most probable."""
        y = cells.label.where(cells.label >= 0, self.classify(cells).argmax(-1))
        return replace(cells, batch=y)

    def encode(self, cells: Cells) -> Distribution:
        """q(z | x, y) at ``at_type``, of shape (n_cells, n_latent)."""
        return self.given_y.encode(self.at_type(cells))

    def decode(self, z: Tensor, cells: Cells) -> Distribution:
        """p(x | y, z, ℓ) at ``at_type`` and ℓ = cells.library: see VAE.decode."""
        return self.given_y.decode(z, self.at_type(cells))

    def elbo(self, cells: Cells, *, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        """The bound on log p(x, y) of the cells with a label, and on log p(x) of the others.

        ``cells.unlabelled()`` gives the second for every cell.

        Parameters
        ----------
        cells, n_samples
            Same as in :meth:`vaelab.VAE.elbo`.
        analytic_kl
            True for both KLs in closed form, with y summed out. False draws y and z, and each term
            is its value at the draw: the signed terms of one draw then sum to its log importance
            weight, as ``Bound.iwae`` needs.
        """
        require_size("n_samples", n_samples)
        label, log_q_y = self.one_hot_label(cells), self.classify(cells)  # (n_cells, C)
        known, (n_cells, C) = label.any(-1, keepdim=True), label.shape
        ω = label.where(known, log_q_y.exp())  # (n_cells, C)
        every_y = torch.arange(C, device=ω.device)[:, None].expand(-1, n_cells)  # (C, n_cells)
        y, S = (every_y, n_samples) if analytic_kl else (Categorical(ω).sample((n_samples,)), 1)
        given = self.given_y.elbo(_as_types(cells, y), n_samples=S, analytic_kl=analytic_kl)
        log_ratio = log_q_y.masked_fill(known, 0.0) + np.log(C)  # log ω_y / p(y)
        values = [given.terms[name].value for name in ("reconstruction", "kl_z")]
        values = [v.unflatten(-1, y.shape) for v in values] + [log_ratio[torch.arange(n_cells), y]]
        log_px, kl_z, kl_y = [(ω.T * v).sum(-2) if analytic_kl else v.view(y.shape) for v in values]
        return Bound(
            Term("reconstruction", "Σ_y ω_y E_q[log p(x|y,z)]", +1, log_px, SOURCE),
            Term("kl_z", "Σ_y ω_y KL(q(z|x,y)‖p(z))", -1, kl_z, SOURCE, warm_up=True),
            Term("kl_y", "KL(ω‖p(y))", -1, kl_y, SOURCE, warm_up=True),
            Term("cross_entropy", "cross-entropy of q(y|x)", -1, -(log_q_y * label).sum(-1), EXTRA,
                 weight=self.configuration["classifier_weight"], in_bound=False),
            posteriors={"y": ω},
        )  # fmt: skip

    def predict(self, cells: Cells) -> np.ndarray:
        """q(y | x): the probability of each type for each cell, whatever its label."""
        return self._over_minibatches(cells, lambda minibatch: self.classify(minibatch).exp())

    def generate(self, n_cells: int, *, label=None, library=None, seed: int = 0) -> np.ndarray:
        """New cells of the type ``label``, or of all types in turn: see ``VAE.generate``."""
        C, names = self.configuration["n_labels"], self.label_names
        y = np.arange(n_cells) % C if label is None else index_of("label", label, names)
        library = self.typical_library.item() if library is None else library
        draw_z = partial(self.prior().sample, (n_cells,))
        return self.given_y._generate(n_cells, draw_z, library, seed, y)


def _as_types(cells: Cells, y: Tensor) -> Cells:
    """The cells once for each row of y, shape (…, n_cells), with y in place of the batch."""
    return replace(cells[torch.arange(len(cells)).repeat(len(y))], batch=y.flatten())
