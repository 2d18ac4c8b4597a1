"""Judge a training every so often while it runs: warn of what won't pass by itself, or stop for it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import distributed

from gradscope.diagnose import so_far
from gradscope.errors import SettingsError
from gradscope.memory import Memory
from gradscope.observe.recorder import Sink
from gradscope.preflight import initial_report, summary
from gradscope.records import Event, Finding, Run, StepRecord
from gradscope.settings import Settings

OnCritical = Literal["warn", "stop", "ignore"]

_GROWTH = 1.5  # of the recorded steps from one look to the next


def checked(on_critical: str) -> OnCritical:
    """Return the option if it is one of the three; SettingsError otherwise."""
    for choice in get_args(OnCritical):
        if on_critical == choice:
            return choice  # type: ignore[no-any-return]
    raise SettingsError(f'on_critical is {on_critical!r}; give "warn", "stop" or "ignore"')


class Monitor:
    """Looks at a training while it runs; `sink` is what the recorder writes to.

    The first look comes after `dense_steps` recorded steps, each further one after half as many again, so
    that their number grows with the logarithm of the training's length; NaN or infinity in the loss or the
    gradient calls for a look of its own, at its 1st, 2nd, 4th, 8th, ... recorded step. A finding counts once
    two looks in a row have made it. `verdict` is then the first, with its root cause found. Methods never
    raise: a failure is said once, and there are no more looks.
    """

    def __init__(self, onward: Sink, run_path: Path, settings: Settings, speaks: bool) -> None:
        """Prepare; `speaks`: print what is found, as one of several ranks does."""
        self.sink = Memory(onward, first=settings.dense_steps)
        self.verdict: Finding | None = None
        self._path, self._settings, self._speaks = run_path, settings, speaks
        self._seen = self._alarms = 0
        self._next = max(settings.dense_steps, settings.fewest_steps)
        self._suspected: frozenset[str] = frozenset()
        self._told: set[str] = set()
        self._works = True

    def look(self, afterwards: str) -> None:
        """Look if it is time; print what is found for the first time, and what happens `afterwards`."""
        if not self._works or not self._is_due():
            return
        try:
            run = self.sink.run(self._path)
            if run is not None:
                self._judge(run, afterwards)
        except Exception as error:
            self._works = False
            warnings.warn(
                f"gradscope judges this training only at its end ({type(error).__name__}: {error})",
                stacklevel=2,
            )

    def _is_due(self) -> bool:
        """Say whether the step that was recorded last calls for a look."""
        count, record = self.sink.appended, self.sink.newest
        if record is None or count == self._seen:
            return False
        self._seen = count
        scheduled = count >= self._next
        if scheduled:
            self._next = math.ceil(count * _GROWTH)
        if not _alarming(record):
            return scheduled
        self._alarms += 1
        return scheduled or self._alarms & (self._alarms - 1) == 0

    def _judge(self, run: Run, afterwards: str) -> None:
        findings = so_far(run, self._settings)
        confirmed = [finding for finding in findings if finding.rule in self._suspected]
        self._suspected = frozenset(finding.rule for finding in findings)
        step = int(run.steps["step"].iloc[-1])
        for finding in confirmed:
            if finding.caused_by is None and finding.rule not in self._told:
                self._tell(finding, step, afterwards)

    def _tell(self, finding: Finding, step: int, afterwards: str) -> None:
        self._told.add(finding.rule)
        self.verdict = self.verdict or finding
        layer = finding.layers[0] if finding.layers else None
        parameter = finding.parameters[0] if finding.parameters else None
        if self._speaks:
            print(f"gradscope, at step {step}: {named(finding)}. {finding.message} {afterwards}")
        self.sink.event(Event("critical", step, f"{named(finding)}: {finding.message}", layer, parameter))

    def preflight(self) -> None:
        """Judge the initialisation by the first recorded step, and print what is found."""
        try:
            run = self.sink.run(self._path)
            if run is not None:
                print(summary(initial_report(run, self._settings)))
        except Exception as error:
            warnings.warn(
                f"gradscope's preflight failed ({type(error).__name__}: {error}); training goes on",
                stacklevel=2,
            )


def named(finding: Finding) -> str:
    """Return what was found, since when, and where."""
    places = finding.layers or finding.parameters
    where = f" in {places[0]}" if places else ""
    return f"{finding.rule} since step {finding.first_step}{where}"


def any_rank(found: bool, device: torch.device) -> bool:
    """Return whether any process of the default group found something; all of them have to ask."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return found
    flag = torch.tensor(float(found), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())


def ending(verdict: Finding | None) -> str:
    """Return, for run.json, why gradscope ended a training; None: another rank found something."""
    return f'gradscope (on_critical="stop"): {named(verdict) if verdict else "a finding of another rank"}'


def _alarming(record: StepRecord) -> bool:
    """Say whether the loss or the gradient is no number, and no loss scaler skipped the step for it."""
    figures = (record.step.get("loss", 0.0), record.step.get("grad_norm", 0.0))
    return record.step.get("skipped") != 1 and not all(math.isfinite(figure) for figure in figures)
