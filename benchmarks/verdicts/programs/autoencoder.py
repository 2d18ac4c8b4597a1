"""Autoencoders of the digits (tuning): plain, convolutional, denoising, variational."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, regress, sgd

SIZES = (64, 48, 16, 48, 64)


def _plain(
    fit: dict[str, Any] | None = None, sizes: tuple[int, ...] = SIZES, scale: float = 1.0, **network: Any
) -> Setup:
    inputs = scale * digits()[0]
    return regress(
        net.mlp(sizes, **network), (inputs, inputs), **{"optimizer": adam(3e-3), "steps": 300, **(fit or {})}
    )


def _two_parts(trained: str = "both", detach: bool = False, norm: nn.Module | None = None) -> Setup:
    """Encode to 6 numbers and decode; `trained` "decoder" gives only that to the optimizer."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = net.mlp((64, 48, 6)), net.mlp((6, 48, 64))
            self.norm = norm or nn.Identity()

        def forward(self, inputs: Tensor) -> Tensor:
            code = self.norm(self.encoder(inputs))
            return self.decoder(code.detach() if detach else code)

    model = Parts()
    chosen = model if trained == "both" else model.decoder
    inputs = digits()[0]
    return regress(model, (inputs, inputs), adam(5e-3), parameters=chosen.parameters(), steps=300)


class _Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = net.mlp((64, 48, 16)), net.mlp((8, 48, 64))

    def forward(self, inputs: Tensor) -> Tensor:
        mean, logarithm = self.encoder(inputs).chunk(2, 1)
        self.divergence = 0.5 * (mean.square() + logarithm.exp() - 1 - logarithm).sum(1).mean()
        noise = torch.randn_like(mean) if self.training else 0.0
        return self.decoder(mean + noise * (0.5 * logarithm).exp())


def _variational(lr: float = 3e-3, weight: float = 0.003) -> Setup:
    model, inputs = _Variational(), digits()[0]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets) + weight * model.divergence

    return regress(model, (inputs, inputs), adam(lr), loss, steps=300)


def _convolution(
    fit: dict[str, Any] | None = None, dead: bool = False, output: nn.Module | None = None
) -> Setup:
    encoder = [nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1)]
    decoder = [nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, stride=2)]
    last = [output] if output else []
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *encoder, nn.ReLU(), *decoder, *last, nn.Flatten())
    if dead:
        nn.init.constant_(model[3].bias, -40.0)
    inputs = digits()[0]
    return regress(model, (inputs, inputs), **{"optimizer": adam(1e-2), "steps": 250, **(fit or {})})


def _denoising() -> Setup:
    clean = digits()[0]
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))
    return regress(net.mlp(SIZES), (noisy, clean), adam(3e-3), steps=300)


def _tied() -> Setup:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(64, 16)
            self.bias = nn.Parameter(torch.zeros(64))

        def forward(self, inputs: Tensor) -> Tensor:
            return F.linear(self.code(inputs), self.code.weight.T, self.bias)

    inputs = digits()[0]
    return regress(Tied(), (inputs, inputs), adam(5e-3), steps=300)


def _bytes(scaled: bool) -> Setup:
    """Compare pixels of 0 … 255 with a sigmoid's output."""
    inputs = (digits()[0] - digits()[0].min()) / (digits()[0].max() - digits()[0].min())
    inputs = inputs if scaled else 255 * inputs
    return regress(net.mlp(SIZES, output=nn.Sigmoid()), (inputs, inputs), adam(5e-3), steps=300)


def _logarithm(floor: float) -> Setup:
    """Take the logarithm of non-negative pixels, many of which are 0."""
    pixels = digits()[0] - digits()[0].min()
    log = net.Apply(lambda x: (x + floor).log())
    model = nn.Sequential(log, *net.mlp(SIZES, nn.Tanh, net.glorot))
    return regress(model, (pixels, pixels), adam(5e-3), steps=300)


REF, PARTS, CONV = "autoencoder-plain", "autoencoder-parts", "autoencoder-convolution"
HIGH, LOW = ("learning-rate-too-high", "loss-divergence"), ("learning-rate-too-low",)
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
PROGRAMS = (
    Program(REF, _plain, target=0.55),
    Program("autoencoder-tanh", partial(_plain, activation=nn.Tanh, initialise=net.glorot), REF),
    Program("autoencoder-linear", partial(_plain, activation=nn.Identity, initialise=net.glorot), REF),
    Program("autoencoder-gelu", partial(_plain, activation=nn.GELU), REF),
    Program("autoencoder-batchnorm", partial(_plain, {"optimizer": adam(5e-3)}, norm=nn.BatchNorm1d), REF),
    Program(
        "autoencoder-momentum",
        partial(_plain, {"optimizer": sgd(0.2, momentum=0.9)}, activation=nn.Tanh, initialise=net.glorot),
        target=0.5,
    ),
    Program("autoencoder-tied", _tied, target=0.7),
    Program("autoencoder-variational", _variational, target=0.4),
    Program("autoencoder-denoising", _denoising, target=0.5),
    Program(CONV, _convolution, target=0.75),
    Program(PARTS, _two_parts, target=0.5),
    Program("autoencoder-log-safely", partial(_logarithm, 0.1), target=0.6),
    Program("autoencoder-unit-pixels", partial(_bytes, True), target=0.6),
    Program("autoencoder-lr-3", partial(_plain, {"optimizer": adam(3.0)}), REF, HIGH),
    Program("autoencoder-sgd-lr-100", partial(_plain, {"optimizer": sgd(100.0)}), REF, HIGH),
    Program("autoencoder-lr-1e-6", partial(_plain, {"optimizer": adam(1e-6)}), REF, LOW),
    Program("autoencoder-variational-lr-1e-6", partial(_variational, 1e-6), "autoencoder-variational", LOW),
    Program(
        "autoencoder-sigmoid-8",
        partial(_plain, sizes=(64, *[32] * 8, 64), activation=nn.Sigmoid, initialise=None),
        REF,
        VANISHED,
    ),
    Program(
        "autoencoder-default-20", partial(_plain, sizes=(64, *[32] * 20, 64), initialise=None), REF, VANISHED
    ),
    Program(
        "autoencoder-sigmoid-output",
        partial(_plain, output=nn.Sigmoid()),
        REF,
        ("output-mismatch",),
        ("6", "7"),
    ),
    Program(
        "autoencoder-relu-output",
        partial(_convolution, output=nn.ReLU()),
        CONV,
        ("output-mismatch", "dead-units"),
        ("7", "8"),
    ),
    Program(
        "autoencoder-bytes",
        partial(_bytes, False),
        "autoencoder-unit-pixels",
        ("output-mismatch", "unscaled-input"),
        ("6", "7", "0"),
    ),
    Program(
        "autoencoder-dead-code",
        partial(_convolution, dead=True),
        CONV,
        ("dead-units", "poor-initialization"),
        ("3", "4"),
    ),
    Program(
        "autoencoder-detached", partial(_two_parts, detach=True), PARTS, ("missing-gradient",), ("encoder.*",)
    ),
    Program(
        "autoencoder-encoder-not-optimized",
        partial(_two_parts, "decoder"),
        PARTS,
        ("not-optimized",),
        ("encoder.*",),
    ),
    Program(
        "autoencoder-norm-of-one",
        partial(_two_parts, norm=nn.GroupNorm(6, 6)),
        PARTS,
        ("degenerate-normalization",),
        ("norm",),
    ),
    Program(
        "autoencoder-log-of-zero", partial(_logarithm, 0.0), "autoencoder-log-safely", ("non-finite",), ("0",)
    ),
    Program(
        "autoencoder-decay",
        partial(_plain, {"optimizer": adamw(1e-2, weight_decay=20.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
    Program(
        "autoencoder-over-clipped",
        partial(
            _plain,
            {"optimizer": sgd(0.2, momentum=0.9), "clip": 1e-4},
            activation=nn.Tanh,
            initialise=net.glorot,
        ),
        "autoencoder-momentum",
        ("over-clipping",),
    ),
    Program(
        "autoencoder-zero-init",
        partial(_plain, initialise=net.constant(0.0)),
        REF,
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
    ),
    Program(
        "autoencoder-epsilon-10",
        partial(_plain, {"optimizer": adam(1e-3, eps=10.0)}),
        REF,
        ("epsilon-floor", *LOW),
    ),
)
