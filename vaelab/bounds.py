"""Lower bounds on log p(x), kept as their terms.

A model returns its bound as named terms. A term's value is the quantity that its name says (a KL
is not below zero); its sign stands apart:

    log p(x) ≥ ELBO = Σ sign · value

The loss, the importance-weighted bound, the ledger and the history are all computed from these
terms, so none of them can contain a term that the others lack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
        The name in bounds, histories and ledgers, such as "kl_z".
    symbol
        The quantity in mathematics, without its sign, such as "KL(q(z|x)‖p(z))".
    sign
        +1 or −1: how the quantity enters the bound.
    value
        The quantity in nats, shape (n_cells,), or (n_samples, n_cells) if it was drawn.
    source
        Paper and equation.
    warm_up
        True if the loss multiplies the term by the KL weight.
    weight
        Factor of the term in the loss.
    in_bound
        False if the term is trained but is not part of the bound, such as a classifier's
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


class Bound:
    """A lower bound on log p(x) for each cell of a minibatch: a signed sum of terms.

    Parameters
    ----------
    terms
        Terms of different names. Those with ``in_bound=False`` are added to the loss alone.
    posteriors
        Posterior q of each discrete latent variable, by its name, shape (n_cells, n_values). They
        are reported in the history; they are not added to the bound.

    Raises
    ------
    ValueError
        Two terms have the same name.
    """

    def __init__(self, *terms: Term, posteriors: Mapping[str, Tensor] = MappingProxyType({})):
        self.terms: dict[str, Term] = {}
        for term in terms:
            if term.name in self.terms:
                raise ValueError(
                    f"Two terms of this bound are named {term.name!r}; give each its own name."
                )
            self.terms[term.name] = term
        self.posteriors = {name: q.detach() for name, q in posteriors.items()}

    def __getitem__(self, name: str) -> Tensor:
        """The value of a term for each cell, averaged over draws; nats, shape (n_cells,)."""
        value = self.terms[name].value
        return value.mean(0) if value.ndim == 2 else value

    def per_cell(self) -> Tensor:
        """The bound of each cell, averaged over draws; nats, shape (n_cells,)."""
        return sum(term.sign * self[name] for name, term in self.terms.items() if term.in_bound)

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """What training minimises: minus the weighted signed sum of all terms; nats, a scalar.

        Averaged over cells. It includes the terms with ``in_bound=False``; ``kl_weight`` multiplies
        the terms that warm up, and below 1 the loss is not a bound.
        """
        return self._minus_sum(self.terms, kl_weight)

    def iwae_loss(self) -> Tensor:
        """The same with :meth:`iwae` in place of the sum of the terms in the bound.

        Its gradient is that of log (1/S) Σ_s w_s: each draw's gradient of log w_s, times its share
        of the weights w_s / Σ w (Burda et al. 2016, equation 13).
        """
        beside = [name for name, term in self.terms.items() if not term.in_bound]
        return self._minus_sum(beside) - self.iwae().mean()

    def _minus_sum(self, names: Iterable[str], kl_weight: float = 1.0) -> Tensor | float:
        weights = self.weights(kl_weight)
        return -sum(weights[name] * self.terms[name].sign * self[name].mean() for name in names)

    def weights(self, kl_weight: float = 1.0) -> dict[str, float]:
        """The factor of each term in the loss."""
        return {
            name: term.weight * (kl_weight if term.warm_up else 1.0)
            for name, term in self.terms.items()
        }

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

    def ledger(self, kl_weight: float = 1.0):
        """Every term by name, sign, symbol, weight in the loss, value and source.

        Returns
        -------
        A pandas DataFrame, one row per term. ``nats`` is the mean of the value over cells, so that
        the loss is −Σ sign · weight · nats.
        """
        import pandas as pd

        weights = self.weights(kl_weight)
        rows = [
            {
                "term": term.name,
                "sign": "+" if term.sign > 0 else "−",
                "symbol": term.symbol,
                "weight": weights[term.name],
                "nats": self[term.name].mean().item(),
                "source": term.source,
            }
            for term in self.terms.values()
        ]
        return pd.DataFrame(rows).set_index("term")
