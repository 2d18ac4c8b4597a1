"""The front door for Lightning, in both of its packages."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import signal
import typing
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradscope
import gradscope.lightning
import gradscope.pytorch_lightning
from gradscope import read_run
from gradscope.records import Run

PACKAGES = {
    "pytorch_lightning": (pytorch_lightning, gradscope.pytorch_lightning.GradScope),
    "lightning": (lightning.pytorch, gradscope.lightning.GradScope),
}
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 3))


def module(package: Any, **methods: Any) -> Any:
    class Net(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = network(), nn.CrossEntropyLoss()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    for name, method in methods.items():
        setattr(Net, name, method)
    return Net()


def data(size: int = 40) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 6, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)


def fit(
    package: Any,
    path: Path,
    scope: Any,
    model: Any = None,
    callbacks: list[Any] | None = None,
    ckpt_path: str | None = None,
    loader: Any = None,
    validation: Any = None,
    **options: Any,
) -> Any:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    trainer = package.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        callbacks=[*([scope] if scope else []), *(callbacks or [])],
        **options,
    )
    torch.manual_seed(3)
    trainer.fit(model or module(package), loader or data(), validation, ckpt_path=ckpt_path)
    return trainer


def run_of(scope: Any) -> Run:
    assert scope.run_path is not None
    return read_run(scope.run_path)


@pytest.mark.parametrize("name", PACKAGES)
def test_both_packages_record_a_fit(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package, GradScope = PACKAGES[name]
    scope = GradScope()
    assert isinstance(scope, package.Callback)
    fit(package, tmp_path, scope, gradient_clip_val=0.05)
    run = run_of(scope)
    assert run.info.status == "finished"
    assert run.path.parent == tmp_path / "gradscope_runs"
    assert run.steps["step"].tolist() == list(range(10))
    assert run.steps["epoch"].tolist() == [0] * 5 + [1] * 5
    assert run.steps["batch_idx"].tolist() == [0, 1, 2, 3, 4] * 2
    assert (run.steps["clipped_grad_norm"] <= 0.0501).all()
    assert (run.steps["grad_norm"] > 0.05).any()
    assert [layer.name for layer in run.layers] == ["net.0", "net.1", "net.2", "net.3"]
    assert run.info.loss["inputs"] == ("net.3",) or run.info.loss["inputs"] == ["net.3"]
    assert tuple(run.info.loss["functions"]) == ("NllLossBackward0", "LogSoftmaxBackward0")
    assert run.info.training["clip_value"] == 0.05
    assert run.info.training["batch_size"] == 8
    assert run.info.optimizers[0].kind == "SGD"
    assert (run.parameter_table("momentum_norm") > 0).all().all()
    printed = [line for line in capsys.readouterr().out.splitlines() if "gradscope" in line]
    assert len(printed) == 1
    assert printed[0].endswith(f"gradscope report {run.path}")


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, clip: str) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(str(tmp_path / "run"), every_n_steps=1, verbose=False)
    model = module(package)
    model.net[2].p = 0.0
    exact = {name: value.clone().double() for name, value in model.net.state_dict().items()}
    fit(
        package,
        tmp_path,
        scope,
        model,
        accumulate_grad_batches=3,
        gradient_clip_val=0.02,
        gradient_clip_algorithm=clip,
        max_epochs=1,
    )
    run = run_of(scope)
    assert run.steps["micro_batches"].tolist() == [3, 2]
    twin = network().double().eval()
    twin.load_state_dict(exact)
    batches = list(data())[:3]
    losses = [nn.functional.cross_entropy(twin(x.double()), y) for x, y in batches]
    sum(losses[1:], losses[0]).div(3).backward()
    gradients = [parameter.grad for parameter in twin.parameters() if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    values = torch.cat([gradient.flatten() for gradient in gradients]).clamp(-0.02, 0.02)
    clipped = 0.02 if clip == "norm" else float(torch.linalg.vector_norm(values))
    assert run.steps["loss"][0] == pytest.approx(float(sum(losses).detach()) / 3, rel=1e-5)
    assert run.steps["grad_norm"][0] == pytest.approx(float(norm), rel=1e-4)
    assert run.steps["clipped_grad_norm"][0] == pytest.approx(clipped, rel=1e-3)
    assert run.layer_table("calls").iloc[0].tolist() == [3, 3, 3, 3]
    assert run.layer_statistics["activation_count"][0] == 24 * 16


class Adversaries:
    """Methods of a module with manual optimisation and two optimizers."""

    @staticmethod
    def configure_optimizers(self: Any) -> Any:
        first = torch.optim.Adam(self.net[0].parameters(), 0.01)
        return [first, torch.optim.SGD(self.net[3].parameters(), 0.1)]

    @staticmethod
    def training_step(self: Any, batch: list[Tensor], index: int) -> None:
        for optimizer in self.optimizers():
            loss = self.loss(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


def test_manual_optimisation_with_two_optimizers_is_one_step_a_batch(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(str(tmp_path / "run"), verbose=False)
    model = module(
        package,
        training_step=Adversaries.training_step,
        configure_optimizers=Adversaries.configure_optimizers,
    )
    model.automatic_optimization = False
    trainer = fit(package, tmp_path, scope, model)
    assert trainer.global_step == 20
    run = run_of(scope)
    assert run.steps["step"].tolist() == list(range(10))
    assert run.steps[["lr", "lr_1"]].iloc[0].tolist() == [0.01, 0.1]
    assert (run.parameter_table("gradient_norm") > 0).all().all()
    assert (run.parameter_table("update_norm") > 0).all().all()
    assert run.parameter_table("second_moment_rms")["net.0.weight"].gt(0).all()
    assert (run.layer_table("calls") == 2).all().all()


def test_lbfgs_and_bfloat16(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(str(tmp_path / "lbfgs"), verbose=False)
    model = module(
        package, configure_optimizers=lambda self: torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)
    )
    fit(package, tmp_path, scope, model)
    run = run_of(scope)
    assert (run.parameter_table("gradient_norm") > 0).all().all()
    assert run.steps["clipped_grad_norm"].isna().all()
    scope = GradScope(str(tmp_path / "half"), verbose=False)
    fit(package, tmp_path, scope, precision="bf16-mixed")
    run = run_of(scope)
    assert run.info.training["precision"] == "bf16-mixed"
    assert (run.layer_table("signal_rms") > 0).all().all()
    assert (run.layer_table("activation_rms") > 0).all().all()


def test_training_is_equal_to_the_bit(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    averaging = {"callbacks": [package.callbacks.StochasticWeightAveraging(0.05, 0.5, 1)]}
    states = []
    for scope in (None, GradScope(str(tmp_path / "run"), verbose=False)):
        torch.manual_seed(0)
        model = module(package, validation_step=lambda self, batch, index: self.net(batch[0]))
        averaging["callbacks"] = [package.callbacks.StochasticWeightAveraging(0.05, 0.5, 1)]
        fit(
            package,
            tmp_path,
            scope,
            model,
            validation=data(),
            max_epochs=10,
            gradient_clip_val=0.1,
            **averaging,
        )
        states.append((model.state_dict(), torch.get_rng_state()))
        assert not any(part._forward_hooks for part in model.modules())
    (bare, bare_random), (seen, seen_random) = states
    assert torch.equal(bare_random, seen_random)
    assert all(torch.equal(bare[name], seen[name]) for name in bare)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad batch"), "failed"), (KeyboardInterrupt(), "interrupted"), ("term", "interrupted")],
)
def test_what_ended_a_training_is_recorded(
    tmp_path: Path, error: Any, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(str(tmp_path / "run"), verbose=False)

    def training_step(self: Any, batch: list[Tensor], index: int) -> Tensor:
        if index == 3:
            if error == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise error
        return self.loss(self.net(batch[0]), batch[1])

    before = signal.getsignal(signal.SIGINT)
    model = module(package, training_step=training_step)
    with pytest.raises((ValueError, SystemExit, package.utilities.exceptions.SIGTERMException)):
        fit(package, tmp_path, scope, model)
    signal.signal(signal.SIGINT, before)
    run = run_of(scope)
    assert run.info.status == status
    assert len(run.steps) >= 3
    assert not any(part._forward_hooks for part in model.modules())


def test_a_resumed_training_goes_on_in_the_same_run(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    keep = package.callbacks.ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    fit(package, tmp_path, GradScope(verbose=False), callbacks=[keep], enable_checkpointing=True)
    scope = GradScope(verbose=False)
    fit(
        package,
        tmp_path,
        scope,
        callbacks=[package.callbacks.ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)],
        enable_checkpointing=True,
        max_epochs=3,
        ckpt_path=str(tmp_path / "last.ckpt"),
    )
    run = run_of(scope)
    assert run.steps["step"].tolist() == list(range(15))
    assert run.info.restarts == 1


def test_fit_twice_makes_two_runs(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(verbose=False)
    paths = []
    for _ in range(2):
        fit(package, tmp_path, scope, limit_train_batches=2, max_epochs=1)
        paths.append(scope.run_path)
    assert paths[0] != paths[1]
    assert len(read_run(paths[1]).steps) == 2


def test_a_logger_gives_the_place(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(verbose=False)
    logger = package.loggers.CSVLogger(tmp_path / "logs", name="mine")
    fit(package, tmp_path, scope, logger=logger, max_epochs=1)
    assert scope.run_path is not None
    assert scope.run_path.parent == tmp_path / "logs" / "mine" / "version_0" / "gradscope_runs"


def test_the_constructor_suits_a_command_line() -> None:
    for _, GradScope in PACKAGES.values():
        parameters = list(inspect.signature(GradScope.__init__).parameters.values())[1:]
        hints = typing.get_type_hints(GradScope.__init__)
        assert all(item.default is not item.empty and item.name in hints for item in parameters)
        assert not any(item.kind in (item.VAR_KEYWORD, item.VAR_POSITIONAL) for item in parameters)
        state = GradScope().state_dict()
        assert all(isinstance(value, (int, str)) for value in state.values())


def test_two_callbacks_with_different_settings_go_together(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    whole = GradScope(str(tmp_path / "whole"), verbose=False)
    part = GradScope(str(tmp_path / "part"), layers=["net.0"], verbose=False)
    keep = package.callbacks.ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    fit(package, tmp_path, whole, callbacks=[part, keep], enable_checkpointing=True, max_epochs=1)
    assert len(run_of(whole).layers) == 4
    assert [layer.name for layer in run_of(part).layers] == ["net.0"]


def test_the_closing_line_claims_no_run_where_nothing_could_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="gradscope stopped recording"):
        fit(package, tmp_path, GradScope(str(tmp_path / "file")), max_epochs=1)
    assert "gradscope: nothing was recorded" in capsys.readouterr().out


def test_the_closing_line_says_what_ended_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]

    def training_step(self: Any, batch: list[Tensor], index: int) -> Tensor:
        raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch"):
        fit(package, tmp_path, GradScope(), module(package, training_step=training_step))
    assert "Training ended by ValueError: bad batch" in capsys.readouterr().out


def test_patterns_that_match_nothing_are_said(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    with pytest.warns(UserWarning, match="watches no module: none has a name like nothing"):
        fit(package, tmp_path, GradScope(layers=["nothing*"], verbose=False), max_epochs=1)
    with pytest.raises(gradscope.GradscopeError, match="give a list of name patterns"):
        GradScope(layers="net.*")


def test_the_callback_can_be_pickled_while_it_records(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(str(tmp_path / "run"), verbose=False)
    copies: list[Any] = []

    def training_step(self: Any, batch: list[Tensor], index: int) -> Tensor:
        copies.append(pickle.loads(pickle.dumps(scope)))
        return self.loss(self.net(batch[0]), batch[1])

    fit(package, tmp_path, scope, module(package, training_step=training_step), max_epochs=1)
    assert copies[2].state_dict() == {"step": 2, "run_path": str(tmp_path / "run")}
    assert len(run_of(scope).steps) == 5


def test_all_steps_are_counted_also_those_not_recorded(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]
    scope = GradScope(str(tmp_path / "run"), every_n_steps=4, verbose=False)
    fit(package, tmp_path, scope)
    assert run_of(scope).steps["step"].tolist() == [0, 4, 8]
    assert run_of(scope).info.training["steps"] == 10


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_batch_that_is_left_out_is_no_nan(tmp_path: Path) -> None:
    package, GradScope = PACKAGES["pytorch_lightning"]

    def training_step(self: Any, batch: list[Tensor], index: int) -> Tensor | None:
        return self.loss(self.net(batch[0]), batch[1]) if index % 2 == 0 else None

    scope = GradScope(str(tmp_path / "run"), every_n_steps=1, verbose=False)
    fit(package, tmp_path, scope, module(package, training_step=training_step), max_epochs=4)
    assert "non-finite" not in [finding.rule for finding in gradscope.examine(run_of(scope)).findings]
