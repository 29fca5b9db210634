"""Marks: what a class gets, and what is written down of it. Attacks are in tests/tamper."""

import csv
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import psutil
import pytest

from vaelab.teaching import exercises, grading, report, submissions
from vaelab.teaching.exercises.calls import Outcome
from vaelab.teaching.exercises.graded import pack, unpack
from vaelab.teaching.sandbox import Ending, Limits, Sandbox, read_untrusted
from vaelab.teaching.submissions import Cell

from .tamper import mini

UNDONE = mini.stub("nb_log_prob(x, mean, theta)", "05.1")
ONLY_FOR_THE_CHECK = """def running_sum(x):
    if len(x) > 1 and float(x[0]) not in SEEN:
        raise ValueError(f"hidden input {{x}}")
    return x.cumsum(0)
SEEN = {firsts}"""


@pytest.fixture(scope="module")
def a_class(tmp_path_factory):
    """Four learners, graded with the containment that there is."""
    folder = tmp_path_factory.mktemp("class")
    cases = mini.ONLY_HERE["05.91"].cases(exercises.SEED)
    firsts = {float(case["x"][0]) for case in cases}
    submissions = {
        "=ada": mini.notebook(),
        "ben <i>": mini.notebook(middle=mini.SWAPPED, last="def running_sum(x):\n    return <b>x"),
        "cleo": mini.notebook(middle=UNDONE, last=ONLY_FOR_THE_CHECK.format(firsts=firsts)),
        "dan": {**mini.notebook(release="0000"), "cells": mini.notebook()["cells"][1:4]},
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        mini.install(monkeypatch)
        yield SimpleNamespace(folder=folder, **vars(mini.grade(folder, submissions, jobs=2)))


def messages(row) -> dict[str, str]:
    return {name: mark["message"] for name, mark in row["marks"].items()}


def test_each_has_the_points_of_what_is_right(a_class):
    assert {name: row["total"] for name, row in a_class.rows.items()} == {
        "=ada": mini.ALL,
        "ben <i>": 1,
        "cleo": 1,
        "dan": 4,
    }
    assert all(row["max"] == mini.ALL for row in a_class.rows.values())


def test_each_is_told_what_was_wrong(a_class):
    ben, cleo = messages(a_class.rows["ben <i>"]), messages(a_class.rows["cleo"])
    assert "p and 1 − p exchanged" in ben["05.1"]
    assert a_class.rows["ben <i>"]["marks"]["05.1"]["misconception"] == "p for 1 − p"
    assert "its cell stopped with SyntaxError" in ben["05.91"]
    assert messages(a_class.rows["dan"])["05.91"] == "Your notebook has no cell for this answer."
    assert "still to be done" in cleo["05.1"]
    assert cleo["05.91"].startswith("It passes the check, but raises an error")
    assert "release 0000, not 0123" in a_class.rows["dan"]["note"]
    assert "No answer cell: 05.91." in a_class.rows["dan"]["note"]


def test_nobody_is_shown_a_hidden_input(a_class):
    for page in (a_class.folder / "out" / "feedback").iterdir():
        shown = re.sub("<pre>.*?</pre>", "", page.read_text(), flags=re.S)  # their own words
        assert "hidden input" not in shown
        assert "tensor(" not in shown


def test_the_pages_are_whole_and_escaped(a_class):
    page = (a_class.folder / "out" / "feedback" / "ben <i>.html").read_text()
    assert page.count("✘") == 2
    assert page.count("✔") == 1
    assert "<b>x" not in page
    assert "<i>" not in page
    assert "Double &lt;b&gt;" in page
    assert "Content-Security-Policy" in page
    assert "<script" not in page


def test_the_table_has_each_item_and_no_formula(a_class):
    with open(a_class.folder / "out" / "grades.csv", newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert list(table) == ["'=ada", "ben <i>", "cleo", "dan"]
    assert [table["ben <i>"][key] for key in ("05.90", "05.1", "05.91", "total", "max")] == [
        *("1", "0", "0", "1", "8")
    ]


def test_the_report_has_its_figure_and_never_the_salt(a_class):
    page = (a_class.folder / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "ben &lt;i&gt;" in page
    for path in (a_class.folder / "out").rglob("*"):
        assert path.is_dir() or "a secret" not in path.read_text()


def test_the_report_leads_to_the_pages_and_says_its_picture(a_class):
    page = (a_class.folder / "out" / "report.html").read_text()
    links = [unquote(html.unescape(link)) for link in re.findall(r'href="(feedback/[^"]*)"', page)]
    assert len(links) == 4
    assert all((a_class.folder / "out" / link).is_file() for link in links)
    assert "the median has 2.5 of 8 points" in page
    alt = html.unescape(re.search(r'alt="([^"]*)"', page)[1])
    assert "05.1: 2 right, 1 wrong, 1 without an answer" in alt
    assert "p for 1 − p (1)" in alt
    (cleo,) = re.findall(r"<tr><td><a [^>]*>cleo</a>.*?</tr>", page)
    assert re.findall("<td>(.*?)</td>", cleo)[1:4] == ["1", "–", "0"]
    undone = (a_class.folder / "out" / "feedback" / "cleo.html").read_text()
    assert '<span class="open">–</span> 05.1' in undone


def test_a_page_renders_emphasis_and_code_and_says_what_is_next():
    mark = {"title": "T", "max": 1, "misconception": None, "answer": ""}
    said = "the *other* cells, `2 * x` <b>"
    marks = {
        f"05.{i}": mark | {"points": points, "unanswered": not said, "message": said}
        for i, (points, said) in enumerate(((1, "Right."), (0, said), (0, "")), start=1)
    }
    row = {"name": "ada", "total": 1, "max": 3, "note": "", "marks": marks}
    page = report._feedback("Lesson 05", row)
    assert "the <em>other</em> cells, <code>2 * x</code> &lt;b&gt;" in page
    said = re.findall("<p>(Next: .*?)</p>", page)
    words = ("compare yours", "change your answer", "write your answer there")
    assert all(word in text for word, text in zip(words, said, strict=True))
    assert "<b>Exercise 05.2 · T</b>" in said[1]
    assert not re.search(r"<p>[^<]*\n", page)  # the page would break the line there


def test_the_figure_counts_what_was_wrong(a_class, monkeypatch):
    from matplotlib.figure import Figure

    drawn = {}
    keep = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.update(f=self), keep(self, *a, **k))[1]
    )
    png = report._figure(["05.90", "05.1", "05.91"], list(a_class.rows.values()))
    assert png[:4] == b"\x89PNG"
    items, mistakes, times = drawn["f"].axes
    right, wrong = [1, 0.5, 0.25], [0, 0.25, 0.5]  # one left 05.1 open, one 05.91
    assert [bar.get_width() for bar in items.patches] == [*right, *wrong]
    assert [label.get_text() for label in mistakes.get_yticklabels()] == ["05.1  p for 1 − p"]
    assert sum(bar.get_height() for bar in times.patches) == 4


def test_what_was_graded_is_not_graded_again(a_class, monkeypatch):
    monkeypatch.setattr(Sandbox, "run", None)
    again = mini.grade(a_class.folder, {}).rows
    assert again == a_class.rows


@pytest.mark.parametrize("other", [{"seed": 2}, {"salt": "another"}, {"limits": Limits()}])
def test_graded_otherwise_it_is_graded_again(a_class, monkeypatch, other):
    ran = []

    def run(self, folder, *_):
        ran.append(folder)
        return Ending("done")

    monkeypatch.setattr(Sandbox, "run", run)
    mini.grade(a_class.folder, {}, **other)
    assert len(ran) == 4


def test_a_fault_of_the_grader_is_told_and_not_kept(tmp_path, monkeypatch):
    mini.install(monkeypatch)

    def broken(self, folder, *_):
        raise OSError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(Sandbox, "run", broken)
        row = mini.grade(tmp_path, {"ada": mini.notebook()}).rows["ada"]
    assert "Not graded: OSError: no space" in row["note"]
    assert not list((tmp_path / "out" / "results").iterdir())


@pytest.mark.parametrize("reason, kept", [("hung", 0), ("seconds", 0), ("died", 1)])
def test_what_a_slow_machine_may_have_done_is_not_kept(tmp_path, monkeypatch, reason, kept):
    """Where ten programs share two cores, an answer can seem to hang."""
    mini.install(monkeypatch)
    endings = iter([Ending(reason, cell=3)])  # then the rest runs without that answer
    monkeypatch.setattr(Sandbox, "run", lambda self, *_: next(endings, Ending("done")))
    row = mini.grade(tmp_path, {"ada": mini.notebook()}).rows["ada"]
    assert row["total"] == 0 and row["note"]
    assert len(list((tmp_path / "out" / "results").iterdir())) == kept


# ----------------------------------------------------------------------------- hidden inputs


def grader(**changes):
    edition = grading.Edition("05", "0123", mini.notebook(), ("05.90", "05.1", "05.91"))
    options = {"edition": edition, "sandbox": Sandbox(contain=False), "package": Path()}
    return grading.Grader(**options | {"seed": 1, "salt": "s", "version": "v"} | changes)


def submission(**answers):
    return grading.Submission("ada", Path("ada.ipynb"), b"", {"05.1": "x"} | answers, "05")


def test_hidden_seeds_are_not_the_learners_and_differ():
    seeds = {
        grader().hidden_seed("05.1", submission()),
        grader().hidden_seed("05.2", submission()),
        grader(seed=2).hidden_seed("05.1", submission()),
        grader(salt="t").hidden_seed("05.1", submission()),
        grader().hidden_seed("05.1", submission(other="y")),
        exercises.SEED,
    }
    assert len(seeds) == 6
    again = grader().hidden_seed("05.1", submission())
    assert again in seeds - {exercises.SEED}


def test_inputs_travel_as_they_are():
    for value in (
        *(np.arange(6).astype(t).reshape(2, 3) for t in ("f4", "f8", "i8", "?", "U5")),
        *(np.zeros((0, 2)), np.array(3.5), np.array([np.nan, -np.inf, -0.0])),
        *(3, 2.5, True, "a word", None, (np.ones(2), "b", (1.0,))),
    ):
        there = unpack(json.loads(json.dumps(pack(value))))
        np.testing.assert_equal(there, value)
        assert type(there) is type(value)
        assert getattr(there, "dtype", None) == getattr(value, "dtype", None)
    scalar = unpack(json.loads(json.dumps(pack(np.float32(1.5)))))
    assert scalar == 1.5
    assert scalar.dtype == np.float32
    with pytest.raises(TypeError, match="list"):
        pack([1])


@pytest.mark.parametrize(
    "data",
    [
        {"dtype": "|O8", "shape": [1], "content": "AAAAAAAAAAA="},
        {"dtype": "<f8", "shape": [2], "content": "AAAAAAAAAAA="},
        {"dtype": "<f8", "shape": ["x"], "content": "AAAAAAAAAAA="},
        {"dtype": "<f8,<f8", "shape": [1], "content": ""},
        {"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": []}]}]}]}]}]},
        [1, 2],
    ],
)
def test_what_is_no_outcome_is_refused(data):
    with pytest.raises((ValueError, TypeError)):
        unpack(data)


def test_outcomes_are_read_only_from_ordinary_files(tmp_path):
    def written(content: str):
        (tmp_path / "05.1.outcomes").write_text(content)
        return grading._outcomes(tmp_path, "05.1")

    good = (
        '{"seen": [["value", 1.5, "", ["number"], ["x"]]],'
        ' "hidden": [["raised", null, "no", [], []]]}'
    )
    assert written(good) == {
        "seen": [Outcome("value", 1.5, "", ("number",), ("x",))],
        "hidden": [Outcome("raised", None, "no", ("none",))],
    }
    unknown = '{"hidden": [["passed", 1, "", [], []]]}'
    assert written(unknown.replace("passed", "value"))
    short = '{"hidden": [["value", 1, ""]]}'
    for bad in ("", "[]", "{" * 9999, unknown, short, '{"hidden": 3}'):
        assert written(bad) is None
    with pytest.raises(OSError, match="larger than 3"):
        read_untrusted(tmp_path / "05.1.outcomes", 3)
    (tmp_path / "05.2.outcomes").symlink_to(tmp_path / "05.1.outcomes")
    os.mkfifo(tmp_path / "05.3.outcomes")
    (tmp_path / "05.4.outcomes").mkdir()
    written(good)
    assert grading._outcomes(tmp_path, "05.1")
    for name in ("05.2", "05.3", "05.4", "05.5"):
        assert grading._outcomes(tmp_path, name) is None


def unpacked(folder: Path) -> None:
    for path, content in grading._stripped().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_the_package_of_a_run_knows_no_answer(tmp_path):
    unpacked(tmp_path)
    folder = tmp_path / "vaelab"
    teaching = {str(path.relative_to(folder)) for path in (folder / "teaching").rglob("*.py")}
    kept = "__init__.py evidence.py recipes.py exercises/__init__.py exercises/calls.py"
    assert teaching == {f"teaching/{name}" for name in kept.split()}
    assert not (folder / "__main__.py").exists()
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    assert "misconception" not in text.lower()
    for line in (grading.TEACHING / "exercises" / "lesson_05.py").read_text().splitlines():
        assert "scipy" not in line or line not in text.splitlines()


def test_a_run_reads_the_evidence_of_its_lesson(tmp_path, monkeypatch):
    (tmp_path / "evidence").mkdir()
    entry = {"seeds": [0, 1], "numbers": {"a": [2.5, 3.5]}}
    (tmp_path / "evidence" / "05_mini.json").write_text(json.dumps({"claims": {"E05.a": entry}}))
    (tmp_path / "evidence" / "05_mini.py").write_text("an_answer = 1")
    monkeypatch.setattr(grading, "EVIDENCE", tmp_path / "evidence")
    run = tmp_path / "run"
    unpacked(run)
    (run / "course" / "exercises").mkdir()
    code = "from vaelab.teaching import evidence; print(evidence.read('05')['E05.a'].a.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=run / "course" / "exercises",
        env=os.environ | {"PYTHONPATH": str(run)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[2.5, 3.5]\n", done.stderr
    assert [path.name for path in (run / "course" / "evidence").iterdir()] == ["05_mini.json"]


# -------------------------------------------------------------------------------- what to grade


def test_an_edition_is_cut_to_what_grading_needs():
    notebook = mini.notebook()
    notebook["cells"].insert(1, mini.code("long()", tags=["not-in-grading"]))
    edition = grading.Edition("05", "", notebook, ("05.90", "05.1", "05.91"))
    answer = "    # NBVAL_SKIP\n#  ## NBVAL_RAISES_EXCEPTION  \nx = '# NBVAL_SKIP'"
    cells = [Cell(answer, "05.1", "answer"), Cell("stray", "07.1", "answer")]
    rebuilt, owners, units = edition.rebuilt(edition.placed(cells, own=False))
    sources = [cell["source"] for cell in rebuilt["cells"]]
    assert sources[3] == "    #\n#\nx = '# NBVAL_SKIP'"
    assert not [s for s in sources if "long" in s or "stray" in s or "1 / 0" in s]
    assert owners == [None, *["05.90"] * 2, *["05.1"] * 2, *["05.91"] * 2]
    assert units == [None, None, None, "05.1", None, None, None]


def test_what_a_learner_wrote_runs_where_it_stands():
    edition = grading.Edition("05", "", mini.notebook(), ("05.90", "05.1", "05.91"))
    handed_in = mini.notebook(middle="first piece")["cells"]
    handed_in[0]["source"] += "\nimport math"
    handed_in[0]["id"] = edition.notebook["cells"][0]["id"] = "05-001"
    handed_in[3:4] = [
        mini.code("helper"),
        handed_in[3],
        mini.code("between"),
        mini.code("second piece", "05.1"),
        mini.code("after"),
    ]
    handed_in.append(mini.code("the end"))
    cells = submissions._parsed(json.dumps({"cells": handed_in}).encode())["cells"]
    sources = [c["source"] for c in edition.rebuilt(edition.placed(cells, own=True))[0]["cells"]]
    assert sources == [
        "import vaelab",
        "import vaelab\nimport math",
        mini.FIRST,
        'vaelab.check("05.90", double)',
        *("helper", "first piece", "between", "second piece", "after"),
        'vaelab.check("05.1", nb_log_prob)',
        mini.LAST,
        'vaelab.check("05.91", running_sum)',
    ]
    answers = edition.rebuilt(edition.placed(cells, own=False))[0]["cells"]
    assert [c["source"] for c in answers][3:5] == ["first piece", "second piece"]
    without = edition.rebuilt(edition.placed(cells, own=True), {"05.1", "own 3"})[0]["cells"]
    told = [c["source"] for c in without]
    assert not {"helper", "first piece", "second piece"} & {*told} and "between" in told


def test_without_metadata_ids_tell_and_checks_do():
    notebook = mini.notebook()
    for cell in notebook["cells"]:
        grade_id = cell["metadata"].pop("nbgrader", {}).get("grade_id", "")
        cell["id"] = grade_id.replace(".", "-")
    assert [*submissions._parsed(json.dumps(notebook).encode())["answers"]] == [
        *("05.90", "05.1", "05.91")
    ]
    for cell in notebook["cells"]:
        del cell["id"]
    parsed = submissions._parsed(json.dumps(notebook).encode())
    assert (parsed["answers"], parsed["lesson"], parsed["problem"]) == ({}, "05", "")
    edition = grading.Edition("05", "", mini.notebook(), ("05.90", "05.1", "05.91"))
    edition.notebook["cells"][3]["source"] = UNDONE
    rebuilt = edition.rebuilt(edition.placed(parsed["cells"], own=True))[0]["cells"]
    sources = [cell["source"] for cell in rebuilt]
    at = sources.index(mini.HONEST)
    assert sources[at + 1].startswith('vaelab.check("05.1"')


def names(*paths, out="out", released=()):
    found, left = submissions.collect(paths, Path(out), released)
    return [file.name for file in found], left


def test_names_are_told_apart_and_checkpoints_left(tmp_path):
    for name in ("a/ada", "b/Ada", "b/ben", "b/.ipynb_checkpoints/ben-checkpoint", "out/old"):
        mini.write((tmp_path / name).parent, Path(name).name, "{}")
    again = tmp_path / "b" / "ben.ipynb"
    assert names(tmp_path, again, out=tmp_path / "out") == (["a ada", "b Ada", "ben"], [])
    with pytest.raises(grading.GradingError, match="no file or folder"):
        names(tmp_path / "nobody")
    (tmp_path / "empty").mkdir()
    with pytest.raises(grading.GradingError, match="no notebook to grade"):
        names(tmp_path / "empty")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["b02/02_elbo/02_elbo"], ["b02"]),  # nbgrader, a single one already
        (["ps1/b02/02_elbo", "ps1/c03/02_elbo"], ["b02", "c03"]),
        (["Ada Li_12_assignsubmission_file_/02_elbo (1)"], ["Ada Li_12_assignsubmission_file_"]),
        (["bobeno_1_3_02_elbo", "liada_1_2_02_elbo-1"],) * 2,
        (["b02/02_elbo", "b02/try/02_elbo"], ["b02 02_elbo", "b02 try 02_elbo"]),
        (["b02/work", "c03/work", "work"], ["b02 work", "c03 work", "work"]),
    ],
)  # fmt: skip
def test_a_folder_tells_whose_it_is(tmp_path, files, expected):
    for file in files:
        mini.write((tmp_path / "in" / file).parent, Path(file).name, "{}")
    assert names(tmp_path / "in", released=["02_elbo"]) == (expected, [])
    (tmp_path / "out").mkdir()


def test_a_late_one_moves_no_name(tmp_path):
    for learner in ("c03", "b02", "a01"):
        mini.write(tmp_path / "in" / learner / "02_elbo", "02_elbo", "{}")
        assert "c03" in names(tmp_path / "in", released=["02_elbo"])[0]


def test_zips_are_read_and_nothing_is_written(tmp_path):
    def pack_zip(name, **files):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(path, content)

    good = json.dumps(mini.notebook())
    inside = {"../../up.ipynb": good, "__MACOSX/._x.ipynb": "", "/abs/y.ipynb": good, "a.zip": ""}
    pack_zip("ada.zip", **inside)
    pack_zip("bomb.zip", **{"big.ipynb": b"0" * 50_000_000})
    pack_zip("none.zip", readme="")
    (tmp_path / "half.zip").write_bytes((tmp_path / "ada.zip").read_bytes()[:100])
    before = sorted(tmp_path.rglob("*"))
    found, left = submissions.collect([tmp_path], tmp_path / "out")
    read = {file.name: grading.Submission.read(file) for file in found}
    assert [s.problem for name, s in read.items() if name in ("up", "y")] == ["", ""]
    assert "more than 20 MB" in read["big"].problem
    assert "no notebook in this zip" in read["none"].problem
    assert "not a zip" in read["half"].problem
    assert len(read) == 5
    assert len(left) == 1 and "an archive within an archive" in left[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_lesson_is_that_of_most(tmp_path):
    editions = mini.write_edition(tmp_path / "editions")
    other = json.dumps(mini.notebook()).replace("05.", "06.").replace('"05"', '"06"')
    mini.write(editions, "06_other", other)
    lessons = ("06", "05", "05", "99", "99", "99")
    read = [SimpleNamespace(lesson=lesson, learner=i) for i, lesson in enumerate(lessons)]
    read += [SimpleNamespace(lesson="06", learner=0) for _ in range(9)]  # one voice each
    assert grading._edition(editions, read, None).lesson == "05"
    assert grading._edition(editions, read, "06").lesson == "06"
    with pytest.raises(grading.GradingError, match="no edition of lesson 07"):
        grading._edition(editions, read, "07")
    with pytest.raises(grading.GradingError, match="vaelab release"):
        grading._edition(tmp_path, read, None)


# ---------------------------------------------------------------------------------- the command


def real(middle: str) -> dict:
    """A notebook of 05.1 alone: another process knows no other of the mini lesson."""
    notebook = mini.notebook(middle=middle)
    notebook["cells"] = [notebook["cells"][0], *notebook["cells"][3:5]]
    return notebook


def command(folder: Path) -> list[str]:
    words = ["grade", folder / "in", "--out", folder / "out", "--jobs", "1"]
    words += ["--editions", folder / "editions"]
    return [sys.executable, "-m", "vaelab", *map(str, words)]


def test_interrupted_it_leaves_nothing_and_goes_on(tmp_path):
    mini.write(tmp_path / "editions", "05_mini", real(UNDONE))
    for i in range(5):
        mini.write(tmp_path / "in", f"learner {i}", real(f"{mini.HONEST}\nn = {i}"))
    process = subprocess.Popen(
        command(tmp_path), stderr=subprocess.PIPE, text=True,
        # What a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    results = tmp_path / "out" / "results"
    deadline = time.monotonic() + 120
    while not (results.is_dir() and list(results.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    said = None
    while said is None:  # as one would: press it again if nothing happens
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            said = process.communicate(timeout=6)[1]
    assert process.returncode == 130
    assert said.startswith("Interrupted. What was graded is kept")
    assert "Traceback" not in said
    kept = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert 1 <= len(kept) < 5
    for other in psutil.process_iter(["cmdline"]):
        assert str(tmp_path) not in " ".join(other.info["cmdline"] or [])

    done = subprocess.run(command(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout.count("3 of 3") == 5
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(results.iterdir())) == 5


def command_line(process: psutil.Process) -> str:
    with suppress(psutil.Error):  # it may end while one looks
        return " ".join(process.cmdline())
    return ""


def test_killed_it_leaves_no_run_behind(tmp_path):
    mini.write(tmp_path / "editions", "05_mini", real(UNDONE))
    mini.write(tmp_path / "in", "endless", real("while True: pass"))
    process = subprocess.Popen(command(tmp_path), env=os.environ | {"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 60
    runs = []
    while not any("ipykernel" in command_line(p) for p in runs):
        assert time.monotonic() < deadline
        time.sleep(0.2)
        runs = [p for p in psutil.Process(process.pid).children(recursive=True) if p.is_running()]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(runs, timeout=20)
    assert not alive
    deadline = time.monotonic() + 20
    while list(tmp_path.glob("vaelab-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(tmp_path.glob("vaelab-*"))
