"""Write the sources of the site: lessons with folded solutions, pictures as files, an API page.

python course/site/prepare.py build/site/source
"""

import base64
import html
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import proofs
import terms

from vaelab.teaching import map, online

HERE = Path(__file__).parent
COURSE = HERE.parent
ROOT = COURSE.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
MARKS = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION[ \t]*\n?", re.M)
EMBEDDED = re.compile(r'<img ([^>]*?)src="data:image/(png|gif);base64,([^"]+)"([^>]*)>')
LINK = re.compile(r"\[([^]]*)\]\(([^)\s]+)\)")

# Modules whose public names the reference shows, by room.
# fmt: off
ROOMS = {
    "The mathematics": ("distributions", "likelihoods", "bounds", "reparametrization", "networks"),
    "The data": ("cells", "datasets", "preprocessing", "simulate"),
    "The models": (
        "models.trainable", "models.base", "models.autoencoder", "models.vae", "models.gmvae",
        "models.scvi", "models.scanvi",
    ),
    "Use": (
        "training", "history", "metrics", "baselines", "differential_expression", "plotting",
        "interop",
    ),
    "The course's tools": ("teaching.exercises", "teaching.evidence"),
}
# fmt: on


def lesson(path: Path, out: Path) -> dict:
    """Write one lesson. Returns its title and its time."""
    notebook = nbformat.read(path, as_version=4)
    drawn = 0
    for n, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(
                lambda link: f"[{link[1]}]({_moved(*link.groups())})", cell.source
            )
            continue
        if MARKS.search(cell.source):
            cell.source = MARKS.sub("", cell.source)
            cell.metadata["tags"] = [*cell.metadata.get("tags", ()), "hide-input"]
        for i, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if WIDGET in data:
                moving = COURSE / "site" / "static" / "widgets" / f"{path.stem}_{drawn}"
                drawn += 1
                page = _moving(moving) if moving.is_dir() else data["text/html"]
                output["data"] = data = {"text/html": page, "text/plain": ""}
            if "text/html" in data:
                data["text/html"] = EMBEDDED.sub(
                    lambda found, name=f"{path.stem}_{n}_{i}": _as_file(found, name, out),
                    "".join(data["text/html"]),
                )
    if opens := online.links(online.repository(ROOT), path.stem):
        also = " or ".join(f"[on {service}]({link})" for service, link in opens.items())
        notebook.cells[
            0
        ].source += f"\n\nYou can do the exercises here, without installing: {also}."
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, out / "course" / path.name)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = re.search(r"^# (.+)$", text, re.M)[1]
    time = re.search(r"\*\*Time:?\*\*:?\s*(.+?)(?:\n\n|\*\*Data|$)", text, re.S)
    return {"name": path.stem, "title": title, "time": " ".join(time[1].split()) if time else ""}


def _moved(words: str, link: str) -> str:
    """The address of a link of a lesson, as it holds on the site."""
    if link.startswith("evidence/") and link.endswith(".py"):
        return f"{link.removesuffix('.py')}.md#{proofs.anchor(words)}"
    return "../index.md" if link.partition("#")[0] == "../README.md" else link


def _as_file(found: re.Match, name: str, out: Path) -> str:
    """An embedded picture as a file of its own, which loads when it comes into view."""
    before, kind, data, after = found.groups()
    pictures = out / "static" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    file = f"{name}_{len(list(pictures.glob(f'{name}_*')))}.{kind}"
    (pictures / file).write_bytes(base64.b64decode(data))
    return f'<img {before}src="../_static/pictures/{file}" loading="lazy"{after}>'


def _moving(folder: Path) -> str:
    """A widget whose every position is a picture."""
    about = json.loads((folder / "widget.json").read_text())
    where = f"../_static/widgets/{folder.name}/"
    rows, start = [], []
    for control in about["controls"]:
        words, at = control["words"], control["start"]
        start.append(str(at))
        name = html.escape(control["name"])
        data = f'data-name="{name}" data-words="{html.escape(json.dumps(words))}"'
        if control["slides"]:
            last = len(words) - 1
            element = f'<input type="range" min="0" max="{last}" value="{at}" step="1" {data}>'
            element += f"<output>{html.escape(words[at])}</output>"
        else:
            options = "".join(
                f'<option value="{i}"{" selected" * (i == at)}>{html.escape(word)}</option>'
                for i, word in enumerate(words)
            )
            element = f"<select {data}>{options}</select>"
        rows.append(f"<label>{name} {element}</label>")
    picture = f'<img alt="{html.escape(about["alt"])}" src="{where}{"-".join(start)}.webp" '
    picture += 'width="760" loading="lazy">'
    return f'<div class="moves" data-folder="{where}">{"".join(rows)}{picture}</div>'


def reference(out: Path) -> None:
    """Pages of the package, from its docstrings."""
    page = ["# The package", "", "```{toctree}", ":maxdepth: 1", ""]
    for modules in ROOMS.values():
        page += [module.split(".")[-1] for module in modules]
    (out / "package").mkdir(parents=True)
    (out / "package" / "index.md").write_text("\n".join([*page, "```", ""]))
    for room, modules in ROOMS.items():
        for module in modules:
            name = module.split(".")[-1]
            lines = [f"# {name}", "", f"*{room}.*", "", "```{eval-rst}"]
            lines += [f".. automodule:: vaelab.{module}", "   :members:", "   :show-inheritance:"]
            (out / "package" / f"{name}.md").write_text("\n".join([*lines, "```", ""]))


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    (out / "course").mkdir(parents=True)
    shutil.copytree(COURSE / "figures", out / "course" / "figures")
    proofs.write(COURSE / "evidence", out / "course" / "evidence")
    shutil.copytree(HERE / "static", out / "static")
    shutil.copy(HERE / "conf.py", out)
    lessons = [lesson(path, out) for path in sorted(COURSE.glob("[0-9]*.ipynb"))]
    rows = [f"| [{row['title']}](course/{row['name']}.ipynb) | {row['time']} |" for row in lessons]
    for page in HERE.glob("*.md"):
        text = page.read_text().replace("{lessons}", "\n".join(rows))
        text = text.replace("{map_alt}", map.alt())
        names = "\n".join(f"course/{row['name']}" for row in lessons)
        (out / page.name).write_text(text.replace("{names}", names))
    (out / "terms.md").write_text(terms.page())
    reference(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
