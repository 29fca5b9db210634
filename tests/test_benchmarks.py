"""What the comparison with scvi-tools concludes from what it measured, without scvi-tools."""

import importlib.util
import json
import math
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
    import mapping
    import rare_labels
    import report
    import scanvi
    import scvi_tools
from report import Row, Verdict  # noqa: E402

OURS, THEIRS = [-530.0, -531.0, -532.0], [-528.0, -530.0, -532.0]  # variances 1 and 4


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
    text = report.line(training_row(wanted=2.6))
    for part in ("600", "200", "cells/s", "×2.50 [2.00–3.75]", "at least ×2.6: MISSED"):
        assert part in text
    assert "MISSED" not in report.line(training_row())


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
    verdict = Verdict(OURS, THEIRS)
    assert verdict.difference == -1
    assert verdict.sd == pytest.approx(math.sqrt(1 + 4))
    assert not verdict.worse


@pytest.mark.parametrize(
    ("shift_in_sd", "worse"), [(-2.01, True), (-1.99, False), (0, False), (2.01, False)]
)
def test_verdict_turns_at_two_sd_on_the_bad_side(shift_in_sd, worse):
    ours = np.array(THEIRS) + shift_in_sd * math.sqrt(4 + 4)
    assert Verdict(list(ours), THEIRS).worse is worse


def test_a_bound_that_is_no_number_is_worse():
    assert Verdict([-530.0, math.nan, -531.0], THEIRS).worse


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


def measured(ours):
    def measure(report, plan):
        report.rows.append(training_row())
        report.judge(ours, THEIRS)

    return measure


def test_exit_status_is_that_of_the_bound(run, capsys):
    status, content = run(measured(OURS))
    assert status == 0 and content["held_out_bound"]["worse"] is False
    status, content = run(measured([bound - 10 for bound in OURS]))
    assert status == 1 and content["held_out_bound"]["worse"] is True
    assert "WORSE" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(run, tmp_path):
    def measure(report, plan):
        report.rows.append(training_row())
        raise KeyboardInterrupt

    status, content = run(measure)
    assert status == 130
    assert content["held_out_bound"] is None and content["machine"] == {"cpu": "a"}
    (row,) = content["rows"]
    assert row["ratios"] == pytest.approx([2.5, 3.75, 2.0])
    assert row["wanted"] == [2.4, None] and row["met"] is True
    assert row["of"]["form"] == "plain"
    assert (tmp_path / "bench" / "scvi_tools.png").read_bytes().startswith(b"\x89PNG")


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


@pytest.mark.parametrize("plain", [True, False])
def test_epochs_after_the_first_are_timed(adata, plain):
    epoch = training._Run.epoch
    model, cells, seconds = contenders.train_ours(adata, epochs=4, batch_size=20, plain=plain)
    assert len(seconds) == 3 and (seconds > 0).all()
    assert training._Run.epoch is epoch
    assert contenders.embed_ours(model, cells).shape == (60, 10)
    bound = contenders.bound_ours(model, adata, draws=3)
    assert bound == pytest.approx(np.mean([model.elbo_per_cell(cells, seed=s) for s in range(3)]))


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

    monkeypatch.setitem(scanvi.DATA, "pbmc", half_labelled)
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
