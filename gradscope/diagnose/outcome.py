"""Judge from the loss alone whether training got anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnose.architecture import consumers, operations, output_layers, watched_outputs
from gradscope.diagnose.series import Stretch, column, median, steps_of
from gradscope.diagnose.squared_error import squared_error
from gradscope.records import LayerInfo, Run, Severity
from gradscope.settings import Settings

ALIKE = 1e-6  # relative difference between outputs under which they are one number, rounded
SHRUNK = math.log(5)  # outputs that draw together by less than this factor need not have collapsed
TOGETHER = 0.98  # correlation between the logarithms of the loss and of the outputs' deviation
PRODUCTS = {"Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Dot", "Cdist", "CosineSimilarity", "Cat", "Stack"}
CRITERIA = ("NllLoss", "BinaryCrossEntropy", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "KlDiv")
NO_ERROR = 1e-3  # mean error of probabilities that no network makes before it was trained
Progress = Literal["trains", "slow", "stuck", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """What the loss shows.

    initial, final, best: medians over a few recorded steps at the start (or the first loss, if that is lower:
    the first updates may have raised it), at the end, and the lowest of all.
    improvement: share of the initial loss that is gone, or, if that is less, of a constant guess's where that
    is known: falling from a bad start to a guess is no learning.
    noise: scatter of neighbouring steps, in the loss's unit.
    chance: the loss of a constant guess where it is known (log C for C balanced classes, for a squared error
    the variance of the targets), else NaN.
    progress: "trains", "slow" (some improvement), "stuck" (also broken by NaN), or "unknown": too few steps,
    or a loss that needn't fall (several optimizers, as in a GAN).
    """

    initial: float
    final: float
    best: float
    improvement: float
    noise: float
    chance: float
    progress: Progress

    @property
    def text(self) -> str:
        """Return the loss's way in words."""
        if self.progress == "unknown":
            return "the loss can't be judged"
        return f"the loss went from {self.initial:.3g} to {self.final:.3g}"


def outcome(run: Run, settings: Settings) -> Outcome:
    """Judge the loss of a run, once for all rules that ask."""
    known: Outcome | None = run.conclusions.get((outcome, settings))
    if known is None:
        known = run.conclusions[outcome, settings] = _outcome(run, settings)
    return known


def _outcome(run: Run, settings: Settings) -> Outcome:
    recorded = column(run, "loss")
    losses = recorded[np.isfinite(recorded)]
    squared = squared_error(run)
    chance = squared.chance if squared else _chance(run)
    if broken(run):
        initial, final, best = _levels(losses) if len(losses) else (math.nan,) * 3
        return Outcome(initial, final, best, math.nan, math.nan, chance, "stuck")
    if len(losses) < max(2, settings.patience):
        return Outcome(math.nan, math.nan, math.nan, math.nan, math.nan, chance, "unknown")
    initial, final, best = _levels(losses)
    if math.isnan(chance) and not run.info.loss.get("functions"):
        chance = _guessed_chance(run, final)
    if answers_alike(run) or only_shrinks(run):
        chance = final  # what a constant guess reached
    floor = -1.0 if _of_probabilities(run) else 0.0
    scale = max(abs(initial - floor), abs(final - floor))
    improvement = (initial - final) / scale if scale > 0 else 0.0
    noise = 1.4826 * median(np.abs(np.diff(losses))) / math.sqrt(2)
    if math.isfinite(chance) and final > floor:
        improvement = min(improvement, (chance - final) / max(chance - floor, final - floor))
    progress = _progress(run, initial - floor, final - floor, improvement, chance, settings)
    if progress == "slow" and initial - final < _scatter(noise, len(losses)):
        progress = "stuck"
    return Outcome(initial, final, best, improvement, noise, chance, progress)


def broken(run: Run) -> bool:
    """Say whether the run ended with weights or a loss that are no numbers any more."""
    if not len(run.steps):
        return False
    losses = column(run, "loss")
    weights = run.parameter_table("weight_nonfinite").to_numpy()[-1]
    lost = np.isinf(losses[-1]) or (np.isnan(losses[-1]) and bool(np.isfinite(losses).any()))
    signal = run.layer_table("activation_nonfinite").to_numpy()[-1]
    return bool((weights > 0).any() or (lost and (signal > 0).any()))


def answers_alike(run: Run) -> bool:
    """Say whether at the end every output is the same for all samples, to the precision of its numbers."""
    last = max(5, len(run.steps) // 10)
    ends = [layer for layer in watched_outputs(run) if not consumers(run, layer.name)]
    return bool(ends) and all(_constant(run, layer, slice(-last, None)) for layer in ends)


def only_shrinks(run: Run) -> bool:
    """Say whether the loss falls only as all outputs draw together, like a power of their deviation.

    Distances between outputs do so without learning anything, where nothing keeps the outputs apart.
    """
    losses = column(run, "loss")
    deviations, found = run.layer_table("activation_std"), watched_outputs(run)
    return bool(found) and all(
        _in_step(losses, between_samples(run, layer)) or _in_step(losses, deviations[layer.name].to_numpy())
        for layer in found
    )


def between_samples(run: Run, layer: LayerInfo) -> NDArray[np.float64]:
    """Return how far a layer's outputs lie apart at each recorded step: rms * sqrt(1 - cosine of rows)."""
    if (layer.output_shape or (0,))[-1] == 1:
        return run.layer_table("activation_std")[layer.name].to_numpy()
    size = run.layer_table("activation_rms")[layer.name].to_numpy()
    cosine = run.layer_table("activation_cosine")[layer.name].to_numpy()
    return np.asarray(size * np.sqrt(np.clip(1 - cosine, 0, None)))


def _in_step(losses: NDArray[np.float64], deviations: NDArray[np.float64]) -> bool:
    known = np.isfinite(losses) & np.isfinite(deviations) & (losses > 0) & (deviations > 0)
    if known.sum() < max(10, 0.8 * len(losses)):
        return False
    loss, deviation = np.log(losses[known]), np.log(deviations[known])
    fallen = median(deviation[:3]) - median(deviation[-3:])
    if fallen < SHRUNK:
        return False
    power = float(np.polyfit(deviation, loss, 1)[0])
    return 0.8 < power < 2.2 and float(np.corrcoef(deviation, loss)[0, 1]) > TOGETHER


def _constant(run: Run, layer: LayerInfo, rows: slice) -> bool:
    if not layer.output_shape or len(layer.output_shape) < 2 or layer.calls > 1:
        return False
    if layer.output_shape[-1] == 1 or len(layer.output_shape) > 2:  # the cosine of single numbers is 1 or -1
        deviation = median(run.layer_table("activation_std")[layer.name].to_numpy()[rows])
        size = median(run.layer_table("activation_rms")[layer.name].to_numpy()[rows])
        return deviation <= ALIKE * size
    return median(run.layer_table("activation_cosine")[layer.name].to_numpy()[rows]) > 1 - ALIKE


def lasting(run: Run, settings: Settings) -> int:
    """Return how many recorded steps a condition must last: all that there were, in a run that broke off."""
    finite = int(np.isfinite(column(run, "loss")).sum())
    return min(settings.patience, max(1, finite)) if broken(run) else settings.patience


def severity(found: Outcome, ongoing: bool = True) -> Severity:
    """Return how much a mechanism matters that is at work in a run with this outcome."""
    if found.progress == "trains" or not ongoing:
        return "note"
    return "critical" if found.progress == "stuck" else "warning"


def prevails(stretch: Stretch, run: Run, settings: Settings) -> bool:
    """Say whether what held for a stretch of steps mattered to the run.

    It still goes on, or took more than a third of the run, or more than a third of a standstill of the loss
    that itself took more than a third of the run.
    """
    length, all_steps = stretch.last_step - stretch.first_step, int(steps_of(run)[-1])
    if stretch.ongoing or 3 * length > all_steps:
        return True
    still = _standstill(run, settings)
    return 3 * still > all_steps and 3 * (min(stretch.last_step, still) - stretch.first_step) > still


def _standstill(run: Run, settings: Settings) -> int:
    """Return the first step at which the loss has made a tenth of the way to its lowest level."""
    known = np.isfinite(column(run, "loss"))
    losses, steps = column(run, "loss")[known], steps_of(run)
    if not len(losses):
        return int(steps[-1])
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(losses, min(5, len(losses))), axis=-1)
    below = np.flatnonzero(smooth < smooth[0] - settings.stuck_share * (smooth[0] - smooth.min()))
    return int(steps[known][below[0]]) if len(below) else int(steps[-1])


def _ends(count: int) -> tuple[int, int]:
    """Return over how many of a run's losses the first and the last level are taken."""
    return max(1, min(5, count // 10)), max(5, count // 10)


def _levels(losses: NDArray[np.float64]) -> tuple[float, float, float]:
    few, tail = _ends(len(losses))
    window = min(5, len(losses))
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(losses, window), axis=-1)
    return min(float(losses[0]), median(losses[:few])), median(losses[-tail:]), float(smooth.min())


def _progress(
    run: Run, initial: float, final: float, improvement: float, chance: float, settings: Settings
) -> Progress:
    if len(run.info.optimizers) > 1:
        return "unknown"
    if final < 0:  # a likelihood of densities, or a reward: how low it could be, nobody knows
        return "slow" if improvement >= settings.stuck_share else "stuck"
    if math.isfinite(chance):
        if final > settings.chance_share * chance:
            return "stuck"
        if min(initial, final) < 0.25 * chance:
            return "trains"
        if _knew(run, chance, settings) and improvement > -settings.stuck_share:
            return "trains"
    if improvement >= settings.improved_share:
        return "trains"
    return "slow" if improvement >= settings.stuck_share else "stuck"


def _scatter(noise: float, count: int) -> float:
    """Return two standard errors of the difference between the first and the last level of a loss.

    A median of n independent values scatters by 1.25 / sqrt(n) of their deviation.
    """
    few, tail = _ends(count)
    return 2 * 1.25 * noise * math.sqrt(1 / few + 1 / tail)


def _knew(run: Run, chance: float, settings: Settings) -> bool:
    """Say whether a network was trained before: its first loss, before any update, is below a guess's."""
    first = float(column(run, "loss")[0]) if len(run.steps) else math.nan
    return int(run.steps["step"].iloc[0]) == 0 and first < settings.known_share * chance


def _chance(run: Run) -> float:
    """Return the loss of a guess that is the same for every sample, as far as the loss function tells."""
    functions = " ".join(str(name) for name in run.info.loss.get("functions", ()))
    names = operations(run.info.loss.get("functions", ()))
    if len({name for name in names if name.startswith(CRITERIA)}) > 1:
        return math.nan  # a sum of several losses
    if "BinaryCrossEntropy" in functions:
        return _factor_of_two(run) * math.log(2)
    likelihood = "NllLoss" in functions or "CrossEntropy" in functions
    if not likelihood or PRODUCTS.intersection(names) or _weighted(names):
        return math.nan  # behind a product, as of contrasted samples, the layer's width isn't the classes'
    classes = [_classes(run, name) for name in run.info.loss.get("inputs", ())]
    classes = [number for number in classes if number > 1]
    if not classes:
        return math.nan
    if _of_probabilities(run):
        return 1 - 1 / classes[0]
    return _factor(run, classes[0]) * math.log(classes[0])


def _weighted(functions: list[str]) -> bool:
    """Say whether each sample's loss has a weight of its own, which may be negative, as a reward."""
    outer = list(takewhile(lambda name: name in ("Neg", "Mul", "Div", "Mean", "Sum"), functions))
    reduced = [index for index, name in enumerate(outer) if name in ("Mean", "Sum")]
    return bool(reduced) and bool({"Mul", "Neg"} & set(outer[reduced[0] :]))


def _factor(run: Run, classes: int) -> float:
    """Return by what a cross-entropy of C classes is multiplied, such as by a sum over samples; 1 if unknown.

    Before training the probabilities are near 1 / C, so n times the gradient at the scores of n samples has
    the root mean square sqrt((1 - 1 / C) / C), and the loss is log C; a factor multiplies both.
    """
    name = str(run.info.loss["inputs"][0])
    several = len(run.info.loss["inputs"]) > 1  # such as experts, each of which sees some of the samples
    if several or not len(run.steps) or name not in {layer.name for layer in run.layers}:
        return 1.0
    factor = _first_signal(run, name) / classes / math.sqrt((1 - 1 / classes) / classes)
    loss = float(column(run, "loss")[0])
    if not factor > 0 or np.isfinite(column(run, "amp_scale")).any():
        return 1.0
    guess = loss / factor / math.log(classes)  # near 1 if this is the factor and nothing has been learned
    least = 0.9 if 0.5 < factor < 2 else 0.7  # a small factor may also be a loss of another kind
    return factor if guess > least and (guess < 1.1 or not 0.5 < factor < 2) else 1.0


def _factor_of_two(run: Run) -> float:
    """Return by what a binary cross-entropy is multiplied if it is a very small number, else 1.

    Before training the mean's gradient at each of n scores is near 1 / (2 n).
    """
    names = [str(name) for name in run.info.loss.get("inputs", ())]
    known = {layer.name for layer in run.layers}
    if len(names) != 1 or names[0] not in known or not len(run.steps) or int(steps_of(run)[0]) > 0:
        return 1.0
    factor = 2 * _first_signal(run, names[0])
    return factor if 0 < factor < NO_ERROR else 1.0


def _first_signal(run: Run, name: str) -> float:
    """Return the number of a layer's entries times their signal's root mean square, at the first step."""
    count, size = (float(run.layer_table(f"signal_{kind}")[name].iloc[0]) for kind in ("count", "rms"))
    return count * size


def _of_probabilities(run: Run) -> bool:
    """Say whether a likelihood was taken without its logarithm, so that the loss ends at -1, not at 0."""
    functions = " ".join(str(name) for name in run.info.loss.get("functions", ()))
    return "NllLoss" in functions and "Log" not in functions and bool((column(run, "loss") <= 0).all())


def _guessed_chance(run: Run, final: float) -> float:
    """Return log C if the loss ends within a tenth of it, C being the outputs (log 2 for one), else NaN."""
    outputs = [_classes(run, name) for name in output_layers(run)]
    levels = [math.log(max(2, number)) for number in outputs if number]
    return next((level for level in levels if abs(final / level - 1) < 0.1), math.nan)


def _classes(run: Run, name: str) -> int:
    layer = next((layer for layer in run.info.layers if layer.name == name), None)
    if layer is None or not layer.output_shape:
        return 0
    axis = layer.unit_axis if layer.unit_axis is not None else -1
    return layer.output_shape[axis]
