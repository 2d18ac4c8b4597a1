"""The Rule: one detector, named for the ailment that it finds, with its documentation."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from gradscope.records import Finding, NotChecked, Run
from gradscope.settings import Settings

HEADINGS = ("What it finds", "Why it hurts", "What it is not", "Remedies", "Evidence", "References")


class Undecided(Exception):
    """Raised by a rule that lacks what it needs; the message says what."""


@dataclass(frozen=True)
class Rule:
    """A detector: its name, what it looks at, and its documentation.

    detect: judges a run; returns a finding, None if all is well, or raises Undecided. summary: one line.
    documentation: the text under each of HEADINGS. online: whether it can decide while training goes on:
    what it finds doesn't pass by itself once training is stuck.
    """

    name: str
    detect: Callable[[Run, Settings], Finding | None]
    summary: str
    documentation: Mapping[str, str]
    online: bool = False

    def check(self, run: Run, settings: Settings) -> Finding | NotChecked | None:
        """Judge a run: a finding, None if it was checked and is well, or why it was not checked."""
        try:
            return self.detect(run, settings)
        except Undecided as reason:
            return NotChecked(self.name, str(reason))
        except Exception as failure:
            return NotChecked(self.name, f"the rule failed ({type(failure).__name__}: {failure})")


def require(condition: object, reason: str) -> None:
    """Raise Undecided with this reason unless the condition holds."""
    if not condition:
        raise Undecided(reason)


def rule_of(module: ModuleType, online: bool = False) -> Rule:
    """Make the rule that a module of rules/ holds: its NAME, its `detect` and its docstring."""
    summary, documentation = _parse(module.__doc__ or _docstring_of_source(module))
    return Rule(module.NAME, module.detect, summary, documentation, online)


def _docstring_of_source(module: ModuleType) -> str:
    """Return what `python -OO` drops; "" where there is no source either."""
    try:
        return ast.get_docstring(ast.parse(inspect.getsource(module))) or ""
    except OSError:
        return ""


def markdown(rules: tuple[Rule, ...]) -> str:
    """Return the documentation page of the rules."""
    intro = (
        "# Rules\n\nWhat gradscope looks for. Each rule judges ratios, shares and trends, never a gradient's "
        "absolute size; a rule that lacks its data says so.\n"
    )
    return "\n".join([intro, *(_section(rule) for rule in rules)])


def _section(rule: Rule) -> str:
    parts = [f"## {rule.name}\n\n{rule.summary}\n"]
    parts += [f"**{heading}.** {text}\n" for heading, text in rule.documentation.items()]
    return "\n".join(parts)


def _parse(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its first line and the text under each heading (a line of its own)."""
    summary, documentation, heading = "", {}, ""
    for line in (line.strip() for line in docstring.strip().splitlines()):
        if line in HEADINGS:
            heading = line
            documentation[heading] = ""
        elif heading:
            documentation[heading] = f"{documentation[heading]} {line}".strip()
        else:
            summary = f"{summary} {line}".strip()
    return summary, documentation
