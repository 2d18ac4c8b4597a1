"""Try remedies: train the patient and a copy under each on the same batches and seeds, then compare."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from gradscope.errors import GradscopeError, SurgeryRefused
from gradscope.examine import examine
from gradscope.prescribe import prescribe_anyway, surgery
from gradscope.prescribe.together import together
from gradscope.prescribe.training import TrainingChange, steps_of, training_change
from gradscope.records import Effect, Finding, Remedy, Report, Treatment, Trial
from gradscope.records.treatment import CLEAR
from gradscope.store import find_run, read_run
from gradscope.treat.effect import final_loss, improvement, paired_interval
from gradscope.treat.patient import Patient, admit, draw_batches
from gradscope.treat.training import train

MOST_REMEDIES = 8
TRAINS_WELL = 0.5  # share of the initial loss that a patient which isn't ill removes within the budget

Progress = Callable[[str, int, int], None]  # what is being tried, step, steps


@dataclass(frozen=True)
class Plan:
    """What every trial of a treatment shares."""

    build: Callable[..., Any]
    data: Any
    path: Path
    steps: int
    deadline: float
    progress: Progress


class TimeIsUp(Exception):
    """The time limit came before the trial's end."""


def treat(
    build: Callable[..., Any],
    data: Any,
    remedies: str | Sequence[Remedy] = "prescribed",
    steps: int = 200,
    seeds: int = 3,
    run_dir: str | Path = "gradscope_treatment",
    time_limit: float = math.inf,
    progress: Progress = lambda name, step, steps: None,
) -> Treatment:
    """Measure which remedy helps: the patient and each remedy's copy, `steps` steps each, over `seeds` seeds.

    build: () or (seed) -> a LightningModule, a Patient, or (model, optimizer, loss). data: an iterable of
    batches, a LightningDataModule, or a function of the seed that returns one. remedies: "prescribed" takes
    what the patient's own report prescribes. time_limit: seconds after which what is there is compared; a
    trial under way is given up, but not the patient's first, which says what to try. An interrupted
    treatment goes on where it stopped if called again with the same run_dir. Raises GradscopeError where
    the patient itself can't be built or trained.
    """
    if steps < 10 or seeds < 1:
        raise GradscopeError(f"treat needs at least 10 steps and 1 seed; got {steps} and {seeds}")
    if not time_limit > 0:  # nor NaN
        raise GradscopeError(f"treat's time limit must be above 0 seconds, inf for none; got {time_limit:g}")
    plan = Plan(build, data, Path(run_dir), steps, time.monotonic() + time_limit, progress)
    _claim(plan)
    first = _patient_trial(plan, 0)
    report = examine(read_run(first.run))
    chosen = prescribed(report) if remedies == "prescribed" else tuple(_checked(remedies))
    patients: list[Trial] = []
    tried: dict[int, list[Trial]] = {index: [] for index in range(len(chosen))}
    complete = True
    try:
        for seed in range(seeds):
            patients.append(first if seed == 0 else _patient_trial(plan, seed))
            for index, remedy in enumerate(chosen):
                tried[index].append(_trial(plan, remedy, patients[-1]))
    except TimeIsUp:
        complete = False
    effects = [_effect(remedy, tried[index], patients) for index, remedy in enumerate(chosen)]
    effects.sort(key=lambda effect: (effect.outcome == "not tried", -_or_worst(effect.gained)))
    combination = None
    if complete:
        try:
            combination = _combined(plan, effects, patients)
        except TimeIsUp:
            complete = False
    return Treatment(
        path=plan.path,
        patient=tuple(patients),
        findings=report.findings,
        effects=tuple(effects),
        combination=combination,
        verdict=_verdict((*effects, combination) if combination else effects, patients, report),
        steps=steps,
        seeds=seeds,
        complete=complete,
    )


def _checked(remedies: str | Sequence[Remedy]) -> Iterator[Remedy]:
    if isinstance(remedies, str):
        raise GradscopeError(f'remedies is {remedies!r}; give "prescribed" or a list of gradscope remedies')
    for remedy in remedies:
        if not isinstance(remedy, Remedy):
            raise GradscopeError(f"a remedy must be a gradscope Remedy, got {type(remedy).__name__}")
        yield remedy


def prescribed(report: Report) -> tuple[Remedy, ...]:
    """Return what the report prescribes for its root causes, and what repairs most networks; best first.

    The first of each kind come first, so that three trials are trials of three mechanisms.
    """
    roots = [finding for finding in report.findings if finding.caused_by is None]
    specific = _each_once((*_of_all(roots), *(remedy for finding in roots for remedy in finding.remedies)))
    general = prescribe_anyway(report.run, roots)
    return _each_once((*_of_two_kinds(specific), *general[:1], *specific, *general[1:]))[:MOST_REMEDIES]


def _each_once(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    chosen: dict[str, Remedy] = {}
    for remedy in remedies:
        chosen.setdefault(json.dumps(remedy.action or remedy.title, sort_keys=True, default=str), remedy)
    return tuple(chosen.values())


def _of_two_kinds(remedies: Sequence[Remedy]) -> Iterator[Remedy]:
    """Yield all up to the first remedy that can be tried, and then the first that changes something else."""
    tried: set[str] | None = None
    for remedy in remedies:
        changed = {item for step in steps_of(remedy.action) for item in _changes(step)}
        if tried is None:
            yield remedy
            tried = changed or None
        elif changed and not changed <= tried:
            yield remedy
            return


def _of_all(roots: Sequence[Finding]) -> list[Remedy]:
    """Return the first remedies of all root causes as one, as none of them alone takes the others away.

    Those that would change the same thing again are left out; empty where fewer than two are left.
    """
    kept: list[Remedy] = []
    changed: set[str] = set()
    for finding in roots:
        first = next((remedy for remedy in finding.remedies if remedy.action), None)
        if first is None or finding.severity == "note":
            continue
        changes = {item for step in steps_of(first.action) for item in _changes(step)}
        if not changes & changed:
            kept.append(first)
            changed |= changes
    return [together(*kept)] if len(kept) > 1 else []


def _changes(step: Mapping[str, Any]) -> set[str]:
    """Return what a step of an action changes; rate and optimizer count as one."""
    if step["do"] != "train":
        return {str(step["do"])}
    return {
        "steps" if name in ("rate", "optimizer", "options", "clipping", "search", "warmup_steps") else name
        for name in set(step) - {"do"}
    }


def _claim(plan: Plan) -> None:
    """Make the treatment's folder, or make sure that the one which exists holds this very treatment."""
    kind = admit(plan.build, 0)
    model = kind.model if isinstance(kind, Patient) else kind
    facts = {"patient": type(model).__qualname__, "steps": plan.steps, "parameters": _sizes(model)}
    note = plan.path / "treatment.json"
    if note.exists():
        if _read_json(note) != facts:
            raise GradscopeError(f"{plan.path} holds another treatment; give another run_dir, or remove it")
        return
    plan.path.mkdir(parents=True, exist_ok=True)
    _write_json(note, facts)


def _sizes(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _patient_trial(plan: Plan, seed: int) -> Trial:
    trial = _kept_or_made(plan, "untreated", Remedy("code", "untreated", "", "", "", {}), seed, None)
    if trial.failure:
        raise GradscopeError(f"the patient itself can't be trained: {trial.failure}")
    return trial


def _trial(plan: Plan, remedy: Remedy, patient: Trial) -> Trial:
    if not remedy.action:
        return Trial(patient.seed, failure="only a person can make this change")
    return _kept_or_made(plan, _slug(remedy), remedy, patient.seed, patient)


def _slug(remedy: Remedy) -> str:
    """Return a folder name for a remedy that tells remedies with like titles apart."""
    from hashlib import sha256

    digest = sha256(json.dumps(remedy.action, sort_keys=True, default=str).encode()).hexdigest()[:8]
    words = "".join(letter if letter.isalnum() else "-" for letter in remedy.title.lower())
    return f"{'-'.join(filter(None, words.split('-')))[:40]}-{digest}"


def _kept_or_made(plan: Plan, name: str, remedy: Remedy, seed: int, patient: Trial | None) -> Trial:
    """Return the trial that an earlier call left, else make it; TimeIsUp past the deadline."""
    folder = plan.path / name / f"seed-{seed}"
    note = folder / "trial.json"
    if note.exists():
        kept = _read_json(note)
        kept |= {"losses": tuple(kept["losses"]), "rules": tuple(kept["rules"])}
        return Trial(**{**kept, "run": kept["run"] and str(folder / kept["run"])})
    trial = _made(plan, remedy, seed, patient, _fresh(folder))
    _write_json(note, {**asdict(trial), "run": trial.run and os.path.relpath(trial.run, folder)})
    return trial


def _fresh(folder: Path) -> Path:
    """Return a folder for the run, beside what an interrupted attempt may have left."""
    attempt = 0
    while (folder / f"run-{attempt}").exists():
        attempt += 1
    path = folder / f"run-{attempt}"
    path.mkdir(parents=True)
    return path


def _made(plan: Plan, remedy: Remedy, seed: int, patient: Trial | None, run: Path) -> Trial:
    change = training_change(remedy.action)
    done = 0
    needed = patient is None and seed == 0

    def on_step() -> None:
        nonlocal done
        done += 1
        plan.progress(f"{remedy.title}, seed {seed}", done, plan.steps)
        if time.monotonic() > plan.deadline and not needed and done < plan.steps:
            raise TimeIsUp

    if time.monotonic() > plan.deadline and not needed:
        raise TimeIsUp

    try:
        batches = draw_batches(plan.data, plan.steps, seed)
        treated = _treated(admit(plan.build, seed), remedy, batches)
        course = train(treated, batches, change, run, seed, on_step)
    except SurgeryRefused as refused:
        return Trial(seed, failure=str(refused))
    except (GradscopeError, TimeIsUp):
        raise
    except Exception as error:
        return Trial(seed, failure=f"training failed: {type(error).__name__}: {error}")
    if not course.losses:
        return Trial(seed, failure="no step was made")
    return _measured(course.losses, course.seconds_per_step, seed, patient, change, run)


def _treated(patient: Patient | Any, remedy: Remedy, batches: Sequence[Any]) -> Patient | Any:
    """Return the patient with a copy of its model, the remedy's surgery done on it.

    Untreated it is a copy too: a build function may return one and the same model each time.
    """
    if isinstance(patient, Patient):
        return replace(patient, model=_operated(patient.model, remedy, batches))
    return _operated(patient, remedy, batches)


def _operated(model: Any, remedy: Remedy, batches: Sequence[Any]) -> Any:
    if not remedy.action:
        return copy.deepcopy(model)
    inputs = _inputs(batches)
    # Where only training_step knows how to call the model, training itself is what checks the surgery.
    return surgery.apply(remedy.action, model, batch=inputs if surgery.runs(model, inputs) else None)


def _inputs(batches: Sequence[Any]) -> Any:
    first = batches[0]
    return first[0] if isinstance(first, (tuple, list)) and first else first


def _measured(
    losses: Sequence[float],
    seconds: float,
    seed: int,
    patient: Trial | None,
    change: TrainingChange,
    run: Path,
) -> Trial:
    report = examine(read_run(find_run(run)))
    found = [finding for finding in report.findings if finding.severity != "note"]
    # The figures to compare are those of what ailed the patient, where it is still found.
    ailed = patient.rules[:1] if patient is not None else [finding.rule for finding in found[:1]]
    evidence = next((finding.evidence for finding in found if finding.rule in ailed), {})
    own = losses[0]
    # Scaled targets change the loss's unit, so such a trial is compared with its own beginning.
    initial = own if patient is None or change.scale_targets else patient.initial
    final = final_loss(losses)
    return Trial(
        seed=seed,
        losses=tuple(losses),
        initial=own,
        final=final,
        improvement=improvement(initial if math.isfinite(initial) else own, final),
        seconds_per_step=seconds,
        rules=tuple(finding.rule for finding in found),
        evidence=dict(evidence),
        run=str(report.run.path),
    )


def _effect(remedy: Remedy, trials: Sequence[Trial], patients: Sequence[Trial]) -> Effect:
    """Compare a remedy's trials with the patient's of the same seeds."""
    pairs = [(trial, patient) for trial, patient in zip(trials, patients, strict=False) if not trial.failure]
    if not pairs:
        why = trials[0].failure if trials else "the time limit came first"
        return Effect(
            remedy, tuple(trials), math.nan, math.nan, math.nan, math.nan, math.nan, "not tried", (), why
        )
    gained, low, high = paired_interval([trial.improvement - patient.improvement for trial, patient in pairs])
    cost = median(trial.seconds_per_step / patient.seconds_per_step for trial, patient in pairs)
    return Effect(
        remedy=remedy,
        trials=tuple(trials),
        improvement=mean(trial.improvement for trial, _ in pairs),
        gained=gained,
        low=low,
        high=high,
        cost=cost,
        outcome=_outcome(gained, low, high),
        cured=_cured(pairs),
    )


def _outcome(gained: float, low: float, high: float) -> str:
    if gained >= CLEAR and (low > 0 or math.isinf(low)):
        return "helps"
    if gained <= -CLEAR and (high < 0 or math.isinf(high)):
        return "harms"
    return "no clear effect"


def _cured(pairs: Sequence[tuple[Trial, Trial]]) -> tuple[str, ...]:
    """Return the rules that found the patient ill and find none of the treated copies so."""
    before = dict.fromkeys(rule for _, patient in pairs for rule in patient.rules)
    after = {rule for trial, _ in pairs for rule in trial.rules}
    return tuple(rule for rule in before if rule not in after)


def _combined(plan: Plan, effects: Sequence[Effect], patients: Sequence[Trial]) -> Effect | None:
    """Try the two best remedies together."""
    helping = [effect.remedy for effect in effects if effect.outcome == "helps"][:2]
    if len(helping) < 2:
        return None
    first, second = helping
    both = Remedy(
        kind=first.kind,
        title=f"{first.title}, and {second.title[:1].lower()}{second.title[1:]}",
        why="The two remedies that helped most, together.",
        code=f"{first.code}\n\n{second.code}",
        expected=first.expected,
        action={"do": "all", "actions": [dict(first.action), dict(second.action)]},
    )
    return _effect(both, [_trial(plan, both, patient) for patient in patients], patients)


def _verdict(effects: Sequence[Effect], patients: Sequence[Trial], report: Report) -> str:
    well = mean(patient.improvement for patient in patients) >= TRAINS_WELL
    ill = any(finding.severity != "note" for finding in report.findings)
    # What is tried without a finding may train a healthy network still faster, which is no repair.
    if any(effect.outcome == "helps" for effect in effects) and (ill or not well):
        return "repaired"
    return "not ill" if well or not ill else "not repaired"


def _or_worst(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise GradscopeError(f"{path} is damaged ({error}); remove {path.parent} and treat again") from None
    return read


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically, so that an interruption leaves no half-written note."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps(content))
    half.replace(path)
