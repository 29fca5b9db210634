"""Parts that only the zoo uses: a layer with a mask, and two measurements side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ...distributions import CountDistribution

__all__ = ["Masked", "SideBySide"]


class Masked(nn.Linear):
    """y = (W ∘ mask) h + b: output i depends on input j only where mask[i, j] is 1, not 0."""

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self.weight * self.mask, self.bias)


class SideBySide(CountDistribution):
    """Measurements of the same cells, such as RNA and then proteins: each part has own columns."""

    arg_constraints = {}

    def __init__(self, *parts: Distribution):
        self.parts, self.widths = parts, [part.batch_shape[-1] for part in parts]
        shape = (*parts[0].batch_shape[:-1], sum(self.widths))
        super().__init__(torch.Size(shape), validate_args=False)

    mean = property(lambda self: torch.cat([part.mean for part in self.parts], -1))
    variance = property(lambda self: torch.cat([part.variance for part in self.parts], -1))

    def log_prob(self, value: Tensor) -> Tensor:
        sections = zip(self.parts, value.split(self.widths, -1), strict=True)
        return torch.cat([part.log_prob(section) for part, section in sections], -1)

    def posterior_mean(self, value: Tensor) -> Tensor:
        sections = zip(self.parts, value.split(self.widths, -1), strict=True)
        return torch.cat([part.posterior_mean(section) for part, section in sections], -1)

    def sample(self, sample_shape=()) -> Tensor:
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)
