"""Remedies of width: more units where chance or symmetry leaves too few."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.gains import born_dead
from gradscope.prescribe.paste import block, figure
from gradscope.records import Remedy

_NARROW = 16


def widen(case: Case) -> Remedy | None:
    """Widen hidden layers of a few units, in which a whole layer dies by chance."""
    plain = ("linear", "convolution", "normalization")
    owned = {name for layer in case.run.layers if layer.role in plain for name in layer.parameters}
    chain = all(item.name in owned for item in case.run.parameters) and not case.skips
    if not case.hidden or case.width >= _NARROW or not chain:
        return None
    factor = 2
    while case.width * factor < _NARROW:
        factor *= 2
    action = {"do": "widen", "factor": factor}
    before, after = (born_dead(len(case.hidden), case.width * times) for times in (1, factor))
    return Remedy(
        "width",
        f"Widen the hidden layers from {figure(case.width)} to {figure(case.width * factor)} units",
        f"A ReLU layer of {figure(case.width)} units is dead from the start with probability "
        f"2^−{case.width:.0f}, "
        f"some layer of {len(case.hidden)} with {figure(before)} (Lu et al. 2019).",
        block(
            "from gradscope.prescribe import surgery",
            "",
            "# Give the layers more units where the model is built, or let gradscope widen a copy:",
            f"model = surgery.apply({action!r}, model)",
        ),
        f"Probability of being born dead {figure(before)} → {figure(after)}.",
        action,
    )
