"""Show a comparison, or the ranking of a treatment, as a table in the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from gradscope.present.comparison import Comparison
from gradscope.present.treatment import TreatmentPage

_OUTCOMES = {"helps": "bold green", "harms": "red", "no clear effect": "yellow", "not tried": "dim"}


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


def ranking_table(page: TreatmentPage) -> Table:
    """Return the remedies by measured effect."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("remedy", overflow="fold", ratio=2)
    for heading in ("outcome", "effect (95 % interval)", "loss", "a step", "cured"):
        table.add_column(heading, overflow="fold")
    table.add_row("untreated", "", "", page.patient, "1×", "")
    for row in page.rows:
        outcome = f"[{_OUTCOMES.get(row.outcome, '')}]{row.outcome}[/]"
        why = f": {escape(row.failure)}" if row.failure else ""
        cured = escape(", ".join(row.cured))
        table.add_row(escape(row.title), outcome + why, row.gained_text, row.final, row.cost, cured)
    return table
