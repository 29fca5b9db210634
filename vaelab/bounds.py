"""Objectives, kept as their terms: lower bounds on log p(x), and reconstruction errors.

A model returns its objective as named terms. A term's value is the quantity that its name says (a
KL is not below zero); its sign stands apart:

    log p(x) ≥ ELBO = Σ sign · value

The loss, the importance-weighted bound, the ledger and the history are all computed from these
terms, so none of them can contain a term that the others lack. An autoencoder has no p(x): its
objective is a ``ReconstructionError``, whose terms are subtracted, and which is minimised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["Bound", "ImportanceWeighted", "Objective", "ReconstructionError", "Term"]


@dataclass(frozen=True)
class Term:
    """One term of an objective.

    Parameters
    ----------
    name
        The name in objectives, histories and ledgers, such as "kl_z".
    symbol
        The quantity in mathematics, without its sign, such as "KL(q(z|x)‖p(z))".
    sign
        +1 or −1: how the quantity enters the sum that training maximises.
    value
        The quantity, shape (n_cells,), or (n_samples, n_cells) if it was drawn; in nats if the
        objective is a bound.
    source
        Paper and equation.
    warm_up
        True if the loss multiplies the term by the KL weight.
    weight
        Factor of the term in the loss.
    in_bound
        False if the term is trained but is not part of the bound or error, such as a classifier's
        cross-entropy: it is in the loss, the history and the ledger only.

    Raises
    ------
    ValueError
        The sign is neither +1 nor −1.
    """

    name: str
    symbol: str
    sign: int
    value: Tensor
    source: str = ""
    warm_up: bool = False
    weight: float = 1.0
    in_bound: bool = True

    def __post_init__(self):
        if self.sign not in (1, -1):
            raise ValueError(f"The sign of {self.name!r} is {self.sign!r}; it must be +1 or −1.")


class Objective:
    """What training improves: a :class:`Bound` or a :class:`ReconstructionError` of each cell.

    Parameters
    ----------
    terms
        Terms of different names. Those with ``in_bound=False`` are added to the loss alone.
    posteriors
        Posterior q of each discrete latent variable, by its name, shape (n_cells, n_values). They
        are reported in the history; they are not added to the objective.

    Raises
    ------
    ValueError
        Two terms have the same name.
    """

    name: str  # in histories
    sign: int  # +1 if it is maximised, −1 if it is minimised
    unit: str  # the name of the ledger's column of values

    def __init__(self, *terms: Term, posteriors: Mapping[str, Tensor] = MappingProxyType({})):
        self.terms: dict[str, Term] = {}
        for term in terms:
            if term.name in self.terms:
                raise ValueError(
                    f"Two terms of this {self.name} are named {term.name!r}; give each its own "
                    "name."
                )
            self.terms[term.name] = term
        self.posteriors = {name: q.detach() for name, q in posteriors.items()}

    def __getitem__(self, name: str) -> Tensor:
        """The value of a term for each cell, averaged over draws; shape (n_cells,)."""
        value = self.terms[name].value
        return value.mean(0) if value.ndim == 2 else value

    def per_cell(self) -> Tensor:
        """The bound, or the error, of each cell, averaged over draws; shape (n_cells,)."""
        return self.total({name: self[name] for name in self.terms})

    def total(self, values: Mapping):
        """The bound, or the error, if its terms have these values."""
        terms = [term for term in self.terms.values() if term.in_bound]
        return self.sign * sum(term.sign * values[term.name] for term in terms)

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """What training minimises: minus the weighted signed sum of all terms; a scalar.

        Averaged over cells. It includes the terms with ``in_bound=False``; ``kl_weight`` multiplies
        the terms that warm up, and below 1 the loss is not a bound.
        """
        weights = self.weights(kl_weight)
        return -sum(
            weights[name] * term.sign * self[name].mean() for name, term in self.terms.items()
        )

    def weights(self, kl_weight: float = 1.0) -> dict[str, float]:
        """The factor of each term in the loss."""
        return {
            name: term.weight * (kl_weight if term.warm_up else 1.0)
            for name, term in self.terms.items()
        }

    def ledger(self, kl_weight: float = 1.0):
        """Every term by name, sign, symbol, weight in the loss, value and source.

        Returns
        -------
        A pandas DataFrame, one row per term. ``nats`` (or ``value``, if the objective is an error)
        is the mean of the value over cells, so that the loss is −Σ sign · weight · nats.
        """
        import pandas as pd

        weights = self.weights(kl_weight)
        rows = [
            {
                "term": term.name,
                "sign": "+" if term.sign > 0 else "−",
                "symbol": term.symbol,
                "weight": weights[term.name],
                self.unit: self[term.name].mean().item(),
                "source": term.source,
            }
            for term in self.terms.values()
        ]
        return pd.DataFrame(rows).set_index("term")


class Bound(Objective):
    """A lower bound on log p(x) for each cell of a minibatch, in nats; training maximises it."""

    name, sign, unit = "bound", +1, "nats"

    def iwae(self) -> Tensor:
        """log (1/S) Σ_s w_s, the importance-weighted bound of each cell; nats, shape (n_cells,).

        Burda et al. (2016), equation 8. In expectation it lies between the ELBO and log p(x), and
        it rises with S.

        Raises
        ------
        ValueError
            A term is an average, such as an analytic KL, and not a value for each draw. Call
            ``elbo(cells, n_samples=S, analytic_kl=False)``.
        """
        terms = [term for term in self.terms.values() if term.in_bound]
        averaged = [term.name for term in terms if term.value.ndim != 2]
        if averaged:
            raise ValueError(
                f"The term {averaged[0]!r} is an average over q, not a draw: "
                "call elbo(cells, n_samples=…, analytic_kl=False)."
            )
        log_weights = sum(term.sign * term.value for term in terms)  # (n_samples, n_cells)
        return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))

    def weighted(self) -> ImportanceWeighted:
        """The same terms, to train :meth:`iwae` of them."""
        return ImportanceWeighted(*self.terms.values(), posteriors=self.posteriors)


class ImportanceWeighted(Bound):
    """A bound that is not the sum of its terms but :meth:`iwae` of them.

    The gradient is that of each draw's log w_s, times its share w_s / Σ w (Burda et al. 2016,
    equation 13).
    """

    def per_cell(self) -> Tensor:
        """The importance-weighted bound of each cell; nats, shape (n_cells,)."""
        return self.iwae()

    def total(self, values: Mapping):
        """The bound, which the terms alone do not give."""
        return values[self.name]

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """Minus the bound, averaged over cells, plus the other terms; there is no KL weight."""
        others = Bound(*(term for term in self.terms.values() if not term.in_bound))
        return others.loss() - self.iwae().mean()


class ReconstructionError(Objective):
    """How far the output of an autoencoder is from its input; training minimises it.

    It is not a bound on log p(x): an autoencoder has no p(x). Its terms have the sign −1, and
    ``per_cell`` is their sum, which is not below zero.
    """

    name, sign, unit = "error", -1, "value"
