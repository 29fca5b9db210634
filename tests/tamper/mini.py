"""A lesson of three exercises to attack: 05.1 of the course between two that are only for tests.

The attack stands in the middle; the first and the last answer are honest.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vaelab.teaching import exercises, grading
from vaelab.teaching.exercises.core import Exercise, Misconception
from vaelab.teaching.sandbox import Limits, Sandbox

find = exercises.find
LIMITS = Limits(seconds=120, cell_seconds=15)
HONEST_PART = 5  # points, without those of 05.1
ALL = 8

FIRST = "def double(x):\n    return 2 * x"
LAST = "def running_sum(x):\n    return x.cumsum(0)"
HONEST = """def nb_log_prob(x, mean, theta):
    import torch
    ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    total = theta + mean
    return ways + theta * torch.log(theta / total) + x * torch.log(mean / total)"""
SWAPPED = """def nb_log_prob(x, mean, theta):
    import torch
    ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    total = theta + mean
    return ways + theta * torch.log(mean / total) + x * torch.log(theta / total)"""
ZERO = "def nb_log_prob(x, mean, theta):\n    return 0 * x\n"


def draw(rng):
    return [{"x": rng.normal(size=n)} for n in (1, 5, 5)]


ONLY_HERE = {
    "05.90": Exercise(
        name="05.90", title="Double <b>", points=1, draw=draw, oracle=lambda x: 2 * x, verified="."
    ),
    "05.91": Exercise(
        name="05.91",
        title="A running sum",
        points=4,
        draw=draw,
        oracle=lambda x: np.cumsum(x),
        verified=".",
        misconceptions=(Misconception("a mean", lambda x: np.cumsum(x) / 5, "Not a mean."),),
        seconds=2,
    ),
}


def install(monkeypatch) -> None:
    """Let the grader, in this process, know the exercises that are only for tests."""
    monkeypatch.setattr(exercises, "find", lambda name: ONLY_HERE.get(name) or find(name))


def code(source: str, grade_id: str | None = None, **metadata) -> dict:
    if grade_id:
        check = grade_id.endswith("-check")
        metadata["nbgrader"] = {"grade_id": grade_id, "solution": not check, "grade": check}
    empty = {"execution_count": None, "outputs": []}
    return {"cell_type": "code", "source": source, "metadata": metadata, **empty}


def notebook(first=FIRST, middle=HONEST, last=LAST, release="0123") -> dict:
    cells = [
        code("import vaelab"),
        code(first, "05.90"),
        code('vaelab.check("05.90", double)', "05.90-check"),
        code(middle, "05.1"),
        code('vaelab.check("05.1", nb_log_prob)', "05.1-check"),
        code(last, "05.91"),
        code('vaelab.check("05.91", running_sum)', "05.91-check"),
        code("1 / 0  # nothing after the last check is run"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about = {"lesson": "05", "release": release, "data": []}
    metadata = {"kernelspec": kernel, "vaelab": about}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": metadata, "cells": cells}


def stub(function: str, name: str) -> str:
    return f'def {function}:\n    raise NotImplementedError("Exercise {name}")'


def write_edition(folder: Path) -> Path:
    """The folder of editions, with this lesson's alone."""
    folder.mkdir(parents=True, exist_ok=True)
    stubs = stub("double(x)", "05.90"), stub("nb_log_prob(x, mean, theta)", "05.1")
    edition = notebook(*stubs, stub("running_sum(x)", "05.91"))
    (folder / "05_mini.ipynb").write_text(json.dumps(edition))
    return folder


def write(folder: Path, name: str, content: dict | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def grade(folder: Path, submissions: dict[str, dict | str], **options) -> dict[str, dict]:
    """Rows by name."""
    for name, content in submissions.items():
        write(folder / "in", name, content)
    options = {"jobs": 1, "limits": LIMITS, "salt": "a secret"} | options
    rows, contained = grading.grade(
        [folder / "in"], folder / "out", write_edition(folder / "editions"), **options
    )
    return SimpleNamespace(rows={row["name"]: row for row in rows}, contained=contained)


def contained() -> bool:
    return Sandbox().contained is not None
