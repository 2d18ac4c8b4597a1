"""Render each page of ours as one self-contained HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradscope.present import charts, view
from gradscope.present.comparison import Comparison
from gradscope.present.overlays import effects_figure, overlay_figure
from gradscope.present.treatment import TreatmentPage
from gradscope.records import Report


def render(report: Report) -> str:
    """Return the page of a report; the same report gives the same bytes."""
    page = view.page(report)
    colours = {"zero": charts.ZERO_COLOUR, "nonfinite": charts.NONFINITE_COLOUR}
    return fill("report.html", charts.figures(page), page=page, colours=colours)


def render_comparison(comparison: Comparison) -> str:
    """Return the page that puts runs side by side."""
    figures = {f"overlay-{item.key}": charts.as_json(overlay_figure(item)) for item in comparison.overlays}
    return fill("comparison.html", figures, page=comparison)


def render_treatment(page: TreatmentPage) -> str:
    """Return the page of a treatment: the ranking, the winner before and after, and the losses."""
    drawn = (page.losses, *(page.comparison.overlays if page.comparison else ()))
    figures = {f"overlay-{item.key}": charts.as_json(overlay_figure(item)) for item in drawn}
    if any(row.gained is not None for row in page.rows):
        figures["effects"] = charts.as_json(effects_figure(page.rows))
    return fill("treatment.html", figures, page=page, drawn=drawn)


def fill(template: str, figures: Mapping[str, str] | None, **content: Any) -> str:
    """Return a page with style, script and figures (JSON by name) inlined; figures None: no script at all."""
    script = _source("report.js") if figures is not None else ""
    return str(
        _environment()
        .get_template(template)
        .render(
            figures=set(figures or ()),
            style=_source("report.css"),
            script=script,
            policy=_policy(script, _plotly()) if script else _policy(),
            payload=_packed(_payload(figures)) if figures else "",
            plotly=packed_plotly() if figures else "",
            **content,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gradscope.present"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


@cache
def _source(name: str) -> Markup:
    """Return a style sheet or script of ours as it is: it is inlined, and holds no data of a run."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])


def _payload(figures: Mapping[str, str]) -> str:
    settings = json.dumps({"config": charts.CONFIG, "themes": charts.THEMES}, sort_keys=True)
    drawn = ",".join(f"{json.dumps(name)}:{figure}" for name, figure in figures.items())
    return f'{{"figures":{{{drawn}}},{settings[1:]}'


def _packed(text: str) -> str:
    """Return a text as base64 of gzip: small, and free of anything that HTML would read as markup."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def packed_plotly() -> str:
    """Return plotly.js packed: 2 MB instead of 5, unpacked by the browser."""
    return _packed(_plotly())


def _policy(*scripts: Any) -> str:
    """Return a content security policy: these scripts and no other, and no request to anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
