"""Pages with the evidence of each lesson: claims, every seed's numbers, and the code."""

import ast
import math
from pathlib import Path

from vaelab.teaching.experiments import read_results

FIRST = """# Evidence

What a lesson says about data rests on an experiment with at least five seeds. Each of its claims has a
name, such as E04.sigma, and a condition that the numbers must meet. Here are all {n} claims, and
behind each name the numbers of every seed and the code that computed them. `vaelab evidence 04` repeats
the experiments of a lesson.

```{{toctree}}
:hidden:

{pages}
```
"""
LESSON = """# Evidence of lesson {lesson}

`vaelab evidence {lesson}` runs this again. The code of a claim is given below it; what it calls stands in
the [whole file]({file}).
"""


def anchor(claim: str) -> str:
    """The anchor that the site gives to the heading of a claim."""
    return claim.lower().replace(".", "")


def write(folder: Path, out: Path) -> None:
    """A page for each lesson of ``folder``, and one with all claims."""
    out.mkdir(parents=True, exist_ok=True)
    rows, files = [], sorted(folder.glob("[0-9]*.json"))
    for file in files:
        claims, source = read_results(file), file.with_suffix(".py")
        (out / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        text = LESSON.format(lesson=file.name[:2], file=source.name)
        text += "".join(_section(name, claim, source) for name, claim in claims.items())
        (out / f"{file.stem}.md").write_text(text, encoding="utf-8")
        rows += [
            f"| [{name}]({file.stem}.md#{anchor(name)}) | {_plain(claim['sentence'])} |"
            for name, claim in claims.items()
        ]
    first = FIRST.format(n=len(rows), pages="\n".join(file.stem for file in files))
    table = "\n".join(["| name | claim |", "|---|---|", *rows, ""])
    (out / "index.md").write_text(f"{first}\n{table}", encoding="utf-8")


def _section(name: str, claim: dict, source: Path) -> str:
    verdict = "Holds" if claim["holds"] else "Does not hold"
    seeds, numbers = claim["seeds"], claim["numbers"]
    head = ["seed", *map(str, seeds), "mean", "sd"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for what, values in numbers.items():
        cells = [*values, claim["mean"][what], claim["sd"][what]]
        lines.append(f"| {_plain(what)} | {' | '.join(map(_number, cells))} |")
    first, code = _code(name, source)
    seconds, versions = sum(claim["seconds"]), claim["versions"]
    made = ", ".join(f"{package} {version}" for package, version in versions.items())
    conditions = "".join(f"- {_plain(each)}\n" for each in claim["condition"].split("; "))
    return "\n".join([
        f"\n## {name}\n", f"{_plain(claim['sentence'])}\n", f"{verdict}:\n\n{conditions}", *lines,
        f"\n{seconds:.0f} seconds of one processor core, with {made}.\n",
        f"```{{code-block}} python\n:lineno-start: {first}\n\n{code}\n```\n",
    ])  # fmt: skip


def _code(name: str, source: Path) -> tuple[int, str]:
    """The number of the first line of a claim's function, and its source."""
    text = source.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        for call in getattr(node, "decorator_list", ()):
            if [getattr(word, "value", None) for word in getattr(call, "args", ())][:1] == [name]:
                lines = text.splitlines()[call.lineno - 1 : node.end_lineno]
                return call.lineno, "\n".join(lines)
    raise LookupError(f"{source.name} has no claim {name}.")


def _number(value: float) -> str:
    return "none" if value is None or math.isnan(value) else f"{value:.4g}".replace("-", "−")


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for sign in "|*_<$`":
        text = text.replace(sign, f"\\{sign}")
    return text
