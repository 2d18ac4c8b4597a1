"""The front door for a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeError
from gradscope.records import Run


def fit(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5, **options: object
) -> Run:
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    with gradscope.watch(model, optimizer, run_dir=path, every_n_steps=1, **options) as scope:
        for _ in range(steps):
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.step(loss)
    assert scope.run_path is not None
    return gradscope.read_run(scope.run_path)


def test_a_plain_loop_is_recorded_and_says_how_to_see_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    run = fit(tmp_path / "run", model, torch.optim.SGD(model.parameters(), 0.1))
    assert run.info.status == "finished"
    assert run.steps["step"].tolist() == [0, 1, 2, 3, 4]
    assert (run.steps["loss"] > 0).all()
    assert run.steps["lr"].tolist() == [0.1] * 5
    assert (run.steps["grad_norm"] == run.steps["clipped_grad_norm"]).all()
    assert (run.parameter_table("update_ratio") > 0).all().all()
    assert run.info.loss["functions"][0] == "MseLossBackward0"
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert f"gradscope report {tmp_path / 'run'}" in printed[0]


def test_a_second_run_never_overwrites_the_first(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    runs = [fit(tmp_path / "run", model, optimizer, steps) for steps in (2, 3)]
    assert [len(run.steps) for run in runs] == [2, 3]
    assert runs[0].path != runs[1].path
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert fit(tmp_path / "other", model, optimizer).path == tmp_path / "other" / "run"


def test_gradients_before_clipping_are_known_where_asked_for(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
        loss = 100 * model(torch.ones(8, 3)).sum()
        loss.backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
        scope.before_clipping()
        nn.utils.clip_grad_value_(model.parameters(), 0.25)
        optimizer.step()
        scope.step(loss)
    steps = gradscope.read_run(tmp_path / "run").steps
    assert steps["grad_norm"][0] == pytest.approx(float(norm), rel=1e-5)
    assert steps["clipped_grad_norm"][0] == pytest.approx(0.5, rel=1e-5)


def test_lbfgs_evaluates_its_own_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    x, y = torch.randn(8, 3), torch.randn(8, 1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    closure()
    first = float(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()])))
    optimizer.zero_grad()
    with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
        for _ in range(2):
            scope.step(optimizer.step(closure))
    run = gradscope.read_run(tmp_path / "run")
    assert run.steps["grad_norm"][0] == pytest.approx(first, rel=1e-5)
    assert (run.parameter_table("gradient_missing") == 0).all().all()
    assert (run.layer_table("calls") >= 4).all().all()
    assert run.parameter_table("update_norm").iloc[0].gt(0).all()


def test_two_optimizers_make_one_step(tmp_path: Path) -> None:
    left, right = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(left, right)
    optimizers = [torch.optim.SGD(left.parameters(), 0.1), torch.optim.Adam(right.parameters(), 0.01)]
    with gradscope.watch(model, optimizers, run_dir=tmp_path / "run", verbose=False) as scope:
        for _ in range(3):
            loss = model(torch.ones(4, 2)).square().mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            scope.step(float(loss.detach()))
    run = gradscope.read_run(tmp_path / "run")
    assert run.steps["lr"].tolist() == [0.1] * 3
    assert run.steps["lr_1"].tolist() == [0.01] * 3
    assert [p.group for p in run.parameters] == ["0.0", "0.0", "1.0", "1.0"]
    assert (run.parameter_table("gradient_norm") > 0).all().all()
    assert (run.parameter_table("update_norm") > 0).all().all()


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (ValueError("bad batch"), "failed")]
)
def test_how_the_loop_ended_is_recorded(tmp_path: Path, error: BaseException, status: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loop() -> None:
        with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
            scope.step(1.0)
            raise error

    with pytest.raises(type(error)):
        loop()
    assert gradscope.read_run(tmp_path / "run").info.status == status
    assert not model._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_wrong_use_is_one_clear_line(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(GradscopeError, match="needs a torch optimizer"):
        gradscope.watch(model, model.parameters())
    with pytest.raises(GradscopeError, match="needs a torch module"):
        gradscope.watch(optimizer, optimizer)
    with pytest.raises(GradscopeError, match="no option 'every'"):
        gradscope.watch(model, optimizer, every=3)
    with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
        with pytest.raises(GradscopeError, match=r"one number; got a tensor of shape \(2,\)"):
            scope.step(torch.ones(2))
        with pytest.raises(GradscopeError, match="one number; got str"):
            scope.step("0.5")
    with pytest.raises(GradscopeError, match="inside the `with"):
        scope.step(1.0)

    def forgetful() -> None:
        with gradscope.watch(model, optimizer, run_dir=tmp_path / "silent"):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()

    with pytest.warns(UserWarning, match=r"recorded nothing: call scope.step"):
        forgetful()
