"""Put the rare events of a run into words: what each kind is called, and where it happened."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.present import wording
from gradscope.records import Event

TITLES = {
    "critical": "Critical finding",
    "never-fired": "Layer did not run",
    "not-observable": "Not observable",
    "recorder-failure": "Recording failed",
    "restart": "Training restarted",
    "stopped": "Training stopped",
    "unregistered": "Parameter not registered",
}


@dataclass(frozen=True)
class Occasion:
    """An event: when, what, where."""

    step: str
    kind: str
    message: str
    where: str


def occasion(event: Event) -> Occasion:
    """Return an event, ready to show; a kind that this version doesn't know goes by its own name."""
    return Occasion(
        f"{event.step:,}" if event.step >= 0 else wording.MISSING,
        TITLES.get(event.kind) or wording.clean(event.kind, 60),
        wording.clean(event.message),
        _where(event),
    )


def _where(event: Event) -> str:
    """Name the event's place; of several the first, and how many more there are."""
    several = event.data.get("parameters")
    if isinstance(several, (list, tuple)) and several:
        first = wording.name(several[0])
        return first if len(several) == 1 else f"{first} and {len(several) - 1:,} more"
    place = event.parameter or event.layer
    return wording.name(place) if place else ""
