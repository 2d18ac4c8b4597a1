"""Render a report as one self-contained HTML page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradscope.present import charts, view
from gradscope.records import Report


def render(report: Report) -> str:
    """Return the page of a report; the same report gives the same bytes."""
    page = view.page(report)
    figures = charts.figures(page)
    script = _source("report.js")
    return str(
        _environment()
        .get_template("report.html")
        .render(
            page=page,
            figures=set(figures),
            style=_source("report.css"),
            script=script,
            policy=_policy(script, _plotly()),
            payload=_packed(_payload(figures)),
            plotly=_packed_plotly(),
            colours={"zero": charts.ZERO_COLOUR, "nonfinite": charts.NONFINITE_COLOUR},
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


def _payload(figures: dict[str, str]) -> str:
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
def _packed_plotly() -> str:
    return _packed(_plotly())


def _policy(*scripts: Any) -> str:
    """Return a content security policy: these scripts and no other, and no request to anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
