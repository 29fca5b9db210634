"""SCANVI: scVI with cell types in its latent space (Lopez 2018; Xu et al. 2021).

Generative model, for each cell with batch γ:

    z2 ~ N(0, I)                            variation within a type
    c ~ Cat(p(c))                           cell type, observed for some cells
    z1 | z2, c ~ N(f(z2, c), diag g(z2, c))
    log ℓ ~ N(m_γ, v_γ), x_g | z1, ℓ, γ     as in :mod:`vaelab.models.scvi`, with z1 for z

Variational model:

    q(z1 | x) q(ℓ | x) q(c | z1) q(z2 | z1, c)

There are two bounds. L, on log p(x, c | γ), is for a cell with an observed type: ω_c = 1 for this
type and 0 for the others. U, on log p(x | γ), is for a cell without: ω_c = q(c | z1).

    E_{q(z1) q(ℓ)} [ log p(x | z1, ℓ, γ) ] − KL(q(ℓ | x) ‖ p(ℓ | γ))
    − E_{q(z1)} [ log q(z1 | x) − Σ_c ω_c E_{q(z2|z1,c)} log p(z1 | z2, c) ]
    − E_{q(z1)} [ Σ_c ω_c KL(q(z2 | z1, c) ‖ p(z2)) ] − E_{q(z1)} [ KL(ω ‖ p(c)) ]

KL(ω ‖ p(c)) = Σ_c ω_c log(ω_c / p(c)) is −log p(c) for an observed type. One more term is trained
but is not part of the bound: the cross-entropy −log q(c | z1) of the labelled cells. With KL weight
w, the loss of a minibatch is

    mean over cells of [ −E log p(x | z1, ℓ, γ) − w · (all other terms of L or U) ]
    + classifier_weight · mean over labelled cells of [ −log q(c | z1) ]

(``classifier_mean=False``: the second mean is over all cells too, with 0 for those without label.)
If N_c of the N labels are of type c, and these numbers are unequal, q(c | z1) learns them too, and
finds types with few labels too rarely. With ``balance_labels``, q(c | z1) is the posterior under
p(c), and Bayes' rule replaces p(c) by N_c / N in the cross-entropy. For p(c) = 1/C, this is the
logit-adjusted loss of Menon et al. (2021):

    −log [ q(c | z1) r_c / Σ_k q(k | z1) r_k ],    r_c = (N_c / N) / p(c)

The batch γ enters where it does in :mod:`vaelab.models.scvi`, and q(z2 | z1, c) if
``encode_batch_z2``; never the classifier or p(z1 | z2, c).

====================  =========================================================
symbol                where
====================  =========================================================
p(z2)                 ``prior()``
p(c)                  ``log_prior_c``
p(z1 | z2, c)         ``decode_z1(z2, c)``, from ``decoder_z1``
q(z1 | x)             ``encode(cells)``, from ``encoder``
q(c | z1)             ``classify(z1)``, from ``classifier``
q(z2 | z1, c)         ``encode_z2(z1, c)``, from ``encoder_z2``
p(x | z1, ℓ, γ), ℓ    ``decode``, ``encode_log_library``: scVI's
both bounds           ``elbo(cells)``
====================  =========================================================

The z1 term is not a KL to a fixed prior, because p(z1 | z2, c) depends on z2. It is estimated from
samples.
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

from .._internal.arguments import require, require_size
from .._internal.names import index_of, require_labels
from .._internal.processes import total
from ..bounds import Bound, Term
from ..cells import Cells
from ..networks import MLP
from ..reparametrization import gaussian, gumbel_softmax, seeded
from ._labelled import Labelled
from .scvi import SCVI, exp_within_limits, normal_of_log_variance

__all__ = ["SCANVI"]

SOURCE = "Lopez 2018; Xu et al. 2021"


class SCANVI(Labelled, SCVI):
    """scVI with cell types; some of the cells have labels.

    Parameters that are not listed are the same as in :class:`vaelab.SCVI`; z1 and z2 both have
    n_latent dimensions.

    Parameters
    ----------
    n_labels
        Number of types, C: ``len(cells.label_names)``.
    prior_c
        The prior p(c): None for 1/C, "learned", or C probabilities.
    classifier_weight
        Weight of the cross-entropy, which is trained in addition to the bound.
    classifier_mean
        True to average the cross-entropy over the labelled cells of a minibatch, and the bound over
        all its cells. With N_l labels for N cells, a label then weighs classifier_weight · N / N_l
        if every minibatch has one, where a cell's bound weighs 1; a minibatch without a label adds
        nothing. In scvi-tools 1.4.2 it always weighs this (with 50): each step has a second
        minibatch, of labelled cells only. False to sum both over cells, as in Kingma et al. (2014):
        a label weighs classifier_weight, there α = 0.1 N.
    label_bound
        True to train labelled cells on L; False for U on every cell, as in the released code.
    encode_batch_z2
        True if q(z2 | z1, c) receives the batch as input too, as in the assignment of MCB128.
    classifier_layers
        Number of hidden layers of the classifier; 0 for a linear one.
    balance_labels
        True to correct the cross-entropy for unequal numbers of labels per type in the cells of the
        fit; numbers in proportion to p(c) need no correction. It helps if some types have very few
        labels: with 3 labels in three types of PBMC and 50 in the others, balanced accuracy rises
        from 0.69 to 0.73, and recall of the three types from 0.45 to 0.57. With all labels of one
        mouse pancreas for another, balanced accuracy falls from 0.96 to 0.95, and rises from 0.90
        to 0.93 the other way round (five seeds of ``tests/benchmarks/rare_labels.py``, trained with
        epsilon 1e-8 at a learning rate of 2e-3).

    Raises
    ------
    ValueError
        Same as in :class:`vaelab.SCVI`, or ``prior_c`` is not C probabilities.
    """

    graph = {  # for plotting.graphical_model
        "z2": {"at": (0, 3.6), "q": ("z1", "c"), "plates": ("cells",)},
        "c": {"at": (1, 3.6), "q": ("z1",), "observed": "partly", "plates": ("cells",)},
        "z1": {"at": (0, 2.4), "p": ("z2", "c"), "q": ("x_g",), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "p": ("γ",), "q": ("x_g",), "plates": ("cells",)},
        "γ": {"at": (2, 1.2), "observed": True, "plates": ("cells",)},
        "x_g": {"at": (0, 0), "p": ("z1", "ℓ", "γ"), "observed": True, "plates": ("cells", "genes")}
    }  # fmt: skip

    def __init__(
        self,
        n_genes: int,
        *,
        n_labels: int,
        n_batches: int = 1, n_latent: int = 10, n_hidden: int = 128, n_layers: int = 1,
        dropout_rate: float = 0.1, likelihood: str = "zinb", dispersion: str = "gene",
        library: str = "observed", encode_batch: bool = False, normalization: str | None = "batch",
        prior_c: str | Sequence[float] | None = None,
        classifier_weight: float = 50.0,
        classifier_mean: bool = True,
        label_bound: bool = True,
        encode_batch_z2: bool = False,
        classifier_layers: int = 1,
        balance_labels: bool = False,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__(
            n_genes, n_batches=n_batches, n_latent=n_latent, n_hidden=n_hidden, n_layers=n_layers,
            dropout_rate=dropout_rate, likelihood=likelihood, dispersion=dispersion,
            library=library, encode_batch=encode_batch, normalization=normalization, seed=seed,
        )  # fmt: skip
        require_size("n_labels", n_labels)
        require("classifier_weight", classifier_weight, Real, lambda w: 0 <= w < np.inf, ">= 0")
        if not (prior_c is None or isinstance(prior_c, str)):
            prior_c = self.configuration["prior_c"] = [float(p) for p in prior_c]  # for JSON
        with seeded(seed + 1):  # with this seed, SCVI has the same networks of scVI
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
        self.logits_c = nn.Parameter(_logits(prior_c, n_labels), requires_grad=prior_c == "learned")
        if balance_labels:
            self.register_buffer("n_of_type", torch.ones(n_labels))  # N_c, set by ``prepare``

    @classmethod
    def from_scvi(cls, model: SCVI, cells: Cells, **options) -> Self:
        """A SCANVI that starts from a trained SCVI.

        Parameters
        ----------
        model
            A trained SCVI. The new model has its networks, genes and batches.
        cells
            Cells whose label names are the types.
        options
            Options that SCANVI has and SCVI does not.

        Raises
        ------
        TypeError
            The model is not an SCVI.
        ValueError
            The cells have no labels.
        """
        if type(model) is not SCVI:
            raise TypeError(f"A SCANVI starts from an SCVI, not from a {type(model).__name__}.")
        require_labels(cells)
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
        """p(z1 | z2, c) of shape (…, n_latent), for one-hot c of shape (…, n_labels)."""
        mean, log_variance = self.decoder_z1(z2, c).chunk(2, dim=-1)
        return Normal(mean, exp_within_limits(log_variance).sqrt(), validate_args=False)

    def classify(self, z1: Tensor) -> Tensor:
        """log q(c | z1), shape (…, n_labels)."""
        return self.classifier(z1).log_softmax(-1)

    def encode_z2(self, z1: Tensor, c: Tensor, cells: Cells) -> Distribution:
        """q(z2 | z1, c), for z1 (…, n_cells, n_latent) and one-hot c (…, n_cells, n_labels)."""
        if self.configuration["encode_batch_z2"] and (γ := self.one_hot_batch(cells)) is not None:
            c = torch.cat([c, γ.expand(*c.shape[:-1], -1)], dim=-1)
        mean, log_variance = self.encoder_z2(z1, c).chunk(2, dim=-1)
        return normal_of_log_variance(mean, log_variance)

    def elbo(self, cells: Cells, *, n_samples: int = 1, analytic_kl: bool = True) -> Bound:
        """L of the cells with a label, U of the others, and the classifier's cross-entropy.

        L bounds log p(x, c), U bounds log p(x). ``cells.unlabelled()`` gives U for every cell, and
        so does ``label_bound=False``.

        Parameters
        ----------
        cells, n_samples
            Same as in :meth:`vaelab.VAE.elbo`.
        analytic_kl
            True for the KLs of z2, c and ℓ in closed form, with c summed out; z1, and z2 in
            log p(z1 | z2, c), are drawn in both cases. False draws z2 and c, and ℓ: the signed
            terms of one draw then sum to its log importance weight, as ``Bound.iwae`` needs.
        """
        label = self.one_hot_label(cells)  # (n_cells, C), 0 without a label
        require_size("n_samples", n_samples)
        q_z1, p_z2 = self.encode(cells), self.prior()
        z1 = gaussian(q_z1.mean, q_z1.stddev, n_samples)  # (S, n_cells, n_latent)
        drawn, kl_library = self._draw_library(cells, n_samples, analytic_kl)  # with ℓ (S, n_cells)
        log_q_c = self.classify(z1)  # (S, n_cells, C)
        uses_label = label.any(-1, keepdim=True) & bool(self.configuration["label_bound"])
        guess = log_q_c.exp() if analytic_kl else gumbel_softmax(log_q_c.detach(), 1.0, hard=True)
        ω = torch.where(uses_label, label, guess)  # (S, n_cells, C)
        log_ω = torch.where(uses_label, 0.0, log_q_c)  # of the type: 0 if it was observed

        c, each_z1 = self._every_type(z1)  # (C, S, n_cells, C) and (C, S, n_cells, n_latent)
        q_z2 = self.encode_z2(each_z1, c, cells)
        z2 = gaussian(q_z2.mean, q_z2.stddev)  # (C, S, n_cells, n_latent)
        kl_z2 = kl_divergence(q_z2, p_z2) if analytic_kl else q_z2.log_prob(z2) - p_z2.log_prob(z2)

        def mean_over_c(value: Tensor) -> Tensor:  # if c was drawn, the value at the drawn c
            return torch.einsum("snc,csn->sn", ω, value)  # Σ_c ω_c value_c, (S, n_cells)

        log_q_z1 = q_z1.log_prob(z1).sum(-1)  # (S, n_cells)
        log_p_z1 = mean_over_c(self.decode_z1(z2, c).log_prob(each_z1).sum(-1))  # (S, n_cells)
        kl_z2 = mean_over_c(kl_z2.sum(-1))  # (S, n_cells)
        kl_c = (ω * (log_ω - self.log_prior_c)).sum(-1)  # (S, n_cells)
        if analytic_kl:  # averages over z2 and c, not draws
            kl_z2, kl_c = kl_z2.mean(0), kl_c.mean(0)  # (n_cells,)
        return Bound(
            self._reconstruction(drawn, z1),
            Term("log_q_z1", "E_q[log q(z1|x)]", -1, log_q_z1, SOURCE, warm_up=True),
            Term("log_p_z1", "Σ_c ω_c E_q[log p(z1|z2,c)]", +1, log_p_z1, SOURCE, warm_up=True),
            Term("kl_z2", "Σ_c ω_c KL(q(z2|z1,c)‖p(z2))", -1, kl_z2, SOURCE, warm_up=True),
            Term("kl_c", "KL(ω‖p(c))", -1, kl_c, SOURCE, warm_up=True),
            *kl_library,
            self._cross_entropy(label, log_q_c),
            *self.penalties(cells, q_z1),
            posteriors={"c": ω.mean(0)},
        )

    def _every_type(self, z1: Tensor) -> tuple[Tensor, Tensor]:
        """Each type one-hot, (C, …, C), and a copy of z1 for each type, (C, …, n_latent)."""
        C = self.configuration["n_labels"]
        c = torch.eye(C).to(z1).view(C, *[1] * (z1.ndim - 1), C).expand(-1, *z1.shape[:-1], -1)
        return c, z1.expand(C, *z1.shape)

    def _cross_entropy(self, label: Tensor, log_q_c: Tensor) -> Term:
        """−log q(c | z1), 0 for cells without a label; label (n_cells, C), log_q_c (S, n_cells, C).

        If ``classifier_mean``, scaled so that its mean over all cells is that over labelled cells.
        """
        if self.configuration["balance_labels"]:
            log_r = self.n_of_type.log() - self.log_prior_c.detach()  # (C,), up to a constant
            log_q_c = (log_q_c + log_r).log_softmax(-1)
        value = -(log_q_c * label).sum(-1)  # (S, n_cells)
        if self.configuration["classifier_mean"]:
            n_cells, n_labelled = total(torch.stack([label.new_tensor(len(label)), label.sum()]))
            value = value * n_cells / n_labelled.clamp(min=1)
        options = {"weight": self.configuration["classifier_weight"], "in_bound": False}
        return Term("cross_entropy", "cross-entropy of q(c|z1)", -1, value, SOURCE, **options)

    def penalties(self, cells: Cells, q_z1: Distribution) -> list[Term]:
        """Further terms that are trained but are part of no bound; a subclass may have some."""
        return []

    def generate(
        self, n_cells: int, *, label: str | None = None, batch: str | None = None,
        library: float | np.ndarray | None = None, seed: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """New cells of one type, or of all types by p(c): see ``SCVI.generate``."""

        def draw_z1() -> Tensor:  # from p(z1), or from p(z1 | c) of one type
            if label is None:
                c = torch.multinomial(self.log_prior_c.exp(), n_cells, replacement=True)
            else:
                index = index_of("label", label, self.label_names)
                c = torch.full((n_cells,), index, device=self.device)
            z2 = self.prior().sample((n_cells,))  # (n_cells, n_latent)
            return self.decode_z1(z2, one_hot(c, self.configuration["n_labels"]).to(z2)).sample()

        return self._generate_in_batch(n_cells, draw_z1, library, seed, batch)

    # Using a fitted model.

    def predict(self, cells: Cells, *, n_samples: int | None = None, seed: int = 0) -> np.ndarray:
        """q(c | x): the probability of each type for each cell, whatever its label.

        Parameters
        ----------
        n_samples
            Number of draws of z1 over which q(c | z1) is averaged, as the model defines q(c | x).
            None to classify the mean of q(z1 | x), as in the released code.
        seed
            Random seed for the draws.

        Returns
        -------
        Probabilities, shape (n_cells, n_labels), with columns in the order of
        ``model.label_names``.
        """
        if n_samples is not None:
            require_size("n_samples", n_samples)

        def probabilities(minibatch: Cells) -> Tensor:
            q = self.encode(minibatch)
            z1 = q.mean[None] if n_samples is None else gaussian(q.mean, q.stddev, n_samples)
            return self.classify(z1).exp().mean(0)

        with seeded(seed):
            return self._over_minibatches(cells, probabilities)

    def embed(self, cells: Cells, *, of: str = "z1") -> np.ndarray:
        """The posterior mean of z1, or of z2 averaged over types; shape (n_cells, n_latent)."""
        if of == "z1":
            return super().embed(cells)
        if of != "z2":
            raise ValueError(f"of is {of!r}; choose from ['z1', 'z2']")

        def mean_of_z2(minibatch: Cells) -> Tensor:
            z1 = self.encode(minibatch).mean
            c, each_z1 = self._every_type(z1)  # (C, n_cells, C) and (C, n_cells, n_latent)
            means = self.encode_z2(each_z1, c, minibatch).mean
            return torch.einsum("nc,cnd->nd", self.classify(z1).exp(), means)

        return self._over_minibatches(cells, mean_of_z2)

    # Cells that fit the model.

    def prepare(self, cells: Cells) -> None:
        super().prepare(cells)
        if self.configuration["balance_labels"]:
            n_of_type = cells.label[cells.label >= 0].bincount(minlength=len(self.label_names))
            self.n_of_type.copy_(n_of_type.clamp(min=1))  # without labels as with one: log 0 is −∞


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
