"""The map of the course: its lessons, what each one needs, and three paths through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LESSONS", "PATHS", "Lesson", "Path", "alt", "draw"]


@dataclass(frozen=True)
class Lesson:
    """One lesson, as the map shows it.

    Parameters
    ----------
    name
        The name in the box: what the lesson is about.
    minutes
        Working time as the lesson states it; None if the lesson is still being written.
    needs
        Numbers of the lessons that it needs. Those that another one needs already are left out.
    at
        Column and row of the box.
    helps
        Numbers of the lessons that help, but can be left out.
    """

    name: str
    minutes: int | None
    needs: tuple[str, ...]
    at: tuple[int, int]
    helps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Path:
    """A way through the course.

    Parameters
    ----------
    mark
        The letter of its badge.
    minutes
        Minutes for each lesson on the path, which may end at a marked stop; None for all lessons.
    note
        What the path leaves out or takes on trust.
    """

    mark: str
    minutes: Mapping[str, int] | None
    note: str


LESSONS = {
    "01": Lesson("autoencoders", 145, (), (0, 0)),
    "02": Lesson("the bound", 170, (), (1, 0), helps=("01",)),
    "03": Lesson("gradients through draws", 180, ("02",), (2, 0)),
    "04": Lesson("the VAE", 140, ("03",), (2, 1)),
    "05": Lesson("likelihoods of counts", 155, (), (1, 1)),
    "06": Lesson("the pancreas", 120, ("04", "05"), (2, 2)),
    "07": Lesson("drawing a category", 165, ("03",), (3, 0)),
    "08": Lesson("clusters in blood", 150, ("05", "07"), (4, 0)),
    "09": Lesson("missing data", 155, ("04", "05"), (1, 2), helps=("06",)),
    "10": Lesson("two mice: scVI", 140, ("06",), (3, 2)),
    "11": Lesson("differential expression", 150, ("10",), (4, 2)),
    "12": Lesson("the ELBO challenge", 185, ("07", "10"), (3, 1)),
    "13": Lesson("naming cells: SCANVI", 165, ("12",), (4, 1)),
    "14": Lesson("a zoo of models", 165, ("09", "13"), (4, 3), helps=("08",)),
}

PATHS = {
    "A biologist, in a day": Path(
        "B", {"01": 145, "05": 100, "06": 120, "10": 70}, "takes the bound on trust"
    ),
    "A machine-learner, in a day": Path(
        "M", {"04": 140, "05": 100, "06": 120, "10": 70}, "knows the bound and its gradient"
    ),
    "The whole term": Path("", None, "a lesson a week, in their order"),
}


def alt() -> str:
    """What the map shows, in words that replace it."""
    paths = [
        f"{', '.join(path.minutes)} for {name[0].lower()}{name[1:].replace(',', '')}"
        for name, path in PATHS.items()
        if path.minutes
    ]
    return (
        f"Map of the {len(LESSONS)} lessons with their minutes, and an arrow from each lesson to "
        f"those that need it. Three paths: {'; '.join(paths)}; all lessons for a term."
    )


def draw():
    """The map as a figure: boxes with names and minutes, arrows from what a lesson needs.

    Returns
    -------
    A matplotlib Figure.
    """
    from textwrap import fill

    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    from ..plotting import BLUE, ORANGE

    width, height, across, down = 1.5, 0.82, 1.95, 1.35
    colours = {"B": BLUE, "M": ORANGE}
    centre = {n: (across * one.at[0], -down * one.at[1]) for n, one in LESSONS.items()}
    fig = plt.figure(figsize=(9.5, 6.1))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.85, 8.65), ylim=(-5.5, 0.6), aspect="equal")
    ax.set_axis_off()

    def badge(x: float, y: float, mark: str) -> None:
        ax.scatter(x, y, s=130, color=colours[mark], ec="white", lw=1, zorder=4)
        colour = "white" if mark == "B" else "black"  # readable on the badge
        ax.text(x, y, mark, ha="center", va="center", color=colour, weight="bold", size=8, zorder=5)

    for number, one in LESSONS.items():
        x, y = centre[number]
        written = one.minutes is not None
        box = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, zorder=3, lw=1.1, ec="0.25",
            boxstyle="round,pad=0,rounding_size=0.1",
            fc="white" if written else "0.96", ls="-" if written else "--",
        )  # fmt: skip
        ax.add_patch(box)
        ax.text(x - 0.66, y + 0.2, number, weight="bold", size=11, va="center", zorder=4)
        time = f"{one.minutes} min" if written else "being written"
        ax.text(x + 0.66, y + 0.2, time, size=8, va="center", ha="right", color="0.3", zorder=4)
        ax.text(x - 0.66, y - 0.16, fill(one.name, 19), size=9, va="center", zorder=4)
        on = [path.mark for path in PATHS.values() if path.mark and number in path.minutes]
        for i, mark in enumerate(on):
            badge(x + width / 2 - 0.08 - 0.24 * i, y - height / 2, mark)
        for other, dashed in [(o, False) for o in one.needs] + [(o, True) for o in one.helps]:
            _arrow(ax, centre[other], (x, y), (width, height), dashed)
    for i, (name, path) in enumerate(PATHS.items()):
        y = -3.85 - 0.5 * i
        if path.mark:
            badge(-0.6, y, path.mark)
            total = sum(path.minutes.values())
            parts = " · ".join(
                number + ("" if minutes == LESSONS[number].minutes else " to its first stop")
                for number, minutes in path.minutes.items()
            )
            time = f"{total // 60} h {total % 60:02d} min"
        else:
            total = sum(one.minutes or 0 for one in LESSONS.values())
            missing = [number for number, one in LESSONS.items() if one.minutes is None]
            more = f"; {' and '.join(missing)} to come" if missing else ""
            parts, time = "all lessons", f"{round(total / 60)} hours{more}"
        ax.text(-0.35, y + 0.11, f"{name} ({time})", size=9.5, va="center", weight="bold")
        ax.text(-0.35, y - 0.12, f"{parts}; {path.note}", size=8.5, va="center", color="0.3")
    ax.plot([-0.75, -0.4], [-5.33, -5.33], color="0.25", lw=1.2)
    ax.text(-0.35, -5.33, "needs", size=8.5, va="center", color="0.3")
    ax.plot([0.35, 0.7], [-5.33, -5.33], color="0.25", lw=1.2, ls=(0, (3, 2)))
    ax.text(0.75, -5.33, "helps, but can be left out", size=8.5, va="center", color="0.3")
    return fig


def _arrow(ax, start, end, size, dashed: bool) -> None:
    """An arrow between the nearest sides of two boxes; round the row between if one is far away."""
    (x0, y0), (x1, y1), (width, height) = start, end, size
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": "0.25", "lw": 1.2}
    style |= {"shrinkA": 0, "shrinkB": 1, "ls": (0, (3, 2)) if dashed else "-"}
    if abs(x1 - x0) > 2 * width:  # along the gap between two rows
        gap, turn = (y0 + y1) / 2 - 0.06, x1 - 0.35
        ax.plot(
            [x0 + 0.4, x0 + 0.4, turn], [y0 + height / 2, gap, gap], color="0.25", lw=1.2, zorder=1
        )
        tail, tip = (turn, gap - 0.001), (turn, y1 - height / 2)
    elif y0 == y1:
        side = width / 2 if x1 > x0 else -width / 2
        tail, tip = (x0 + side, y0), (x1 - side, y1)
    elif x0 == x1:
        side = height / 2 if y1 > y0 else -height / 2
        tail, tip = (x0, y0 + side), (x1, y1 - side)
    else:
        side = height / 2 if y1 > y0 else -height / 2
        near = 0.45 if x1 > x0 else -0.45
        tail, tip = (x0 + near, y0 + side), (x1 - near, y1 - side)
    ax.annotate("", tip, tail, arrowprops=style, zorder=2)
