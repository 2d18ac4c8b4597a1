"""Convolution networks on the digits as 8 × 8 images (tuning)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import images
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, sgd

Norm = Callable[[int], nn.Module]


def _network(
    channels: tuple[int, ...] = (8, 16),
    activation: Callable[[], nn.Module] = nn.ReLU,
    initialise: net.Initialise | None = net.he,
    norm: Norm | None = None,
    dropout: float = 0.0,
    every: int = 1,
) -> nn.Sequential:
    """Build convolution (norm) activation blocks, halving the image after the first two, then one Linear."""
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), *([norm(fan_out)] if norm else []), activation()]
        layers += [nn.MaxPool2d(2)] if index in (0, every) else []
        layers += [nn.Dropout2d(dropout)] if dropout else []
    layers += [nn.Flatten(), nn.Linear(4 * channels[-1], 10)]
    model = nn.Sequential(*layers)
    net.initialised(model, initialise)
    return model


def _images(fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    return classify(_network(**network), images(), **{"optimizer": adam(3e-3), "steps": 150, **(fit or {})})


def _changed(change: Callable[[nn.Sequential], object], fit: dict[str, Any] | None = None) -> Setup:
    model = _network()
    change(model)
    return classify(model, images(), **{"optimizer": adam(3e-3), "steps": 150, **(fit or {})})


def _separable() -> Setup:
    def block(fan_in: int, fan_out: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(fan_in, fan_in, 3, padding=1, groups=fan_in, bias=False)
        pointwise = nn.Conv2d(fan_in, fan_out, 1, bias=False)
        return [depthwise, pointwise, nn.BatchNorm2d(fan_out), nn.ReLU6(inplace=True)]

    body = [nn.Conv2d(1, 8, 3, padding=1), *block(8, 16), nn.MaxPool2d(2), *block(16, 24)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))
    return classify(model, images(), adam(1e-2), steps=150)


def _pooled(norm: nn.Module) -> Setup:
    """Squeeze the image to one pixel, normalise, classify."""
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 8), norm, nn.ReLU()]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(24, 10))
    return classify(model, images(), adam(3e-3), steps=150)


def _inception() -> Setup:
    class Branches(nn.Module):
        def __init__(self, fan_in: int, width: int):
            super().__init__()
            self.branches = nn.ModuleList(
                nn.Conv2d(fan_in, width, size, padding=size // 2) for size in (1, 3, 5)
            )

        def forward(self, inputs: Tensor) -> Tensor:
            import torch

            return F.relu(torch.cat([branch(inputs) for branch in self.branches], 1))

    model = nn.Sequential(
        Branches(1, 6), nn.MaxPool2d(2), Branches(18, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    )
    return classify(model, images(), adam(3e-3), steps=150)


def _divided(floor: float) -> Setup:
    """Standardise each pixel over the batch; those that are always dark have a deviation of 0."""
    divide = net.Apply(lambda x: (x - x.mean(0)) / (x.std(0) + floor))
    return classify(nn.Sequential(divide, *_network()), images(), adam(3e-3), steps=150)


def _twice_softmax(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(outputs.softmax(1).softmax(1), targets)


REF = "conv-relu-he"
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
TEN, TWENTY = (8,) * 10, (8,) * 20
PROGRAMS = (
    Program(REF, _images, target=0.95),
    Program("conv-batchnorm", partial(_images, norm=nn.BatchNorm2d), REF),
    Program("conv-groupnorm", partial(_images, norm=lambda width: nn.GroupNorm(4, width)), REF),
    Program("conv-tanh", partial(_images, activation=nn.Tanh, initialise=net.glorot), REF),
    Program("conv-torch-default", partial(_images, initialise=None), REF),
    Program("conv-inplace", partial(_images, activation=partial(nn.ReLU, inplace=True)), REF),
    Program("conv-leaky", partial(_images, activation=partial(nn.LeakyReLU, 0.1)), REF),
    Program("conv-dropout", partial(_images, {"steps": 250}, dropout=0.1), REF),
    Program("conv-he-10", partial(_images, {"optimizer": adam(2e-3), "steps": 250}, channels=TEN), REF),
    Program("conv-batchnorm-10", partial(_images, {"steps": 200}, channels=TEN, norm=nn.BatchNorm2d), REF),
    Program("conv-separable", _separable, REF),
    Program("conv-inception", _inception, REF),
    Program("conv-pooled", partial(_pooled, nn.BatchNorm2d(24)), REF),
    Program("conv-divided-safely", partial(_divided, 0.1), REF),
    Program("conv-momentum", partial(_images, {"optimizer": sgd(0.05, momentum=0.9)}), REF),
    Program(
        "conv-sigmoid-shallow",
        partial(_images, {"optimizer": adam(1e-2), "steps": 300}, activation=nn.Sigmoid, initialise=None),
        REF,
    ),
    Program(
        "conv-zero-first",
        partial(_changed, lambda model: nn.init.zeros_(model[0].weight)),
        REF,
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
        ("0",),
    ),
    Program(
        "conv-default-init-20", partial(_images, channels=TWENTY, initialise=None), "conv-he-10", VANISHED
    ),
    Program(
        "conv-hard-sigmoid-10",
        partial(_images, channels=TEN, activation=nn.Hardsigmoid),
        "conv-he-10",
        ("vanishing-gradient", "saturated-activation", "poor-initialization"),
    ),
    Program(
        "conv-sigmoid-8", partial(_images, channels=(8,) * 8, activation=nn.Sigmoid), "conv-he-10", VANISHED
    ),
    Program(
        "conv-dead-second",
        partial(_changed, lambda model: nn.init.constant_(model[3].bias, -50.0)),
        REF,
        ("dead-units", "poor-initialization"),
        ("3", "4"),
    ),
    Program("conv-adam-lr-1", partial(_images, {"optimizer": adam(1.0)}), REF, ("learning-rate-too-high",)),
    Program(
        "conv-adam-lr-1e-6", partial(_images, {"optimizer": adam(1e-6)}), REF, ("learning-rate-too-low",)
    ),
    Program("conv-sgd-lr-5", partial(_images, {"optimizer": sgd(5.0)}), REF, ("learning-rate-too-high",)),
    Program(
        "conv-exploding-init",
        partial(_images, {"optimizer": sgd(0.01)}, channels=TEN, initialise=net.scaled(net.he, 4)),
        "conv-he-10",
        ("exploding-gradient", "exploding-signal", "poor-initialization"),
    ),
    Program(
        "conv-softmax-as-nll",
        partial(_images, {"loss": _twice_softmax}),
        REF,
        ("output-mismatch",),
        ("7",),
    ),
    Program(
        "conv-norm-of-one-pixel",
        partial(_pooled, nn.GroupNorm(24, 24)),
        "conv-pooled",
        ("degenerate-normalization",),
        ("3",),
    ),
    Program("conv-divided-by-zero", partial(_divided, 0.0), "conv-divided-safely", ("non-finite",), ("0",)),
    Program(
        "conv-weight-decay",
        partial(_images, {"optimizer": sgd(0.05, momentum=0.9, weight_decay=0.5)}),
        "conv-momentum",
        ("excessive-weight-decay",),
    ),
    Program(
        "conv-over-clipped",
        partial(_images, {"optimizer": sgd(0.05, momentum=0.9), "clip": 1e-4}),
        "conv-momentum",
        ("over-clipping",),
    ),
    Program(
        "conv-head-tanh-saturated",
        partial(
            _changed,
            lambda model: model.append(nn.Tanh()).append(net.Apply(lambda x: 0.01 * x)),
            {"steps": 150},
        ),
        REF,
        ("output-mismatch", "saturated-activation"),
        ("7", "8", "9"),
    ),
)
