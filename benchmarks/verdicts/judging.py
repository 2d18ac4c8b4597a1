"""Ask each tool about a recorded run, whole and cut short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from benchmarks.verdicts.baselines import BASELINES, Symptom, Trace
from benchmarks.verdicts.program import Program
from gradscope.examine import examine
from gradscope.records import Finding, Run

GRADSCOPE = "gradscope"
TOOLS = (GRADSCOPE, *BASELINES)
PREFIXES = (2, 8, 32, 128, 512)  # steps after which a run is judged again


@dataclass(frozen=True)
class Judgement:
    """What a tool said of a run: its symptoms, first the one it ranks first; none means healthy.

    error: why it failed, "" if it did not; step: after how many steps it first spoke up, None if never.
    """

    symptoms: tuple[Symptom, ...] = ()
    step: int | None = None
    error: str = ""

    @property
    def ailing(self) -> bool:
        """Tell whether the tool raised an alarm."""
        return bool(self.symptoms)

    def names(self, causes: tuple[str, ...], first: bool) -> bool:
        """Tell whether a right cause is named, by any symptom or by the first."""
        return any(symptom.rule in causes for symptom in self.symptoms[: 1 if first else None])

    def localises(self, program: Program) -> bool:
        """Tell whether the first symptom with a right cause names layers of which most are faulty ones."""
        named = next((symptom for symptom in self.symptoms if symptom.rule in program.causes), None)
        if named is None or not named.layers:
            return False
        right = sum(any(_matches(name, pattern) for pattern in program.where) for name in named.layers)
        return 2 * right > len(named.layers)


def judge(tool: str, run: Run, trace: Trace, when: bool = False) -> Judgement:
    """Let a tool judge a run; `when` also asks after how many steps it would first have raised an alarm."""
    ask = _ask_gradscope if tool == GRADSCOPE else BASELINES[tool]
    try:
        symptoms = tuple(ask(run, trace))
        step = _first_alarm(ask, run, trace) if when and symptoms else None
    except Exception as error:  # a tool that fails on one run is counted as silent there, and listed
        return Judgement(error=f"{type(error).__name__}: {error}")
    return Judgement(symptoms, step)


def _ask_gradscope(run: Run, trace: Trace) -> tuple[Symptom, ...]:
    report = examine(run)
    if report.verdict != "ailing":
        return ()
    findings = sorted(report.findings, key=lambda finding: finding.rank)
    return tuple(Symptom(item.rule, _places(item)) for item in findings if item.severity != "note")


def _places(finding: Finding) -> tuple[str, ...]:
    """Return the layers a finding names, or else those of the parameters it names."""
    return finding.layers or tuple(name.rpartition(".")[0] for name in finding.parameters)


def _first_alarm(ask: Callable[[Run, Trace], object], run: Run, trace: Trace) -> int:
    last = int(run.steps["step"].max()) + 1
    for steps in PREFIXES:
        if steps >= last:
            break
        if tuple(ask(cut(run, steps), tuple(item for item in trace if item[0] < steps))):  # type: ignore[arg-type]
            return steps
    return last


def cut(run: Run, steps: int) -> Run:
    """Return the run as it was after so many steps, still going on."""

    def before(table):  # type: ignore[no-untyped-def]
        return table[table["step"] < steps]

    return Run(
        run.path,
        replace(run.info, status="running", exception=""),
        before(run.steps),
        before(run.layer_statistics),
        before(run.parameter_statistics),
        tuple(event for event in run.events if event.step < steps),
        run.problems,
    )


def _matches(name: str, pattern: str) -> bool:
    """Match a layer's name; Lightning's programs hold their model as `model`."""
    return fnmatch(name, pattern) or fnmatch(name, f"model.{pattern}")
