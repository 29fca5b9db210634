"""The MLP that all models are built from, a masked layer, and a context for evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from ._internal.arguments import require, require_size
from ._internal.processes import several, standardized

__all__ = ["MLP", "Masked", "evaluating"]


class MLP(nn.Sequential):
    """Hidden layers of Linear → normalisation → ReLU → dropout, then a linear output.

    Parameters
    ----------
    n_in
        Number of inputs.
    n_out
        Number of outputs of the linear last layer. None for no output layer: the network then ends
        after the last hidden layer, and a likelihood adds its own output layer.
    n_hidden, n_layers
        Width and number of hidden layers. With 0 hidden layers the network is linear.
    dropout_rate
        Probability that a hidden unit is set to zero while training.
    n_conditions
        Number of values that every hidden layer receives in addition to its input, such as a
        one-hot batch: scVI's "deeply injected covariates". They are ``forward``'s second argument.
    normalization
        "batch" (over the minibatch, as in scVI: in training, the result for one cell depends on the
        other cells), "layer" (each cell on its own) or None.

    Raises
    ------
    ValueError
        The normalisation is unknown, a size or rate is out of range, there is neither a hidden
        layer nor an output, or there are conditions but no hidden layer that could receive them.
    """

    layers_per_block = 4  # linear, normalisation, ReLU, dropout

    def __init__(
        self,
        n_in: int,
        n_out: int | None = None,
        *,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        normalization: str | None = "batch",
        n_conditions: int = 0,
    ):
        require("n_layers", n_layers, Integral, lambda n: n >= 0, "a whole number, 0 or more")
        require_size("n_hidden", n_hidden)
        require("dropout_rate", dropout_rate, Real, lambda r: 0 <= r < 1, "from 0 to below 1")
        if normalization not in [*NORMALIZATIONS]:
            raise ValueError(f"normalization is {normalization!r}; choose from {[*NORMALIZATIONS]}")
        if n_layers == 0 and n_out is None:
            raise ValueError(
                "n_layers is 0; it must be at least 1 in a model, and in an MLP without an output "
                "layer (n_out=None)."
            )
        if n_layers == 0 and n_conditions > 0:
            raise ValueError(
                f"An MLP without hidden layers cannot use its {n_conditions} conditions: hidden "
                "layers receive them."
            )
        layers: list[nn.Module] = []
        for _ in range(n_layers):
            layers += [
                Conditioned(n_in + n_conditions, n_hidden),
                NORMALIZATIONS[normalization](n_hidden),
                nn.ReLU(),
                nn.Dropout(dropout_rate),
            ]
            n_in = n_hidden
        if n_out is not None:
            layers.append(nn.Linear(n_in, n_out))
        super().__init__(*layers)
        self.n_out = n_hidden if n_out is None else n_out
        self.n_hidden_layers, self.n_conditions = n_layers, n_conditions

    def forward(self, x: Tensor, conditions: Tensor | None = None) -> Tensor:
        """The output for x of shape (…, n_in) and conditions (…, n_conditions); (…, n_out).

        Raises
        ------
        ValueError
            The number of conditions is not ``n_conditions``.
        """
        n_given = 0 if conditions is None else conditions.shape[-1]
        if n_given != self.n_conditions:
            raise ValueError(
                f"This MLP has n_conditions={self.n_conditions}, but got {n_given} conditions."
            )
        for layer in self:
            x = layer(x, conditions) if isinstance(layer, Conditioned) else layer(x)
        return x


class Conditioned(nn.Linear):
    """The linear part of a hidden layer; the conditions are the end of its input.

    The last ``n_added`` conditions were added to a fitted network. They have a product of their
    own, so that without them the result is that of the old network, bit for bit.
    """

    n_added = 0

    def forward(self, x: Tensor, conditions: Tensor | None = None) -> Tensor:
        if conditions is None:
            return super().forward(x)
        conditions, n_old = conditions.expand(*x.shape[:-1], -1), self.in_features - self.n_added
        x = torch.cat([x, conditions], dim=-1)
        if not self.n_added:
            return super().forward(x)
        old, added = self.weight[:, :n_old].contiguous(), self.weight[:, n_old:]
        y = nn.functional.linear(x[..., :n_old].contiguous(), old, self.bias)
        return y + x[..., n_old:] @ added.T


class Masked(nn.Linear):
    """y = (W ∘ mask) h + b: output i depends on input j only where mask[i, j] is 1, not 0."""

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self.weight * self.mask, self.bias)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that uses its running statistics for a minibatch of one cell.

    If several processes train together, the statistics are those of the whole minibatch.
    """

    def __init__(self, n_features: int):
        # scVI's ε. Its momentum of 0.01 needs some 200 steps, 30 epochs of a small data set, until
        # the running statistics are those of the cells.
        super().__init__(n_features, eps=1e-3, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.num_features)  # draws × cells are all rows
        if self.training and several():
            rows = self._over_processes(rows)
        elif self.training and len(rows) == 1:
            rows = nn.functional.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        else:
            rows = super().forward(rows)
        return rows.reshape(x.shape)

    def _over_processes(self, rows: Tensor) -> Tensor:
        x, n, mean, variance = standardized(rows, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        return torch.addcmul(self.bias, x, self.weight)


NORMALIZATIONS = {"batch": BatchNorm, "layer": nn.LayerNorm, None: nn.Identity}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside: no dropout, running statistics, no gradients, no mixed precision."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        model.train(training)
