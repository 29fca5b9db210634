"""The course on other people's machines: links to Colab and Binder, and Colab's first cell.

They need the address of the repository, which ``pyproject.toml`` may give. Without it, nothing here
is shown.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

__all__ = ["TAG", "colab_cell", "links", "repository"]

TAG = "colab"  # of the cell that installs the course on Colab
CELL = """\
# @title On Colab, run this cell first: it installs the course. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    course = "/content/vaelab"
    if not os.path.exists(course):
        subprocess.run(["git", "clone", "--quiet", "--depth=1", "{url}", course], check=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--editable", course + "[course]"], check=True)
        sys.path.insert(0, course)  # a kernel that runs already does not see the installed path
    os.chdir(course + "/course/exercises")"""


def repository(root: Path) -> str:
    """The address in a repository's ``pyproject.toml``; "" if there is none.

    Raises
    ------
    ValueError
        The address is not of the form "https://github.com/owner/name".
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    url = project.get("urls", {}).get("Repository", "")
    if url and (not url.startswith("https://github.com/") or url.strip("/").count("/") != 4):
        raise ValueError(
            f"Repository in pyproject.toml is {url!r}; it must be https://github.com/owner/name."
        )
    return url.rstrip("/")


def links(url: str, edition: str) -> dict[str, str]:
    """Where a learner's edition opens, by service; none without an address.

    Parameters
    ----------
    url
        What ``repository`` gives.
    edition
        Name of the edition, such as "05_count_likelihoods".
    """
    if not url:
        return {}
    name, path = url.removeprefix("https://github.com/"), f"course/exercises/{edition}.ipynb"
    return {
        "Colab": f"https://colab.research.google.com/github/{name}/blob/main/{path}",
        "Binder": f"https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/{path}",
    }


def colab_cell(url: str):
    """The first code cell of an edition: it installs the course on Colab, and only there."""
    from nbformat import v4

    metadata = {"cellView": "form", "tags": [TAG]}  # Colab shows the title alone
    return v4.new_code_cell(CELL.format(url=url), id="colab", metadata=metadata)
