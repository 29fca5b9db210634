"""What the comparison with scvi-tools concludes from what it measured, without scvi-tools."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.autograd.function import BackwardCFunction

import vaelab
from vaelab import simulate, training

FOLDER = Path(__file__).with_name("benchmarks")
with pytest.MonkeyPatch.context() as patch:  # scripts import what lies beside them
    patch.syspath_prepend(str(FOLDER))
    import contenders
    import defaults
    import differential_expression
    import dispersion
    import larger_than_memory
    import mapping
    import rare_labels
    import report
    import sarkar
    import scanvi
    import scvi_tools
    import time_to_bound
from report import Row, Verdict  # noqa: E402

OURS, THEIRS = [-530.0, -531.0, -532.0], [-528.0, -530.0, -532.0]  # differences −2, −1, 0


@pytest.fixture(autouse=True)
def figures_of_one_test():
    yield
    plt.close("all")


def training_row(form="plain", factor=2.5, wanted=2.4):
    of = {"question": "training", "data": "simulated, 92 % zeros", "batch_size": 128, "form": form}
    ours, theirs = [factor * 100, factor * 300, factor * 240], [100.0, 200.0, 300.0]
    wanted = wanted and (wanted, report.INFINITY)
    return Row(f"training {form}", "cells/s", ours, theirs, better="more", wanted=wanted, of=of)


def growth_rows(power=1.0):
    return [
        Row(f"{n}", "s", [0.1 * n**power], [0.3 * n], of={"question": "cells", "size": n})
        for n in (1_000, 4_000, 16_000)
    ]


# Ratios


def test_a_ratio_above_one_is_in_our_favour():
    assert training_row().ratios == pytest.approx([2.5, 3.75, 2.0])
    assert Row("time", "s", [1.0, 4.0], [2.0, 2.0]).ratios == [2.0, 0.5]
    assert Row("exponent", "", [1.0], [2.0], better=None).ratios == []


def test_what_is_wanted_is_asked_of_the_median():
    assert training_row(wanted=2.5).met is True
    assert training_row(wanted=2.6).met is False
    assert training_row(wanted=None).met is None
    assert Row("b", "", [1.05], [3.0], better=None, wanted=(0.9, 1.1)).met is True
    assert Row("b", "", [1.15], [1.0], better=None, wanted=(0.9, 1.1)).met is False


def test_line_shows_medians_range_and_what_is_missed():
    text = report.line(training_row(wanted=2.6), "Nehalem")
    for part in ("600", "200", "cells/s", "×2.50 [2.00–3.75]", "at least ×2.6: not met"):
        assert part in text
    assert report.line(training_row(), "Nehalem").endswith(": met")


def test_a_goal_that_a_processor_decides_names_it():
    assert "not met on Nehalem (another" in report.line(training_row(wanted=2.6), "Nehalem")
    size = Row("parameters", "", [3.0], [2.0], better=None, wanted=(0.9, 1.1))
    assert report.line(size, "Nehalem").endswith(": not met")


def test_a_row_of_ours_alone_has_no_ratio():
    row = Row("step", "", [1.2, 1.4, 1.5], [], better=None)
    assert report.line(row, "Nehalem").split() == ["step", "1.4"]
    assert row.record()["ratios"] == []


def test_what_never_happened_is_no_ratio_in_our_favour():
    row = Row("time", "CPU s", [math.inf, math.inf, 1.0], [30.0, 30.0, 30.0], wanted=(2, math.inf))
    assert row.ratios == [0, 0, 30] and row.met is False
    text = report.line(row, "Nehalem")
    assert "never" in text and text.endswith(": not met")  # on no processor
    assert row.record()["ours"] == [None, None, 1.0]


def test_exponent_of_a_power():
    sizes = np.array([5e3, 2e4, 8e4])
    assert report.exponent(sizes, 3e-4 * sizes**1.3) == pytest.approx(1.3)


def test_contenders_take_turns():
    calls = []
    costs = scvi_tools.alternating(
        2, theirs=lambda: calls.append("A") or 2, ours=lambda: calls.append("B") or 1
    )
    assert calls == ["A", "B", "A", "B"]
    assert costs == {"theirs": [2.0, 2.0], "ours": [1.0, 1.0]}


# The verdict


def test_verdict_by_hand():
    verdict = Verdict("mouse", OURS, THEIRS)
    assert verdict.difference == -1
    assert verdict.two_standard_errors == pytest.approx(2 * 1 / math.sqrt(3))
    assert not verdict.worse


@pytest.mark.parametrize(
    ("shift_in_errors", "worse"), [(-2.01, True), (-1.99, False), (0, False), (2.01, False)]
)
def test_verdict_turns_at_two_standard_errors_on_the_bad_side(shift_in_errors, worse):
    differences = np.array([-1.0, 0, 1]) + shift_in_errors * 1 / math.sqrt(3)
    verdict = Verdict("mouse", list(np.array(THEIRS) + differences), THEIRS)
    assert verdict.worse is worse
    assert str(verdict).endswith("not met" if worse else ": met")


def test_a_bound_that_is_no_number_is_worse():
    assert Verdict("mouse", [-530.0, math.nan, -531.0], THEIRS).worse


def test_one_seed_has_no_verdict():
    verdict = Verdict("mouse", [-530.0], [-520.0])
    assert verdict.worse is None and str(verdict).endswith("-10.00 (one seed)")


# The run as a whole


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the script with a stand-in for the measurements; exit status and the JSON."""

    def run(measure, found=True):
        monkeypatch.setattr(scvi_tools, "measure", measure)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found or None)
        monkeypatch.setattr(scvi_tools, "machine", lambda: {"cpu": "a"})
        status = scvi_tools.main(["--quick", "--out", str(tmp_path / "bench")])
        path = tmp_path / "bench" / "scvi_tools.json"
        if not path.exists():
            return status, None
        return status, json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN

    return run


def measured(ours, decides=True):
    def measure(report, plan, parts):
        report.rows.append(training_row())
        report.judge(Verdict("mouse", ours, THEIRS, decides))

    return measure


def test_exit_status_is_that_of_the_bound(run, capsys):
    status, content = run(measured(OURS))
    assert status == 0 and content["held_out_bounds"][0]["worse"] is False
    lower = [bound - 10 for bound in OURS]
    status, content = run(measured(lower))
    assert status == 1 and content["held_out_bounds"][0]["worse"] is True
    assert "not met" in capsys.readouterr().out
    status, content = run(measured(lower, decides=False))
    assert status == 0 and content["held_out_bounds"][0]["worse"] is True


def test_ctrl_c_keeps_what_was_measured(run, tmp_path, capsys):
    def measure(report, plan, parts):
        report.rows.append(training_row())
        raise KeyboardInterrupt

    status, content = run(measure)
    assert status == 130 and "Ctrl-C" in capsys.readouterr().out
    assert content["held_out_bounds"] == [] and content["machine"] == {"cpu": "a"}
    (row,) = content["rows"]
    assert row["ratios"] == pytest.approx([2.5, 3.75, 2.0])
    assert row["wanted"] == [2.4, None] and row["met"] is True
    assert row["of"]["form"] == "plain"
    assert (tmp_path / "bench" / "scvi_tools.png").read_bytes().startswith(b"\x89PNG")


def test_sigterm_keeps_what_was_measured_and_is_not_called_ctrl_c(run, capsys):
    def measure(report, plan, parts):
        report.rows.append(training_row())
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("SIGTERM did not end the measurement")

    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))  # pytest goes on
    try:
        status, content = run(measure)
        assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status == 143 and len(content["rows"]) == 1 and not received
    said = capsys.readouterr().out
    assert "SIGTERM" in said and "Ctrl-C" not in said


def test_only_and_seeds_choose_what_is_measured(monkeypatch, tmp_path):
    calls = []
    for name in scvi_tools.PARTS:
        part = lambda report, plan, name=name: calls.append((name, plan.seeds))  # noqa: E731
        monkeypatch.setitem(scvi_tools.PARTS, name, part)
    monkeypatch.setattr(scvi_tools, "measure_parameters", lambda report, plan: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(scvi_tools, "machine", dict)
    assert scvi_tools.main(["--only", "step", "time", "--seeds", "7", "--out", str(tmp_path)]) == 0
    assert calls == [("step", 7), ("time", 7)]
    calls.clear()
    scvi_tools.main(["--out", str(tmp_path)])
    assert calls[0] == ("time", 5) and len(calls) == len(scvi_tools.PARTS)


def test_without_scvi_tools_it_says_how_to_get_it(run, capsys):
    status, content = run(measured(OURS), found=False)
    assert status == 2 and content is None
    assert "make bench" in capsys.readouterr().err


# The figure


def test_figure_shows_ratios_what_is_wanted_and_growth():
    rows = [training_row("plain"), training_row("default", 3, 3.0), *growth_rows()]
    ratios, cells, genes = report.draw(rows).axes
    drawn = {line.get_ydata()[0] for line in ratios.get_lines() if len(line.get_ydata())}
    assert {2.5, 3.0} <= drawn
    wanted = [c.get_segments()[0] for c in ratios.collections if c.get_linewidth()[0] == 2]
    assert {segment[0, 1] for segment in wanted} == {2.4, 3.0}
    assert "scvi-tools" in ratios.get_ylabel() and "second" in cells.get_ylabel()
    lines = {line.get_label(): line for line in cells.get_lines()}
    (ours,) = [line for label, line in lines.items() if label.startswith("vaelab")]
    assert "1.00" in ours.get_label()
    np.testing.assert_allclose(ours.get_ydata(), [100, 400, 1600])
    np.testing.assert_allclose(lines["in proportion"].get_ydata(), [100, 1600])
    assert cells.get_xscale() == cells.get_yscale() == "log"
    assert [text.get_text() for text in genes.texts] == ["not measured"]


def test_figure_of_nothing_is_drawn():
    report.draw([]).canvas.draw()


# The contenders


@pytest.fixture(scope="module")
def adata():
    return simulate.dataset(60, 30, library=300)


def custom_functions(tensor) -> set[str]:
    """The hand-written gradients in a tensor's history."""
    todo, seen = [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return {type(node).__name__ for node in seen if isinstance(node, BackwardCFunction)}


class HandWritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_plain_form_is_the_same_likelihood_by_autograd_alone(adata):
    cells = vaelab.Cells.from_anndata(adata).to(dtype=torch.float64)
    model = vaelab.VAE(30, likelihood="zinb").double()
    z = torch.randn(60, 10, dtype=torch.float64)
    model.eval()
    default = model.decode(z, cells).log_prob(cells.x)
    contenders.make_plain(model)
    plain = model.decode(z, cells).log_prob(cells.x)
    torch.testing.assert_close(plain, default, rtol=1e-10, atol=1e-10)
    assert custom_functions(plain.sum()) == set()
    assert custom_functions(HandWritten.apply(plain).sum()) == {"HandWrittenBackward"}


def test_step_without_a_likelihood_keeps_all_of_the_network(adata):
    cells = vaelab.Cells.from_anndata(adata).to("cpu", torch.float32)
    model = vaelab.VAE(30, likelihood="zinb")
    assert custom_functions(model.elbo(cells).loss(1.0)) == {"_LogProbBackward", "_BoundedBackward"}
    contenders.make_trivial(model)
    loss = model.elbo(cells).loss(1.0)
    assert custom_functions(loss) == set()
    loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Batch normalisation takes off the means that the biases in front of it add.
    assert without <= {"likelihood.log_inverse_dispersion", "encoder.0.bias", "decoder.0.bias"}
    assert model.likelihood.output.weight.grad.any(1).all()  # both heads


@pytest.mark.parametrize("form", ["plain", "default", "none"])
def test_epochs_after_the_first_are_timed(adata, form):
    epoch = training._Run.epoch
    model, cells, seconds = contenders.train_ours(adata, epochs=4, batch_size=20, form=form)
    assert len(seconds) == 3 and (seconds > 0).all()
    assert training._Run.epoch is epoch
    assert contenders.embed_ours(model, cells).shape == (60, 10)
    bound = contenders.score(model, cells, seed=3)
    assert bound == pytest.approx(model.elbo_per_cell(cells, seed=3).mean())


def test_ctrl_c_in_an_epoch_reaches_the_benchmark(adata, monkeypatch):
    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contenders.train_ours(adata, epochs=2)


def test_simulated_counts_have_the_zeros_they_are_named_for(monkeypatch):
    counts = scvi_tools.simulated(1_000, 500)
    assert 1 - counts.nnz / np.prod(counts.shape) == pytest.approx(0.92, abs=0.01)
    monkeypatch.setitem(scvi_tools.LIBRARY, 92, 500.0)
    with pytest.raises(ValueError, match="should be 92 %"):
        scvi_tools.simulated(1_000, 500)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks by process need Linux")
def test_peak_memory_is_of_the_process_alone():
    here = np.ones(2**26)  # 512 MiB, which a child must not count in
    code = (
        "import contenders, numpy as np; before = contenders.peak_memory();"
        "there = np.ones(2**24); print(contenders.peak_memory() - before)"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=FOLDER)
    assert len(here) and float(output) == pytest.approx(128, rel=0.1)


def test_systemexit_of_lightning_is_ctrl_c_only_after_ctrl_c():
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt), contenders.ctrl_c_of_lightning():
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                sys.exit(1)  # as in lightning.pytorch.trainer.call
    finally:
        signal.signal(signal.SIGINT, handler)
    with pytest.raises(BaseException) as caught, contenders.ctrl_c_of_lightning():
        raise SystemExit  # as SIGTERMException, which is one
    assert caught.type is SystemExit


# The time to a bound


def curve(bounds, seconds=None):
    made = time_to_bound.Curve()
    made.bounds, made.seconds = bounds, seconds or [*range(1, len(bounds) + 1)]
    return made


@pytest.fixture
def found():
    """Two seeds: ours is 4 and 2 times sooner, keeps its best, and lacks 1 nat to the tuned."""
    return {
        time_to_bound.OURS: [curve([-9, -4, -6, -4]), curve([-9, -7, -5, -5])],
        time_to_bound.DEFAULTS: [
            curve([-9, -5, -7], [4, 8, 12]), curve([-9, -7, -8], [2, 4, 6])
        ],
        time_to_bound.TUNED: [curve([-8, -3], [4, 8]), curve([-8, -4], [3, 6])],
    }  # fmt: skip


def test_curve_reaches_a_bound_at_its_first_epoch_there():
    made = curve([-9, -5, math.nan, -7, -4], [1, 2, 3, 4, 5])
    assert made.best == -4
    assert [made.reach(bound) for bound in (-6, -5, -4.5, -3)] == [2, 2, 5, math.inf]


def test_time_to_bound_is_compared_seed_by_seed(found):
    defaults, tuned = time_to_bound.rows_of("mouse 1", found)
    assert defaults.theirs == [8, 4] and defaults.ours == [2, 2] and defaults.ratios == [4, 2]
    assert defaults.wanted == (5, math.inf) and defaults.met is False
    assert tuned.of["bounds"] == [-4, -5] and tuned.theirs == [8, 6] and tuned.ours == [2, 3]
    assert all(row.wanted is None for row in time_to_bound.rows_of("mouse 1", found, judge=False))


def test_the_model_that_is_kept_is_judged(found):
    found[time_to_bound.OURS][0].bounds[-1] = -5.5  # not its best epoch
    defaults, tuned = time_to_bound.verdicts_of("mouse 1", found)
    assert defaults.ours == tuned.ours == [-5.5, -5]
    assert defaults.theirs == [-5, -7] and tuned.theirs == [-3, -4]
    assert defaults.decides and not tuned.decides


def test_figure_of_curves_has_a_line_per_seed_and_a_message(found):
    figure = time_to_bound.draw({"pbmc_sorted": found, "mouse 1": found})
    left, right = figure.axes
    lines = [line for line in right.get_lines() if len(line.get_xdata()) > 1]
    assert len(lines) == 6 and len({line.get_color() for line in lines}) == 3
    np.testing.assert_array_equal(lines[0].get_xdata(), [4, 8, 12])
    np.testing.assert_array_equal(lines[0].get_ydata(), [-9, -5, -7])
    assert left.get_xscale() == "log" and left.get_title() == "pbmc_sorted"
    low, high = right.get_ylim()
    assert low < -7 and high > -3 and right.get_xlim()[0] < 1  # the ends and the bests are in it
    assert figure.get_suptitle().endswith("×3 sooner on pbmc_sorted and ×3 sooner on mouse 1")
    for late in found[time_to_bound.OURS]:
        late.bounds = [-10] * 4
    figure = time_to_bound.draw({"mouse 1": found})
    assert "does not reach" in figure.get_suptitle() and "mouse 1" in figure.get_suptitle()


def test_curve_of_ours_is_that_of_fit_at_its_defaults(adata):
    made, rows, held_out = time_to_bound.curve_of_ours(adata, seed=1, epochs=8)
    cells = vaelab.Cells.from_anndata(adata)
    model = vaelab.VAE(30, likelihood="zinb", seed=1, **contenders.SHAPE)
    history = vaelab.fit(model, cells, epochs=8, seed=1, progress=False)
    np.testing.assert_allclose(made.bounds[:-1], history.frame["held_out_bound"])
    assert made.bounds[-1] == pytest.approx(contenders.score(model, held_out, seed=1))
    assert len(rows) + len(held_out) == 60 and len(np.unique(rows)) == len(rows)
    left_out = np.setdiff1d(np.arange(60), rows)
    np.testing.assert_array_equal(held_out.x.toarray(), adata.X[left_out].toarray())
    assert np.all(np.diff(made.seconds) > 0)


def test_time_spent_on_scoring_is_not_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_to_bound, "clock", lambda device: now[0])

    def score(model, held_out, seed):
        now[0] += 100
        return -1.0

    monkeypatch.setattr(time_to_bound, "score", score)
    made = time_to_bound.Curve()
    made.start()
    for _ in range(3):
        now[0] += 2
        made.mark(None, None, 0)
    assert made.seconds == [2, 4, 6]


# The other contender, where it is installed


@pytest.fixture
def theirs(adata):
    pytest.importorskip("scvi")
    return contenders.make_theirs(adata.copy())


def test_both_packages_are_scored_by_the_same_lines(adata, theirs):
    from vaelab.interop import from_scvi

    cells = vaelab.Cells.from_anndata(adata)
    expected = from_scvi(theirs).elbo_per_cell(cells, seed=2).mean()
    assert contenders.score(theirs, cells, seed=2) == pytest.approx(expected, rel=1e-6)


def test_scoring_does_not_change_their_training(adata):
    pytest.importorskip("scvi")
    cells = vaelab.Cells.from_anndata(adata)

    def weights(scored: bool):
        model = contenders.make_theirs(adata.copy())
        after_epoch = (lambda: contenders.score(model, cells, seed=0)) if scored else (lambda: None)
        contenders.fit_theirs(model, after_epoch, max_epochs=2)
        return [*model.module.parameters()]

    for with_scores, without in zip(weights(True), weights(False), strict=True):
        assert torch.equal(with_scores, without)


def test_curve_of_theirs_has_a_bound_per_epoch(adata, theirs):
    cells = vaelab.Cells.from_anndata(adata)
    made = time_to_bound.curve_of_theirs(adata.copy(), cells, 0, 3, {"lr": 1e-3})
    assert len(made.bounds) == 3 and np.all(np.diff(made.seconds) > 0) and made.seconds[0] > 0


@pytest.mark.parametrize(
    ("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signals_in_their_training_are_told_apart(theirs, sent, raised):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of `&` ignores it
    try:
        with pytest.raises(BaseException) as caught:
            contenders.fit_theirs(theirs, lambda: os.kill(os.getpid(), sent), max_epochs=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert issubclass(caught.type, raised)


# Types of cells without a label


def half_labelled(seed):
    adata = simulate.dataset(160, 80, n_types=10, library=400, seed=seed)
    truth = adata.obs["cell_type"].to_numpy(dtype=str)
    adata.obs["known"] = np.where(np.arange(160) % 2, truth, "unknown")
    return adata


@pytest.mark.parametrize(
    ("right", "seconds", "says"),
    [(0.0, 1e6, "times as fast"), (1.0, 1e6, "WORSE"), (0.0, 1e-6, "LESS than 2")],
    ids=["as good", "worse", "slow"],
)
def test_types_are_compared(monkeypatch, capsys, right, seconds, says):
    def theirs(adata, batch, epochs, seed):
        truth = adata.obs["cell_type"].to_numpy(dtype=str)
        return (truth if right else np.full(len(truth), "none")), seconds

    monkeypatch.setitem(scanvi.DATA, "pbmc", (half_labelled, "pbmc_scanvi"))
    monkeypatch.setattr(scanvi, "theirs", theirs)
    monkeypatch.setattr(scanvi, "has_scvi_tools", lambda: True)  # `theirs` stands in for it
    status = scanvi.main(["--data", "pbmc", "--seeds", "2", "--quick"])
    table, notes = capsys.readouterr()
    assert says in table and status == 0  # of a few epochs nothing is asked
    assert (says == "times as fast") is not ("WORSE" in table or "LESS" in table)
    assert "80 cells whose label was hidden, 2 seeds" in table
    (row,) = (line for line in table.splitlines() if line.startswith("scvi-tools"))
    assert row.count(f"{right:.3f} ± 0.000") == 3
    assert notes.count("vaelab") == notes.count("logistic regression") == 2
    assert sum(line.startswith("accuracy: vaelab − ") for line in table.splitlines()) == 1


@pytest.mark.parametrize("name", ["logistic regression", "nearest neighbours", "nearest mean"])
def test_baselines_learn_from_the_labelled_cells_alone(name):
    adata = simulate.dataset(200, 80, n_types=3, library=3000, seed=0)
    truth = adata.obs["cell_type"].to_numpy(dtype=str)
    hidden = np.arange(200) % 2 == 0
    adata.obs["known"] = np.where(hidden, "unknown", truth)
    found = scanvi.BASELINES[name](vaelab.select_genes(adata, n_genes=80))
    assert (found == truth)[hidden].mean() > 0.8
    adata.obs["known"] = np.where(
        hidden, "unknown", np.roll(np.unique(truth), 1)[np.searchsorted(np.unique(truth), truth)]
    )  # each label is that of another type
    found = scanvi.BASELINES[name](vaelab.select_genes(adata, n_genes=80))
    assert (found == truth)[hidden].mean() < 0.2


def test_without_scvi_tools_types_are_not_compared(monkeypatch, capsys):
    monkeypatch.setattr(scanvi, "has_scvi_tools", lambda: False)
    assert scanvi.main(["--data", "pbmc"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and "[parity]" in error and "--no-scvi-tools" in error


# A query mapped to a reference


def two_experiments():
    adata = simulate.dataset(240, 80, n_types=3, library=400, n_batches=2, seed=0)
    return [adata[adata.obs["batch"] == name].copy() for name in adata.obs["batch"].unique()]


def test_a_query_is_mapped_both_ways(monkeypatch, capsys):
    monkeypatch.setitem(mapping.DATA, "mice", two_experiments)
    assert mapping.main(["--data", "mice", "--seeds", "2", "--quick"]) == 0
    table, notes = capsys.readouterr()
    assert table.count(" mapped to ") == 2 and notes.count("seed 1") == 2
    for way in ("not trained", "mapped", "from scratch"):
        assert sum(line.startswith(way) for line in table.splitlines()) == 2
    assert "is the same, to the bit" in table


def test_a_reference_that_moves_is_reported(monkeypatch, capsys):
    monkeypatch.setitem(mapping.DATA, "mice", two_experiments)
    compare = mapping.compare
    monkeypatch.setattr(mapping, "compare", lambda *given: (compare(*given)[0], False))
    assert mapping.main(["--data", "mice", "--seeds", "1", "--quick"]) == 1
    assert "HAS MOVED" in capsys.readouterr().out


def test_mixing_is_1_by_chance_and_0_apart():
    rng = np.random.default_rng(0)
    z, batch, types = rng.normal(size=(600, 3)), rng.integers(0, 2, 600), np.arange(600) % 2
    assert mapping.mixing(z, batch, types) == pytest.approx(1, abs=0.05)
    assert mapping.mixing(z + 20 * batch[:, None], batch, types) == 0


# Block sizes

TYPES = np.repeat([f"type {i}" for i in range(8)], 4096)  # sorted


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([5], 0), ([0, 9, 0], 0), ([3, 3], 1), ([4, 2, 2], 1.5), ([2] * 16, 4), ([1, 3], 0.811278)],
)
def test_entropy_of_known_compositions(counts, bits):
    assert larger_than_memory.entropy(counts) == pytest.approx(bits, abs=1e-6)


def test_in_order_a_minibatch_has_one_type():
    rows = larger_than_memory.one_epoch(
        vaelab.Cells.from_array(np.ones((1000, 1)), library=1 + np.arange(1000)), None
    )
    assert np.concatenate([part.library - 1 for part in rows]).tolist() == list(range(1000))
    found = larger_than_memory.randomness(TYPES, larger_than_memory.IN_ORDER)
    assert (found["entropy"], found["entropy_sd"]) == (0, 0)
    assert found["variance"] == pytest.approx(128)  # as one cell
    assert found["predicted_variance"] is None


def test_a_random_minibatch_has_almost_the_entropy_of_the_file():
    """The bias of an entropy that is estimated from n cells is (types − 1) / (2 n) nats."""
    found = larger_than_memory.randomness(TYPES, 1)
    assert found["entropy"] == pytest.approx(3 - 7 / 256 / math.log(2), abs=0.002)
    assert found["variance"] == pytest.approx(1, abs=0.05)
    assert found["predicted_variance"] == 1


@pytest.mark.parametrize("block_size", [4, 16, 64])
def test_blocks_lower_the_entropy_as_their_variance_says(block_size):
    found = larger_than_memory.randomness(TYPES, block_size)
    assert found["predicted_variance"] == pytest.approx(1 + 127 * (block_size - 1) / 4095)
    assert found["variance"] == pytest.approx(found["predicted_variance"], rel=0.1)
    lost = found["predicted_variance"] * 7 / 256 / math.log(2)
    assert found["entropy"] == pytest.approx(3 - lost, abs=0.12 * lost)


def test_what_is_predicted_depends_on_what_a_block_holds():
    alternating = np.tile(["a", "b"], 2048)  # no block has more of one type than another block
    assert larger_than_memory.predicted(alternating, 16) == pytest.approx(1 - 127 / 4095, rel=1e-3)
    alone = np.repeat(["a", "b"], 2048)
    assert larger_than_memory.predicted(alone, 16) == pytest.approx(1 + 127 * 15 / 4095)
    assert larger_than_memory.predicted(alone, 1) == 1


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_block_sizes_are_compared(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(larger_than_memory, "BLOCK_SIZES", (1, 16))
    monkeypatch.setattr(training, "MIXED", training.MIXED)  # is set back afterwards
    paths = [tmp_path / "cells.h5ad", tmp_path / "cells.zarr"]
    monkeypatch.setattr(larger_than_memory, "N_GENES", 40)
    for path in paths:
        larger_than_memory.write(path, 700)
    threads = torch.get_num_threads()
    larger_than_memory.compare_block_sizes(paths, mixed=256, rounds=2, out=tmp_path / "out")
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["in", "1", "16"]
    assert "256 cells mixed" in lines[0] and "CPU time" in lines[1]
    text = (tmp_path / "out" / "larger_than_memory.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    measured = {(row["place"], row["what"]) for row in content["speeds"]}
    assert {("memory", "training"), ("h5ad", "reading"), ("zarr", "training")} <= measured
    assert all(len(row["wall"]) == len(row["cpu"]) == 2 for row in content["speeds"])
    speed, bits = larger_than_memory.draw(content).axes
    lines = {line.get_label(): line.get_ydata() for line in speed.get_lines()}
    (row,) = (
        r for r in content["speeds"]
        if (r["place"], r["block_size"], r["what"]) == ("zarr", 16, "training")
    )  # fmt: skip
    assert lines["zarr, training"][1] == max(row["cpu"])
    assert "bits" in bits.get_ylabel()


def test_reading_counts_all_cells_and_stops_in_time(monkeypatch):
    cells = vaelab.Cells.from_array(np.ones((9000, 3)))
    asked = []
    monkeypatch.setattr(larger_than_memory, "forget", asked.append)
    larger_than_memory.reading(cells, 16, cold="file")
    assert len(asked) == 3  # 4,096 cells at a time
    monkeypatch.setattr(larger_than_memory, "SECONDS", 0)
    asked.clear()
    larger_than_memory.reading(cells, 16, cold="file")
    assert len(asked) == 1


# The defaults of fit


@pytest.fixture
def few_cells(monkeypatch):
    monkeypatch.setitem(
        defaults.DATA, "mouse 1", lambda: simulate.dataset(60, 50, n_types=3, library=300, seed=0)
    )


def test_a_setting_that_beats_the_defaults_is_named(monkeypatch, capsys, few_cells):
    hopeless = {"learning_rate": 1e-9, "likelihood_learning_rate": 1e-9, "epochs": 1}
    monkeypatch.setattr(defaults, "SETTINGS", {"defaults": {"epochs": 30}, "none": hopeless})
    assert defaults.main(["--data", "mouse 1", "--seeds", "2"]) == 0
    assert "none: -" in capsys.readouterr().out
    monkeypatch.setattr(defaults, "SETTINGS", {"defaults": hopeless, "better": {"epochs": 30}})
    assert defaults.main(["--data", "mouse 1", "--seeds", "2"]) == 1
    assert "beaten by better" in capsys.readouterr().out


def test_a_training_that_diverges_is_counted(monkeypatch, capsys, few_cells):
    words = ["--data", "mouse 1", "--seeds", "2", "--steps", "6"]
    monkeypatch.setattr(defaults, "MODELS", {"VAE": ("VAE", {"likelihood": "nb"}, "counts")})
    assert defaults.main(words) == 0
    assert "mouse 1, VAE: 0 of 2 diverged" in capsys.readouterr().out
    monkeypatch.setattr(
        vaelab,
        "fit",
        lambda model, cells, **options: training.fit(
            model, cells, **options | {"learning_rate": 1e30, "epsilon": 1e-8}
        ),
    )
    assert defaults.main(words) == 1
    assert "mouse 1, VAE: 2 of 2 diverged" in capsys.readouterr().out


# Types with few labels


def few_labels(monkeypatch):
    monkeypatch.setattr(rare_labels, "MANY", 8)
    adata = simulate.dataset(240, 80, n_types=10, library=400, seed=0)
    monkeypatch.setitem(
        rare_labels.DATA,
        "simulated",
        (lambda seed: rare_labels.with_few_labels(adata, seed), "pbmc_scanvi"),
    )


def test_labels_are_few_in_three_types(monkeypatch):
    few_labels(monkeypatch)
    drawn = [rare_labels.DATA["simulated"][0](seed).obs["known"].copy() for seed in (0, 0, 1)]
    for known in drawn:
        assert sorted(known[known != "unknown"].value_counts()) == [3] * 3 + [8] * 7
    assert drawn[0].equals(drawn[1]) and not drawn[0].equals(drawn[2])


def test_rare_labels_are_compared(monkeypatch, capsys):
    few_labels(monkeypatch)
    assert rare_labels.main(["--data", "simulated", "--seeds", "2", "--quick"]) == 0
    table, notes = capsys.readouterr()
    assert "simulated: 175 cells whose label was hidden, 2 seeds" in table
    for method in rare_labels.METHODS:
        assert sum(line.startswith(method + "  ") for line in table.splitlines()) == 1
        assert notes.count(f"{method}: accuracy") == 2


@pytest.mark.parametrize("helps", [False, True])
def test_balancing_that_does_not_help_is_reported(monkeypatch, capsys, helps):
    def find(adata, recipe, epochs, seed, wrong=False):
        truth = adata.obs["cell_type"].to_numpy(dtype=str)
        return np.full(len(truth), "none") if wrong else truth

    few_labels(monkeypatch)
    options = ({"wrong": helps}, {"wrong": not helps})
    for method, of_method in zip(("SCANVI", "SCANVI, balance_labels"), options, strict=True):
        monkeypatch.setitem(rare_labels.METHODS, method, (find, of_method))
    assert rare_labels.main(["--data", "simulated", "--seeds", "2"]) == int(not helps)
    table, sign = capsys.readouterr().out, "+" if helps else "-"
    for score in rare_labels.SCORES:
        assert f"balance_labels: {score} {sign}1.000 ± 0.000" in table


# Whether θ is learned


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_the_best_dispersion_is_found(likelihood):
    """From counts with a known θ, at the true means; where θ is at its best nothing is gained."""
    rng = np.random.default_rng(0)
    mean, θ, π = np.full((20_000, 3), 3.0), np.array([0.3, 2.0, 10.0]), 0.2
    x = rng.poisson(rng.gamma(θ, mean / θ))
    p = vaelab.distributions.NegativeBinomial(
        torch.tensor(mean), torch.ones(20_000, 3).double(), validate_args=False
    )
    if likelihood == "zinb":
        x = np.where(rng.random(x.shape) < π, 0, x)
        logits = torch.full((20_000, 3), math.log(π / (1 - π))).double()
        p = vaelab.distributions.ZeroInflated(p, logits, validate_args=False)
    x = torch.tensor(x).double()
    found = dispersion.best_dispersion(p, x)
    assert found.exp().numpy() == pytest.approx(θ, rel=0.15)
    again = dispersion.best_dispersion(dispersion.with_dispersion(p, found), x)
    gains = [
        (dispersion.with_dispersion(p, log_θ).log_prob(x) - p.log_prob(x)).sum(-1).mean()
        for log_θ in (found, again)
    ]
    assert gains[0] > 0.1 and abs(gains[1] - gains[0]) < 1e-3


@pytest.mark.parametrize("gain", [0.4, 0.6])
def test_a_dispersion_that_is_not_learned_is_reported(monkeypatch, tmp_path, capsys, gain):
    found = dict.fromkeys(dispersion.COLUMNS, 0.0) | {"gain_training": gain}
    monkeypatch.setattr(dispersion, "find", lambda cells, likelihood, seed: found)
    adata = simulate.dataset(60, 30, seed=0)
    monkeypatch.setattr(dispersion, "DATA", {"small": (lambda: adata, None)})
    threads = torch.get_num_threads()
    status = dispersion.main(["--data", "small", "--seeds", "2", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    assert status == (gain > 0.5)
    assert ("small, nb, now" in capsys.readouterr().out.splitlines()[-1]) == (gain > 0.5)
    assert json.loads((tmp_path / "dispersion.json").read_text())["small, zinb, now"][0] == found


# ------------------------------------------------------------------------------ Sarkar's tables


ROW = {"bug": -5.5, "leak": -0.7, "honest": -1.1}
HIDDEN = {"plug-in": -24_600.0, "mean": -24_500.0, "epochs": 30.0}


@pytest.fixture
def sarkars_numbers(monkeypatch):
    """The benchmark with trainings that take no time; what they give can be changed."""
    numbers = {
        (part, kind): dict(ROW if part == "denoising" else HIDDEN)
        for part in ("denoising", "imputation")
        for kind in sarkar.MODELS
    }
    numbers["denoising", "poisson"] = {"bug": -5.0, "leak": -5.0, "honest": -4.5}

    class Pool:
        def __init__(self, *arguments, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, function, jobs):
            return [numbers[part, kind] for part, kind, *_ in jobs]

    monkeypatch.setattr(sarkar, "ProcessPoolExecutor", Pool)
    constants = {"denoising": {"constant": -8.2}, "imputation": {"constant": -25_321.0}}
    monkeypatch.setattr(sarkar, "references", lambda: constants)
    return numbers


@pytest.mark.parametrize(
    ("part", "kind", "name", "value", "says"),
    [
        ("denoising", "nb", "bug", -9.0, ""),
        ("denoising", "nb", "honest", -1.3, "With 3 dimensions the honest ranking is not"),
        ("denoising", "poisson", "honest", -1.9, "With 3 dimensions the honest ranking is not"),
        ("imputation", "poisson", "plug-in", -26_000.0, ""),
        ("imputation", "nb", "plug-in", -25_400.0, "NBVAE-3 does not beat the constant"),
    ],
)
def test_sarkars_tables_say_what_does_not_hold(
    sarkars_numbers, tmp_path, capsys, part, kind, name, value, says
):
    sarkars_numbers[part, kind][name] = value
    out = tmp_path / "numbers.json"
    status = sarkar.main(["--seeds", "2", "--dimensions", "3", "--out", str(out)])
    assert status == bool(says)
    printed = capsys.readouterr().out
    assert says in printed.splitlines()[-1]
    assert "| PVAE-3 | -5.000 ± 0.000 | -5.000 ± 0.000 |" in printed
    assert "| constant | -25,321 |" in printed
    assert json.loads(out.read_text())["denoising"]["NBVAE-3"]["leak"] == [-0.7, -0.7]


def test_sarkars_references_are_the_known_numbers():
    found = sarkar.references()
    of = {name: round(value, 3) for name, value in found["denoising"].items()}
    assert of["true rate"] == -0.757 and of["true posterior mean"] == -1.018
    assert of["constant"] == -8.241
    of = {name: round(value) for name, value in found["imputation"].items()}
    assert (of["true mean"], of["constant"]) == (-23_828, -25_321)
    assert of["weighted NMF, rank 1"] == -24_414
    assert of["weighted NMF, rank 10"] < of["weighted NMF, rank 3"] < of["constant"]


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
def test_what_the_source_returned_is_the_rate_without_its_mean(kind):
    """E[u | x] = E[λ | x] / μ; with zero inflation, 1 − π in place of P(not dropped | x)."""
    cells = vaelab.Cells.from_array(simulate.sarkar().X[:40])
    model = sarkar.model_of(kind, 2, seed=0)
    vaelab.fit(model, cells, epochs=3, validation_fraction=0, progress=False)
    bug, right = sarkar.effect(model, cells), model.denoise(cells)
    x = cells.to().x.numpy()
    π = torch.sigmoid(model.likelihood.dropout_logits).item() if kind == "zinb" else 0.0
    mean = model.reconstruct(cells) / (1 - π)
    if kind == "poisson":
        np.testing.assert_allclose(bug, mean, rtol=1e-5)
        return
    θ = model.likelihood.log_inverse_dispersion.exp().item()
    p_zero = (θ / (θ + mean)) ** θ
    kept = np.where(x > 0, 1, (1 - π) * p_zero / (π + (1 - π) * p_zero))
    np.testing.assert_allclose(bug, right / mean / kept * (1 - π), rtol=1e-4)


def test_a_row_of_sarkars_tables_scores_the_right_counts(monkeypatch):
    """The validation counts are scored; "leak" has seen them, "honest" has not."""
    asked = []
    monkeypatch.setattr(vaelab.VAE, "denoise", lambda model, cells: cells.to().x.numpy())
    monkeypatch.setattr(sarkar, "effect", lambda model, cells: cells.to().x.numpy() + 0.5)
    monkeypatch.setattr(sarkar, "score", lambda rate, x: asked.append((rate, x)) or len(asked))
    row = sarkar.denoising("nb", 2, seed=0, epochs=1, draws=1)
    sim = simulate.sarkar()
    first, second = sim.X.toarray(), sim.layers["validation"]
    rates = {"bug": second + 0.5, "leak": second, "honest": first}
    for name, call in row.items():
        rate, x = asked[call - 1]
        np.testing.assert_array_equal(rate, rates[name])
        np.testing.assert_array_equal(x, second)


# Differential expression


def test_power_is_that_of_the_longest_list_with_few_false_genes():
    changed = np.array([True] * 4 + [False] * 6)
    assert differential_expression.power_at(np.arange(10)[::-1], changed) == 1
    rank = np.array([9, 8, 2, 1, 7, 3, 0, 0, 0, 0])  # changed, changed, false, …
    assert differential_expression.power_at(rank, changed, rate=0.3) == 0.5
    assert differential_expression.power_at(rank, changed, rate=0.34) == 1  # 2 of 6
    assert differential_expression.power_at(-rank, changed) == 0


def test_records_count_calls_and_false_ones_at_each_level():
    changed = np.array([True, True, False, False])
    rate = np.array([0.001, 0.03, 0.04, 0.2])
    rows = differential_expression.records({"a": (rate, -rate)}, changed, seed=3)
    assert [(row["claimed"], row["calls"], row["false"]) for row in rows] == [
        (0.01, 1, 0), (0.05, 3, 1), (0.1, 3, 1),
    ]  # fmt: skip
    assert rows[1]["measured"] == pytest.approx(1 / 3)
    assert rows[0]["found"] == 0.5
    assert rows[0]["power"] == 1


def test_thinning_changes_the_genes_it_says_by_the_factor_it_says():
    adata = simulate.two_groups(400, 100, share_changed=0, library=20_000, inverse_dispersion=1e6)
    adata.layers["counts"] = adata.X.copy()
    a, b = np.arange(0, 400, 2), np.arange(1, 400, 2)
    thinned, lfc = differential_expression.thinned(adata, a, b, seed=0)
    before, after = adata.X.toarray(), thinned.X.toarray()
    assert ((before != after).any(0) == (lfc != 0)).all()
    assert (lfc != 0).sum() == 10
    assert {*lfc[lfc > 0]} <= {0.5, 1, 2}
    for gene in np.flatnonzero(lfc):
        if before[:, gene].sum() > 4000:
            kept = after[:, gene].reshape(-1, 2).sum(0) / before[:, gene].reshape(-1, 2).sum(0)
            assert np.log2(kept[0] / kept[1]) == pytest.approx(lfc[gene], abs=0.15)
