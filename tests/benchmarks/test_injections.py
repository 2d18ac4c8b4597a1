"""Faults that are put into a healthy program, recorded, labelled by their outcome, and judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.verdicts import injections, recording
from benchmarks.verdicts.faults import FAULTS
from benchmarks.verdicts.injections import Injection, record_and_judge
from benchmarks.verdicts.judging import GRADSCOPE
from gradscope.records import RULE_NAMES

HOST = "mlp-relu-he"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "RUNS", tmp_path)
    monkeypatch.setattr(injections, "FOLDER", tmp_path / "injected")
    recording.record((HOST, 0))


@pytest.mark.parametrize(("fault", "rule"), [("rate-x1e-4", "learning-rate-too-low"), ("body-alike", None)])
def test_a_fault_is_injected_and_seen(fault: str, rule: str | None) -> None:
    judged = record_and_judge(Injection(HOST, fault, 0))
    assert judged is not None
    assert judged.label == "ailing"
    said = judged.judgements[GRADSCOPE]
    assert said.names(judged.program.causes, first=True)
    assert rule in (None, said.symptoms[0].rule)


def test_a_fault_without_a_place_in_a_program_is_left_out() -> None:
    assert record_and_judge(Injection(HOST, "norm-silent", 0)) is None


def test_faults_have_names_of_their_own_and_known_causes() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) > 40
    assert {cause for fault in FAULTS for cause in fault.causes} <= set(RULE_NAMES)
