"""The VAE whose prior is a Gaussian mixture (Jiang et al. 2017; Grønbech et al. 2020).

Generative model, for each cell with library size ℓ:

    y ~ Cat(π)                         its cluster, one of n_clusters
    z | y ~ N(μ_y, diag σ_y²)          n_latent dimensions
    x_g ~ p(x_g | z, ℓ)                a likelihood of vaelab.likelihoods, genes independent given z

Variational model:

    q(y | x) q(z | x, y) = Cat(y; r(x)) N(z; m(x, y), diag s(x, y)²)

Bound (Grønbech et al. 2020, equation 7), with r_k = q(y = k | x):

    log p(x) ≥ Σ_k r_k { E_{q(z|x,k)}[log p(x | z)] − KL(q(z|x,k) ‖ p(z|k)) } − KL(q(y|x) ‖ p(y))

=============  ================================================================
symbol         where
=============  ================================================================
π              ``log_weights``
μ_y, σ_y       ``means``, ``log_stds``
p(z | y)       ``prior_given(y)``; Σ_k π_k p(z | k) is ``prior()``
r(x)           ``encode_y(h)``, from ``encoder`` and ``to_y``
m, s           ``encode_z(h, y)``, from ``encoder`` and ``to_z``
p(x | z, ℓ)    ``decode(z, cells)``, from ``decoder`` and ``likelihood``
the bound      ``elbo(cells)``
=============  ================================================================

The KL of y is outside the sum over k, so it counts once. ℓ is ``cells.library``: it is observed and
not modelled.
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)
from torch.nn.functional import nll_loss, softplus

from .._internal.arguments import require, require_size
from ..bounds import Bound, Term
from ..cells import Cells
from ..likelihoods import make_likelihood
from ..networks import MLP
from ..reparametrization import gaussian, gumbel_softmax, seeded
from .base import Model

__all__ = ["GMVAE"]

ESTIMATORS = ("sum", "gumbel", "straight-through")


class GMVAE(Model):
    """Variational autoencoder whose latent space is a mixture of clusters.

    Parameters
    ----------
    n_genes, n_latent, n_hidden, n_layers, dropout_rate, likelihood, dispersion, normalization
        Same as in :class:`vaelab.VAE`.
    n_clusters
        Number of components of the mixture, K.
    learn_weights
        True to learn the weights π; False for 1/K.
    estimator
        How training averages over y: "sum" over all K (exact; K decoder passes per cell), "gumbel"
        (one relaxed draw; biased) or "straight-through" (one hard draw with a relaxed gradient).
        Outside training y is summed out, unless ``elbo`` gets another estimator.
    temperature
        Temperature τ of a relaxed draw, at the start of training and at the end of the annealing.
    annealing_steps
        Number of optimiser steps over which ``fit`` lowers τ, by the same factor in each.
    seed
        Random seed for the initial weights.

    Raises
    ------
    ValueError
        The likelihood, dispersion, normalisation or estimator is unknown, or a number is out of
        range.
    """

    graph = {  # for plotting.graphical_model
        "y": {"at": (0, 2.4), "q": ("x_g",), "plates": ("cells",)},
        "z": {"at": (0, 1.2), "p": ("y",), "q": ("x_g", "y"), "plates": ("cells",)},
        "ℓ": {"at": (1, 1.2), "observed": True, "plates": ("cells",)},
        "x_g": {
            "at": (0, 0), "p": ("z", "ℓ"), "observed": True, "plates": ("cells", "genes"),
        },
    }  # fmt: skip

    def __init__(
        self,
        n_genes: int,
        *,
        n_clusters: int = 10,
        n_latent: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        likelihood: str = "zinb",
        dispersion: str = "gene",
        normalization: str | None = "batch",
        learn_weights: bool = False,
        estimator: str = "sum",
        temperature: tuple[float, float] = (1.0, 0.3),
        annealing_steps: int = 2000,
        seed: int = 0,
    ):
        super().__init__()
        for name in ("n_genes", "n_clusters", "n_latent"):
            require_size(name, self.configuration[name])
        expected = "two numbers above 0, the first and the last"
        require("temperature", temperature, (tuple, list), lambda t: len(t) == 2, expected)
        for number in temperature:
            require("temperature", number, Real, lambda t: 0 < t < np.inf, expected)
        expected = "a whole number, 0 or more"
        require("annealing_steps", annealing_steps, Integral, lambda n: n >= 0, expected)
        _require_estimator(estimator)
        with seeded(seed):
            hidden = {"n_hidden": n_hidden, "normalization": normalization}
            self.encoder = MLP(n_genes, n_layers=n_layers, dropout_rate=dropout_rate, **hidden)
            n_h = self.encoder.n_out
            self.to_y = nn.Linear(n_h, n_clusters)
            self.to_z = MLP(n_h, 2 * n_latent, dropout_rate=0.0, n_conditions=n_clusters, **hidden)
            self.decoder = MLP(n_latent, n_layers=n_layers, dropout_rate=0.0, **hidden)
            self.likelihood = make_likelihood(likelihood, self.decoder.n_out, n_genes, dispersion)
            self.means = nn.Parameter(torch.randn(n_clusters, n_latent))
        self.log_stds = nn.Parameter(torch.zeros(n_clusters, n_latent))
        self.log_weights = nn.Parameter(torch.zeros(n_clusters), requires_grad=learn_weights)
        self.register_buffer("steps", torch.zeros(()))  # optimiser steps so far: see after_step
        self.domain = self.likelihood.domain

    def prior_given(self, y: Tensor) -> Distribution:
        """p(z | y) = N(μ_y, σ_y²) of shape (…, n_latent), for one-hot y of shape (…, K)."""
        return Normal(y @ self.means, (y @ self.log_stds).exp(), validate_args=False)

    def prior(self, y: int | None = None) -> Distribution:
        """p(z) = Σ_k π_k N(μ_k, σ_k²), or p(z | y) of one cluster; of shape (n_latent,)."""
        if y is not None:
            expected = f"a whole number from 0 to {self.n_clusters - 1}"
            require("y", y, Integral, lambda y: 0 <= y < self.n_clusters, expected)
            return Normal(self.means[y], self.log_stds[y].exp(), validate_args=False)
        components = Normal(self.means, self.log_stds.exp(), validate_args=False)
        return MixtureSameFamily(
            Categorical(logits=self.log_weights), Independent(components, 1), validate_args=False
        )

    def encode_y(self, h: Tensor) -> Tensor:
        """log q(y | x), shape (n_cells, K), for h = encoder(x) of shape (n_cells, n_hidden)."""
        return self.to_y(h).log_softmax(-1)

    def encode_z(self, h: Tensor, y: Tensor) -> Distribution:
        """q(z | x, y) = N(m, s²), shape (…, n_cells, n_latent), for y of shape (…, n_cells, K)."""
        h = h.expand(*y.shape[:-1], -1)  # (…, n_cells, n_hidden)
        m, s = self.to_z(h, y).chunk(2, dim=-1)  # each (…, n_cells, n_latent)
        return Normal(m, softplus(s) + 1e-4, validate_args=False)

    def encode(self, cells: Cells) -> Distribution:
        """q(z | x) = Σ_k q(k | x) q(z | x, k), of shape (n_cells, n_latent)."""
        h = self._hidden(cells)
        y = torch.eye(self.n_clusters).to(h).expand(len(h), -1, -1)  # (n_cells, K, K)
        components = Independent(self.encode_z(h.unsqueeze(1), y), 1)
        return MixtureSameFamily(
            Categorical(logits=self.encode_y(h)), components, validate_args=False
        )

    def decode(self, z: Tensor, cells: Cells) -> Distribution:
        """p(x | z, ℓ) at ℓ = cells.library: see VAE.decode."""
        return self.likelihood(self.decoder(z), cells.library)

    def elbo(
        self,
        cells: Cells,
        *,
        n_samples: int = 1,
        analytic_kl: bool = True,
        estimator: str | None = None,
    ) -> Bound:
        """The bound of each cell, from ``n_samples`` draws of z.

        Parameters
        ----------
        cells, n_samples
            Same as in :meth:`vaelab.VAE.elbo`.
        analytic_kl
            True for both KLs in closed form. False draws y and z: the signed terms of one draw then
            sum to its log importance weight, as ``Bound.iwae`` needs.
        estimator
            How to average over y. None for the model's own estimator in training and "sum"
            otherwise.
        """
        require_size("n_samples", n_samples)
        estimator = estimator or (self.configuration["estimator"] if self.training else "sum")
        _require_estimator(estimator)
        h = self._hidden(cells)  # (n_cells, n_hidden)
        log_q_y, log_p_y = self.encode_y(h), self.log_weights.log_softmax(-1)
        summed = estimator == "sum" and analytic_kl
        if summed:
            y = torch.eye(self.n_clusters).to(h)[:, None].expand(-1, len(h), -1)
        else:
            hard = estimator != "gumbel" or not analytic_kl
            y = gumbel_softmax(log_q_y, self.temperature, hard, n_samples)
        # All y (K, n_cells, K), or all draws (S, n_cells, K), together: batch normalisation over
        # the cells of one y alone would subtract what the networks were told about this y.
        q, p = self.encode_z(h, y), self.prior_given(y)
        z = gaussian(q.mean, q.stddev, n_samples if summed else None)  # (…, n_cells, n_latent)
        kl_z = kl_divergence(q, p) if analytic_kl else q.log_prob(z) - p.log_prob(z)
        kl_z = kl_z.sum(-1)  # (K, n_cells), or (S, n_cells)
        if summed:
            r, each_h = log_q_y.exp().T, self.decoder(z).unbind(-3)  # q(y | x), (K, n_cells)
            log_px = sum(  # one y at a time from here on: G numbers for each y need memory
                r_k * self.log_likelihood(self.likelihood(h_k, cells.library), cells)
                for r_k, h_k in zip(r, each_h, strict=True)
            )  # (S, n_cells)
            kl_z = (r * kl_z).sum(0)  # (n_cells,)
        else:
            log_px = self.log_likelihood(self.decode(z, cells), cells)  # (S, n_cells)
        # KL(q(y|x)‖p(y)), (n_cells,), or its value at each drawn y, (S, n_cells)
        kl_y = ((log_q_y.exp() if analytic_kl else y) * (log_q_y - log_p_y)).sum(-1)
        source = "Grønbech et al. 2020, eq. 7"
        kl = "KL(q(z|x,y)‖p(z|y))"
        return Bound(
            Term("reconstruction", "E_q[log p(x|z)]", +1, log_px, source),
            Term("kl_z", f"E_q(y|x)[{kl}]", -1, kl_z, source, warm_up=True),
            Term("kl_y", "KL(q(y|x)‖p(y))", -1, kl_y, source, warm_up=True),
            posteriors={"y": log_q_y.exp()},
        )

    def after_step(self) -> None:
        """Move τ one step towards its last value."""
        self.steps += 1

    def generate(
        self,
        n_cells: int,
        *,
        y: int | None = None,
        library: float | np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """New cells of all clusters by their weights, or of cluster ``y``: see ``VAE.generate``."""
        return self._generate(n_cells, lambda: self.prior(y).sample((n_cells,)), library, seed)

    def cluster(self, cells: Cells) -> np.ndarray:
        """q(y | x), the probability of each cluster for each cell; shape (n_cells, K)."""

        def probabilities(minibatch: Cells) -> Tensor:
            return self.encode_y(self._hidden(minibatch)).exp()

        return self._over_minibatches(cells, probabilities)

    @property
    def temperature(self) -> float:
        """The temperature τ of the next relaxed draw."""
        first, last = self.configuration["temperature"]
        steps = self.configuration["annealing_steps"]
        done = min(1.0, self.steps.item() / steps) if steps else 1.0
        return first ** (1 - done) * last**done

    def start_from(self, cells: Cells, clusters: np.ndarray, *, epochs: int = 20, seed: int = 0):
        """Train q(y | x), before ``fit``, to predict a first guess of the clusters.

        Only the encoder and the layer ``to_y`` change.

        Parameters
        ----------
        cells
            The cells to train on.
        clusters
            A number from 0 to K − 1 for each cell, for example from k-means on principal
            components.
        epochs
            Number of passes over the cells.
        seed
            Random seed for the order of the cells and for dropout.

        Raises
        ------
        ValueError
            ``clusters`` is not one such number for each cell.
        """
        self.require_compatible(cells)
        clusters, n = np.asarray(clusters), len(cells)
        if not (clusters.shape == (n,) and np.isin(clusters, range(self.n_clusters)).all()):
            raise ValueError(
                f"clusters has shape {clusters.shape} and dtype {clusters.dtype}; it must hold a "
                f"number from 0 to {self.n_clusters - 1} for each of the {n:,} cells."
            )
        clusters = torch.as_tensor(clusters.astype(np.int64))
        optimizer = torch.optim.Adam([*self.encoder.parameters(), *self.to_y.parameters()], lr=1e-3)
        self.train()
        with seeded(seed):
            for _ in range(epochs):
                for rows in torch.randperm(len(cells)).split(128):
                    minibatch = cells[rows].to(self.device, self.dtype)
                    log_q_y = self.encode_y(self._hidden(minibatch))
                    loss = nll_loss(log_q_y, clusters[rows].to(self.device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        self.eval()

    @property
    def n_clusters(self) -> int:
        return self.configuration["n_clusters"]

    def _hidden(self, cells: Cells) -> Tensor:
        return self.encoder(self.encoder_input(cells))  # (n_cells, n_hidden)


def _require_estimator(name: str) -> None:
    if name not in ESTIMATORS:
        raise ValueError(f"estimator is {name!r}; choose from {[*ESTIMATORS]}")
