"""The ranking of a treatment in terminals of several widths."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from gradscope.present.comparison import Overlay
from gradscope.present.side_by_side import ranking_table
from gradscope.present.treatment import EffectRow, TreatmentPage

ROW = EffectRow(
    "Add residual connections around 12 of 13 layers",
    "residual",
    "helps",
    0.85,
    0.74,
    0.96,
    "+85.2 %  (+74.4 to +96.1)",
    "4.6 → 0.14",
    "1.11×",
    ("vanishing-gradient", "learning-rate-too-low"),
    "–",
    "",
    "",
    "",
)
LOSSES = Overlay("treatment", "Loss", "", "step", False, ())
PAGE = TreatmentPage("", "healthy", "", "", "Model", "2.5 → 2.3", (ROW,), ROW, LOSSES, None, ())


@pytest.mark.parametrize(("width", "absent"), [(60, ("cured", "loss")), (80, ("loss",)), (120, ())])
def test_a_narrow_terminal_leaves_columns_out_and_cuts_no_word(width: int, absent: tuple[str, ...]) -> None:
    screen = StringIO()
    Console(file=screen, width=width).print(ranking_table(PAGE, width))
    text = screen.getvalue()
    words = set(text.split())
    assert {"connections", "layers", "helps", "1.11×"} <= words
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for heading in ("cured", "loss"):
        assert (heading in words) == (heading not in absent)
