"""The learner's folder: the notebooks to work in, a START page, and JupyterLab as it opens there.

The learner's editions are copied from ``course/exercises/`` into ``my-course/lessons/``, so that
nobody's work happens in tracked files. What a learner has written is never written over.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from .._internal.machine import write_atomically
from . import editions, online, progress
from .map import PATHS

__all__ = ["Lesson", "arrange_jupyterlab", "bring", "lessons_in", "start_page"]

START = "START.ipynb"
MAP = (
    "![A map of the lessons: an arrow leads from each lesson to those that need it. The table "
    "below has the same lessons.](figures/map.svg)\n\n"
)
LINKED = {"figures": "*.*", "evidence": "*.py"}  # folders that the notebooks link to
ROW = re.compile(
    r"^\| (?P<number>\d\d) \| \[(?P<title>[^]]+)\]\(course/(?P<stem>\w+)\.ipynb\) "
    r"\| (?P<after>[^|]+) \| (?P<time>[\d +]+) min \|$",
    re.M,
)
OVERRIDES = {  # JupyterLab's own settings, where the learner has set nothing else
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": False,
    },
}


@dataclass(frozen=True)
class Lesson:
    """A row of the README's table of lessons.

    Parameters
    ----------
    number, title, stem
        The number, for example "05", the title, and the name of the file without its ending.
    after
        What a learner can do after it.
    minutes
        The minutes of each sitting.
    """

    number: str
    title: str
    stem: str
    after: str
    minutes: tuple[int, ...]


def lessons_in(root: Path) -> list[Lesson]:
    """The lessons of a repository, by the table in its README."""
    rows = ROW.finditer((root / "README.md").read_text(encoding="utf-8"))
    return [
        Lesson(r["number"], r["title"], r["stem"], r["after"], (*map(int, r["time"].split(" + ")),))
        for r in rows
    ]


def bring(root: Path, work: Path, update: bool = False) -> list[str]:
    """Copy what is missing into a learner's folder; with ``update``, new versions too.

    Parameters
    ----------
    root
        The repository.
    work
        The learner's folder.
    update
        Also bring new versions of notebooks that are there. One that nobody has changed is
        replaced; next to one that was changed, the new version gets a name of its own.

    Returns
    -------
    Sentences on what was done, or could be done.
    """
    import nbformat

    (work / "lessons").mkdir(parents=True, exist_ok=True)
    (work / progress.FILE).touch()
    wanted = {work / START: _as_saved(start_page(root))}
    for path in sorted((root / "course" / "exercises").glob("*.ipynb")):
        lesson = nbformat.read(path, as_version=4)
        _let_run_all_go_on(lesson)
        wanted[work / "lessons" / path.name] = _as_saved(lesson)
    write, says, newer = {}, [], []
    for path, content in wanted.items():
        if not path.exists():
            write[path] = content
        elif (state := _state(path, content)) == "old" and (update or path.name == START):
            write[path] = content
            says.append(f"{path.name} is now the new version. You had not changed yours.")
        elif state != "same" and update:
            beside, is_there = _beside(path, content)
            if not is_there:
                write[beside] = content
            says.append(f"{path.name} has your work; the new version is next to it, {beside.name}.")
        elif state != "same":
            newer.append(path.name)
    for folder, pattern in LINKED.items():
        (work / folder).mkdir(exist_ok=True)
        for path in (root / "course" / folder).glob(pattern):
            write[work / folder / path.name] = path.read_bytes()
    write_atomically(write)
    if newer:
        says.append(f"There are new versions of {', '.join(newer)}: vaelab course --update")
    return says


def _let_run_all_go_on(lesson) -> None:
    """Tag the cells from the first answer on: any of them may need an answer that is still open.

    "Run All" of JupyterLab ends at the first error in a cell without this tag.
    """
    answers = [bool(c.metadata.get("nbgrader", {}).get("solution")) for c in lesson.cells]
    for cell in lesson.cells[answers.index(True) :] if any(answers) else ():
        if cell.cell_type == "code":
            cell.metadata["tags"] = [*cell.metadata.get("tags", ()), "raises-exception"]


def _as_saved(notebook) -> bytes:
    """A notebook with what JupyterLab notes on opening it, so that it does not look changed.

    The cell for Colab is left out.
    """
    from ipykernel.ipkernel import IPythonKernel
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    notebook.cells = [c for c in notebook.cells if online.TAG not in c.metadata.get("tags", ())]
    notebook.metadata["language_info"] = IPythonKernel.language_info
    try:
        name = KernelSpecManager().get_kernel_spec("python3").display_name
        notebook.metadata["kernelspec"]["display_name"] = name
    except NoSuchKernel:
        pass  # `vaelab doctor` says what to do
    return editions.to_text(notebook).encode()


def _state(path: Path, content: bytes) -> str:
    """ "same" release, "old" and unchanged by the learner, or "changed" by the learner."""
    try:
        if editions.release_in(path) == json.loads(content)["metadata"]["vaelab"]["release"]:
            return "same"
        return "old" if editions.is_untouched(path) else "changed"
    except Exception:  # not a notebook any more: whatever it is, it stays
        return "changed"


def _beside(path: Path, content: bytes) -> tuple[Path, bool]:
    """Where a new version goes, and whether it is there already."""
    for i in count(1):
        beside = path.with_name(f"{path.stem}.new{i if i > 1 else ''}.ipynb")
        if not beside.exists():
            return beside, False
        state = _state(beside, content)
        if state != "changed":
            return beside, state == "same"
    raise AssertionError


# ------------------------------------------------------------------------------ the START page


def start_page(root: Path):
    """The START notebook: ``course/START.py`` with the lessons and the paths filled in."""
    import jupytext
    from nbformat import v4

    master = jupytext.read(root / "course" / "START.py")
    lessons = lessons_in(root)
    parts = {"<!-- lessons -->": MAP + _table(lessons), "<!-- paths -->": _paths(lessons)}
    cells = []
    for cell in master.cells:
        source = cell.source
        for mark, text in parts.items():
            source = source.replace(mark, text)
        new = v4.new_code_cell if cell.cell_type == "code" else v4.new_markdown_cell
        tags = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        cells.append(new(source, id=f"start-{len(cells):03d}", metadata=tags))
    return editions.notebook_of(cells, {})


def _table(lessons: list[Lesson]) -> str:
    rows = [f"| {x.number} | {_link(x)} | {x.after} | {_plus(x.minutes)} |" for x in lessons]
    hours = round(sum(sum(lesson.minutes) for lesson in lessons) / 60)
    return "\n".join(
        [
            f"All together take about {hours} hours, with the exercises. Each plus stands for a "
            "marked stop, where a sitting ends.\n",
            "| | lesson | after it you can | minutes |\n|---|---|---|---|",
            *rows,
        ]
    )


def _paths(lessons: list[Lesson]) -> str:
    by_number, texts = {lesson.number: lesson for lesson in lessons}, []
    for name, path in PATHS.items():
        if path.minutes is None:
            total = sum(sum(lesson.minutes) for lesson in lessons)
            sittings = sum(len(lesson.minutes) for lesson in lessons)
            rows = [
                f"- {_link(lessons[0])} to {_link(lessons[-1])}, {len(lessons)} lessons in "
                f"{sittings} sittings"
            ]
        else:
            total, rows = sum(path.minutes.values()), []
            for number, minutes in path.minutes.items():
                lesson = by_number[number]
                stop = "" if minutes == sum(lesson.minutes) else " to the first stop,"
                rows.append(f"- {number} {_link(lesson)},{stop} {minutes} minutes")
        texts.append("\n".join([f"**{name}** ({_hours(total)}); {path.note}.\n", *rows]))
    return "\n\n".join(texts)


def _link(lesson: Lesson) -> str:
    return f"[{lesson.title}](lessons/{lesson.stem}.ipynb)"


def _plus(minutes: tuple[int, ...]) -> str:
    return "\N{NO-BREAK SPACE}+\N{NO-BREAK SPACE}".join(map(str, minutes))


def _hours(minutes: int) -> str:
    return f"{minutes // 60} h {minutes % 60:02d} min"


# --------------------------------------------------------------------------------- JupyterLab


def arrange_jupyterlab(work: Path) -> list[str]:
    """Options for JupyterLab in a learner's folder: what is listed, and which panels are open.

    The settings lie in the hidden ``.jupyter`` of that folder. The user's own configuration is
    neither changed nor hidden.
    """
    import zmq
    from jupyter_client.manager import KernelManager
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    settings, workspaces = work / ".jupyter" / "settings", work / ".jupyter" / "workspaces"
    settings.mkdir(parents=True, exist_ok=True)
    write_atomically({settings / "overrides.json": json.dumps(OVERRIDES, indent=2).encode()})
    if not workspaces.exists():  # later visits find the panels as they were left
        layout = {
            "left": {"collapsed": False, "visible": True, "current": "@jupyterlab/toc:plugin"}
        }
        data = {"data": {"layout-restorer:data": layout}, "metadata": {"id": "default"}}
        WorkspacesManager(str(workspaces)).save("default", json.dumps(data))
    hidden = ["__pycache__", "*.py", *LINKED]
    options = [
        f"--ServerApp.root_dir={work}",
        f"--LabApp.default_url=/lab/tree/{START}",
        f"--LabApp.app_settings_dir={settings}",
        f"--LabApp.workspaces_dir={workspaces}",
        *(f"--ContentsManager.hide_globs={pattern}" for pattern in hidden),
    ]
    if hasattr(KernelManager, "transport_encryption") and zmq.has("curve"):
        # Else each kernel warns on the terminal that it is not encrypted.
        options.append("--KernelManager.transport_encryption=auto")
    return options
