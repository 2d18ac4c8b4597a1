"""What remedies did when they were tried: trials, their effects, and the treatment of a patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gradscope.records.report import Finding, Remedy

CLEAR = 0.02  # of the initial loss: a smaller gain isn't worth a change, however certain it is


@dataclass(frozen=True)
class Trial:
    """One short training of the patient, with a remedy or without, from one seed.

    losses: one a step; initial and final are in the loss's own unit, improvement the share of the patient's
    initial loss that was removed, in [-1, 1]; rules: what the run was found to suffer from, at warning or
    above; run: the recorded run's directory; failure: why nothing was measured, "" otherwise.
    """

    seed: int
    losses: tuple[float, ...] = ()
    initial: float = float("nan")
    final: float = float("nan")
    improvement: float = float("nan")
    seconds_per_step: float = float("nan")
    rules: tuple[str, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)
    run: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Effect:
    """A remedy with what it did: the mean paired difference in improvement to the untreated patient, its 95 %
    interval over seeds, and the cost of a step relative to the patient's. outcome: "helps", "harms",
    "no clear effect" or "not tried"."""

    remedy: Remedy
    trials: tuple[Trial, ...]
    improvement: float
    gained: float
    low: float
    high: float
    cost: float
    outcome: str
    cured: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Treatment:
    """A patient, untreated and under each remedy, ranked by measured effect.

    verdict: "repaired" (some remedy helps), "not ill" (it trains well and nothing helps) or "not repaired".
    combination: the two best together, if there were two. complete: False if the time limit came first.
    """

    path: Path
    patient: tuple[Trial, ...]
    findings: tuple[Finding, ...]
    effects: tuple[Effect, ...]
    combination: Effect | None
    verdict: str
    steps: int
    seeds: int
    complete: bool

    @property
    def all_effects(self) -> tuple[Effect, ...]:
        """Return the effects, that of the combination last."""
        return (*self.effects, self.combination) if self.combination else self.effects

    @property
    def winner(self) -> Effect | None:
        """Return the best effect that helps, None if nothing does; both remedies only if clearly better."""
        helping = [effect for effect in self.effects if effect.outcome == "helps"]
        best = max(helping, key=lambda effect: effect.gained, default=None)
        both = self.combination
        if best and both and both.outcome == "helps" and both.gained >= best.gained + CLEAR:
            return both
        return best
