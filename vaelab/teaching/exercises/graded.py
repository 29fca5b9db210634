"""``vaelab.teaching.exercises`` for submissions: it records outcomes and judges nothing.

The grader puts this file in the place of ``__init__.py`` in the package that a submission runs
with. The other files of the folder, which know the right answers, stay outside.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import numpy as np

from .calls import Outcome, apply

__all__ = ["check", "pack", "solution", "unpack"]


def check(name: str, answer) -> None:
    """Record an answer's outcomes, for the inputs that learners see and for the hidden ones."""
    here = Path(os.environ["VAELAB_GRADING"])
    exercise = json.loads((here / f"{name}.inputs").read_text())
    outcomes = {}
    for kind in ("seen", "hidden"):
        outcomes[kind] = []
        for case in exercise[kind]:
            case = {key: unpack(value) for key, value in case.items()}
            try:
                how = (exercise[key] for key in ("call", "seconds", "returns"))
                outcome = apply(answer, case, *how)
            except KeyboardInterrupt:
                outcome = Outcome("endless", message="the time limit of a cell")
            except BaseException as error:  # exit() is not an Exception
                outcome = Outcome("raised", message=type(error).__name__)
            value, form, reached = pack(outcome.value), list(outcome.form), list(outcome.reached)
            outcomes[kind].append([outcome.kind, value, outcome.message, form, reached])
            if outcome.kind != "value":
                break
        if outcomes[kind][-1:] and outcomes[kind][-1][0] == "endless":
            break
    partial = here / f"{name}.partial"
    partial.write_text(json.dumps(outcomes))
    partial.replace(here / f"{name}.outcomes")
    print(f"{name}: recorded")


def pack(value):
    """Turn arrays, numbers, words and tuples of these into what JSON can hold."""
    if isinstance(value, tuple):
        return {"tuple": [pack(part) for part in value]}
    if isinstance(value, np.ndarray):
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "content": content}
    if isinstance(value, np.generic):
        return {"scalar": pack(np.asarray(value))}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(
        f"Expected an array, a number, a word or a tuple of these; got {type(value).__name__}."
    )


def unpack(data, depth: int = 0):
    """Undo :func:`pack`.

    Raises
    ------
    ValueError
        The data are something else. Submissions wrote them, so they may be anything.
    """
    if data is None or isinstance(data, (str, bool, int, float)):
        return data
    if not isinstance(data, dict) or depth > 4:
        raise ValueError("not an outcome")
    if isinstance(data.get("tuple"), list):
        return tuple(unpack(part, depth + 1) for part in data["tuple"])
    if "scalar" in data:
        return unpack(data["scalar"], depth + 1)[()]
    dtype, shape = str(data.get("dtype")), data.get("shape")
    if not re.fullmatch(r"[<>=|][biufU]\d{1,4}", dtype) or not isinstance(shape, list):
        raise ValueError("not an array of numbers or words")
    content = base64.b64decode(str(data.get("content")))
    return np.frombuffer(content, dtype=dtype).reshape([int(n) for n in shape]).copy()


def solution(name: str) -> None:
    """No model solution is shown, nor is there one, where an answer is graded."""
