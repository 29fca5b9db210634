"""The site as a reader sees it: opened from the disk, in a browser, without a network.

It needs the packages of ``.[site]`` and a Chromium; `make site` installs the first.
"""

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from vaelab.teaching import map
from vaelab.teaching.experiments import read_results

pytest.importorskip("myst_nb")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

ROOT = Path(__file__).parents[2]
LESSONS = [path.stem for path in sorted((ROOT / "course").glob("[0-9]*.ipynb"))]
PAGES = ["index", "equations", "terms", "glossary", "package/index", "package/scvi"]
PAGES += ["course/evidence/index", "course/evidence/08_gmvae_pbmc"]
PAGES += [f"course/{name}" for name in LESSONS]
AA = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
LARGEST = 4e6  # bytes, MathJax and the theme among them


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built anew."""
    out = tmp_path_factory.mktemp("site")
    prepare = [sys.executable, str(ROOT / "course" / "site" / "prepare.py"), str(out / "source")]
    subprocess.run(prepare, check=True, cwd=ROOT)
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html"]
    subprocess.run([*build, str(out / "source"), str(out / "html")], check=True, cwd=ROOT)
    return out / "html"


@pytest.fixture(params=["light"])
def page(browser, request):
    context = browser.new_context(color_scheme=request.param, offline=True)
    page = context.new_page()
    page.said = []
    page.on(
        "console",
        lambda message: page.said.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


def opened(page, site, name: str):
    page.goto((site / f"{name}.html").as_uri())
    page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
    page.evaluate("window.MathJax ? MathJax.startup.promise.then(() => true) : true")
    return page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_network(page, site, name):
    opened(page, site, name)
    assert not page.said
    assert not [url for url in page.asked if not url.startswith(("file:", "data:"))]
    typeset, wrong = page.locator("mjx-container"), page.locator("mjx-merror")
    formulas = page.locator(".math").count()
    assert typeset.count() >= formulas
    assert wrong.count() == 0


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_a_page_has_no_barrier_of_level_a_or_aa(page, site, name, request):
    if "dark" in request.node.name and name.startswith("course/") and name[7:9] not in ("05", "12"):
        pytest.skip("the same styles as in the two lessons that are looked at in the dark")
    found = axe.Axe().run(opened(page, site, name), options=AA).response["violations"]
    assert not [(each["id"], each["nodes"][0]["html"][:200]) for each in found]


@pytest.mark.parametrize("name", LESSONS)
def test_a_page_is_light(page, site, name):
    """What opening it loads; pictures further down load when they come near."""
    opened(page, site, f"course/{name}")
    files = {unquote(urlsplit(url).path) for url in page.asked if url.startswith("file:")}
    assert len(files) > 5
    assert sum(Path(file).stat().st_size for file in files) < LARGEST


@pytest.mark.parametrize("name", LESSONS)
def test_solutions_are_folded_and_pictures_described(page, site, name):
    opened(page, site, f"course/{name}")
    assert "SOLUTION ###" not in page.content() and "### BEGIN" not in page.content()
    lesson = (ROOT / "course" / f"{name}.ipynb").read_text()
    folded = page.locator("details.hide").filter(has_text="Show the solution")
    assert folded.count() == lesson.count("### BEGIN SOLUTION") > 0
    assert page.locator("details.hide[open]").count() == 0
    alts = page.eval_on_selector_all(".bd-article img", "all => all.map(image => image.alt)")
    assert all(alt.strip() for alt in alts)


@pytest.mark.parametrize("name", LESSONS)
def test_each_widget_moves_without_a_kernel(page, site, name):
    source = (ROOT / "course" / f"{name}.py").read_text()
    widgets = opened(page, site, f"course/{name}").locator(".moves")
    assert widgets.count() == source.count("plotting.interactive(")
    for i in range(widgets.count()):
        widget = widgets.nth(i)
        image = widget.locator("img")
        seen = {image.get_attribute("src")}
        control = widget.locator("input, select").first
        control.scroll_into_view_if_needed()
        if control.evaluate("element => element.tagName") == "SELECT":
            control.select_option(index=1)
        else:
            control.focus()
            page.keyboard.press("Home")
            seen.add(image.get_attribute("src"))
            page.keyboard.press("ArrowRight")
        seen.add(image.get_attribute("src"))
        assert len(seen) > 1
        image.evaluate("image => image.decode()")  # raises if there is no such picture


@pytest.mark.parametrize("width", [1280, 390])
def test_the_first_page_has_the_map_and_leads_to_each_lesson(page, site, width):
    page.set_viewport_size({"width": width, "height": 800})
    image = opened(page, site, "index").locator('.bd-article img[src$="map.svg"]')
    assert image.get_attribute("alt") == map.alt()
    assert image.evaluate("image => image.naturalWidth") > 0
    assert image.bounding_box()["width"] >= 640  # its words can be read
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    links = page.eval_on_selector_all(".bd-article table a", "all => all.map(link => link.href)")
    assert [Path(urlsplit(link).path).stem for link in links] == LESSONS
    box = image.locator("xpath=..")
    box.focus()  # by keyboard, where it scrolls sideways
    page.keyboard.press("ArrowRight")
    if width < 640:
        page.wait_for_function("document.activeElement.scrollLeft > 0")


def test_a_claim_leads_to_its_numbers_and_its_code(page, site):
    opened(page, site, "course/08_gmvae_pbmc").get_by_role("link", name="E08.emptied").click()
    address = urlsplit(page.url)
    assert address.path.endswith("/course/evidence/08_gmvae_pbmc.html")
    section = page.locator(f"section#{address.fragment}")
    assert section.locator("h2").inner_text().startswith("E08.emptied")
    claim = read_results(ROOT / "course" / "evidence" / "08_gmvae_pbmc.json")["E08.emptied"]
    assert claim["sentence"] in section.inner_text()
    bound = section.locator("tr", has_text="bound, last").locator("td").all_inner_texts()
    shown = [float(number.replace("−", "-")) for number in bound[1 : 1 + len(claim["seeds"])]]
    assert shown == pytest.approx(claim["numbers"]["bound, last"], rel=1e-3)
    assert "def emptied(seed: int)" in section.locator("pre").inner_text()


def test_search_finds_from_the_disk(page, site):
    page.goto((site / "search.html").as_uri() + "?q=dropout")
    page.wait_for_selector("#search-results li")
    assert page.locator("#search-results li").count() > 2
