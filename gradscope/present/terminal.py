"""Show a report in the terminal: the verdict, the findings with what to do, what was not checked."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from gradscope.present import wording
from gradscope.present.facts import key_facts
from gradscope.present.view import Card, RemedyCard, finding_cards
from gradscope.records import Report, Run

_VERDICTS = {
    "healthy": ("✓", "bold green"),
    "ailing": ("✗", "bold red"),
    "inconclusive": ("?", "bold yellow"),
}
_SEVERITIES = {"critical": "bold red", "warning": "yellow", "note": "cyan"}
_CODE_LINES = 30
_NARROWEST = 16


def show(report: Report, console: Console) -> None:
    """Print a report; it fits any width, and no name in it is taken for markup."""
    cards = finding_cards(report)
    _print(console, _verdict(report))
    _print(console, _facts(report.run), "  ")
    if report.run.info.exception:
        _print(console, Text(f"ended by {wording.clean(report.run.info.exception)}", "red"), "  ")
    for problem in report.run.problems:
        _print(console, Text(wording.clean(problem)), "  ", Text("reading  ", "yellow"))
    if report.verdict != "ailing":
        _show_evidence(report, console)
    for card in cards:
        console.print()
        _show_card(card, console)
    if report.not_checked:
        console.print()
        _print(console, _not_checked(report))


def _verdict(report: Report) -> Text:
    mark, style = _VERDICTS[report.verdict]
    numbers = [sum(finding.severity == severity for finding in report.findings) for severity in _SEVERITIES]
    counts = [
        f"{number:,} critical" if severity == "critical" else wording.count(number, severity)
        for number, severity in zip(numbers, _SEVERITIES, strict=True)
        if number
    ]
    line = Text.assemble(
        (f"{mark} {report.verdict}", style),
        "  ",
        (wording.elide(wording.name(report.run.info.model), 60), "bold"),
    )
    return line.append(f"  {', '.join(counts)}") if counts else line


def _facts(run: Run) -> Text:
    """Return what was trained and how it ended, in one line."""
    facts = []
    for fact in key_facts(run):
        label = "" if fact.label == "Ended" else f"{fact.label.lower()} "
        hint = f" ({fact.hint})" if fact.hint else ""
        facts += [f"{label}{fact.value}{hint}"] if fact.value != wording.MISSING else []
    return Text(" · ".join(facts), "dim")


def _show_evidence(report: Report, console: Console) -> None:
    for item in report.evidence:
        figure = f" ({wording.figure(item.value)}; normal: {wording.clean(item.normal, 200)})"
        _print(
            console, Text.assemble(wording.clean(item.statement), (figure, "dim")), "  ", Text("• ", "green")
        )


def _show_card(card: Card, console: Console) -> None:
    number = Text(f"{card.rank}. ", "bold")
    indent = " " * len(number)
    _print(console, _heading(card), "", number)
    _print(console, Text(card.message), indent)
    if card.cause:
        _print(console, Text(card.cause), indent, Text("cause   ", "bold"))
    if card.remedies:
        _show_remedies(card.remedies, console, indent)
    for other in card.consequences:
        _print(console, _heading(other), indent, Text("↳ ", "dim"))
        _print(console, Text(other.message, "dim"), f"{indent}  ")


def _heading(card: Card) -> Text:
    """Return rule, severity, where and since when."""
    return Text.assemble(
        (card.rule, "bold"),
        "  ",
        (card.severity, _SEVERITIES[card.severity]),
        f"  in {card.where}, since {card.since}",
    )


def _show_remedies(remedies: tuple[RemedyCard, ...], console: Console, indent: str) -> None:
    """Print the first remedy in full, with its code as it must be pasted, and name the others."""
    first = remedies[0]
    _print(console, Text(first.title), indent, Text("remedy  ", "bold green"))
    if first.expected:
        _print(console, Text(first.expected), indent, Text("expect  ", "bold"))
    lines = first.code.splitlines()
    for line in lines[:_CODE_LINES]:
        # Never wrapped: a broken line of code is wrong code.
        console.print(Text(f"{indent}        {line}".rstrip(), "cyan"), soft_wrap=True, highlight=False)
    if len(lines) > _CODE_LINES:
        rest = wording.count(len(lines) - _CODE_LINES, "more line")
        _print(console, Text(f"… {rest} in the report", "dim"), f"{indent}        ")
    if len(remedies) > 1:
        others = "; ".join(remedy.title for remedy in remedies[1:])
        _print(console, Text(others), indent, Text("or      ", "bold"))


def _not_checked(report: Report) -> Text:
    rules = "; ".join(
        f"{wording.clean(item.rule, 80)} ({wording.clean(item.reason)})" for item in report.not_checked
    )
    return Text(f"not checked: {rules}", "dim")


def _print(console: Console, text: Text, indent: str = "", label: Text | None = None) -> None:
    """Print a text indented behind its label, wrapped so that every line starts below the first."""
    label = label or Text()
    text.overflow = "fold"
    width = max(console.width - len(indent) - len(label), _NARROWEST)
    for number, line in enumerate(text.wrap(console, width)):
        line.rstrip()
        start = label if number == 0 else Text(" " * len(label))
        console.print(Text.assemble(indent, start, line), soft_wrap=True, highlight=False)
