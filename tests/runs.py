"""Runs built in memory, for tests of everything that only reads runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS, STEP_COLUMNS
from gradscope.records import (
    Event,
    LayerInfo,
    OptimizerInfo,
    ParameterInfo,
    Run,
    RunInfo,
)

PerLayer = float | Callable[[int, int], float]  # a constant, or (step, depth of the Linear layer) -> value


def mlp_run(
    depth: int = 10,
    width: int = 64,
    steps: int = 100,
    activation: str = "relu",
    batch: int = 32,
    loss: Callable[[int], float] = lambda step: 2.3 * 0.97**step + 0.05,
    events: Sequence[Event] = (),
    training: dict[str, Any] | None = None,
    optimizer: OptimizerInfo | None = None,
    layer_values: dict[str, PerLayer] | None = None,
    activation_values: dict[str, PerLayer] | None = None,
    parameter_values: dict[str, PerLayer] | None = None,
) -> Run:
    """Build a run of `depth` Linear layers with an activation between them, trained by SGD at lr 0.1.

    Healthy by default (He-initialised ReLU values: gain 1 per layer); `layer_values` replaces statistics of
    Linear layers, `activation_values` those of activation layers, `parameter_values` those of weights, by
    name.
    """
    layers, parameters = _mlp_tables(depth, width, activation, batch)
    names = [parameter.name for parameter in parameters]
    optimizer = optimizer or OptimizerInfo(
        "SGD", ({"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "parameters": names},)
    )
    info = RunInfo(
        format_version=1,
        model="tests.Model",
        status="finished",
        training={"batch_size": batch, "precision": "32-true", **(training or {})},
        loss={"functions": ("NllLossBackward0", "LogSoftmaxBackward0"), "inputs": (layers[-1].name,)},
        optimizers=(optimizer,),
        layers=tuple(layers),
        parameters=tuple(parameters),
    )
    step_rows = [_step_row(step, loss(step)) for step in range(steps)]
    values = (layer_values or {}, activation_values or {}, parameter_values or {})
    layer_rows = [row for step in range(steps) for row in _layer_rows(step, layers, values[0], values[1])]
    parameter_rows = [row for step in range(steps) for row in _parameter_rows(step, parameters, values[2])]
    return Run(
        Path("runs/test"),
        info,
        pd.DataFrame(step_rows, columns=[column.name for column in STEP_COLUMNS]),
        pd.DataFrame(layer_rows, columns=["step", "layer", *(column.name for column in LAYER_COLUMNS)]),
        pd.DataFrame(
            parameter_rows, columns=["step", "parameter", *(column.name for column in PARAMETER_COLUMNS)]
        ),
        tuple(events),
    )


def empty_run() -> Run:
    """Build a run whose training never finished a step."""
    run = mlp_run(steps=1)
    return Run(
        run.path,
        replace(run.info, status="interrupted"),
        run.steps.iloc[:0],
        run.layer_statistics.iloc[:0],
        run.parameter_statistics.iloc[:0],
    )


def _mlp_tables(
    depth: int, width: int, activation: str, batch: int
) -> tuple[list[LayerInfo], list[ParameterInfo]]:
    layers: list[LayerInfo] = []
    parameters: list[ParameterInfo] = []
    kinds = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid", "gelu": "GELU", "selu": "SELU"}
    for index in range(depth):
        name, previous = f"net.{2 * index}", (layers[-1].name,) if layers else ()
        shape = {"fan_in": width, "fan_out": width, "output_shape": (batch, width), "unit_axis": 1}
        own = (f"{name}.weight", f"{name}.bias")
        layers.append(LayerInfo(name, "Linear", "linear", len(layers), 1, own, inputs=previous, **shape))
        bound = 1.0 / width**0.5
        initial = {"std": (2.0 / width) ** 0.5, "absmax": bound, "mean": 0.0, "unit_spread": 1.0}
        parameters.append(
            ParameterInfo(
                own[0], name, "weight", (width, width), group="0.0", sampled=width**2, initial=initial
            )
        )
        parameters.append(ParameterInfo(own[1], name, "bias", (width,), group="0.0", sampled=width))
        if index < depth - 1:
            shape = {"output_shape": (batch, width), "unit_axis": 1}
            layers.append(
                LayerInfo(
                    f"net.{2 * index + 1}",
                    kinds[activation],
                    "activation",
                    len(layers),
                    1,
                    activation=activation,
                    inputs=(name,),
                    **shape,
                )
            )
    return layers, parameters


def _step_row(step: int, loss: float) -> dict[str, float]:
    row = {
        "step": step,
        "epoch": step // 20,
        "batch_idx": step % 20,
        "micro_batches": 1,
        "loss": loss,
        "lr": 0.1,
    }
    return {
        **row,
        "grad_norm": 1.0,
        "clipped_grad_norm": 1.0,
        "clip_coefficient": 1.0,
        "seconds": 0.01,
        "overhead_seconds": 0.0001,
    }


def _layer_rows(
    step: int, layers: list[LayerInfo], of_linear: dict[str, PerLayer], of_activation: dict[str, PerLayer]
) -> list[dict[str, Any]]:
    rows = []
    for layer in layers:
        linear = layer.role == "linear"
        count = float(np.prod(layer.output_shape or (1,)))
        row = {
            "calls": 1.0,
            "activation_count": count,
            "activation_mean": 0.0 if linear else 0.4,
            "activation_std": 1.0,
        }
        row |= {"activation_rms": 1.0, "activation_min": -3.0 if linear else 0.0, "activation_max": 3.0}
        row |= {"activation_zero_fraction": 0.0 if linear else 0.5, "activation_nonfinite": 0.0}
        if layer.activation in ("tanh", "sigmoid"):
            row["activation_saturated_fraction"] = 0.02
        if layer.activation == "relu":
            row["activation_dead_unit_fraction"] = 0.0
        row |= {
            "signal_count": count,
            "signal_rms": 1e-3,
            "signal_absmax": 1e-2,
            "signal_zero_fraction": 0.0,
            "signal_nonfinite": 0.0,
        }
        for column, value in (of_linear if linear else of_activation).items():
            row[column] = value(step, layer.depth // 2) if callable(value) else value
        rows.append({"step": step, "layer": layer.name, **row})
    return rows


def _parameter_rows(
    step: int, parameters: list[ParameterInfo], of_weight: dict[str, PerLayer]
) -> list[dict[str, Any]]:
    rows = []
    for index, parameter in enumerate(parameters):
        weight = parameter.role == "weight"
        norm = (2.0 * parameter.shape[0]) ** 0.5 if weight else 0.1
        row = {"count": float(parameter.size), "weight_norm": norm, "weight_rms": norm / parameter.size**0.5}
        row |= {
            "weight_absmax": 4 * norm / parameter.size**0.5,
            "weight_std": norm / parameter.size**0.5,
            "weight_nonfinite": 0.0,
        }
        row |= {
            "gradient_missing": 0.0,
            "gradient_norm": 0.1,
            "gradient_rms": 0.1 / parameter.size**0.5,
            "gradient_nonfinite": 0.0,
        }
        row |= {"gradient_absmax": 0.05, "gradient_zero_fraction": 0.0, "clipped_gradient_norm": 0.1}
        row |= {"update_norm": 2e-3 * norm, "update_ratio": 2e-3}
        for column, value in of_weight.items():
            if weight or column == "gradient_norm":  # a layer's bias gets its gradient from the same signal
                row[column] = value(step, index // 2) if callable(value) else value
        rows.append({"step": step, "parameter": parameter.name, **row})
    return rows
