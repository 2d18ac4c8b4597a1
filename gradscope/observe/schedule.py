"""Which steps are recorded: functions step -> bool."""

from __future__ import annotations

from collections.abc import Callable

from gradscope.settings import Settings

Schedule = Callable[[int], bool]


def schedule_from(settings: Settings) -> Schedule:
    """Return the schedule that the settings ask for."""
    every = settings.every_n_steps
    if isinstance(every, int):
        return lambda step: step % every == 0
    return lambda step: (step - _doubling(step, settings)) % interval_at(step, settings) == 0


def interval_at(step: int, settings: Settings) -> int:
    """Return the distance of recorded steps around a step under the "auto" schedule.

    1 below `dense_steps`, then 1/`steps_per_doubling` of the step that the doubling began with, at most
    `longest_interval`. Each doubling begins with a recorded step, so no gap is longer.
    """
    if step < settings.dense_steps:
        return 1
    return max(1, min(_doubling(step, settings) // settings.steps_per_doubling, settings.longest_interval))


def _doubling(step: int, settings: Settings) -> int:
    """Return the first step of the doubling that a step is in; 0 for those before the first."""
    dense = settings.dense_steps
    return dense << ((step // dense).bit_length() - 1) if step >= dense else 0
