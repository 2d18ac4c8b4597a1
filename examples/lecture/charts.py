"""The few kinds of chart that the lecture's pages draw, as plotly figures without colours of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

POWERS = {"exponentformat": "power"}


def line_chart(
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]],
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    mode: str = "lines+markers",
    height: int = 360,
    dotted: Sequence[str] = (),
    ticks: Sequence[float] | None = None,
) -> go.Figure:
    """Draw named (x, y) series; those in `dotted` are references and get no markers.

    An empty series only takes its turn with the colours, so that a name keeps its colour on all charts.
    """
    chart = go.Figure()
    for name, (across, up) in series.items():
        reference = name in dotted
        chart.add_scatter(
            x=list(across),
            y=list(up),
            name=name,
            mode="lines" if reference else mode,
            line={"dash": "dot"} if reference else {},
            showlegend=len(across) > 0,
        )
    chart.update_layout(height=height, xaxis=_axis(x, log_x), yaxis=_axis(y, log_y), showlegend=True)
    if ticks is not None:
        chart.update_xaxes(tickvals=list(ticks))
    if log_y:
        heights = [value for _, up in series.values() for value in up if value > 0]
        if 30 < max(heights) / min(heights) < 1e8:
            chart.update_yaxes(dtick=1)  # label powers of ten only
    return chart


def heatmap(
    values: Sequence[Sequence[float]],
    columns: Sequence[str],
    rows: Sequence[str],
    x: str = "",
    y: str = "",
    text: Sequence[Sequence[str]] | None = None,
    scale: str = "Viridis",
    limits: tuple[float, float] | None = None,
    height: int = 360,
    bar: str = "",
) -> go.Figure:
    """Draw a matrix, the first row on top, with its figures written in the cells if `text` is given."""
    low, high = limits or (None, None)
    chart = go.Figure(
        go.Heatmap(
            z=values,
            x=list(columns),
            y=list(rows),
            zmin=low,
            zmax=high,
            colorscale=scale,
            text=text,
            texttemplate="%{text}" if text is not None else None,
            colorbar={"title": {"text": bar, "side": "right"}, "thickness": 12, "outlinewidth": 0},
            hoverongaps=False,
        )
    )
    chart.update_layout(height=height, xaxis={"title": x, "type": "category"})
    chart.update_layout(yaxis={"title": y, "type": "category", "autorange": "reversed"})
    return chart


def images(
    rows: Sequence[Sequence[Any]], titles: Sequence[str], height: int = 360, signed: bool = False
) -> go.Figure:
    """Draw small grey images in a grid, a title to each row; signed ones are blue below zero."""
    from plotly.subplots import make_subplots

    columns = max(len(row) for row in rows)
    chart = make_subplots(
        rows=len(rows), cols=columns, horizontal_spacing=0.006, vertical_spacing=0.05, row_titles=list(titles)
    )
    for row, pictures in enumerate(rows, start=1):
        for column, picture in enumerate(pictures, start=1):
            size = float(abs(picture).max()) or 1.0
            limits = {"zmid": 0, "zmin": -size, "zmax": size} if signed else {}
            chart.add_heatmap(
                z=picture,
                row=row,
                col=column,
                showscale=False,
                hoverinfo="skip",
                colorscale="RdBu_r" if signed else "Greys_r",
                **limits,
            )
    chart.update_xaxes(visible=False, constrain="domain")
    chart.update_yaxes(visible=False, autorange="reversed", scaleanchor=None)
    return chart.update_layout(height=height, margin={"l": 8, "r": 36, "t": 12, "b": 12})


def _axis(title: str, logarithmic: bool) -> dict[str, Any]:
    return {"title": title, "type": "log", **POWERS} if logarithmic else {"title": title}
