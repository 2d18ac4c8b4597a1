"""How the gradient changes through time, in layers that reuse their weights at each step of a sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradscope.diagnose import theory
from gradscope.diagnose.architecture import activation_after, main_weight
from gradscope.diagnose.series import median
from gradscope.records import LayerInfo, ParameterInfo, Run

FEWEST_CALLS = 8  # a module that runs so often in a step is a loop over time
OPEN_HALFWAY = 0.5  # a gate without bias; the factor by which a gated cell forgets at each step


@dataclass(frozen=True)
class Recurrence:
    """A layer that runs over time: its recurrent weight, the steps, and the predicted gain of each.

    gated: the gain is that of half-open gates, not of the weights.
    """

    layer: LayerInfo
    weight: ParameterInfo
    steps: int
    gain: float
    gated: bool

    @property
    def total(self) -> float:
        """Return what is left of the gradient's root mean square after all steps."""
        return math.exp(min(700.0, self.steps * math.log(self.gain))) if self.gain > 0 else 0.0


def recurrences(run: Run) -> list[Recurrence]:
    """Return the layers that run over time and whose gain theory predicts."""
    found = []
    for layer in run.layers:
        item = _recurrent(run, layer) if layer.role == "recurrent" else _looped(run, layer)
        if item is not None and math.isfinite(item.gain):
            found.append(item)
    return found


def _recurrent(run: Run, layer: LayerInfo) -> Recurrence | None:
    """Read a torch recurrent layer; cells count their calls."""
    names = [name for name in layer.parameters if "weight_hh" in name]
    shape = layer.output_shape or ()
    if not names or not shape:
        return None
    weight = run.parameter(names[0])
    time = 1 if layer.options.get("batch_first") else 0
    steps = (
        _calls(run, layer) if layer.kind.endswith("Cell") else shape[time] if len(shape) == 3 else shape[0]
    )
    if layer.kind.startswith(("LSTM", "GRU")):
        return Recurrence(layer, weight, steps, OPEN_HALFWAY, gated=True)
    activation = str(layer.options.get("nonlinearity") or "tanh")
    return Recurrence(layer, weight, steps, _gain(run, layer, weight, activation, True), gated=False)


def _looped(run: Run, layer: LayerInfo) -> Recurrence | None:
    """Read a square linear layer that is called again and again."""
    weight, calls = main_weight(run, layer), _calls(run, layer)
    square = layer.role == "linear" and layer.fan_in is not None and layer.fan_in == layer.fan_out
    activation = activation_after(run, layer)
    if weight is None or not square or calls < FEWEST_CALLS or not theory.known(activation):
        return None
    return Recurrence(layer, weight, calls, _gain(run, layer, weight, activation or "", False), gated=False)


def _calls(run: Run, layer: LayerInfo) -> int:
    recorded = median(run.layer_table("calls")[layer.name].to_numpy())
    return int(recorded) if math.isfinite(recorded) else layer.calls


def _gain(run: Run, layer: LayerInfo, weight: ParameterInfo, activation: str, activated: bool) -> float:
    """Predict the gain of a step from the measured weights and the measured size of the states."""
    deviation = median(run.parameter_table("weight_std")[weight.name].to_numpy())
    size = median(run.layer_table("activation_rms")[layer.name].to_numpy()) ** 2
    if not (math.isfinite(deviation) and math.isfinite(size) and theory.known(activation)):
        return math.nan
    q = theory.variance_before(activation, size) if activated else size
    return math.sqrt(theory.chi(activation, theory.sigma_w2(deviation, weight.shape[-1]), round(q, 6)))
