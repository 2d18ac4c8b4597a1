"""Walk a strategy's proposals on one ailing run: how many trials until the program is repaired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.remedies.strategies import Proposal
from benchmarks.remedies.trials import Trial, attempt
from benchmarks.verdicts.program import HEALTHY_FROM

MOST_TRIALS = 6
BEST_OF = 3


@dataclass(frozen=True)
class Step:
    """One proposal with what came of it; trial is None for an edit that only a person can make."""

    title: str
    trial: Trial | None

    @property
    def tried(self) -> bool:
        """Tell whether a training came of it."""
        return self.trial is not None and not self.trial.refused

    @property
    def repaired(self) -> bool:
        """Tell whether the program trained as well as its repaired twin, or 90 % as well."""
        return self.trial is not None and self.trial.share >= HEALTHY_FROM

    def __str__(self) -> str:
        if self.trial is None:
            return f"{self.title} (an edit)"
        return f"{self.title} ({'refused' if self.trial.refused else f'{self.trial.share:.2f}'})"


@dataclass(frozen=True)
class Course:
    """What a strategy proposed, in order, as far as it was followed."""

    steps: tuple[Step, ...] = ()

    @property
    def first_repairs(self) -> bool:
        """Tell whether the very first proposal repairs."""
        return bool(self.steps) and self.steps[0].repaired

    @property
    def first_is_an_edit(self) -> bool:
        """Tell whether the very first proposal is an edit that only a person can make."""
        return bool(self.steps) and self.steps[0].trial is None

    def repairs_within(self, trials: int) -> bool:
        """Tell whether one of the first proposals that could be tried repairs."""
        return any(step.repaired for step in self._tried[:trials])

    @property
    def trials(self) -> int:
        """Return the trials needed; one more than are allowed if none of them repairs."""
        for number, step in enumerate(self._tried[:MOST_TRIALS], start=1):
            if step.repaired:
                return number
        return MOST_TRIALS + 1

    @property
    def _tried(self) -> list[Step]:
        return [step for step in self.steps if step.tried]


def follow(name: str, seed: int, proposals: Iterable[Proposal], to_the_end: bool) -> Course:
    """Try proposals until one repairs or the trials are used up; a refused one costs no trial.

    to_the_end: go on after a repair, to learn what the later ones would have done.
    """
    steps: list[Step] = []
    for proposal in proposals:
        trial = attempt(name, seed, proposal.action) if proposal.action else None
        steps.append(Step(proposal.title, trial))
        if sum(step.tried for step in steps) == MOST_TRIALS or (steps[-1].repaired and not to_the_end):
            break
    return Course(tuple(steps))
