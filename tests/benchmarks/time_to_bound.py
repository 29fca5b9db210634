"""How long a training takes to reach a bound on cells that it has not seen.

Three contenders train the same VAE on the same real cells: scvi-tools at its defaults, scvi-tools
with the settings in ``DATA``, which were chosen for it on other seeds, and ``vaelab.fit`` at its
defaults. For each seed, ``fit`` splits the cells into those to train on and those held out. The
others get the same rows. After each epoch, one function scores each model on the held-out cells.

Seconds are the CPU time of one thread. For scvi-tools they begin with the first epoch. For vaelab
they begin with the call of ``fit``, and include what ``fit`` itself does with the held-out cells,
because its user waits for that too. Time spent on scoring is counted for nobody.

``fit`` keeps the epoch that is best on the held-out cells, which favours it a little on just these
cells. So scvi-tools is given the same advantage: of its epochs the best on the same cells counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import anndata
import numpy as np
from contenders import clock, fit_ours, fit_theirs, make_ours, make_theirs, score
from report import INFINITY, Row, Verdict

import vaelab

DEFAULTS, TUNED, OURS = "scvi-tools at its defaults", "scvi-tools tuned", "vaelab at its defaults"


@dataclass(frozen=True)
class Data:
    """Real cells; the settings tuned for scvi-tools on them; and how many times sooner we want."""

    load: Callable
    learning_rate: float
    warmup_epochs: int  # epochs over which the KL weight rises
    epochs: int
    wanted: float  # to the best bound of scvi-tools at its defaults


DATA = {
    "pbmc_sorted": Data(
        vaelab.datasets.pbmc_sorted, learning_rate=1e-2, warmup_epochs=20, epochs=60, wanted=15
    ),
    "mouse 1": Data(
        vaelab.datasets.pancreas, learning_rate=1e-3, warmup_epochs=20, epochs=200, wanted=5
    ),
}
WANTED_TUNED = 2.5  # times sooner to a bound that is BELOW_TUNED nats below the best of TUNED
BELOW_TUNED = 1.0


class Curve:
    """The held-out bound in the course of one training, against the CPU seconds until then.

    Attributes
    ----------
    bounds
        Bound after each epoch, nats per cell; the last one is that of the model that is kept.
    seconds
        CPU seconds of training until then.
    """

    def __init__(self):
        self.bounds: list[float] = []
        self.seconds: list[float] = []

    def start(self) -> None:
        self.origin = clock("cpu")

    def mark(self, model, held_out, seed: int) -> None:
        now = clock("cpu")
        self.seconds.append(now - self.origin)
        self.bounds.append(score(model, held_out, seed))
        self.origin += clock("cpu") - now  # scoring is not part of training

    @property
    def best(self) -> float:
        return float(np.nanmax(self.bounds))

    def reach(self, bound: float) -> float:
        """The seconds until the held-out bound is at least ``bound``; infinite if it never is."""
        pairs = zip(self.seconds, self.bounds, strict=True)
        return next((seconds for seconds, found in pairs if found >= bound), math.inf)

    def __str__(self) -> str:
        return (
            f"best {self.best:.1f} after {self.reach(self.best):.1f} s, "
            f"at the end {self.bounds[-1]:.1f} after {self.seconds[-1]:.1f} s"
        )


def curve_of_ours(adata, seed: int, epochs: int | None = None) -> tuple:
    """A Curve of ``fit`` at its defaults, the rows that it trained on, and the held-out cells."""
    (model, cells), curve, split = make_ours(adata, seed=seed), Curve(), {}

    def after_epoch(run) -> None:
        split["rows"], split["held_out"] = np.sort(run.training_rows), run.held_out
        curve.mark(model, run.held_out, seed)

    curve.start()
    fit_ours(model, cells, after_epoch, seed=seed, **({"epochs": epochs} if epochs else {}))
    curve.mark(model, split["held_out"], seed)  # fit has restored the best parameters
    return curve, split["rows"], split["held_out"]


def curve_of_theirs(adata, held_out, seed: int, epochs: int | None, plan: dict) -> Curve:
    """A Curve of scvi-tools; no ``epochs`` and an empty ``plan`` are its defaults."""
    model, curve = make_theirs(adata, seed=seed), Curve()
    fit_theirs(
        model, lambda: curve.mark(model, held_out, seed), curve.start,
        max_epochs=epochs, plan_kwargs=plan,
    )  # fmt: skip
    return curve


def curves(name: str, seeds: int, epochs: int | None, found: dict[str, list[Curve]]) -> None:
    """Train all contenders with each seed, and add the Curves of a seed to ``found``.

    ``epochs`` limits the number of epochs of each training, for a trial.
    """
    data = DATA[name]
    adata = vaelab.select_genes(data.load())
    adata = anndata.AnnData(adata.X.tocsr(), var=adata.var[[]])

    tuned = {"lr": data.learning_rate, "n_epochs_kl_warmup": data.warmup_epochs}
    for seed in range(seeds):
        ours, rows, held_out = curve_of_ours(adata, seed, epochs)
        print(f"{name}, seed {seed}, {OURS}: {ours}", flush=True)
        of_seed, training = {OURS: ours}, adata[rows].copy()
        for contender, limit, plan in (
            (DEFAULTS, epochs, {}),
            (TUNED, min(epochs or data.epochs, data.epochs), tuned),
        ):
            of_seed[contender] = curve_of_theirs(training, held_out, seed, limit, plan)
            print(f"{name}, seed {seed}, {contender}: {of_seed[contender]}", flush=True)
        for contender, curve in of_seed.items():
            found.setdefault(contender, []).append(curve)


def rows_of(name: str, found: dict[str, list[Curve]], judge: bool = True) -> list[Row]:
    """The seconds until each bound; nothing is wanted if ``judge`` is False."""
    rows = []
    for what, contender, below, wanted in (
        ("the best bound of its defaults", DEFAULTS, 0.0, DATA[name].wanted),
        (f"{BELOW_TUNED:g} nat below the best of it tuned", TUNED, BELOW_TUNED, WANTED_TUNED),
    ):
        targets = [curve.best - below for curve in found[contender]]
        ours, theirs = (
            [curve.reach(bound) for curve, bound in zip(found[side], targets, strict=True)]
            for side in (OURS, contender)
        )
        rows.append(
            Row(
                f"{name}, to {what}", "CPU s", ours, theirs,
                wanted=(wanted, INFINITY) if judge else None,
                of={"question": "time", "data": name, "contender": contender, "bounds": targets},
            )
        )  # fmt: skip
    return rows


def verdicts_of(name: str, found: dict[str, list[Curve]]) -> list[Verdict]:
    """The bound of the model that ``fit`` kept, next to the best epoch of scvi-tools."""
    ours = [curve.bounds[-1] for curve in found[OURS]]
    return [
        Verdict(f"{name}, {contender}", ours, [curve.best for curve in found[contender]], decides)
        for contender, decides in ((DEFAULTS, True), (TUNED, False))
    ]


def record(found: dict[str, list[Curve]]) -> dict:
    return {
        contender: [{"seconds": curve.seconds, "bounds": curve.bounds} for curve in of_seeds]
        for contender, of_seeds in found.items()
    }


def message(rows: list[Row]) -> str:
    """What the figure shows, in one sentence."""
    times = {
        row.of["data"]: statistics.median(row.ratios)
        for row in rows
        if row.of["contender"] == DEFAULTS
    }
    if not all(times.values()):
        never = " and ".join(name for name, ratio in times.items() if not ratio)
        return f"vaelab does not reach the best held-out bound of scvi-tools' defaults on {never}"
    sooner = " and ".join(f"×{ratio:.2g} sooner on {name}" for name, ratio in times.items())
    return f"vaelab reaches the best held-out bound of scvi-tools' defaults {sooner}"


def draw(of_data: dict[str, dict[str, list[Curve]]], trial: bool = False):
    """Draw held-out bounds against CPU seconds, one panel per data set and one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from vaelab.plotting import COLOURS, MARKERS

    figure, panels = plt.subplots(
        1, len(of_data), figsize=(5.5 * len(of_data), 4.4), layout="constrained", squeeze=False
    )
    for axes, (name, found) in zip(panels[0], of_data.items(), strict=True):
        for contender, i in ((DEFAULTS, 1), (TUNED, 2), (OURS, 0)):
            for curve in found[contender]:
                axes.plot(curve.seconds, curve.bounds, color=COLOURS[i], lw=1)
                at = curve.reach(curve.best), curve.best
                axes.plot(*at, color=COLOURS[i], marker=MARKERS[i], ms=6)
            axes.plot([], [], color=COLOURS[i], marker=MARKERS[i], lw=1.5, label=contender)
        every = [curve for of_seeds in found.values() for curve in of_seeds]
        worst = min(min(curve.bounds[-1], curve.best) for curve in every)
        best = max(curve.best for curve in every)
        # The first epochs are far below the rest and would flatten everything after them.
        bottom = worst - (best - worst) - 2
        axes.set_ylim(bottom, best + 0.1 * (best - worst) + 1)
        axes.set_xlim(left=0.8 * min(curve.reach(bottom) for curve in every))
        axes.set(xscale="log", xlabel="CPU seconds of training", title=name)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    panels[0, 0].set_ylabel("held-out bound (nats per cell)")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False,
        title="one line per seed; the marker is its best epoch",
    )  # fmt: skip
    rows = [row for name, found in of_data.items() for row in rows_of(name, found)]
    figure.suptitle("A trial with few epochs" if trial else message(rows), fontsize=12)
    return figure
