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
        One value for each pair.
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
        return [o / t if self.better == "more" else t / o for o, t in pairs]

    @property
    def met(self) -> bool | None:
        """True if the result is as wanted; None if nothing is wanted."""
        if self.wanted is None:
            return None
        return self.wanted[0] <= statistics.median(self.ratios or self.ours) <= self.wanted[1]

    def record(self) -> dict:
        wanted = self.wanted and [None if v == INFINITY else v for v in self.wanted]
        return asdict(self) | {"wanted": wanted, "ratios": self.ratios, "met": self.met}


HEADER = f"{'':<56} {'ours':>10} {'scvi-tools':>10} {'':<8} times better [range]"


def line(row: Row) -> str:
    """The row of the table."""
    ours, theirs = (number(statistics.median(v)) for v in (row.ours, row.theirs))
    text = f"{row.what:<56} {ours:>10} {theirs:>10} {row.unit:<8}"
    if row.ratios:
        low, high = min(row.ratios), max(row.ratios)
        text += f" ×{statistics.median(row.ratios):.2f} [{low:.2f}–{high:.2f}]"
    if row.wanted:
        low, high = row.wanted
        wanted = f"at least ×{low:g}" if high == INFINITY else f"{low:g} to {high:g}"
        text += f"  wanted {wanted}: {'met' if row.met else 'MISSED'}"
    return text.rstrip()


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Verdict:
    """Held-out bounds of both sides in nats per cell, one value per seed; more is better."""

    ours: list[float]
    theirs: list[float]

    @property
    def difference(self) -> float:
        """Mean of ours minus mean of theirs."""
        return float(np.mean(self.ours) - np.mean(self.theirs))

    @property
    def sd(self) -> float:
        """Standard deviation, over seeds, of one run of ours minus one of theirs.

        The two variances add up, because the same seed gives unrelated draws in the two packages.
        The held-out cells are the same for all seeds, so the spread between cells is not in it.
        """
        return math.sqrt(statistics.variance(self.ours) + statistics.variance(self.theirs))

    @property
    def worse(self) -> bool:
        """True if ours is more than 2 sd below theirs, or is NaN."""
        return not self.difference >= -2 * self.sd

    def record(self) -> dict:
        found = {"difference": self.difference, "sd": self.sd, "worse": self.worse}
        return asdict(self) | found

    def __str__(self) -> str:
        ours, theirs = (
            f"{np.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in (self.ours, self.theirs)
        )
        found = "WORSE by more than 2 sd" if self.worse else "within 2 sd, or better"
        return (
            f"held-out bound, {len(self.ours)} seeds: ours {ours}, scvi-tools {theirs} nats "
            f"per cell; difference {self.difference:+.2f}, 2 sd {2 * self.sd:.2f}: {found}"
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
