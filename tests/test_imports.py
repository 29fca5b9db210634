"""What `import vaelab` costs, which module may import which, and how large each may be."""

import ast
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vaelab"
HEAVY = "anndata igraph matplotlib numba pandas pooch rdata scanpy scipy seaborn sklearn umap"
FLOORS = {  # each a room of the package, from the ground up
    "support": "_internal",
    "the mathematics": "distributions likelihoods bounds reparametrization networks",
    "the data": "cells datasets preprocessing simulate",
    "the models": "models",
    "use": "plotting metrics baselines history training differential_expression interop",
    "the course's tools": "teaching",
    "the command": "__main__",
}
ORDER = " ".join(FLOORS.values()).split()
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def run(code: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True
    ).stdout


def seconds_to_import(name: str) -> float:
    """CPU seconds of a fresh process, start of the interpreter included."""
    return float(run(f"import time, {name}; print(time.process_time())"))


def test_import_takes_little_more_than_torch():
    seconds_to_import("vaelab")  # brings the files into the system's memory
    pairs = [(seconds_to_import("vaelab"), seconds_to_import("torch")) for _ in range(3)]
    assert statistics.median(ours / torchs for ours, torchs in pairs) <= 1.5


def test_import_leaves_heavy_modules_alone():
    loaded = run("import sys, vaelab; print(*sys.modules)").split()
    assert not {*HEAVY.split()} & {*loaded}


def test_the_table_names_what_there_is():
    assert {*ORDER} == {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    assert len(ORDER) == len({*ORDER})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_those_before_it(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts
    before = ORDER[: ORDER.index(here[0])]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for there in imported(node, here):
            inside = there == here[0] and len(here) > 1  # one folder may import itself
            assert inside or there in before, f"{here[0]} imports {there}, which stands higher"


def imported(node: ast.AST, here: tuple[str, ...]) -> list[str]:
    """The modules of vaelab, by the first part of their name, that a statement imports."""
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = ["vaelab", *here][: -node.level] if node.level else []
        base += node.module.split(".") if node.module else []
        names = [[*base, alias.name] for alias in node.names] if base == ["vaelab"] else [base]
    else:
        return []
    return [name[1] if len(name) > 1 else "vaelab" for name in names if name[0] == "vaelab"]


# ------------------------------------------------------------------------------------- sizes


def lines_of_code(source: str) -> list[int]:
    """The numbers of the lines that are neither blank nor part of a docstring."""
    prose = set()
    for node in ast.walk(ast.parse(source)):
        holds_prose = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if holds_prose and ast.get_docstring(node):
            prose |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return [i for i, line in enumerate(source.splitlines(), 1) if line.strip() and i not in prose]


def test_docstrings_and_blank_lines_are_not_code():
    assert lines_of_code('"""Page.\n\nMore."""\n\nx = 1\n\n\ndef f():\n    """F."""\n') == [5, 8]


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda p: p.stem)
def test_a_model_is_under_200_lines_of_code(path):
    assert len(lines_of_code(path.read_text(encoding="utf-8"))) < 200


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_class_is_over_200_lines_of_code(path):
    source = path.read_text(encoding="utf-8")
    code = lines_of_code(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            size = sum(node.lineno <= i <= node.end_lineno for i in code)
            assert size <= 200, f"{node.name} has {size} lines of code: split it"


def test_the_mathematics_and_the_models_are_under_3500_lines():
    """Without the zoo, whose models each have a page: see test_zoo."""
    rooms = f"{FLOORS['the mathematics']} {FLOORS['the models']}".split()
    size = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in MODULES
        if path.relative_to(PACKAGE).with_suffix("").parts[0] in rooms and "zoo" not in path.parts
    }
    assert sum(size.values()) < 3500, size
