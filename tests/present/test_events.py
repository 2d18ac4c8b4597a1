"""Events as the report words them; every kind that the code records has a title."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gradscope
from gradscope.present.events import TITLES, occasion
from gradscope.records import Event


def recorded_kinds() -> set[str]:
    """Return the first argument of every call in the package that notes an event."""
    kinds = set()
    for file in Path(gradscope.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if name in ("event", "Event", "say") and isinstance(node.args[0].value, str):
                    kinds.add(node.args[0].value)
    return kinds


def test_every_kind_that_is_recorded_has_a_title_and_no_other_has() -> None:
    assert recorded_kinds() == set(TITLES)


@pytest.mark.parametrize("kind", sorted(TITLES))
def test_titles_are_words_not_keys(kind: str) -> None:
    shown = occasion(Event(kind, 1200, "why", "net.0"))
    assert (shown.step, shown.where, shown.message) == ("1,200", "net.0", "why")
    assert shown.kind[0].isupper()
    assert shown.kind != kind
    assert "-" not in shown.kind


def test_unregistered_parameters_are_named_and_counted() -> None:
    names = [f"branches.{number}.weight" for number in range(3)]
    event = Event("unregistered", 0, "…", data={"parameters": names, "entries": 30})
    assert occasion(event).where == "branches.0.weight and 2 more"
    alone = Event("unregistered", 0, "…", data={"parameters": names[:1], "entries": 10})
    assert occasion(alone).where == "branches.0.weight"


@pytest.mark.parametrize("parameters", [None, [], 7, "net", [None], {"a": 1}])
def test_a_damaged_event_is_shown_all_the_same(parameters: object) -> None:
    shown = occasion(Event("unregistered", -1, "why", data={"parameters": parameters}))
    assert shown.step == "–"
    assert shown.message == "why"


def test_a_kind_of_another_version_goes_by_its_own_name() -> None:
    assert occasion(Event("brand-new\x00", 3, "")).kind == "brand-new\\u0000"
