"""The verdict benchmark's programs: consistent, enough of them, and found again by their source."""

from __future__ import annotations

import ast
import math
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatch

import pytest

from benchmarks.verdicts import programs, recording
from benchmarks.verdicts.program import Outcome, Setup, improvement, label
from benchmarks.verdicts.run import chosen
from benchmarks.verdicts.training import train
from gradscope.records import RULE_NAMES

ALL = list(programs.PROGRAMS.values())


def test_there_are_enough_programs_and_names_are_unique() -> None:
    listed = [program.name for family in programs.FAMILIES.values() for program in family]
    assert len(set(listed)) == len(listed) >= 80


@pytest.mark.parametrize("split", [name for name, families in programs.SPLITS.items() if families])
def test_about_half_of_each_split_are_controls(split: str) -> None:
    controls = [program.is_control for family in programs.SPLITS[split].values() for program in family]
    assert sum(controls) >= 0.45 * len(controls)


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
def test_program_is_consistent(program: programs.Program) -> None:
    assert set(program.causes) <= set(RULE_NAMES)
    assert (program.twin is None) == (program.target is not None)
    if program.twin is not None:
        twin = programs.PROGRAMS[program.twin]
        assert twin.is_control
        assert programs.FAMILY[twin.name] == programs.FAMILY[program.name]
    if program.is_control:
        assert not program.where
    else:
        assert program.twin is not None


HELD_OUT = [program for family in programs.HELD_OUT.values() for program in family]
YOUNG = ("segmentation", "translation", "physics", "density", "transfer", "recommender", "temporal", "agents")
RECENT = {name: programs.FAMILIES[name] for name in (*YOUNG, *programs.HELD_OUT)}
PLACED = [program for family in RECENT.values() for program in family if program.where]


@pytest.mark.skipif(not HELD_OUT, reason="no family is held out now")
def test_held_out_programs_are_enough_and_spread_over_the_rules() -> None:
    assert len(HELD_OUT) >= 90
    assert all(len(family) >= 10 for family in programs.HELD_OUT.values())
    named = Counter(cause for program in HELD_OUT for cause in program.causes)
    assert [rule for rule in RULE_NAMES if named[rule] < 2] == []
    faulty = [program for program in HELD_OUT if program.causes]
    assert 3 * sum(bool(program.where) for program in faulty) >= len(faulty)


@pytest.mark.parametrize("program", PLACED, ids=lambda program: program.name)
def test_faulty_layers_exist(program: programs.Program) -> None:
    setup = program.build()
    assert isinstance(setup, Setup)
    names = [name for name, _ in setup.model.named_modules()]
    for pattern in program.where:
        assert any(fnmatch(name, pattern) for name in names), pattern


@pytest.mark.parametrize("family", RECENT)
def test_training_is_repeatable(family: str) -> None:
    program = RECENT[family][0]
    short = replace(program, build=lambda: replace(program.build(), steps=3))
    first, second = train(short, seed=1), train(short, seed=1)
    assert (first.score, first.trace) == (second.score, second.trace)


def test_twins_are_chosen_with_the_programs_that_need_them() -> None:
    assert set(chosen("all", "mlp-sigmoid-10", quick=False)) == {"mlp-sigmoid-10", "mlp-he-20", "mlp-relu-he"}


def test_key_depends_on_the_program_and_not_on_docstrings() -> None:
    keys = {recording._key(name) for name in programs.PROGRAMS}
    assert len(keys) == len(programs.PROGRAMS)
    one, two = (ast.parse(f'def f():\n    """{text}"""\n    return 1') for text in ("a", "b"))
    assert ast.dump(recording._without_docstrings(one)) == ast.dump(recording._without_docstrings(two))


@pytest.mark.parametrize(
    ("score", "is_control", "expected"),
    [
        (0.95, False, "healthy"),
        (0.95, True, "healthy"),
        (0.80, False, "borderline"),
        (0.30, False, "ailing"),
        (0.30, True, "borderline"),
        (math.nan, False, "ailing"),
    ],
)
def test_label_follows_the_outcome(score: float, is_control: bool, expected: str) -> None:
    share = improvement(Outcome(score, chance=0.0), reference=1.0)
    assert label(share, is_control) == expected
