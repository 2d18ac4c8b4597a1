"""State the facts of a run in words: what was trained, how long, with what, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.present import wording
from gradscope.records import OptimizerInfo, Run

_LONGEST_STEP = 1e9  # seconds; more is a damaged file
_ENDS = {
    "running": "still running, or killed",
    "finished": "finished",
    "interrupted": "interrupted",
    "failed": "failed with an exception",
}
_OPTIONS = ("momentum", "betas", "eps", "weight_decay", "nesterov", "amsgrad")


@dataclass(frozen=True)
class Fact:
    """A labelled value, with an explanation where one helps."""

    label: str
    value: str
    hint: str = ""


def key_facts(run: Run) -> tuple[Fact, ...]:
    """Return the handful of facts that everybody asks for first."""
    return (
        Fact("Loss", _loss(run)),
        Fact("Steps", *_steps(run)),
        Fact("Layers", f"{len(run.layers):,}", _parameter_count(run)),
        Fact("Optimizer", *_optimizer(run)),
        Fact("Duration", *_duration(run)),
        Fact("Ended", _ENDS.get(run.info.status, wording.clean(run.info.status, 40)), _restarts(run)),
    )


def more_facts(run: Run) -> tuple[Fact, ...]:
    """Return everything else that is known of how the run was set up."""
    info = run.info
    facts = [Fact("Model", wording.name(info.model)), Fact("Run", wording.clean(run.path, 300))]
    facts += [Fact("Started", _moment(info.started))] if info.started else []
    facts += [Fact("Ended", _moment(info.ended))] if info.ended else []
    facts += [Fact(f"Optimizer {number}", _groups(item)) for number, item in enumerate(info.optimizers)]
    facts += _mapping({key: value for key, value in info.training.items() if key != "overhead_share"})
    facts += [Fact("Ranks", f"{info.ranks:,}")] if info.ranks > 1 else []
    facts += [Fact("Versions", _versions(info.versions))] if info.versions else []
    facts += [Fact("Recorded", _schedule(info.settings))] if info.settings else []
    unobserved = sum(1 for layer in info.layers if layer.not_observable)
    facts += [Fact("Not observable", wording.count(unobserved, "layer"))] if unobserved else []
    return tuple(facts)


def _loss(run: Run) -> str:
    if not len(run.steps) or run.steps["loss"].isna().all():
        return wording.MISSING
    first, last = float(run.steps["loss"].iloc[0]), float(run.steps["loss"].iloc[-1])
    return f"{wording.figure(first, 4)} → {wording.figure(last, 4)}"


def _steps(run: Run) -> tuple[str, str]:
    if not len(run.steps):
        return "0", "nothing was recorded"
    done = int(run.info.training.get("steps", int(run.steps["step"].iloc[-1]) + 1))
    return f"{done:,}", f"{len(run.steps):,} recorded"


def _parameter_count(run: Run) -> str:
    total = sum(parameter.size for parameter in run.parameters)
    trained = sum(parameter.size for parameter in run.parameters if parameter.trained)
    text = f"{wording.short(total)} parameters"
    return text if trained == total else f"{text}, {wording.short(trained)} trained"


def _optimizer(run: Run) -> tuple[str, str]:
    if not run.info.optimizers:
        return wording.MISSING, ""
    kinds = ", ".join(dict.fromkeys(wording.clean(item.kind, 60) for item in run.info.optimizers))
    rates = [group["lr"] for item in run.info.optimizers for group in item.groups if "lr" in group]
    distinct = list(dict.fromkeys(wording.figure(rate) for rate in rates))
    if not distinct:
        return kinds, ""
    return kinds, f"lr {', '.join(distinct[:3])}{' …' if len(distinct) > 3 else ''}"


def _groups(optimizer: OptimizerInfo) -> str:
    texts = []
    for group in optimizer.groups[:6]:
        chosen = [key for key in ("lr", *_OPTIONS) if group.get(key) not in (None, False)]
        texts.append(", ".join(f"{key} {wording.figure(group[key])}" for key in chosen))
    more = f" · {len(optimizer.groups) - 6} more groups" if len(optimizer.groups) > 6 else ""
    return f"{wording.clean(optimizer.kind, 60)}: {' · '.join(texts)}{more}" if texts else optimizer.kind


def _duration(run: Run) -> tuple[str, str]:
    """Return the wall time of the run, and what share of a recorded step was gradscope's own."""
    began, ended = wording.moment(run.info.started), wording.moment(run.info.ended)
    known = began and ended and (began.tzinfo is None) == (ended.tzinfo is None)
    total = (
        wording.duration((ended - began).total_seconds()) if known and began and ended else wording.MISSING
    )
    return total, _cost(run)


def _cost(run: Run) -> str:
    share = run.info.training.get("overhead_share")
    if isinstance(share, float) and 0 < share < 10:
        return f"watching added {wording.percent(share)}"
    seconds, own = _sum(run, "seconds"), _sum(run, "overhead_seconds")
    if not 0 < own < seconds:
        return ""
    return f"watching added {wording.percent(own / (seconds - own))} to recorded steps"


def _sum(run: Run, column: str) -> float:
    values = run.steps[column].to_numpy("float64") if column in run.steps else np.array([])
    return float(values[(values > 0) & (values < _LONGEST_STEP)].sum())


def _restarts(run: Run) -> str:
    return wording.count(run.info.restarts, "restart") if run.info.restarts else ""


def _moment(text: str) -> str:
    moment = wording.moment(text)
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else wording.clean(text, 60)


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(
        f"{wording.clean(name, 40)} {wording.clean(version, 40)}" for name, version in versions.items()
    )


def _mapping(values: Mapping[str, Any]) -> list[Fact]:
    shown = [(key, value) for key, value in values.items() if value not in (None, "", (), [])]
    return [
        Fact(wording.clean(key, 60).replace("_", " ").capitalize(), wording.figure(value, 6))
        for key, value in shown[:30]
    ]


def _schedule(settings: Mapping[str, Any]) -> str:
    every, budget = settings.get("every_n_steps", "auto"), settings.get("overhead_budget")
    within = f", within {wording.percent(budget)} of the time" if isinstance(budget, float) else ""
    if every == "auto":
        return f"every step at first, then ever fewer{within}"
    return ("every step" if every == 1 else f"every {wording.figure(every)} steps") + within
