"""What a fitted model says about the counts of cells: a part of :class:`Model`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.distributions import Distribution

from .._internal.arguments import require_size
from ..cells import Cells
from ..distributions import CountDistribution
from ..reparametrization import seeded

__all__ = ["Predicting"]


def _mean(p: Distribution, cells: Cells) -> Tensor:
    return p.mean


class Predicting:
    """E[x | z], missing entries, rates without noise, and cells drawn again."""

    def reconstruct(
        self, cells: Cells, *, n_samples: int | None = None, seed: int = 0
    ) -> np.ndarray:
        """The mean of p(x | z) at each cell's own library size.

        Parameters
        ----------
        cells
            The cells.
        n_samples
            Number of draws of z from q(z | x) over which to average. None to decode the mean of z:
            μ(E z), which is not E μ(z) because the decoder is not linear.
        seed
            Random seed for the draws.

        Returns
        -------
        Expected values in the units of x, shape (n_cells, n_genes), dense.
        """
        with seeded(seed):
            return self._over_minibatches(cells, self._expectation(_mean, n_samples))

    def impute(self, cells: Cells, *, n_samples: int | None = None, seed: int = 0) -> np.ndarray:
        """x where it was observed, and the mean of p(x | z) where it was not.

        The parameters mean the same as in :meth:`reconstruct`. Neither q(z | x) nor the result
        depends on what an entry was before it was hidden.

        Returns
        -------
        Values in the units of x, shape (n_cells, n_genes), dense.

        Raises
        ------
        ValueError
            The cells have no mask.
        """
        if isinstance(cells, Cells) and cells.observed is None:
            raise ValueError(
                "All entries of these cells were observed, and none is left to impute: mark those "
                "that are missing, Cells.from_array(x, observed=…)."
            )

        mean = self._expectation(_mean, n_samples)

        def filled(minibatch: Cells) -> Tensor:
            return minibatch.x.where(minibatch.observed, mean(minibatch))

        with seeded(seed):
            return self._over_minibatches(cells, filled)

    def denoise(self, cells: Cells, *, n_samples: int | None = None, seed: int = 0) -> np.ndarray:
        """E[λ | x], the posterior mean of the rate of each count, given z: see ``posterior_mean``.

        It uses the cell twice: for z, and then each count for its own random effect. A Poisson has
        no random effect, so there it is ``reconstruct``. Where x was not observed, it is the mean
        of p(x | z). The parameters mean the same as in :meth:`reconstruct`.

        Returns
        -------
        Rates, as expected counts, shape (n_cells, n_genes), dense.

        Raises
        ------
        ValueError
            p(x | z) is not a CountDistribution.
        """

        def rate(p: Distribution, minibatch: Cells) -> Tensor:
            if not isinstance(getattr(p, "base", p), CountDistribution):
                raise ValueError(
                    f"denoise needs a count likelihood, but p(x | z) is a {type(p).__name__}: use "
                    "reconstruct, or choose one such as likelihood='nb'."
                )
            λ = p.posterior_mean(minibatch.x)
            return λ if minibatch.observed is None else λ.where(minibatch.observed, p.mean)

        with seeded(seed):
            return self._over_minibatches(cells, self._expectation(rate, n_samples))

    def _expectation(self, value: Callable, n_samples: int | None) -> Callable[[Cells], Tensor]:
        """E_q[value(p(x | z), minibatch)], or the value at E_q[z | x] if n_samples is None."""
        if n_samples is None:

            def of(minibatch: Cells) -> Tensor:
                z, library = self.encode(minibatch).mean, self.infer_library(minibatch)
                return value(self.decode(z, library), minibatch)

            return of
        require_size("n_samples", n_samples)

        def average(minibatch: Cells) -> Tensor:
            q, total = self.encode(minibatch), 0.0
            for _ in range(n_samples):
                p = self.decode(q.sample(), self.infer_library(minibatch, draw=True))
                total = total + value(p, minibatch)
            return total / n_samples

        return average

    def replicate(self, cells: Cells, *, seed: int = 0) -> np.ndarray:
        """The cells sampled again: x from p(x | z) with z from q(z | x), the posterior predictive.

        Parameters
        ----------
        cells
            The cells.
        seed
            Random seed for the draws of z and x.

        Returns
        -------
        Drawn values in the units of x, shape (n_cells, n_genes), dense.
        """

        def draw(minibatch: Cells) -> Tensor:
            z = self.encode(minibatch).sample()
            return self.decode(z, self.infer_library(minibatch, draw=True)).sample()

        with seeded(seed):
            return self._over_minibatches(cells, draw)
