"""Judging a training while it runs: warned of, stopped, never a healthy one, and to the bit the same."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn

import gradscope
from gradscope import online
from gradscope.demo import one_thread
from gradscope.diagnose import RULES
from gradscope.errors import CriticalFinding, GradscopeError, SettingsError
from gradscope.memory import Memory
from gradscope.models import PROGRAMS
from gradscope.pytorch_lightning import GradScope
from gradscope.quiet import quiet_lightning
from gradscope.records import RunInfo, StepRecord
from tests.test_callback import PACKAGES, fit, module, pytestmark, run_of

_ = pytestmark  # the filters of Lightning's warnings hold here too

HEALTHY = [program.name for program in PROGRAMS.values() if program.finding is None]
# What won't pass by itself, and what is found of it before the end.
CERTAIN = {
    "exploding-init": "exploding-gradient",
    "non-finite": "non-finite",
    "zero-gradient": "zero-gradient",
    "dead-relu": "zero-gradient",
}


def train(name: str, path: Path, **options: Any) -> tuple[Any, GradScope, str, Any]:
    program = PROGRAMS[name].build(0)
    scope = GradScope(str(path / "run"), **options)
    said = io.StringIO()
    with quiet_lightning(), redirect_stdout(said), one_thread():
        trainer = pytorch_lightning.Trainer(
            accelerator="cpu",
            max_steps=program.steps,
            callbacks=[scope],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(program.model, program.train)
    return trainer, scope, said.getvalue(), program.model


def spoiled(at: int) -> Any:
    """Return a training step that puts NaN into a weight at this step."""

    def training_step(self: Any, batch: list[Tensor], index: int) -> Tensor:
        loss: Tensor = self.loss(self.net(batch[0]), batch[1])
        if self.global_step == at:
            with torch.no_grad():
                self.net[0].weight[0, 0] = float("nan")
        return loss

    return training_step


@pytest.mark.parametrize("name", PACKAGES)
def test_nan_ends_a_training_of_either_package(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, scope_class = PACKAGES[name]
    scope = scope_class(on_critical="stop")
    model = module(package, training_step=spoiled(7))
    trainer = fit(package, tmp_path, scope, model, max_epochs=20)
    assert trainer.global_step < 12
    run = run_of(scope)
    assert run.info.status == "interrupted"
    assert run.info.exception.startswith('gradscope (on_critical="stop"): non-finite since step 7 in net.0')
    assert [event.kind for event in run.events if event.kind in ("critical", "stopped")] == [
        "critical",
        "stopped",
    ]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gradscope")]
    assert len(said) == 2
    assert "non-finite since step 7 in net.0" in said[0]
    assert said[0].endswith("Training stops.")
    assert 'Training ended by gradscope (on_critical="stop"): non-finite since step 7 in net.0' in said[1]


@pytest.mark.parametrize("how", ["warn", "ignore", "quiet"])
def test_a_warning_is_printed_once_and_training_goes_on(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, scope_class = PACKAGES["pytorch_lightning"]
    scope = scope_class(
        str(tmp_path / "run"), on_critical="ignore" if how == "ignore" else "warn", verbose=how != "quiet"
    )
    trainer = fit(package, tmp_path, scope, module(package, training_step=spoiled(7)), max_epochs=20)
    assert trainer.global_step == 100
    run = run_of(scope)
    assert run.info.status == "finished"
    assert sum(event.kind == "critical" for event in run.events) == (how == "warn")
    said = capsys.readouterr().out
    assert said.count("Training goes on.") == (how == "warn")
    assert scope._supervision is None


@pytest.mark.parametrize("name", CERTAIN)
def test_what_wont_pass_is_stopped_for(name: str, tmp_path: Path) -> None:
    trainer, scope, said, _ = train(name, tmp_path, on_critical="stop")
    assert trainer.global_step < PROGRAMS[name].build(0).steps
    assert run_of(scope).info.exception.startswith(f'gradscope (on_critical="stop"): {CERTAIN[name]}')
    assert CERTAIN[name] in said


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_is_neither_stopped_nor_warned_of_nor_changed(name: str, tmp_path: Path) -> None:
    options = {"on_critical": "stop", "preflight": True}
    trainer, scope, said, model = train(name, tmp_path / "looked", **options)
    assert trainer.global_step == PROGRAMS[name].build(0).steps
    run = run_of(scope)
    assert run.info.status == "finished"
    assert not any(event.kind == "critical" for event in run.events)
    assert "nothing found at initialisation" in said
    _, _, _, twin = train(name, tmp_path / "alone", on_critical="ignore")
    bare = twin.state_dict()
    assert all(torch.equal(bare[key], value) for key, value in model.state_dict().items())


def test_a_loss_that_is_nan_once_stops_nothing(tmp_path: Path) -> None:
    package, scope_class = PACKAGES["pytorch_lightning"]
    scope = scope_class(on_critical="stop", verbose=False)

    def training_step(self: Any, batch: list[Tensor], index: int) -> Tensor:
        loss: Tensor = self.loss(self.net(batch[0]), batch[1])
        return loss * float("nan") if self.global_step == 7 else loss

    def guard(self: Any, *_: Any) -> None:
        for parameter in self.parameters():
            parameter.grad.nan_to_num_()

    model = module(package, training_step=training_step, on_before_optimizer_step=guard)
    model.net[2].p = 0.0
    trainer = fit(package, tmp_path, scope, model, max_epochs=40)
    assert trainer.global_step == 200


def test_min_epochs_are_still_trained(tmp_path: Path) -> None:
    package, scope_class = PACKAGES["pytorch_lightning"]
    scope = scope_class(on_critical="stop", verbose=False)
    model = module(package, training_step=spoiled(2))
    trainer = fit(package, tmp_path, scope, model, max_epochs=20, min_epochs=3)
    assert trainer.global_step == 15
    assert run_of(scope).info.status == "interrupted"


def loop(path: Path, steps: int = 60, spoil: int = 5, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x = torch.randn(16, 3)
    done = 0
    with gradscope.watch(model, optimizer, run_dir=path / "run", **options) as scope:
        for step in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), x[:, :1])
            loss.backward()
            optimizer.step()
            if step == spoil:
                with torch.no_grad():
                    model[2].weight.fill_(float("inf"))
            done += 1
            scope.step(loss)
    return scope, done


def test_a_plain_loop_is_left_and_the_program_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scope, done = loop(tmp_path, on_critical="stop")
    assert done < 12
    assert scope.stopped_by.startswith('gradscope (on_critical="stop"): non-finite since step 6')
    run = gradscope.read_run(scope.run_path)
    assert (run.info.status, run.info.exception) == ("interrupted", scope.stopped_by)
    assert "Training ended by gradscope" in capsys.readouterr().out
    scope, done = loop(tmp_path)
    assert (done, scope.stopped_by) == (60, "")
    assert capsys.readouterr().out.count("Training goes on.") == 1


def test_the_exception_can_be_caught_inside_and_comes_again(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    caught = 0
    with gradscope.watch(model, optimizer, tmp_path / "run", verbose=False, on_critical="stop") as scope:
        for _ in range(10):
            model(torch.full((4, 2), float("nan"))).sum().backward()
            optimizer.step()
            try:
                scope.step(float("nan"))
            except CriticalFinding:
                caught += 1
    assert caught > 5
    assert gradscope.read_run(tmp_path / "run").info.status == "interrupted"


def test_another_exception_is_not_swallowed(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    watch = gradscope.watch(
        model, torch.optim.SGD(model.parameters(), 0.1), tmp_path / "run", verbose=False, on_critical="stop"
    )
    with pytest.raises(ValueError, match="mine"), watch:
        raise ValueError("mine")
    with pytest.raises(SettingsError, match='"warn", "stop" or "ignore"'):
        GradScope(on_critical="halt")
    assert issubclass(CriticalFinding, GradscopeError)


def test_a_failing_look_is_one_warning_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(online, "so_far", bug)
    monkeypatch.setattr(online, "initial_report", bug)
    with pytest.warns(UserWarning, match="ZeroDivisionError: a bug") as said:
        _, done = loop(tmp_path, on_critical="stop", preflight=True)
    assert done == 60
    assert len(said) == 2
    assert len(gradscope.read_run(tmp_path / "run").steps) > 40


def test_preflight_is_printed_once_and_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, said, _ = train("vanishing-sigmoid", tmp_path, preflight=True, verbose=False)
    assert said.startswith("gradscope preflight: vanishing-gradient (warning).")
    assert said.count("gradscope preflight") == 1
    loop(tmp_path / "loop", preflight=True, on_critical="ignore", spoil=-1)
    assert capsys.readouterr().out.count("gradscope preflight") == 1


def test_an_option_of_no_meaning_is_refused() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(SettingsError, match="preflight is 'yes'; give True or False"):
        GradScope(preflight="yes")
    with pytest.raises(SettingsError, match="verbose is 1; give True or False"):
        gradscope.watch(model, optimizer, verbose=1)
    with pytest.raises(SettingsError, match="run_dir is 5; give a directory"):
        gradscope.watch(model, optimizer, run_dir=5)


def test_looks_grow_apart_geometrically(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looked: list[int] = []
    monkeypatch.setattr(online, "so_far", lambda run, settings: looked.append(len(run.steps)) or ())
    monitor = online.Monitor(Memory(), tmp_path, gradscope.Settings(), speaks=False)
    monitor.sink.begin(RunInfo(1, "net"))
    seen = []
    for step in range(1000):
        monitor.sink.append(StepRecord({"step": step, "loss": 1.0}, np.empty((0, 17)), np.empty((0, 18))))
        before = len(looked)
        monitor.look("")
        seen += [step + 1] * (len(looked) - before)
    assert seen == [32, 48, 72, 108, 162, 243, 365, 548, 822]
    assert max(looked) <= 256


def test_memory_is_bounded_and_keeps_the_start_and_the_newest() -> None:
    memory = Memory(first=32, most=64)
    memory.begin(RunInfo(1, "net"))
    for step in range(1000):
        memory.append(StepRecord({"step": step}, np.empty((0, 17)), np.empty((0, 18))))
        assert memory.newest is not None
        assert memory.newest.step["step"] == step
    run = memory.run(Path("run"))
    assert run is not None
    steps = run.steps["step"].tolist()
    assert len(steps) <= 64
    assert steps[:32] == list(range(32))
    assert steps[-1] == 999
    assert steps == sorted(steps)


def test_a_run_in_memory_is_the_run_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    judge = online.Monitor._judge
    monkeypatch.setattr(
        online.Monitor, "_judge", lambda self, run, after: kept.append(run) or judge(self, run, after)
    )
    loop(tmp_path, steps=32, spoil=-1)
    disk, memory = gradscope.read_run(tmp_path / "run"), kept[0]
    for column in ("activation_rms", "signal_rms", "calls"):
        np.testing.assert_allclose(disk.layer_table(column), memory.layer_table(column), rtol=1e-6)
    for column in ("gradient_norm", "update_ratio", "weight_rms"):
        np.testing.assert_allclose(disk.parameter_table(column), memory.parameter_table(column), rtol=1e-6)
    np.testing.assert_allclose(disk.steps["loss"], memory.steps["loss"], rtol=1e-6)


def test_the_rules_say_which_decide_online() -> None:
    assert {rule.name for rule in RULES if rule.online} == {
        "non-finite",
        "exploding-gradient",
        "zero-gradient",
        "gradient-not-zeroed",
        "loss-divergence",
    }


PROCESSES = """
    import os, sys
    import pytorch_lightning as pl, torch
    from gradscope import online
    from gradscope.pytorch_lightning import GradScope
    from gradscope.records import Finding
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        def on_train_start(self):  # rank 1 alone finds something
            if self.global_rank == 1:
                online.so_far = lambda run, settings: (Finding("non-finite", "critical", "There it is."),)
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    if __name__ == "__main__":
        torch.manual_seed(0)
        torch.set_num_threads(1)
        x = torch.randn(640, 6)
        scope = GradScope(sys.argv[1], on_critical="stop")
        trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=4, callbacks=[scope],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.fit(Net(), DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8))
        print(f"rank {trainer.global_rank} ended at {trainer.global_step} of 160")
"""


def test_all_ranks_stop_together(tmp_path: Path) -> None:
    script = tmp_path / "processes.py"
    script.write_text(textwrap.dedent(PROCESSES))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(gradscope.__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(gradscope.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split()[-3] for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert len(ends) == 2
    assert ends[0] == ends[1]
    assert int(ends[0]) == 63, "the second look, at 48 recorded steps, confirms the first"
    run = gradscope.read_run(tmp_path / "run")
    assert run.info.status == "interrupted"
    assert run.info.exception == 'gradscope (on_critical="stop"): a finding of another rank'
    assert [event.data["rank"] for event in run.events if event.kind == "critical"] == [1]
