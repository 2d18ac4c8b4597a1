"""Each rule finds its ailment and is silent on what only looks like it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.diagnose import RULES, diagnose
from gradscope.records import RULE_NAMES, Finding, Run
from gradscope.settings import Settings
from tests.diagnose.cases import CASES, Case, fading, of_layer, of_parameter, stuck, trains, with_layers
from tests.runs import mlp_run

BY_NAME = {rule.name: rule for rule in RULES}
# What grows in proportion when the loss is multiplied by a constant.
SCALED = (
    "signal_rms",
    "signal_absmax",
    "gradient_norm",
    "gradient_rms",
    "gradient_absmax",
    "clipped_gradient_norm",
)
# Clipping limits and half precision know an absolute scale, as does the range of a squared error.
ABSOLUTE = ("over-clipping", "ineffective-clipping", "gradient-underflow", "excessive-weight-decay")


def check(name: str, run: Run) -> Finding | None:
    result = BY_NAME[name].check(run, Settings())
    assert not (result is not None and "failed" in getattr(result, "reason", "")), result
    return result if isinstance(result, Finding) else None


def test_every_rule_has_a_case() -> None:
    assert tuple(CASES) == RULE_NAMES


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_rule_finds_its_ailment(name: str, case: Case) -> None:
    found = check(name, case.ill)
    assert found is not None
    assert found.rule == name
    assert found.severity in ("critical", "warning")
    assert found.message.endswith(".")
    assert found.cause
    assert all(math.isfinite(value) for value in found.evidence.values())
    assert found.first_step <= found.last_step
    for layer in case.layers[:1]:
        assert found.layers[0] == layer


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_rule_is_silent_on_a_near_miss(name: str, case: Case) -> None:
    found = check(name, case.near_miss)
    assert found is None or found.severity == "note"


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_evidence_is_named_in_the_documentation(name: str, case: Case) -> None:
    found = check(name, case.ill)
    assert found is not None
    missing = [key for key in found.evidence if key not in BY_NAME[name].documentation["Evidence"]]
    assert not missing


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_scaling_the_loss_changes_no_verdict(name: str, case: Case, scale: float) -> None:
    if name in ABSOLUTE or name == "output-mismatch":
        return
    for run in (case.ill, case.near_miss):
        plain, scaled = check(name, run), check(name, scale_loss(run, scale))
        assert (plain is None) == (scaled is None)
        if plain and scaled:
            assert (plain.severity, plain.layers, plain.first_step) == (
                scaled.severity,
                scaled.layers,
                scaled.first_step,
            )


def scale_loss(run: Run, scale: float) -> Run:
    """Multiply the loss, and with it every gradient and signal, by a constant."""
    steps = run.steps.assign(loss=run.steps["loss"] * scale)
    for name in ("grad_norm", "clipped_grad_norm"):
        steps[name] *= scale
    layers, parameters = run.layer_statistics.copy(), run.parameter_statistics.copy()
    for name in SCALED:
        for table in (layers, parameters):
            if name in table:
                table[name] *= scale
    # The loss's functions tell what a guess's loss is; a scaled loss isn't the function's any more.
    info = replace(run.info, loss={**run.info.loss, "functions": ("MulBackward0",)})
    if run.info.loss.get("functions") != ("NllLossBackward0", "LogSoftmaxBackward0"):
        info = run.info
    return replace(
        run, info=info, steps=steps, layer_statistics=layers, parameter_statistics=parameters, _tables={}
    )


@given(st.floats(0.05, 20), st.floats(1e-8, 1e8))
@settings(max_examples=25, deadline=None)
def test_gradient_rules_depend_on_the_gain_alone(gain: float, scale: float) -> None:
    run = fading(gain, loss=stuck, steps=8)
    plain, scaled = run, scale_loss(run, scale)
    for name in ("vanishing-gradient", "exploding-gradient"):
        assert (check(name, plain) is None) == (check(name, scaled) is None)
    assert (check("vanishing-gradient", run) is not None) == (gain**9 <= 1e-3)


def test_measured_gain_is_that_of_the_run() -> None:
    found = check("vanishing-gradient", fading(0.3, loss=stuck))
    assert found is not None
    assert found.evidence["gain_per_layer"] == pytest.approx(0.3)
    assert found.evidence["ratio_first_to_last"] == pytest.approx(0.3**9)
    assert found.evidence["predicted_gain"] == pytest.approx(1.0)
    assert "something besides" in found.cause


def test_cause_names_initialisation_and_activation_when_theory_agrees() -> None:
    small = (1 / 3 / 64) ** 0.5
    run = fading(1 / 6**0.5, loss=stuck)
    for item in run.parameters:
        if item.role == "weight":
            run = of_parameter(run, item.name, weight_std=small)
    parameters = tuple(replace(item, initial={**item.initial, "std": small}) for item in run.info.parameters)
    run = replace(run, info=replace(run.info, parameters=parameters), _tables={})
    found = check("vanishing-gradient", run)
    assert found is not None
    assert found.evidence["predicted_gain"] == pytest.approx(0.408, abs=0.001)
    assert found.evidence["sigma_w2"] == pytest.approx(1 / 3)
    assert "relu" in found.cause
    assert "0.333" in found.cause


def test_network_that_trains_well_gets_at_most_a_note() -> None:
    for name in ("vanishing-gradient", "dead-units", "saturated-activation", "learning-rate-too-high"):
        ill = CASES[name].ill
        well = replace(
            ill, steps=ill.steps.assign(loss=[trains(step) for step in ill.steps["step"]]), _tables={}
        )
        found = check(name, well)
        assert found is None or found.severity == "note"
        assert diagnose(well).verdict == "healthy"


def test_transient_at_the_start_is_at_most_a_note() -> None:
    early = {"signal_rms": lambda step, depth: 1e-3 * (0.2 ** (9 - depth) if step < 8 else 1.0)}
    weights = {"gradient_norm": lambda step, depth: 0.1 * (0.2 ** (9 - depth) if step < 8 else 1.0)}
    found = check("vanishing-gradient", mlp_run(loss=stuck, layer_values=early, parameter_values=weights))
    assert found is not None
    assert (found.severity, found.first_step, found.last_step) == ("note", 0, 7)


def test_two_optimizers_leave_the_loss_unjudged() -> None:
    run = mlp_run(loss=stuck)
    two = replace(run, info=replace(run.info, optimizers=run.info.optimizers * 2), _tables={})
    unchecked = {item.rule for item in diagnose(two).not_checked}
    assert {"learning-rate-too-high", "learning-rate-too-low", "loss-divergence"} <= unchecked


def test_first_bad_step_and_last_finite_values_are_named() -> None:
    found = check("non-finite", CASES["non-finite"].ill)
    assert found is not None
    assert (found.first_step, found.severity) == (40, "critical")
    assert found.evidence["last_finite_loss"] == pytest.approx(trains(39))
    assert "net.8" in found.message


def test_skipped_steps_of_the_loss_scaler_are_no_ailment() -> None:
    run = mlp_run(
        loss=trains,
        training={"precision": "16-mixed"},
        parameter_values={
            "gradient_nonfinite": lambda step, depth: 5.0 if step < 3 else 0.0,
        },
    )
    skipped = replace(run, steps=run.steps.assign(skipped=(run.steps["step"] < 3).astype(float)), _tables={})
    assert check("non-finite", skipped) is None
    assert check("non-finite", run) is not None


def test_gradient_that_becomes_bad_going_backward_is_placed_where_it_is_born() -> None:
    bad = {"signal_nonfinite": lambda step, depth: 4.0 if step >= 20 and depth <= 5 else 0.0}
    weights = {"gradient_nonfinite": lambda step, depth: 4.0 if step >= 20 and depth <= 5 else 0.0}
    found = check("non-finite", mlp_run(layer_values=bad, parameter_values=weights))
    assert found is not None
    assert (found.layers, found.first_step) == (("net.11",), 20)


@pytest.mark.parametrize("chunk", [np.nan, 0.0])
def test_loss_scatter_alone_is_no_divergence(chunk: float) -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal(100)
    run = mlp_run(loss=lambda step: 1.0 + 0.3 * noise[step] + chunk * 0 if chunk == chunk else 1.0)
    assert check("loss-divergence", run) is None


@pytest.mark.parametrize(
    ("first", "final", "severity"),
    [
        (0.3, 1.08, "critical"),
        (0.3, 0.7, "warning"),
        (0.3, 0.38, "note"),
        (0.3, 0.02, ""),
        (0.9999998, 1.08, ""),
    ],
)
def test_rank_collapse_weighs_what_the_loss_did_and_how_alike_inputs_were(
    first: float, final: float, severity: str
) -> None:
    run = mlp_run(loss=lambda step: 1.1 + (final - 1.1) * min(1.0, step / 20))
    run = of_layer(of_layer(run, "net.0", activation_cosine=first), "net.16", activation_cosine=1 - 1e-7)
    found = check("rank-collapse", run)
    assert (found.severity if found else "") == severity


def test_a_single_sharp_head_is_a_note_where_the_loss_is_stuck_and_nothing_where_it_trains() -> None:
    for loss, expected in ((stuck, "note"), (trains, None)):
        run = with_layers(
            mlp_run(loss=loss),
            lambda layer: replace(layer, role="attention") if layer.name == "net.4" else layer,
        )
        run = of_layer(run, "net.4", attention_entropy=0.6, attention_entropy_lowest=0.01)
        found = check("attention-collapse", run)
        assert (found and found.severity) == expected
        if found:
            assert "has a head that looks at one position only" in found.message
            assert "1.0%" in found.message


def test_attention_by_functions_is_judged_at_the_layer_that_it_feeds() -> None:
    functions = ("ViewBackward0", "ScaledDotProductFlashAttentionForCpuBackward0")
    run = with_layers(
        mlp_run(loss=stuck),
        lambda layer: replace(layer, functions=functions) if layer.name == "net.4" else layer,
    )
    found = check("attention-collapse", of_layer(run, "net.4", attention_entropy=0.01))
    assert found is not None
    assert found.severity in ("critical", "warning")
    assert found.layers == ("net.4",)
    assert BY_NAME["attention-collapse"].check(run, Settings()).reason.startswith("no attention shows")


def test_explosion_through_time_is_found_without_the_norm_of_the_whole_gradient() -> None:
    run = mlp_run(
        loss=stuck, parameter_values={"gradient_norm": lambda step, depth: 1e5 if depth == 0 else 0.1}
    )
    run = with_layers(run, lambda layer: replace(layer, role="recurrent") if layer.depth == 0 else layer)
    blind = replace(run, steps=run.steps.drop(columns="grad_norm"), _tables={})
    whole, without = (check("exploding-gradient", known) for known in (run, blind))
    assert whole is not None
    assert without is not None
    assert "its largest norm is 1 times the median." in whole.message
    assert without.message == "The gradient of the recurrent layer net.0 explodes through time."
