"""VASC: a VAE of values in [0, 1] with a zero-inflation layer (Wang & Gu 2018).

Generative model, for each cell and gene:

    z ~ N(0, I)                        n_latent dimensions
    ŷ_g = σ(f_g(z))
    d_g ~ Bernoulli(exp(−ŷ_g²))        1 for a dropout
    x_g = 0 if d_g = 1, else x_g ~ CB(logit ŷ_g)

Variational model and bound: those of :class:`vaelab.VAE` (Kingma & Welling 2014, equation 3), with
the dropout summed out. A continuous Bernoulli is never exactly 0, so that every zero is a dropout:

    log p(0 | z) = −ŷ²,    log p(x | z) = log(1 − exp(−ŷ²)) + log CB(x; logit ŷ) for x > 0

=============  ================================================================
symbol         where
=============  ================================================================
f              ``decoder`` and ``likelihood.output``
d              ``ZeroLayer``, which is ``likelihood``
p(x | z)       ``decode(z, cells)``, a ``ZeroInflated`` continuous Bernoulli
the bound      ``elbo(cells)``
=============  ================================================================

The box that changes is the likelihood. ``zero_layer`` says how d is treated while training:

* "sum": it is summed out, as above.
* "gumbel": as in the paper, it is drawn, relaxed by the Gumbel trick. The output is ŷ(1 − d), and
  the objective is not a bound. In evaluation the model is the same as with "sum".
* None: there is no d, and p(x | z) is CB(logit ŷ). Its bound is one on a density, also at 0, and
  cannot be compared with the other bound, in which a zero has a probability.

Where it departs from the authors' code: the cross-entropy there is not the logarithm of a density,
and CB adds its normalising constant; q has a variance that is learned, which in the code is an
option (its default is the constant e); the hidden layers have one width; there is no L1 penalty.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from ...distributions import ContinuousBernoulli, ZeroInflated
from ...likelihoods import ContinuousBernoulliLikelihood
from ...reparametrization import gumbel_softmax, seeded
from ..vae import VAE

__all__ = ["VASC"]

ZERO_LAYERS = ("sum", "gumbel", None)


class VASC(VAE):
    """VAE of values in [0, 1] in which each output is dropped with probability exp(−ŷ²).

    Parameters
    ----------
    n_genes
        Number of genes, G.
    n_latent
        Number of latent dimensions; 2 in the paper.
    zero_layer
        "sum", "gumbel" or None: see above.
    temperature
        Temperature of the relaxed draw; only "gumbel" uses it.
    input_dropout
        Probability that an input of the encoder is set to zero while training.
    n_hidden, n_layers, dropout_rate, normalization, seed
        Same as in :class:`vaelab.VAE`.

    Raises
    ------
    ValueError
        The zero layer is unknown, or an option is out of range.
    """

    graph = {
        "z": {"at": (0, 1.4), "q": ("x_g",), "plates": ("cells",)},
        "d_g": {"at": (1.2, 0), "p": ("z",), "plates": ("cells", "genes")},
        "x_g": {"at": (0, 0), "p": ("z", "d_g"), "observed": True, "plates": ("cells", "genes")},
    }

    def __init__(
        self, n_genes: int, *, n_latent: int = 2, zero_layer: str | None = "sum",
        temperature: float = 1.0, input_dropout: float = 0.5, n_hidden: int = 128,
        n_layers: int = 1, dropout_rate: float = 0.0, normalization: str | None = "batch",
        seed: int = 0,
    ):  # fmt: skip
        super().__init__(
            n_genes, n_latent=n_latent, n_hidden=n_hidden, n_layers=n_layers,
            dropout_rate=dropout_rate, likelihood="continuous_bernoulli",
            normalization=normalization, seed=seed,
        )  # fmt: skip
        if zero_layer not in ZERO_LAYERS:
            raise ValueError(f"zero_layer is {zero_layer!r}; choose from {[*ZERO_LAYERS]}.")
        self.encoder = nn.Sequential(nn.Dropout(input_dropout), self.encoder)
        with seeded(seed):
            layer = ZeroLayer(self.decoder.n_out, n_genes, zero_layer, temperature)
        layer.load_state_dict(self.likelihood.state_dict())
        self.likelihood = layer


class ZeroLayer(ContinuousBernoulliLikelihood):
    """p(x | z) with the dropout of the paper: summed out, drawn while training, or left out."""

    def __init__(self, n_in: int, n_genes: int, zero_layer: str | None, temperature: float):
        super().__init__(n_in, n_genes)
        self.zero_layer, self.temperature = zero_layer, temperature

    def forward(self, h: Tensor, library: Tensor, batch: Tensor | None = None) -> Distribution:
        p = super().forward(h, library)
        if self.zero_layer is None:
            return p
        log_y = logsigmoid(p.logits)
        y2 = (2 * log_y).exp().clamp(min=1e-30)
        log_kept = 2 * log_y + torch.log(-torch.expm1(-y2) / y2)  # log(1 − e^{−ŷ²}), also at ŷ → 0
        if self.zero_layer == "gumbel" and self.training:
            kept = gumbel_softmax(torch.stack([-y2, log_kept], -1), self.temperature)[..., 1]
            logits = torch.logit(log_y.exp() * kept, eps=1e-7)  # Keras's cross-entropy has this ε
            return ContinuousBernoulli(logits, validate_args=False)
        return ZeroInflated(p, -y2 - log_kept, validate_args=False)
