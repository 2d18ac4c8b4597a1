"""The page of rules is generated: it must be what the rules' docstrings say."""

from __future__ import annotations

from pathlib import Path

from gradscope.diagnose import RULES, markdown

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"


def test_page_of_rules_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown(RULES), "run: gradscope rules --markdown > docs/rules.md"
