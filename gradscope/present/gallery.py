"""Render an index page over several reports: one line each, with its verdict and a link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradscope.present import html, view, wording
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
    rows = {
        heading: [row(exhibit) for exhibit in exhibits] for heading, exhibits in rooms.items() if exhibits
    }
    return html.fill("gallery.html", None, title=title, lead=lead, rooms=rows)


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
