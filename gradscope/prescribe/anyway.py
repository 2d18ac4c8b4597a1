"""What repairs many networks whatever ails them: the next to try after what a finding suggests."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.prescribe import clipping, guards, initialization, normalization, optimizer, scaling
from gradscope.prescribe.case import Case
from gradscope.prescribe.together import together
from gradscope.records import Finding, Remedy, Run
from gradscope.settings import Settings


def prescribe_anyway(
    run: Run, findings: Sequence[Finding] = (), settings: Settings | None = None
) -> tuple[Remedy, ...]:
    """Return remedies for a run that no finding explains, or whose findings' remedies don't repair it.

    Which, and in which order, is what benchmarks/remedies taught. findings: of this run; where numbers that
    are not finite are among them, operations are guarded as well.
    """
    broken = next((finding for finding in findings if finding.rule == "non-finite"), None)
    case = Case(broken or Finding("", "note", ""), run, settings or Settings())
    search = optimizer.search_rate(case)
    if search is None:
        return ()
    drawn, inputs = initialization.initialize_everything(case), scaling.scale_inputs(case)
    normalized, clipped = normalization.normalize_anywhere(case), together(search, clipping.clip_at_one(case))
    fresh = together(drawn, clipped) if drawn else None
    settled = together(drawn, normalized, search) if drawn and normalized else None
    if broken is not None:
        guard = guards.keep_finite(case)
        return tuple(together(guard, remedy) for remedy in (fresh, settled, clipped) if remedy is not None)
    scaled = together(inputs, search) if inputs else None
    return tuple(remedy for remedy in (settled, fresh, clipped, scaled) if remedy is not None)
