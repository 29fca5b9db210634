"""The autoencoder: a network that copies its input x through a code z of a few numbers.

    z = f(x),  x̂ = g(z)                ``encode(cells)``, ``decode(z, cells)``

It has no p(z) and no p(x | z). Its objective is therefore not a bound but an error:

===========  ====================  ===========================  =================================
output       data x                x̂, from the last layer a     error of a cell: ``objective``
===========  ====================  ===========================  =================================
"linear"     any real numbers      a                            1/G Σ_g (x_g − x̂_g)²
"sigmoid"    from 0 to 1           1 / (1 + e⁻ᵃ)                1/G Σ_g H(x_g, x̂_g)
"softmax"    counts, or shares     Σ_g x_g · softmax(a)         −Σ_g p_g log p̂_g
===========  ====================  ===========================  =================================

H(x, x̂) = −x log x̂ − (1 − x) log(1 − x̂) is the binary cross-entropy; p and p̂ are x and x̂ divided
by their sums. Both cross-entropies are in nats, and are smallest, but not 0, at x̂ = x.

A denoising autoencoder (Vincent et al. 2008) reads a corrupted input and has to return the clean
one. If the weights are tied, each layer of the decoder has the transpose of the encoder's. A tied
linear autoencoder finds the subspace of the principal components, but not the components (Bourlard
& Kamp 1988; Baldi & Hornik 1989).
"""

from __future__ import annotations

from itertools import pairwise
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, mse_loss

from .._internal.arguments import require, require_size
from ..bounds import ReconstructionError, Term
from ..cells import Cells
from ..reparametrization import seeded
from .trainable import Trainable

__all__ = ["Autoencoder"]

ACTIVATIONS = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "softplus": nn.Softplus,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "linear": nn.Identity,
}  # fmt: skip
DOMAINS = {"linear": "real", "sigmoid": "unit interval", "softmax": "nonnegative"}


class Autoencoder(Trainable):
    """Autoencoder with an encoder of any layers, and a decoder that mirrors it.

    Parameters
    ----------
    n_genes
        Number of genes, G.
    n_latent
        Number of values in the code z. The layer that computes z is linear.
    n_hidden
        Widths of the hidden layers of the encoder, from the input to the code; the decoder has them
        in reverse. () for none.
    activation
        Activation of the hidden layers: "relu", "leaky_relu", "elu", "softplus", "tanh", "sigmoid"
        or "linear".
    output
        Kind of output and with it the error: see the table at the head of this module. For
        "softmax", the encoder reads log(1 + 10⁴ p), so that counts and shares are the same to it.
    noise
        How much ``objective`` corrupts the input; ``embed`` and ``reconstruct`` do not. For a
        linear output, the standard deviation of Gaussian noise, in the units of x. For the others,
        the probability that a value is set to 0 (masking noise, Vincent et al. 2008; Liang et al.
        2018 for a softmax): a Gaussian would leave the range of the data.
    dropout_rate
        Dropout rate of all hidden layers while training.
    tied
        True if the weights of the decoder are the transposes of the encoder's. The decoder always
        has biases of its own.
    seed
        Random seed for the initial weights.

    Attributes
    ----------
    widths
        Number of units of each layer, from the input through the code to the output:
        ``plotting.layers(model.widths)`` draws them.

    Raises
    ------
    ValueError
        The activation or output is unknown, or a number is out of range.
    """

    sums_over_genes = False

    def __init__(
        self,
        n_genes: int,
        *,
        n_latent: int = 2,
        n_hidden: tuple[int, ...] = (128,),
        activation: str = "relu",
        output: str = "linear",
        noise: float = 0.0,
        dropout_rate: float = 0.0,
        tied: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        expected = "a list of widths, such as (512, 256)"
        require("n_hidden", n_hidden, (tuple, list), lambda widths: True, expected)
        for name, value in (("activation", activation), ("output", output)):
            known = ACTIVATIONS if name == "activation" else DOMAINS
            if value not in known:
                raise ValueError(f"{name} is {value!r}; choose from {[*known]}")
        narrowing = n_genes, *n_hidden, n_latent
        names = ("n_genes", *("n_hidden" for _ in n_hidden), "n_latent")
        for name, width in zip(names, narrowing, strict=True):
            require_size(name, width)
        self.widths = narrowing + narrowing[-2::-1]
        if output == "linear":
            require("noise", noise, Real, lambda v: 0 <= v < np.inf, "a number, 0 or more")
        else:
            require("noise", noise, Real, lambda v: 0 <= v < 1, "a probability, from 0 to below 1")
        require("dropout_rate", dropout_rate, Real, lambda r: 0 <= r < 1, "from 0 to below 1")
        if not isinstance(tied, bool):
            raise ValueError(f"tied is {tied!r}; it must be True or False.")
        with seeded(seed):
            down = [nn.Linear(n_in, n_out) for n_in, n_out in pairwise(narrowing)]
            if tied:
                up = [_Transposed(layer) for layer in reversed(down)]
            else:
                up = [nn.Linear(n_in, n_out) for n_in, n_out in pairwise(narrowing[::-1])]
        between = ACTIVATIONS[activation], dropout_rate
        self.encoder, self.decoder = _stack(down, *between), _stack(up, *between)
        self.domain = DOMAINS[output]

    def encoder_input(self, cells: Cells) -> Tensor:
        """x, or log(1 + 10⁴ p) of the shares p if the output is a softmax; (n_cells, n_genes)."""
        x = super().encoder_input(cells)
        return x if self.domain != "nonnegative" else torch.log1p(1e4 * _shares(x))

    def encode(self, cells: Cells) -> Tensor:
        """The code z = f(x), of shape (n_cells, n_latent)."""
        return self.encoder(self.encoder_input(cells))

    def decode(self, z: Tensor, cells: Cells) -> Tensor:
        """The reconstruction x̂ = g(z) in the units of x, of shape (…, n_cells, n_genes).

        z has shape (…, n_cells, n_latent). A softmax output is multiplied by ``cells.library``, and
        no other output reads the cells. ``blank_cells`` makes cells for any z.
        """
        a = self.decoder(z)
        if self.domain == "nonnegative":
            return a.softmax(-1) * cells.library.unsqueeze(-1)
        return a.sigmoid() if self.domain == "unit interval" else a

    def objective(self, cells: Cells) -> ReconstructionError:
        """The error of each cell, from its corrupted input to its clean values."""
        a, x = self.decoder(self.encoder(self.corrupt(self.encoder_input(cells)))), cells.x
        if self.domain == "nonnegative":
            if cells.observed is not None:
                a = a.masked_fill(~cells.observed, -1e30)  # no share for what was not measured
            error = -(_shares(x) * a.log_softmax(-1)).sum(-1)  # (n_cells,)
            term = "cross_entropy", "−Σ p log p̂"
        elif self.domain == "unit interval":
            error = _mean(binary_cross_entropy_with_logits(a, x, reduction="none"), cells)
            term = "binary_cross_entropy", "1/G Σ −x log x̂ − (1−x) log(1−x̂)"
        else:
            error = _mean(mse_loss(a, x, reduction="none"), cells)
            term = "squared_error", "1/G Σ (x − x̂)²"
        return ReconstructionError(Term(*term, -1, error))

    def corrupt(self, x: Tensor) -> Tensor:
        """x with the noise that the option ``noise`` describes, drawn again at each call."""
        noise = self.configuration["noise"]
        if noise and self.domain == "real":
            return x + noise * torch.randn_like(x)
        return x * (torch.rand_like(x) >= noise) if noise else x

    def embed(self, cells: Cells) -> np.ndarray:
        """The code z of each cell; shape (n_cells, n_latent)."""
        return self._over_minibatches(cells, self.encode)

    def reconstruct(self, cells: Cells) -> np.ndarray:
        """The reconstruction x̂ of each cell in the units of x, shape (n_cells, n_genes)."""
        return self._over_minibatches(cells, lambda part: self.decode(self.encode(part), part))

    def prior(self, *_, **__):
        """Not available, and raises a NotImplementedError: an autoencoder has no prior."""
        raise NotImplementedError(
            "An autoencoder has no prior p(z) and no likelihood p(x | z), so it cannot generate "
            "cells, sample them again, or give a bound or log p(x). A vaelab.VAE can."
        )

    elbo = elbo_per_cell = generate = log_marginal = replicate = prior


class _Transposed(nn.Module):
    """The transpose of a linear layer, with a bias of its own."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.of = (layer,)  # in a tuple, so that its weights are not saved twice
        self.bias = nn.Parameter(torch.zeros(layer.in_features))

    def forward(self, z: Tensor) -> Tensor:
        return linear(z, self.of[0].weight.T, self.bias)


def _stack(layers: list[nn.Module], activation: type[nn.Module], rate: float) -> nn.Sequential:
    """The layers, with an activation and dropout after each but the last."""
    hidden = [m for layer in layers[:-1] for m in (layer, activation(), nn.Dropout(rate))]
    return nn.Sequential(*hidden, layers[-1])


def _mean(values: Tensor, cells: Cells) -> Tensor:
    """The mean over the genes observed in each cell, shape (n_cells,)."""
    if cells.observed is None:
        return values.mean(-1)
    return values.where(cells.observed, 0.0).sum(-1) / cells.observed.sum(-1)


def _shares(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)
