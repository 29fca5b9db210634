"""The course as a learner meets it: `vaelab course`, in JupyterLab, in a browser.

It needs the packages of ``.[site]`` and a Chromium; `make site` installs the first.
"""

import os
import re
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

import vaelab
from vaelab.teaching import exercises
from vaelab.teaching.exercises import box
from vaelab.teaching.exercises.core import plain

expect = pytest.importorskip("playwright.sync_api").expect
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

SERVE = (
    "import sys; from pathlib import Path; from vaelab import __main__ as cli; "
    "cli.WORK = Path(sys.argv.pop()); cli.app(['course'])"
)
AA = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    "rules": {"link-in-text-block": {"enabled": False}},  # JupyterLab underlines no link
}
CONTENT = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-RenderedHTMLCommon"
WIDGET = ".jp-NotebookPanel:not(.lm-mod-hidden) .widget-vbox"
THEIRS = [".jp-collapseHeadingButton", ".noUi-handle"]  # ipywidgets 8.1 cannot name a handle
SOON, LATER = 120_000, 300_000  # milliseconds: a click, a whole lesson on a busy machine
expect.set_options(timeout=SOON)
STDERR = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'  # and errors
CHECK = ".jp-OutputArea-output div[style*=border-left-width]"


@pytest.fixture(scope="module")
def address(tmp_path_factory, browser):
    """Where `vaelab course` serves a new folder. It leaves no process."""
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {"BROWSER": "no", "PYTHONUNBUFFERED": "1"}
    environment |= {f"JUPYTER_{x}_DIR": str(home / x) for x in ("CONFIG", "DATA", "RUNTIME")}
    environment |= {"IPYTHONDIR": str(home / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    said = home / "stderr.txt"
    with said.open("w") as stderr, subprocess.Popen(
        [sys.executable, "-c", SERVE, str(home / "my-course")], env=environment, cwd=home,
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    ) as server:  # fmt: skip
        try:
            address = next((line.strip() for line in server.stdout if "//" in line), "")
            assert "/lab/tree/START.ipynb?token=" in address, said.read_text()
            yield address
            server.send_signal(signal.SIGINT)  # it ends the kernels, too
            assert server.wait(30) == 0
        finally:
            server.kill()
    assert "WARNING" not in said.read_text()  # as a kernel does if it is not encrypted


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(SOON)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on(
        "console",
        lambda message: page.said.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()
    assert not page.said
    assert {urlsplit(url).netloc for url in page.asked} <= {urlsplit(address).netloc, ""}


def shown(page):
    """The notebook that the browser shows, once it is there with its kernel."""
    notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    expect(notebook.locator(".jp-MarkdownOutput h1").first).to_be_visible(timeout=SOON)
    wait_until_idle(notebook)
    return notebook


def wait_until_idle(notebook, timeout: int = SOON) -> None:
    idle = notebook.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    idle.wait_for(state="attached", timeout=timeout)


def opened(page, address: str, lesson: str):
    """A lesson, with no other notebook open."""
    page.goto(address.replace("START.ipynb?", f"lessons/{lesson}.ipynb?reset&"))
    return shown(page)


def choose(page, menu: str, item: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(".lm-Menu-item").filter(has_text=re.compile(f"^{item}")).first.click()


def cell_with(notebook, code: str):
    return notebook.locator(".jp-CodeCell").filter(has_text=code).first


def run(page, cell):
    """Run a cell with the mouse and Shift+Enter, and give its output."""
    cell.locator(".cm-content").click()
    prompt = cell.locator(".jp-InputPrompt").first
    before = prompt.inner_text()
    page.keyboard.press("Shift+Enter")
    expect(prompt).not_to_have_text(before)
    expect(prompt).to_have_text(re.compile(r"\[\d+\]"), timeout=LATER)
    return cell.locator(".jp-Cell-outputArea")


def write(page, cell, answer: str) -> None:
    cell.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text(answer)


def answers(name: str, change: tuple[str, str], misconception: str) -> tuple[str, str, str]:
    """The solution, the solution with a known mistake, and the hint for that mistake."""
    right, hints = box.solution_of(name), exercises.find(name).misconceptions
    wrong = right.replace(*change)
    assert wrong != right
    (hint,) = (plain(m.hint) for m in hints if m.name == misconception)
    return right, wrong, hint


def barriers(page, part: str) -> list:
    """What stops a reader at level A or AA, as axe sees it; without what is JupyterLab's."""
    # JupyterLab's body has no height, so axe would take all text for hidden, and see no colours.
    page.evaluate("document.body.style.overflow = 'visible'")
    context = {"include": [[part]], "exclude": [[selector] for selector in THEIRS]}
    found = axe.Axe().run(page, context=context, options=AA).response
    assert "color-contrast" in [rule["id"] for rule in found["passes"] + found["violations"]]
    return [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in found["violations"]]


# ------------------------------------------------------------------------------------ START


def test_start_opens_with_contents_and_map_and_without_a_pop_up(page, address):
    page.goto(address)
    notebook = shown(page)
    contents = page.locator(".jp-TableOfContents")
    expect(contents).to_be_visible()
    expect(contents).to_contain_text("4 · The lessons")
    map_ = notebook.get_by_role("img", name="A map of the lessons")
    map_.scroll_into_view_if_needed()
    expect(map_).to_be_in_viewport()
    assert map_.evaluate("image => image.naturalWidth") > 100
    assert not barriers(page, CONTENT)
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    expect(page.locator(".Toastify__toast")).to_have_count(0)


# ---------------------------------------------------------------------------------- a lesson


def test_run_all_goes_through_a_lesson_whose_exercises_are_open(page, address):
    notebook = opened(page, address, "02_elbo")
    choose(page, "Run", "Run All Cells")
    last = notebook.locator(".jp-CodeCell .jp-InputPrompt").last
    expect(last).to_have_text(re.compile(r"\[\d+\]"), timeout=LATER)
    errors = notebook.locator(STDERR).all_text_contents()
    assert errors
    assert not [e for e in errors if not re.search(r"NotImplementedError: Exercise 02\.\d\s*$", e)]
    boxes = notebook.locator(CHECK)
    assert all(text.strip().startswith("○ 02.") for text in boxes.all_text_contents())
    assert boxes.count() == len(exercises.names_in("02"))
    # If a cell stops at an open exercise, matplotlib also shows its unfinished figure.
    figures = notebook.locator(f".jp-OutputArea:not(:has({STDERR})) img")
    alts = figures.evaluate_all("all => all.map(image => image.alt)")
    assert len(alts) > 5 and all(alts) and len({*alts}) == len(alts)
    assert not barriers(page, CONTENT)


def test_a_check_names_a_known_mistake_and_sees_the_right_answer(page, address):
    right, wrong, hint = answers(
        "02.1", ("a + r * len(x)", "a + r"), "r once for all cells (at p = ½)"
    )
    notebook = opened(page, address, "02_elbo")
    run(page, cell_with(notebook, "import matplotlib.pyplot"))
    answer, check = (cell_with(notebook, c) for c in ("def log_evidence", 'vaelab.check("02.1"'))
    write(page, answer, wrong)
    run(page, answer)
    said = run(page, check)
    verdict = said.locator("div[style*=border-left-width]")
    expect(verdict).to_contain_text("✘ 02.1")
    expect(verdict).to_contain_text(hint)
    assert not barriers(page, CHECK)
    write(page, answer, right)
    run(page, answer)
    run(page, check)
    expect(verdict).to_contain_text("✔ 02.1")
    expect(verdict).not_to_contain_text("✘")
    expect(said.locator(STDERR)).to_have_count(0)
    assert not barriers(page, CHECK)


# ------------------------------------------------------- a lesson with a widget at its beginning

needs_pancreas = pytest.mark.skipif(
    "source" in vaelab.datasets.locate("pancreas").values(),
    reason="needs data; get them with: vaelab data fetch pancreas",
)


def picture(notebook) -> str:
    """The picture of the first widget, as the browser has drawn it."""
    image = notebook.locator(".widget-image").first
    return image.evaluate(
        """async image => {
            for (let done = false; !done; )  // the next one may come while this one is decoded
                done = await image.decode().then(() => true, () => false)
            const canvas = document.createElement("canvas")
            canvas.width = image.naturalWidth, canvas.height = image.naturalHeight
            canvas.getContext("2d").drawImage(image, 0, 0)
            return canvas.toDataURL()
        }"""
    )


def wait_for_another(page, notebook, before: str) -> None:
    for _ in range(100):
        if picture(notebook) != before:
            return
        page.wait_for_timeout(100)
    pytest.fail("The picture stayed the same.")


@needs_pancreas
def test_a_slider_that_is_dragged_changes_the_picture(page, address):
    notebook = opened(page, address, "05_count_likelihoods")
    cell_with(notebook, "gamma_poisson(mean, theta)").locator(".cm-content").click()
    choose(page, "Run", "Run All Above")
    wait_until_idle(notebook, LATER)
    run(page, cell_with(notebook, "gamma_poisson(mean, theta)"))
    handle = notebook.get_by_role("slider").first
    handle.scroll_into_view_if_needed()
    before, value = picture(notebook), handle.get_attribute("aria-valuenow")
    at = handle.bounding_box()
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    wait_for_another(page, notebook, before)  # while it moves
    page.mouse.up()
    assert handle.get_attribute("aria-valuenow") != value
    assert not barriers(page, WIDGET)


# ------------------------------------------------------------------------------- no mouse at all


@needs_pancreas
def test_a_lesson_is_done_with_the_keyboard_alone(page, address):
    """From START to a slider and to a check that passes."""

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    page.goto(address.replace("?", "?reset&"))
    shown(page)
    for _ in range(30):
        press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Nine zeros in ten":
            break
    press("Enter")
    expect(page.locator(".lm-DockPanel-tabBar .lm-mod-current")).to_contain_text("05_count")
    notebook = shown(page)
    widget = cell_with(notebook, "gamma_poisson(mean, theta)")
    active = notebook.locator(".jp-Cell.jp-mod-active")
    for _ in range(30):
        press("Shift+Enter")
        if "Spot the error" in active.text_content():  # just below the widget
            break
    expect(widget.get_by_role("slider").first).to_be_visible(timeout=LATER)
    before = picture(notebook)
    press("ArrowUp", "Tab")
    expect(widget.get_by_role("slider").first).to_be_focused()
    press("ArrowRight", "ArrowRight")
    wait_for_another(page, notebook, before)

    right, wrong, hint = answers(
        "05.1",
        (
            "return ways + theta * log_p + x * log_1_minus_p",
            "return -(ways + theta * log_p + x * log_1_minus_p)",
        ),
        "negated",
    )
    answer, check = (cell_with(notebook, c) for c in ("def nb_log_prob", 'vaelab.check("05.1"'))
    rounds = (("Shift+Enter", wrong, "✘ 05.1", hint), ("ArrowUp", right, "✔ 05.1", "Agrees"))
    for way, text, sign, words in rounds:
        for _ in range(30):
            if "jp-mod-active" in answer.get_attribute("class"):
                break
            press(way)
        press("Enter", "ControlOrMeta+A")
        page.keyboard.insert_text(text)
        press("Shift+Enter", "Shift+Enter")
        verdict = check.locator("div[style*=border-left-width]")
        expect(verdict).to_contain_text(sign, timeout=LATER)
        expect(verdict).to_contain_text(words)
