"""Show a comparison, or the ranking of a treatment, as a table in the terminal."""

from __future__ import annotations

from itertools import compress
from typing import Any

from rich.markup import escape
from rich.table import Table

from gradscope.present.comparison import Comparison
from gradscope.present.treatment import EffectRow, TreatmentPage

_OUTCOMES = {"helps": "bold green", "harms": "red", "no clear effect": "yellow", "not tried": "dim"}
_LEAST = (0, 0, 0, 100, 0, 72)  # how wide a terminal must be to show each column of the ranking


def comparison_table(comparison: Comparison) -> Table:
    """Return one column a run; findings gained and lost are those against the first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for item in comparison.contestants:
        table.add_column(escape(item.label), overflow="fold")
    runs = comparison.contestants
    table.add_row("verdict", *(item.verdict for item in runs))
    table.add_row("findings", *("\n".join(map(escape, item.findings)) or "none" for item in runs))
    table.add_row("gained", *(f"[red]{escape(chr(10).join(item.gained))}[/]" for item in runs))
    table.add_row("gone", *(f"[green]{escape(chr(10).join(item.lost))}[/]" for item in runs))
    for index, fact in enumerate(runs[0].facts):
        table.add_row(fact.label.lower(), *(escape(item.facts[index].value) for item in runs))
    return table


def ranking_table(page: TreatmentPage, columns: int) -> Table:
    """Return the remedies by measured effect; a narrow terminal has no room for what the page has, too."""
    rules = [rule for row in page.rows for rule in row.cured]
    shown = [columns >= least for least in _LEAST]
    options: tuple[dict[str, Any], ...] = (
        {"header": "remedy", "ratio": 2, "overflow": "fold"},
        {"header": "outcome", "min_width": 7},
        {"header": "effect (95 % interval)", "min_width": 10},
        {"header": "loss", "no_wrap": True},
        {"header": "a step", "no_wrap": True, "min_width": 6},
        {"header": "cured", "no_wrap": True, "min_width": max(map(len, rules), default=5)},
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for option in compress(options, shown):
        table.add_column(**option)
    for cells in (("untreated", "", "", page.patient, "1×", ""), *map(_cells, page.rows)):
        table.add_row(*compress(cells, shown))
    return table


def _cells(row: EffectRow) -> tuple[str, ...]:
    outcome = f"[{_OUTCOMES.get(row.outcome, '')}]{row.outcome}[/]"
    why = f": {escape(row.failure)}" if row.failure else ""
    cured = escape("\n".join(row.cured))
    return escape(row.title), outcome + why, row.gained_text, row.final, row.cost, cured
