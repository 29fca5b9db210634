"""Lower bounds on log p(x), kept as their terms.

A model returns its bound as named terms, signed so that the bound is their sum:

    log p(x) ≥ ELBO = Σ terms

The loss, the importance-weighted bound and the ledger are all read off these terms, so none of
them can hold a term that the others do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["Bound", "Term"]


@dataclass(frozen=True)
class Term:
    """One term of a bound.

    Parameters
    ----------
    name
        As it is called in histories and ledgers.
    symbol
        The term in mathematics, with its sign.
    source
        Paper and equation.
    value
        Nats, signed: shape (n_cells,), or (n_samples, n_cells) where the term was drawn.
    warm_up
        Whether the loss multiplies the term by the KL weight.
    weight
        Its factor in the loss.
    in_bound
        False for what is trained besides the bound, such as a classifier's cross-entropy: it is in
        the loss and in the ledger, and in no bound.
    """

    name: str
    symbol: str
    source: str
    value: Tensor
    warm_up: bool = False
    weight: float = 1.0
    in_bound: bool = True


class Bound:
    """A lower bound on log p(x) for each cell of a minibatch, as a sum of terms.

    Terms with ``in_bound=False`` are added to the loss alone.

    ``posteriors`` are to be watched, not added: q of each discrete latent variable by name, shape
    (n_cells, n_values).
    """

    def __init__(self, *terms: Term, posteriors: Mapping[str, Tensor] = MappingProxyType({})):
        self.terms = {term.name: term for term in terms}
        self.posteriors = {name: q.detach() for name, q in posteriors.items()}

    def __getitem__(self, name: str) -> Tensor:
        """A term's value for each cell, averaged over draws; shape (n_cells,)."""
        value = self.terms[name].value
        return value.mean(0) if value.ndim == 2 else value

    def per_cell(self) -> Tensor:
        """The bound of each cell, averaged over draws; nats, shape (n_cells,)."""
        return sum(self[name] for name, term in self.terms.items() if term.in_bound)

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """What training minimises: minus the bound, averaged over cells; nats, a scalar.

        ``kl_weight`` multiplies the terms that warm up; below 1 the loss is not a bound.
        """
        weights = self.weights(kl_weight)
        return -sum(weights[name] * self[name].mean() for name in self.terms)

    def weights(self, kl_weight: float = 1.0) -> dict[str, float]:
        """The factor of each term in the loss."""
        return {
            name: term.weight * (kl_weight if term.warm_up else 1.0)
            for name, term in self.terms.items()
        }

    def iwae(self) -> Tensor:
        """log (1/S) Σ_s w_s, the importance-weighted bound of each cell; nats, shape (n_cells,).

        Burda et al. (2016), equation 8. Never below the ELBO in expectation, never above
        log p(x), and rising with S.

        Raises
        ------
        ValueError
            A term was not drawn: an analytic KL is an average, not the weight of one draw. Call
            ``elbo(cells, n_samples=S, analytic_kl=False)``.
        """
        terms = {name: term for name, term in self.terms.items() if term.in_bound}
        averaged = [name for name, term in terms.items() if term.value.ndim != 2]
        if averaged:
            raise ValueError(
                f"The term {averaged[0]!r} is an average over q, not a draw: "
                "ask for elbo(cells, n_samples=…, analytic_kl=False)."
            )
        log_weights = sum(term.value for term in terms.values())  # (n_samples, n_cells)
        return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))

    def ledger(self, kl_weight: float = 1.0):
        """Every term by name, sign, symbol, weight in the loss, value and source.

        Returns
        -------
        A pandas DataFrame, one row a term. ``nats`` is the mean over cells, so that the loss is
        −Σ weight · nats.
        """
        import pandas as pd

        weights = self.weights(kl_weight)
        rows = [
            {
                "term": term.name,
                "sign": "−" if term.symbol.startswith("−") else "+",
                "symbol": term.symbol.lstrip("−"),
                "weight": weights[term.name],
                "nats": self[term.name].mean().item(),
                "source": term.source,
            }
            for term in self.terms.values()
        ]
        return pd.DataFrame(rows).set_index("term")
