"""Run the claims of ``course/evidence/NN_name.py``, and say which results are still fresh.

The result of a claim is fresh as long as the code that it rests on is unchanged: its own function,
what that function uses in its file, and the modules of this package that these import, directly or
through others. Comments, docstrings, annotations, formatting and the texts of errors do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from .._internal.machine import steady_threads, write_atomically
from .evidence import Claim

__all__ = ["differences", "digest", "load", "measure", "prove", "read_results", "write_results"]

PACKAGE = Path(__file__).parents[1]
SAVED = "saved_model_parameters"
DIGITS = 6  # significant ones, of what is stored
# What draws, converts or only declares has no part in a number.
LEFT_OUT = {
    f"vaelab.{name}" for name in ("__main__", "interop", "plotting", "teaching.evidence")
} | {"vaelab"}


# --------------------------------------------------------------------------------------- files


def load(path: Path) -> dict[str, Claim]:
    """The claims of an evidence file, by their ids.

    Raises
    ------
    ValueError
        The file has no claims, or one of another lesson.
    """
    name = f"evidence_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    claims = {value.id: value for value in vars(module).values() if isinstance(value, Claim)}
    lesson = path.stem.partition("_")[0]
    for id in claims:
        if not id.startswith(f"E{lesson}."):
            raise ValueError(f"{path.name} has the claim {id}; its ids must start with E{lesson}.")
    if not claims:
        raise ValueError(f"{path.name} has no claims: declare functions with @claim.")
    return claims


def read_results(path: Path) -> dict[str, dict]:
    """The stored result of each claim of an evidence file; none if it was never run."""
    results = path.with_suffix(".json")
    return json.loads(results.read_text(encoding="utf-8"))["claims"] if results.exists() else {}


def write_results(path: Path, results: Mapping[str, dict]) -> None:
    """Write the results of an evidence file next to it."""
    lesson = path.stem.partition("_")[0]
    content = {"lesson": lesson, "command": f"vaelab evidence {lesson}", "claims": results}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub(  # the numbers of all seeds on one line
        r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text
    )
    write_atomically({path.with_suffix(".json"): f"{text}\n".encode()})


# ----------------------------------------------------------------------------------------- runs


def measure(claim: Claim, seed: int, folder: Path) -> tuple[dict[str, float], float]:
    """The numbers of one seed, and the CPU seconds that they took.

    The claim runs on one thread, in ``folder``, where its lesson runs too. All generators of random
    numbers start from the seed. What the claim prints is not shown.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C, even if a training in the claim stopped because of it and went on.
    ValueError
        The claim returned something other than finite numbers by name.
    """
    with steady_threads(), chdir(folder), redirect_stdout(io.StringIO()), _noting_interrupt():
        torch.set_num_threads(1)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        started = time.process_time()
        numbers = claim(seed)
        seconds = time.process_time() - started
    try:
        found = {str(name): float(f"{float(n):.{DIGITS}g}") for name, n in numbers.items()}
    except (AttributeError, TypeError, ValueError):
        found = {}
    if not found or not np.isfinite([*found.values()]).all():
        raise ValueError(
            f"{claim.id} returned {numbers!r} for seed {seed}; expected a dictionary from names to "
            "finite numbers."
        )
    return found, seconds


@contextmanager
def _noting_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end if Ctrl-C came meanwhile; ``fit`` only stops at it."""
    if threading.current_thread() is not threading.main_thread():  # it alone receives signals
        yield
        return
    came = []

    def note(number, frame) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def prove(
    path: Path,
    claim: Claim,
    stored: Mapping | None = None,
    *,
    again: bool = False,
    renew: bool = False,
    step: Callable[[], object] = lambda: None,
) -> tuple[dict, str]:
    """The result of a claim, and how it was obtained.

    Parameters
    ----------
    path
        The evidence file.
    claim
        One of its claims.
    stored
        The result of an earlier run, if there is one.
    again
        True to run the claim even if its result is fresh.
    renew
        True to run only one seed of a claim whose code has changed. If its numbers are the same
        within the claim's tolerance, the others are kept.
    step
        Called after each seed.

    Returns
    -------
    The result as it is stored, and "kept", "renewed" or "run".
    """
    now, how, folder = digest(path, claim), "run", path.parent.parent
    rows: dict[int, tuple[dict, float]] = {}
    comparable = stored is not None and stored["seeds"] == [*claim.seeds] and not again
    if comparable and stored["digest"] == now:
        how = "kept"
    elif comparable and renew:
        first = claim.seeds[0]
        rows[first] = measure(claim, first, folder)
        step()
        if not differences(claim, stored, first, rows[first][0], spread=1.0):
            how = "renewed"
    if how == "run":
        for seed in claim.seeds:
            if seed not in rows:
                rows[seed] = measure(claim, seed, folder)
                step()
        found = [rows[seed][0] for seed in claim.seeds]
        if any(one.keys() != found[0].keys() for one in found):
            raise ValueError(f"{claim.id} must return the same names for every seed.")
        names = ("python", "torch", "numpy", "scanpy", "vaelab")
        stored = {
            "numbers": {name: [one[name] for one in found] for name in found[0]},
            "seconds": [round(rows[seed][1], 2) for seed in claim.seeds],
            "versions": {name: _version(name) for name in names},
        }
    numbers = {name: np.array(values) for name, values in stored["numbers"].items()}
    result = {
        "sentence": claim.sentence,
        "condition": claim.holds.words,
        "holds": claim.holds.is_met(numbers),
        "seeds": [*claim.seeds],
        "numbers": stored["numbers"],
        "mean": {name: _significant(values.mean()) for name, values in numbers.items()},
        "sd": {name: _significant(values.std(ddof=1)) for name, values in numbers.items()},
        "seconds": stored["seconds"],
        "versions": stored["versions"],
        "digest": now,
    }
    return result, how


def _significant(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _version(name: str) -> str:
    return ".".join(map(str, sys.version_info[:3])) if name == "python" else version(name)


def differences(
    claim: Claim, stored: Mapping, seed: int, numbers: Mapping[str, float], *, spread: float = 5.0
) -> list[str]:
    """Where the numbers of a seed differ from the stored ones by more than the tolerance.

    On another processor rounding differs, and a long training can then end as if it had another
    seed. So the default tolerance is ``spread`` standard deviations over the seeds (two seeds
    differ by 1.4 of them, and five give a rough estimate), or a thousandth of the largest value if
    that is more.
    """
    if numbers.keys() != stored["numbers"].keys():
        return [f"{claim.id} now returns {[*numbers]}; stored are {[*stored['numbers']]}"]
    row, found = stored["seeds"].index(seed), []
    for name, values in stored["numbers"].items():
        given = claim.tolerance
        if isinstance(given, Mapping):
            given = given.get(name)
        if given is None:
            given = max(spread * float(np.std(values, ddof=1)), 1e-3 * float(np.abs(values).max()))
        if abs(numbers[name] - values[row]) > given:
            found.append(
                f"{claim.id}, seed {seed}: {name} is {numbers[name]:g}, stored is {values[row]:g}; "
                f"the tolerance is {given:.3g}"
            )
    return found


# -------------------------------------------------------------------------------------- digest


def digest(path: Path, claim: Claim) -> str:
    """Hash of the code that the numbers of a claim rest on, and of its seeds."""
    used = _used(_tree(path), claim.function.__name__)
    parts = [str([*claim.seeds]), *map(_plain, used)]
    modules, todo = set(), _imported(used, None)
    while todo:
        name = todo.pop()
        if name not in modules | LEFT_OUT:
            modules.add(name)
            todo |= _imported([_tree(_file(name))], name)
    parts += [f"{name} {_plain_text(_source(_file(name)))}" for name in sorted(modules)]
    if any(SAVED in str(n.value) for one in used for n in ast.walk(one) if _is_text(n)):
        folder = PACKAGE.parent / SAVED
        parts += [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _tree(path: Path) -> ast.Module:
    return _parsed(_source(path))


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def _plain_text(source: str) -> str:
    return _plain(_parsed(source))


def _plain(node) -> str:
    """A piece of code as text, the same in every version of Python."""
    if isinstance(node, ast.Raise):
        return "raise"
    if isinstance(node, ast.AST):
        without = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}
        fields = {k: _plain(v) for k, v in ast.iter_fields(node) if k not in without}
        inside = ",".join(f"{k}={v}" for k, v in fields.items() if v not in ("None", "[]"))
        return f"{type(node).__name__}({inside})"
    if isinstance(node, list):
        lines = (one for one in node if not (isinstance(one, ast.Expr) and _is_text(one.value)))
        return f"[{';'.join(map(_plain, lines))}]"
    return repr(node)


def _is_text(node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _used(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The statements of a file that a function uses, directly or through others, in their order.

    A statement that defines no name is always used. How claims are declared is left out.
    """
    statements = []
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            statements += [ast.Import([alias]) for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            module, level = statement.module, statement.level
            statements += [ast.ImportFrom(module, [alias], level) for alias in statement.names]
        elif isinstance(statement, ast.FunctionDef):
            kept = [d for d in statement.decorator_list if not _is_claim(d)]
            fields = dict(ast.iter_fields(statement)) | {"decorator_list": kept}
            statements.append(ast.FunctionDef(**fields))
        elif not (isinstance(statement, ast.Expr) and _is_text(statement.value)):
            statements.append(statement)
    used = {i for i, statement in enumerate(statements) if not _defined(statement)}
    names = {name}.union(*(_names(statements[i]) for i in used))
    grown = True
    while grown:
        more = {i for i, one in enumerate(statements) if _defined(one) & names} - used
        names = names.union(*(_names(statements[i]) for i in more))
        used, grown = used | more, bool(more)
    return [statements[i] for i in sorted(used)]


def _is_claim(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and _chain(decorator.func)[-1:] == ["claim"]


def _chain(node: ast.expr) -> list[str]:
    """The names a, b, c of an expression ``a.b.c``; an empty list for any other."""
    match node:
        case ast.Name(name):
            return [name]
        case ast.Attribute(value, name):
            before = _chain(value)
            return [*before, name] if before else []
    return []


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _defined(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.Import([alias]) | ast.ImportFrom(_, [alias]):
            return {alias.asname or alias.name.partition(".")[0]}
        case ast.FunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Assign():
            return set().union(*map(_names, statement.targets))
        case ast.AnnAssign():
            return _names(statement.target)
    return set()


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(nodes: Iterable[ast.AST], module: str | None) -> set[str]:
    """The modules of this package that code imports; ``module`` is the name of the code's own."""
    found, roots, chains, all_ = set(), set(), [], [n for one in nodes for n in ast.walk(one)]
    shorter = {id(node.value) for node in all_ if isinstance(node, ast.Attribute)}
    for node in all_:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == "vaelab":
                    found.add(_found(rest))
                    roots |= {alias.asname or first} if not (rest and alias.asname) else set()
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                inside = module.split(".")[1:]
                levels = node.level - (_file(module).name == "__init__.py")
                base = ["vaelab", *inside[: len(inside) - levels], *base]
            if base[:1] == ["vaelab"]:
                found |= {_found([*base[1:], alias.name]) for alias in node.names}
        elif isinstance(node, ast.Attribute) and id(node) not in shorter:
            chains.append(_chain(node))
    return found | {_found(chain[1:]) for chain in chains if chain[:1] and chain[0] in roots}


def _found(names: list[str]) -> str:
    """The module in which ``vaelab.a.b`` is defined, even if packages hand it on."""
    module = "vaelab"
    for name in names:
        folder = _file(module).parent
        if _file(module).name != "__init__.py":
            break  # what follows is defined in the module
        if (folder / name).is_dir() or (folder / f"{name}.py").exists():
            module = f"{module}.{name}"
            continue
        for node in _tree(_file(module)).body:
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                inside = [*module.split(".")[1:], *(node.module or "").split(".")]
                return _found([*filter(None, inside), name])
        break
    return module
