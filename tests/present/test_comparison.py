"""What tells compared runs apart, and what their axes say."""

from __future__ import annotations

from pathlib import Path

from gradscope.present.comparison import Curve, Overlay, distinct_labels
from gradscope.present.overlays import overlay_figure


def test_labels_are_the_shortest_endings_that_differ() -> None:
    assert distinct_labels([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert distinct_labels([Path("/a/first"), Path("/a/second")]) == ["first", "second"]


def test_the_same_run_twice_is_numbered() -> None:
    assert distinct_labels([Path("/a/run"), Path("/a/run")]) == ["run (1)", "run (2)"]


def test_a_narrow_logarithmic_axis_writes_its_numbers_out() -> None:
    curve = Curve("run", (0.0, 1.0), (0.3, 2.0))
    axis = overlay_figure(Overlay("loss", "Loss", "", "step", True, (curve,))).layout.yaxis
    assert (axis.dtick, axis.tickformat) == ("D2", "~g")
