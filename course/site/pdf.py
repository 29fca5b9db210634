"""Print each lesson of the built site to a PDF, with a Chromium: `make pdf`.

python course/site/pdf.py build/site/html build/site/pdf
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from tqdm import tqdm

NAMES = ("chromium", "chromium-browser", "google-chrome")


def main(site: Path, out: Path) -> None:
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if not chromium:
        sys.exit(
            f"A PDF is printed by a browser, and none of {', '.join(NAMES)} is installed here."
        )
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        for lesson in tqdm(sorted(site.glob("course/[0-9]*.html")), desc="PDF"):
            page.goto(lesson.resolve().as_uri())
            page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
            page.evaluate("window.MathJax ? MathJax.startup.promise.then(() => true) : true")
            page.wait_for_load_state("networkidle")
            page.pdf(path=out / f"{lesson.stem}.pdf", format="A4", scale=0.8)
        browser.close()
    print(f"The lessons are {out}/*.pdf")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
