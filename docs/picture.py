"""Take docs/report.png, the README's picture, of a sample page: python -m docs.picture."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import sync_playwright

from tests import chromium

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Write the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=chromium.FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 1060}, color_scheme="light")
        tab.goto((ROOT / "reports" / "vanishing-sigmoid.html").as_uri())
        tab.screenshot(path=ROOT / "docs" / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
