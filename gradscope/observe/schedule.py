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
    return lambda step: step % interval_at(step, settings) == 0


def interval_at(step: int, settings: Settings) -> int:
    """Return the distance of recorded steps around a step under the "auto" schedule.

    1 below `dense_steps`, then 1/`steps_per_doubling` of the last power of two times `dense_steps`, at most
    `longest_interval`.
    """
    dense = settings.dense_steps
    if step < dense:
        return 1
    start = dense << ((step // dense).bit_length() - 1)
    return max(1, min(start // settings.steps_per_doubling, settings.longest_interval))
