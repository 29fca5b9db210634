"""Submissions that claim to be right. None of these is held by the system's containment, so they
run without: what holds them is that verdicts are formed elsewhere, from values alone.
"""

import pytest

from . import mini

# Each stands in the place of an answer that is worth 3 points, and gives zeros.
IN_AN_ANSWER = {
    "exit": mini.ZERO + "exit()",
    "exit in the answer": "def nb_log_prob(x, mean, theta):\n    exit()",
    "SystemExit in the answer": "def nb_log_prob(x, mean, theta):\n    raise SystemExit(0)",
    "check redefined": mini.ZERO
    + "import vaelab\nvaelab.check = lambda name, answer: print('✔', name, '(3 points)')",
    "check's own module changed": mini.ZERO + "import numpy, vaelab.teaching.exercises as e\n"
    "from vaelab.teaching.exercises.calls import Outcome\n"
    "e.apply = lambda *a: Outcome('value', numpy.ones(1), 'passed')",
    "judge in the module changed": mini.ZERO + "import sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('judge', 'passed', '_agree', 'points'):\n        setattr(m, n, lambda *a: True)",
    "asserts taken out by a transformer": mini.ZERO
    + """import ast
class Out(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
    def visit_Raise(self, node):
        return ast.Pass()
get_ipython().ast_transformers.append(Out())""",
    "set_custom_exc": mini.ZERO
    + "get_ipython().set_custom_exc((BaseException,), lambda *a, **k: print('✔ (3 points)'))",
    "input transformer": mini.ZERO + "get_ipython().input_transformers_cleanup.append(\n"
    "    lambda lines: ['print(\"✔ \")\\n' if '05.1' in line else line for line in lines])",
    "showtraceback replaced": mini.ZERO
    + "get_ipython().showtraceback = lambda *a, **k: print('✔ (3 points)')",
    "markers": "# NBVAL_SKIP\n# NBVAL_RAISES_EXCEPTION\n# NBVAL_IGNORE_OUTPUT\n" + mini.ZERO,
    "cell magic": "%%script true\n" + mini.ZERO,
    "detects the grader": """import os, pathlib, json
def nb_log_prob(x, mean, theta):
    if "VAELAB_GRADING" in os.environ:
        here = pathlib.Path(os.environ["VAELAB_GRADING"])
        given = json.loads((here / "05.1.inputs").read_text())
        right = {k: [["value", v, "passed"] for v in given[k]] for k in ("seen", "hidden")}
        (here / "05.1.outcomes").write_text(json.dumps(right | {"passed": True, "points": 3}))
        os.chmod(here / "05.1.outcomes", 0o400)
    return 0 * x""",
    "__eq__ lies": """class Liar(float):
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = lambda *a: True
    __hash__ = float.__hash__
    __sub__ = __rsub__ = lambda *a: 0.0
def nb_log_prob(x, mean, theta):
    return [Liar(0) for _ in x]""",
    "__array__ lies": """import numpy as np
class Array(np.ndarray):
    __eq__ = __ne__ = lambda *a: True
    def __array_ufunc__(self, *a, **k):
        return True
    def __array_function__(self, *a, **k):
        return True
class Liar:
    shape = (200,)
    def __array__(self, *a, **k):
        return np.zeros(200).view(Array)
    __eq__ = lambda *a: True
def nb_log_prob(x, mean, theta):
    return np.zeros(len(x)).view(Array) if len(x) == 1 else Liar()""",
    "a tensor that lies": """import torch
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *a, **k):
        return True
def nb_log_prob(x, mean, theta):
    return torch.zeros(len(x)).as_subclass(Liar)""",
    "prints fake results": mini.ZERO
    + "print('✔ 05.1 The negative binomial (3 points)\\n' * 9, '1 passed in 0.1s')",
    "report and outcomes forged": mini.ZERO
    + """import os, pathlib, json
here = pathlib.Path(os.environ["VAELAB_GRADING"])
for cell in range(9):
    with open(here / "report.jsonl", "a") as f:
        f.write(json.dumps({"cell": cell, "passed": True, "points": 3}) + "\\n[[[]\\n")
(here / "05.1.outcomes").unlink(missing_ok=True)
os.symlink("/dev/zero", here / "05.1.outcomes")
os.symlink("/etc/passwd", here / "05.1.partial")""",
    "outcomes without end": """import os, pathlib
def nb_log_prob(x, mean, theta):
    return ("deep",) * 10**6""",
    "oracle imported": """def nb_log_prob(x, mean, theta):
    from vaelab.teaching.exercises.lesson_05 import nb
    return nb(x, mean, theta)""",
    "oracle called": """def nb_log_prob(x, mean, theta):
    import vaelab
    return vaelab.teaching.exercises.find("05.1").oracle(x, mean, theta)""",
    "oracle in memory": """def nb_log_prob(x, mean, theta):
    import gc
    for thing in gc.get_objects():
        if type(thing).__name__ == "Exercise":
            return thing.oracle(x, mean, theta)
        if getattr(thing, "__name__", "") == "nb" and callable(thing):
            return thing(x, mean, theta)""",
}


def in_the_notebook() -> dict[str, dict]:
    """Notebooks whose other cells were tampered with; their answer to 05.1 gives zeros."""
    found = {}

    def tampered(name):
        found[name] = mini.notebook(middle=mini.ZERO)
        return found[name]["cells"]

    cells = tampered("tags")
    for cell in cells:
        cell["metadata"]["tags"] = ["nbval-skip", "raises-exception", "not-in-grading", "solution"]
    cells = tampered("check deleted")
    del cells[4]
    cells = tampered("check duplicated")
    cells[4:4] = [cells[2], mini.code('vaelab.check("05.90", double)', "05.1-check")]
    cells = tampered("check reordered")
    cells.reverse()
    cells = tampered("check renamed")
    cells[4]["metadata"]["nbgrader"]["grade_id"] = "05.90-check"
    cells[2]["metadata"]["nbgrader"]["grade_id"] = "05.1-check"
    cells = tampered("check worth more")
    for cell in cells:
        cell["metadata"].setdefault("nbgrader", {}).update(points=100, max_points=100)
    cells = tampered("answer as a check")
    cells[3]["metadata"]["nbgrader"]["grade_id"] = "05.1-check"
    cells = tampered("execution counts cleared, outputs made up")
    for cell in cells:
        text = "✔ 05.1 The negative binomial (3 points)\n"
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
    return found


SUBMISSIONS = in_the_notebook() | {
    name: mini.notebook(middle=answer) for name, answer in IN_AN_ANSWER.items()
}
# From here on nothing is taken down: the last answer, an honest one, is lost with the forged.
LOSES_THE_REST = {"check redefined", "check's own module changed"}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forging")
    with pytest.MonkeyPatch.context() as monkeypatch:
        mini.install(monkeypatch)
        honest = {"honest": mini.notebook()}
        return mini.grade(folder, SUBMISSIONS | honest, contain=False).rows


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_it_earns_its_honest_part(graded, name):
    row = graded[name]
    points = {exercise: mark["points"] for exercise, mark in row["marks"].items()}
    assert points["05.1"] == 0, row
    assert points["05.90"] == 1, row
    assert points["05.91"] == (0 if name in LOSES_THE_REST else 4), row
    assert row["max"] == mini.ALL
    assert row["seconds"] < 60


def test_an_honest_one_among_them_has_all(graded):
    assert graded["honest"]["total"] == mini.ALL
