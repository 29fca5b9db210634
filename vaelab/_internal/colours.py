"""Colours as they look to readers who lack one kind of cone, and figures that rely on them."""

from __future__ import annotations

from itertools import combinations

import numpy as np

__all__ = ["CLOSEST", "EYES", "confused", "difference"]

# Machado, Oliveira & Fernandes (2009), "A physiologically-based model for simulation of color
# vision deficiency", severity 1: matrices for linear RGB.
EYES = {
    "all three kinds of cones": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip
TO_XYZ = np.array(  # sRGB, white of D65
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
# A CIE 1976 difference of 2.3 is just noticed between two large patches that touch (Mahy et al.
# 1994). Thin lines and small dots that stand apart need several times as much.
CLOSEST = 15.0


def difference(one, other, eyes: str) -> float:
    """CIE 1976 difference of two opaque colours, as seen with one of ``EYES``."""
    return float(np.linalg.norm(_lab(one, eyes) - _lab(other, eyes)))


def _lab(colour, eyes: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = TO_XYZ @ np.clip(EYES[eyes] @ linear, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def confused(figure) -> list[str]:
    """What the legends of a figure leave to a difference of colour that some readers don't see.

    Two entries of a legend are told apart by their kind (line, dots, area), by their markers, by
    the dashes or the width of a line, by hatching, or by whether they are filled. Else their
    colours must differ by ``CLOSEST`` for all ``EYES``.

    Returns
    -------
    One sentence per pair that some readers confuse.
    """
    from matplotlib.offsetbox import DrawingArea

    found = []
    for legend in (*figure.legends, *(ax.get_legend() for ax in figure.axes)):
        if legend is None:
            continue
        names = [text.get_text() for text in legend.get_texts()]
        drawn = [area.get_children() for area in legend.findobj(DrawingArea)]
        entries = zip(names, ([*map(_look, artists)] for artists in drawn), strict=True)
        for (one, look), (other, its) in combinations(entries, 2):
            seen = {eyes: _apart(look, its, eyes) for eyes in EYES}
            eyes = min(seen, key=seen.get)
            if seen[eyes] < CLOSEST:
                found.append(
                    f"With {eyes}, {one!r} looks like {other!r}: their colours differ by "
                    f"{seen[eyes]:.0f} of at least {CLOSEST:.0f}."
                )
    return found


def _apart(one: list, other: list, eyes: str) -> float:
    """How far apart two entries are by colour; infinite if they also differ in form."""
    if [form for form, _, _ in one] != [form for form, _, _ in other]:
        return np.inf
    apart = 0.0
    for (_, width, colour), (_, its_width, its_colour) in zip(one, other, strict=True):
        if max(width, its_width) >= 2 * min(width, its_width) > 0:
            return np.inf
        apart = max(apart, difference(colour, its_colour, eyes))
    return apart


def _look(artist) -> tuple[tuple, float, np.ndarray]:
    """Form, width and colour on white of a part of a legend; 0 is the width of what has no line."""
    from matplotlib.collections import LineCollection, PathCollection
    from matplotlib.lines import Line2D

    width = 0.0
    if isinstance(artist, LineCollection):
        form, width = ("bars", str(artist.get_linestyle())), artist.get_linewidth()[0]
        colour = artist.get_edgecolor()
    elif isinstance(artist, Line2D):
        marker, dashes = str(artist.get_marker()), artist.get_linestyle()
        clear = marker in ("+", "x", "|", "_") or _is_clear(artist.get_markerfacecolor())
        form, colour = ("line", dashes, marker, clear), artist.get_color()
        if dashes == "None":
            colour = artist.get_markeredgecolor() if clear else artist.get_markerfacecolor()
        else:
            width = artist.get_linewidth()
    else:  # dots, or an area
        dots, clear = isinstance(artist, PathCollection), _is_clear(artist.get_facecolor())
        shape = artist.get_paths()[0].vertices.round(3).tolist() if dots else artist.get_hatch()
        form = ("dots" if dots else "area", str(shape), clear)
        colour = artist.get_edgecolor() if clear else artist.get_facecolor()
    return form, width, _on_white(colour, artist.get_alpha())


def _is_clear(colour) -> bool:
    rgba = _rgba(colour)
    return len(rgba) == 0 or rgba[0, 3] == 0


def _on_white(colour, alpha: float | None) -> np.ndarray:
    *rgb, own = _rgba(colour)[0]
    opacity = own if alpha is None else alpha
    return np.array(rgb) * opacity + 1 - opacity


def _rgba(colour) -> np.ndarray:
    from matplotlib.colors import to_rgba_array

    return to_rgba_array(colour)
