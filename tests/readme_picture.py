"""The README's pictures, the executed lesson 06's map of cells and the map of the course:
python tests/readme_picture.py
"""

import base64
import io
import re
from pathlib import Path

import matplotlib
import nbformat

from vaelab.teaching import map

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "course" / "figures" / "pancreas.png"
MAP = ROOT / "course" / "figures" / "map.svg"


def picture() -> bytes:
    """The map of cells that lesson 06 draws, as PNG."""
    lesson = nbformat.read(ROOT / "course" / "06_pancreas.ipynb", as_version=4)
    (cell,) = [cell for cell in lesson.cells if "in the VAE's latent space" in cell.source]
    data = cell.outputs[0].data  # by plotting.show, or by IPython
    found = re.search('src="data:image/png;base64,([^"]+)"', data.get("text/html", ""))
    return base64.b64decode(found[1] if found else data["image/png"])


def map_of_the_course() -> bytes:
    """The map as SVG, whose text stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "map"}):
        map.draw().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


if __name__ == "__main__":
    matplotlib.use("Agg")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture())
    MAP.write_bytes(map_of_the_course())
