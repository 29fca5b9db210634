"""The site, for Sphinx: `make site` writes it to build/site/html. It asks nothing of the network."""

import inspect
import re
from importlib import metadata
from pathlib import Path

from sphinx.util.fileutil import copy_asset

import vaelab
from vaelab.teaching import online

REPOSITORY = online.repository(Path(vaelab.__file__).parents[1])  # if empty, nothing links to it

project, author = "vaelab", "the authors of vaelab"
release = metadata.version("vaelab")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
suppress_warnings = ["mystnb.unknown_mime_type", "config.cache"]

nb_execution_mode = "off"  # the committed notebooks hold every output
nb_merge_streams = True
nb_ipywidgets_js = {}  # else two scripts come from the network
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings say them
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
viewcode_line_numbers = True

html_theme = "sphinx_book_theme"
html_title = "vaelab"
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = html_show_sourcelink = False
mathjax_path = "mathjax/tex-chtml.js"
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_repository_button": bool(REPOSITORY),
    "use_download_button": False,
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    # one search box, not two
    "navbar_start": [], "navbar_center": [], "navbar_end": [], "navbar_persistent": [],
}  # fmt: skip


def copy_mathjax(app, error) -> None:
    """Of MathJax, what the pages need: 2 MB of 24."""
    if error:
        return
    for file in metadata.files("sphinx-mathjax-offline"):
        _, _, name = str(file).partition("static/mathjax/")
        if name == mathjax_path.removeprefix("mathjax/") or name.startswith("output/chtml/fonts"):
            folder = (app.outdir / "_static" / "mathjax" / name).parent
            folder.mkdir(parents=True, exist_ok=True)
            copy_asset(file.locate(), folder)


def leave_out_icons(app, error) -> None:
    """The theme brings 2,000 icons, 1.5 MB for each page: keep those that the pages show."""
    script = app.outdir / "_static" / "scripts" / "fontawesome.js"
    if error or not script.exists():
        return
    pages = "".join(path.read_text(encoding="utf-8") for path in app.outdir.rglob("*.html"))
    shown = set(re.findall(r"\bfa-([a-z-]+)", pages))
    entry = r'"?([\w-]+)"?:\[\d+,\d+,\[[^]]*\],"[0-9a-f]*",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?'
    text = script.read_text(encoding="utf-8")
    script.write_text(
        re.sub(entry, lambda icon: icon[0] if icon[1] in shown else "", text), encoding="utf-8"
    )


def signature(app, what, name, object_, options, arguments, returns):
    """A model's own arguments; its class takes any, to remember them."""
    if what == "class" and "__init__" in vars(object_):
        own = [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in inspect.signature(object_.__init__).parameters.values()
        ]
        return str(inspect.Signature(own[1:])), returns
    return arguments, returns


def keep_lines(app, what, name, object_, options, lines) -> None:
    """Show an indented block of equations as it was written, and |LFC| as an absolute value."""
    lines[:] = [re.sub(r"(?<!`)\|(\w+)\|", r"\|\1\|", line) for line in lines]
    for n in range(len(lines) - 1, 1, -1):
        above = next((line for line in lines[n - 2 :: -1] if line.strip()), " ")
        if lines[n].startswith("    ") and not lines[n - 1].strip() and above[0] not in " -=":
            lines[n:n] = [] if above.endswith("::") else ["::", ""]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", keep_lines, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", leave_out_icons)
