from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import pytest

from gradscope.present import html
from gradscope.records import Report
from tests.present.reports import ailing_report, healthy_report, large_report, nasty_report
from tests.runs import empty_run, mlp_run

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Collect what tests ask of a page: the text, the tags, their attributes; fail on unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.parts))


REPORTS = {
    "ailing": ailing_report,
    "healthy": healthy_report,
    "nasty": nasty_report,
    "empty": lambda: Report(empty_run(), "inconclusive"),
    "one layer": lambda: Report(mlp_run(depth=1, steps=1), "inconclusive"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_page_is_well_formed_deterministic_and_asks_nothing_of_the_network(name: str) -> None:
    text = html.render(REPORTS[name]())
    assert text == html.render(REPORTS[name]())
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "action", "srcset", "poster"):
            assert (attributes.get(key) or "#").startswith(("#", "data:,"))
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert targets <= set(identifiers)


def test_static_page_tells_verdict_findings_remedies_and_table() -> None:
    text = Page(html.render(ailing_report())).text
    for words in (
        "Ailing",
        "Vanishing gradient in net.0 and 1 more layer , since step 0",
        "The gradient shrinks by 0.14 a layer.",
        "Sigmoid with the default initialisation.",
        "gain per layer 0.14",
        "for layer in layers: init(layer)",
        "gain 0.14 → 1.00",
        "Updates are tiny.",
        "no attention layer",
        "the loss scaler skipped the update",
        "net.22 Linear 4,160",
    ):
        assert words in text


def test_only_two_scripts_may_run_and_a_policy_names_them() -> None:
    page = Page(html.render(nasty_report()))
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("sha256") == 2
    assert "unsafe-eval" not in policy
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert scripts == [None, "text/plain", "text/plain"]


def test_payload_unpacks_to_the_figures_on_the_page() -> None:
    text = html.render(ailing_report())
    packed = re.search(r'id="payload">([^<]*)<', text)
    assert packed
    payload = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    named = {attributes["data-figure"] for _, attributes in Page(text).tags if "data-figure" in attributes}
    assert set(payload["figures"]) == named
    assert payload["config"]["showSendToCloud"] is False
    assert payload["config"]["displaylogo"] is False


def test_page_stays_under_three_megabytes() -> None:
    assert len(html.render(large_report(60, 2000)).encode()) < 3_000_000


def test_page_of_ten_thousand_layers_stays_under_three_megabytes() -> None:
    assert len(html.render(large_report(10_000, 60)).encode()) < 3_000_000


@pytest.mark.parametrize(("build", "shown"), [(ailing_report, 1), (healthy_report, 0)])
def test_the_layer_table_has_a_column_of_findings_only_where_there_are_some(build, shown: int) -> None:
    assert html.render(build()).count('<button type="button">Findings</button>') == shown
