"""NaN or infinity appears in an activation, a gradient, a weight or the loss.

What it finds
The first recorded step with a non-finite number, and the module or parameter in which it is born:
forward, the first in execution order; backward, the last one; in the weights, after an update. With the
last finite values before it.

Why it hurts
From there it spreads to every weight with the next update; nothing trains after that.

What it is not
Steps that the loss scaler of half precision skips, and infinities by design, such as masked attention
scores, that never reach the loss or a gradient.

Remedies
Depend on the cause: learning rate, clipping, initialisation, precision, a guarded logarithm or division.

Evidence
first_step, last_finite_loss, last_finite_absmax (of the layer's output or the parameter), last_grad_norm,
bad_steps.

References
Micikevicius et al. 2018 for half precision.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from gradscope.diagnose.architecture import RESHAPING, consumers, operations, own_code_before, passes_as_is
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import column, steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Event, Finding, LayerInfo, Run
from gradscope.settings import Settings

NAME = "non-finite"
# Functions whose derivative is finite wherever its factors are, beside those that change a shape.
TAME = (
    *("Add", "Addmm", "Bmm", "Cat", "Clone", "Index", "Mean", "Mm", "Mul", "Select", "Slice", "Split"),
    *("Stack", "Sub", "Sum", "Tanh", "Sigmoid", "Relu", "Softmax"),
)
NAMED = re.compile(r"(?<![a-z])(nans?|infs?|infinity|infinite|non-?finite)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Birth:
    """Where the first non-finite number was born: "forward", "loss", "derivative",
    "backward", "gradient" or "weight"."""

    step: int
    phase: str
    name: str


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find the first NaN or infinity that reached the loss, a gradient or a weight."""
    require(len(run.steps) or _events(run), "no step was recorded")
    harmful = _harmful_rows(run)
    step = _first_step(run, harmful)
    if step is None:
        return _raised(run)
    birth = _in_function(run, _birth(run, step))
    last = _last_finite(run, birth)
    return Finding(
        NAME,
        "critical",
        _message(birth),
        _places(run, birth),
        (birth.name,) if birth.phase == "weight" else (),
        step,
        int(steps_of(run)[-1]) if len(run.steps) else step,
        _cause(birth, last),
        present(first_step=step, bad_steps=float(harmful.sum()), **last),
    )


def _raised(run: Run) -> Finding | None:
    """Find a NaN that only the exception tells of, as with torch's anomaly detection."""
    if run.info.status != "failed" or not NAMED.search(run.info.exception):
        return None
    step = int(steps_of(run)[-1]) if len(run.steps) else 0
    return Finding(
        NAME,
        "critical",
        f"Training was stopped by a NaN or infinity after step {step}.",
        (),
        (),
        step,
        step,
        f"The exception names it: {run.info.exception}.",
        present(first_step=step),
    )


def _events(run: Run) -> list[Event]:
    return [event for event in run.events if event.kind == "non-finite"]


def _harmful_rows(run: Run) -> np.ndarray:
    """Return the recorded steps in which the loss, a gradient or a weight was bad and not just skipped."""
    loss, norm = column(run, "loss"), column(run, "grad_norm")
    skipped = column(run, "skipped") == 1
    bad_gradient = (run.parameter_table("gradient_nonfinite").to_numpy() > 0).any(axis=1) | np.isinf(norm)
    bad_weight = (run.parameter_table("weight_nonfinite").to_numpy() > 0).any(axis=1)
    bad_loss = np.isinf(loss) | (np.isnan(loss) & _recorded(run, "loss") & ~_without_loss(run))
    return np.asarray((bad_loss | bad_gradient) & ~skipped | bad_weight)


def _recorded(run: Run, name: str) -> np.ndarray:
    """Say in which rows a NaN was measured: where other steps have a value, or activations are bad."""
    values = column(run, name)
    bad = (run.layer_table("activation_nonfinite").to_numpy() > 0).any(axis=1)
    return np.asarray(bad | np.isfinite(values).any())


def _without_loss(run: Run) -> np.ndarray:
    """Say in which rows there was no loss at all: a training_step may return None, and nothing flows back."""
    unmeasured = run.parameter_table("gradient_norm").isna().to_numpy().all(axis=1)
    missing = (run.parameter_table("gradient_missing").to_numpy() == 1).any(axis=1)
    return np.asarray(unmeasured & missing)


def _first_step(run: Run, harmful: np.ndarray) -> int | None:
    """Return the first bad step: a recorded one, or one of which only an event tells."""
    told = [event.step for event in _events(run) if not _was_skipped(run, event.step)]
    rows = np.flatnonzero(harmful)
    if not len(rows):
        ended = not run.info.training.get("precision", "").startswith("16") and bool(told)
        return min(told) if ended and _reached(run) else None
    return min([int(steps_of(run)[rows[0]]), *told])


def _reached(run: Run) -> bool:
    """Say whether an event tells of a bad loss, gradient or weight."""
    return any(event.parameter is not None or event.layer is None for event in _events(run))


def _was_skipped(run: Run, step: int) -> bool:
    rows = np.flatnonzero(steps_of(run) == step)
    return bool(len(rows)) and bool(column(run, "skipped")[rows[0]] == 1)


def _birth(run: Run, step: int) -> Birth:
    for event in _events(run):
        if event.step == step and (event.layer or event.parameter):
            phase = str(event.data.get("phase", "weight" if event.parameter else "forward"))
            return Birth(step, phase, event.parameter or event.layer or "")
    rows = np.flatnonzero(steps_of(run) == step)
    if not len(rows):
        return Birth(step, "loss", "")
    weights = _bad(run.parameter_table("weight_nonfinite").iloc[rows[0]])
    forward = _bad(run.layer_table("activation_nonfinite").iloc[rows[0]])
    backward = _bad(run.layer_table("signal_nonfinite").iloc[rows[0]])
    gradients = _bad(run.parameter_table("gradient_nonfinite").iloc[rows[0]])
    if weights:
        return Birth(step, "weight", weights[0])
    if forward:
        return Birth(step, "forward", forward[0])
    if not math.isfinite(column(run, "loss")[rows[0]]) or not (backward or gradients):
        return Birth(step, "loss", "")
    if backward:
        return Birth(step, "backward", backward[-1])
    return Birth(step, "gradient", gradients[-1])


def _in_function(run: Run, birth: Birth) -> Birth:
    """Return where the gradient in a loss first failed, if a derivative of the network is in the loss.

    Such a loss is not a number because a gradient is, though all outputs are finite.
    """
    row = np.flatnonzero(steps_of(run) == birth.step)
    names = operations(run.info.loss.get("functions", ()))
    if birth.phase != "loss" or not len(row) or not any(name.endswith("Backward") for name in names):
        return birth
    backward = _bad(run.layer_table("signal_nonfinite").iloc[row[0]])
    first = [layer.name for layer in run.layers if not layer.inputs]
    return Birth(birth.step, "derivative", backward[0]) if backward[:1] == first[:1] else birth


def _bad(row: object) -> list[str]:
    return [str(name) for name, count in row.items() if count > 0]  # type: ignore[attr-defined]


def _places(run: Run, birth: Birth) -> tuple[str, ...]:
    """Return the layer in which it was born: not always the one at whose output it was first seen."""
    if birth.phase == "derivative":
        return (birth.name,)
    if birth.phase not in ("forward", "backward"):
        return _layer_of(run, birth.name)
    ran = {layer.name: layer for layer in run.layers}
    if birth.name not in ran:
        return (birth.name,)
    layer = ran[birth.name]
    if birth.phase == "forward":
        return (own_code_before(run, layer) or layer.name,)
    taking = [item for item in consumers(run, layer.name) if item.depth > layer.depth]
    # Its own backward pass made it from a gradient that was finite, if nothing else lies between.
    made = [item for item in taking if passes_as_is(layer, item) or _only_own_code_divides(item)]
    return (made[0].name,) if len(taking) == 1 and made else (layer.name,)


def _only_own_code_divides(layer: LayerInfo) -> bool:
    """Say whether a user's own module makes gradients that may be infinite, and what leads to it doesn't."""
    return layer.role == "other" and set(operations(layer.functions)) <= {*RESHAPING, *TAME}


def _layer_of(run: Run, name: str) -> tuple[str, ...]:
    return tuple(parameter.layer for parameter in run.parameters if parameter.name == name)


def _message(birth: Birth) -> str:
    place = {
        "forward": f"in the output of {birth.name}",
        "backward": f"in the gradient at the output of {birth.name}",
        "gradient": f"in the gradient of {birth.name}",
        "derivative": f"in the derivative of the network that the loss takes, at {birth.name}",
        "weight": f"in the parameter {birth.name}",
    }.get(birth.phase, "in the loss, while every layer's output was finite")
    return f"The first NaN or infinity appears {place}, at step {birth.step}."


def _last_finite(run: Run, birth: Birth) -> dict[str, float]:
    """Return what was last measured before the first bad step."""
    before = steps_of(run) < birth.step
    figures = {"last_finite_loss": _last(column(run, "loss")[before])}
    figures["last_grad_norm"] = _last(column(run, "grad_norm")[before])
    if birth.phase in ("forward", "backward") and birth.name in run.layer_table("activation_max"):
        high = run.layer_table("activation_max")[birth.name].to_numpy()[before]
        low = run.layer_table("activation_min")[birth.name].to_numpy()[before]
        figures["last_finite_absmax"] = _last(np.maximum(np.abs(high), np.abs(low)))
    if birth.phase in ("weight", "gradient") and birth.name in run.parameter_table("weight_absmax"):
        figures["last_finite_absmax"] = _last(
            run.parameter_table("weight_absmax")[birth.name].to_numpy()[before]
        )
    return figures


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else math.nan


def _cause(birth: Birth, last: dict[str, float]) -> str:
    if not math.isfinite(last["last_finite_loss"]):
        return (
            "It is there from the first recorded step: look at the data, the initial weights and "
            "the function."
        )
    size = last.get("last_finite_absmax", math.nan)
    largest = f", the largest magnitude at {birth.name} {size:.3g}" if math.isfinite(size) else ""
    return (
        f"Just before, the loss was {last['last_finite_loss']:.3g} and the gradient norm "
        f"{last['last_grad_norm']:.3g}{largest}."
    )
