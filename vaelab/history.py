"""What happened while a model was trained, and the progress bar that shows it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum

from . import plotting
from .metrics import usage

__all__ = ["History", "ProgressBar", "StopReason"]


class StopReason(StrEnum):
    """Why training ended."""

    NOT_STARTED = "not started"
    ALL_EPOCHS = "all epochs"
    NO_PROGRESS = "no progress"
    INTERRUPTED = "interrupted"


@dataclass
class History:
    """What happened in each epoch.

    Attributes
    ----------
    records
        One dictionary per epoch: the rows of ``frame``.
    shares
        For each discrete latent variable, one row per epoch: the mean of q over the training cells,
        which is the share of cells that each value has.
    best_epoch
        The epoch whose parameters were kept; None if the last ones were.
    reason
        Why training ended.
    stopped
        The same as a sentence.
    settings
        The settings of ``fit``, with the values that it chose itself.
    chosen
        For each setting that ``fit`` chose itself, a sentence that says what and why.
    """

    records: list[dict] = field(default_factory=list)
    shares: dict[str, list[list[float]]] = field(default_factory=dict)
    best_epoch: int | None = None
    reason: StopReason = StopReason.NOT_STARTED
    stopped: str = "not started"
    settings: dict = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.reason = StopReason(self.reason)  # a checkpoint holds it as text

    @property
    def frame(self):
        """The history as a pandas DataFrame, indexed by epoch (from 1).

        Its columns are the KL weight at the end of the epoch; the value of each term and the bound
        on the training cells (mean over the epoch, nats per cell, dropout on), which is the sum of
        the terms or, if the objective is "iwae", the importance-weighted bound; the bound on the
        held-out cells (NaN if there are none); and the duration in seconds. An autoencoder has no
        KL weight, and an "error" and a "held_out_error" in place of the bounds.
        """
        import pandas as pd

        none_yet = ["epoch", "kl_weight", "bound", "held_out_bound", "seconds"]
        columns = None if self.records else none_yet
        return pd.DataFrame(self.records, columns=columns).set_index("epoch")

    def usage(self, name: str = "y"):
        """How many values of a discrete latent variable are in use, in each epoch.

        Parameters
        ----------
        name
            Name of the variable: "y" in a GMVAE, "c" in a SCANVI.

        Returns
        -------
        A pandas DataFrame with two columns: "used", the number of values with a share of the cells
        above ``metrics.USED``; and "entropy", the entropy of the shares in nats, which is log K if
        all K values are used equally and 0 if only one is used.

        Raises
        ------
        KeyError
            The model does not have this variable.
        """
        import pandas as pd

        if name not in self.shares:
            raise KeyError(f"No discrete variable {name!r}; this model has {[*self.shares]}.")
        used = [usage(shares) for shares in self.shares[name]]
        return pd.DataFrame(used, index=pd.RangeIndex(1, len(used) + 1, name="epoch"))

    def plot(self, axes=None):
        """Draw the bound and its terms, or the error, against epochs; returns the Axes."""
        return plotting.training_history(self.frame, self.best_epoch, axes)

    def __repr__(self) -> str:
        return f"History({len(self.records)} epochs, {self.stopped})"


class ProgressBar:
    """A progress bar with the bound and its terms, or with the error."""

    def __init__(self, epochs: int, done: int, show: bool):
        from tqdm import tqdm

        # Standard output: notebooks show standard error in red, as if something were wrong.
        self.bar = tqdm(total=epochs, initial=done, unit="epoch", disable=not show, file=sys.stdout)

    def update(self, history: History) -> None:
        hidden = ("epoch", "kl_weight", "seconds")
        record = history.records[-1]
        digits = ".1f" if "bound" in record else ".4g"  # an error has no usual size
        shown = {k: f"{v:{digits}}" for k, v in record.items() if k not in hidden and v == v}
        for name, shares in history.shares.items():
            now = usage(shares[-1])
            shown[name] = f"{now['used']}/{len(shares[-1])} H {now['entropy']:.2f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()
