"""Figures.

Most functions take arrays or a data frame, draw into the given Axes or into new ones, and return
them; `show` puts the figure into the notebook. Groups differ in colour and in marker. A cell type
has one colour in the whole course.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations, cycle, pairwise

import numpy as np

from ._internal.colours import confused

__all__ = [
    "activity",
    "calibration_of_calls",
    "confusion_matrix",
    "count_histogram",
    "embedding",
    "film",
    "graphical_model",
    "interactive",
    "latent_covariance",
    "layers",
    "look",
    "readable",
    "seeds",
    "show",
    "training_history",
    "volcano",
]

# Okabe & Ito (2008), without the yellow that vanishes on white. The order keeps the first ones as
# far apart as can be also with deuteranopia, which confuses orange and red, and green and pink.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#E69F00", "#009E73", "#000000"
SKY, RED, PINK = "#56B4E9", "#D55E00", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, BLACK, SKY, RED, PINK)
MARKERS = ("o", "^", "s", "D", "v", "P", "X")

# The look of a group is a number; two groups that occur in one figure have different numbers.
LOOKS = {
    # pancreas
    "beta": 0, "alpha": 1, "delta": 2, "gamma": 3, "ductal": 4, "quiescent stellate": 5,
    "endothelial": 6, "macrophage": 7, "schwann": 8, "immune other": 9, "activated stellate": 13,
    # blood
    "progenitor": 0, "CD34+": 0, "NK cell": 1, "cytotoxic T": 2, "helper T": 3,
    "naive cytotoxic T": 5, "memory T": 6, "naive T": 7, "regulatory T": 8, "monocyte": 9,
    "CD14+": 9, "dendritic": 12,
    # both
    "T cell": 10, "B cell": 11,
    # batches
    "mouse 1": 0, "mouse 2": 1, "batch 1": 0, "batch 2": 1,
}  # fmt: skip

WIDEST = 9.5  # inches that fit the page of JupyterLab and of the site
PIXELS = 100  # per inch, as shown; a figure is drawn with twice as many, for sharp screens


def training_history(frame, best_epoch: int | None = None, axes=None):
    """The bound, and all its terms except the reconstruction, against epochs.

    A term is drawn as the quantity that its name says: a KL is not below zero. The history of an
    autoencoder has no bound and no KL: its reconstruction error is drawn alone.

    Parameters
    ----------
    frame
        ``History.frame``.
    best_epoch
        Epoch whose parameters were kept; a line marks it. None for no line.
    axes
        Two Axes to draw into, or one for an error; None for a new figure.

    Returns
    -------
    The two Axes, or the one.

    Raises
    ------
    ValueError
        ``frame`` has no epoch.
    """
    if len(frame) == 0:
        raise ValueError("No epoch of this training was finished; there is nothing to draw.")
    name = "bound" if "bound" in frame else "error"
    known = {"kl_weight", name, f"held_out_{name}", "seconds"}
    others = [c for c in frame.columns if c not in known and c != "reconstruction"]
    if axes is None:
        axes = (
            _figure(1, 2, figsize=(WIDEST, 3.2)) if name == "bound" else _figure(figsize=(6, 3.2))
        )
    panel, *rest = np.atleast_1d(axes)
    marker = "o" if len(frame) == 1 else None  # a line through one point is invisible
    lines = {"training cells": frame[name], "held-out cells": frame[f"held_out_{name}"]}
    for colour, (label, values) in zip(COLOURS, lines.items(), strict=False):
        if values.notna().any():
            panel.plot(frame.index, values, color=colour, marker=marker, label=label)
    if best_epoch is not None:
        panel.axvline(best_epoch, color="0.6", lw=1, ls="--", label=f"kept: epoch {best_epoch}")
    # The first epochs are far from the rest and would flatten everything after them.
    late = np.array([*lines.values()])[:, len(frame) // 20 :]
    late = late[np.isfinite(late)]
    if late.size and name == "bound":
        panel.set_ylim(bottom=late.min() - 0.1 * (np.ptp(late) + 1))
    elif late.size:
        panel.set_ylim(top=late.max() + 0.1 * (np.ptp(late) or 1))
    if name == "bound":
        panel.set(xlabel="epoch", ylabel="bound (nats per cell)", title="The bound")
        _terms(frame, others, rest[0], marker)
    else:
        ylabel = others[0].replace("_", " ") if len(others) == 1 else "error"
        panel.set(xlabel="epoch", ylabel=ylabel, title="The reconstruction error")
    _legend_beside(panel)
    for ax in (panel, *rest):
        ax.xaxis.get_major_locator().set_params(integer=True)
        if marker:
            ax.set_xticks(frame.index)
    return axes


def _terms(frame, names: list[str], ax, marker: str | None) -> None:
    """Terms of a bound and the KL weight against epochs."""
    for colour, name in zip(cycle(COLOURS), names, strict=False):
        ax.plot(frame.index, frame[name], color=colour, marker=marker, label=name)
    ax.set(xlabel="epoch", ylabel="nats per cell", title="The other terms, and the KL weight")
    weight = ax.twinx()
    weight.plot(
        frame.index, frame["kl_weight"], color="0.5", ls=":", marker=marker, label="KL weight"
    )
    weight.set_ylim(0, 1.05)
    weight.set_ylabel("KL weight")
    handles = ax.get_lines() + weight.get_lines()
    _legend_beside(ax, handles=handles, bbox_to_anchor=(1.25, 0.5))


def embedding(
    points, values, ax=None, title: str | None = None, name: str | None = None,
    names: str = "auto",
):  # fmt: skip
    """Cells in two dimensions, coloured by group or by a number.

    Each group is drawn as `look` says.

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
    names
        Where the names of groups stand: "clouds" (on the cells; names that would overlap are moved
        apart), "legend" (next to the Axes), or "auto" (on the cells unless names would overlap).

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        ``points`` and ``values`` are not of as many cells, ``points`` are not finite, or ``names``
        is another word.
    """
    if names not in ("auto", "clouds", "legend"):
        raise ValueError(f'names is {names!r}; it must be "auto", "clouds" or "legend".')
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
        values = values.astype(str)
        groups, counts = np.unique(values, return_counts=True)
        looks, written, clouds = look(groups), [], []
        for group in groups[np.argsort(-counts, kind="stable")]:
            at = points[values == group]
            ax.scatter(*at.T, s=size, lw=0, label=readable(group), **looks[group])
            if names != "legend":
                written.append(_write(ax, *np.median(at, axis=0), readable(group)))
                clouds.append(at)
        if names == "clouds":
            _move_apart(written, clouds)
        boxes = [text.get_window_extent() for text in written]
        if names == "legend" or any(a.overlaps(b) for a, b in combinations(boxes, 2)):
            for text in written:
                text.remove()
            _legend_beside(ax, ncols=1 + len(groups) // 20, markerscale=np.sqrt(25 / size))
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
    ax = ax or _figure(figsize=(6, 3.2))
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
    _legend_beside(ax)
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

    truth, found = (
        [readable(group) for group in np.asarray(groups).astype(str)] for groups in (truth, found)
    )
    table = pd.crosstab(np.array(truth, dtype=object), np.array(found, dtype=object))
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

    Circles are variables; they are shaded if observed, and half shaded if observed for a part of
    the cells. Solid arrows are the generative model p, dashed arrows the variational model q.
    Variables on a plate, a rectangle with a name, are repeated, for example once per cell. The name
    stands in a corner that no arrow crosses.

    Parameters
    ----------
    graph
        For each variable, a dictionary with its position ``at`` (x, y) and, if it has any, its
        parents in the generative model ``p`` and in the variational model ``q``, its ``plates``,
        and ``observed``: True, or "partly". ``vaelab.VAE.graph`` is an example.
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
    from matplotlib.patches import Wedge

    radius = 0.25
    nodes = {}
    for name, v in graph.items():
        label = re.sub("^l(?=_|$)", "ℓ", name)  # an l looks like a 1
        style = {"observed": v.get("observed") is True, "fontsize": 13}
        if v.get("observed") == "partly":
            style["plot_params"] = {"fc": "none"}  # the shaded half is drawn below it
        nodes[name] = daft.Node(name, f"${label}$", *v["at"], **style)
    arrows = [(a, b, model) for model in show for b, v in graph.items() for a in v.get(model, ())]
    if unknown := {a for a, _, _ in arrows} - set(nodes):
        raise ValueError(
            f"{min(unknown)!r} is named as a parent but is not in the graph: add it, or remove it "
            "from 'p' and 'q'."
        )
    on = {plate: set() for v in graph.values() for plate in v.get("plates", ())}
    for plate, members in on.items():
        members.update(name for name, v in graph.items() if plate in v.get("plates", ()))
    pairs = [(a, b) for a, b, _ in arrows]
    lines = []  # the tail and the tip of each arrow
    for a, b, model in arrows:
        start, end = (np.array(graph[name]["at"], dtype=float) for name in (a, b))
        along = (end - start) / np.hypot(*(end - start))
        aside = 0.09 * np.array([-along[1], along[0]])
        if (b, a) not in pairs:  # one way; side by side if p and q have the same arrow
            aside *= {"p": 1, "q": -1}[model] if pairs.count((a, b)) > 1 else 0
        lines.append((start + radius * along + aside, end - radius * along + aside))
    plates, corners = [], [np.array(v["at"]) + d for v in graph.values() for d in (-0.35, 0.35)]
    for plate, (place, low, high) in _plates(graph, on, lines).items():
        for name in sorted(set(graph) - on[plate]):
            if (low < graph[name]["at"]).all() and (graph[name]["at"] < high).all():
                raise ValueError(
                    f"{name!r} is drawn on the plate {plate!r} but is not one of its variables: "
                    "move it by 'at', or add the plate to its 'plates'."
                )
        style = {"position": place, "fontsize": 10, "rect_params": {"fc": "none"}}
        plates.append(daft.Plate([*low, *(high - low)], plate, **style))
        corners += [low, high]
    low, high = np.min(corners, axis=0) - 0.05, np.max(corners, axis=0) + 0.05
    ax = ax or _figure(figsize=high - low)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    ax.set_axis_off()
    context = daft.PGM(grid_unit=1.0, node_unit=2 * radius)._ctx
    context._ax = ax  # without it, daft makes a figure of its own
    for shape in (*plates, *nodes.values()):
        shape.render(context)
    for v in graph.values():
        if v.get("observed") == "partly":
            ax.add_patch(Wedge(v["at"], radius, 90, 270, fc="0.7", lw=0, zorder=0))
    for (tail, tip), (_, _, model) in zip(lines, arrows, strict=True):
        # An edge of daft runs there and back, so that its dashes fill each other's gaps.
        ends = np.transpose([tail, tip - 0.07 * (tip - tail) / np.hypot(*(tip - tail))])
        ax.plot(*ends, color="black", lw=1.1, ls="-" if model == "p" else (0, (4, 2.5)))
        style = {"arrowstyle": "-|>", "mutation_scale": 18, "fc": "black", "lw": 0}  # only a head
        ax.annotate("", tip, tail, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})
    return ax


def _plates(graph, on: Mapping[str, set], lines) -> dict[str, tuple]:
    """For each plate the corner of its name, the first that no line crosses, and its limits."""
    plates = {}
    for plate, members in sorted(on.items(), key=lambda item: len(item[1])):  # the inner ones first
        within = [p for p in plates if on[p] < members]
        n_within = sum(len(on[p]) < len(members) and bool(on[p] & members) for p in plates)
        at = np.array([graph[name]["at"] for name in members])
        named, plain = 0.6 + 0.3 * n_within, 0.4 + 0.12 * n_within  # the margins
        aside = max(plain, 0.07 * len(plate) - np.ptp(at[:, 0]) / 2)  # the name needs a width
        found = []
        for place in ("bottom right", "bottom left", "top right", "top left"):
            below, above = (named, plain) if "bottom" in place else (plain, named)
            low, high = at.min(0) - np.array([aside, below]), at.max(0) + np.array([aside, above])
            low = np.min([low, *(plates[p][1] - 0.12 for p in within)], axis=0)
            high = np.max([high, *(plates[p][2] + 0.12 for p in within)], axis=0)
            size = np.array([0.12 * len(plate), 0.25])  # of the name
            corner = np.where(["left" in place, "bottom" in place], low, high - size)
            points = [np.linspace(tail, tip, 200) for tail, tip in lines]
            crossed = [((corner < p) & (p < corner + size)).all(1).any() for p in points]
            found.append((sum(crossed), place, low, high))
        plates[plate] = min(found, key=lambda each: each[0])[1:]
    return plates


def layers(widths, ax=None):
    """The layers of an autoencoder, from its input x through the code z to its output x̂.

    A bar is a layer, with its number of units below it. Its height grows with the logarithm of that
    number. The encoder is blue, the decoder orange.

    Parameters
    ----------
    widths
        Number of units of each layer, such as ``model.widths``; the code is the middle one.
    ax
        Axes to draw into; None for a new figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        The number of widths is even or below 3, or a width is below 1.
    """
    widths = _numbers("widths", widths, 1)
    if len(widths) < 3 or len(widths) % 2 == 0 or (widths < 1).any():
        raise ValueError(
            f"widths is {[*widths]}; it must be an odd number of layers, 3 or more, of at least 1 "
            "unit each."
        )
    heights, code = np.log2(widths) + 1, len(widths) // 2
    ax = ax or _figure(figsize=(1.2 * len(widths), 3.2))
    ax.bar(range(len(widths)), heights, bottom=-heights / 2, width=0.16, color="0.25", zorder=2)
    for i, (left, right) in enumerate(pairwise(heights / 2)):
        colour = BLUE if i < code else ORANGE
        corners = [(i, -left), (i, left), (i + 1, right), (i + 1, -right)]
        ax.fill(*np.transpose(corners), color=colour, alpha=0.3, lw=0)
    for i, (width, height) in enumerate(zip(widths, heights, strict=True)):
        ax.text(i, -height / 2 - 0.4, f"{width:,}", ha="center", va="top")
    for i, name in ((0, "x"), (code, "z"), (len(widths) - 1, "x̂")):
        ax.text(i, heights[i] / 2 + 0.3, name, ha="center", va="bottom", fontsize=13)
    ax.set_ylim(-heights.max() / 2 - 2, heights.max() / 2 + 1.8)
    ax.set_axis_off()
    return ax


def seeds(ax, frame, *, ylabel: str = "value", colours: Mapping | None = None):
    """The numbers of several seeds: a column of dots per number, and their mean as a short line.

    A seed stands at the same place in each column, so that pairs can be compared.

    Parameters
    ----------
    ax
        Axes to draw into; None for a new figure.
    frame
        Data frame with one row per seed and one column per number.
    ylabel
        What the numbers are, and their unit.
    colours
        The colours of some of the columns, by name; the others get colours in order.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        ``frame`` is empty or holds a value that is not finite, or ``colours`` names another column.
    """
    from textwrap import fill

    values = _numbers("frame", frame, ndim=2)
    if unknown := {*(colours or ())} - {*frame.columns}:
        raise ValueError(f"colours has {min(unknown)!r}; the columns are {[*frame.columns]}.")
    ax = ax or _figure(figsize=(1.5 + 1.1 * values.shape[1], 3.2))
    aside = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(1)
    for i, name in enumerate(frame.columns):
        colour = (colours or {}).get(name, COLOURS[i % len(COLOURS)])
        ax.scatter(i + aside, values[:, i], s=25, color=colour, alpha=0.8, lw=0)
        ax.hlines(values[:, i].mean(), i - 0.3, i + 0.3, color=colour, lw=2)
    names = [fill(str(name).replace("_", " "), 14) for name in frame.columns]
    ax.set_xticks(range(len(names)), names)
    ax.set(xlim=(-0.6, len(names) - 0.4), ylabel=ylabel)
    ax.set_xlabel(f"dots: {len(values)} seeds; line: their mean")
    return ax


def volcano(table, names: int | Sequence[str] = 10, ax=None):
    """Differential expression: the log fold change of each gene, and how certain it is.

    The height is −log₁₀ of 1 − P(|LFC| > δ). Genes that are called are coloured by their direction,
    and open circles are calls on which several models do not agree.

    Parameters
    ----------
    table
        What ``vaelab.differential_expression`` returns.
    names
        Number of called genes to name, the largest changes first, half of them in each direction;
        or the names of genes.
    ax
        Axes to draw into; None for a new figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        A gene is not in the table.
    """
    lfc, p = (_numbers(name, table[name], ndim=1) for name in ("lfc", "p_change"))
    height, called = -np.log10(1 - p), table["called"].to_numpy()
    stable = table["stable"].to_numpy() if "stable" in table else np.ones(len(table), dtype=bool)
    ax = ax or _figure(figsize=(6.5, 4.5))
    groups = [
        ("0.75", "not called", ~called), (RED, "higher", called & (lfc > 0)),
        (BLUE, "lower", called & (lfc <= 0)),
    ]  # fmt: skip
    for colour, name, mask in groups:
        face = np.where(stable[mask], colour, "white") if name != "not called" else colour
        label = f"{name} ({mask.sum():,})"
        ax.scatter(lfc[mask], height[mask], s=18, color=face, edgecolor=colour, lw=0.8, label=label)
    if delta := table.attrs.get("delta"):
        for edge in (-delta, delta):
            ax.axvline(edge, color="0.5", lw=1, ls="--")
    if isinstance(names, int):
        half = -(-names // 2)
        largest = [
            table.index[mask][np.argsort(-np.abs(lfc[mask]), kind="stable")[:half]]
            for _, _, mask in groups[1:]
        ]
        names = [gene for side in largest for gene in side]
    elif absent := [gene for gene in names if gene not in table.index]:
        raise ValueError(f"names has {absent[0]!r}, which is not a gene of the table.")
    ax.set(xlabel="log₂ fold change, group over reference", ylabel="−log₁₀ P(|LFC| ≤ δ)")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.12 * (high - low))
    _legend_beside(ax)
    at = table.index.get_indexer(names)
    written = [_write(ax, lfc[i], height[i], name) for i, name in zip(at, names, strict=True)]
    if written:
        _move_apart(written, [np.column_stack([lfc[i : i + 1], height[i : i + 1]]) for i in at])
    return ax


def calibration_of_calls(methods: Mapping, ax=None):
    """Claimed against measured false discovery rates: dots are seeds, lines their mean.

    Parameters
    ----------
    methods
        For each method, by name, a data frame or a dictionary with columns "claimed" and
        "measured", both between 0 and 1, such as ``table.attrs["null"]``; several seeds give
        several rows per claimed rate.
    ax
        Axes to draw into; None for a new figure.

    Returns
    -------
    The Axes. On the diagonal the claim is right; above it, more genes are false than claimed.

    Raises
    ------
    ValueError
        ``methods`` is empty, or a rate is not between 0 and 1.
    """
    if not methods:
        raise ValueError("methods is empty: give the claimed and measured rates of at least one.")
    ax = ax or _figure(figsize=(5.5, 3.8))
    largest = 0.0
    for i, (name, rates) in enumerate(methods.items()):
        claimed, measured = (_numbers(c, rates[c], ndim=1) for c in ("claimed", "measured"))
        both = np.concatenate([claimed, measured])
        if claimed.shape != measured.shape or both.min() < 0 or both.max() > 1:
            raise ValueError(
                f"The rates of {name!r} must be pairs of numbers from 0 to 1; there are "
                f"{len(claimed)} claimed and {len(measured)} measured ones, from {both.min():g} to "
                f"{both.max():g}."
            )
        levels = np.unique(claimed)
        means = [measured[claimed == level].mean() for level in levels]
        style = _style(i)
        ax.scatter(claimed, measured, s=16, alpha=0.5, lw=0, **style)
        ax.plot(levels, means, lw=1.5, ms=6, label=name, **style)
        largest = max(largest, levels[-1])
    ends = [0, 1.1 * largest]
    ax.plot(ends, ends, color="0.5", lw=1, ls="--", label="claimed = measured")
    ax.set(xlim=ends, xlabel="claimed false discovery rate", ylabel="measured false discovery rate")
    ax.set_ylim(bottom=-0.01)
    _legend_beside(ax)
    return ax


def show(alt: str, figure=None) -> None:
    """Put a figure into the notebook, with alternative text, and close it.

    The picture is sharp on every screen and at most as wide as the page. Readers who do not see it
    get the text: with a screen reader, or where a viewer leaves pictures out.

    Parameters
    ----------
    alt
        What the figure shows, in one or two sentences that replace it.
    figure
        The figure; None for the current one.

    Raises
    ------
    ValueError
        ``alt`` is empty or long, there is no figure, it is too wide, or some readers cannot tell
        two entries of a legend apart.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if figure is None and not plt.get_fignums():
        raise ValueError("There is no figure to show: draw one before plotting.show.")
    figure = figure or plt.gcf()
    try:
        _check_alt(alt)
        display(_picture(alt, _png(figure, bbox_inches="tight", pad_inches=0.05)), raw=True)
    finally:
        plt.close(figure)


def interactive(draw, *, alt: str, **controls):
    """Controls above a figure that is drawn again while one of them moves.

    Where no kernel runs, the first picture stands in the place of the widget. Keep the limits of
    the axes constant in ``draw``, so that pictures can be compared, and round the numbers in a
    title.

    Parameters
    ----------
    draw
        Function that takes the values of the controls by name and returns a Figure. Every picture
        has the size of this figure.
    alt
        What the figure shows, in one or two sentences that replace it.
    controls
        ipywidgets that have a ``value``. Without a ``description``, a control shows its own name.

    Returns
    -------
    A widget with the controls and the figure.

    Raises
    ------
    ValueError
        ``alt`` is empty or long, the figure is too wide, or some readers cannot tell two entries of
        a legend apart.
    """
    import ipywidgets
    import matplotlib.pyplot as plt
    import traitlets

    _check_alt(alt)

    class Figure(ipywidgets.VBox):
        """A viewer takes the first of widget, picture and text that it can show."""

        def _repr_mimebundle_(self, **kwargs):
            return super()._repr_mimebundle_(**kwargs) | _picture(alt, picture.value)

    class Picture(ipywidgets.Image):
        """An Image with a title, which names it to screen readers: it has no alternative text."""

        # Its view in ipywidgets 8.1 asks for a description before it takes a tooltip as the title.
        description = traitlets.Unicode("").tag(sync=True)

    # An Image, not an Output with the live figure: without a browser, a run of the notebook loses
    # the Output or waits for it forever.
    picture = Picture(format="png", tooltip=alt)

    def redraw(_=None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        try:
            if figure.get_layout_engine() is None:
                figure.set_layout_engine("constrained")
            # Without bbox_inches="tight", all pictures have one size and nothing jumps.
            picture.value = _png(figure)
        finally:
            plt.close(figure)

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "initial"
        control.layout.width = "500px"
        if hasattr(control, "continuous_update"):
            control.continuous_update = True
        control.observe(redraw, "value")
    redraw()
    picture.layout = ipywidgets.Layout(
        width=f"{_shown_width(picture.value)}px", max_width="100%", height="auto",
        align_self="flex-start",
    )  # fmt: skip
    return Figure([*controls.values(), picture])


def look(groups) -> dict[str, dict]:
    """Colour and marker of each group, as keywords of matplotlib.

    A known cell type, mouse or batch has the same look in every figure of the course. Other groups
    take the looks that are left, in the order of their names.
    """
    groups = sorted({str(group) for group in np.atleast_1d(groups)}, key=_with_numbers_in_order)
    known = {group: LOOKS[readable(group)] for group in groups if readable(group) in LOOKS}
    free = iter(sorted(set(range(len(groups) + len(LOOKS))) - {*known.values()}))
    numbers = {group: known[group] if group in known else next(free) for group in groups}
    return {group: _style(number) for group, number in numbers.items()}


def readable(group: str) -> str:
    """The name of a group as a reader would write it: "quiescent stellate"."""
    return str(group).replace("_", " ")


def film(draw, values, alt: str, seconds: float = 0.12, pause: float = 2.0) -> None:
    """Put a moving picture into the notebook; it needs no kernel and no JavaScript.

    Parameters
    ----------
    draw
        Function that takes one of ``values`` and returns a Figure; all figures have one size.
    values
        One value per frame. The same value several times holds the picture still.
    alt
        What moves, and what it shows, in one or two sentences that replace the film.
    seconds
        Time per frame.
    pause
        Time for which the first and the last frame stand still. Then the film begins again.

    Raises
    ------
    ValueError
        ``alt`` is empty or long, a figure is too wide, or some readers cannot tell two entries of a
        legend apart.
    """
    import base64
    import io
    from html import escape

    import matplotlib.pyplot as plt
    from IPython.display import display
    from PIL import Image

    _check_alt(alt)
    frames = []
    for value in values:
        figure = draw(value)
        try:
            png = _png(figure)
        finally:
            plt.close(figure)
        frames.append(Image.open(io.BytesIO(png)).convert("RGB").quantize(64))
    times, buffer = [1000 * seconds] * len(frames), io.BytesIO()
    times[0] = times[-1] = 1000 * pause
    frames[0].save(
        buffer, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    html = f'<img alt="{escape(alt)}" width="{_shown_width(png)}" style="max-width: 100%" '
    picture = {"text/html": f'{html}src="data:image/gif;base64,{data}">', "text/plain": alt}
    display(picture, raw=True)


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
    """A look for each i below 49; seven neighbours differ in colour and also in marker."""
    return {"color": COLOURS[i % 7], "marker": MARKERS[(i + i // 7) % 7]}


def _with_numbers_in_order(group: str) -> list:
    """Sorts "type 2" before "type 10"."""
    return [(part.zfill(12) if part.isdigit() else part) for part in re.split(r"(\d+)", group)]


def _legend_beside(ax, **options) -> None:
    """A legend next to the Axes: the data may be anywhere in them."""
    options = {"bbox_to_anchor": (1, 0.5), "fontsize": 9} | options
    ax.legend(frameon=False, loc="center left", **options)


def _write(ax, x: float, y: float, text: str):
    import matplotlib.patheffects as effects

    halo = [effects.withStroke(linewidth=2.5, foreground="white")]
    return ax.text(x, y, text, ha="center", va="center", fontsize=9, path_effects=halo)


def _move_apart(texts, clouds) -> None:
    """Move each text to the nearest place where it overlaps no other and hides few cells."""
    ax, placed = texts[0].axes, []
    ax.figure.draw_without_rendering()  # the layout decides how large the Axes are
    inside = ax.get_window_extent()
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for text, cloud in zip(texts, clouds, strict=True):
        start, cells = ax.transData.transform(text.get_position()), ax.transData.transform(cloud)
        box = text.get_window_extent()
        steps = [np.zeros(2)] + [
            r * box.height * np.array([2 * np.cos(angle), np.sin(angle)])
            for r in np.arange(0.5, 12, 0.5) for angle in angles
        ]  # fmt: skip

        def fits(moved, cells=cells) -> bool:
            near = moved.padded(3)  # cells are not points
            hidden = ((near.min < cells) & (cells < near.max)).all(axis=1).mean()
            within = (inside.min < moved.min).all() and (moved.max < inside.max).all()
            return within and hidden < 0.3 and not any(moved.overlaps(other) for other in placed)

        step = next((step for step in steps if fits(box.translated(*step))), steps[0])
        text.set_position(ax.transData.inverted().transform(start + step))
        placed.append(box.translated(*step))


def _check_alt(alt: str) -> None:
    if not isinstance(alt, str) or not 0 < len(alt.strip()) <= 300:
        seen = f"has {len(alt.strip())} characters" if isinstance(alt, str) else f"is {alt!r}"
        raise ValueError(
            f"The alternative text {seen}: say in 1 to 300 characters what the figure shows."
        )


def _png(figure, **options) -> bytes:
    """The figure as PNG with twice the pixels of its shown size."""
    import io

    from matplotlib.text import Text

    for text in figure.findobj(Text):  # a formatted -6.7 next to an axis that says −6.7
        if "$" not in text.get_text():
            text.set_text(re.sub(r"(?<![\w.)\]-])-(?=[\d.])", "−", text.get_text()))
    buffer = io.BytesIO()
    quick = {"compress_level": 1}
    figure.savefig(buffer, format="png", dpi=2 * PIXELS, pil_kwargs=quick, **options)
    png = buffer.getvalue()
    own, shown = figure.get_figwidth(), _shown_width(png) / PIXELS
    if own > WIDEST or shown > WIDEST + 0.4:  # a tight box has a margin of its own
        raise ValueError(
            f"The figure is {max(own, shown):.4g} inches wide; {WIDEST} fit the page: narrow it, "
            "or put its panels into two rows."
        )
    if same := confused(figure):
        raise ValueError(
            f"{same[0]} Give one of them another marker, other dashes, a hatch or another colour."
        )
    return png


def _picture(alt: str, png: bytes) -> dict[str, str]:
    """The picture for a notebook. JupyterLab and nbconvert show alternative text only in HTML."""
    import base64
    import io
    from html import escape

    from PIL import Image, ImageChops

    width, buffer = _shown_width(png), io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    # A palette of 256 colours makes the notebook two or three times smaller. If it changed a colour
    # so much that one could see steps in a colour bar, the picture keeps all its colours.
    few = image.quantize(method=Image.Quantize.MAXCOVERAGE)
    changes = ImageChops.difference(image, few.convert("RGB")).getextrema()
    smallest = few if max(high for _, high in changes) <= 6 else image
    smallest.save(buffer, format="png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    html = f'<img alt="{escape(alt)}" width="{width}" style="max-width: 100%" '
    return {"text/html": f'{html}src="data:image/png;base64,{data}">', "text/plain": alt}


def _shown_width(png: bytes) -> int:
    """Pixels of the page that a PNG takes."""
    return int.from_bytes(png[16:20], "big") // 2
