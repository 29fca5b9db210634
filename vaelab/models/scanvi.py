"""SCANVI: scVI whose latent space knows cell types (Lopez 2018; Xu et al. 2021).

Generative model, for each cell with batch γ:

    z2 ~ N(0, I)                            what varies within a type
    c ~ Cat(p(c))                           its type, observed for some cells
    z1 | z2, c ~ N(f(z2, c), diag g(z2, c))
    log ℓ ~ N(m_γ, v_γ), x_g | z1, ℓ, γ     as in :mod:`vaelab.models.scvi`, with z1 for z

Variational model:

    q(z1 | x, γ) q(ℓ | x, γ) q(c | z1) q(z2 | z1, c)

Bounds, with ω_c = 1 for the type that was observed (L, on log p(x, c | γ)), or ω_c = q(c | z1)
where none was (U, on log p(x | γ)):

    E_{q(z1) q(ℓ)} [ log p(x | z1, ℓ, γ) ] − KL(q(ℓ | x, γ) ‖ p(ℓ | γ))
    − E_{q(z1)} [ log q(z1 | x, γ) − Σ_c ω_c E_{q(z2|z1,c)} log p(z1 | z2, c) ]
    − E_{q(z1)} [ Σ_c ω_c KL(q(z2 | z1, c) ‖ p(z2)) ] + E_{q(z1)} [ Σ_c ω_c log(p(c) / ω_c) ]

What is trained besides is no part of a bound: weight · Σ_labelled log q(c | z1).

====================  =========================================================
symbol                where
====================  =========================================================
p(z2)                 ``prior()``
p(c)                  ``log_prior_c``
p(z1 | z2, c)         ``decode_z1(z2, c)``, from ``decoder_z1``
q(z1 | x, γ)          ``encode(cells)``, from ``encoder``
q(c | z1)             ``classify(z1)``, from ``classifier``
q(z2 | z1, c)         ``encode_z2(z1, c)``, from ``encoder_z2``
p(x | z1, ℓ, γ), ℓ    ``decode``, ``encode_library``: scVI's
both bounds           ``elbo(cells)``
====================  =========================================================

The z1 term is no KL to a fixed prior, since p(z1 | z2, c) hangs on z2: it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence
from torch.nn.functional import one_hot

from .._internal.arguments import given, require, size
from ..bounds import Bound, Term
from ..cells import Cells
from ..networks import MLP
from ..reparametrization import gaussian, gumbel_softmax, seeded
from ._names import check_names, index_of
from .scvi import SCVI, normal_of_log_variance

__all__ = ["SCANVI"]

SOURCE = "Lopez 2018; Xu et al. 2021"


class SCANVI(SCVI):
    """scVI with types, for cells of which some are labelled.

    What is not listed is as in :class:`vaelab.SCVI`; z1 and z2 both have n_latent dimensions.

    Parameters
    ----------
    n_labels
        C, number of types: ``len(cells.label_names)``.
    prior_c
        p(c): None for 1/C, "learned", or C probabilities.
    classifier_weight, classifier_mean
        Of the cross-entropy that is trained besides the bound. If ``classifier_mean``, it is
        averaged over the labelled cells of a minibatch and the bound over all cells, as released
        (weight 50). Else both are summed, as in Kingma et al. (2014), where the weight is α = 0.1 N
        of N cells.
    label_bound
        Whether labelled cells are trained on L; False for U on every cell, as released.
    encode_batch_z2
        Whether q(z2 | z1, c) is told the batch too, as the assignment has it.
    classifier_layers
        Hidden layers of the classifier; 0 for a linear one.

    Raises
    ------
    ValueError
        As of :class:`vaelab.SCVI`, or a p(c) that is not C probabilities.
    """

    graph = {  # for plotting.graphical_model
        "z2": {"at": (0, 3.6), "q": ("z1", "c"), "plates": ("cells",)},
        "c": {"at": (1, 3.6), "q": ("z1",), "plates": ("cells",)},
        "z1": {"at": (0, 2.4), "p": ("z2", "c"), "q": ("x_g", "γ"), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "p": ("γ",), "q": ("x_g", "γ"), "plates": ("cells",)},
        "γ": {"at": (2, 1.2), "observed": True, "plates": ("cells",)},
        "x_g": {
            "at": (0, 0), "p": ("z1", "ℓ", "γ"), "observed": True, "plates": ("cells", "genes"),
        },
    }  # fmt: skip

    def __init__(
        self,
        n_genes: int,
        n_labels: int,
        n_batches: int = 1,
        n_latent: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        likelihood: str = "zinb",
        dispersion: str = "gene",
        library: str = "observed",
        encode_batch: bool = False,
        normalization: str | None = "batch",
        prior_c: str | Sequence[float] | None = None,
        classifier_weight: float = 50.0,
        classifier_mean: bool = True,
        label_bound: bool = True,
        encode_batch_z2: bool = False,
        classifier_layers: int = 1,
        seed: int = 0,
    ):
        if not (prior_c is None or isinstance(prior_c, str)):
            prior_c = [float(p) for p in prior_c]
        configuration = given(locals())
        super().__init__(
            n_genes, n_batches, n_latent, n_hidden, n_layers, dropout_rate, likelihood, dispersion,
            library, encode_batch, normalization, seed,
        )  # fmt: skip
        self.configuration = configuration
        size("n_labels", n_labels)
        what = "a number, 0 or more"
        require("classifier_weight", classifier_weight, Real, lambda w: 0 <= w < np.inf, what)
        with seeded(seed + 1):  # the networks of scVI are those that SCVI has with this seed
            hidden = {"n_hidden": n_hidden, "normalization": normalization}
            dropout = {**hidden, "dropout_rate": dropout_rate}
            self.classifier = MLP(n_latent, n_labels, n_layers=classifier_layers, **dropout)
            n_conditions = n_labels + (n_batches if encode_batch_z2 and n_batches > 1 else 0)
            self.encoder_z2 = MLP(
                n_latent, 2 * n_latent, n_layers=n_layers, n_conditions=n_conditions, **dropout
            )
            self.decoder_z1 = MLP(
                n_latent, 2 * n_latent, n_layers=n_layers, n_conditions=n_labels,
                dropout_rate=0.0, **hidden,
            )  # fmt: skip
        self.logits_c = nn.Parameter(
            _logits(prior_c, n_labels), requires_grad=isinstance(prior_c, str)
        )

    @classmethod
    def from_scvi(cls, model: SCVI, cells: Cells, **options) -> Self:
        """A SCANVI that starts from a trained SCVI.

        Parameters
        ----------
        model
            Its networks, genes and batches are taken over.
        cells
            Whose labels the types are.
        options
            Of SCANVI, besides what the SCVI has.

        Raises
        ------
        TypeError
            The model is no SCVI.
        ValueError
            The cells have no labels.
        """
        if type(model) is not SCVI:
            raise TypeError(f"A SCANVI starts from an SCVI, not from a {type(model).__name__}.")
        if not cells.label_names:
            raise ValueError(
                "These cells have no labels: name their column, Cells.from_anndata(adata, label=…)."
            )
        scanvi = cls(n_labels=len(cells.label_names), **model.configuration | options)
        scanvi.to(model.device, model.dtype).load_state_dict(model.state_dict(), strict=False)
        scanvi.gene_names, scanvi.batch_names = model.gene_names, model.batch_names
        scanvi.label_names = cells.label_names
        return scanvi

    # The mathematics that scVI does not have.

    @property
    def log_prior_c(self) -> Tensor:
        """log p(c), shape (n_labels,)."""
        return self.logits_c.log_softmax(-1)

    def decode_z1(self, z2: Tensor, c: Tensor) -> Distribution:
        """p(z1 | z2, c); c one-hot, (…, n_labels), gives z1 of shape (…, n_latent)."""
        mean, log_variance = self.decoder_z1(z2, c).chunk(2, dim=-1)
        return Normal(mean, (log_variance / 2).exp(), validate_args=False)

    def classify(self, z1: Tensor) -> Tensor:
        """log q(c | z1), shape (…, n_labels)."""
        return self.classifier(z1).log_softmax(-1)

    def encode_z2(self, z1: Tensor, c: Tensor, batch: Tensor) -> Distribution:
        """q(z2 | z1, c); z1 (…, n_cells, n_latent) and c, one-hot, (…, n_cells, n_labels)."""
        if self.configuration["encode_batch_z2"] and (γ := self._one_hot(batch)) is not None:
            c = torch.cat([c, γ.expand(*c.shape[:-1], -1)], dim=-1)
        mean, log_variance = self.encoder_z2(z1, c).chunk(2, dim=-1)
        return normal_of_log_variance(mean, log_variance)

    def elbo(self, cells: Cells, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        """L of the cells with a label, U of the others, and the classifier's term beside them.

        Parameters
        ----------
        cells, n_samples
            As of :meth:`vaelab.VAE.elbo`.
        analytic_kl
            KLs in closed form, and c summed out. False draws z2 and c, and ℓ: the terms of one draw
            then sum to its log importance weight, as ``Bound.iwae`` needs.
        """
        size("n_samples", n_samples)
        C = self.configuration["n_labels"]
        q_z1, p_z2 = self.encode(cells), self.prior()
        z1 = gaussian(q_z1.mean, q_z1.stddev, n_samples)  # (S, n_cells, n_latent)
        library, library_terms = self._library_terms(cells, n_samples, analytic_kl)
        log_q_c = self.classify(z1)  # (S, n_cells, C)
        known = (cells.label >= 0) & bool(self.configuration["label_bound"])  # (n_cells,)
        observed = one_hot(cells.label.clamp(min=0), C).to(z1).expand_as(log_q_c)
        guess = log_q_c.exp() if analytic_kl else gumbel_softmax(log_q_c.detach(), 1.0, hard=True)
        ω = torch.where(known.unsqueeze(-1), observed, guess)  # (S, n_cells, C)
        log_ω = torch.where(known.unsqueeze(-1), 0.0, log_q_c)  # 0 log 0 = 0 for observed types

        c = torch.eye(C).to(z1)[:, None, None].expand(-1, *z1.shape[:-1], -1)  # (C, S, n_cells, C)
        each_z1 = z1.expand(C, *z1.shape)  # (C, S, n_cells, n_latent)
        q_z2 = self.encode_z2(each_z1, c, cells.batch)
        z2 = gaussian(q_z2.mean, q_z2.stddev)  # (C, S, n_cells, n_latent)
        log_p_z1 = self.decode_z1(z2, c).log_prob(each_z1).sum(-1)  # (C, S, n_cells)
        kl_z2 = kl_divergence(q_z2, p_z2) if analytic_kl else q_z2.log_prob(z2) - p_z2.log_prob(z2)

        def mean_over_c(value: Tensor) -> Tensor:  # Σ_c ω_c value_c, (C, S, n_cells) → (S, n_cells)
            return torch.einsum("snc,csn->sn", ω, value)

        labelled = (cells.label >= 0).to(z1)  # (n_cells,)
        log_q_label = (observed * log_q_c).sum(-1) * labelled  # (S, n_cells)
        if self.configuration["classifier_mean"]:
            log_q_label = log_q_label * len(labelled) / labelled.sum().clamp(min=1)
        log_q_z1, log_p_z1 = q_z1.log_prob(z1).sum(-1), mean_over_c(log_p_z1)
        kl_z2, log_c = mean_over_c(kl_z2.sum(-1)), (ω * (self.log_prior_c - log_ω)).sum(-1)
        if analytic_kl:  # averages over z2 and c, not draws
            kl_z2, log_c = kl_z2.mean(0), log_c.mean(0)
        latent, weight = {"warm_up": True}, self.configuration["classifier_weight"]
        beside = {"weight": weight, "in_bound": False}
        return Bound(
            self._reconstruction(cells, z1, library),
            Term("log_q_z1", "−E_q[log q(z1|x,γ)]", SOURCE, -log_q_z1, **latent),
            Term("log_p_z1", "Σ_c ω_c E_q[log p(z1|z2,c)]", SOURCE, log_p_z1, **latent),
            Term("kl_z2", "−Σ_c ω_c KL(q(z2|z1,c)‖p(z2))", SOURCE, -kl_z2, **latent),
            Term("log_c", "Σ_c ω_c log(p(c)/ω_c)", SOURCE, log_c, **latent),
            *library_terms,
            Term("classifier", "log q(c|z1) if labelled", SOURCE, log_q_label, **beside),
            posteriors={"c": ω.mean(0)},
        )

    def draw_prior(self, n_cells: int, label: str | None = None) -> Tensor:
        """z1 from p(z1), or from p(z1 | c) of one type: z2 and c first; (n_cells, n_latent)."""
        C = self.configuration["n_labels"]
        if label is None:
            c = torch.multinomial(self.log_prior_c.exp(), n_cells, replacement=True)
        else:
            index = index_of("label", label, self.label_names)
            c = torch.full((n_cells,), index, device=self.device)
        z2 = super().draw_prior(n_cells)
        return self.decode_z1(z2, one_hot(c, C).to(z2)).sample()

    # Questions.

    def predict(self, cells: Cells, n_samples: int | None = None, seed: int = 0) -> np.ndarray:
        """q(c | x): the probability of each type for each cell, whatever its label.

        Parameters
        ----------
        n_samples
            None classifies the mean of q(z1 | x, γ), as released; a number averages q(c | z1) over
            so many draws of z1, as the model has it.
        seed
            Of the draws.

        Returns
        -------
        Shape (n_cells, n_labels), columns as ``model.label_names``.
        """
        if n_samples is not None:
            size("n_samples", n_samples)

        def probabilities(part: Cells) -> Tensor:
            q = self.encode(part)
            z1 = q.mean if n_samples is None else gaussian(q.mean, q.stddev, n_samples)
            p = self.classify(z1).exp()
            return p if n_samples is None else p.mean(0)

        with seeded(seed):
            return self._over_minibatches(cells, probabilities)

    def embed(self, cells: Cells, of: str = "z1") -> np.ndarray:
        """The posterior mean of z1, or of z2 over the types by q(c | z1); (n_cells, n_latent)."""
        if of == "z1":
            return super().embed(cells)
        if of != "z2":
            raise ValueError(f"of is {of!r}; choose from ['z1', 'z2']")

        def mean_of_z2(part: Cells) -> Tensor:
            z1 = self.encode(part).mean
            C = self.configuration["n_labels"]
            c = torch.eye(C).to(z1).unsqueeze(1).expand(-1, len(z1), -1)  # (C, n_cells, C)
            means = self.encode_z2(z1.expand(C, *z1.shape), c, part.batch).mean
            return torch.einsum("nc,cnd->nd", self.classify(z1).exp(), means)

        return self._over_minibatches(cells, mean_of_z2)

    # Cells that fit the model.

    def check(self, cells: Cells) -> None:
        super().check(cells)
        if (cells.label >= 0).any():
            n_labels = self.configuration["n_labels"]
            check_names("label", self.label_names, n_labels, cells.label_names)

    def adopt(self, cells: Cells) -> None:
        super().adopt(cells)
        self.label_names = cells.label_names or None


def _logits(prior_c, n_labels: int) -> Tensor:
    if prior_c is None or prior_c == "learned":
        return torch.zeros(n_labels)
    p = torch.tensor([] if isinstance(prior_c, str) else prior_c, dtype=torch.float64)
    if p.shape != (n_labels,) or not (p > 0).all() or abs(p.sum() - 1) > 1e-6:
        raise ValueError(
            f"prior_c is {prior_c!r}; it must be None, 'learned', or {n_labels} probabilities "
            "above 0 that sum to 1."
        )
    return p.log().float()
