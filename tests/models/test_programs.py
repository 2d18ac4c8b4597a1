"""The catalogue is what it says: ailing programs fail for the reason given, healthy ones train."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradscope.demo import run_program, train
from gradscope.models import PROGRAMS, Program
from gradscope.records import RULE_NAMES

AILING = [program for program in PROGRAMS.values() if program.finding]
HEALTHY = [program for program in PROGRAMS.values() if not program.finding]
SEEDS = (0, 1, 2)


def by_name(program: object) -> str | None:
    return program.name if isinstance(program, Program) else None


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", AILING, ids=by_name)
def test_an_ailing_program_fails_and_its_ailment_is_found_first(
    program: Program, seed: int, tmp_path: Path
) -> None:
    outcome = run_program(program, tmp_path, seed)
    assert outcome.accuracy < 0.6
    assert outcome.report.verdict == "ailing"
    assert outcome.report.findings[0].rule == program.finding
    assert outcome.as_expected


@pytest.mark.parametrize("program", AILING, ids=by_name)
def test_an_ailing_program_trains_without_its_fault(program: Program, tmp_path: Path) -> None:
    assert program.repaired is not None
    _, accuracy = train(program.repaired(0), tmp_path)
    assert accuracy > 0.75


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", HEALTHY, ids=by_name)
def test_a_healthy_program_trains_and_nothing_is_found(program: Program, seed: int, tmp_path: Path) -> None:
    outcome = run_program(program, tmp_path, seed)
    assert outcome.accuracy > 0.85
    assert outcome.report.verdict == "healthy"
    assert [finding.rule for finding in outcome.report.findings if finding.severity != "note"] == []
    assert outcome.as_expected


def test_the_catalogue_names_known_rules_and_is_large_enough() -> None:
    assert len(AILING) >= 8
    assert len(HEALTHY) >= 4
    assert {program.finding for program in AILING} <= set(RULE_NAMES)
    assert all(program.summary and len(program.summary) < 90 for program in PROGRAMS.values())
    assert all(name == program.name for name, program in PROGRAMS.items())
