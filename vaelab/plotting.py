"""Figures.

Each function takes arrays or a data frame, draws into the given Axes or into new ones, and returns
them. Colour-blind readers can distinguish the colours. If there are more groups than colours, the
markers differ too.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, cycle

import numpy as np

__all__ = [
    "activity",
    "confusion_matrix",
    "count_histogram",
    "embedding",
    "film",
    "graphical_model",
    "interactive",
    "latent_covariance",
    "training_history",
]

# Okabe & Ito (2008), without the yellow that vanishes on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def training_history(frame, best_epoch: int | None = None, axes=None):
    """The bound, and all its terms except the reconstruction, against epochs.

    A term is drawn as the quantity that its name says: a KL is not below zero.

    Parameters
    ----------
    frame
        ``History.frame``.
    best_epoch
        Epoch whose parameters were kept; a line marks it. None for no line.
    axes
        Two Axes to draw into; None for a new figure.

    Returns
    -------
    The two Axes.

    Raises
    ------
    ValueError
        ``frame`` has no epoch.
    """
    if len(frame) == 0:
        raise ValueError("No epoch of this training was finished; there is nothing to draw.")
    if axes is None:
        axes = _figure(1, 2, figsize=(10, 3.2))
    known = {"kl_weight", "bound", "held_out_bound", "seconds"}
    bound, terms = axes
    marker = "o" if len(frame) == 1 else None  # a line through one point is invisible
    bounds = {"training cells": frame["bound"], "held-out cells": frame["held_out_bound"]}
    for colour, (name, values) in zip(COLOURS, bounds.items(), strict=False):
        if values.notna().any():
            bound.plot(frame.index, values, color=colour, marker=marker, label=name)
    if best_epoch is not None:
        bound.axvline(best_epoch, color="0.6", lw=1, ls="--", label=f"kept: epoch {best_epoch}")
    # The first epochs are far below the rest and would flatten everything after them.
    late = np.array([*bounds.values()])[:, len(frame) // 20 :]
    late = late[np.isfinite(late)]
    if late.size:
        bound.set_ylim(bottom=late.min() - 0.1 * (late.max() - late.min() + 1))
    bound.set(xlabel="epoch", ylabel="bound (nats per cell)", title="The bound")
    bound.legend(frameon=False)
    others = [c for c in frame.columns if c not in known and c != "reconstruction"]
    for colour, name in zip(cycle(COLOURS), others, strict=False):
        terms.plot(frame.index, frame[name], color=colour, marker=marker, label=name)
    terms.set(xlabel="epoch", ylabel="nats per cell", title="The other terms, and the KL weight")
    weight = terms.twinx()
    weight.plot(
        frame.index, frame["kl_weight"], color="0.5", ls=":", marker=marker, label="KL weight"
    )
    weight.set_ylim(0, 1.05)
    weight.set_ylabel("KL weight")
    handles = terms.get_lines() + weight.get_lines()
    terms.legend(  # next to the Axes: the curves may be anywhere in them
        handles, [h.get_label() for h in handles], frameon=False,
        loc="center left", bbox_to_anchor=(1.16, 0.5), fontsize=9,
    )  # fmt: skip
    for panel in axes:
        panel.xaxis.get_major_locator().set_params(integer=True)
        if marker:
            panel.set_xticks(frame.index)
    return axes


def embedding(points, values, ax=None, title: str | None = None, name: str | None = None):
    """Cells in two dimensions, coloured by group or by a number.

    The name of each group is written on it. If names would overlap, a legend has them all.

    Parameters
    ----------
    points
        Position of each cell, shape (n_cells, 2).
    values
        One value per cell. Numbers are drawn on a colour scale, all other values as groups.
    ax
        Axes to draw into; None for a new figure.
    title
        Title of the Axes.
    name
        Name and unit of the numbers, for the colour bar.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        ``points`` and ``values`` are not of as many cells, or ``points`` are not finite.
    """
    points, values = _numbers("points", points, ndim=2), np.asarray(values)
    if points.shape != (len(values), 2):
        raise ValueError(
            f"points has shape {points.shape} for {len(values)} values; it must be (n_cells, 2)."
        )
    ax = ax or _figure(figsize=(5.5, 5))
    ax.set(xticks=[], yticks=[], title=title)
    size = float(np.clip(2e4 / len(points), 2, 25))
    if np.issubdtype(values.dtype, np.number):
        order = np.argsort(values)  # high values on top
        drawn = ax.scatter(*points[order].T, c=values[order], s=size, cmap="viridis", lw=0)
        ax.figure.colorbar(drawn, ax=ax, label=name, shrink=0.8)
    else:
        groups, counts = np.unique(values.astype(str), return_counts=True)
        names = []
        for i, group in enumerate(groups[np.argsort(-counts, kind="stable")]):
            at = points[values.astype(str) == group]
            ax.scatter(*at.T, s=size, lw=0, label=group, **_style(i))
            names.append(_write(ax, *np.median(at, axis=0), group))
        boxes = [name.get_window_extent() for name in names]
        if any(a.overlaps(b) for a, b in combinations(boxes, 2)):
            for name in names:
                name.remove()
            ax.legend(
                frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9,
                ncols=1 + len(groups) // 20, markerscale=np.sqrt(25 / size),
            )  # fmt: skip
    return ax


def activity(latent_activity, threshold: float = 0.01, ax=None):
    """The activity of each latent dimension on a log scale, and the threshold for an active one."""
    latent_activity = _numbers("latent_activity", latent_activity, ndim=1)
    ax = ax or _figure(figsize=(5.5, 3))
    dimensions = np.arange(1, len(latent_activity) + 1)
    active = latent_activity > threshold
    ax.bar(dimensions, latent_activity, color=np.where(active, COLOURS[0], "0.75"))
    ax.axhline(threshold, color=COLOURS[5], ls="--", lw=1)
    ax.annotate(
        f"active\nabove\n{threshold:g}", (1.01, threshold), xycoords=("axes fraction", "data"),
        va="center", color=COLOURS[5], fontsize=9,
    )  # fmt: skip
    ax.set(yscale="log", xlabel="latent dimension", ylabel="variance of the posterior mean")
    ax.set_ylim(bottom=min(threshold, max(latent_activity.min(), 1e-6)) / 3)
    ax.set_xticks(dimensions[:: _step(len(dimensions))])
    ax.set_title(f"{active.sum()} of {len(active)} latent dimensions are active")
    return ax


def latent_covariance(latent, ax=None):
    """Covariance over cells of the posterior means; ``latent`` has shape (n_cells, n_latent)."""
    import seaborn as sns

    latent = _numbers("latent", latent, ndim=2)
    ax = ax or _figure(figsize=(4.5, 3.8))
    # For a single dimension np.cov gives a number.
    covariance = np.cov(latent, rowvar=False).reshape(latent.shape[1], -1)
    limit = np.abs(covariance).max()
    step = _step(len(covariance))
    sns.heatmap(
        covariance, ax=ax, cmap="RdBu_r", vmin=-limit, vmax=limit, square=True,
        xticklabels=False, yticklabels=False, cbar_kws={"label": "covariance"},
    )  # fmt: skip
    at = np.arange(0, len(covariance), step)
    ax.set(xticks=at + 0.5, xticklabels=at + 1, yticks=at + 0.5, yticklabels=at + 1)
    ax.set(xlabel="latent dimension", ylabel="latent dimension")
    ax.set_title("Covariance of the posterior means")
    return ax


def count_histogram(
    observed, models: Mapping[str, np.ndarray] | None = None, largest: int | None = None,
    gene: str = "a gene", ax=None,
):  # fmt: skip
    """How often a gene has 0, 1, 2, … counts, in the data and in draws from models.

    Parameters
    ----------
    observed
        Counts of one gene, shape (n_cells,).
    models
        Counts drawn from each model, by the model's name; of any shape.
    largest
        Largest count with a bar of its own; larger counts are added to the last bar. None for the
        98th percentile.
    gene
        Name of the gene, for the axis label.
    ax
        Axes to draw into; None for a new figure.

    Returns
    -------
    The Axes.
    """
    observed = _numbers("observed", observed, ndim=1)
    ax = ax or _figure(figsize=(5, 3.2))
    if largest is None:
        largest = max(4, int(np.quantile(observed, 0.98)))
    width = max(1, -(-(largest + 1) // 40))  # at most 40 bars
    edges = np.arange(0, largest + 1 + width, width) - 0.5

    def share(counts) -> np.ndarray:
        counts = np.minimum(np.asarray(counts).ravel(), edges[-1] - 0.5)
        return np.histogram(counts, edges)[0] / len(counts)

    ax.bar(
        edges[:-1] + width / 2, share(observed), width=0.9 * width, color="0.8", label="observed"
    )
    for i, (name, counts) in enumerate((models or {}).items()):
        style = {"color": COLOURS[i % len(COLOURS)], "ls": "-:"[i // len(COLOURS) % 2], "lw": 1.5}
        ax.step(edges, np.append(share(counts), 0), where="post", label=name, **style)
    together = f" (the last bar: {int(edges[-1] - width + 0.5)} and more)"
    ax.set(xlabel=f"counts of {gene}{together}", ylabel="share of cells", yscale="log")
    ax.set_ylim(bottom=0.3 / len(observed))
    if len(models or ()) <= 3:
        ax.legend(frameon=False)
    else:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def confusion_matrix(truth, found, ax=None, truth_name: str = "type", found_name: str = "cluster"):
    """For each true group, the share of its cells in each found group; rows sum to 1.

    Columns are ordered so that the largest share of each row is near the diagonal.

    Parameters
    ----------
    truth, found
        True and found group of each cell, shape (n_cells,).
    ax
        Axes to draw into; None for a new figure.
    truth_name, found_name
        Axis labels.

    Returns
    -------
    The Axes.
    """
    import pandas as pd
    import seaborn as sns

    table = pd.crosstab(np.asarray(truth).astype(str), np.asarray(found).astype(str))
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    size = table.sum(axis=1)
    names = [f"{name} ({n:,})" for name, n in size.items()]
    share = table.div(size, axis=0)
    if not set(share.columns) <= set(share.index):  # clusters have no order of their own
        share = share[share.columns[np.argsort(share.to_numpy().argmax(0), kind="stable")]]
    else:
        share = share[[name for name in share.index if name in share.columns]]
    if ax is None:
        width = 1.6 + 0.08 * max(map(len, names)) + 0.45 * share.shape[1]
        ax = _figure(figsize=(width, 1 + 0.08 * max(map(len, share.columns)) + 0.38 * len(share)))
    label = share.map(
        lambda v: f"{v:.2f}".lstrip("0") if 0.005 <= v < 0.995 else "1" if v > 0.5 else ""
    )
    sns.heatmap(
        share, annot=label, fmt="", cmap="Blues", vmin=0, vmax=1, ax=ax, linewidths=0.5,
        yticklabels=names, annot_kws={"size": 8}, cbar_kws={"label": "share of the row"},
    )  # fmt: skip
    ax.set(xlabel=found_name, ylabel=truth_name)
    return ax


def graphical_model(graph: Mapping[str, Mapping], show: str = "pq", ax=None):
    """A model as a graph: its variables, and which variables each one depends on.

    Circles are variables; they are shaded if observed. Solid arrows are the generative model p,
    dashed arrows the variational model q. Variables on a plate are repeated, for example once per
    cell.

    Parameters
    ----------
    graph
        For each variable, a dictionary with its position ``at`` (x, y) and, if it has any, its
        parents in the generative model ``p`` and in the variational model ``q``, its ``plates``,
        and ``observed``. ``vaelab.VAE.graph`` is an example.
    show
        Arrows to draw: "p", "q" or "pq".
    ax
        Axes to draw into; None for a new figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        A parent is not in the graph, or a variable is drawn on a plate that is not its own.
    """
    import daft

    nodes = {
        name: daft.Node(name, f"${name}$", *v["at"], observed=v.get("observed", False), fontsize=13)
        for name, v in graph.items()
    }
    arrows = [(a, b, model) for model in show for b, v in graph.items() for a in v.get(model, ())]
    if unknown := {a for a, _, _ in arrows} - set(nodes):
        raise ValueError(
            f"{min(unknown)!r} is named as a parent but is not in the graph: add it, or remove it "
            "from 'p' and 'q'."
        )
    edges, pairs = [], {(a, b) for a, b, _ in arrows}
    for a, b, model in arrows:
        ends = nodes[a], nodes[b]
        if (b, a) in pairs:  # one arrow each way: side by side
            aside = 0.09 * np.array([ends[0].y - ends[1].y, ends[1].x - ends[0].x])
            aside = aside / np.hypot(ends[1].x - ends[0].x, ends[1].y - ends[0].y)
            ends = [daft.Node(n.name, "", n.x + aside[0], n.y + aside[1]) for n in ends]
        style = {"ls": "-" if model == "p" else "--", "head_length": 0.13, "head_width": 0.09}
        edges.append(daft.Edge(*ends, plot_params=style))
    on = {plate: set() for v in graph.values() for plate in v.get("plates", ())}
    for plate, members in on.items():
        members.update(name for name, v in graph.items() if plate in v.get("plates", ()))
    plates, corners = [], [np.array(v["at"]) + d for v in graph.values() for d in (-0.35, 0.35)]
    for plate, members in on.items():
        n_within = sum(len(o) < len(members) and bool(o & members) for o in on.values())
        at = np.array([graph[name]["at"] for name in members])
        low, high = at.min(0) - (0.4, 0.6), at.max(0) + 0.4  # below, the name of the plate
        low, high = low - n_within * np.array([0.12, 0.3]), high + 0.12 * n_within
        for name in sorted(set(graph) - members):
            if (low < graph[name]["at"]).all() and (graph[name]["at"] < high).all():
                raise ValueError(
                    f"{name!r} is drawn on the plate {plate!r} but is not one of its variables: "
                    "move it by 'at', or add the plate to its 'plates'."
                )
        style = {"position": "bottom right", "fontsize": 10, "rect_params": {"fc": "none"}}
        plates.append(daft.Plate([*low, *(high - low)], plate, **style))
        corners += [low, high]
    low, high = np.min(corners, axis=0) - 0.05, np.max(corners, axis=0) + 0.05
    ax = ax or _figure(figsize=high - low)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    ax.set_axis_off()
    context = daft.PGM(grid_unit=1.0, node_unit=0.5)._ctx
    context._ax = ax  # without it, daft makes a figure of its own
    for shape in (*plates, *edges, *nodes.values()):
        shape.render(context)
    return ax


def interactive(draw, **controls):
    """Controls above a figure that is drawn again whenever one of them moves.

    Parameters
    ----------
    draw
        Function that takes the values of the controls by name and returns a Figure.
    controls
        ipywidgets that have a ``value``.

    Returns
    -------
    A widget with the controls and the figure.
    """
    import io

    import ipywidgets
    import matplotlib.pyplot as plt

    # An Image, not an Output with the live figure: without a browser, a run of the notebook loses
    # the Output or waits for it forever.
    picture = ipywidgets.Image(format="png")

    def redraw(_=None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80, bbox_inches="tight")
        plt.close(figure)
        picture.value = buffer.getvalue()

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([*controls.values(), picture])


def film(draw, values, alt: str, seconds: float = 0.12, pause: float = 2.0) -> None:
    """Show a moving picture in the notebook's output; it needs no kernel and no JavaScript.

    Parameters
    ----------
    draw
        Function that takes one of ``values`` and returns a Figure; all figures have one size.
    values
        One value per frame. A value equal to the one before it holds the picture still.
    alt
        Text for readers who do not see the picture: what moves, and what it shows.
    seconds
        Time per frame.
    pause
        Time for which the first and the last frame stand still. Then the film begins again.
    """
    import io

    import matplotlib.pyplot as plt
    from IPython.display import Image, display
    from PIL import Image as Picture

    frames = []
    for value in values:
        figure = draw(value)
        width = figure.get_figwidth() * 80
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160)  # twice the pixels that are shown: sharp
        plt.close(figure)
        frames.append(Picture.open(buffer).convert("RGB").quantize(64))
    times = [1000 * seconds] * len(frames)
    times[0] = times[-1] = 1000 * pause
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0
    )
    display(Image(buffer.getvalue(), format="gif", width=int(width), alt=alt))


def _figure(*shape, figsize):
    import matplotlib.pyplot as plt

    return plt.subplots(*shape, figsize=figsize, layout="constrained")[1]


def _numbers(name: str, values, ndim: int) -> np.ndarray:
    values = np.asarray(values)
    fits = values.dtype.kind in "buif" and values.ndim == ndim and values.size > 0
    if not fits or not np.isfinite(values).all():
        raise ValueError(
            f"{name} must hold finite numbers in {ndim} dimension(s), but has shape "
            f"{values.shape} and holds {values.dtype if not fits else 'NaN or infinite values'}."
        )
    return values


def _step(n: int) -> int:
    """The step between numbered ticks, so that the numbers of n ticks do not overlap."""
    return -(-n // 10)


def _style(i: int) -> dict:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}


def _write(ax, x: float, y: float, text: str):
    import matplotlib.patheffects as effects

    halo = [effects.withStroke(linewidth=2.5, foreground="white")]
    return ax.text(x, y, text, ha="center", va="center", fontsize=9, path_effects=halo)
