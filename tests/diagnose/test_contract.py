"""What every rule must keep to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradscope.diagnose import RULES, Rule, diagnose, markdown
from gradscope.diagnose.engine import CONSEQUENCES
from gradscope.diagnose.rule import HEADINGS, Undecided
from gradscope.records import RULE_NAMES, Finding, NotChecked, Run
from gradscope.settings import Settings
from tests.diagnose.cases import CASES, with_info, with_layers, with_parameters
from tests.runs import empty_run, mlp_run

HEALTHY = {
    "relu": mlp_run(),
    "tanh": mlp_run(activation="tanh"),
    "sigmoid-deep": mlp_run(depth=30, activation="sigmoid"),
    "shallow": mlp_run(depth=2),
    "converged": mlp_run(
        loss=lambda step: 2.3 * 0.5**step,
        layer_values={"signal_rms": lambda step, depth: 1e-3 * 0.5**step},
        parameter_values={"gradient_norm": lambda step, depth: 0.1 * 0.5**step},
    ),
    "noisy-loss": mlp_run(loss=lambda step: 2.3 * 0.97**step + 0.3 + 0.2 * np.sin(17 * step)),
}
ALL = [*HEALTHY.values(), empty_run(), mlp_run(steps=1)]


def test_rules_are_those_of_the_contract_in_its_order() -> None:
    assert tuple(rule.name for rule in RULES) == RULE_NAMES


def test_every_rule_has_its_place_in_the_table_of_causes() -> None:
    assert set(CONSEQUENCES) == set(RULE_NAMES)
    assert {rule for rules in CONSEQUENCES.values() for rule in rules} <= set(RULE_NAMES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_is_documented(rule: Rule) -> None:
    assert tuple(rule.documentation) == HEADINGS
    assert all(len(text) > 10 for text in rule.documentation.values())
    assert rule.summary.endswith(".")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_says_that_it_could_not_check_an_empty_run(rule: Rule) -> None:
    result = rule.check(empty_run(), Settings())
    # These look at what is there without any step: if there is no such layer or option, all is well.
    if rule.name in ("attention-collapse", "degenerate-normalization", "excessive-weight-decay"):
        assert result is None
        return
    assert isinstance(result, NotChecked)
    assert "failed" not in result.reason


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("run", HEALTHY.values(), ids=HEALTHY)
def test_rule_is_silent_on_a_healthy_run(rule: Rule, run: Run) -> None:
    result = rule.check(run, Settings())
    assert not isinstance(result, Finding)
    assert result is None or "failed" not in result.reason


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_leaves_the_run_as_it_is(rule: Rule) -> None:
    run, untouched = mlp_run(steps=20), mlp_run(steps=20)
    rule.check(run, Settings())
    for table in ("steps", "layer_statistics", "parameter_statistics"):
        assert getattr(run, table).equals(getattr(untouched, table))
    for name in run.info.parameters:
        assert name == untouched.parameter(name.name)


@pytest.mark.parametrize("run", ALL, ids=range(len(ALL)))
def test_diagnosis_is_deterministic(run: Run) -> None:
    assert diagnose(run) == diagnose(replace(run))


@pytest.mark.parametrize("run", HEALTHY.values(), ids=HEALTHY)
def test_healthy_runs_are_called_healthy_with_evidence(run: Run) -> None:
    diagnosis = diagnose(run)
    assert diagnosis.verdict == "healthy"
    names = {item.name for item in diagnosis.evidence}
    assert {"update / weight", "loss improvement"} <= names
    assert all(np.isfinite(item.value) for item in diagnosis.evidence)


def test_empty_and_short_runs_are_inconclusive_not_healthy() -> None:
    assert diagnose(empty_run()).verdict == "inconclusive"
    assert diagnose(mlp_run(steps=3)).verdict == "inconclusive"


def test_a_run_without_any_layer_is_not_called_healthy() -> None:
    """Its tables are lost, or no module had a name like those that were to be watched."""
    run = mlp_run()
    blind = replace(run, info=replace(run.info, layers=()), layer_statistics=run.layer_statistics[:0])
    assert diagnose(run).verdict == "healthy"
    assert diagnose(blind).verdict == "inconclusive"


def test_a_run_that_lost_the_table_of_its_steps_is_not_called_healthy() -> None:
    run = mlp_run()
    blind = replace(run, steps=run.steps[["step"]].reindex(columns=run.steps.columns))
    assert diagnose(blind).verdict == "inconclusive"


def test_missing_statistics_are_never_read_as_zero() -> None:
    run = mlp_run()
    blank = run.layer_statistics.copy()
    blank[[name for name in blank if name.startswith(("activation_", "signal_"))]] = np.nan
    weights = run.parameter_statistics.copy()
    weights[[name for name in weights if name not in ("step", "parameter")]] = np.nan
    blind = replace(run, layer_statistics=blank, parameter_statistics=weights, _tables={})
    diagnosis = diagnose(blind)
    assert not [item.rule for item in diagnosis.findings if item.severity != "note"]
    unchecked = {item.rule for item in diagnosis.not_checked}
    assert {"zero-gradient", "missing-gradient", "dead-units", "learning-rate-too-high"} <= unchecked


def with_gaps(run: Run) -> Iterator[Run]:
    """Yield what is left of a run where a table, facts of the layers, or all steps but the first are lost."""
    for name in ("steps", "layer_statistics", "parameter_statistics"):
        table = getattr(run, name)
        kept = [key for key in ("step", "layer", "parameter") if key in table]
        for left in (table.iloc[:0], table[kept], table[kept].reindex(columns=table.columns)):
            lost: dict[str, Any] = {name: left}
            yield replace(run, **lost, _tables={})
    first = [table[table["step"] == 0] for table in (run.layer_statistics, run.parameter_statistics)]
    yield Run(run.path, run.info, run.steps.iloc[:1], *first, run.events)
    yield replace(run, steps=run.steps.assign(loss=np.inf), _tables={})
    yield with_info(run, optimizers=(), training={})
    yield with_info(run, loss={})
    yield with_info(run, layers=())
    yield with_layers(run, lambda layer: replace(layer, output_shape=None, fan_in=None, fan_out=None))
    yield with_layers(run, lambda layer: replace(layer, inputs=(), functions=()))
    yield with_parameters(run, lambda parameter: replace(parameter, initial={}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_neither_fails_nor_warns_where_something_is_missing(rule: Rule) -> None:
    """Rule.check would hide that it failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in (*with_gaps(CASES[rule.name].ill), *with_gaps(CASES[rule.name].near_miss)):
            with suppress(Undecided):
                rule.detect(run, Settings())


def test_markdown_lists_every_rule_with_every_heading() -> None:
    page = markdown(RULES)
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(RULE_NAMES)
    assert page.count("**What it is not.**") == len(RULES)
