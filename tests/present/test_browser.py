"""The page in a real Chromium: what a reader sees, clicks, copies and prints."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from gradscope.present import html
from gradscope.records import Report
from tests import chromium
from tests.present.reports import ailing_report, healthy_report, large_report, nasty_report
from tests.runs import empty_run

pytestmark = pytest.mark.browser

DRAWN = "document.querySelectorAll('.plot.drawn .main-svg').length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium.find()
    assert path, "The browser tests need Chromium: install it, or set CHROMIUM to its path."
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=chromium.FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Callable[..., Any]:
    """Open the page of a report; at the end nothing may have been logged and nothing requested."""

    @contextmanager
    def opened(report: Report, width: int = 1280, **options: Any) -> Iterator[Tab]:
        file = tmp_path / "report.html"
        file.write_text(html.render(report), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        tab, complaints = context.new_page(), []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url))
        tab.goto(file.as_uri())
        yield tab
        context.close()
        assert [
            item for item in complaints if item != file.as_uri() and not item.startswith(("data:", "blob:"))
        ] == []

    return opened


def scroll_through(tab: Tab) -> int:
    """Bring every chart into view, one after another; return how many there are."""
    plots = tab.locator(".plot")
    for number in range(plots.count()):
        plots.nth(number).scroll_into_view_if_needed()
        tab.wait_for_function(
            "n => document.querySelectorAll('.plot')[n].querySelector('.main-svg')", arg=number
        )
    return plots.count()


@pytest.mark.parametrize("build", [ailing_report, healthy_report, nasty_report])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_charts_are_drawn_without_a_word_on_the_console(visit, build, scheme: str) -> None:
    with visit(build(), color_scheme=scheme) as tab:
        count = scroll_through(tab)
        assert count >= 5
        assert tab.evaluate("document.querySelectorAll('.plot .heatmaplayer image').length") >= 2
        assert tab.evaluate("window.broken") is None


def test_charts_are_drawn_only_when_they_come_near(visit) -> None:
    with visit(ailing_report(depth=40)) as tab:
        tab.wait_for_function("() => window.Plotly")
        tab.wait_for_timeout(200)
        assert tab.evaluate(DRAWN) < tab.locator(".plot").count()


def test_no_text_of_a_run_becomes_markup(visit) -> None:
    with visit(nasty_report()) as tab:
        scroll_through(tab)
        assert tab.evaluate("window.broken") is None
        assert tab.evaluate("document.querySelectorAll('main img, main b > b, main iframe').length") == 0
        assert tab.evaluate("[...document.links].every(link => link.getAttribute('href').startsWith('#'))")
        assert tab.locator("#layer-table tbody tr").first.locator("th").inner_text() == NASTY_NAME


NASTY_NAME = "<script>window.broken = 1</script>"


def test_everything_but_the_charts_reads_without_javascript(visit) -> None:
    with visit(ailing_report(), java_script_enabled=False) as tab:
        assert tab.get_by_role("heading", level=1).inner_text().startswith("Vanishing gradient")
        assert tab.get_by_text("The charts need JavaScript").is_visible()
        assert tab.get_by_text("for layer in layers:").first.is_visible()
        assert tab.locator("#layer-table tbody tr").count() == 23
        assert not tab.locator(".copy").first.is_visible()
        assert not tab.locator("#theme").is_visible()


def column(tab: Tab, index: int) -> list[str]:
    return tab.locator(f"#layer-table tbody tr > :nth-child({index})").all_inner_texts()


def test_table_sorts_by_number_by_name_and_leaves_what_is_missing_last(visit) -> None:
    with visit(ailing_report()) as tab:
        by_signal = tab.locator("#layer-table thead").get_by_role("button", name="median").nth(1)
        by_signal.click()
        rising = [float(text) for text in column(tab, 8)]
        by_signal.click()
        falling = [float(text) for text in column(tab, 8)]
        assert rising == sorted(rising)
        assert falling == rising[::-1] == sorted(falling, reverse=True)
        for _ in range(2):
            tab.get_by_role("button", name="Parameters").click()
            assert column(tab, 5)[-1] == "–"
        tab.get_by_role("button", name="Layer").click()
        assert column(tab, 2)[:3] == ["net.0", "net.1", "net.2"]
        assert tab.locator("th[aria-sort]").count() == 1


def test_table_filters_by_name_and_by_finding(visit) -> None:
    with visit(ailing_report()) as tab:
        tab.get_by_role("searchbox").fill("vanishing")
        assert tab.locator("#layer-table tbody tr:visible").count() == 2


def test_code_is_copied_as_it_is(visit) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with visit(ailing_report(), permissions=permissions) as tab:
        tab.get_by_role("button", name="Copy").first.click()
        tab.get_by_role("button", name="Copied").wait_for()
        assert tab.evaluate("navigator.clipboard.readText()") == "for layer in layers:\n    init(layer)"
        assert tab.locator("#spoken").inner_text() == "Code copied"


def test_theme_follows_the_system_until_it_is_chosen(visit) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    with visit(ailing_report(), color_scheme="dark") as tab:
        dark = tab.evaluate(background)
        scroll_through(tab)
        toggle = tab.locator("#theme")
        toggle.click()
        light = tab.evaluate(background)
        assert (toggle.inner_text(), light != dark) == ("◐ Light", True)
        tick = "document.querySelector('.plot .xtick text').style.fill"
        assert tab.evaluate(tick) == "rgb(85, 97, 112)"
        toggle.click()
        assert tab.evaluate(background) == dark
        assert tab.evaluate(tick) == "rgb(154, 167, 182)"


CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (part) => {
    for (let p = part; p; p = p.parentElement) {
      const colour = channels(getComputedStyle(p).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const part of document.querySelectorAll("body *:not(svg *)")) {
    const own = [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !part.checkVisibility() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(part.tagName)) continue;
    const [a, b] = [luminance(channels(getComputedStyle(part).color)), luminance(ground(part))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) low.push(`${part.tagName}.${part.className}: ${contrast.toFixed(2)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_and_charts_have_words(visit, scheme: str) -> None:
    """WCAG 2.1 AA: 4.5 to 1 for text."""
    with visit(ailing_report(), color_scheme=scheme) as tab:
        assert tab.evaluate(CONTRASTS) == []
        labels = tab.locator(".plot").evaluate_all(
            "plots => plots.map(plot => plot.getAttribute('aria-label'))"
        )
        assert all(len(label) > 40 for label in labels)
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert tab.get_by_role(landmark).count() == 1


def test_keyboard_reaches_the_verdict_and_the_remedies(visit) -> None:
    with visit(ailing_report()) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        summary = tab.locator(".remedy summary").nth(1)
        summary.focus()
        tab.keyboard.press("Enter")
        assert tab.get_by_text("x = x + block(x)").is_visible()


@pytest.mark.parametrize("build", [ailing_report, nasty_report])
@pytest.mark.parametrize("width", [360, 390, 768, 1440])
def test_no_width_makes_the_page_scroll_sideways(visit, build, width: int) -> None:
    with visit(build(), width=width) as tab:
        scroll_through(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_link_to_a_folded_finding_unfolds_it(visit) -> None:
    with visit(ailing_report()) as tab:
        assert not tab.get_by_text("If it stays once the cause is gone").is_visible()
        tab.evaluate("location.hash = 'finding-2'")
        tab.wait_for_function("() => document.getElementById('finding-2').open")
        assert tab.locator("#finding-2").is_visible()


def test_print_unfolds_everything_and_draws_all_charts(visit) -> None:
    with visit(ailing_report()) as tab:
        tab.wait_for_function("() => window.Plotly")
        assert base64.b64encode(tab.pdf()).startswith(b"JVBER")
        assert tab.evaluate("document.querySelectorAll('details:not([open])').length") == 0
        assert tab.evaluate("document.querySelectorAll('.plot.drawn').length") == tab.locator(".plot").count()


def test_an_empty_run_has_a_page_too(visit) -> None:
    with visit(Report(empty_run(), "inconclusive")) as tab:
        assert tab.get_by_role("heading", level=1).inner_text() == "Too little was recorded to judge"
        assert tab.locator(".plot").count() == 0


def test_sixty_layers_by_two_thousand_steps_are_usable_within_a_second(visit) -> None:
    """From the start of navigation until the page can be read and clicked; the best of three visits."""
    ready = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
    with visit(large_report(60, 2000)) as tab:
        times = [tab.evaluate(ready)]
        for _ in range(2):
            tab.reload()
            times.append(tab.evaluate(ready))
        tab.locator("#charts").scroll_into_view_if_needed()
        tab.wait_for_function("() => document.querySelector('.plot .main-svg')")
        assert 0 < min(times) < 1000
