"""What other tools would say of a recorded run: their published rules, applied to our tables.

Each function takes a run and the scores measured during training and returns the symptoms it reports, in
the tool's own order. Mean |g| isn't recorded; it is taken as rms · sqrt(2/π), exact for Gaussian entries.
Shares of pre-activations beyond a bound come from their mean and standard deviation, taken as Gaussian. A
rule that looks at the median over steps is given all recorded steps, as the schedule has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from gradscope.records import LayerInfo, Run

Trace = tuple[tuple[int, float], ...]
MEAN_OF_RMS = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Symptom:
    """What a tool reports, under our rule's name, and the layers that it names."""

    rule: str
    layers: tuple[str, ...] = ()


def autotrainer(run: Run, trace: Trace) -> Iterator[Symptom]:
    """AUTOTRAINER (Zhang 2021): first against last gradient, dying ReLU, oscillation, slow convergence."""
    gradients = _weight_gradients(run)
    if gradients.shape[1] > 1:
        first, last = gradients.iloc[:, 0], gradients.iloc[:, -1]
        ratio = first / last.replace(0, np.nan)
        if ((ratio < 1e-3) & (first < 1e-4)).any():
            yield Symptom("vanishing-gradient", (gradients.columns[0],))
        if (ratio > 70).any() or _any_nonfinite(run):
            yield Symptom("exploding-gradient", (gradients.columns[0],))
    zeros = _of_weights(run, "gradient_zero_fraction").median()
    yield from _named("dead-units", zeros.index[zeros >= 0.7])
    changes = np.abs(np.diff([score for _, score in trace]))
    if len(changes) and (changes >= 0.03).mean() >= 0.2 and _falls_back(trace):
        yield Symptom("learning-rate-too-high")
    if len(changes) and changes.max() < 0.01:
        yield Symptom("learning-rate-too-low")


def deepdiagnosis(run: Run, trace: Trace) -> Iterator[Symptom]:
    """DeepDiagnosis (Wardat 2022): mean gradients, dead and saturated units, updates, weight variance."""
    if run.steps["loss"].isna().any() or _any_nonfinite(run):
        yield Symptom("non-finite")
    zeros = run.layer_table("activation_zero_fraction").median()
    yield from _named("dead-units", zeros.index[zeros >= 0.7])
    saturated = [layer.name for layer in _bounded(run) if _beyond(run, layer, -5, 5) > 0.5]
    yield from _named("saturated-activation", saturated)
    means = _weight_gradients(run).median()
    yield from _named("vanishing-gradient", means.index[means < 1e-7])
    updates = _of_weights(run, "update_ratio").median()
    yield from _named("learning-rate-too-high", updates.index[updates > 1e-1])
    yield from _named("learning-rate-too-low", updates.index[updates < 1e-5])
    variance = _of_weights(run, "weight_std").median() ** 2
    yield from _named("poor-initialization", variance.index[(variance < 1e-5) | (variance > 10)])


def sagemaker(run: Run, trace: Trace) -> Iterator[Symptom]:
    """SageMaker Debugger (Rauschmayr 2021) with its default thresholds."""
    if _any_nonfinite(run):
        yield Symptom("exploding-gradient")
    means = _weight_gradients(run)
    last = means.iloc[-1] if len(means) else pd.Series(dtype=float)
    yield from _named("vanishing-gradient", last.index[last < 1e-7])
    dead = run.layer_table("activation_dead_unit_fraction")
    worst = dead.iloc[-1] if len(dead) else pd.Series(dtype=float)
    yield from _named("dead-units", worst.index[worst > 0.5])
    bounds = {"tanh": (-9.4999, 9.4999), "sigmoid": (-23.0, 17.0)}
    saturated = [
        layer.name
        for layer in _bounded(run)
        if layer.activation in bounds and _beyond(run, layer, *bounds[layer.activation]) > 0.5
    ]
    yield from _named("saturated-activation", saturated)
    if _poorly_started(run):
        yield Symptom("poor-initialization")
    updates = _of_weights(run, "update_ratio").median()
    yield from _named("learning-rate-too-high", updates.index[updates > 10])
    yield from _named("learning-rate-too-low", updates.index[updates < 1e-8])
    if _not_decreasing(run.steps["loss"].to_numpy(), 10):
        yield Symptom("loss-divergence")


def bttackler(run: Run, trace: Trace) -> Iterator[Symptom]:
    """BTTackler (Pei 2024); its protection of the best tenth of trials needs trials, so it isn't applied."""
    means = _weight_gradients(run)
    typical = means.median()
    adjacent = (means.shift(-1, axis=1) / means.replace(0, np.nan)).median()
    if (typical > 1e4).any() or (adjacent > 1e3).any() or _any_nonfinite(run):
        yield Symptom("exploding-gradient", tuple(typical.index[typical > 1e4]))
    back = (means / means.shift(-1, axis=1).replace(0, np.nan)).median()
    vanished = typical.index[(typical < 1e-5) | (back.reindex(typical.index) < 1e-4)]
    yield from _named("vanishing-gradient", vanished)
    zeros = _of_weights(run, "gradient_zero_fraction").median()
    yield from _named("dead-units", zeros.index[zeros > 0.5])
    loss = run.steps["loss"]
    with np.errstate(invalid="ignore"):  # an infinite loss has no deviation
        if len(loss) > 1 and abs(loss.std()) < 1e-4 * abs(loss.mean()):
            yield Symptom("learning-rate-too-low")


def deepchecker(run: Run, trace: Trace) -> Iterator[Symptom]:
    """TheDeepChecker (Ben Braiek 2022), without its checks of the initial loss and of a single batch."""
    if run.steps["loss"].isna().any() or _any_nonfinite(run):
        yield Symptom("non-finite")
    means = _weight_gradients(run).median()
    ratio = means.to_numpy()[:-1] / np.maximum(means.to_numpy()[1:], 1e-30)
    vanished = set(means.index[means < 1e-6]) | set(means.index[:-1][ratio < 0.5])
    yield from _named("vanishing-gradient", sorted(vanished))
    tops = run.layer_table("activation_max").abs().median()
    units = [layer.name for layer in run.layers if layer.activation is not None and tops[layer.name] < 1e-5]
    yield from _named("dead-units", units)
    updates = np.log10(_of_weights(run, "update_ratio").median().replace(0, np.nan))
    yield from _named("learning-rate-too-high", updates.index[updates > -1])
    yield from _named("learning-rate-too-low", updates.index[updates < -4])
    spread = run.layer_table("activation_std").median()
    inner = [layer.name for layer in run.layers if layer.role == "activation"]
    odd = [name for name in inner if not 0.5 <= spread[name] <= 2]
    yield from _named("poor-initialization", odd)


def torchmortem(run: Run, trace: Trace) -> Iterator[Symptom]:
    """torchmortem: norms of gradients, zeros and large outputs of any layer, update ratios."""
    norms = _of_weights(run, "gradient_norm")
    if norms.shape[1] > 1:
        ratio = (norms.iloc[:, -1] / norms.iloc[:, 0].replace(0, np.nan)).median()
        if ratio > 100 or norms.isna().any(axis=None):
            yield Symptom("vanishing-gradient", (norms.columns[0],))
    largest = norms.max()
    yield from _named("exploding-gradient", largest.index[largest > 1000])
    zeros = run.layer_table("activation_zero_fraction").median()
    yield from _named("dead-units", zeros.index[zeros > 0.5])
    large = [layer.name for layer in run.layers if _outside(run, layer, -0.95, 0.95) > 0.5]
    yield from _named("saturated-activation", large)
    updates = _of_weights(run, "update_ratio").median()
    yield from _named("learning-rate-too-high", updates.index[updates > 1e-1])
    yield from _named("learning-rate-too-low", updates.index[updates < 1e-5])


BASELINES: dict[str, Callable[[Run, Trace], Iterator[Symptom]]] = {
    "AUTOTRAINER": autotrainer,
    "DeepDiagnosis": deepdiagnosis,
    "SageMaker Debugger": sagemaker,
    "BTTackler": bttackler,
    "TheDeepChecker": deepchecker,
    "torchmortem": torchmortem,
}


def _named(rule: str, layers: Iterable[str]) -> Iterator[Symptom]:
    names = tuple(layers)
    if names:
        yield Symptom(rule, names)


def _of_weights(run: Run, column: str) -> pd.DataFrame:
    """Return a statistic of the weights, by the layers that own them, in execution order."""
    owners = {
        parameter.name: parameter.layer
        for parameter in run.parameters
        if parameter.role == "weight" and parameter.trained
    }
    depth = {layer.name: layer.depth for layer in run.layers}
    names = sorted(owners, key=lambda name: depth.get(owners[name], len(depth)))
    table = run.parameter_table(column)[names]
    return table.set_axis([owners[name] for name in names], axis=1)


def _weight_gradients(run: Run) -> pd.DataFrame:
    """Return the mean magnitude of each weight's gradient, as far as its rms tells."""
    return _of_weights(run, "gradient_rms") * MEAN_OF_RMS


def _any_nonfinite(run: Run) -> bool:
    tables = (run.parameter_table("gradient_nonfinite"), run.parameter_table("weight_nonfinite"))
    return any(bool((table > 0).any(axis=None)) for table in tables)


def _bounded(run: Run) -> list[LayerInfo]:
    kinds = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign")
    return [layer for layer in run.layers if layer.activation in kinds]


def _beyond(run: Run, layer: LayerInfo, low: float, high: float) -> float:
    """Return the median share of an activation's inputs outside of (low, high), from its input layer."""
    before = [run.layer(name) for name in layer.inputs if name in {other.name for other in run.layers}]
    source = before[0] if before and layer.role == "activation" else None
    return _outside(run, source, low, high) if source else 0.0


def _outside(run: Run, layer: LayerInfo, low: float, high: float) -> float:
    mean = run.layer_table("activation_mean")[layer.name].median()
    spread = max(run.layer_table("activation_std")[layer.name].median(), 1e-30)
    if not math.isfinite(mean + spread):
        return 0.0

    def below(bound: float) -> float:
        return 0.5 * math.erfc(-(bound - mean) / (spread * math.sqrt(2)))

    return below(low) + 1 - below(high)


def _poorly_started(run: Run) -> bool:
    """Compare the first five steps: activations' variance from layer to layer, and gradients' spread."""
    spread = run.layer_table("activation_std").iloc[:5]
    names = [layer.name for layer in run.layers if layer.role in ("linear", "convolution")]
    variance = spread[names].median().to_numpy() ** 2
    jumps = variance[1:] / np.maximum(variance[:-1], 1e-30)
    gradients = _weight_gradients(run).iloc[:5].median()
    # A Gaussian's 5–95 percentile range is 3.29 standard deviations.
    flat = gradients / MEAN_OF_RMS * 3.29 < 1e-3
    return bool((np.maximum(jumps, 1 / np.maximum(jumps, 1e-30)) > 10).any() or flat.any())


def _not_decreasing(loss: np.ndarray, patience: int) -> bool:
    """Tell whether the loss reached no new low in the last `patience` recorded steps."""
    known = loss[np.isfinite(loss)]
    return len(known) > patience and known[-patience:].min() >= known[:-patience].min()


def _falls_back(trace: Trace) -> bool:
    scores = [score for _, score in trace]
    return any(later < earlier - 0.03 for earlier, later in pairwise(scores))
