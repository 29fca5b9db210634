"""Labels of some of the cells: what a model needs that learns types from them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

from .._internal.names import require_labels, require_names
from ..cells import Cells

__all__ = ["Labelled"]


class Labelled:
    """A model of ``n_labels`` types; a part of :class:`vaelab.SCANVI`."""

    def one_hot_label(self, cells: Cells) -> Tensor:
        """The labels one-hot, shape (n_cells, C); 0 for a cell without a label."""
        if self.label_names not in (None, cells.label_names):
            self.require_compatible(cells)  # labels of other types
        return one_hot(cells.label + 1, self.configuration["n_labels"] + 1)[:, 1:].to(self.dtype)

    def require_compatible(self, cells: Cells) -> None:
        super().require_compatible(cells)
        if (cells.label >= 0).any():
            n_labels = self.configuration["n_labels"]
            require_names("label", self.label_names, n_labels, cells.label_names)

    def prepare(self, cells: Cells) -> None:
        require_labels(cells, self.label_names)
        super().prepare(cells)
        self.label_names = self.label_names or cells.label_names
