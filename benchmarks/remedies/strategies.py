"""What is tried, in which order: gradscope's prescriptions, AUTOTRAINER's fixed repairs, chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from benchmarks.verdicts.baselines import autotrainer
from benchmarks.verdicts.recording import Recorded
from gradscope.examine import examine
from gradscope.records import Run
from gradscope.treat.treatment import prescribed

Action = dict[str, Any]


@dataclass(frozen=True)
class Proposal:
    """A remedy with its name; an empty action is an edit that only a person can make."""

    title: str
    action: Action


def ask_gradscope(run: Run, recorded: Recorded) -> Iterator[Proposal]:
    """Return what the report prescribes for its root causes, in its order."""
    return (Proposal(remedy.title, dict(remedy.action)) for remedy in prescribed(examine(run)))


def _all(*actions: Action) -> Action:
    return {"do": "all", "actions": list(actions)}


def _train(**change: Any) -> Action:
    return {"do": "train", **change}


INITIALISE: Action = {"do": "initialize", "scheme": "own"}
BATCH_NORM: Action = {"do": "normalize", "norm": "batch"}
ADAM = _train(optimizer="Adam", rate=1e-3)


def _activation(to: str) -> Action:
    """Replace the activations and draw the weights for the new ones, as Keras does for a replaced layer."""
    return _all({"do": "replace-activation", "to": to}, INITIALISE)


# The first three as Zhang et al. 2021 order them; the two of the learning rate are recalled, not read.
AUTOTRAINER: dict[str, tuple[tuple[str, Action], ...]] = {
    "vanishing-gradient": (
        ("SELU", _activation("selu")),
        ("ReLU", _activation("relu")),
        ("BatchNorm", BATCH_NORM),
    ),
    "exploding-gradient": (
        ("SELU", _activation("selu")),
        ("ReLU", _activation("relu")),
        ("clip at 1", _train(clipping={"algorithm": "norm", "limit": 1.0})),
        ("tanh", _activation("tanh")),
        ("BatchNorm", BATCH_NORM),
    ),
    "dead-units": (
        ("SELU", _activation("selu")),
        ("BatchNorm", BATCH_NORM),
        ("initialise", INITIALISE),
    ),
    "learning-rate-too-high": (("rate / 10", _train(rate_factor=0.1)), ("Adam", ADAM)),
    "learning-rate-too-low": (
        ("rate × 10", _train(rate_factor=10.0)),
        ("Adam", ADAM),
        ("initialise", INITIALISE),
    ),
}


def ask_autotrainer(run: Run, recorded: Recorded) -> Iterator[Proposal]:
    """Return the repairs of the symptoms that it sees, then, so that it may use all trials, its others."""
    trace = recorded.outcome.trace if recorded.outcome else ()
    seen = [symptom.rule for symptom in autotrainer(run, trace)]
    repairs = chain.from_iterable(AUTOTRAINER[rule] for rule in dict.fromkeys([*seen, *AUTOTRAINER]))
    return (Proposal(title, action) for title, action in dict(repairs).items())


# Every operation of surgery and every change of the training, each with the values that people try first.
ANYTHING: dict[str, Action] = {
    **{f"{to} activations": _activation(to) for to in ("relu", "leaky_relu", "elu", "selu", "gelu", "tanh")},
    **{
        f"{scheme} initialisation": {"do": "initialize", "scheme": scheme}
        for scheme in ("own", "he", "xavier", "lecun", "orthogonal")
    },
    **{f"{norm} norm": {"do": "normalize", "norm": norm} for norm in ("batch", "layer", "group")},
    "skips": {"do": "residual"},
    "twice the width": {"do": "widen", "factor": 2},
    "group norm for batch norm": {"do": "replace-norm", "norm": "group"},
    "linear output": {"do": "replace-activation", "to": "identity", "from": ["sigmoid", "softmax"]},
    **{f"rate × {factor:g}": _train(rate_factor=factor) for factor in (1e-3, 1e-2, 0.1, 10.0, 100.0, 1e3)},
    "warm-up": _train(warmup_steps=30),
    "clip at 1": _train(clipping={"algorithm": "norm", "limit": 1.0}),
    "clip units": _train(clipping={"algorithm": "adaptive", "limit": 0.01}),
    "no clipping": _train(clipping={"algorithm": "none"}),
    "no decay": _train(weight_decay=0.0),
    "Adam": ADAM,
    "SGD": _train(optimizer="SGD", rate=0.05, options={"momentum": 0.9}),
    "standard inputs": _train(scale_inputs=True),
    "standard targets": _train(scale_targets=True),
    "all parameters": _train(all_parameters=True),
    "float32": _train(precision="32-true"),
}


def draw(run: Run, recorded: Recorded) -> Iterator[Proposal]:
    """Return all of ANYTHING in an order drawn for this program and seed."""
    titles = list(ANYTHING)
    random.Random(f"{recorded.name}-{recorded.seed}").shuffle(titles)
    return (Proposal(title, ANYTHING[title]) for title in titles)


GRADSCOPE = "gradscope"
STRATEGIES: dict[str, Callable[[Run, Recorded], Iterator[Proposal]]] = {
    GRADSCOPE: ask_gradscope,
    "AUTOTRAINER": ask_autotrainer,
    "chance": draw,
}
