"""Parameters in plain lists, dictionaries and tensors: the code that registers them is run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import gradscope
from gradscope import examine, read_run


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](inputs).tanh())


class _Hidden(nn.Module):
    """Holds trained tensors wherever torch doesn't look."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.leave = _Inner(), nn.Linear(4, 1)
        self.heads = {"left": nn.Linear(4, 4)}
        self.scales = [torch.ones(4, requires_grad=True)]
        self.level = torch.zeros(1, requires_grad=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.leave(self.heads["left"](self.inner(inputs) * self.scales[0])) + self.level


def test_remedy_registers_whatever_holds_the_parameters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Hidden()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    before = len(list(model.parameters()))
    with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(torch.randn(8, 4)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            scope.step(loss)
    finding = next(
        item for item in examine(read_run(tmp_path / "run")).findings if item.rule == "not-optimized"
    )
    remedies = finding.remedies
    assert remedies[0].title.startswith("Register heads")
    exec(remedies[0].code, {"torch": torch, "model": model, "optimizer": optimizer})
    assert len(list(model.parameters())) == before + 8
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    model(torch.randn(8, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
