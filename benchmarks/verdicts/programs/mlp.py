"""Multi-layer perceptrons on digits (tuning): each classic fault, its twin, and what looks like a fault."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, sgd

SIX = (64, *[48] * 6, 10)


def _digits(sizes: tuple[int, ...] = SIX, fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    return classify(net.mlp(sizes, **network), digits(), **(fit or {}))


def _deep(depth: int, **network: Any) -> Setup:
    return _digits((64, *[32] * depth, 10), {"steps": 300}, **network)


def _frozen_first() -> Setup:
    model = net.mlp((64, 256, 48, 10))
    model[0].requires_grad_(False)
    return classify(model, digits(), adam(3e-3))


def _fine_tuned() -> Setup:
    model = net.mlp((64, 48, 48, 10))
    setup = classify(model, digits(), adam(3e-3))
    for _ in range(200):
        rows = torch.randint(0, 1797, (64,))
        setup.optimizer.zero_grad()
        F.cross_entropy(model(digits()[0][rows]), digits()[1][rows]).backward()
        setup.optimizer.step()
    return classify(model, digits(), adam(1e-4), steps=150)


def _dead_layer() -> Setup:
    model = net.mlp(SIX)
    nn.init.constant_(model[4].bias, -30.0)
    return classify(model, digits())


def _detached(detach: bool) -> Setup:
    cut = net.Apply(Tensor.detach if detach else nn.Identity())
    first, second = net.mlp((64, 48, 4), output=nn.Tanh()), net.mlp((4, 48, 10))
    return classify(nn.Sequential(*first, cut, *second), digits(), adam(3e-3), steps=400)


def _root(safe: bool) -> Setup:
    root = net.Apply(lambda x: (x.abs() + 1e-3).sqrt() if safe else (x - 0.2).sqrt())
    return classify(nn.Sequential(*net.mlp((64, 48, 48)), root, *net.mlp((48, 48, 10))), digits())


def _raw(scale: float) -> Setup:
    model = net.mlp((64, 48, 48, 10), nn.Tanh, None)
    return classify(model, (scale * (digits()[0] + 0.8), digits()[1]), sgd(0.05, momentum=0.9))


def _other_models_optimizer() -> Setup:
    return classify(net.mlp(SIX), digits(), parameters=list(net.mlp(SIX).parameters()))


def _bottleneck(norm: nn.Module) -> Setup:
    first, second = net.mlp((64, 48, 48, 2)), net.mlp((2, 48, 48, 10))
    return classify(nn.Sequential(*first, norm, *second), digits(), adam(3e-3), steps=400)


def _bfloat16(lr: float) -> Setup:
    setup = _digits((64, 48, 48, 10))
    model = setup.model.to(torch.bfloat16)
    return classify(
        model,
        (digits()[0].bfloat16(), digits()[1]),
        sgd(lr),
        lambda outputs, targets: F.cross_entropy(outputs.float(), targets),
        steps=300,
    )


def _half(scale: float) -> Setup:
    """Train in float16 with a loss scaled by `scale`, which the optimizer's learning rate undoes."""
    model = net.mlp((64, 48, 48, 10)).half()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * F.cross_entropy(outputs.float(), targets)

    return classify(model, (digits()[0].half(), digits()[1]), sgd(0.1 / scale), loss, steps=300)


def _scaled_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1e-4 * F.cross_entropy(outputs, targets)


def _twice_softmax(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.softmax(1), targets)


REF = "mlp-relu-he"
START = ("poor-initialization",)
PROGRAMS = (
    Program(REF, _digits, target=0.97),
    Program("mlp-tanh-glorot", partial(_digits, activation=nn.Tanh, initialise=net.glorot), REF),
    Program("mlp-gelu", partial(_digits, activation=nn.GELU), REF),
    Program("mlp-torch-default-4", partial(_digits, (64, 64, 64, 64, 10), initialise=None), REF),
    Program("mlp-selu-20", partial(_deep, 20, activation=nn.SELU, initialise=net.lecun), REF),
    Program("mlp-batchnorm-10", partial(_deep, 10, norm=nn.BatchNorm1d), REF),
    Program("mlp-layernorm-10", partial(_deep, 10, norm=nn.LayerNorm, activation=nn.GELU), REF),
    Program("mlp-he-20", partial(_deep, 20), REF),
    Program("mlp-tanh-orthogonal-20", partial(_deep, 20, activation=nn.Tanh, initialise=net.orthogonal), REF),
    Program("mlp-dropout", partial(_digits, (64, 128, 128, 10), dropout=0.4), REF),
    Program("mlp-wide", partial(_digits, (64, 512, 512, 10), {"steps": 150}), REF),
    Program(
        "mlp-loss-to-zero",
        partial(_digits, (64, 128, 128, 10), {"optimizer": adam(3e-3), "steps": 700, "batch_size": 128}),
        REF,
    ),
    Program("mlp-sgd-momentum", partial(_digits, fit={"optimizer": sgd(0.05, momentum=0.9)}), REF),
    Program(
        "mlp-warmup",
        partial(_digits, fit={"optimizer": adam(3e-3), "schedule": lambda step: min(1.0, step / 50)}),
        REF,
    ),
    Program("mlp-accumulation", partial(_digits, fit={"accumulate": 4, "batch_size": 16}), REF),
    Program("mlp-autocast-bfloat16", partial(_digits, fit={"autocast": torch.bfloat16}), REF),
    Program("mlp-frozen-first", _frozen_first, REF),
    Program("mlp-fine-tuned", _fine_tuned, REF),
    Program("mlp-clipped", partial(_digits, fit={"optimizer": sgd(0.1, momentum=0.5), "clip": 1.0}), REF),
    Program("mlp-loss-times-1e-4", partial(_digits, fit={"loss": _scaled_loss}), REF),
    Program("mlp-attached", partial(_detached, False), target=0.9),
    Program("mlp-safe-root", partial(_root, True), REF),
    Program("mlp-standard-input", partial(_raw, 1.0), REF),
    Program("mlp-bottleneck-plain", partial(_bottleneck, nn.Identity()), target=0.85),
    Program("mlp-bfloat16-weights", partial(_bfloat16, 0.1), REF),
    Program("mlp-half-scaled", partial(_half, 256.0), REF),
    Program("mlp-adamw-decay", partial(_digits, fit={"optimizer": adamw(1e-3, weight_decay=0.05)}), REF),
    Program(
        "mlp-sigmoid-10",
        partial(_deep, 10, activation=nn.Sigmoid, initialise=None),
        "mlp-he-20",
        ("vanishing-gradient", *START),
    ),
    Program(
        "mlp-default-init-30",
        partial(_deep, 30, initialise=None),
        "mlp-he-20",
        ("vanishing-gradient", "vanishing-signal", *START),
    ),
    Program(
        "mlp-tanh-small-init-12",
        partial(_deep, 12, activation=nn.Tanh, initialise=net.normal(0.02)),
        "mlp-tanh-orthogonal-20",
        ("vanishing-gradient", "vanishing-signal", *START),
    ),
    Program(
        "mlp-exploding-init",
        partial(_digits, (64, *[48] * 10, 10), {"optimizer": sgd(0.01)}, initialise=net.scaled(net.he, 4)),
        REF,
        ("exploding-gradient", "exploding-signal", *START),
    ),
    Program(
        "mlp-adam-lr-1", partial(_digits, fit={"optimizer": adam(1.0)}), REF, ("learning-rate-too-high",)
    ),
    Program(
        "mlp-sgd-lr-10", partial(_digits, fit={"optimizer": sgd(10.0)}), REF, ("learning-rate-too-high",)
    ),
    Program(
        "mlp-adam-lr-1e-6", partial(_digits, fit={"optimizer": adam(1e-6)}), REF, ("learning-rate-too-low",)
    ),
    Program(
        "mlp-sgd-lr-1e-5", partial(_digits, fit={"optimizer": sgd(1e-5)}), REF, ("learning-rate-too-low",)
    ),
    Program("mlp-dead-layer", _dead_layer, REF, ("dead-units", *START), ("4", "5")),
    Program(
        "mlp-saturated-tanh",
        partial(
            _digits, fit={"optimizer": sgd(0.01)}, activation=nn.Tanh, initialise=net.scaled(net.glorot, 40)
        ),
        "mlp-tanh-glorot",
        ("saturated-activation", *START),
    ),
    Program(
        "mlp-zero-init",
        partial(_digits, initialise=net.constant(0.0)),
        REF,
        ("symmetric-weights", "zero-gradient", *START),
    ),
    Program(
        "mlp-constant-init",
        partial(_digits, activation=nn.Tanh, initialise=net.constant(0.05)),
        "mlp-tanh-glorot",
        ("symmetric-weights", *START),
    ),
    Program(
        "mlp-softmax-twice",
        partial(_digits, fit={"loss": _twice_softmax, "optimizer": sgd(0.02)}),
        "mlp-sgd-momentum",
        ("output-mismatch",),
        ("12",),
    ),
    Program("mlp-other-models-optimizer", _other_models_optimizer, REF, ("not-optimized",)),
    Program(
        "mlp-weight-decay-5",
        partial(_digits, fit={"optimizer": adamw(1e-2, weight_decay=20.0)}),
        "mlp-adamw-decay",
        ("excessive-weight-decay",),
    ),
    Program(
        "mlp-sgd-decay",
        partial(_digits, fit={"optimizer": sgd(0.05, momentum=0.9, weight_decay=0.2)}),
        "mlp-sgd-momentum",
        ("excessive-weight-decay",),
    ),
    Program(
        "mlp-over-clipped",
        partial(_digits, fit={"optimizer": sgd(0.1), "clip": 1e-3}),
        "mlp-clipped",
        ("over-clipping",),
    ),
    Program(
        "mlp-never-zeroed",
        partial(_digits, fit={"optimizer": sgd(0.1), "zero_gradients": False}),
        "mlp-sgd-momentum",
        ("gradient-not-zeroed",),
    ),
    Program("mlp-detached", partial(_detached, True), "mlp-attached", ("missing-gradient",), ("0", "2")),
    Program("mlp-root-of-negative", partial(_root, False), "mlp-safe-root", ("non-finite",), ("3",)),
    Program(
        "mlp-raw-input-1000", partial(_raw, 1000.0), "mlp-standard-input", ("unscaled-input",), ("0", "1")
    ),
    Program(
        "mlp-epsilon-1",
        partial(_digits, fit={"optimizer": adam(1e-4, eps=1.0)}),
        REF,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
    Program(
        "mlp-layernorm-of-one",
        partial(_bottleneck, nn.GroupNorm(2, 2)),
        "mlp-bottleneck-plain",
        ("degenerate-normalization",),
        ("5",),
    ),
    Program(
        "mlp-bfloat16-stuck",
        partial(_bfloat16, 5e-4),
        "mlp-bfloat16-weights",
        ("gradient-underflow", "learning-rate-too-low"),
    ),
    Program("mlp-half-underflow", partial(_half, 2e-6), "mlp-half-scaled", ("gradient-underflow",)),
)
