from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from gradscope.present.json import to_json
from gradscope.records import Finding, NotChecked, Remedy, Report
from tests.runs import empty_run, mlp_run

REMEDY = Remedy("activation", "Use ReLU", "It has slope 1", "net[1] = nn.ReLU()", "gain 1", {"do": "replace"})
FINDING = Finding(
    "vanishing-gradient",
    "critical",
    "The gradient fades.",
    ("net.0",),
    ("net.0.weight",),
    3,
    99,
    "Its slope is small.",
    {"gain": 0.25, "layers": 7},
    None,
    1,
    (REMEDY,),
)


def test_the_object_has_exactly_the_documented_fields() -> None:
    report = Report(mlp_run(), "ailing", (FINDING,), (NotChecked("dead-units", "no rectifier"),))
    document = to_json(report)
    run = document.pop("run")
    assert document == {
        "schema": 1,
        "verdict": "ailing",
        "findings": [
            {
                "rule": "vanishing-gradient",
                "severity": "critical",
                "rank": 1,
                "caused_by": None,
                "layers": ["net.0"],
                "parameters": ["net.0.weight"],
                "first_step": 3,
                "last_step": 99,
                "message": "The gradient fades.",
                "evidence": {"gain": 0.25, "layers": 7},
                "remedies": [
                    {
                        "kind": "activation",
                        "title": "Use ReLU",
                        "why": "It has slope 1",
                        "code": "net[1] = nn.ReLU()",
                        "expected": "gain 1",
                    }
                ],
            }
        ],
        "not_checked": [{"rule": "dead-units", "reason": "no rectifier"}],
    }
    assert run["model"] == "tests.Model"
    assert (run["first_step"], run["last_step"], run["recorded_steps"]) == (0, 99, 100)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (-np.inf, None),
        (None, None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (True, True),
        (10**30, 10**30),
    ],
)
def test_figures_are_strict_json(value: float, expected: float | None) -> None:
    finding = replace(FINDING, evidence={"x": value}, first_step=np.int64(2))
    text = json.dumps(to_json(Report(mlp_run(), "ailing", (finding,))), allow_nan=False)
    assert json.loads(text)["findings"][0]["evidence"]["x"] == expected


def test_a_run_without_steps() -> None:
    run = to_json(Report(empty_run(), "inconclusive"))["run"]
    assert (run["first_step"], run["last_step"], run["recorded_steps"]) == (None, None, 0)
