"""Weights for new batches in a fitted model: scArches' surgery (Lotfollahi et al. 2022).

``model.extend(batches=[…])`` adds the weights, and ``fit(…, train="new batch")`` trains them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from .._internal.saving import NAMES
from ..cells import Cells
from ..networks import Conditioned

__all__ = ["Extensible"]


class Extensible:
    """What a model with batches needs, so that it can be extended by new ones."""

    def extend(self, *, batches: str | Sequence[str]) -> Self:
        """A copy of the fitted model that has weights for new batches too.

        Each new batch gets a column in every layer that receives the batch as input, its own row of
        a "gene-batch" dispersion, and its own prior of a latent library size. They start at the
        mean over the batches of this model. All other weights are equal to those of this model, so
        its cells keep their embedding, bit for bit. Train the new weights on the new cells only::

            extended = model.extend(batches=["mouse 2"])
            cells = cells.aligned_to(extended)
            fit(extended, cells, train="new batch")

        With ``encode_batch=False``, the encoder does not receive the batch as input: then nothing
        that is trained can change the embedding of the new cells, only what is decoded from it.
        Choose ``encode_batch=True`` for a model to which other experiments will be mapped.

        Parameters
        ----------
        batches
            Names of the new batches, as in ``cells.batch_names``.

        Returns
        -------
        A model of the same class in evaluation mode; ``new_batches`` has the new names. This model
        does not change.

        Raises
        ------
        ValueError
            The model has not been fitted, no batch is named, or a name is not new.
        """
        if self.batch_names is None:
            raise ValueError("The model has no batch names: fit it before you extend it.")
        names = (batches,) if isinstance(batches, str) else tuple(map(str, batches))
        if not names or {*names} & {*self.batch_names} or len({*names}) < len(names):
            raise ValueError(
                f"batches is {[*names]}; it must name one new batch or more, each once and none of "
                f"those that the model has: {', '.join(self.batch_names)}."
            )
        n_old, n_new = len(self.batch_names), len(names)
        extended = type(self)(**self.configuration | {"n_batches": n_old + n_new})
        extended.to(self.device, self.dtype)
        state = self.state_dict()
        for name, dim in extended.entries_of_batches().items():
            old, size = state[name], extended.state_dict()[name].shape[dim]
            n_added = size - old.shape[dim]
            if n_added == n_new:
                mean = old.narrow(dim, old.shape[dim] - n_old, n_old).mean(dim, keepdim=True)
            else:  # a single batch had no column
                mean = torch.zeros_like(old.narrow(dim, 0, 1))
            state[name] = torch.cat([old, mean.repeat_interleave(n_added, dim)], dim)
        extended.load_state_dict(state)
        for name in NAMES:
            setattr(extended, name, getattr(self, name))
        extended.batch_names += names
        extended.new_batches = (self.new_batches or ()) + names
        return extended.eval()

    @property
    def new_batches(self) -> tuple[str, ...] | None:
        """Names of the batches that ``extend`` added; None without any."""
        return self.__dict__.get("_new_batches")

    @new_batches.setter
    def new_batches(self, names: tuple[str, ...] | None) -> None:
        self.__dict__["_new_batches"] = names
        n_batches, n_new = self.configuration["n_batches"], len(names or ())
        if n_batches - n_new == 1:  # a single batch had no column
            n_new = n_batches
        for name, dim in self.entries_of_batches().items():
            if dim == 1:
                self.get_submodule(name.removesuffix(".weight")).n_added = n_new

    def entries_of_batches(self) -> dict[str, int]:
        """The parameters and buffers that end in one entry per batch, and in which dimension."""
        options, state = self.configuration, self.state_dict()
        networks = ["decoder"]
        networks += ["encoder", "library_encoder"] if options["encode_batch"] else []
        networks += ["encoder_z2"] if options.get("encode_batch_z2") else []
        columns = [
            f"{network}.{i}.weight"
            for network in networks
            for i, layer in enumerate(getattr(self, network, ()))
            if isinstance(layer, Conditioned)
        ]
        rows = ["library_log_mean", "library_log_std"]
        rows += ["likelihood.log_inverse_dispersion"] * (options["dispersion"] == "gene-batch")
        return dict.fromkeys(columns, 1) | {name: 0 for name in rows if name in state}

    def new_weights(self, cells: Cells) -> dict[str, Tensor]:
        """Masks of the entries of the cells' batches, for each parameter that has entries."""
        n_batches, parameters, masks = len(self.batch_names), dict(self.named_parameters()), {}
        has_cells = torch.bincount(cells.batch, minlength=n_batches).to(self.device) > 0
        for name, dim in self.entries_of_batches().items():
            if name in parameters:
                mask = torch.zeros_like(parameters[name], dtype=torch.bool)
                entries = mask.movedim(dim, -1)  # a view
                entries[..., -n_batches:] = has_cells
                masks[name] = mask
        return masks

    def require_new_batches(self, cells: Cells) -> None:
        """Refuse cells from which the weights of new batches cannot be trained.

        Raises
        ------
        ValueError
            The model was not extended, or there are cells of the batches that it had before.
        """
        if not self.new_batches:
            raise ValueError(
                "The model has no new batch: make one with model.extend(batches=[…]) first."
            )
        is_old = cells.batch < len(self.batch_names) - len(self.new_batches)
        if is_old.any():
            raise ValueError(
                f"train='new batch' trains the weights of {', '.join(self.new_batches)} only, and "
                f"{int(is_old.sum()):,} of these cells are of another batch "
                f"({self.batch_names[int(cells.batch[is_old][0])]!r}): leave them out."
            )
