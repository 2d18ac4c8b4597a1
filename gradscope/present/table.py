"""Gather the statistics of each layer in one row: their median over the run and their last value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from gradscope.columns import meaning_of
from gradscope.present import wording
from gradscope.present.grids import edges, weights
from gradscope.records import SEVERITIES, Finding, LayerInfo, Report, Run, Severity

TABLE_ROWS = 250
TABLE_TAGS = 3


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, as it is sorted (None last), and how far its bar reaches, 0 to 1."""

    text: str
    value: float | None
    bar: float | None = None


@dataclass(frozen=True)
class Heading:
    """A column of the table: its name, what is in it, and the statistic it belongs to."""

    title: str
    meaning: str
    group: str = ""


@dataclass(frozen=True)
class LayerRow:
    """A layer: its place, its statistics in the order of the headings, and the rules that name it."""

    depth: int
    name: str
    kind: str
    cells: tuple[Cell, ...]
    ailments: tuple[str, ...]
    severity: Severity | None


@dataclass(frozen=True)
class Table:
    """The layer table; hidden counts the layers that it leaves out."""

    headings: tuple[Heading, ...]
    rows: tuple[LayerRow, ...]
    hidden: int

    @property
    def ill(self) -> bool:
        """Return whether a finding names any of the layers."""
        return any(row.ailments for row in self.rows)

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the statistics, each of which has two columns."""
        return tuple(dict.fromkeys(heading.group for heading in self.headings if heading.group))


Typical = Literal["median", "highest", "lowest"]
_MERGES: dict[Typical, str] = {"median": "median", "highest": "max", "lowest": "min"}
Kind = Literal["size", "share", "cosine"]  # how a number is written, and how long its bar is
_TEXTS: dict[Kind, Callable[[float], str]] = {
    "size": wording.figure,
    "share": wording.percent,
    "cosine": wording.cosine,
}


@dataclass(frozen=True)
class _Statistic:
    """A recorded statistic of layers, or of each layer's largest weight; typical: what tells of the run."""

    title: str
    meaning: str
    column: str
    typical: Typical = "median"
    kind: Kind = "size"
    weight: bool = False


_STATISTICS = (
    _Statistic("Activation", "rms of the output", "activation_rms"),
    _Statistic("Signal", "rms of the loss's gradient with respect to the output", "signal_rms"),
    _Statistic(
        "Gradient", "norm of the largest weight's gradient, before clipping", "gradient_norm", weight=True
    ),
    _Statistic("Update", "|Δw| / |w| of the largest weight", "update_ratio", weight=True),
    _Statistic(
        "Dead", "share of units never active of late", "activation_dead_unit_fraction", "highest", "share"
    ),
    _Statistic(
        "Saturated",
        "share of entries with next to no derivative",
        "activation_saturated_fraction",
        "highest",
        "share",
    ),
    _Statistic("Row cosine", meaning_of("activation_cosine"), "activation_cosine", "median", "cosine"),
    _Statistic("Attention entropy", meaning_of("attention_entropy"), "attention_entropy", "lowest", "share"),
    _Statistic(
        "Sharpest head",
        f"attention entropy: {meaning_of('attention_entropy_lowest')}",
        "attention_entropy_lowest",
        "lowest",
        "share",
    ),
)


def layer_table(report: Report) -> Table:
    """Return the statistics of each layer; of a very deep model those that matter and an even sample."""
    run = report.run
    named = _ailments(report)
    layers = _chosen(run.layers, set(named))
    statistics = [item for item in _STATISTICS if _recorded(run, item)]
    names = [layer.name for layer in layers]
    sizes = {parameter.name: parameter.size for parameter in run.parameters}
    columns = [_sizes(layers, sizes)]
    for statistic in statistics:
        columns += _statistic_cells(run, statistic, names)
    return Table(
        _headings(statistics),
        tuple(
            LayerRow(
                layer.depth,
                wording.name(layer.name),
                wording.clean(layer.kind, 80),
                tuple(column[index] for column in columns),
                *named.get(layer.name, ((), None)),
            )
            for index, layer in enumerate(layers)
        ),
        len(run.layers) - len(layers),
    )


def _ailments(report: Report) -> dict[str, tuple[tuple[str, ...], Severity]]:
    """Return the rules that name each layer, or one of its parameters, and the worst severity of them."""
    owner = {parameter.name: parameter.layer for parameter in report.run.parameters}
    named: dict[str, list[Finding]] = {}
    for finding in report.findings:
        places = [*finding.layers, *(owner[name] for name in finding.parameters if name in owner)]
        for place in dict.fromkeys(places):
            named.setdefault(place, []).append(finding)
    return {place: _ailment(findings) for place, findings in named.items()}


def _ailment(findings: Sequence[Finding]) -> tuple[tuple[str, ...], Severity]:
    rules = dict.fromkeys(finding.rule for finding in findings)
    shown = [wording.clean(rule, 60) for rule in [*rules][:TABLE_TAGS]] + (
        [f"{len(rules) - TABLE_TAGS} more"] if len(rules) > TABLE_TAGS else []
    )
    return tuple(shown), min((finding.severity for finding in findings), key=SEVERITIES.index)


def _chosen(layers: Sequence[LayerInfo], ill: set[str]) -> list[LayerInfo]:
    if len(layers) <= TABLE_ROWS:
        return list(layers)
    sick = [index for index, layer in enumerate(layers) if layer.name in ill][: TABLE_ROWS // 2]
    even = edges(len(layers) - 1, TABLE_ROWS - len(sick) - 1)
    return [layers[index] for index in sorted({*sick, *even.tolist()})]


def _recorded(run: Run, statistic: _Statistic) -> bool:
    table = run.parameter_statistics if statistic.weight else run.layer_statistics
    return statistic.column in table and bool(table[statistic.column].notna().any())


def _headings(statistics: Sequence[_Statistic]) -> tuple[Heading, ...]:
    headings = [Heading("Parameters", "entries of the layer's own parameters")]
    for item in statistics:
        headings += [
            Heading(item.typical, f"{item.meaning}: {item.typical} over the run", item.title),
            Heading("last", f"{item.meaning}: last recorded", item.title),
        ]
    return tuple(headings)


def _sizes(layers: Sequence[LayerInfo], sizes: dict[str, int]) -> list[Cell]:
    totals = [sum(sizes.get(name, 0) for name in layer.parameters) for layer in layers]
    return [Cell(f"{total:,}" if total else wording.MISSING, float(total) or None) for total in totals]


def _statistic_cells(run: Run, statistic: _Statistic, names: list[str]) -> list[list[Cell]]:
    table = _of_weights(run, statistic.column) if statistic.weight else run.layer_table(statistic.column)
    table = table.reindex(columns=names)
    typical = table.replace([np.inf, -np.inf], np.nan).agg(_MERGES[statistic.typical])
    last = table.ffill().iloc[-1] if len(table) else typical
    return [_cells(typical, statistic.kind), _cells(last, statistic.kind)]


def _of_weights(run: Run, column: str) -> pd.DataFrame:
    """Return a statistic of each layer's largest weight, under the layer's name."""
    largest: dict[str, str] = {}
    for weight in sorted(weights(run), key=lambda item: -item.size):
        largest.setdefault(weight.layer, weight.name)
    return run.parameter_table(column)[list(largest.values())].set_axis(list(largest), axis=1)


def _cells(values: pd.Series, kind: Kind) -> list[Cell]:
    numbers = [float(value) for value in values]
    bars = _log_bars(numbers) if kind == "size" else [min(1.0, max(0.0, number)) for number in numbers]
    return [
        Cell(wording.MISSING, None) if np.isnan(number) else Cell(_TEXTS[kind](number), _sorted(number), bar)
        for number, bar in zip(numbers, bars, strict=True)
    ]


def _sorted(number: float) -> float:
    return float(f"{number:.9g}")  # cosines differ from 1 in their last digits


def _log_bars(numbers: Sequence[float]) -> list[float | None]:
    """Return where each number lies between the lowest and the highest on a logarithmic scale."""
    array = np.array(numbers, dtype="float64")
    positive = np.isfinite(array) & (array > 0)
    if not positive.any():
        return [None] * len(array)
    logs = np.log10(np.where(positive, array, 1.0))
    low, high = logs[positive].min(), logs[positive].max()
    spare = max(0.0, 4.0 - (high - low)) / 2
    bars = (logs - low + spare) / (high - low + 2 * spare)
    return [round(float(bar), 3) if known else None for bar, known in zip(bars, positive, strict=True)]
