"""How alike rows are, and how attention spreads: in the table, as maps, over depth and side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from gradscope.columns import LAYER_COLUMNS
from gradscope.present import charts, wording
from gradscope.present.comparison import compare
from gradscope.present.curves import profiles
from gradscope.present.grids import ZERO, grids
from gradscope.present.html import render
from gradscope.present.table import Cell, Table, layer_table
from gradscope.records import Report, Run
from tests.runs import mlp_run


def run_of(
    cosine: Callable[[int, int], float], entropy: Callable[[int, int], float] | float = math.nan
) -> Run:
    """Build a run of four layers and six steps; cosine of (step, layer)."""
    values = {"activation_cosine": cosine, "attention_entropy": entropy}
    return mlp_run(depth=4, steps=6, layer_values=values)


def collapsing(step: int, place: int) -> float:
    return 1 - 10.0 ** -(1 + 2 * place)


def column(table: Table, group: str, title: str) -> list[Cell]:
    place = [(heading.group, heading.title) for heading in table.headings].index((group, title))
    return [row.cells[place] for row in table.rows if row.kind == "Linear"]


def test_the_table_says_how_far_cosines_are_from_one_and_sorts_by_it() -> None:
    cells = column(layer_table(Report(run_of(collapsing), "healthy")), "Row cosine", "median")
    assert [cell.text for cell in cells] == ["0.9", "0.999", "1 − 1e-5", "1 − 1e-7"]
    values = [cell.value for cell in cells]
    assert values == sorted(set(values))


def test_the_table_gives_the_lowest_entropy_and_what_the_column_means() -> None:
    run = run_of(collapsing, lambda step, place: 0.02 if (step, place) == (3, 1) else 0.9)
    table = layer_table(Report(run, "healthy"))
    assert [cell.text for cell in column(table, "Attention entropy", "lowest")] == [
        "90 %",
        "2.0 %",
        "90 %",
        "90 %",
    ]
    assert column(table, "Attention entropy", "last")[1].text == "90 %"
    meanings = {heading.group: heading.meaning for heading in table.headings}
    for group, name in (("Row cosine", "activation_cosine"), ("Attention entropy", "attention_entropy")):
        documented = next(known.meaning for known in LAYER_COLUMNS if known.name == name)
        assert meanings[group].startswith(documented)


def without_the_columns(run: Run) -> Run:
    """Return the run as a version that recorded neither would have written it."""
    left = run.layer_statistics.drop(
        columns=["activation_cosine", "attention_entropy", "attention_entropy_lowest"]
    )
    return replace(run, layer_statistics=left, _tables={})


@pytest.mark.parametrize("build", [lambda: mlp_run(depth=4, steps=6), lambda: without_the_columns(mlp_run())])
def test_what_a_run_has_not_recorded_is_nowhere_on_its_page(build: Callable[[], Run]) -> None:
    page = render(Report(build(), "healthy")).split("</style>")[1].split('id="payload"')[0]
    for word in ("Row cosine", "Attention entropy", "Sharpest head", "Distance between rows"):
        assert word not in page


def test_the_map_of_distances_shows_decades_and_exact_likeness() -> None:
    drawn, _ = grids(run_of(lambda step, place: 1 + 1e-9 if place == 3 else collapsing(step, place)))
    grid = next(grid for grid in drawn if grid.key == "distance")
    assert [row[0] for row in grid.values] == [-1.0, -3.0, -5.0, None]
    assert [row[0] for row in grid.marks] == [0, 0, 0, ZERO]
    assert "Exactly 0 at every step in 1 of 4." in grid.summary
    assert (grid.low, grid.high) == (-5, 0.3)


def test_rows_that_differ_need_no_map() -> None:
    drawn, notes = grids(run_of(lambda step, place: 0.5))
    assert "distance" not in {grid.key for grid in drawn}
    assert any("cosine under 0.9" in note for note in notes)


def test_entropy_is_coloured_where_it_is_low() -> None:
    drawn, _ = grids(run_of(collapsing, lambda step, place: 0.1 * (1 + place)))
    grid = next(grid for grid in drawn if grid.key == "entropy")
    assert grid.summary == "Lowest in the run: from 10 % in net.0 to 40 % in net.6."
    axis = charts.grid_figure(grid).layout.coloraxis
    assert (axis.reversescale, axis.cmin, axis.cmax) == (True, 0, 1)
    dead = next(
        grid
        for grid in grids(mlp_run(activation_values={"activation_dead_unit_fraction": 0.5}))[0]
        if grid.key == "dead"
    )
    assert not charts.grid_figure(dead).layout.coloraxis.reversescale


def test_the_sharpest_head_has_columns_and_a_map_of_its_own() -> None:
    values = {"attention_entropy": 0.8, "attention_entropy_lowest": lambda step, place: 0.1 * (1 + place)}
    run = mlp_run(depth=4, steps=6, layer_values=values)
    drawn = {grid.key: grid for grid in grids(run)[0]}
    assert drawn["entropy"].summary == "Lowest in the run: 80 % in each."
    assert drawn["sharpest"].values[0][0] == pytest.approx(0.1)
    cells = column(layer_table(Report(run, "healthy")), "Sharpest head", "lowest")
    assert [cell.text for cell in cells] == ["10 %", "20 %", "30 %", "40 %"]


def test_the_distance_is_drawn_over_depth_and_laid_over_other_runs() -> None:
    plain = Report(mlp_run(depth=4, steps=6), "healthy")
    ill = Report(run_of(collapsing), "ailing")
    profile = next(item for item in profiles(ill) if item.key == "distance")
    assert profile.median == pytest.approx((1e-1, 1e-3, 1e-5, 1e-7), rel=1e-3)
    assert profile.gain is None
    overlays = {item.key: item for item in compare([plain, ill]).overlays}
    assert [curve.label for curve in overlays["distance"].curves] == ["test (2)"]
    assert len(overlays["signal"].curves) == 2
    assert "distance" not in {item.key for item in compare([plain, plain]).overlays}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (-0.25, "−0.25"), (0.9989, "0.999"), (0.99999, "1 − 1e-5"), (1.0, "1"), (1 + 1e-9, "1")],
)
def test_cosines_read_as_a_person_would_write_them(value: float, text: str) -> None:
    assert wording.cosine(value) == text
