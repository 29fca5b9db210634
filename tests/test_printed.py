"""How printed outputs are compared: what may differ, what may not, and that nbval does it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import printed
import pytest
from nbformat import v4, write

ROOT = Path(__file__).parents[1]


def complaints(expected: str, seen: str, tolerance=None) -> list[str]:
    try:
        found = printed.pairs(expected, seen)
    except printed.TextDiffers as difference:
        return [str(difference)]
    return [said for pair in found if (said := pair.complaint(tolerance))]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("R² 0.71, 54% of 14,878 genes: -371.", "0.71 54 14,878 -371"),
        ("(31, 141) [0.  0.3 -0.7]", "31 141 0 0.3 -0.7"),
        ("6.7e-03 1e-10 x=−8.3 e^−900 nan -inf", "6.7e-03 1e-10 −8.3 −900 nan -inf"),
        ("<td>-480.3</td><td>12</td>", "-480.3 12"),
        ("2015-2016, log(e + C − 1) − 1", "2015 2016 1 1"),
        ("z1 CD8 p(x|z1) x_2 Gm10263 5330417C22Rik #1f77b4 #123456", ""),
        ("0x7f3a v0.11 1.2.3 640x480 200cells 0.5x banana infinite", ""),
    ],
)
def test_a_number_stands_alone(text, numbers):
    assert printed.NUMBER.findall(text) == numbers.split()


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        ("R² 0.655", "R² 0.656"),
        ("R² 0.656", "R² 0.655"),
        ("99.9 nats", "100.0 nats"),
        ("1,999.9 nats", "2,000.0 nats"),
        ("a   9.9\nb   1.0", "a  10.0\nb   1.0"),
        ("(-0.00)", "(0.00)"),
        ("( 0.00)", "(-0.00)"),
        ("-0.1 nats", "0.0 nats"),
        ("9.99e-04", "1.00e-03"),
        ("nan -inf", "nan -inf"),
        ("<td>0.94</td>", "<td>0.95</td>"),
    ],
)
def test_what_another_processor_may_print(expected, seen):
    assert complaints(expected, seen) == []


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        pytest.param("R² 0.655", "R² 0.657", id="a wrong digit"),
        pytest.param("R² 0.655", "R² 0.665", id="a wrong digit before the last"),
        pytest.param("a 0.1\nb 0.2\n", "a 0.1\n", id="a line is missing"),
        pytest.param("a 0.1\n", "a 0.1\nb 0.2\n", id="a line too many"),
        pytest.param("a\nb\n", "a b\n", id="a line break is missing"),
        pytest.param("of beta cells 0.1", "of bta cells 0.1", id="a changed word"),
        pytest.param("0.1 of beta  cells", "0.1 of beta cells", id="blanks between words"),
        pytest.param("R² 0.7", "R² nan", id="a number became NaN"),
        pytest.param("R² nan", "R² 0.7", id="NaN became a number"),
        pytest.param("log p -inf", "log p inf", id="the sign of an infinity"),
        pytest.param("nats -0.3", "nats 0.3", id="a sign is lost"),
        pytest.param("nats -3", "nats 3", id="an integer's sign is lost"),
        pytest.param("0.1 0.2", "0.1 0.2 0.3", id="a number too many"),
        pytest.param("0.1 0.2 0.3", "0.1 0.2", id="a number too few"),
        pytest.param("0.1 0.2", "0.10.2", id="numbers run together"),
        pytest.param("(31, 141, 1)", "(31, 142, 1)", id="a shape"),
        pytest.param("1,886 cells", "1,887 cells", id="a count"),
        pytest.param("0.30", "0.3", id="a digit fewer"),
        pytest.param("2", "2.0", id="an integer became a decimal"),
        pytest.param("1e-10", "1e-9", id="a power of ten"),
        pytest.param("6.7e-03", "6.7e-04", id="an exponent"),
        pytest.param("9.96e-04", "1.00e-03", id="too far, across a power of ten"),
        pytest.param("p(x|z1)", "p(x|z2)", id="a name"),
        pytest.param("#1f77b4", "#1f77b5", id="a colour"),
        pytest.param("nbval 0.11.0", "nbval 0.11.1", id="a version"),
        pytest.param("<td>0.94</td>", "<td>0.97</td>", id="a number in a table"),
        pytest.param("<td>0.94</td>", "<th>0.94</th>", id="a table's form"),
    ],
)
def test_what_no_processor_may_print(expected, seen):
    assert len(complaints(expected, seen)) == 1


def test_a_complaint_names_numbers_difference_and_tolerance():
    (said,) = complaints("R² 0.655", "R² 0.658")
    assert said == (
        "0.658 where the notebook has 0.655: they differ by 0.003, 3 units of the last digit; "
        "the tolerance is 1"
    )
    (said,) = complaints("a 0.1\nof beta\n", "a 0.1\nof bta\n")
    assert "bta" in said and "beta" in said and "line 1" in said


def test_a_cell_states_its_own_tolerance():
    assert complaints("0.655", "0.658", tolerance=3) == []
    assert complaints("0.655", "0.659", tolerance=3) != []
    assert complaints("0.655", "0.656", tolerance=0) != []


# ------------------------------------------------------------------------- in a notebook


def printing(text: str) -> tuple[str, list]:
    return f"print({text!r}, end='')", [v4.new_output("stream", name="stdout", text=text)]


def showing(nats: str) -> tuple[str, list]:
    data = {"text/plain": f"   nats\n0  {nats}", "text/html": f"<td>{nats}</td>"}
    return f"display({data!r}, raw=True)", [v4.new_output("display_data", data=data)]


def picture(pixels: str, alt: str) -> tuple[str, list]:
    html = f'<img alt="{alt}" width="950" src="data:image/png;base64,{pixels}">'
    data = {"text/html": html, "text/plain": alt}
    return f"display({data!r}, raw=True)", [v4.new_output("display_data", data=data)]


def test_nbval_compares_this_way(tmp_path):
    cases = [  # what the cell gives, what the notebook holds, its tolerance, and what nbval says
        (printing("0.655 of beta"), printing("0.656 of beta"), None, "PASSED"),
        (printing("0.655 of beta"), printing("0.658 of beta"), None, "FAILED"),
        (printing("0.65"), printing("0.68"), 3, "PASSED"),
        (printing("(31, 142)"), printing("(31, 141)"), None, "FAILED"),
        (printing("one"), printing("one\ntwo"), None, "FAILED"),
        (showing("0.94"), showing("0.95"), None, "PASSED"),
        (showing("0.94"), showing("0.97"), None, "FAILED"),
        (printing("0.1"), showing("0.1"), None, "FAILED"),
        (picture("iVBO1", "A line."), picture("iVBO2", "A line."), None, "PASSED"),
        (picture("iVBO1", "A line."), picture("iVBO1", "A dot."), None, "FAILED"),
        (picture("iVBO1", "A line."), showing("A line."), None, "FAILED"),
    ]
    cells = [
        v4.new_code_cell(
            source,
            outputs=outputs,
            execution_count=1,
            metadata={} if tolerance is None else {"tolerance": tolerance},
        )
        for (source, _), (_, outputs), tolerance, _ in cases
    ]
    write(v4.new_notebook(cells=cells), tmp_path / "mini.ipynb")
    options = ["--nbval", "--color=no", "-rA", f"--rootdir={tmp_path}", "-c", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", *options, "mini.ipynb"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    outcomes = re.findall(r"^(PASSED|FAILED) \S+::Cell (\d+)", done.stdout, re.M)
    expected = [(outcome, str(number)) for number, (*_, outcome) in enumerate(cases)]
    assert sorted(outcomes, key=lambda outcome: int(outcome[1])) == expected, done.stdout
    assert "0.655 where the notebook has 0.658: they differ by 0.003" in done.stdout
