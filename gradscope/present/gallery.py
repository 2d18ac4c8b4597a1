"""Render an index page over several reports: one line each, with its verdict and a link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradscope.present import view, wording
from gradscope.records import Report


@dataclass(frozen=True)
class Exhibit:
    """A report in the gallery.

    link: the report's page, relative to the gallery's; expected: the rule that had to be found first, None
    if none had to; as_expected: whether that came true; score: share of right answers after training.
    """

    name: str
    summary: str
    link: str
    expected: str | None
    as_expected: bool
    score: float
    report: Report


@dataclass(frozen=True)
class Row:
    """An exhibit as the page shows it."""

    exhibit: Exhibit
    verdict: str
    severity: str
    found: str
    expected: str
    place: str
    since: str
    remedy: str
    score: str
    sparkline: str


def render(title: str, lead: str, rooms: Mapping[str, Sequence[Exhibit]]) -> str:
    """Return the page: a table for each of the `rooms`, by heading; it loads nothing from anywhere."""
    environment = Environment(
        loader=PackageLoader("gradscope.present"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    style = Markup(environment.loader.get_source(environment, "report.css")[0])
    rows = {
        heading: [row(exhibit) for exhibit in exhibits] for heading, exhibits in rooms.items() if exhibits
    }
    return environment.get_template("gallery.html").render(title=title, lead=lead, rooms=rows, style=style)


def row(exhibit: Exhibit) -> Row:
    """Return what the page shows of an exhibit."""
    page = view.page(exhibit.report)
    card = page.cards[0] if page.verdict == "ailing" and page.cards else None
    return Row(
        exhibit,
        page.verdict,
        severity=card.severity if card else page.verdict,
        found=card.title if card else "no finding",
        expected=wording.rule_title(exhibit.expected) if exhibit.expected else "no finding",
        place=card.where if card else "",
        since=card.first if card else "",
        remedy=page.first_remedy,
        score=wording.percent(exhibit.score),
        sparkline=page.sparkline,
    )
