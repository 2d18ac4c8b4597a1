"""Judge a training every so often while it runs: warn of what won't pass by itself, or stop for it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gradscope.diagnose import so_far
from gradscope.errors import SettingsError
from gradscope.memory import Memory
from gradscope.observe import Recorder
from gradscope.observe.recorder import Sink
from gradscope.observe.schedule import schedule_from
from gradscope.preflight import initial_report, summary
from gradscope.records import Event, Finding, Run, StepRecord
from gradscope.settings import Settings

OnCritical = Literal["warn", "stop", "ignore"]

_GROWTH = 1.5  # of the recorded steps from one look to the next


@dataclass(frozen=True)
class Conduct:
    """What gradscope says and does besides recording: the options that every front door takes.

    on_critical: what to do about a finding that won't pass by itself; preflight: judge the initialisation by
    the first step and print the result; verbose: print warnings and, at the end, one line. SettingsError if
    one of them has a value that means nothing.
    """

    on_critical: OnCritical = "warn"
    preflight: bool = False
    verbose: bool = True

    def __post_init__(self) -> None:
        if self.on_critical not in get_args(OnCritical):
            raise SettingsError(f'on_critical is {self.on_critical!r}; give "warn", "stop" or "ignore"')
        for name in ("preflight", "verbose"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} is {getattr(self, name)!r}; give True or False")

    @property
    def looks(self) -> bool:
        """Return whether anybody would hear of a finding while training goes on."""
        return self.on_critical == "stop" or (self.on_critical == "warn" and self.verbose)


class Supervision:
    """Carries out a Conduct while a training runs; `sink` is what the recorder writes to.

    stopped_by: why the training is to end, "" as long as it may go on. What is found is printed by the
    first of several ranks.
    """

    def __init__(
        self, onward: Sink, run_path: Path, settings: Settings, conduct: Conduct, is_first_rank: bool
    ) -> None:
        self.stopped_by = ""
        self._conduct, self._is_first_rank = conduct, is_first_rank
        self._is_asked = schedule_from(settings)
        self._monitor: Monitor | None = None
        self.sink = onward
        if conduct.looks or conduct.preflight:
            self._monitor = Monitor(onward, run_path, settings, conduct.verbose and is_first_rank)
            self.sink = self._monitor.sink

    def after_step(self, recorder: Recorder, any_rank: Callable[[bool], bool]) -> None:
        """Judge what is recorded so far, once a step has ended.

        any_rank: returns whether it was called with True on any rank. Every rank calls it at the same steps,
        also one that no longer records: the others would wait for it.
        """
        if self._monitor is None:
            return
        if self._conduct.preflight and self._is_first_rank and recorder.step == 1:
            recorder.flush()
            self._monitor.preflight()
        if not self._conduct.looks or self.stopped_by:
            return
        stops = self._conduct.on_critical == "stop"
        self._monitor.look("Training stops." if stops else "Training goes on.")
        if stops and self._is_asked(recorder.step - 1) and any_rank(self._monitor.verdict is not None):
            self.stopped_by = _ending(self._monitor.verdict)
            recorder.event("stopped", f"training was stopped by {self.stopped_by}")


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


def _ending(verdict: Finding | None) -> str:
    """Return, for run.json, why gradscope ended a training; None: another rank found something."""
    return f'gradscope (on_critical="stop"): {named(verdict) if verdict else "a finding of another rank"}'


def _alarming(record: StepRecord) -> bool:
    """Say whether the loss or the gradient is no number, and no loss scaler skipped the step for it."""
    figures = (record.step.get("loss", 0.0), record.step.get("grad_norm", 0.0))
    return record.step.get("skipped") != 1 and not all(math.isfinite(figure) for figure in figures)
