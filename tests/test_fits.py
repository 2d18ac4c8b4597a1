"""Lightning fits of every kind: recorded as a plain float64 computation has it, and equal to the bit."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import gradscope
from gradscope.records import Run
from tests.observe.oracle import Row, layers_of_step, parameter_of_step
from tests.observe.test_trainings import equal

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES = 6
# Of the first step's gradients: what follows from them has tests of its own.
FOLLOWING = ("clipped_gradient_norm", "update_norm", "update_ratio")
WINDOWS = ("activation_saturated_fraction", "activation_dead_unit_fraction")


def batches() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)]
        for _ in range(BATCHES)
    ]


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
        return cross_entropy(self.net(batch[0].to(self.net[0].weight.dtype)), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.net(batch[0].to(self.net[0].weight.dtype))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Dropping(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.Dropout(0.4))


class Late(Net):
    """Make the layers in configure_model, after `setup`."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


class Closed(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=1)


class Closing(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=4)


class Fused(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01, fused=True)


class Adversaries(pl.LightningModule):
    """Two optimizers by hand: at the second one's step the first one's parameters hold gradients, too."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = nn.Linear(6, 4), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def losses(self, x: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        return (
            lambda: self.judge(self.maker(x)).square().mean() + self.judge(x[:, :4]).exp().mean(),
            lambda: (self.judge(self.maker(x)) - 1).square().mean(),
        )

    def training_step(self, batch: list[Tensor], index: int) -> None:
        for optimizer, loss in zip(self.optimizers(), self.losses(batch[0]), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss())
            self.clip_gradients(optimizer, 0.1, "norm")
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.judge.parameters(), 0.01),
            torch.optim.SGD(self.maker.parameters(), 0.1),
        ]


@dataclass(frozen=True)
class Fit:
    """A fit: its module, what the trainer is told, callbacks beside ours, micro-batches of the first step."""

    build: Callable[[], Any] = Net
    options: dict[str, Any] = field(default_factory=dict)
    beside: Callable[[], list[Any]] = list
    accumulated: int = 1
    validates: bool = False
    tolerance: float = 2e-4


FITS: dict[str, Fit] = {
    "plain": Fit(),
    "accumulated": Fit(options={"accumulate_grad_batches": 3}, accumulated=3),
    "clipped by norm": Fit(options={"gradient_clip_val": 0.05}),
    "clipped by value": Fit(options={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "fused": Fit(Fused),
    "closure": Fit(Closed),
    "validation and sanity checking": Fit(
        options={"num_sanity_val_steps": 2, "val_check_interval": 2}, validates=True
    ),
    "made in configure_model": Fit(Late),
    "64-true": Fit(options={"precision": "64-true"}),
    "bf16-true": Fit(options={"precision": "bf16-true"}, tolerance=0.05),
    "exponential average": Fit(beside=lambda: [EMAWeightAveraging(decay=0.5)], validates=True),
    "weight average": Fit(beside=lambda: [WeightAveraging()], validates=True),
    "stochastic weight average": Fit(
        options={"max_epochs": 4}, beside=lambda: [StochasticWeightAveraging(0.05, 0.5, 1)], validates=True
    ),
}
HARMLESS = {
    **FITS,
    "dropout": Fit(Dropping),
    "adversaries": Fit(Adversaries),
    "many evaluations": Fit(Closing),
    "average before ours": Fit(beside=lambda: [EMAWeightAveraging(decay=0.5)], validates=True),
}


def fit(
    wanted: Fit, scope: Any, model: Any, ours_last: bool = False, checkpoint: Path | None = None, **more: Any
) -> pl.Trainer:
    own = [scope] if scope else []
    beside = wanted.beside()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*beside, *own] if ours_last else [*own, *beside],
        **{"max_epochs": 2, "enable_checkpointing": False, **wanted.options, **more},
    )
    loader = DataLoader(batches(), batch_size=None)
    trainer.fit(model, loader, loader if wanted.validates else None, ckpt_path=checkpoint)
    return trainer


def everything(wanted: Fit, run: Path | None, **more: Any) -> dict[str, Any]:
    """Return all that a fit changes."""
    torch.manual_seed(0)
    model = wanted.build()
    scope = gradscope.GradScope(str(run), every_n_steps=2, verbose=False) if run else None
    trainer = fit(wanted, scope, model, **more)
    averages = [
        item._average_model.state_dict()
        for item in trainer.callbacks
        if getattr(item, "_average_model", None) is not None
    ]
    return {
        "weights": model.state_dict(),
        "state": [item.state_dict() for item in trainer.optimizers],
        "averages": averages,
        "random": torch.get_rng_state(),
        "hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()),
    }


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_fit_is_equal_to_the_bit(kind: str, tmp_path: Path) -> None:
    wanted, last = HARMLESS[kind], kind == "average before ours"
    assert equal(
        everything(wanted, None, ours_last=last), everything(wanted, tmp_path / "run", ours_last=last)
    )
    assert len(gradscope.read_run(tmp_path / "run").steps) > 0


@pytest.mark.parametrize("kind", FITS)
def test_the_first_step_of_a_fit_is_a_plain_float64_computation(kind: str, tmp_path: Path) -> None:
    wanted = FITS[kind]
    torch.manual_seed(0)
    model = wanted.build()
    torch.manual_seed(1)
    if isinstance(model, Late):
        twin = copy.deepcopy(model)
        twin.configure_model()
        torch.manual_seed(1)
    else:
        twin = copy.deepcopy(model)
    if wanted.options.get("precision") == "bf16-true":
        twin.bfloat16()  # the weights that the fit begins with
    twin.double()
    fit(wanted, gradscope.GradScope(str(tmp_path / "run"), every_n_steps=1, verbose=False), model)
    run = gradscope.read_run(tmp_path / "run")
    assert run.problems == ()
    assert run.events == ()
    assert (run.layer_table("calls") == wanted.accumulated).all().all()
    losses: list[float] = []

    def passes() -> None:
        for index, batch in enumerate(batches()[: wanted.accumulated]):
            loss = twin.training_step(batch, index) / wanted.accumulated
            loss.backward()
            losses.append(float(loss.detach()))

    layers = layers_of_step(twin, [layer.name for layer in run.layers], passes)
    parameters = {
        name: parameter_of_step(item.grad, item.grad, item.data, item.data, True)
        for name, item in twin.named_parameters()
    }
    assert run.steps["loss"][0] == pytest.approx(sum(losses), rel=wanted.tolerance)
    compare(run, "layer", layers, WINDOWS, wanted.tolerance)
    compare(run, "parameter", parameters, FOLLOWING, wanted.tolerance)


def compare(run: Run, key: str, true: dict[str, Row], left_out: tuple[str, ...], tolerance: float) -> None:
    for name, row in true.items():
        for column, value in row.items():
            if column not in left_out:
                table = run.layer_table(column) if key == "layer" else run.parameter_table(column)
                scale = row.get(f"{column.split('_')[0]}_rms", 1.0)
                assert table[name].iloc[0] == pytest.approx(value, rel=tolerance, abs=tolerance * scale), (
                    name,
                    column,
                )


def test_adversaries_by_hand_are_a_plain_float64_computation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Adversaries()
    twin = copy.deepcopy(model).double()
    fit(Fit(), gradscope.GradScope(str(tmp_path / "run"), every_n_steps=1, verbose=False), model)
    run = gradscope.read_run(tmp_path / "run")
    assert run.steps["step"].tolist() == list(range(2 * BATCHES))
    used: dict[str, float] = {}
    optimizers = twin.configure_optimizers()
    losses = twin.losses(batches()[0][0].double())
    for name, optimizer, loss in zip(("judge", "maker"), optimizers, losses, strict=True):
        optimizer.zero_grad()
        loss().backward()
        own = dict(getattr(twin, name).named_parameters(prefix=name))
        nn.utils.clip_grad_norm_(own.values(), 0.1)
        used |= {key: float(item.grad.norm()) for key, item in own.items() if item.grad is not None}
        before = {key: item.detach().clone() for key, item in own.items()}
        optimizer.step()
        for key, item in own.items():
            seen = run.parameter_table("update_norm")[key].iloc[0]
            assert seen == pytest.approx(float((item - before[key]).norm()), rel=1e-3), key
    # Clipped by hand, gradients are known as the optimizer is about to use them.
    for column in ("gradient_norm", "clipped_gradient_norm"):
        seen = run.parameter_table(column).iloc[0]
        assert {key: seen[key] for key in used} == pytest.approx(used, rel=1e-3), column
    assert run.steps["grad_norm"][0] == pytest.approx(math.hypot(*used.values()), rel=1e-3)


def resumed(path: Path, watched: bool) -> tuple[dict[str, Any], Path | None]:
    """Train for an epoch with a checkpoint, then go on from it in another fit."""
    torch.manual_seed(0)
    wanted, scope = Fit(Dropping, {"gradient_clip_val": 0.05}), None
    keep = pl.callbacks.ModelCheckpoint(path, save_last=True, save_top_k=0)
    for epochs, checkpoint in ((1, None), (2, path / "last.ckpt")):
        scope = gradscope.GradScope(str(path / "run"), every_n_steps=1, verbose=False) if watched else None
        model = wanted.build()
        fit(
            Fit(wanted.build, wanted.options, lambda: [copy.deepcopy(keep)]),
            scope,
            model,
            checkpoint=checkpoint,
            max_epochs=epochs,
            enable_checkpointing=True,
        )
    return {"weights": model.state_dict(), "random": torch.get_rng_state()}, scope and scope.run_path


def test_a_resumed_fit_is_equal_to_the_bit_and_one_run(tmp_path: Path) -> None:
    bare, _ = resumed(tmp_path / "bare", False)
    seen, run = resumed(tmp_path / "seen", True)
    assert equal(bare, seen)
    assert run is not None
    assert gradscope.read_run(run).steps["step"].tolist() == list(range(2 * BATCHES))


def test_a_second_fit_of_the_same_model_is_equal_to_the_bit(tmp_path: Path) -> None:
    def twice(scope: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Dropping()
        for _ in range(2):
            fit(Fit(), scope, model, max_epochs=1)
        return dict(model.state_dict())

    scope = gradscope.GradScope(str(tmp_path / "run"), every_n_steps=1, verbose=False)
    assert equal(twice(None), twice(scope))
    assert scope.run_path != tmp_path / "run"
    assert (
        len(gradscope.read_run(tmp_path / "run").steps)
        == len(gradscope.read_run(scope.run_path).steps)
        == BATCHES
    )
