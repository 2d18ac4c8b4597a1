"""Draw several runs, or several remedies, in one plotly figure each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from gradscope.present import wording
from gradscope.present.charts import POWER_SIZE
from gradscope.present.comparison import Overlay
from gradscope.present.treatment import EffectRow

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
ZERO_LINE = "#808a97"  # legible on either theme
_OUTCOME_SYMBOLS = {"helps": "circle", "harms": "x", "no clear effect": "circle-open"}
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


def overlay_figure(overlay: Overlay, height: int = 340) -> go.Figure:
    """Return one curve for each run; the dash tells runs apart as well as the colour does."""
    figure = go.Figure()
    for number, curve in enumerate(overlay.curves):
        named = bool(curve.names)
        figure.add_trace(
            go.Scatter(
                x=curve.x,
                y=curve.y,
                name=escape(curve.label, quote=False),
                mode="lines+markers" if named and len(curve.x) < 80 else "lines",
                marker={"size": 5},
                line={"width": 2, "dash": _DASHES[number % len(_DASHES)]},
                text=[escape(name, quote=False) for name in curve.names] if named else None,
                hovertemplate="%{text}: %{y:.4g}" if named else "%{y:.4g}",
            )
        )
    figure.update_layout(
        template="none",
        height=height + 18 * max(0, len(overlay.curves) - 3),
        margin={"l": 8, "r": 12, "t": 34, "b": 44},
        hovermode="x unified",
        legend=_LEGEND,
        xaxis={"title": {"text": overlay.across}},
        yaxis={"automargin": True, "nticks": 6, "exponentformat": "power", **_scale(overlay)},
    )
    return figure


def _scale(overlay: Overlay) -> dict[str, Any]:
    if not overlay.logarithmic:
        return {"type": "linear", "rangemode": "tozero"}
    values = [value for curve in overlay.curves for value in curve.y if value]
    decades = math.log10(max(values) / min(values)) if values else 0.0
    if decades > 1.5:
        return {"type": "log", "dtick": math.ceil(decades / 6), "tickfont": {"size": POWER_SIZE}}
    return {"type": "log", "dtick": "D2", "tickformat": "~g"}  # without it 0.5 would be labelled 5


def effects_figure(rows: Sequence[EffectRow]) -> go.Figure:
    """Return each remedy's effect with its interval, the best on top; its title stands above it."""
    tried = [row for row in rows if row.gained is not None][::-1]
    labels = [_short(row.title, number) for number, row in enumerate(tried)]
    above = {"x": 0, "xref": "paper", "xanchor": "left", "yanchor": "bottom", "yshift": 5, "showarrow": False}
    gained = [100 * (row.gained or 0.0) for row in tried]
    figure = go.Figure(
        go.Scatter(
            x=gained,
            y=labels,
            mode="markers",
            marker={"size": 10, "symbol": [_OUTCOME_SYMBOLS.get(row.outcome, "circle") for row in tried]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [
                    100 * row.high - x if row.high is not None else 0
                    for row, x in zip(tried, gained, strict=True)
                ],
                "arrayminus": [
                    x - 100 * row.low if row.low is not None else 0
                    for row, x in zip(tried, gained, strict=True)
                ],
                "thickness": 2,
                "width": 5,
            },
            text=[row.outcome for row in tried],
            hovertemplate="%{y}<br>%{x:.1f} % more of the loss removed, %{text}<extra></extra>",
        )
    )
    figure.update_layout(
        template="none",
        height=84 + 46 * len(tried),
        margin={"l": 8, "r": 16, "t": 12, "b": 48},
        annotations=[above | {"y": label, "text": label, "font": {"size": 11}} for label in labels],
        showlegend=False,
        shapes=[
            {
                "type": "line",
                "x0": 0,
                "x1": 0,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"width": 1, "color": ZERO_LINE},
            }
        ],
        xaxis={"title": {"text": "initial loss removed beyond no treatment, %"}},
        yaxis={"type": "category", "showticklabels": False, "range": [-0.6, len(tried) - 0.2]},
    )
    return figure


def _short(title: str, number: int) -> str:
    """Return a title that fits a telephone; the invisible number keeps equal ones apart."""
    return escape(wording.elide(title, 52), quote=False) + "\u200b" * number
