"""Plain loops that nobody writes on purpose: training goes on, and what is lost is said."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeError, SettingsError
from gradscope.present import html
from gradscope.records import Run

INPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, scope: Any, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(INPUTS).square().mean()
        loss.backward()
        optimizer.step()
        scope.step(loss)


def messages(run: Run) -> list[str]:
    return [event.message for event in run.events if event.kind != "never-fired"]


def test_a_layer_that_is_added_in_training_is_said_not_to_be_recorded(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, tmp_path / "run", verbose=False) as scope:
        train(model, optimizer, scope)
        model.append(nn.Linear(1, 1))
        optimizer.add_param_group({"params": model[-1].parameters()})
        train(model, optimizer, scope)
    run = gradscope.read_run(tmp_path / "run")
    assert len(run.steps) == 10
    assert messages(run) == ["the model changed: 2 parameters are new, and not recorded; watch it anew"]


@pytest.mark.filterwarnings("error")
def test_names_that_no_file_can_hold_are_spelled_out(tmp_path: Path) -> None:
    """Lone surrogates in names of modules and parameters, which what judges in training meets as well."""
    model = nn.Sequential()
    setattr(model, "\ud800", nn.Linear(3, 4))
    model.add_module("head", nn.Linear(4, 1))
    model.head.register_parameter("\udfff", nn.Parameter(torch.ones(1)))
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, tmp_path / "run", verbose=False) as scope:
        train(model, optimizer, scope, 12)
    run = gradscope.read_run(tmp_path / "run")
    assert run.problems == ()
    assert [layer.name for layer in run.layers] == [r"\ud800", "head"]
    assert run.layer_table("calls")[r"\ud800"].tolist() == [1.0] * 12
    assert run.parameter_table("update_norm")[r"\ud800.weight"].gt(0).all()
    assert run.parameter_table("gradient_missing")[r"head.\udfff"].eq(1).all()
    document = html.render(gradscope.examine(run))
    assert r"head.\udfff" in document
    document.encode()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_module_is_left_out_and_the_others_are_watched(tmp_path: Path) -> None:
    model = network()
    model[0] = torch.jit.script(model[0])
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, tmp_path / "run", verbose=False) as scope:
        train(model, optimizer, scope)
    run = gradscope.read_run(tmp_path / "run")
    assert [layer.name for layer in run.layers] == ["1", "2"]
    assert messages(run) == ["modules that torch.jit compiled take no hooks: none is watched"]
    assert run.parameter_table("gradient_norm").notna().all(axis=None)


def test_a_loss_may_be_any_real_number_and_nothing_else(tmp_path: Path) -> None:
    model = network()
    with gradscope.watch(model, sgd(model), tmp_path / "run", verbose=False) as scope:
        for loss in (10**400, np.float32(2), 1e308):
            scope.step(loss)  # type: ignore[arg-type]  # numpy's numbers, too
        with pytest.raises(GradscopeError, match="of complex numbers"):
            scope.step(torch.tensor(1j))
    assert gradscope.read_run(tmp_path / "run").steps["loss"].tolist() == [float("inf"), 2, 1e308]


def test_a_watch_that_has_begun_cant_begin_again(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    watch = gradscope.watch(model, optimizer, tmp_path / "run", verbose=False)
    with watch as scope:
        with pytest.raises(GradscopeError, match="has begun already"):
            watch.__enter__()
        train(model, optimizer, scope)
    assert len(gradscope.read_run(tmp_path / "run").steps) == 5


@pytest.mark.parametrize("asked", [None, "mine"])
def test_watches_that_begin_together_get_a_directory_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    monkeypatch.chdir(tmp_path)

    def watched(_: int) -> Path:
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        with gradscope.watch(model, optimizer, asked, verbose=False) as scope:
            train(model, optimizer, scope)
        assert scope.run_path is not None
        return scope.run_path

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(watched, range(4)))
    assert len(set(paths)) == 4
    assert all(len(gradscope.read_run(path).steps) == 5 for path in paths)


def test_a_program_may_go_to_another_directory_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    model = network()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, "run", every_n_steps=1, segment_steps=8) as scope:
        train(model, optimizer, scope)
        os.chdir("other")
        train(model, optimizer, scope, 20)
    assert len(gradscope.read_run(tmp_path / "run").steps) == 25
    assert f"Next: gradscope report {tmp_path / 'run'}" in capsys.readouterr().out
    assert list((tmp_path / "other").iterdir()) == []


def test_a_generator_that_is_left_early_is_no_failure(tmp_path: Path) -> None:
    def training() -> Any:
        model = network()
        optimizer = sgd(model)
        with gradscope.watch(model, optimizer, tmp_path / "run", verbose=False) as scope:
            while True:
                train(model, optimizer, scope, 1)
                yield

    steps = training()
    next(steps)
    steps.close()
    assert gradscope.read_run(tmp_path / "run").info.status == "interrupted"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dead_window", 0),
        ("dead_window", "x"),
        ("patience", 0),
        ("fewest_steps", None),
        ("saturated_share", "a"),
        ("spike_ratio", float("nan")),
        ("dense_steps", 2.5),
    ],
)
def test_a_setting_of_no_meaning_is_refused(option: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"{option} is .*; give a"):
        gradscope.Settings(**{option: value})


def test_a_scaler_must_be_one() -> None:
    model = network()
    with pytest.raises(GradscopeError, match="scaler is 5; give the GradScaler"):
        gradscope.watch(model, sgd(model), scaler=5)
