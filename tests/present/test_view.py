from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.present import wording
from gradscope.present.curves import LINE_POINTS, history, profiles
from gradscope.present.grids import GRID_COLUMNS, GRID_ROWS, NONFINITE, ZERO, edges, grids
from gradscope.present.table import TABLE_ROWS, layer_table
from gradscope.present.view import STRIP_CELLS, Page, page
from gradscope.records import Finding, Report
from tests.present.reports import ailing_report, healthy_report, large_report, nasty_report
from tests.runs import empty_run, mlp_run


def grid_of(run, key):
    return next(grid for grid in grids(run)[0] if grid.key == key)


def test_consequences_are_folded_under_their_root_cause() -> None:
    cards = page(ailing_report()).cards
    assert [card.rule for card in cards] == ["vanishing-gradient", "unscaled-input", "over-clipping"]
    assert [card.rule for card in cards[0].consequences] == ["learning-rate-too-low"]
    assert len({card.anchor for root in cards for card in (root, *root.consequences)}) == 4


@pytest.mark.parametrize(
    ("causes", "roots"),
    [
        ({"a": None, "b": "a", "c": "b"}, {"a"}),  # a chain ends at its root
        ({"a": "gone", "b": "a"}, {"a"}),  # a cause that was not found
        ({"a": "b", "b": "a", "c": None}, {"a", "c"}),  # a circle
        ({"a": "a"}, {"a"}),
    ],
)
def test_every_finding_is_shown_once_whatever_causes_say(causes, roots) -> None:
    findings = tuple(Finding(rule, "warning", "m", caused_by=cause) for rule, cause in causes.items())
    cards = page(Report(mlp_run(steps=2), "ailing", findings)).cards
    shown = [card.rule for root in cards for card in (root, *root.consequences)]
    assert {card.rule for card in cards} == roots
    assert sorted(shown) == sorted(causes)


def test_headline_remedy_and_facts_tell_what_where_since_when_and_what_to_do() -> None:
    shown = page(ailing_report(steps=60))
    assert shown.headline == "Vanishing gradient"
    assert shown.cards[0].where == "net.0 and 1 more layer"
    assert shown.cards[0].since == "step 0, to the end"
    assert shown.cards[1].since == "step 3, until step 5"
    assert shown.first_remedy == "Initialise for sigmoid"
    facts = {fact.label: fact.value for fact in shown.facts}
    assert (facts["Loss"], facts["Steps"], facts["Optimizer"]) == ("2.3 → 2.3", "60", "SGD")
    overhead = next(fact.hint for fact in shown.facts if fact.label == "Duration")
    assert overhead == "watching added 1.0 % to recorded steps"  # 0.1 of 9.9 ms


def test_a_healthy_page_shows_its_evidence_and_an_empty_one_claims_nothing() -> None:
    healthy = page(healthy_report())
    assert (healthy.headline, healthy.proofs[0].value) == ("No ailment found", "0.998")
    empty = page(Report(empty_run(), "inconclusive"))
    assert empty.headline == "Too little was recorded to judge"
    assert empty.lead.startswith("0 recorded steps.")
    assert (empty.grids, empty.profiles, empty.history.loss) == ((), (), None)


def test_a_budget_that_left_too_few_steps_is_named() -> None:
    run = mlp_run(steps=3)
    tight = replace(run, info=replace(run.info, settings={"overhead_budget": 0.02}))
    assert "within 2.0 % of the time" in page(Report(tight, "inconclusive")).lead
    assert "of the time" not in page(Report(run, "inconclusive")).lead


def test_grid_holds_the_logarithms_of_the_recorded_values_in_execution_order() -> None:
    run = mlp_run(depth=3, steps=5, layer_values={"signal_rms": lambda step, place: 10.0 ** -(step + place)})
    grid = grid_of(run, "signal")
    assert grid.rows == ("net.0", "net.1", "net.2", "net.3", "net.4")
    assert grid.columns == (0, 1, 2, 3, 4)
    assert grid.values[2] == (-1.0, -2.0, -3.0, -4.0, -5.0)


def test_zero_missing_and_nonfinite_are_three_different_things() -> None:
    values = {0: 0.0, 1: math.nan, 2: math.inf, 3: 1.0}
    run = mlp_run(depth=1, steps=4, layer_values={"signal_rms": lambda step, place: values[step]})
    grid = grid_of(run, "signal")
    assert grid.values == ((None, None, None, 0.0),)
    assert grid.marks == ((ZERO, 0, NONFINITE, 0),)


def test_a_counter_of_nonfinite_entries_marks_the_cell() -> None:
    run = mlp_run(
        depth=2, steps=3, layer_values={"activation_nonfinite": lambda step, place: float(step == 1)}
    )
    grid = grid_of(run, "activation")
    assert [row[1] for row in grid.marks] == [NONFINITE, 0, NONFINITE]
    assert "first at step 1 in net.0" in grid.summary


def test_large_runs_are_merged_into_blocks_and_the_page_says_so() -> None:
    report = large_report(700, 500)
    shown = page(report)
    assert {grid.key for grid in shown.grids} == {
        *("signal", "activation", "update", "dead", "saturated"),
        *("distance", "entropy"),
    }
    for grid in shown.grids:
        assert len(grid.rows) <= GRID_ROWS
        assert len(grid.columns) <= GRID_COLUMNS
        assert all(len(row) == len(grid.columns) for row in grid.values)
    grid = grid_of(report.run, "signal")
    signal = report.run.layer_table("signal_rms").iloc[:3, :6]  # columns merge 3 steps, rows 6 layers
    assert grid.values[0][0] == pytest.approx(np.log10(signal.median().median()), abs=0.006)
    dead = report.run.layer_table("activation_dead_unit_fraction").iloc[:3, :6]
    assert grid_of(report.run, "dead").values[0][0] == pytest.approx(dead.max().max(), abs=6e-4)
    entropy = report.run.layer_table("attention_entropy").iloc[:3, :6]
    assert grid_of(report.run, "entropy").values[0][0] == pytest.approx(entropy.min().min(), abs=6e-4)
    assert any("500 recorded steps" in note and "700 layers" in note for note in shown.notes)
    assert len(shown.cards[0].strip) <= STRIP_CELLS
    assert shown.cards[0].hidden_names > 0


def test_table_of_a_very_deep_model_keeps_the_layers_that_findings_name() -> None:
    report = large_report(1000, 3)
    ill = ("encoder.0.fc", "encoder.501.fc", "encoder.999.fc")
    table = layer_table(replace(report, findings=(replace(report.findings[0], layers=ill),)))
    names = [row.name for row in table.rows]
    assert len(names) <= TABLE_ROWS
    assert len(names) + table.hidden == 1000
    assert set(ill) <= set(names)
    assert [row.name for row in table.rows if row.ailments] == list(ill)


def test_table_gives_the_median_and_the_last_value() -> None:
    run = mlp_run(
        depth=2,
        steps=5,
        layer_values={"signal_rms": lambda step, place: float([1, 2, 3, 4, 50][step])},
        parameter_values={"update_ratio": lambda step, place: 0.25},
    )
    table = layer_table(Report(run, "healthy"))
    titles = [(heading.group, heading.title) for heading in table.headings]
    cells = table.rows[0].cells
    assert cells[titles.index(("Signal", "median"))].text == "3"
    assert cells[titles.index(("Signal", "last"))].value == 50
    assert cells[titles.index(("Update", "last"))].text == "0.25"
    assert cells[titles.index(("", "Parameters"))].text == "4,160"


def test_curves_are_thinned_but_keep_every_block_s_spike_and_gap() -> None:
    def loss(step: int) -> float:
        return {1234: 99.0, 2345: math.nan, 3456: math.inf}.get(step, 1.0 + step % 7)

    curves = history(Report(mlp_run(depth=1, steps=4000, loss=loss), "healthy"))
    assert curves.loss is not None
    assert len(curves.loss.steps) <= LINE_POINTS
    assert (curves.loss.steps[0], curves.loss.steps[-1]) == (0, 3999)
    assert max(value for value in curves.loss.values if value is not None) == 99.0
    assert curves.loss.values[curves.loss.steps.index(2345)] is None
    assert curves.nonfinite_loss == (2345, 3456)


def test_a_loss_that_ends_in_nan_is_not_summed_up_by_its_last_finite_value() -> None:
    run = mlp_run(depth=1, steps=6, loss=lambda step: math.nan if step > 3 else 2.0 - step / 4)
    summary = history(Report(run, "ailing")).summary
    assert summary.startswith("Loss 2 at the start, NaN at the end, 1.25 the last before.")


def test_a_share_that_is_the_same_everywhere_is_said_once() -> None:
    run = mlp_run(depth=3, activation_values={"activation_dead_unit_fraction": 1.0})
    assert grid_of(run, "dead").summary == "Highest share in the run: 100 % in each."


def test_clipped_norm_and_groups_rates_are_shown_only_where_they_differ() -> None:
    run = mlp_run(depth=1, steps=6)
    same = run.steps.assign(lr_1=run.steps["lr"])
    assert len(history(Report(replace(run, steps=same), "healthy")).rates) == 1
    other = run.steps.assign(lr_1=0.5, clipped_grad_norm=0.5, clip_coefficient=0.5)
    curves = history(Report(replace(run, steps=other), "healthy"))
    assert [line.name for line in curves.rates] == ["group 0", "group 1"]
    assert [line.name for line in curves.norms] == ["before clipping", "after clipping"]
    assert "Clipping acted in 100 % of the recorded steps." in curves.summary


def test_profile_continues_the_predicted_gain_from_the_output() -> None:
    signal, activation = profiles(ailing_report(depth=12))
    assert signal.gain == 0.141
    assert signal.predicted[-1] == signal.median[-1]
    assert signal.predicted[0] == pytest.approx(1e-3 * 0.141**11, rel=1e-3)
    assert activation.gain is None
    assert signal.layers[1] == "net.2"  # the layers with weights


def test_nothing_on_a_hostile_page_is_invisible_or_out_of_bounds() -> None:
    def texts(part: object):
        if isinstance(part, str):
            yield part
        elif isinstance(part, tuple):
            for item in part:
                yield from texts(item)
        elif dataclasses.is_dataclass(part):
            for field in dataclasses.fields(part):
                yield from texts(getattr(part, field.name))

    shown: Page = page(nasty_report())
    for text in texts(shown):
        text.encode()
        assert "\u202e" not in text
        assert "\x00" not in text


@given(st.text(), st.integers(3, 400))
def test_cleaned_text_is_short_encodable_and_has_no_control_characters(text: str, longest: int) -> None:
    cleaned = wording.clean(text, longest)
    cleaned.encode()
    assert len(cleaned) <= longest
    assert cleaned.isprintable() or set(cleaned) - set(filter(str.isprintable, cleaned)) <= set(
        "\u200c\u200d\u00a0\u3000"
    ) | {char for char in cleaned if char.isspace()}


@given(st.integers(0, 5000), st.integers(1, 300))
def test_blocks_cover_everything_once(length: int, most: int) -> None:
    bounds = edges(length, most)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == length
    assert len(sizes) <= most
    assert (sizes > 0).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3, "3"),
        (12000.0, "12,000"),
        (0.0123456, "0.0123"),
        (3.2e-17, "3.2e-17"),
        (1234567.0, "1.23e6"),
        (-0.5, "−0.5"),
        (-17, "−17"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (None, "–"),
        ((0.9, 0.999), "0.9, 0.999"),
    ],
)
def test_figures_read_as_a_person_would_write_them(value: object, text: str) -> None:
    assert wording.figure(value) == text


@given(st.floats(-1e307, 1e307))
def test_a_figure_is_within_half_a_percent_of_its_value(value: float) -> None:
    shown = float(wording.figure(value).replace("−", "-").replace(",", ""))
    assert shown == pytest.approx(value, rel=0.0051, abs=1e-323)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "10 ms"), (12.34, "12.3 s"), (201, "3 min 21 s"), (7260, "2 h 01 min"), (math.nan, "–")],
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text
