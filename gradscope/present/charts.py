"""Draw the numbers of a page as plotly figures; the page lays its light or dark theme over them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from math import ceil, floor, inf, isfinite, log10
from typing import Any

import plotly.graph_objects as go

from gradscope.present import wording
from gradscope.present.curves import History, Line, Profile
from gradscope.present.grids import NONFINITE, ZERO, Grid
from gradscope.present.view import Page

ZERO_COLOUR, NONFINITE_COLOUR = "#c3c9d1", "#f5208b"  # neither is in the colour scales
ROW_LABELS = 26
STEP_LABELS = 6
POWER_SIZE = 9  # plotly enlarges the powers of a logarithmic axis by a quarter
CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}


def figures(page: Page) -> dict[str, str]:
    """Return each figure of a page as JSON, by its name."""
    drawn: dict[str, go.Figure] = {}
    if page.history.loss or page.history.norms:
        drawn["history"] = history_figure(page.history)
    drawn |= {f"profile-{profile.key}": profile_figure(profile) for profile in page.profiles}
    drawn |= {f"grid-{grid.key}": grid_figure(grid) for grid in page.grids}
    return {name: as_json(figure) for name, figure in drawn.items()}


def as_json(figure: go.Figure) -> str:
    """Write a figure as strict JSON, keys sorted."""
    return json.dumps(figure.to_plotly_json(), sort_keys=True, allow_nan=False, separators=(",", ":"))


def _text(text: str) -> str:
    """Escape what plotly would take for its own markup or for mathematics."""
    return escape(text, quote=False).replace("$", "&#36;")


def grid_figure(grid: Grid) -> go.Figure:
    """Return a map of layers by recorded steps, exact zeros and NaN in colours of their own."""
    labels = _distinct([_text(name) for name in grid.rows])
    steps = [f"{step:,}" for step in grid.columns]
    shown = "10<sup>%{z:.1f}</sup>" if grid.scale == "log10" else "%{z:.1%}"
    figure = go.Figure(
        go.Heatmap(
            z=grid.values,
            x=steps,
            y=labels,
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate=f"<b>%{{y}}</b><br>step %{{x}}<br>{_text(grid.title)} {shown}<extra></extra>",
        )
    )
    for mark, colour, label in ((ZERO, ZERO_COLOUR, "exactly 0"), (NONFINITE, NONFINITE_COLOUR, "NaN or ∞")):
        if grid.has(mark):
            figure.add_trace(_overlay(grid, mark, colour, label, steps, labels))
    places = range(0, len(labels), ceil(len(labels) / ROW_LABELS))
    ticks = _round_places(grid.columns, STEP_LABELS)
    figure.update_layout(
        template="none",
        height=_height(len(labels)),
        coloraxis=_colour_axis(grid),
        margin={"l": 8, "r": 8, "t": 8, "b": 44},
        xaxis={
            "type": "category",
            "title": {"text": "step"},
            "tickangle": 0,
            "ticks": "outside",
            "tickmode": "array",
            "tickvals": [steps[place] for place in ticks],
            "ticktext": [wording.short(grid.columns[place]) for place in ticks],
        },
        yaxis={
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "tickmode": "array",
            "tickvals": [labels[place] for place in places],
            "ticktext": [_text(wording.elide(grid.rows[place], 26)) for place in places],
        },
    )
    return figure


def _overlay(
    grid: Grid, mark: int, colour: str, label: str, steps: list[str], labels: list[str]
) -> go.Heatmap:
    return go.Heatmap(
        z=[[1 if cell == mark else None for cell in row] for row in grid.marks],
        x=steps,
        y=labels,
        colorscale=[[0, colour], [1, colour]],
        showscale=False,
        hoverongaps=False,
        hovertemplate=f"<b>%{{y}}</b><br>step %{{x}}<br>{_text(grid.title)}: {label}<extra></extra>",
    )


def _colour_axis(grid: Grid) -> dict[str, Any]:
    """Return the range and the legend of the colours; those of shares come with the theme."""
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "len": 1, "xpad": 6, "ypad": 0}
    limits = {"cmin": grid.low, "cmax": grid.high}
    if grid.scale == "fraction":
        bar |= {"tickformat": ".0%", "nticks": 6}
        return limits | {"colorbar": bar, "reversescale": grid.worst == "low"}
    first, last = ceil(grid.low), floor(grid.high)
    decades = list(range(first, last + 1, max(1, ceil((last - first) / 6))))
    bar |= {"tickvals": decades, "ticktext": [f"10<sup>{decade}</sup>" for decade in decades]}
    return limits | {"colorbar": bar, "colorscale": "Viridis"}


def _height(rows: int) -> int:
    return max(190, min(470, 16 * rows + 60))


def _round_places(steps: Sequence[int], most: int) -> list[int]:
    """Return the places of at most so many steps, evenly spaced as far as round numbers allow."""
    if len(steps) <= most:
        return list(range(len(steps)))
    stride = (len(steps) - 1) / (most - 1)
    reach = max(stride / 4, 0.5)  # half a place to either side always holds one
    return [_roundest(steps, number * stride, reach) for number in range(most)]


def _roundest(steps: Sequence[int], centre: float, reach: float) -> int:
    """Return the place about a centre whose step is roundest for how far off it lies."""
    window = range(max(0, ceil(centre - reach)), min(len(steps), floor(centre + reach) + 1))
    return max(window, key=lambda place: _roundness(steps[place]) - abs(place - centre) / reach)


def _roundness(number: int) -> float:
    """Return how round a number is: its trailing zeros, half a point more for an even or a 5 before them."""
    if number == 0:
        return inf
    digits = str(number).rstrip("0")
    return len(str(number)) - len(digits) + (0.5 if digits[-1] in "2468" else 0.7 if digits[-1] == "5" else 0)


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once: equal categories would fall into one row."""
    seen: Counter[str] = Counter()
    total, labels = Counter(names), []
    for name in names:
        seen[name] += 1
        labels.append(name if total[name] == 1 else f"{name} ({seen[name]})")
    return labels


def profile_figure(profile: Profile) -> go.Figure:
    """Return a statistic over depth on a logarithmic axis, with the gain that theory predicts."""
    names = [_text(name) for name in profile.layers]
    curves: list[tuple[str, tuple[float | None, ...], dict[str, Any]]] = [
        ("first step", profile.first, {"dash": "dot", "width": 1.5}),
        ("median", profile.median, {"width": 2.5}),
        ("last step", profile.last, {"dash": "dash", "width": 1.5}),
    ]
    figure = go.Figure()
    for label, values, line in curves:
        figure.add_trace(_profile_trace(profile, label, values, line, names))
    if profile.gain is not None:
        label = f"predicted gain {wording.figure(profile.gain)}"
        figure.add_trace(_profile_trace(profile, label, profile.predicted, {"dash": "longdashdot"}, names))
    low, high = _decades([profile.first, profile.median, profile.last, profile.predicted], at_least=3)
    figure.update_layout(
        template="none",
        height=330,
        margin={"l": 8, "r": 12, "t": 34, "b": 44},
        hovermode="x unified",
        legend=_LEGEND,
        xaxis={"title": {"text": "depth (place in execution order)"}, **_whole_numbers(profile.depths)},
        yaxis={
            "type": "log",
            "exponentformat": "power",
            "tickfont": {"size": POWER_SIZE},
            "automargin": True,
            "dtick": max(1, ceil((high - low) / 7)),
            "range": [low, high],
        },
    )
    return figure


def _decades(curves: Sequence[Sequence[float | None]], at_least: float) -> list[float]:
    """Return the range of a logarithmic axis; so many decades at least, or a flat curve would look wild."""
    logs = [log10(value) for values in curves for value in values if value] or [0.0]
    spare = max(0.06 * (max(logs) - min(logs)), (at_least - (max(logs) - min(logs))) / 2)
    return [round(min(logs) - spare, 3), round(max(logs) + spare, 3)]


_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}


def _profile_trace(
    profile: Profile, label: str, values: Sequence[float | None], line: dict[str, Any], names: list[str]
) -> go.Scatter:
    return go.Scatter(
        x=profile.depths,
        y=values,
        customdata=names,
        name=label,
        line=line,
        mode="lines+markers" if len(names) < 40 and label == "median" else "lines",
        hovertemplate="%{y:.3g} (%{customdata})" if label == "median" else "%{y:.3g}",
    )


def _whole_numbers(places: Sequence[int]) -> dict[str, Any]:
    """Keep ticks of an axis on whole numbers."""
    span = max(places) - min(places) if places else 0
    return {"dtick": 1} if span < 8 else {"nticks": 10, "tickformat": "~s" if span > 9999 else "d"}


def history_figure(history: History) -> go.Figure:
    """Return loss, gradient norm and learning rate, where recorded, in panels over one axis of steps."""
    figure = go.Figure()
    loss = (history.loss,) if history.loss else ()
    known = [("loss", loss, 4), ("gradient norm", history.norms, 3), ("learning rate", history.rates, 2)]
    panels = [(title, lines, share) for title, lines, share in known if lines]
    for number, (title, lines, domain) in enumerate(_stacked(panels), start=1):
        for place, line in enumerate(lines):
            figure.add_trace(_history_trace(title, line, place, len(lines), f"y{number}"))
        figure.update_layout({f"yaxis{number}": _value_axis(title, lines, domain)})
    _mark(figure, history.nonfinite_loss, loss, "loss is NaN or ∞", "x-thin")
    _mark(figure, history.skipped, loss, "update skipped (loss scaling)", "triangle-down-open")
    steps = [step for _, lines, _ in panels for line in lines for step in line.steps]
    figure.update_layout(
        template="none",
        height=520 if len(panels) == 3 else 400,
        margin={"l": 8, "r": 12, "t": 64, "b": 44},
        hovermode="x unified",
        legend=_LEGEND | {"y": 1.06},
        xaxis={
            "title": {"text": "step"},
            "anchor": f"y{len(panels)}",
            "hoverformat": ",",
            **_whole_numbers(steps),
        },
        shapes=[_onset_line(step) for step, _ in history.onsets],
        annotations=_onset_labels(history.onsets, steps),
    )
    return figure


def _stacked(
    panels: Sequence[tuple[str, Sequence[Line], int]],
) -> list[tuple[str, Sequence[Line], tuple[float, float]]]:
    """Give each panel its share of the height, the first on top."""
    gap, total = 0.06, sum(share for _, _, share in panels)
    unit, top, placed = (1 - gap * (len(panels) - 1)) / total, 1.0, []
    for title, lines, share in panels:
        bottom = max(0.0, top - unit * share)
        placed.append((title, lines, (round(bottom, 4), round(top, 4))))
        top = bottom - gap
    return placed


def _history_trace(title: str, line: Line, place: int, lines: int, axis: str) -> go.Scatter:
    return go.Scatter(
        x=line.steps,
        y=line.values,
        yaxis=axis,
        name=title if lines == 1 else f"{title}, {line.name}",
        mode="lines+markers" if len(line.steps) < 3 else "lines",
        line={
            "width": 1.8,
            "dash": ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")[place % 6],
        },
        hovertemplate="%{y:.4g}",
    )


_AXIS_TITLES = {"learning rate": "lr"}  # its panel is too low for more


def _value_axis(title: str, lines: Sequence[Line], domain: tuple[float, float]) -> dict[str, Any]:
    """Return an axis that is logarithmic where all values are positive and span more than a factor of 30."""
    values = [value for line in lines for value in line.values if value is not None]
    logarithmic = bool(values) and min(values) > 0 and max(values) > 30 * min(values)
    axis = {
        "title": {"text": _AXIS_TITLES.get(title, title), "standoff": 6},
        "domain": domain,
        "automargin": True,
        "nticks": 3 if title == "learning rate" else 5,
    }
    if logarithmic:
        return axis | {"type": "log", "exponentformat": "power", "tickfont": {"size": POWER_SIZE}}
    return axis | {"type": "linear", "exponentformat": "power", "range": _calm_range(values)}


def _calm_range(values: Sequence[float]) -> list[float] | None:
    """Return the range of a linear axis, a fifth of the largest value at least: flat must look flat."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    largest = max(abs(low), abs(high)) or 1.0
    spare = max(0.06 * (high - low), (0.2 * largest - (high - low)) / 2)
    return [low - spare, high + spare] if isfinite(high - low + 2 * spare) else None


def _mark(figure: go.Figure, steps: Sequence[int], loss: Sequence[Line], label: str, symbol: str) -> None:
    """Add a row of marks along the top of the loss panel."""
    if not steps:
        return
    highest = max((value for line in loss for value in line.values if value is not None), default=1.0)
    figure.add_trace(
        go.Scatter(
            x=steps,
            y=[highest] * len(steps),
            name=label,
            mode="markers",
            marker={
                "symbol": symbol,
                "size": 8,
                "color": NONFINITE_COLOUR,
                "line": {"width": 2, "color": NONFINITE_COLOUR},
            },
            hovertemplate=f"{label}<extra></extra>",
        )
    )


def _onset_line(step: int) -> dict[str, Any]:
    line = {"width": 1, "dash": "dash", "color": NONFINITE_COLOUR}
    return {"type": "line", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def _onset_labels(onsets: Sequence[tuple[int, str]], steps: Sequence[int]) -> list[dict[str, Any]]:
    """Name each onset above its line; neighbours take turns in height."""
    middle = (min(steps) + max(steps)) / 2 if steps else 0
    return [
        {
            "x": step,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "xanchor": "left" if step <= middle else "right",
            "yshift": 11 * (number % 2),
            "text": _text(f"{rules}, step {step:,}"),
            "showarrow": False,
            "font": {"size": 10},
        }
        for number, (step, rules) in enumerate(onsets)
    ]


def theme(
    ink: str, muted: str, rule: str, surface: str, colours: Sequence[str], shares: Sequence[str]
) -> dict[str, Any]:
    """Return a plotly template with these colours; shares: from none to all."""
    bar = {"tickfont": {"size": 10, "color": muted}}
    axis = {
        "gridcolor": rule,
        "linecolor": rule,
        "zeroline": False,
        "tickcolor": rule,
        "tickfont": {"size": 11, "color": muted},
        "title": {"font": {"size": 11, "color": muted}},
    }
    return {
        "layout": {
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(colours),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": surface, "bordercolor": rule, "font": {"color": ink, "size": 12}},
            "legend": {"font": {"size": 11, "color": ink}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": muted, "activecolor": ink},
            "annotationdefaults": {"font": {"color": muted}},
            "coloraxis": {"colorbar": bar, "colorscale": _scale(shares)},
        },
    }


def _scale(colours: Sequence[str]) -> list[list[Any]]:
    return [[place / (len(colours) - 1), colour] for place, colour in enumerate(colours)]


THEMES = {
    "light": theme(
        "#1c2530",
        "#556170",
        "#dfe4ea",
        "#ffffff",
        ("#0b62a8", "#c2570c", "#0f8a6a", "#8a4fa3", "#5b6676", "#a07c00"),
        ("#eef2f6", "#f6cd9b", "#dc7a2e", "#7a2d00"),
    ),
    "dark": theme(
        "#e6eaf0",
        "#9aa7b6",
        "#2b3542",
        "#1b232d",
        ("#66b3ff", "#ffa657", "#4fd1a5", "#d3a6f0", "#a8b3c2", "#e8c95a"),
        ("#1b232d", "#653a1c", "#dc7a2e", "#ffdcae"),
    ),
}
