"""Reduce a run's tables to curves over steps and profiles over depth that are small enough to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from gradscope.present import wording
from gradscope.present.grids import DISTANCE, edges, source_table
from gradscope.records import Finding, Report

LINE_POINTS = 800
PROFILE_POINTS = 300
LEARNING_RATES = 6
DRAWABLE = 1e150  # beyond it, differences of values overflow in the browser
WEIGHT_ROLES = ("linear", "convolution", "recurrent", "attention", "embedding")


@dataclass(frozen=True)
class Line:
    """A curve over steps; None where the value was not finite or not measured."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class History:
    """Loss, gradient norm (before and after clipping) and learning rates, with the steps that matter."""

    loss: Line | None
    norms: tuple[Line, ...]
    rates: tuple[Line, ...]
    onsets: tuple[tuple[int, str], ...]
    nonfinite_loss: tuple[int, ...]
    skipped: tuple[int, ...]
    summary: str


@dataclass(frozen=True)
class Profile:
    """One statistic over depth: at the first and last recorded step, its median, and what theory predicts."""

    key: str
    title: str
    meaning: str
    layers: tuple[str, ...]
    depths: tuple[int, ...]
    first: tuple[float | None, ...]
    median: tuple[float | None, ...]
    last: tuple[float | None, ...]
    predicted: tuple[float | None, ...]
    gain: float | None
    summary: str


def history(report: Report) -> History:
    """Return the run's curves over steps, thinned so that spikes stay visible."""
    steps = report.run.steps
    loss = _line("loss", steps, "loss")
    norms = [_line("before clipping", steps, "grad_norm")]
    if _clipped(steps):
        norms.append(_line("after clipping", steps, "clipped_grad_norm"))
    recorded = steps["step"].to_numpy()
    values = steps["loss"].to_numpy(dtype="float64") if "loss" in steps else np.array([])
    broken = recorded[~np.isfinite(values)] if len(values) else values
    missing_everywhere = loss is None and not np.isinf(values).any()
    skipped = recorded[steps["skipped"].to_numpy(dtype="float64") > 0] if "skipped" in steps else recorded[:0]
    return History(
        loss,
        tuple(line for line in norms if line),
        _learning_rates(steps),
        _onsets(report.findings),
        () if missing_everywhere else _sample([int(step) for step in broken], 100),
        _sample([int(step) for step in skipped], 100),
        _history_summary(steps),
    )


def _clipped(steps: pd.DataFrame) -> bool:
    if "clipped_grad_norm" not in steps or "grad_norm" not in steps:
        return False
    before, after = steps["grad_norm"].to_numpy("float64"), steps["clipped_grad_norm"].to_numpy("float64")
    return bool(np.any(after < before * (1 - 1e-4)))


def _learning_rates(steps: pd.DataFrame) -> tuple[Line, ...]:
    """Return one line for each group whose rate differs from those before it."""
    lines: list[Line] = []
    for column in (name for name in steps.columns if name == "lr" or str(name).startswith("lr_")):
        group = str(column).removeprefix("lr").removeprefix("_") or "0"
        line = _line(f"group {group}", steps, str(column))
        if line and line.values not in [known.values for known in lines]:
            lines.append(line)
    return tuple(lines[:LEARNING_RATES])


def _line(label: str, steps: pd.DataFrame, column: str) -> Line | None:
    if column not in steps or not (abs(steps[column].to_numpy("float64")) < DRAWABLE).any():
        return None
    values = steps[column].to_numpy("float64")
    keep = _telling(values, LINE_POINTS)
    places = steps["step"].to_numpy()[keep]
    significant = [float(f"{value:.4g}") if abs(value) < DRAWABLE else None for value in values[keep]]
    return Line(label, tuple(int(step) for step in places), tuple(significant))


def _telling(values: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of each block's lowest, highest and first non-finite value."""
    if len(values) <= most:
        return np.arange(len(values))
    keep = {0, len(values) - 1}
    for start, end in pairwise(edges(len(values), most // 3)):
        block = values[start:end]
        finite = np.flatnonzero(np.isfinite(block))
        if finite.size:
            keep |= {int(start + finite[block[finite].argmin()]), int(start + finite[block[finite].argmax()])}
        if finite.size < len(block):
            keep.add(int(start + np.flatnonzero(~np.isfinite(block))[0]))
    return np.array(sorted(keep))


def _sample(items: Sequence[int], most: int) -> tuple[int, ...]:
    return tuple(items[index] for index in edges(len(items), most)[:-1])


def _onsets(findings: Sequence[Finding]) -> tuple[tuple[int, str], ...]:
    """Return the steps where root causes began, with the names of the rules; the most urgent eight."""
    begun: dict[int, list[str]] = {}
    for finding in findings:
        if finding.caused_by is None and finding.severity != "note":
            begun.setdefault(finding.first_step, []).append(wording.clean(finding.rule, 40))
    kept = list(begun.items())[:8]
    return tuple(sorted((step, ", ".join(rules[:3])) for step, rules in kept))


def _history_summary(steps: pd.DataFrame) -> str:
    parts = []
    for column, label in (("loss", "Loss"), ("grad_norm", "Gradient norm"), ("lr", "Learning rate")):
        values = steps[column] if column in steps else pd.Series(dtype="float64")
        known = values[np.isfinite(values)]
        if len(known):
            first, last, end = (float(v) for v in (known.iloc[0], known.iloc[-1], values.iloc[-1]))
            before = "" if np.isfinite(end) else f", {wording.figure(last)} the last before"
            parts.append(
                f"{label} {wording.figure(first)} at the start, {wording.figure(end)} at the end{before}."
            )
    coefficient = steps["clip_coefficient"] if "clip_coefficient" in steps else pd.Series(dtype="float64")
    clipped = coefficient.dropna() < 1 - 1e-4
    if clipped.any():
        parts.append(f"Clipping acted in {wording.percent(float(clipped.mean()))} of the recorded steps.")
    return " ".join(parts)


@dataclass(frozen=True)
class _Depth:
    """A statistic that is drawn over depth, and the end from which theory continues it."""

    key: str
    title: str
    meaning: str
    column: str
    anchor: Literal["input", "output"] | None = None


_DEPTHS = (
    _Depth(
        "signal", "Gradient signal over depth", "rms gradient at each layer's output", "signal_rms", "output"
    ),
    _Depth("activation", "Activations over depth", "rms of each layer's output", "activation_rms", "input"),
    _Depth(
        "distance",
        "Distance between rows over depth",
        "1 − cosine between the rows (samples, or tokens of one) of each layer's output",
        DISTANCE,
    ),
)


def profiles(report: Report) -> tuple[Profile, ...]:
    """Return what is drawn over the depth of the layers that carry weights."""
    layers = report.run.layers
    chosen = [layer for layer in layers if layer.role in WEIGHT_ROLES]
    chosen = chosen if len(chosen) > 1 else list(layers)
    names, depths = [layer.name for layer in chosen], [layer.depth for layer in chosen]
    made = (_profile(item, report, names, depths) for item in _DEPTHS)
    return tuple(profile for profile in made if profile)


def _gain(findings: Sequence[Finding], forward: bool) -> float | None:
    """Return the gain per layer that theory predicts, where a finding states it."""
    for finding in findings:
        if finding.rule.endswith("-signal") == forward:
            for key, value in finding.evidence.items():
                if "predicted" in key and "gain" in key and isinstance(value, (int, float)):
                    return float(value) if np.isfinite(value) and value > 0 else None
    return None


def _profile(item: _Depth, report: Report, names: list[str], depths: list[int]) -> Profile | None:
    table = source_table(report.run, "layer", item.column)[names].replace([np.inf, -np.inf], np.nan)
    gain = _gain(report.findings, item.anchor == "input") if item.anchor else None
    keep = edges(len(names), PROFILE_POINTS)[:-1]
    table = table.iloc[:, keep].dropna(how="all")
    if len(names) < 2 or table.empty:
        return None
    first, last = table.iloc[0].to_numpy("float64"), table.iloc[-1].to_numpy("float64")
    median = table.median().to_numpy("float64")
    places = np.array(keep)
    predicted = _predicted(median, places, gain, anchor=0 if item.anchor == "input" else -1)
    return Profile(
        item.key,
        item.title,
        item.meaning,
        tuple(wording.name(names[index]) for index in keep),
        tuple(depths[index] for index in keep),
        _positive(first),
        _positive(median),
        _positive(last),
        _positive(predicted),
        gain,
        _profile_summary(median, [names[index] for index in keep], gain),
    )


def _predicted(median: np.ndarray, places: np.ndarray, gain: float | None, anchor: int) -> np.ndarray:
    """Continue the gain per weight layer from one end: the output for signals, the input for activations."""
    known = np.flatnonzero(np.isfinite(median) & (median > 0))
    if gain is None or not known.size:
        return np.full(len(median), np.nan)
    start = known[anchor]
    with np.errstate(over="ignore", under="ignore"):
        curve: np.ndarray = median[start] * gain ** np.abs(places - places[start]).astype("float64")
    return curve


def _positive(values: np.ndarray) -> tuple[float | None, ...]:
    """Keep four digits of what a logarithmic axis can show."""
    return tuple(float(f"{value:.4g}") if 0 < value < DRAWABLE else None for value in values)


def _profile_summary(median: np.ndarray, names: list[str], gain: float | None) -> str:
    known = np.flatnonzero(np.isfinite(median))
    if not known.size:
        return "No finite value was recorded."
    start, end = known[0], known[-1]
    text = wording.figure
    summary = (
        f"Median over the run: {text(float(median[start]))} at the input end ({wording.name(names[start])}), "
        f"{text(float(median[end]))} at the output end ({wording.name(names[end])})."
    )
    return summary if gain is None else f"{summary} Theory predicts a gain of {text(gain)} per layer."
