"""The README's picture, cut from the executed lesson 06: python tests/readme_picture.py"""

import base64
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "course" / "figures" / "pancreas.png"


def picture() -> bytes:
    """The map of cells that lesson 06 draws, as PNG."""
    lesson = nbformat.read(ROOT / "course" / "06_pancreas.ipynb", as_version=4)
    (cell,) = [cell for cell in lesson.cells if "in the VAE's latent space" in cell.source]
    data = cell.outputs[0].data  # by plotting.show, or by IPython
    found = re.search('src="data:image/png;base64,([^"]+)"', data.get("text/html", ""))
    return base64.b64decode(found[1] if found else data["image/png"])


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture())
