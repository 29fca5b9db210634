"""The results, ours next to theirs: ratios, verdicts, a table, and a figure."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field

import numpy as np

INFINITY = math.inf


@dataclass(frozen=True)
class Row:
    """One measurement of both sides, in pairs.

    Parameters
    ----------
    what, unit
        The quantity and its unit, as the table prints them.
    ours, theirs
        One value for each pair; infinite for a time after which it had not happened. ``theirs`` is
        empty if only ours was measured.
    better
        "more" or "less"; None if a ratio has no meaning.
    wanted
        The lowest and highest median ratio that we want; without a ratio, of our own value.
    of
        What was measured, for the JSON and the figure.
    """

    what: str
    unit: str
    ours: list[float]
    theirs: list[float]
    better: str | None = "less"
    wanted: tuple[float, float] | None = None
    of: dict = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """How many times better ours is, for each pair; above 1 is in our favour."""
        if self.better is None:
            return []
        pairs = zip(self.ours, self.theirs, strict=True)
        return [o / t if self.better == "more" else t / o for o, t in pairs]  # t / ∞ is 0

    @property
    def met(self) -> bool | None:
        """True if the result is as wanted; None if nothing is wanted."""
        if self.wanted is None:
            return None
        return self.wanted[0] <= statistics.median(self.ratios or self.ours) <= self.wanted[1]

    @property
    def depends_on_processor(self) -> bool:
        return self.unit in ("s", "CPU s", "cells/s") and INFINITY not in self.ours

    def record(self) -> dict:
        lists = {name: getattr(self, name) for name in ("ours", "theirs", "wanted", "ratios")}
        finite = {
            name: values and [None if math.isinf(v) else v for v in values]
            for name, values in lists.items()
        }
        return asdict(self) | finite | {"met": self.met}


HEADER = f"{'':<56} {'ours':>10} {'scvi-tools':>10} {'':<8} times better [range]"


def line(row: Row, processor: str) -> str:
    """The row of the table. Where a processor decides, a goal that is not met names it."""
    ours, theirs = (number(statistics.median(v)) if v else "" for v in (row.ours, row.theirs))
    text = f"{row.what:<56} {ours:>10} {theirs:>10} {row.unit:<8}"
    if row.ratios:
        low, high = min(row.ratios), max(row.ratios)
        text += f" ×{statistics.median(row.ratios):.2f} [{low:.2f}–{high:.2f}]"
    if row.wanted:
        low, high = row.wanted
        wanted = f"at least ×{low:g}" if high == INFINITY else f"{low:g} to {high:g}"
        text += f"  wanted {wanted}: {'met' if row.met else 'not met'}"
        if not row.met and row.depends_on_processor:
            text += f" on {processor} (another processor may meet it)"
    return text.rstrip()


def number(value: float) -> str:
    if value == INFINITY:
        return "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Verdict:
    """Held-out bounds of both sides in nats per cell, one pair for each seed; more is better.

    Both sides of a pair have the same cells to train on and to be scored on. The exit status of the
    benchmark is that of the verdicts that decide.
    """

    what: str
    ours: list[float]
    theirs: list[float]
    decides: bool = False

    @property
    def differences(self) -> np.ndarray:
        return np.subtract(self.ours, self.theirs)

    @property
    def difference(self) -> float:
        """Mean over seeds of ours minus theirs."""
        return float(self.differences.mean())

    @property
    def two_standard_errors(self) -> float | None:
        """Twice the standard error of the difference; None for a single seed."""
        n_seeds = len(self.ours)
        if n_seeds == 1:
            return None
        return float(2 * np.std(self.differences, ddof=1) / math.sqrt(n_seeds))

    @property
    def worse(self) -> bool | None:
        """True if ours is lower by more than two standard errors, or is NaN; None for one seed."""
        error = self.two_standard_errors
        return None if error is None else not self.difference >= -error

    def record(self) -> dict:
        names = ("difference", "two_standard_errors", "worse")
        return asdict(self) | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        text = (
            f"{self.what}: held-out bound ours {np.mean(self.ours):.2f}, theirs at its best "
            f"{np.mean(self.theirs):.2f} nats per cell, difference {self.difference:+.2f}"
        )
        if self.worse is None:
            return f"{text} (one seed)"
        return (
            f"{text} ± {self.two_standard_errors:.2f} (2 standard errors, {len(self.ours)} seeds)"
            f"  wanted not lower by more: {'not met' if self.worse else 'met'}"
        )


def exponent(sizes, costs) -> float:
    """b in cost ∝ size^b, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def draw(rows: list[Row]):
    """Draw how many times faster we train, and how an epoch grows with cells and genes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (ratios, cells, genes) = plt.subplots(
        1, 3, figsize=(14, 4.2), layout="constrained", width_ratios=(1.7, 1, 1)
    )
    draw_ratios(ratios, [row for row in rows if row.of.get("question") == "training"])
    for axes, name in ((cells, "cells"), (genes, "genes")):
        draw_growth(axes, [row for row in rows if row.of.get("question") == name], name)
    return figure


def draw_ratios(axes, rows: list[Row]) -> None:
    from vaelab.plotting import COLOURS, MARKERS

    settings = list(dict.fromkeys((row.of["data"], row.of["batch_size"]) for row in rows))
    forms = list(dict.fromkeys(row.of["form"] for row in rows))
    for i, form in enumerate(forms):
        for row in (row for row in rows if row.of["form"] == form):
            median = statistics.median(row.ratios)
            x = settings.index((row.of["data"], row.of["batch_size"])) + 0.24 * (i - 0.5)
            axes.errorbar(
                x, median, [[median - min(row.ratios)], [max(row.ratios) - median]],
                color=COLOURS[i], marker=MARKERS[i], capsize=3,
            )  # fmt: skip
            if row.wanted:
                axes.hlines(row.wanted[0], x - 0.12, x + 0.12, color=COLOURS[i], ls=":", lw=2)
        axes.plot([], [], color=COLOURS[i], marker=MARKERS[i], label=form)
    axes.plot([], [], color="0.4", ls=":", lw=2, label="wanted, at least")
    axes.axhline(1, color="0.6", lw=1)
    axes.set_ylim(bottom=0)
    labels = [f"{data}\nbatch {size:,}".replace(", ", "\n", 1) for data, size in settings]
    axes.set_xticks(range(len(settings)), labels, fontsize=8)
    axes.set(ylabel="times the speed of scvi-tools", title="Training: median and range of pairs")
    axes.legend(frameon=False, loc="lower right")


def draw_growth(axes, rows: list[Row], name: str) -> None:
    from matplotlib.ticker import LogLocator

    from vaelab.plotting import COLOURS, MARKERS

    axes.set(
        xscale="log", yscale="log", xlabel=name, ylabel="CPU seconds per epoch",
        title=f"Growth with {name}",
    )  # fmt: skip
    if not rows:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    sizes = [row.of["size"] for row in rows]
    for side, label, colour, marker in (
        ("theirs", "scvi-tools", COLOURS[1], MARKERS[1]),
        ("ours", "vaelab", COLOURS[0], MARKERS[0]),
    ):
        costs = [statistics.median(getattr(row, side)) for row in rows]
        if len(rows) > 1:
            label += f": ∝ {name}$^{{{exponent(sizes, costs):.2f}}}$"
        axes.plot(sizes, costs, color=colour, marker=marker, label=label)
    start, end = costs[0], costs[0] * sizes[-1] / sizes[0]
    axes.plot([sizes[0], sizes[-1]], [start, end], color="0.6", ls=":", label="in proportion")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(frameon=False)
