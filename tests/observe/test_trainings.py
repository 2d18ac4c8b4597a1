"""Trainings of every kind: recorded as a plain float64 computation has it, and equal to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

import gradscope
from gradscope.records import Run
from tests.observe.oracle import Row, layers_of_step, parameter_of_step
from tests.observe.trainings import TRAININGS, Training

STEPS = 3
# Window statistics and optimizer state have tests of their own; shards don't occur here.
LAYER_COLUMNS_ELSEWHERE = {
    "activation_saturated_fraction",
    "activation_dead_unit_fraction",
    "attention_entropy",
    "attention_entropy_lowest",
}
STATE = {"momentum_norm", "second_moment_rms", "epsilon_fraction", "weight_mean"}
pytestmark = pytest.mark.filterwarnings("ignore")


def passes(training: Training, model: nn.Module, step: int) -> Tensor:
    """Run the forward and backward passes of a step; return the mean loss."""
    dtype = training.twin if next(model.parameters()).dtype is training.twin else None
    total = torch.zeros(())
    batches = training.batches(step)
    for batch in batches:
        batch = batch.to(dtype) if dtype and batch.is_floating_point() else batch
        loss = training.loss(model, batch) / len(batches)
        loss.backward()
        total = total + loss.detach()
    return total


def twin_of(training: Training, model: nn.Module) -> nn.Module:
    """Return a twin that computes what is true: in float64, without recomputation."""
    torch.manual_seed(0)
    twin = training.build()
    torch.manual_seed(1)
    twin(training.batches(0)[0])  # lazy modules find their size
    for name, item in model.named_parameters():
        if not is_lazy(item):
            twin.get_parameter(name).data.copy_(item.data)
    for part in twin.modules():
        if hasattr(part, "recomputes"):
            part.recomputes = False
    return twin.to(training.twin) if training.twin else twin


def load(twin: nn.Module, model: nn.Module) -> None:
    if not any(map(is_lazy, model.parameters())):
        twin.load_state_dict(model.state_dict())


class Recorded:
    """A training under observation, and what each of its steps should be recorded as."""

    def __init__(self, training: Training, run: Path) -> None:
        torch.manual_seed(0)
        self.training, self.model = training, training.build()
        self.twin, self.layers, self.parameters = twin_of(training, self.model), [], []
        torch.manual_seed(1)
        self.optimizers: list[Optimizer] = training.optimizers(self.model)
        with gradscope.watch(
            self.model, self.optimizers, run, every_n_steps=1, verbose=False, update_sample=10**6
        ) as scope:
            names = [layer.name for layer in scope._recorder._description.info.layers]  # type: ignore[union-attr]
            for step in range(STEPS):
                self.step(scope, names, step)
        self.run = gradscope.read_run(run)

    def step(self, scope: Any, names: list[str], step: int) -> None:
        load(self.twin, self.model)
        self.twin.zero_grad()
        state = torch.get_rng_state()
        rows = layers_of_step(self.twin, names, lambda: passes(self.training, self.twin, step) and None)
        torch.set_rng_state(state)
        self.layers.append(rows)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = passes(self.training, self.model, step)
        before = {name: item.detach().clone() for name, item in self.model.named_parameters()}
        gradients = {name: item.grad for name, item in self.twin.named_parameters()}
        if self.training.clip:
            scope.before_clipping()
            self.training.clip(self.model)
        clipped = {
            name: None if item.grad is None else item.grad.clone()
            for name, item in self.model.named_parameters()
        }
        for optimizer in self.optimizers:
            optimizer.step()
        scope.step(loss)
        self.parameters.append(
            {
                name: parameter_of_step(
                    gradients[name], clipped[name], before[name], item, item.requires_grad
                )
                for name, item in self.model.named_parameters()
            }
        )


@pytest.mark.parametrize("kind", TRAININGS)
def test_what_is_recorded_is_a_plain_float64_computation(kind: str, tmp_path: Path) -> None:
    training = TRAININGS[kind]
    recorded = Recorded(training, tmp_path / "run")
    run = recorded.run
    assert run.problems == ()
    assert [event for event in run.events if event.kind not in ("never-fired", "not-observable")] == []
    assert len(run.steps) == STEPS
    for step in range(STEPS):
        check(rows_of(run, "layer", step), recorded.layers[step], LAYER_COLUMNS_ELSEWHERE, training.tolerance)
        check(rows_of(run, "parameter", step), recorded.parameters[step], STATE, training.tolerance)


def rows_of(run: Run, key: str, step: int) -> dict[str, Row]:
    table = run.layer_statistics if key == "layer" else run.parameter_statistics
    rows = table[table["step"] == step].drop(columns="step").set_index(key).to_dict("index")
    return {
        name: {column: value for column, value in row.items() if not math.isnan(value)}
        for name, row in rows.items()
    }


def check(seen: dict[str, Row], true: dict[str, Row], elsewhere: set[str], tolerance: float) -> None:
    """Compare two tables; what one has and the other lacks is an error, too."""
    for name, expected in true.items():
        row = {column: value for column, value in seen.get(name, {}).items() if column not in elsewhere}
        assert set(row) == set(expected), name
        for column, value in expected.items():
            family = column.split("_")[0]
            scale = expected.get(f"{family}_rms", 0.0) if column != "activation_cosine" else 1.0
            assert row[column] == pytest.approx(value, rel=tolerance, abs=tolerance * scale), (name, column)


def train(training: Training, run: Path | None) -> dict[str, Any]:
    """Return everything that training changes."""
    torch.manual_seed(0)
    model = training.build()
    torch.manual_seed(1)
    optimizers = training.optimizers(model)
    scope: Any = gradscope.watch(model, optimizers, run, verbose=False, every_n_steps=2)
    if run:
        scope.__enter__()
    losses = []
    for step in range(STEPS + 1):
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.append(passes(training, model, step))
        if training.clip:
            if run:
                scope.before_clipping()
            training.clip(model)
        for optimizer in optimizers:
            optimizer.step()
        if run:
            scope.step(losses[-1])
    if run:
        scope.__exit__(None, None, None)
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    return {
        "weights": model.state_dict(),
        "gradients": {name: item.grad for name, item in model.named_parameters()},
        "state": [optimizer.state_dict() for optimizer in optimizers],
        "losses": losses,
        "random": torch.get_rng_state(),
        "hooks": hooks,
    }


@pytest.mark.parametrize("kind", TRAININGS)
def test_training_is_equal_to_the_bit(kind: str, tmp_path: Path) -> None:
    assert equal(train(TRAININGS[kind], None), train(TRAININGS[kind], tmp_path / "run"))


def equal(left: Any, right: Any) -> bool:
    """Say whether nested values are the same to the bit."""
    if isinstance(left, Tensor):
        same = torch.equal(left.to_dense(), right.to_dense()) if left.is_sparse else torch.equal(left, right)
        return same and left.dtype == right.dtype
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)
