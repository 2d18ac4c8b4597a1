"""Mixed precision: what is recorded is that of a plain float64 computation, without the loss scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import gradscope
from gradscope.records import Run

pytestmark = pytest.mark.filterwarnings("ignore")
SCALE, FAR_TOO_LARGE = 2.0**10, 2.0**40
TOLERANCE = {"16-mixed": 0.01, "bf16-mixed": 0.06}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "plain": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "fused": lambda parameters: torch.optim.Adam(parameters, 0.01, fused=True),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.ReLU(inplace=True), nn.Linear(32, 3))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(count)
    ]


def truth(accumulated: int) -> dict[str, Any]:
    """Return by plain float64 autograd: the loss, gradients by name, and the rms of outputs and signals."""
    model = network().double()
    outputs: dict[int, list[Tensor]] = {index: [] for index in range(len(model))}
    losses = []
    for x, y in batches(accumulated):
        h = x.double()
        for index, layer in enumerate(model):
            h = nn.ReLU()(h) if isinstance(layer, nn.ReLU) else layer(h)
            h.retain_grad()
            outputs[index].append(h)
        losses.append(cross_entropy(h, y))
        (losses[-1] / accumulated).backward()
    return {
        "loss": float(sum(loss.detach() for loss in losses)) / accumulated,
        "gradients": {name: item.grad for name, item in model.named_parameters()},
        "activations": [rms([item.detach() for item in kept]) for kept in outputs.values()],
        "signals": [rms([item.grad for item in kept if item.grad is not None]) for kept in outputs.values()],
    }


def rms(tensors: list[Tensor]) -> float:
    return float(torch.cat([item.flatten() for item in tensors]).square().mean().sqrt())


def check(run: Run, accumulated: int, tolerance: float) -> None:
    """Compare the first step."""
    true = truth(accumulated)
    assert run.steps["loss"][0] == pytest.approx(true["loss"], rel=tolerance)
    assert run.layer_table("activation_rms").iloc[0].tolist() == pytest.approx(
        true["activations"], rel=tolerance
    )
    assert run.layer_table("signal_rms").iloc[0].tolist() == pytest.approx(true["signals"], rel=tolerance)
    names = list(true["gradients"])
    norms = [float(true["gradients"][run_name].norm()) for run_name in names]
    seen = run.parameter_table("gradient_norm").iloc[0]
    seen.index = [name.removeprefix("net.") for name in seen.index]
    assert [seen[name] for name in names] == pytest.approx(norms, rel=3 * tolerance)
    total = math.sqrt(sum(norm**2 for norm in norms))
    assert run.steps["grad_norm"][0] == pytest.approx(total, rel=tolerance)
    largest = run.parameter_table("gradient_absmax").iloc[0]
    assert largest.tolist() == pytest.approx(
        [float(true["gradients"][name].abs().max()) for name in names], rel=4 * tolerance
    )


class Net(pl.LightningModule):
    def __init__(self, optimizer: str) -> None:
        super().__init__()
        self.net, self.optimizer = network(), OPTIMIZERS[optimizer]

    def training_step(self, batch: Any, index: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def fit(
    run: Path | None, precision: str, optimizer: str, scale: float = SCALE, **options: Any
) -> dict[str, Tensor]:
    half = precision == "16-mixed"  # Lightning would replace it on a CPU
    plugin = MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", scale) if half else None)
    scope = gradscope.GradScope(str(run), every_n_steps=1, verbose=False) if run else None
    trainer = pl.Trainer(
        accelerator="cpu",
        plugins=[plugin],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[scope] if scope else [],
        **options,
    )
    model = Net(optimizer)
    trainer.fit(model, DataLoader(batches(6), batch_size=None))
    return {name: value.clone() for name, value in model.net.state_dict().items()}


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_fit_in_mixed_precision(tmp_path: Path, precision: str, optimizer: str, accumulated: int) -> None:
    bare = fit(None, precision, optimizer, accumulate_grad_batches=accumulated)
    seen = fit(tmp_path / "run", precision, optimizer, accumulate_grad_batches=accumulated)
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    run = gradscope.read_run(tmp_path / "run")
    check(run, accumulated, TOLERANCE[precision])
    assert run.steps["clipped_grad_norm"].tolist() == pytest.approx(run.steps["grad_norm"].tolist(), rel=1e-4)
    assert (run.parameter_table("update_norm") > 0).all().all()
    if precision == "16-mixed":
        assert run.steps["amp_scale"].tolist() == [SCALE] * len(run.steps)
        assert run.steps["skipped"].tolist() == [0.0] * len(run.steps)


def test_clipping_in_mixed_precision_is_of_unscaled_gradients(tmp_path: Path) -> None:
    fit(tmp_path / "run", "16-mixed", "plain", gradient_clip_val=0.01)
    run = gradscope.read_run(tmp_path / "run")
    check(run, 1, TOLERANCE["16-mixed"])
    assert run.steps["clipped_grad_norm"].tolist() == pytest.approx([0.01] * 6, rel=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fit_says_which_updates_were_skipped(tmp_path: Path, optimizer: str) -> None:
    fit(tmp_path / "run", "16-mixed", optimizer, FAR_TOO_LARGE)
    check_skipped(gradscope.read_run(tmp_path / "run"))


def check_skipped(run: Run) -> None:
    assert run.steps["skipped"].tolist() == [1.0] * 6
    assert run.steps["amp_scale"].tolist() == [FAR_TOO_LARGE / 2**step for step in range(6)]
    assert (run.parameter_table("update_norm") == 0).all().all()
    assert (run.parameter_table("gradient_nonfinite") > 0).any(axis=1).all()
    assert (run.parameter_table("gradient_missing") == 0).all().all()


def loop(
    run: Path | None, optimizer: str, scale: float = SCALE, clip: float | None = None
) -> dict[str, Tensor]:
    model = network()
    updates = OPTIMIZERS[optimizer](model.parameters())
    scaler = torch.amp.GradScaler("cpu", scale)
    scope: Any = gradscope.watch(model, updates, run, scaler=scaler, every_n_steps=1, verbose=False)
    if run:
        scope.__enter__()
    for x, y in batches(6):
        updates.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(updates)
            if run:
                scope.before_clipping()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(updates)
        scaler.update()
        if run:
            scope.step(loss)
    if run:
        scope.__exit__(None, None, None)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plain_loop_with_a_scaler(tmp_path: Path, optimizer: str, clip: float | None) -> None:
    bare, seen = loop(None, optimizer, clip=clip), loop(tmp_path / "run", optimizer, clip=clip)
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    run = gradscope.read_run(tmp_path / "run")
    check(run, 1, TOLERANCE["16-mixed"])
    assert run.info.training["precision"] == "16-mixed"
    assert run.steps["amp_scale"].tolist() == [SCALE] * 6
    assert run.steps["skipped"].tolist() == [0.0] * 6
    expected = [clip] * 6 if clip else run.steps["grad_norm"].tolist()
    assert run.steps["clipped_grad_norm"].tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plain_loop_says_which_updates_were_skipped(tmp_path: Path, optimizer: str) -> None:
    loop(tmp_path / "run", optimizer, FAR_TOO_LARGE)
    check_skipped(gradscope.read_run(tmp_path / "run"))
