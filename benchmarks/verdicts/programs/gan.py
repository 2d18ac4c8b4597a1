"""Generative adversarial networks on a ring (tuning), under Lightning's manual optimisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import ring
from benchmarks.verdicts.program import Adversaries, Program


def _judge(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _cheat(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def _judge_squares(real: Tensor, fake: Tensor) -> Tensor:
    return (real - 1).square().mean() + fake.square().mean()


def _cheat_squares(fake: Tensor) -> Tensor:
    return (fake - 1).square().mean()


def _judge_hinge(real: Tensor, fake: Tensor) -> Tensor:
    return (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()


def _cheat_hinge(fake: Tensor) -> Tensor:
    return -fake.mean()


def _distance(points: Tensor) -> float:
    """Return the root of the energy distance between points and the ring (Székely 2013)."""
    real = ring()[:512]
    between = torch.cdist(points, real).mean()
    value = 2 * between - torch.cdist(points, points).mean() - torch.cdist(real, real).mean()
    return value.clamp(min=0).sqrt().item()


def _score(generator: nn.Module) -> float:
    points = generator(torch.randn(512, 4, generator=torch.Generator().manual_seed(2)))
    return -_distance(points) if points.isfinite().all() else -10.0


def _gan(
    lrs: tuple[float, float] = (1e-3, 4e-3),
    generator: nn.Module | None = None,
    judge_depth: int = 2,
    losses: tuple[Any, Any] = (_judge, _cheat),
    optimized: bool = True,
    zero_gradients: bool = True,
    make: Any = None,
    **network: Any,
) -> Adversaries:
    generator = generator or net.mlp((4, 48, 48, 2), **network)
    discriminator = net.mlp((2, *[48] * judge_depth, 1), partial(nn.LeakyReLU, 0.2))
    make = make or (lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.99)))
    mine = generator if optimized else net.mlp((4, 48, 48, 2))
    optimizers = make(mine.parameters(), lrs[0]), make(discriminator.parameters(), lrs[1])
    chance = -_distance(torch.zeros(512, 2))
    return Adversaries(
        generator, discriminator, optimizers, losses, ring(), _score, chance, zero_gradients=zero_gradients
    )


def _dead_generator() -> Adversaries:
    generator = net.mlp((4, 48, 48, 2))
    nn.init.constant_(generator[2].bias, -60.0)
    return _gan(generator=generator)


def _sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


SQUARES, HINGE = (_judge_squares, _cheat_squares), (_judge_hinge, _cheat_hinge)
REF = "gan-ring"
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
PROGRAMS = (
    Program(REF, _gan, target=-0.4),
    Program("gan-least-squares", partial(_gan, losses=SQUARES), target=-0.4),
    Program("gan-hinge", partial(_gan, losses=HINGE), target=-0.4),
    Program("gan-two-rates", partial(_gan, (2e-3, 4e-3)), target=-0.4),
    Program("gan-tanh-generator", partial(_gan, activation=nn.Tanh, initialise=net.glorot), target=-0.4),
    Program("gan-batchnorm-generator", partial(_gan, norm=nn.BatchNorm1d), target=-0.4),
    Program("gan-rates-3", partial(_gan, (3.0, 3.0)), REF, ("learning-rate-too-high",)),
    Program("gan-rates-1e-7", partial(_gan, (1e-7, 1e-7)), REF, ("learning-rate-too-low",)),
    Program(
        "gan-generator-not-optimized",
        partial(_gan, optimized=False),
        REF,
        ("not-optimized",),
        ("generator.*",),
    ),
    Program(
        "gan-dead-generator",
        _dead_generator,
        REF,
        ("dead-units", "poor-initialization"),
        ("generator.2", "generator.3"),
    ),
    Program(
        "gan-sigmoid-generator",
        partial(_gan, generator=None, activation=nn.Sigmoid, initialise=net.normal(0.01)),
        REF,
        VANISHED,
    ),
    Program(
        "gan-softmax-output",
        partial(_gan, output=nn.Sigmoid()),
        REF,
        ("output-mismatch",),
        ("generator.4", "generator.5"),
    ),
)
