"""Figures: each draws what it says, labels it with units, and leaves showing and closing to others.

What is drawn is read off the artists.
"""

import base64
import io
import re
import sys
from itertools import combinations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Ellipse, Rectangle, Wedge
from matplotlib.text import Annotation
from PIL import Image

import vaelab
from vaelab import models, plotting
from vaelab._internal.colours import CLOSEST, EYES, difference
from vaelab.models import zoo
from vaelab.training import History

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(2.0, size=300)
POINTS = np.concatenate([RNG.normal(size=(50, 2)) + centre for centre in ((0, 0), (9, 0), (0, 9))])
GROUPS = np.repeat(["alpha", "beta", "gamma"], 50)


SEEDS = pd.DataFrame({"with": [1.0, 2.0, 4.5, 2.0], "without_warm_up": [3.0, 3.5, 5.0, 4.0]})


def history(epochs=40, held_out=True):
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "kl_weight": np.minimum(1, epoch / 10),
            "reconstruction": -900 / epoch - 200,
            "kl_z": 5 + np.sqrt(epoch),
            "kl_y": 1 / epoch,
            "bound": -900 / epoch - 206,
            "held_out_bound": -950 / epoch - 220 if held_out else np.nan,
            "seconds": 0.5,
        },
        index=pd.Index(epoch, name="epoch"),
    )


RATES = {"claimed": [0.01, 0.05, 0.1, 0.01, 0.05, 0.1], "measured": [0, 0.04, 0.2, 0.02, 0.08, 0.1]}


def changes():
    """A table such as differential_expression returns: 4 genes up, 3 down, of 40."""
    lfc = np.r_[2.0, 1.5, 1.0, 0.8, -0.7, -1.2, -2.5, RNG.uniform(-0.4, 0.4, 33)]
    p = np.r_[0.9995, 0.999, 0.99, 0.98, 0.97, 0.99, 0.9995, RNG.uniform(0.1, 0.8, 33)]
    table = pd.DataFrame(
        {"lfc": lfc, "p_change": p, "called": p > 0.9}, index=[f"gene {i}" for i in range(40)]
    )
    table.attrs["delta"] = 0.5
    return table


DRAWN = {
    "training_history": lambda **a: plotting.training_history(history(), 30, **a),
    "embedding": lambda **a: plotting.embedding(POINTS, GROUPS, **a),
    "activity": lambda **a: plotting.activity([0.5, 0.001, 0.02], **a),
    "latent_covariance": lambda **a: plotting.latent_covariance(RNG.normal(size=(30, 4)), **a),
    "count_histogram": lambda **a: plotting.count_histogram(COUNTS, {"VAE": COUNTS + 1}, **a),
    "confusion_matrix": lambda **a: plotting.confusion_matrix(GROUPS, GROUPS, **a),
    "graphical_model": lambda **a: plotting.graphical_model(vaelab.VAE.graph, **a),
    "layers": lambda **a: plotting.layers([30, 8, 2, 8, 30], **a),
    "seeds": lambda ax=None: plotting.seeds(ax, SEEDS),
    "volcano": lambda **a: plotting.volcano(changes(), **a),
    "calibration_of_calls": lambda **a: plotting.calibration_of_calls({"SCVI": RATES}, **a),
}
WITHOUT_AXIS_LABELS = {"embedding", "graphical_model", "layers"}


@pytest.fixture(autouse=True)
def figures_of_one_test():
    plt.close("all")
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def colour_bar(ax):
    """The axes of the colour bar."""
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    return bar


# ------------------------------------------------------------------------------- all of them


def test_every_figure_is_tried_here():
    others = {"film", "interactive", "look", "readable", "show"}
    assert set(DRAWN) | others == set(plotting.__all__)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_returns_new_axes_and_neither_shows_nor_closes(name, monkeypatch):
    for call in ("show", "close"):
        monkeypatch.setattr(plt, call, lambda *a, **k: pytest.fail("shown or closed"))
    other = plt.figure()
    first, second = DRAWN[name](), DRAWN[name]()
    monkeypatch.undo()
    axes = np.ravel([first, second])
    assert all(isinstance(ax, Axes) for ax in axes)
    assert axes[0].figure is not axes[-1].figure
    assert set(plt.get_fignums()) == {
        other.number, axes[0].figure.number, axes[-1].figure.number,
    }  # fmt: skip
    assert not other.axes


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_draws_into_the_axes_it_is_given_and_leaves_their_neighbours(name):
    n = 2 if name == "training_history" else 1
    figure, axes = plt.subplots(1, n + 1)
    given = {"axes": axes[:2]} if n == 2 else {"ax": axes[0]}
    returned = np.ravel([DRAWN[name](**given)])
    assert list(returned) == list(axes[:n])
    assert plt.get_fignums() == [figure.number]
    assert all(ax.has_data() for ax in returned)
    assert not axes[n].has_data()
    assert not axes[n].get_xlabel()


@pytest.mark.parametrize("name", [name for name in DRAWN if name not in WITHOUT_AXIS_LABELS])
def test_axes_are_labelled(name):
    for ax in np.ravel([DRAWN[name]()]):
        assert ax.get_xlabel()
        assert ax.get_ylabel()


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_written_is_cut_off_or_overlaps(name):
    figure = np.ravel([DRAWN[name]()])[0].figure
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            boxes = [t.get_window_extent() for t in ticks]
            low, high = sorted(ax.get_xlim() if axis is ax.xaxis else ax.get_ylim())
            places = [t.get_position()[axis is ax.yaxis] for t in ticks]
            seen = [b for b, at in zip(boxes, places, strict=True) if low <= at <= high]
            assert not any(a.overlaps(b) for a, b in combinations(seen, 2))


# sRGB colours and their CIE L*a*b* values (white of D65), from Lindbloom's calculator.
ALL_CONES = "all three kinds of cones"
LAB = {"#FF0000": (53.24, 80.09, 67.20), "#0000FF": (32.30, 79.19, -107.86), "white": (100, 0, 0)}


@pytest.mark.parametrize(("one", "other"), combinations(LAB, 2))
def test_a_difference_of_colours_is_the_distance_in_lab(one, other):
    apart = np.linalg.norm(np.subtract(LAB[one], LAB[other]))
    assert difference(one, other, ALL_CONES) == pytest.approx(apart, abs=0.1)


def as_a_dichromat_sees(colour, matrix):
    """Viénot, Brettel & Mollon (1999): linear RGB through the plane of two kinds of cones."""
    linear = np.clip(matrix @ np.array(to_rgb(colour)) ** 2.2, 0, 1)
    return tuple(linear ** (1 / 2.2))


@pytest.mark.parametrize(
    ("eyes", "matrix"),
    [
        ("protanopia", [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
        ("deuteranopia", [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
    ],
)
def test_two_models_of_the_eye_agree_on_what_is_told_apart(eyes, matrix):
    """Machado's colours keep a little more red and green than Viénot's, which have none."""
    for pair in combinations((*plotting.COLOURS, "#808080", "white"), 2):
        theirs = (as_a_dichromat_sees(colour, np.array(matrix)) for colour in pair)
        apart = difference(*theirs, ALL_CONES)
        assert difference(*pair, eyes) == pytest.approx(apart, abs=13), pair


@pytest.mark.parametrize("eyes", EYES)
def test_each_pair_of_the_palette_is_told_apart(eyes):
    for pair in combinations((*plotting.COLOURS, "white"), 2):
        assert difference(*pair, eyes) >= CLOSEST, pair


@pytest.mark.parametrize(
    ("eyes", "one", "other"),
    [
        ("deuteranopia", "#D62728", "#7F7F00"), ("deuteranopia", plotting.PINK, "0.6"),
        ("protanopia", "#FF0000", "#646400"), ("tritanopia", "#1E90FF", "#00A0A0"),
    ],
)  # fmt: skip
def test_colours_that_some_eyes_confuse_are_found(eyes, one, other):
    assert difference(one, other, eyes) < CLOSEST < difference(one, other, ALL_CONES)


@pytest.mark.parametrize("n_colours", [4, 5])
def test_no_other_order_tells_the_first_colours_better_apart(n_colours):
    """With the eyes of most people, and without green or red cones."""
    eyes = [*EYES][:3]

    def closest(colours):
        return min(difference(*pair, eye) for eye in eyes for pair in combinations(colours, 2))

    best = max(map(closest, combinations(plotting.COLOURS, n_colours)))
    assert closest(plotting.COLOURS[:n_colours]) == best


# ------------------------------------------------------- legends that rely on colour alone

TWO_GROUPS = {  # how two groups are drawn; True if they are told apart by more than colour
    "lines": (lambda ax, i, of: ax.plot([0, i], **of), False),
    "dashes": (lambda ax, i, of: ax.plot([0, i], "-:"[i], **of), True),
    "widths": (lambda ax, i, of: ax.plot([0, i], lw=1 + i, **of), True),
    "similar widths": (lambda ax, i, of: ax.plot([0, i], lw=1 + 0.5 * i, **of), False),
    "dots": (lambda ax, i, of: ax.plot([0, i], "o", **of), False),
    "markers": (lambda ax, i, of: ax.plot([0, i], "os"[i], **of), True),
    "open dots": (lambda ax, i, of: ax.plot([0, i], "o", mfc=("none", None)[i], **of), True),
    "clouds": (lambda ax, i, of: ax.scatter([0, i], [0, i], **of), False),
    "clouds of markers": (lambda ax, i, of: ax.scatter(0, i, marker="o^"[i], **of), True),
    "bars": (lambda ax, i, of: ax.bar(i, 1, **of), False),
    "hatched bars": (lambda ax, i, of: ax.bar(i, 1, hatch=("", "//")[i], **of), True),
    "outlines": (lambda ax, i, of: ax.hist([i], histtype="step", **of), False),
    "an outline": (lambda ax, i, of: ax.hist([i], histtype=("step", "bar")[i], **of), True),
    "errors": (lambda ax, i, of: ax.errorbar(i, 1, 1, fmt="o", **of), False),
    "errors and markers": (lambda ax, i, of: ax.errorbar(i, 1, 1, fmt="os"[i], **of), True),
    "an area and a line": (lambda ax, i, of: (ax.axvspan(0, 1), ax.axvline(1))[i].set(**of), True),
}


@pytest.mark.parametrize("of_figure", [False, True], ids=["axes", "figure"])
@pytest.mark.parametrize("name", TWO_GROUPS)
def test_a_legend_does_not_rely_on_colours_that_some_confuse(name, of_figure, displayed):
    draw, apart = TWO_GROUPS[name]
    figure, ax = plt.subplots(figsize=(4, 3))
    for i, colour in enumerate((plotting.PINK, "0.6")):  # both grey with deuteranopia
        draw(ax, i, {"color": colour, "label": ("one", "other")[i]})
    (figure if of_figure else ax).legend()
    if apart:
        plotting.show("Two groups.")
        assert displayed
    else:
        with pytest.raises(ValueError, match="With deuteranopia, 'one' looks like 'other'"):
            plotting.show("Two groups.")


# --------------------------------------------------------------------------- training history


def test_the_history_shows_bounds_terms_and_weight():
    frame = history()
    bound, terms = plotting.training_history(frame, best_epoch=30)
    training, held_out, best = bound.get_lines()
    for line, column in ((training, "bound"), (held_out, "held_out_bound")):
        np.testing.assert_array_equal(line.get_xdata(), frame.index)
        np.testing.assert_array_equal(line.get_ydata(), frame[column])
    assert set(best.get_xdata()) == {30}
    assert legend(bound) == ["training cells", "held-out cells", "kept: epoch 30"]
    assert bound.get_ylabel() == "bound (nats per cell)"
    for line, column in zip(terms.get_lines(), ("kl_z", "kl_y"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), frame[column])
    assert terms.get_ylabel() == "nats per cell"
    (weight,) = [ax for ax in bound.figure.axes if ax not in (bound, terms)]
    np.testing.assert_array_equal(weight.get_lines()[0].get_ydata(), frame["kl_weight"])
    assert legend(terms) == ["kl_z", "kl_y", "KL weight"]
    colours = [to_hex(line.get_color()) for ax in (bound, terms) for line in ax.get_lines()]
    assert len({*colours[:2]}) == len({*colours[3:5]}) == 2


def history_of_errors(held_out=True):
    frame = history(held_out=held_out)
    return pd.DataFrame(
        {
            "squared_error": -frame["bound"],
            "error": -frame["bound"],
            "held_out_error": -frame["held_out_bound"],
            "seconds": 0.5,
        }
    )


def test_a_history_of_errors_is_one_panel_that_speaks_of_no_bound():
    frame = history_of_errors()
    ax = plotting.training_history(frame, best_epoch=30)
    assert ax.figure.axes == [ax]
    training, held_out, best = ax.get_lines()
    np.testing.assert_array_equal(training.get_ydata(), frame["error"])
    np.testing.assert_array_equal(held_out.get_ydata(), frame["held_out_error"])
    assert set(best.get_xdata()) == {30}
    assert legend(ax) == ["training cells", "held-out cells", "kept: epoch 30"]
    assert (ax.get_ylabel(), ax.get_title()) == ("squared error", "The reconstruction error")
    assert legend(plotting.training_history(history_of_errors(held_out=False))) == [
        "training cells"
    ]
    two = frame.assign(penalty=1.0)
    assert plotting.training_history(two).get_ylabel() == "error"


def test_the_first_epochs_do_not_flatten_the_other_errors():
    frame = history_of_errors()
    frame.loc[1, ["error", "held_out_error"]] = 1e6
    assert plotting.training_history(frame).get_ylim()[1] < 2000
    frame["held_out_error"] = 5000.0
    assert plotting.training_history(frame).get_ylim()[1] > 5000


def test_a_held_out_bound_far_below_the_training_bound_stays_in_sight():
    frame = history()
    frame["held_out_bound"] = -5000.0
    bound, _ = plotting.training_history(frame)
    assert bound.get_ylim()[0] < -5000


def test_the_first_epochs_do_not_flatten_the_others():
    frame = history()
    frame.loc[1, ["bound", "held_out_bound"]] = -1e6
    bound, _ = plotting.training_history(frame)
    assert bound.get_ylim()[0] > -2000


def test_a_history_without_held_out_cells_shows_none():
    bound, _ = plotting.training_history(history(held_out=False))
    assert legend(bound) == ["training cells"]


def test_a_history_of_one_epoch_can_be_seen():
    bound, terms = plotting.training_history(history(epochs=1), best_epoch=1)
    assert [line.get_marker() for line in bound.get_lines()[:2]] == ["o", "o"]
    assert [line.get_marker() for line in terms.get_lines()] == ["o", "o"]
    assert bound.get_xticks() == [1]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_history_with_values_that_are_not_finite_is_still_drawn(value):
    frame = history()
    frame["held_out_bound"] = value
    bound, _ = plotting.training_history(frame)
    assert np.isfinite(bound.get_ylim()).all()


def test_a_history_of_more_terms_than_colours_shows_them_all():
    frame = history()
    for i in range(12):
        frame[f"kl_{i}"] = -float(i)
    _, terms = plotting.training_history(frame)
    assert len(terms.get_lines()) == 14


def test_an_empty_history_says_so():
    with pytest.raises(ValueError, match="No epoch of this training was finished"):
        plotting.training_history(History().frame)


# ---------------------------------------------------------------------------------- embedding


def test_groups_have_their_own_colour_and_their_name_in_their_middle():
    ax = plotting.embedding(POINTS, GROUPS, title="cells")
    assert ax.get_title() == "cells"
    assert len(ax.collections) == 3
    for i, drawn in enumerate(ax.collections):
        np.testing.assert_array_equal(drawn.get_offsets(), POINTS[50 * i : 50 * (i + 1)])
    assert len({to_hex(drawn.get_facecolor()[0]) for drawn in ax.collections}) == 3
    assert texts(ax) == ["alpha", "beta", "gamma"]
    for i, text in enumerate(ax.texts):
        np.testing.assert_allclose(
            text.get_position(), np.median(POINTS[50 * i : 50 * (i + 1)], axis=0)
        )
    assert ax.get_legend() is None


@pytest.mark.parametrize(
    "values", [list(GROUPS), pd.Series(GROUPS), pd.Categorical(GROUPS), GROUPS.astype(object)]
)
def test_groups_may_come_in_any_form(values):
    assert texts(plotting.embedding(POINTS.tolist(), values)) == ["alpha", "beta", "gamma"]


def test_truth_values_and_missing_names_are_groups():
    assert set(texts(plotting.embedding(POINTS, GROUPS == "beta"))) == {"True", "False"}
    missing = np.where(GROUPS == "beta", None, GROUPS)
    assert "None" in texts(plotting.embedding(POINTS, missing))


def test_names_that_would_overlap_go_into_a_legend():
    _, ax = plt.subplots()
    ax.text(0, 0, "mine")
    plotting.embedding(POINTS, RNG.permutation(GROUPS), ax=ax)
    assert texts(ax) == ["mine"]
    assert sorted(legend(ax)) == ["alpha", "beta", "gamma"]


def test_names_can_be_written_on_clouds_that_overlap():
    points = np.concatenate([RNG.normal((0, i), size=(100, 2)) for i in range(5)])
    groups = np.repeat([f"quite_a_long_name {i}" for i in range(5)], 100)
    ax = plotting.embedding(points, groups, names="clouds")
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert sorted(texts(ax)) == [f"quite a long name {i}" for i in range(5)]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(ax.bbox.padded(2).contains(*corner) for box in boxes for corner in box.corners())
    assert ax.get_legend() is None


def test_a_name_does_not_hide_a_small_group():
    points = np.concatenate([POINTS, [[4, 4], [4.1, 4], [4, 4.1]]])
    ax = plotting.embedding(points, [*GROUPS, *3 * ["three_cells"]], names="clouds")
    ax.figure.canvas.draw()
    (text,) = [text for text in ax.texts if text.get_text() == "three cells"]
    box, cells = text.get_window_extent(), ax.transData.transform(points[-3:])
    assert not any(box.contains(*cell) for cell in cells)
    assert np.abs(cells.mean(0) - (box.min + box.max) / 2).max() < 2 * box.width


def test_a_legend_can_be_asked_for_and_stands_beside_the_cells():
    ax = plotting.embedding(POINTS, GROUPS, names="legend")
    ax.figure.canvas.draw()
    assert texts(ax) == [] and legend(ax) == ["alpha", "beta", "gamma"]
    assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1
    with pytest.raises(ValueError, match="names is 'cloud'"):
        plotting.embedding(POINTS, GROUPS, names="cloud")


PANCREAS = (
    "beta", "ductal", "delta", "endothelial", "quiescent_stellate", "macrophage", "gamma", "alpha",
    "activated_stellate", "immune_other", "T_cell", "schwann", "B_cell",
)  # fmt: skip
BLOOD = (
    "B cell", "progenitor", "NK cell", "cytotoxic T", "helper T", "memory T", "naive cytotoxic T",
    "regulatory T", "naive T", "monocyte",
)  # fmt: skip
TOGETHER = (
    PANCREAS, BLOOD, ("T cell", "B cell", "CD34+", "NK cell", "CD14+"), ("mouse 1", "mouse 2"),
    [f"type {i}" for i in range(1, 13)], (*PANCREAS, "unknown", "none"), [0, 1, 2],
)  # fmt: skip


@pytest.mark.parametrize("groups", TOGETHER, ids=lambda groups: f"{groups[0]} and others")
def test_groups_of_one_figure_differ(groups):
    looks = plotting.look(groups)
    assert len({tuple(sorted(look.items())) for look in looks.values()}) == len(groups)
    if len(groups) <= 7:
        assert len({look["marker"] for look in looks.values()}) == len(groups)
        assert len({look["color"] for look in looks.values()}) == len(groups)


def test_a_type_has_one_look_whatever_stands_beside_it():
    everything = plotting.look(PANCREAS)
    assert plotting.look(["B_cell", "alpha", "new"])["alpha"] == everything["alpha"]
    assert plotting.look("B cell")["B cell"] == everything["B_cell"]
    assert everything["beta"] == {"color": plotting.BLUE, "marker": "o"}
    few, many = (POINTS[50:], GROUPS[50:]), (POINTS, GROUPS)
    colours = [
        {c.get_label(): to_hex(c.get_facecolor()[0]) for c in plotting.embedding(*of).collections}
        for of in (few, many)
    ]
    assert colours[0].items() < colours[1].items()


def test_numbered_groups_take_looks_in_the_order_of_their_numbers():
    looks = plotting.look(["type 10", "type 2", "type 1"])
    assert [looks[f"type {i}"]["color"] for i in (1, 2, 10)] == [*plotting.COLOURS[:3]]


def test_up_to_49_groups_look_different():
    points = RNG.normal(size=(490, 2))
    ax = plotting.embedding(points, np.repeat([f"group {i}" for i in range(49)], 10))
    looks = {
        (to_hex(drawn.get_facecolor()[0]), drawn.get_paths()[0].vertices.tobytes())
        for drawn in ax.collections
    }
    assert len(looks) == len(legend(ax)) == 49


def test_numbers_are_drawn_in_shades_with_the_highest_on_top():
    values = RNG.normal(size=150)
    ax = plotting.embedding(POINTS, values, name="counts of GCG")
    (drawn,) = ax.collections
    np.testing.assert_array_equal(drawn.get_array(), np.sort(values))
    np.testing.assert_array_equal(drawn.get_offsets(), POINTS[np.argsort(values)])
    assert colour_bar(ax).get_ylabel() == "counts of GCG"


@pytest.mark.parametrize(
    ("points", "values", "seen"),
    [
        (POINTS, GROUPS[:-1], r"\(150, 2\) for 149 values"),
        (POINTS, [*GROUPS, "a"], "for 151 values"),
        (POINTS[:, :1], GROUPS, r"\(150, 1\)"),
        (np.ones((150, 3)), GROUPS, r"\(150, 3\)"),
        (POINTS[:, 0], GROUPS, r"points must hold finite numbers in 2 dimension.*\(150,\)"),
        (POINTS * np.nan, GROUPS, "NaN or infinite"),
        (POINTS[:0], GROUPS[:0], r"\(0, 2\)"),
    ],
)
def test_points_that_do_not_fit_are_refused_before_a_figure_is_made(points, values, seen):
    with pytest.raises(ValueError, match=seen):
        plotting.embedding(points, values)
    assert not plt.get_fignums()


# ------------------------------------------------------------------------------ latent space


def test_the_activity_of_each_dimension_is_a_bar_and_the_active_ones_differ():
    ax = plotting.activity([0.5, 0.001, 0.02, 0.0], threshold=0.01)
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.001, 0.02, 0.0]
    assert [bar.get_x() + bar.get_width() / 2 for bar in ax.patches] == [1, 2, 3, 4]
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert set(ax.get_lines()[0].get_ydata()) == {0.01}
    assert ax.get_title() == "2 of 4 latent dimensions are active"
    assert ax.get_yscale() == "log"
    assert 0 < ax.get_ylim()[0] < 0.001
    assert texts(ax) == ["active\nabove\n0.01"]


@pytest.mark.parametrize("n", [1, 13, 64, 200])
def test_dimensions_are_numbered_without_overlap(n):
    for ax in (
        plotting.activity(RNG.random(n)),
        plotting.latent_covariance(RNG.normal(size=(300, n))),
    ):
        ax.figure.canvas.draw()
        for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
            boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
            if ticks[0].get_text() == "1":
                assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        assert ax.get_xticklabels()[0].get_text() == "1"


@pytest.mark.parametrize("bad", [[], [np.nan, 1.0], [[1.0, 2.0]], "none", None])
def test_what_is_no_activity_is_refused(bad):
    with pytest.raises(ValueError, match="latent_activity must hold finite numbers"):
        plotting.activity(bad)
    assert not plt.get_fignums()


@pytest.mark.parametrize("n_latent", [1, 2, 5])
def test_the_covariance_is_that_of_the_posterior_means(n_latent):
    latent = RNG.normal(size=(40, n_latent)) * np.arange(1, n_latent + 1)
    ax = plotting.latent_covariance(latent)
    mesh = ax.collections[0]
    expected = np.cov(latent, rowvar=False).reshape(n_latent, n_latent)
    np.testing.assert_allclose(np.reshape(mesh.get_array(), expected.shape), expected)
    low, high = mesh.get_clim()
    assert high == -low == np.abs(expected).max()
    assert colour_bar(ax).get_ylabel() == "covariance"


# ------------------------------------------------------------------------------------- counts


def test_the_histogram_is_of_shares_of_cells():
    observed = np.array([0, 0, 0, 1, 1, 2, 4, 9])
    ax = plotting.count_histogram(
        observed, {"VAE": np.array([[0, 1], [1, 7]])}, largest=4, gene="GCG"
    )
    heights = [8 * bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, [3, 2, 1, 0, 2])
    np.testing.assert_allclose([b.get_x() + b.get_width() / 2 for b in ax.patches], range(5))
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_ydata(), [1 / 4, 2 / 4, 0, 0, 1 / 4, 0])
    np.testing.assert_allclose(line.get_xdata(), np.arange(6) - 0.5)
    assert ax.get_xlabel() == "counts of GCG (the last bar: 4 and more)"
    assert ax.get_ylabel() == "share of cells"
    assert sorted(legend(ax)) == ["VAE", "observed"]


@pytest.mark.parametrize("largest", [39, 40, 100, 5000])
def test_wide_histograms_lose_no_cell(largest):
    observed = RNG.integers(0, 2 * largest, size=400)
    ax = plotting.count_histogram(observed, largest=largest)
    assert len(ax.patches) <= 41
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1)
    last = int(ax.get_xlabel().split("last bar: ")[1].split()[0])
    assert ax.patches[-1].get_height() == pytest.approx(np.mean(observed >= last))


def test_every_model_is_drawn_and_told_apart():
    models = {f"model {i}": COUNTS + i for i in range(10)}
    ax = plotting.count_histogram(COUNTS, models)
    assert len(ax.get_lines()) == 10
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in ax.get_lines()}
    assert len(looks) == 10
    assert {*legend(ax)} == {*models, "observed"}


@pytest.mark.parametrize("n_models", [0, 1, 2, 5])
def test_the_legend_stands_beside_the_counts(n_models):
    ax = plotting.count_histogram(COUNTS, {f"model {i}": COUNTS + i for i in range(n_models)})
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1


@pytest.mark.parametrize("constant", [0, 3])
def test_a_gene_with_one_count_only_is_drawn(constant):
    ax = plotting.count_histogram(np.full(20, constant))
    assert max(bar.get_height() for bar in ax.patches) == 1


@pytest.mark.parametrize("bad", [[], [0, np.nan], [[1, 2]], ["a"]])
def test_what_are_no_counts_of_a_gene_is_refused(bad):
    with pytest.raises(ValueError, match="observed must hold finite numbers in 1 dimension"):
        plotting.count_histogram(bad)


# --------------------------------------------------------------------------- confusion matrix


def drawn_matrix(ax):
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    columns = [tick.get_text() for tick in ax.get_xticklabels()]
    shares = np.reshape(ax.collections[0].get_array(), (len(rows), len(columns)))
    return pd.DataFrame(shares, rows, columns)


def test_rows_are_true_groups_with_their_sizes_and_sum_to_one():
    truth = ["a"] * 6 + ["b"] * 3 + ["c"]
    found = [1, 1, 1, 1, 0, 2, 0, 0, 2, 2]
    ax = plotting.confusion_matrix(truth, found, truth_name="cell type", found_name="community")
    shares = drawn_matrix(ax)
    assert shares.index.tolist() == ["a (6)", "b (3)", "c (1)"]
    assert shares.columns.tolist() == ["1", "0", "2"]
    np.testing.assert_allclose(shares, [[4/6, 1/6, 1/6], [0, 2/3, 1/3], [0, 0, 1]])  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("community", "cell type")
    assert colour_bar(ax).get_ylabel() == "share of the row"
    assert [t for t in texts(ax) if t] == [".67", ".17", ".17", ".67", ".33", "1"]


def test_found_types_stand_in_the_order_of_the_true_ones():
    truth = ["a", "b", "b", "c", "c", "c"]
    shares = drawn_matrix(plotting.confusion_matrix(truth, ["c", "b", "b", "c", "c", "b"]))
    assert shares.index.tolist() == ["c (3)", "b (2)", "a (1)"]
    assert shares.columns.tolist() == ["c", "b"]


def test_clusters_that_match_types_make_a_diagonal():
    truth = np.repeat(list("abcd"), [5, 4, 3, 2])
    clusters = np.repeat([2, 0, 3, 1], [5, 4, 3, 2])
    np.testing.assert_array_equal(
        drawn_matrix(plotting.confusion_matrix(truth, clusters)), np.eye(4)
    )


def test_long_names_leave_room_for_the_matrix():
    names = np.array(["alpha cell of the pancreatic islet", "acinar cell"] * 5)
    ax = plotting.confusion_matrix(names, names)
    ax.figure.canvas.draw()
    assert ax.get_window_extent().width > 60
    assert ax.figure.bbox.padded(1).y0 <= ax.get_tightbbox().y0


def test_groups_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="length"):
        plotting.confusion_matrix(["a", "b"], ["a"])
    assert not plt.get_fignums()


def test_names_of_types_are_readable():
    found = ["T_cell", "immune_other"]
    shares = drawn_matrix(plotting.confusion_matrix(["T_cell", "T_cell"], found))
    assert shares.index.tolist() == ["T cell (2)"]
    assert shares.columns.tolist() == ["T cell", "immune other"]


# -------------------------------------------------------------------------- graphical models

GRAPH = {  # a model with everything: both ways, one way, two parents, plates that cross
    "z": {"at": (0, 2), "q": ("x_g", "γ"), "plates": ("cells",)},
    "γ": {"at": (2, 1), "observed": True, "plates": ("cells",)},
    "θ_g": {"at": (-1.2, 0), "plates": ("genes",)},
    "x_g": {
        "at": (0, 0), "p": ("z", "γ", "θ_g"), "observed": True, "plates": ("cells", "genes"),
    },
}  # fmt: skip


def drawn(ax):
    """Variables with their places, and those that are shaded."""
    places = {t.get_text().strip("$"): np.array(t.xy) for t in ax.texts if "$" in t.get_text()}
    shaded = {
        name
        for name, place in places.items()
        for patch in ax.patches
        if isinstance(patch, Ellipse)
        and np.allclose(patch.center, place)
        and patch.get_facecolor()[:3] != (1, 1, 1)
        and patch.get_facecolor()[3] > 0
    }
    return places, shaded


def arrows(ax):
    """(parent, variable) of each arrow by the variables nearest to its ends, and its line."""
    places, _ = drawn(ax)
    heads = [text for text in ax.texts if isinstance(text, Annotation) and text.arrow_patch]
    found = []
    for line, head in zip(ax.get_lines(), heads, strict=True):
        tail, tip = line.get_xydata()[0], np.array(head.xy)
        left = tip - line.get_xydata()[1]  # the line ends shortly before the head's tip
        np.testing.assert_allclose(left, 0.07 * (tip - tail) / np.hypot(*(tip - tail)), atol=1e-9)
        pair = []
        for end in (tail, tip):
            nearest = min(places, key=lambda name: np.hypot(*(places[name] - end)))
            assert np.hypot(*(places[nearest] - end)) == pytest.approx(0.25, abs=0.03)
            pair.append(nearest)
        found.append((*pair, line.get_linestyle()))
    return sorted(found)


def test_a_graph_is_drawn_as_it_is_described():
    ax = plotting.graphical_model(GRAPH)
    places, shaded = drawn(ax)
    assert set(places) == set(GRAPH) and shaded == {"x_g", "γ"}
    for name, place in places.items():
        np.testing.assert_allclose(place, GRAPH[name]["at"])
    p = [("z", "x_g", "-"), ("γ", "x_g", "-"), ("θ_g", "x_g", "-")]
    q = [("x_g", "z", "--"), ("γ", "z", "--")]
    assert arrows(ax) == sorted(p + q)
    assert arrows(plotting.graphical_model(GRAPH, show="p")) == p
    assert arrows(plotting.graphical_model(GRAPH, show="q")) == q


def test_arrows_of_both_ways_lie_side_by_side():
    ax = plotting.graphical_model(GRAPH)
    across = {
        line.get_linestyle(): line.get_xdata().mean()
        for line in ax.get_lines()
        if np.ptp(line.get_xdata()) < 0.01
    }
    assert abs(across["-"] - across["--"]) == pytest.approx(0.18, abs=0.01)


def dark_runs(ax, line) -> int:
    """How many separate dark pieces the pixels of a straight line have."""
    ax.figure.set_dpi(200)
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[::-1, :, 0]
    (x0, y0), (x1, y1) = ax.transData.transform(line.get_xydata())
    along = np.linspace(0, 1, 400)
    x, y = np.rint(x0 + along * (x1 - x0)), np.rint(y0 + along * (y1 - y0))
    dark = np.min([pixels[y.astype(int) + d, x.astype(int) + e] for d in (-1, 0, 1)
                   for e in (-1, 0, 1)], axis=0) < 128  # fmt: skip
    return 1 + int((~dark[:-1] & dark[1:]).sum())


def test_dashes_of_any_length_and_direction_are_seen():
    for model in (vaelab.SCANVI, vaelab.GMVAE, vaelab.SCVI):
        for show in "pq":
            ax = plotting.graphical_model(model.graph, show=show)
            for line in ax.get_lines():
                pieces = dark_runs(ax, line)
                assert pieces >= 4 if show == "q" else pieces == 1


def test_a_variable_that_is_observed_for_a_part_of_the_cells_is_half_shaded():
    ax = plotting.graphical_model({"c": {"at": (0, 0), "observed": "partly"}, "l": {"at": (1, 0)}})
    (half,) = [patch for patch in ax.patches if isinstance(patch, Wedge)]
    assert half.center == (0, 0) and half.theta2 - half.theta1 == 180
    places, shaded = drawn(ax)
    assert not shaded and set(places) == {"c", "ℓ"}
    assert vaelab.SCANVI.graph["c"]["observed"] == "partly"


def test_a_plate_holds_its_variables_and_no_other():
    ax = plotting.graphical_model(GRAPH)
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    named = {}
    for text in ax.texts:
        (box,) = [b for b in boxes if np.allclose(b.get_corners()[1], text.xy)] or [None]
        if box is not None:
            places = {name: GRAPH[name]["at"] for name in GRAPH}
            named[text.get_text()] = {n for n, at in places.items() if box.contains_point(
                ax.transData.transform(at))}  # fmt: skip
    assert len(boxes) == 2
    assert named == {"cells": {"z", "γ", "x_g"}, "genes": {"θ_g", "x_g"}}


ZOO = [getattr(zoo, name) for name in zoo.__all__]


@pytest.mark.parametrize("model", [vaelab.VAE, vaelab.GMVAE, vaelab.SCVI, vaelab.SCANVI, *ZOO],
                         ids=lambda model: model.__name__)  # fmt: skip
@pytest.mark.parametrize("inches", [None, (3.1, 4)], ids=["alone", "small"])
def test_the_name_of_a_plate_is_inside_of_it_and_touches_nothing(model, inches):
    ax = plt.subplots(figsize=inches)[1] if inches else None
    ax = plotting.graphical_model(model.graph, ax=ax)
    if inches:
        ax.set_position([0, 0, 1, 1])
    ax.figure.canvas.draw()
    boxes = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, Rectangle)]
    circles = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, Ellipse)]
    names = {plate for v in model.graph.values() for plate in v.get("plates", ())}
    for text in [text for text in ax.texts if text.get_text() in names]:
        here = text.get_window_extent()
        assert sum(box.x0 < here.x0 and here.x1 < box.x1 and box.y0 < here.y0 and here.y1 < box.y1
                   for box in boxes) == (2 if text.get_text() in ("genes", "proteins", "sets")
                                         else 1)  # fmt: skip
        assert not any(here.overlaps(circle) for circle in circles)
        for line in ax.get_lines():
            at = ax.transData.transform(np.linspace(*line.get_xydata(), 200))
            assert not any(here.contains(*point) for point in at), text.get_text()


def test_two_models_with_the_same_arrow_draw_it_twice():
    graph = {"y": {"at": (0, 1)}, "z": {"at": (0, 0), "p": ("y",), "q": ("y",)}}
    p, q = sorted(
        plotting.graphical_model(graph).get_lines(), key=lambda line: line.get_linestyle()
    )
    assert {p.get_linestyle(), q.get_linestyle()} == {"-", "--"}
    assert abs(p.get_xdata() - q.get_xdata()) == pytest.approx([0.18, 0.18])
    (alone,) = plotting.graphical_model(graph, show="q").get_lines()
    assert alone.get_xdata() == pytest.approx([0, 0])


def test_a_graph_that_can_not_be_drawn_is_refused():
    with pytest.raises(ValueError, match="'y' is named as a parent but is not in the graph"):
        plotting.graphical_model({"z": {"at": (0, 0), "p": ("y",)}})
    inside = GRAPH | {"θ_g": {"at": (0.5, 1)}}
    with pytest.raises(ValueError, match="'θ_g' is drawn on the plate 'cells' but is not one"):
        plotting.graphical_model(inside)


MODELS = [
    model
    for model in vars(models).values()
    if isinstance(model, type) and issubclass(model, models.Model) and model is not models.Model
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_has_a_graph_of_the_variables_in_its_docstring(model):
    described = (sys.modules[model.__module__].__doc__ or "") + (model.__doc__ or "")
    for name in model.graph:
        assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", described), name
    drawn_variables, shaded = drawn(plotting.graphical_model(model.graph))
    assert set(drawn_variables) == set(model.graph) and shaded


# ------------------------------------------------------------------------------------- layers


def test_each_layer_is_a_bar_with_its_number_and_the_code_is_in_the_middle():
    widths = [2000, 64, 1, 64, 2000]
    ax = plotting.layers(widths)
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    heights = [bar.get_height() for bar in bars]
    np.testing.assert_allclose(np.diff(heights), np.diff(np.log2(widths)))
    assert min(heights) > 0
    for bar in bars:  # centred
        assert bar.get_y() == pytest.approx(-bar.get_height() / 2)
    numbers = [t.get_text() for t in ax.texts if t.get_position()[1] < 0]
    assert numbers == ["2,000", "64", "1", "64", "2,000"]
    assert {t.get_text(): t.get_position()[0] for t in ax.texts if t.get_position()[1] > 0} == {
        "x": 0, "z": 2, "x̂": 4,
    }  # fmt: skip
    sides = [patch for patch in ax.patches if not isinstance(patch, Rectangle)]
    colours = [to_hex(side.get_facecolor()) for side in sides]
    assert colours == [plotting.BLUE.lower()] * 2 + [plotting.ORANGE.lower()] * 2
    for i, side in enumerate(sides):  # from one bar to the next
        corners = side.get_xy()[:4]
        np.testing.assert_allclose(sorted({*corners[:, 0]}), [i, i + 1])
        np.testing.assert_allclose(np.ptp(corners[corners[:, 0] == i, 1]), heights[i])
    assert plotting.layers(vaelab.Autoencoder(7, n_hidden=(5,)).widths)


@pytest.mark.parametrize("widths", [[5], [5, 3], [5, 3, 2, 3], [5, 0, 5]])
def test_widths_that_are_no_autoencoder_are_refused(widths):
    with pytest.raises(ValueError, match="an odd number of layers, 3 or more, of at least 1 unit"):
        plotting.layers(widths)


# -------------------------------------------------------------------------------------- seeds


def test_each_number_has_a_dot_per_seed_and_its_mean():
    ax = plotting.seeds(None, SEEDS, ylabel="nats per cell", colours={"with": "#D55E00"})
    for i, (name, values) in enumerate(SEEDS.items()):
        dots, mean = ax.collections[2 * i], ax.collections[2 * i + 1]
        (start, end) = mean.get_segments()[0]
        assert dots.get_offsets()[:, 1].tolist() == values.tolist()
        assert start[1] == end[1] == values.mean()
        assert start[0] < dots.get_offsets()[:, 0].min() and dots.get_offsets()[:, 0].max() < end[0]
        assert np.allclose(dots.get_offsets()[:, 0] - i, ax.collections[0].get_offsets()[:, 0])
        assert to_hex(mean.get_color()[0]) == to_hex(dots.get_facecolor()[0])
        assert to_hex(mean.get_color()[0]) == ("#d55e00", "#e69f00")[i], name
    assert [t.get_text() for t in ax.get_xticklabels()] == ["with", "without warm\nup"]
    assert ax.get_ylabel() == "nats per cell" and "4 seeds" in ax.get_xlabel()


def test_seeds_that_can_not_be_drawn_are_refused():
    with pytest.raises(ValueError, match="colours has 'wiht'"):
        plotting.seeds(None, SEEDS, colours={"wiht": "red"})
    with pytest.raises(ValueError, match="NaN or infinite"):
        plotting.seeds(None, SEEDS.replace(4.5, np.nan))
    with pytest.raises(ValueError, match="finite numbers"):
        plotting.seeds(None, SEEDS.iloc[:0])


# ------------------------------------------------------------------------------- interactive


ALT = "A bar whose height is that of the slider."


def test_an_interactive_figure_is_drawn_again_when_a_control_moves():
    import ipywidgets

    seen = []

    def draw(height):
        seen.append(height)
        figure, ax = plt.subplots()
        ax.bar(["a"], [height])
        ax.set_ylim(0, 10)
        return figure

    slider = ipywidgets.IntSlider(3, 0, 10)
    before = plt.get_fignums()
    *controls, picture = plotting.interactive(draw, alt=ALT, height=slider).children
    first = picture.value
    slider.value = 7
    assert controls == [slider] and seen == [3, 7]
    assert bytes(first[:4]) == bytes(picture.value[:4]) == b"\x89PNG"
    assert bytes(picture.value) != bytes(first)
    assert plt.get_fignums() == before  # no figure is left behind


def test_controls_are_live_named_and_wide_enough():
    from ipywidgets import Dropdown, FloatSlider

    def draw(mean, gene):
        return plt.figure(figsize=(4, 3))

    mean = FloatSlider(0.0, continuous_update=False)
    gene = Dropdown(options=["GCG", "INS"], description="the gene")
    plotting.interactive(draw, alt=ALT, mean=mean, gene=gene)
    assert mean.continuous_update
    assert (mean.description, gene.description) == ("mean", "the gene")
    assert mean.style.description_width == "initial" and mean.layout.width == "500px"


def test_an_interactive_picture_is_sharp_and_keeps_its_size():
    from ipywidgets import FloatSlider

    def draw(scale):
        figure, ax = plt.subplots(figsize=(7, 3))
        ax.plot([0, scale])
        ax.set_ylabel("a label\n" * round(scale))
        return figure

    slider = FloatSlider(1.0)
    *_, picture = plotting.interactive(draw, alt=ALT, scale=slider).children
    for value in (1.0, 3.0):
        slider.value = value
        assert Image.open(io.BytesIO(picture.value)).size == (1400, 600)
        assert picture.layout.width == "700px"
        # Nothing is cut off: the margin is white.
        pixels = np.asarray(Image.open(io.BytesIO(picture.value)).convert("L"))
        assert (pixels[:, :4] == 255).all() and (pixels[:, -4:] == 255).all()
    # The view takes a tooltip as the title of the picture if there is an empty description.
    assert picture.get_state()["tooltip"] == ALT and picture.get_state()["description"] == ""


def test_without_a_kernel_the_first_picture_stands_for_the_widget():
    from ipywidgets import FloatSlider

    widget = plotting.interactive(lambda m: plt.figure(figsize=(4, 3)), alt=ALT, m=FloatSlider())
    bundle = widget._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    assert bundle["text/plain"] == ALT
    assert picture_in(bundle["text/html"]).size == (800, 600)


# --------------------------------------------------------------------------------- pictures


def picture_in(html: str):
    return Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)">$', html)[1])))


@pytest.fixture
def displayed(monkeypatch):
    import IPython.display

    seen = []
    monkeypatch.setattr(
        IPython.display, "display", lambda data, raw: seen.append(data) if raw else None
    )
    return seen


def test_a_figure_is_shown_once_sharp_with_its_text_and_closed(displayed):
    import xml.etree.ElementTree as xml

    plt.subplots(figsize=(9.5, 3), layout="constrained")[1].plot([-1, 2])
    alt = 'A "line" & its slope: 1 < 2.'
    plotting.show(alt)
    assert not plt.get_fignums()
    (data,) = displayed
    assert {*data} == {"text/html", "text/plain"} and data["text/plain"] == alt
    image = xml.fromstring(data["text/html"].replace('">', '"/>'))
    assert (image.tag, image.get("alt")) == ("img", alt)
    width = int(image.get("width"))
    assert 930 < width < 990 and "max-width: 100%" in image.get("style")
    picture = picture_in(data["text/html"])
    assert picture.width in (2 * width, 2 * width + 1)
    assert picture.mode == "P"


def test_a_film_has_its_frames_its_text_and_its_pauses(displayed):
    def draw(value):
        figure, ax = plt.subplots(figsize=(4, 2))
        ax.bar(0, value)
        ax.set_ylim(0, 4)
        return figure

    plotting.film(draw, [1, 2, 2, 3], alt='A bar < 4, that "fills".', seconds=0.1, pause=1.5)
    assert not plt.get_fignums()
    (data,) = displayed
    assert data["text/plain"] == 'A bar < 4, that "fills".'
    assert 'alt="A bar &lt; 4, that &quot;fills&quot;." width="400"' in data["text/html"]
    assert 'src="data:image/gif;base64,' in data["text/html"]
    film = picture_in(data["text/html"])
    assert film.size == (800, 400) and film.info["loop"] == 0
    times, looks = [], []
    for i in range(film.n_frames):
        film.seek(i)
        times.append(film.info["duration"])
        looks.append(np.asarray(film.convert("RGB")).tobytes())
    assert sum(times) == 1500 + 100 + 100 + 1500
    assert times[0] == times[-1] == 1500
    assert len({*looks}) == 3


@pytest.mark.parametrize(
    ("alt", "width", "said"), [("", 4, "alternative text"), ("A bar.", 12, "inches wide")]
)
def test_a_film_without_text_or_too_wide_is_refused(alt, width, said, displayed):
    with pytest.raises(ValueError, match=said):
        plotting.film(lambda value: plt.figure(figsize=(width, 2)), [1], alt=alt)
    assert not displayed and not plt.get_fignums()


def test_nothing_beside_the_axes_is_cut_off(displayed):
    ax = plt.subplots(figsize=(5, 3))[1]
    ax.plot([1, 2], label="a name so long that it stands outside")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plotting.show("A line.", ax.figure)
    assert picture_in(displayed[0]["text/html"]).width > 1300


@pytest.mark.parametrize("name", ["viridis", "RdBu_r", "Blues"])
def test_a_palette_changes_no_colour_that_one_could_see(name, displayed):
    x, y = RNG.normal(size=(2, 900))
    for draw in (
        lambda ax: ax.imshow(x.reshape(30, 30).cumsum(1), cmap=name),
        lambda ax: ax.scatter(x, y, c=x, cmap=name, s=20, lw=0),
    ):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4))
        plotting.embedding(POINTS, GROUPS, ax=axes[0])
        figure.colorbar(draw(axes[1]))
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=200, bbox_inches="tight", pad_inches=0.05)
        plotting.show("A map.", figure)
        expected = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
        seen = np.asarray(picture_in(displayed.pop()["text/html"]).convert("RGB")).astype(int)
        assert np.abs(expected - seen).max() <= 6


def test_a_minus_is_a_minus_everywhere(displayed):
    figure, ax = plt.subplots()
    ax.set(title=f"{-6.74:.2f} nats, HLA-2, 2015-2016, x-3", xlabel="$a-1$")
    ax.text(0, 0, "(-1, −2)")
    plotting.show("An empty frame.", figure)
    assert ax.get_title() == "−6.74 nats, HLA-2, 2015-2016, x-3"
    assert (texts(ax), ax.get_xlabel()) == (["(−1, −2)"], "$a-1$")


@pytest.mark.parametrize(
    ("alt", "seen"),
    [("", "has 0 char"), (" \n", "has 0"), ("a" * 301, "has 301"), (None, "is None")],
)
def test_a_text_that_helps_nobody_is_refused(alt, seen):
    plt.figure()
    with pytest.raises(ValueError, match=f"alternative text {seen}.*: say in 1 to 300 characters"):
        plotting.show(alt)
    with pytest.raises(ValueError, match=f"alternative text {seen}"):
        plotting.interactive(lambda: pytest.fail("drawn"), alt=alt)
    assert not plt.get_fignums()


def test_a_figure_that_does_not_fit_the_page_is_refused():
    for figsize, legend_at in (((9.6, 3), 0.5), ((9.5, 3), 1.3)):
        ax = plt.subplots(figsize=figsize)[1]
        ax.plot([1, 2], label="outside")
        ax.legend(loc="center left", bbox_to_anchor=(legend_at, 0.5))
        with pytest.raises(ValueError, match=r"inches wide; 9.5 fit the page: narrow it, or put"):
            plotting.show("A line.")
        assert not plt.get_fignums()
    with pytest.raises(ValueError, match=r"12 inches wide"):
        plotting.interactive(lambda: plt.figure(figsize=(12, 3)), alt=ALT)
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="There is no figure to show"):
        plotting.show("A line.")


# --------------------------------------------------------------------- differential expression


def test_volcano_draws_each_gene_once_and_colours_the_calls_by_direction():
    table = changes()
    ax = plotting.volcano(table)
    rest, up, down = ax.collections
    assert [len(c.get_offsets()) for c in (rest, up, down)] == [33, 4, 3]
    assert legend(ax) == ["not called (33)", "higher (4)", "lower (3)"]
    np.testing.assert_allclose(up.get_offsets()[0], [2.0, -np.log10(1 - 0.9995)])
    assert (up.get_offsets()[:, 0] > 0).all()
    assert (down.get_offsets()[:, 0] < 0).all()
    assert len({to_hex(c.get_facecolor()[0]) for c in (rest, up, down)}) == 3
    assert [line.get_xdata()[0] for line in ax.lines] == [-0.5, 0.5]


def test_volcano_names_the_largest_changes_of_each_direction_or_those_asked_for():
    table = changes()
    assert texts(plotting.volcano(table, names=4)) == ["gene 0", "gene 1", "gene 6", "gene 5"]
    assert texts(plotting.volcano(table, names=["gene 20"])) == ["gene 20"]
    assert texts(plotting.volcano(table, names=0)) == []
    with pytest.raises(ValueError, match="'Ins2', which is not a gene of the table"):
        plotting.volcano(table, names=["Ins2"])


def test_volcano_marks_calls_on_which_models_do_not_agree():
    table = changes()
    table["stable"] = np.arange(40) != 1
    _, up, _ = plotting.volcano(table).collections
    faces = [to_hex(c) for c in up.get_facecolor()]
    assert faces[1] == "#ffffff"
    assert "#ffffff" not in faces[:1] + faces[2:]
    assert len({to_hex(c) for c in up.get_edgecolor()}) == 1


def test_calibration_of_calls_draws_seeds_their_mean_and_the_diagonal():
    ax = plotting.calibration_of_calls({"SCVI": RATES, "Wilcoxon": pd.DataFrame(RATES)})
    assert legend(ax) == ["SCVI", "Wilcoxon", "claimed = measured"]
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], RATES["measured"])
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.01, 0.01], [0.05, 0.06], [0.1, 0.15]])
    x, y = ax.lines[-1].get_data()
    assert list(x) == list(y)


def test_rates_that_are_not_shares_are_refused():
    with pytest.raises(ValueError, match="methods is empty"):
        plotting.calibration_of_calls({})
    with pytest.raises(ValueError, match="'SCVI' must be pairs of numbers from 0 to 1"):
        plotting.calibration_of_calls({"SCVI": {"claimed": [0.1], "measured": [5.0]}})
