"""Turn a treatment into plain rows and numbers, ready to show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from gradscope.present import wording
from gradscope.present.comparison import Comparison, Curve, Overlay, compare
from gradscope.records import Effect, Report, Treatment, Trial

CURVE_POINTS = 400

_HEADLINES = {
    "repaired": "Repaired",
    "not ill": "Not ill",
    "not repaired": "No remedy helped",
}


@dataclass(frozen=True)
class EffectRow:
    """A remedy in the ranking."""

    title: str
    kind: str
    outcome: str
    gained: float | None
    low: float | None
    high: float | None
    gained_text: str
    final: str
    cost: str
    cured: tuple[str, ...]
    evidence: str
    failure: str
    code: str
    why: str


@dataclass(frozen=True)
class TreatmentPage:
    """Everything that the page of a treatment shows."""

    title: str
    verdict: str
    headline: str
    lead: str
    model: str
    patient: str
    rows: tuple[EffectRow, ...]
    winner: EffectRow | None
    losses: Overlay
    comparison: Comparison | None
    notes: tuple[str, ...]


def treatment_page(treatment: Treatment, before: Report, after: Report | None) -> TreatmentPage:
    """Return the page's content; before and after: reports on the patient and on the winner's first seed."""
    ranked = sorted(
        treatment.all_effects,
        key=lambda effect: -effect.gained if math.isfinite(effect.gained) else math.inf,
    )
    winner = treatment.winner
    model = wording.name(before.run.info.model)
    return TreatmentPage(
        title=f"{wording.elide(model, 80)}: {treatment.verdict}",
        verdict={"repaired": "healthy", "not ill": "healthy"}.get(treatment.verdict, "ailing"),
        headline=_HEADLINES.get(treatment.verdict, treatment.verdict.capitalize()),
        lead=lead(treatment),
        model=model,
        patient=_losses(treatment.patient),
        rows=tuple(_row(effect, treatment.patient) for effect in ranked),
        winner=_row(winner, treatment.patient) if winner else None,
        losses=_loss_overlay(treatment, ranked),
        comparison=compare([before, after], ["untreated", "treated"]) if after else None,
        notes=_notes(treatment),
    )


def lead(treatment: Treatment) -> str:
    """Say in one or two sentences what came out."""
    budget = f"{wording.count(treatment.steps, 'step')} on {wording.count(len(treatment.patient), 'seed')}"
    ailments = [finding.rule for finding in treatment.findings if finding.severity != "note"]
    found = f" It was found to suffer from {ailments[0]}." if ailments else ""
    if treatment.winner:
        return (
            f"{_sentence(treatment.winner.remedy.title)} removes {_points(treatment.winner)} more of the "
            f"initial loss than no treatment, in {budget}.{found}"
        )
    removed = wording.percent(_mean([trial.improvement for trial in treatment.patient]))
    if treatment.verdict == "not ill":
        return (
            f"Untreated it removes {removed} of its initial loss in {budget}; no remedy betters that.{found}"
        )
    return f"No remedy that was tried has a clear effect in {budget}.{found}"


def _sentence(title: str) -> str:
    return f"“{wording.clean(title, 200)}”"


def _points(effect: Effect) -> str:
    text = wording.percent(effect.gained)
    if not math.isfinite(effect.low):
        return text
    return f"{text} ({100 * effect.low:.0f} to {100 * effect.high:.0f} %)"


def _row(effect: Effect, patient: Sequence[Trial]) -> EffectRow:
    return EffectRow(
        title=wording.clean(effect.remedy.title, 300),
        kind=wording.clean(effect.remedy.kind, 40),
        outcome=effect.outcome,
        gained=_finite(effect.gained),
        low=_finite(effect.low),
        high=_finite(effect.high),
        gained_text=_signed(effect),
        final=_losses(effect.trials),
        cost=f"{effect.cost:.2f}×" if math.isfinite(effect.cost) else wording.MISSING,
        cured=tuple(wording.clean(rule, 80) for rule in effect.cured),
        evidence=_evidence(patient, effect.trials),
        failure=wording.clean(effect.failure, 300),
        code=wording.code(effect.remedy.code),
        why=wording.clean(effect.remedy.why),
    )


def _evidence(patient: Sequence[Trial], trials: Sequence[Trial]) -> str:
    """Return the first figure of the patient's first finding, untreated and treated, in the first seed."""
    measured = next((trial for trial in trials if not trial.failure), None)
    if measured is None or not patient[0].rules or not patient[0].evidence:
        return wording.MISSING
    figure, before = next(iter(patient[0].evidence.items()))
    after = measured.evidence.get(figure)
    told = wording.figure(after) if after is not None else "not found any more"
    return f"{wording.clean(figure, 60).replace('_', ' ')} {wording.figure(before)} → {told}"


def _signed(effect: Effect) -> str:
    if not math.isfinite(effect.gained):
        return wording.MISSING
    text = f"{100 * effect.gained:+.1f} %".replace("-", "−")
    if not math.isfinite(effect.low):
        return text
    ends = f"{100 * effect.low:+.1f} to {100 * effect.high:+.1f}".replace("-", "−")
    return f"{text}  ({ends})"


def _losses(trials: Sequence[Trial]) -> str:
    """Return mean initial and final loss."""
    measured = [trial for trial in trials if not trial.failure]
    if not measured:
        return wording.MISSING
    initial, final = _mean([trial.initial for trial in measured]), _mean([trial.final for trial in measured])
    return f"{wording.figure(initial)} → {wording.figure(final)}"


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss_overlay(treatment: Treatment, ranked: Sequence[Effect]) -> Overlay:
    """Return the loss of the first seed under each remedy, in the order of the ranking."""
    curves = [_curve("untreated", treatment.patient)]
    curves += [_curve(effect.remedy.title, effect.trials) for effect in ranked[:5]]
    drawn = tuple(curve for curve in curves if curve)
    return Overlay(
        "treatment", "Loss under each remedy", "first seed, over optimizer steps", "step", False, drawn
    )


def _curve(label: str, trials: Sequence[Trial]) -> Curve | None:
    if not trials or not trials[0].losses:
        return None
    losses = trials[0].losses
    places = range(0, len(losses), -(-len(losses) // CURVE_POINTS))
    y = tuple(float(f"{losses[place]:.4g}") if math.isfinite(losses[place]) else None for place in places)
    return Curve(wording.elide(wording.clean(label, 120), 48), tuple(float(place) for place in places), y)


def _notes(treatment: Treatment) -> tuple[str, ...]:
    notes = [
        "Every training saw the same batches and seeds. The effect is the share of the initial loss "
        "that the remedy removes beyond what no treatment removes: the mean over seeds, with Student's 95 % "
        "interval of the paired differences. The cost is a median step's time relative to the untreated one."
    ]
    if not treatment.complete:
        notes.append(
            "The time limit came first: not everything was tried. The same command goes on from here."
        )
    if len(treatment.patient) == 1:
        notes.append("One seed has no interval: repeat with more before you trust a small difference.")
    return tuple(notes)
