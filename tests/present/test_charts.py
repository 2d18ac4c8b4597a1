from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gradscope.present import charts
from gradscope.present.curves import history
from gradscope.present.grids import grids
from gradscope.present.view import page
from gradscope.records import Report
from tests.present.reports import ailing_report, healthy_report, large_report, nasty_report
from tests.runs import empty_run, mlp_run


@pytest.mark.parametrize("build", [ailing_report, healthy_report, nasty_report])
def test_figures_are_strict_json_without_webgl(build) -> None:
    for text in charts.figures(page(build())).values():
        figure = json.loads(text, parse_constant=pytest.fail)
        assert {trace["type"] for trace in figure["data"]} <= {"heatmap", "scatter"}


def test_one_figure_for_each_thing_that_was_recorded() -> None:
    assert set(charts.figures(page(ailing_report()))) == {
        "history",
        "profile-signal",
        "profile-activation",
        "grid-signal",
        "grid-activation",
        "grid-update",
        "grid-saturated",
    }
    assert charts.figures(page(Report(empty_run(), "inconclusive"))) == {}


def test_marks_of_a_loss_that_is_nan_show_on_either_theme() -> None:
    run = mlp_run(depth=1, steps=6, loss=lambda step: float("nan") if step > 3 else 1.0)
    figure = charts.history_figure(history(Report(run, "ailing")))
    marks = next(trace for trace in figure.data if trace.name == "loss is NaN or ∞")
    assert marks.marker.line.color == charts.NONFINITE_COLOUR  # thin symbols are all line


def test_map_shows_what_the_grid_holds() -> None:
    grid = grids(ailing_report().run)[0][0]
    heatmap = charts.grid_figure(grid).data[0]
    assert [list(row) for row in heatmap.z] == [list(row) for row in grid.values]
    assert list(heatmap.y) == list(grid.rows)


def test_a_steady_run_looks_calm() -> None:
    """Four decades of colour at least, and axes that don't blow up a flat curve."""
    run = mlp_run(depth=3, steps=20, loss=lambda step: 2.3 + 1e-3 * (step % 2))
    figure = charts.grid_figure(grids(run)[0][0])
    assert figure.layout.coloraxis.cmax - figure.layout.coloraxis.cmin >= 4
    low, high = charts.history_figure(history(Report(run, "healthy"))).layout.yaxis.range
    assert high - low >= 0.2 * 2.3


def test_text_cannot_become_markup_of_plotly() -> None:
    drawn = " ".join(charts.figures(page(nasty_report())).values())
    for markup in ("<a href", "<img", "<script", "$\\\\alpha$", "</script"):
        assert markup not in drawn


def test_equal_row_names_stay_separate_rows() -> None:
    grid = grids(mlp_run(depth=2, steps=2))[0][0]
    twins = replace(grid, rows=("same",) * len(grid.rows))
    assert len(set(charts.grid_figure(twins).data[0].y)) == len(grid.rows)


def test_ticks_are_few_and_round() -> None:
    figure = charts.grid_figure(grids(large_report(3, 1000).run)[0][0])
    ticks = [int(text.replace(",", "")) for text in figure.layout.xaxis.tickvals]
    assert ticks[0] == 0
    assert len(ticks) <= 6
    assert all(step % 50 == 0 for step in ticks[1:-1])


@pytest.mark.parametrize("recorded", range(1, 40))
def test_a_run_of_any_length_has_distinct_ticks(recorded: int) -> None:
    figure = charts.grid_figure(grids(mlp_run(depth=2, steps=recorded))[0][0])
    ticks = figure.layout.xaxis.tickvals
    assert len(ticks) == len(set(ticks)) == min(recorded, charts.STEP_LABELS)


def test_panels_that_were_not_recorded_leave_no_gap() -> None:
    run = mlp_run(depth=1, steps=5)
    run = replace(run, steps=run.steps.drop(columns=["lr", "clipped_grad_norm"]))
    layout = charts.history_figure(history(Report(run, "healthy"))).layout
    assert layout.yaxis2.domain[0] == 0
    assert layout.xaxis.anchor == "y2"
