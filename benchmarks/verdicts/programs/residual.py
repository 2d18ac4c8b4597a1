"""Residual networks (tuning): skips, shared in-place ReLU, ReZero, deep stacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits, images
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, sgd

WIDTH = 32


class _Block(nn.Module):
    """A ResNet block with one in-place ReLU used twice, as torchvision writes it."""

    def __init__(self, fan_in: int, width: int, zero_gain: bool = False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(fan_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.match = nn.Conv2d(fan_in, width, 1) if fan_in != width else nn.Identity()
        if zero_gain:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        return self.relu(self.bn2(self.conv2(hidden)) + self.match(inputs))


class _Dense(nn.Module):
    """Concatenate each layer's output to its input (Huang 2017)."""

    def __init__(self, layers: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(1 + i * growth), nn.ReLU(), nn.Conv2d(1 + i * growth, growth, 3, padding=1)
            )
            for i in range(layers)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = torch.cat([inputs, layer(inputs)], 1)
        return inputs


class _Highway(nn.Module):
    """Mix a layer with its input by a trained gate that starts mostly closed (Srivastava 2015)."""

    def __init__(self, width: int):
        super().__init__()
        self.layer, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, inputs: Tensor) -> Tensor:
        gate = self.gate(inputs).sigmoid()
        return gate * self.layer(inputs).relu() + (1 - gate) * inputs


class _Drop(nn.Module):
    """Skip a branch at random for the whole batch (Huang 2016)."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.rand(()) < 0.2:
            return inputs
        return inputs + self.branch(inputs)


def _resnet(fit: dict[str, Any] | None = None, zero_gain: bool = False, blocks: int = 2) -> Setup:
    body = [_Block(1, 12, zero_gain), nn.MaxPool2d(2)]
    body += [_Block(12, 12, zero_gain) for _ in range(blocks - 1)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))
    return classify(model, images(), **{"optimizer": adam(5e-3), "steps": 100, **(fit or {})})


def _densenet() -> Setup:
    model = nn.Sequential(_Dense(3, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(19 * 16, 10))
    return classify(model, images(), adam(5e-3), steps=80)


def _branch(norm: bool = True, gain: float = 1.0) -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
    branch = nn.Sequential(*([nn.LayerNorm(WIDTH)] if norm else []), *layers)
    return net.initialised(branch, net.scaled(net.he, gain))


def _tower(
    make: Callable[[], nn.Module], blocks: int, fit: dict[str, Any] | None = None, final: bool = True
) -> Setup:
    head = [nn.LayerNorm(WIDTH)] if final else []
    model = nn.Sequential(nn.Linear(64, WIDTH), *[make() for _ in range(blocks)], *head, nn.Linear(WIDTH, 10))
    return classify(model, digits(), **{"optimizer": adam(2e-3), "steps": 200, **(fit or {})})


def _pre_norm(blocks: int, fit: dict[str, Any] | None = None) -> Setup:
    return _tower(lambda: net.Residual(_branch()), blocks, fit)


def _rezero(scale: float = 0.0, trained: bool = True) -> nn.Module:
    return net.Residual(_branch(norm=False), scale, trained)


def _closed(first_zero: bool) -> Setup:
    """Funnel the input through a residual branch alone whose two layers are both zero (or only the last)."""

    def make() -> nn.Module:
        branch = _branch(norm=False)
        nn.init.zeros_(branch[2].weight)
        if first_zero:
            nn.init.zeros_(branch[0].weight)
        return branch

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.branch = nn.Linear(64, WIDTH), make()
            self.head = nn.Linear(WIDTH, 10)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.branch(self.start(inputs)))

    return classify(Late(), digits(), adam(3e-3), steps=200)


def _plain(depth: int, initialise: net.Initialise | None, fit: dict[str, Any] | None = None) -> Setup:
    model = net.mlp((64, *[WIDTH] * depth, 10), initialise=initialise)
    return classify(model, digits(), **{"optimizer": adam(1e-3), "steps": 250, **(fit or {})})


def _square_root(safe: bool) -> Setup:
    """Normalise by the root of a clipped variance, whose gradient at 0 is infinite."""

    def scale(inputs: Tensor) -> Tensor:
        variance = (inputs.relu() ** 2).mean(1, keepdim=True) * 0 + (inputs[:, :1] ** 2 - 0.5).clamp(min=0)
        return inputs / (1 + (variance + (1e-3 if safe else 0.0)).sqrt())

    model = nn.Sequential(
        nn.Linear(64, WIDTH),
        net.Residual(_branch()),
        net.Apply(scale),
        net.Residual(_branch()),
        nn.Linear(WIDTH, 10),
    )
    return classify(model, digits(), adam(2e-3), steps=200)


def _deaf() -> Setup:
    """Put a ReLU that never opens in the trunk, behind the skips."""
    trunk = nn.Linear(WIDTH, WIDTH)
    nn.init.constant_(trunk.bias, -60.0)
    model = nn.Sequential(
        nn.Linear(64, WIDTH),
        net.Residual(_branch()),
        trunk,
        nn.ReLU(),
        net.Residual(_branch()),
        nn.Linear(WIDTH, 10),
    )
    return classify(model, digits(), adam(2e-3), steps=200)


def _wrong_group() -> Setup:
    """Rebuild the trunk after the optimizer was made: only the head, behind a two-unit neck, is trained."""
    setup = _neck()
    head = setup.model[-1]
    return classify(setup.model, digits(), adam(5e-3), parameters=head.parameters(), steps=300)


def _neck() -> Setup:
    model = nn.Sequential(
        nn.Linear(64, WIDTH), net.Residual(_branch()), nn.Linear(WIDTH, 3), nn.Tanh(), nn.Linear(3, 10)
    )
    return classify(model, digits(), adam(1e-2), steps=300)


REF, TOWER = "residual-resnet", "residual-pre-norm-6"
HIGH, LOW = ("learning-rate-too-high",), ("learning-rate-too-low",)
EXPLODED = ("exploding-signal", "exploding-gradient", "poor-initialization")
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
PROGRAMS = (
    Program(REF, _resnet, target=0.95),
    Program("residual-resnet-zero-gain", partial(_resnet, zero_gain=True), REF),
    Program("residual-resnet-momentum", partial(_resnet, {"optimizer": sgd(0.1, momentum=0.9)}), REF),
    Program("residual-densenet", _densenet, REF),
    Program(TOWER, partial(_pre_norm, 6), target=0.96),
    Program("residual-pre-norm-14", partial(_pre_norm, 14, {"steps": 120}), TOWER),
    Program("residual-rezero-12", partial(_tower, _rezero, 12, final=False), TOWER),
    Program("residual-skip-init", partial(_tower, lambda: _rezero(0.1, False), 8), TOWER),
    Program("residual-highway-8", partial(_tower, lambda: _Highway(WIDTH), 8, final=False), TOWER),
    Program("residual-stochastic-depth", partial(_tower, lambda: _Drop(_branch()), 6), TOWER),
    Program("residual-adamw", partial(_pre_norm, 6, {"optimizer": adamw(3e-3, weight_decay=0.1)}), TOWER),
    Program("residual-clipped", partial(_pre_norm, 6, {"clip": 1.0}), TOWER),
    Program("residual-autocast", partial(_pre_norm, 4, {"autocast": torch.bfloat16, "steps": 150}), TOWER),
    Program("residual-last-zero", partial(_closed, False), TOWER),
    Program("residual-safe-root", partial(_square_root, True), TOWER),
    Program("residual-neck", _neck, target=0.8),
    Program("residual-lr-1", partial(_resnet, {"optimizer": adam(3.0)}), REF, HIGH),
    Program("residual-tower-lr-1", partial(_pre_norm, 6, {"optimizer": adam(1.0)}), TOWER, HIGH),
    Program("residual-tower-lr-1e-6", partial(_pre_norm, 6, {"optimizer": adam(1e-6)}), TOWER, LOW),
    Program(
        "residual-unnormalised-20",
        partial(_tower, lambda: net.Residual(_branch(False, 2.5)), 14, {"optimizer": sgd(0.05)}, final=False),
        TOWER,
        EXPLODED,
    ),
    Program("residual-plain-40", partial(_plain, 40, None, {"steps": 150}), TOWER, VANISHED),
    Program("residual-plain-narrow-init", partial(_plain, 12, net.normal(0.03)), TOWER, VANISHED),
    Program(
        "residual-both-zero",
        partial(_closed, True),
        "residual-last-zero",
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
        ("branch.*",),
    ),
    Program(
        "residual-root-at-zero",
        partial(_square_root, False),
        "residual-safe-root",
        ("non-finite",),
        ("2", "1.*", "0"),
    ),
    Program("residual-closed-trunk", _deaf, TOWER, ("dead-units", "poor-initialization"), ("2", "3")),
    Program(
        "residual-decay",
        partial(_pre_norm, 6, {"optimizer": adamw(1e-2, weight_decay=30.0)}),
        TOWER,
        ("excessive-weight-decay",),
    ),
    Program(
        "residual-over-clipped",
        partial(_pre_norm, 6, {"optimizer": sgd(0.1), "clip": 1e-4}),
        TOWER,
        ("over-clipping",),
    ),
    Program(
        "residual-never-zeroed",
        partial(_resnet, {"optimizer": sgd(0.3), "zero_gradients": False, "steps": 150}),
        REF,
        ("gradient-not-zeroed",),
    ),
    Program(
        "residual-trunk-not-optimized", _wrong_group, "residual-neck", ("not-optimized",), ("0", "1.*", "2")
    ),
)
