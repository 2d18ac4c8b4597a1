"""For every rule a run that has its ailment, and one that looks like it and hasn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.records import Event, LayerInfo, OptimizerInfo, ParameterInfo, Run
from tests.runs import mlp_run

DEPTH = 10


@dataclass(frozen=True)
class Case:
    """A run that a rule must find ill, what it must name, and a near miss that it must not find."""

    ill: Run
    near_miss: Run
    layers: tuple[str, ...] = ()


def stuck(step: int) -> float:
    return 2.3 + 0.01 * np.sin(7 * step)


def trains(step: int) -> float:
    return 2.3 * 0.95**step + 0.01


def with_info(run: Run, **changes: Any) -> Run:
    return replace(run, info=replace(run.info, **changes), _tables={})


def with_layers(run: Run, change: Callable[[LayerInfo], LayerInfo]) -> Run:
    return with_info(run, layers=tuple(change(layer) for layer in run.info.layers))


def with_parameters(run: Run, change: Callable[[ParameterInfo], ParameterInfo]) -> Run:
    return with_info(run, parameters=tuple(change(parameter) for parameter in run.info.parameters))


def with_values(run: Run, table: str, key: str, name: str, **values: Any) -> Run:
    """Replace the statistics of one layer or parameter."""
    data = getattr(run, table).copy()
    for column, value in values.items():
        if column not in data:
            data[column] = np.nan
        data.loc[data[key] == name, column] = value
    return replace(run, **{table: data}, _tables={})


def of_layer(run: Run, name: str, **values: Any) -> Run:
    return with_values(run, "layer_statistics", "layer", name, **values)


def of_parameter(run: Run, name: str, **values: Any) -> Run:
    return with_values(run, "parameter_statistics", "parameter", name, **values)


def every_step(run: Run, **values: Any) -> Run:
    return replace(run, steps=run.steps.assign(**values), _tables={})


def initial(run: Run, name: str, **values: float) -> Run:
    def change(parameter: ParameterInfo) -> ParameterInfo:
        if parameter.name != name:
            return parameter
        return replace(parameter, initial={**parameter.initial, **values})

    return with_parameters(run, change)


def adam(eps: float = 1e-8, **options: Any) -> OptimizerInfo:
    names = [item.name for item in mlp_run(depth=DEPTH).parameters]
    return OptimizerInfo("Adam", ({"lr": 1e-3, "eps": eps, "parameters": names, **options},))


def fading(gain: float, **options: Any) -> Run:
    """Build a run whose gradient changes by `gain` a layer towards the input."""

    def towards_input(step: int, depth: int) -> float:
        return gain ** (DEPTH - 1 - depth)

    values = {"signal_rms": lambda step, depth: 1e-3 * towards_input(step, depth)}
    weights = {"gradient_norm": lambda step, depth: 0.1 * towards_input(step, depth)}
    return mlp_run(depth=DEPTH, layer_values=values, parameter_values=weights, **options)


def forward(gain: float, **options: Any) -> Run:
    """Build a run whose signal changes by `gain` a layer."""
    return mlp_run(depth=DEPTH, layer_values={"activation_rms": lambda step, depth: gain**depth}, **options)


def _non_finite() -> Case:
    bad = {"activation_nonfinite": lambda step, depth: 3.0 if step >= 40 and depth >= 4 else 0.0}
    ill = mlp_run(loss=lambda step: trains(step) if step < 40 else np.nan, layer_values=bad)
    masked = mlp_run(
        loss=trains, layer_values={"activation_nonfinite": lambda step, depth: float(depth == 4)}
    )
    return Case(ill, masked, ("net.8",))


def _zero_gradient() -> Case:
    zero = {"gradient_norm": lambda step, depth: 0.0 if depth < 6 else 0.1, "gradient_rms": 0.0}
    silent = {"signal_rms": lambda step, depth: 0.0 if depth < 6 else 1e-3}
    ill = mlp_run(loss=stuck, parameter_values=zero, layer_values=silent)
    first_step = {"gradient_norm": lambda step, depth: 0.0 if step == 0 else 0.1}
    return Case(ill, mlp_run(loss=stuck, parameter_values=first_step))


def _missing_gradient() -> Case:
    ill = mlp_run(loss=stuck, parameter_values={"gradient_missing": lambda step, depth: float(depth < 4)})
    sometimes = {"gradient_missing": lambda step, depth: float(step % 3 == 0)}
    return Case(ill, mlp_run(loss=trains, parameter_values=sometimes), ("net.0",))


def _dead_units() -> Case:
    dead = {"activation_dead_unit_fraction": lambda step, depth: 1.0 if step > 30 and depth == 3 else 0.05}
    usual = {"activation_dead_unit_fraction": 0.3, "activation_zero_fraction": 0.6}
    ill = mlp_run(loss=lambda step: 2.3, activation_values=dead)
    return Case(ill, mlp_run(loss=stuck, activation_values=usual), ("net.7",))


def _saturated() -> Case:
    flat = {"activation_saturated_fraction": lambda step, depth: 0.9 if depth >= 2 else 0.1}
    ill = mlp_run(activation="tanh", loss=stuck, activation_values=flat)
    sure = mlp_run(activation="sigmoid", loss=stuck, layer_values={"activation_saturated_fraction": np.nan})
    output = replace(sure.layers[-1], name="end", kind="Sigmoid", role="activation", depth=99)
    output = replace(output, activation="sigmoid", inputs=(sure.layers[-1].name,), parameters=())
    sure = with_info(sure, layers=(*sure.info.layers, output), loss={"inputs": ("end",)})
    rows = sure.layer_statistics[sure.layer_statistics["layer"] == "net.0"].assign(layer="end")
    rows["activation_saturated_fraction"] = 0.99
    import pandas as pd

    return Case(
        ill, replace(sure, layer_statistics=pd.concat([sure.layer_statistics, rows]), _tables={}), ("net.5",)
    )


def _poor_initialization() -> Case:
    ill = mlp_run(depth=3, loss=stuck)
    small = with_parameters(ill, lambda item: replace(item, initial={**item.initial, "std": 1e-3}))
    default = with_parameters(
        ill, lambda item: replace(item, initial={**item.initial, "std": (1 / 3 / 64) ** 0.5})
    )
    return Case(small, default, ("net.0",))


def _symmetric() -> Case:
    ill = initial(mlp_run(loss=stuck), "net.4.weight", unit_spread=0.0, std=0.0, absmax=0.1, mean=0.1)
    output = initial(mlp_run(loss=stuck), "net.18.weight", unit_spread=0.0, std=0.0, absmax=0.1, mean=0.1)
    return Case(ill, output, ("net.4",))


def _unscaled_input() -> Case:
    ill = mlp_run(loss=stuck, layer_values={"activation_rms": lambda step, depth: 300.0})
    return Case(ill, mlp_run(loss=stuck, layer_values={"activation_rms": 5.0}), ("net.0",))


def _output_mismatch() -> Case:
    run = mlp_run(loss=stuck)
    ill = with_info(
        run, loss={"functions": ("MseLossBackward0",), "inputs": ("net.18",), "shapes": ((32,), (32, 1))}
    )
    fine = {"functions": ("MseLossBackward0",), "inputs": ("net.18",), "shapes": ((32, 1), (32, 1))}
    return Case(ill, with_info(run, loss=fine), ("net.18",))


def _learning_rate_too_high() -> Case:
    ill = mlp_run(loss=stuck, parameter_values={"update_ratio": 0.09})
    return Case(ill, mlp_run(loss=trains, parameter_values={"update_ratio": 0.09}))


def _learning_rate_too_low() -> Case:
    ill = mlp_run(loss=lambda step: 2.3 - 1e-4 * step, parameter_values={"update_ratio": 1e-6})
    warm_up = {"update_ratio": lambda step, depth: 1e-6 if step < 20 else 1e-3}
    return Case(ill, mlp_run(steps=400, loss=lambda step: 2.3 - 1e-3 * step, parameter_values=warm_up))


def _not_optimized() -> Case:
    def left_out(trained: bool) -> Callable[[ParameterInfo], ParameterInfo]:
        return lambda item: replace(item, group=None, trained=trained) if item.layer == "net.2" else item

    run = mlp_run(loss=stuck)
    return Case(with_parameters(run, left_out(True)), with_parameters(run, left_out(False)), ("net.2",))


def _excessive_weight_decay() -> Case:
    def shrinking(step: int, depth: int) -> float:
        return 11.0 * 0.99**step

    decayed = adam(weight_decay=0.5)
    ill = mlp_run(loss=stuck, optimizer=decayed, parameter_values={"weight_norm": shrinking})
    return Case(ill, mlp_run(loss=trains, optimizer=decayed, parameter_values={"weight_norm": shrinking}))


def _over_clipping() -> Case:
    def clipped(ratio: float) -> Run:
        run = mlp_run(loss=stuck, training={"clip_value": 1e-3}, parameter_values={"update_ratio": ratio})
        return every_step(run, clip_coefficient=1e-3, clipped_grad_norm=1e-3)

    return Case(clipped(2e-6), clipped(1e-3))


def _ineffective_clipping() -> Case:
    ill = every_step(mlp_run(training={"clip_value": 0.5}), clipped_grad_norm=40.0)
    by_value = {"clip_value": 0.5, "clip_algorithm": "value"}
    return Case(ill, every_step(mlp_run(training=by_value), clipped_grad_norm=40.0))


def _gradient_not_zeroed() -> Case:
    ill = mlp_run(loss=stuck, parameter_values={"gradient_norm": lambda step, depth: 0.1 * (step + 1)})
    both = {"gradient_norm": lambda step, depth: 0.1 * (step + 1)}
    signal = {"signal_rms": lambda step, depth: 1e-3 * (step + 1)}
    return Case(ill, mlp_run(loss=stuck, parameter_values=both, layer_values=signal))


def _gradient_underflow() -> Case:
    lost = {"gradient_zero_fraction": 0.6, "gradient_rms": 1e-7}
    ill = mlp_run(loss=stuck, training={"precision": "16-true"}, parameter_values=lost)
    return Case(ill, mlp_run(loss=stuck, parameter_values=lost))


def _epsilon_floor() -> Case:
    floor = {"epsilon_fraction": 0.9}
    ill = mlp_run(loss=stuck, optimizer=adam(1e-2), parameter_values=floor)
    unused = {**floor, "gradient_zero_fraction": 0.9}
    return Case(ill, mlp_run(loss=stuck, optimizer=adam(1e-2), parameter_values=unused))


def _normalized(shape: tuple[int, ...], spread: float) -> Run:
    run = mlp_run(loss=stuck)

    def change(layer: LayerInfo) -> LayerInfo:
        if layer.name != "net.5":
            return layer
        return replace(layer, kind="BatchNorm1d", role="normalization", activation=None, output_shape=shape)

    return of_layer(
        with_layers(run, change), "net.5", activation_std=spread, activation_dead_unit_fraction=np.nan
    )


def _attention(entropy: float) -> Run:
    run = with_layers(
        mlp_run(loss=stuck),
        lambda layer: replace(layer, role="attention") if layer.name == "net.4" else layer,
    )
    return of_layer(run, "net.4", attention_entropy=entropy)


def _cosines(first: float) -> Run:
    run = of_layer(mlp_run(loss=stuck), "net.0", activation_cosine=first)
    return of_layer(run, "net.16", activation_cosine=0.9999)


CASES: dict[str, Case] = {
    "vanishing-gradient": Case(fading(0.3, loss=stuck), fading(0.7, loss=stuck), ("net.0",)),
    "exploding-gradient": Case(fading(3.0, loss=stuck), fading(1.3, loss=stuck), ("net.0",)),
    "vanishing-signal": Case(forward(0.3, loss=stuck), forward(0.7, loss=stuck)),
    "exploding-signal": Case(forward(4.0, loss=stuck), forward(1.3, loss=stuck)),
    "non-finite": _non_finite(),
    "zero-gradient": _zero_gradient(),
    "missing-gradient": _missing_gradient(),
    "dead-units": _dead_units(),
    "saturated-activation": _saturated(),
    "attention-collapse": Case(_attention(0.01), _attention(0.4), ("net.4",)),
    "rank-collapse": Case(_cosines(0.3), _cosines(0.9995), ("net.16",)),
    "poor-initialization": _poor_initialization(),
    "symmetric-weights": _symmetric(),
    "unscaled-input": _unscaled_input(),
    "output-mismatch": _output_mismatch(),
    "learning-rate-too-high": _learning_rate_too_high(),
    "learning-rate-too-low": _learning_rate_too_low(),
    "not-optimized": _not_optimized(),
    "excessive-weight-decay": _excessive_weight_decay(),
    "over-clipping": _over_clipping(),
    "ineffective-clipping": _ineffective_clipping(),
    "gradient-not-zeroed": _gradient_not_zeroed(),
    "gradient-underflow": _gradient_underflow(),
    "epsilon-floor": _epsilon_floor(),
    "degenerate-normalization": Case(_normalized((2, 64), 1.0), _normalized((32, 64), 1.0), ("net.5",)),
    "loss-divergence": Case(
        mlp_run(loss=lambda step: 2.0 if step < 50 else 2.0 * 1.05 ** (step - 50)),
        mlp_run(loss=lambda step: 40.0 if step % 30 == 29 else trains(step)),
    ),
}

NAN_EVENT = Event("non-finite", 40, "NaN in the output of net.8", layer="net.8")
