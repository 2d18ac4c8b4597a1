"""Run all rules, find out which finding causes which, rank them, and give the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gradscope.diagnose.evidence import evidence
from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rule import Rule
from gradscope.diagnose.rules import RULES
from gradscope.records import SEVERITIES, Evidence, Finding, NotChecked, Run, Severity, Verdict
from gradscope.settings import Settings

_SIGNAL = ("vanishing-signal", "exploding-signal")
_GRADIENT = ("vanishing-gradient", "exploding-gradient")
_FADING = ("vanishing-gradient", "vanishing-signal")
_UNITS = ("dead-units", "saturated-activation")
_STANDSTILL = ("zero-gradient", "learning-rate-too-low", "epsilon-floor", "rank-collapse")
_START = ("symmetric-weights", "poor-initialization")
_BLOW_UP = ("non-finite", "loss-divergence")

# What accounts for what. The order is a physician's: code and data, settings of the optimizer, then the
# mechanisms by which harm is done, then symptoms. A finding is folded under the first of these that can
# account for it. A mechanism names the initialisation in its cause, so poor-initialization stands alone only
# where none shows.
CONSEQUENCES: dict[str, tuple[str, ...]] = {
    "missing-gradient": ("not-optimized", "learning-rate-too-low"),
    "not-optimized": (
        "learning-rate-too-low",
        "vanishing-gradient",
        "vanishing-signal",
        "epsilon-floor",
        "rank-collapse",
    ),
    "output-mismatch": (
        *_STANDSTILL,
        *_START,
        "vanishing-gradient",
        "learning-rate-too-high",
        "loss-divergence",
    ),
    "gradient-not-zeroed": ("learning-rate-too-high", *_UNITS, *_SIGNAL, *_GRADIENT, *_STANDSTILL, *_BLOW_UP),
    "unscaled-input": (
        "learning-rate-too-high",
        *_UNITS,
        *_SIGNAL,
        *_GRADIENT,
        *_STANDSTILL,
        *_BLOW_UP,
        *_START,
    ),
    "degenerate-normalization": (*_SIGNAL, *_GRADIENT, *_STANDSTILL, "dead-units"),
    "excessive-weight-decay": (
        *_SIGNAL,
        "vanishing-gradient",
        *_UNITS,
        *_STANDSTILL,
        "learning-rate-too-high",
        "degenerate-normalization",
        "output-mismatch",
    ),
    "over-clipping": ("learning-rate-too-low", "epsilon-floor", "output-mismatch"),
    "gradient-underflow": _STANDSTILL,
    "learning-rate-too-high": (
        *_UNITS,
        *_SIGNAL,
        *_GRADIENT,
        *_STANDSTILL,
        *_BLOW_UP,
        "attention-collapse",
        "degenerate-normalization",
        "output-mismatch",
    ),
    "ineffective-clipping": ("exploding-gradient", *_BLOW_UP),
    "saturated-activation": (*_GRADIENT, *_STANDSTILL, *_START),
    "dead-units": (
        *_SIGNAL,
        "vanishing-gradient",
        *_STANDSTILL,
        "degenerate-normalization",
    ),
    "exploding-gradient": (
        "exploding-signal",
        "over-clipping",
        "learning-rate-too-high",
        *_UNITS,
        *_BLOW_UP,
        *_START,
    ),
    "exploding-signal": (*_GRADIENT, *_UNITS, "learning-rate-too-high", *_BLOW_UP, *_START),
    "vanishing-gradient": ("vanishing-signal", *_UNITS, *_STANDSTILL, *_START),
    "vanishing-signal": ("dead-units", *_STANDSTILL, *_START),
    "zero-gradient": ("learning-rate-too-low", "epsilon-floor", "dead-units", *_SIGNAL, *_START),
    "symmetric-weights": ("poor-initialization", *_SIGNAL, *_GRADIENT, *_UNITS, *_STANDSTILL),
    "poor-initialization": (*_UNITS, *_STANDSTILL, *_BLOW_UP, "learning-rate-too-high"),
    "attention-collapse": ("vanishing-gradient", "exploding-gradient", "exploding-signal", "rank-collapse"),
    "non-finite": (
        *_UNITS,
        *_SIGNAL,
        *_GRADIENT,
        *_STANDSTILL,
        "loss-divergence",
        "missing-gradient",
        *_START,
    ),
    "rank-collapse": ("learning-rate-too-low", "epsilon-floor"),
    "epsilon-floor": ("learning-rate-too-low", "rank-collapse"),
    "learning-rate-too-low": ("output-mismatch", "vanishing-gradient", "vanishing-signal", "rank-collapse"),
    "loss-divergence": (*_UNITS, *_SIGNAL, *_GRADIENT, "rank-collapse", "learning-rate-too-high"),
}
# These act through updates, so nothing that was there before them follows from them.
BY_UPDATES: tuple[str, ...] = (
    "learning-rate-too-high",
    "excessive-weight-decay",
    "gradient-not-zeroed",
    "over-clipping",
)
# But the size of the updates is theirs from the first step on.
SAME_UPDATES = (
    ("excessive-weight-decay", "learning-rate-too-high"),
    ("over-clipping", "learning-rate-too-low"),
)
# Each silences what comes after it, so the one nearer to the input is the cause.
BY_PLACE = ("degenerate-normalization", "dead-units", "vanishing-signal")
ERASED = 1.0  # update / weight of a step after which nothing is left of what weights were
WHOLLY = 0.9  # share of saturated outputs at birth that leaves nothing to a later cause
LITTLE = 0.1  # sum of update / weight over a run in which a network hardly moved
FAR_TARGETS = (8, 11)  # output-mismatch's evidence: targets far from what the outputs are
Condition = Callable[[Finding, Finding, Settings], bool]


@dataclass(frozen=True)
class Diagnosis:
    """The verdict, the findings (root causes first), what was not checked, and the evidence."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    not_checked: tuple[NotChecked, ...]
    evidence: tuple[Evidence, ...]


def diagnose(run: Run, settings: Settings | None = None, rules: Sequence[Rule] = RULES) -> Diagnosis:
    """Judge a run by all rules."""
    settings = settings or Settings()
    findings: list[Finding] = []
    unchecked: list[NotChecked] = []
    for rule in rules:
        result = rule.check(run, settings)
        if isinstance(result, Finding):
            findings.append(result)
        elif isinstance(result, NotChecked):
            unchecked.append(result)
    ranked = rank(fold(findings, settings, {layer.name: layer.depth for layer in run.layers}))
    return Diagnosis(_verdict(run, ranked, settings), ranked, tuple(unchecked), evidence(run, settings))


def fold(
    findings: Sequence[Finding], settings: Settings | None = None, depths: Mapping[str, int] | None = None
) -> list[Finding]:
    """Name in each finding the root that it follows from, if that was found too; depths: of the layers."""
    settings = settings or Settings()
    found = {finding.rule: finding for finding in findings}
    causes: dict[str, str] = {}
    for cause, consequences in CONSEQUENCES.items():
        for rule in consequences:
            both = cause in found and rule in found and rule not in causes
            if not both or _root(cause, causes) == rule or not _in_order(found[cause], found[rule], depths):
                continue
            if _can_cause(found[cause], found[rule], settings):
                causes[rule] = cause
    roots = {rule: _root(rule, causes) for rule in found}
    return [
        replace(
            finding,
            caused_by=roots[finding.rule] if finding.rule in causes else None,
            severity=_worst(item.severity for item in findings if roots[item.rule] == finding.rule)
            if finding.rule not in causes
            else finding.severity,
        )
        for finding in findings
    ]


def _worst(severities: Iterable[Severity]) -> Severity:
    """Return the most severe: a root is as severe as what it leads to."""
    return min(severities, key=SEVERITIES.index)


def _root(rule: str, causes: dict[str, str]) -> str:
    """Follow the causes of a rule up to one that has none."""
    while rule in causes:
        rule = causes[rule]
    return rule


def _can_cause(cause: Finding, finding: Finding, settings: Settings) -> bool:
    """Say whether a cause is more than a note, unless what it is to explain is one, fits, and was in time."""
    serious = cause.severity != "note" or finding.severity == "note"
    held = [
        holds(cause, finding, settings)
        for causes, findings, holds in CONDITIONS
        if _among(cause.rule, causes) and _among(finding.rule, findings)
    ]
    return serious and all(held) and (bool(held) or _in_time(cause, finding))


def _among(rule: str, rules: tuple[str, ...]) -> bool:
    return not rules or rule in rules


def _in_time(cause: Finding, finding: Finding) -> bool:
    """Say whether a cause was there when what it is to explain began."""
    if (cause.rule, finding.rule) in SAME_UPDATES:
        return True
    if cause.rule in BY_UPDATES:
        return cause.first_step < finding.first_step
    # What a statistic shows at once, another may show a little later.
    slack = (cause.last_step - cause.first_step) // 10
    return cause.first_step <= finding.first_step + slack


def _in_order(cause: Finding, finding: Finding, depths: Mapping[str, int] | None) -> bool:
    """Say whether a cause that must be nearer to the input is, as far as that is known."""
    if not (depths and cause.rule in BY_PLACE and finding.rule in BY_PLACE):
        return True
    first = (depths.get(next(iter(item.layers), ""), 0) for item in (cause, finding))
    return next(first) < next(first)


def _nothing_moves(finding: Finding) -> bool:
    """Say whether most weights are kept from moving, also those that get their full gradient."""
    if finding.rule == "not-optimized":
        return finding.evidence.get("share_left_out", 0.0) > 0.5
    return finding.evidence.get("largest_change", 1.0) < LITTLE


def _keeps_from_targets(finding: Finding) -> bool:
    """Say whether the optimizer's settings alone keep a network from targets of whatever scale."""
    if finding.rule == "learning-rate-too-low":
        return finding.evidence.get("total_change", 0.0) < LITTLE
    return finding.rule in ("learning-rate-too-high", "excessive-weight-decay", "over-clipping")


def _as_predicted(finding: Finding, settings: Settings) -> bool:
    """Say whether initialisation and activation alone account for a gradient's gain."""
    measured, predicted = (finding.evidence.get(name, 0.0) for name in ("gain_per_layer", "predicted_gain"))
    return measured > 0 and predicted > 0 and abs(math.log(measured / predicted)) < settings.gain_agreement


def _predicted_alone(finding: Finding, settings: Settings) -> bool:
    """Say whether initialisation and activation predict such a gradient without dead units."""
    predicted, depth = (finding.evidence.get(name, 0.0) for name in ("predicted_gain", "depth"))
    if not (predicted > 0 and depth > 1):
        return False
    total = (depth - 1) * math.log(predicted)
    return not math.log(settings.vanishing_ratio) < total < math.log(settings.exploding_ratio)


def _unbounded(finding: Finding) -> bool:
    """Say whether a loss falls for ever; one that rises is a symptom."""
    return "unbounded" in finding.evidence


def _far(finding: Finding) -> bool:
    """Say whether targets of another scale are meant, which only a sound optimizer reaches."""
    return finding.evidence.get("mismatch") in FAR_TARGETS


def _before(cause: Finding, finding: Finding) -> bool:
    """Say whether updates, or what came before the finding, can have led to it."""
    if cause.rule != "learning-rate-too-high":
        return cause.first_step < finding.first_step
    erased = cause.evidence.get("peak_update_ratio", 0.0) > ERASED  # what weights were before is gone
    partly = finding.evidence.get("first_fraction", 1.0) < WHOLLY
    return cause.first_step < finding.first_step + (erased and partly)


# (causes, findings, what must hold besides); () stands for any. Where one applies, it also judges the time.
CONDITIONS: tuple[tuple[tuple[str, ...], tuple[str, ...], Condition], ...] = (
    (("output-mismatch",), (), lambda cause, finding, _: not (_far(cause) and _keeps_from_targets(finding))),
    ((), ("output-mismatch",), lambda cause, finding, _: _far(finding) and _keeps_from_targets(cause)),
    (("loss-divergence",), (), lambda cause, finding, _: _unbounded(cause)),
    (
        (),
        ("loss-divergence",),
        lambda cause, finding, _: not _unbounded(finding) and _in_time(cause, finding),
    ),
    # Weights that are equal, but not zero, wait for no gradient.
    (
        ("zero-gradient",),
        ("symmetric-weights",),
        lambda cause, finding, _: finding.evidence.get("initial_value") == 0,
    ),
    # Weights that are too small blow nothing up.
    (("poor-initialization",), _BLOW_UP, lambda cause, finding, _: cause.evidence.get("factor", 1.0) > 1),
    (
        (*_FADING, "rank-collapse"),
        ("learning-rate-too-low",),
        lambda cause, finding, _: not _nothing_moves(finding),
    ),
    (
        ("not-optimized", "learning-rate-too-low", "epsilon-floor"),
        (*_FADING, "rank-collapse"),
        lambda cause, finding, _: _nothing_moves(cause),
    ),
    (
        _UNITS,
        _GRADIENT,
        lambda cause, finding, settings: not _as_predicted(finding, settings) and _in_time(cause, finding),
    ),
    (
        ("dead-units",),
        _GRADIENT,
        lambda cause, finding, settings: not _predicted_alone(finding, settings) and _in_time(cause, finding),
    ),
    # From the start it is the other way round.
    (
        ("vanishing-gradient", "learning-rate-too-high"),
        ("saturated-activation",),
        lambda cause, finding, _: _before(cause, finding),
    ),
)


def rank(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Order findings: roots before consequences, the severe before the mild, causes before symptoms."""
    order = list(CONSEQUENCES)

    def key(finding: Finding) -> tuple[int, bool, int]:
        place = order.index(finding.rule) if finding.rule in order else len(order)
        return (SEVERITIES.index(finding.severity), finding.caused_by is not None, place)

    ordered = sorted(findings, key=key)
    return tuple(replace(finding, rank=number) for number, finding in enumerate(ordered, start=1))


def _verdict(run: Run, findings: Sequence[Finding], settings: Settings) -> Verdict:
    """Return the verdict; a run that broke off or doesn't learn, nobody knows why, is not called healthy."""
    if any(finding.severity != "note" for finding in findings):
        return "ailing"
    if run.info.status == "failed":
        return "inconclusive"
    known = run.steps.drop(columns="step").notna().any(axis=None)  # else the steps' own tables are lost
    looked = len(run.steps) >= settings.fewest_steps and known and not run.layer_statistics.empty
    return "healthy" if looked and outcome(run, settings).progress != "stuck" else "inconclusive"
