"""Published faulty programs on circles and blobs (tuning), ported from their described configurations.

The Keras originals train for hundreds of epochs; here the steps are fewer and, where the learning rate is not
the fault, it is higher, so that the repaired twin still succeeds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import blobs, circles
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify

HE, SMALL = net.he_uniform, net.uniform(0.05)
BCE = F.binary_cross_entropy_with_logits


class _Exp(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.exp()


def _circle(depth: int, width: int = 5, fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    options = {"optimizer": adam(1e-2), "steps": 400, "batch_size": 128, "loss": BCE, **(fit or {})}
    return classify(net.mlp((2, *[width] * depth, 1), **network), circles(), **options)


def _blob(depth: int, width: int = 5, **network: Any) -> Setup:
    model = net.mlp((2, *[width] * depth, 3), **network)
    return classify(model, blobs(), adam(1e-2), steps=300, batch_size=256)


CIRCLE, BLOB = "published-06-tanh-5", "published-05-blob-tanh"
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
DEAD = ("dead-units", *VANISHED)
EXPLODED = ("non-finite", "exploding-signal", "exploding-gradient", "poor-initialization")
HIGH, LOW = ("learning-rate-too-high",), ("learning-rate-too-low",)
PROGRAMS = (
    Program(CIRCLE, partial(_circle, 5, activation=nn.Tanh, initialise=HE), target=0.8),
    Program(
        "published-07-tanh-17",
        partial(_circle, 17, fit={"optimizer": adam(3e-3), "steps": 600}, activation=nn.Tanh, initialise=HE),
        CIRCLE,
    ),
    Program(BLOB, partial(_blob, 4, activation=nn.Tanh, initialise=HE), target=0.8),
    Program(
        "published-01-sigmoid-13",
        partial(_circle, 13, activation=nn.Sigmoid, initialise=HE),
        CIRCLE,
        VANISHED,
    ),
    Program(
        "published-01-batchnorm",
        partial(
            _circle,
            8,
            activation=nn.Sigmoid,
            initialise=HE,
            norm=nn.BatchNorm1d,
            fit={"steps": 500, "optimizer": adam(2e-2)},
        ),
        CIRCLE,
    ),
    Program("published-02-relu-9-small", partial(_circle, 9, initialise=SMALL), CIRCLE, DEAD),
    Program("published-03-relu-17", partial(_circle, 17, initialise=HE), CIRCLE, DEAD),
    Program("published-03-relu-17-wide", partial(_circle, 17, 16, initialise=HE), CIRCLE),
    Program("published-04-exp-9", partial(_circle, 9, activation=_Exp, initialise=HE), CIRCLE, EXPLODED),
    Program(
        "published-05-blob-sigmoid", partial(_blob, 11, activation=nn.Sigmoid, initialise=HE), BLOB, VANISHED
    ),
    Program("published-05-blob-relu-small", partial(_blob, 9, initialise=SMALL), BLOB, DEAD),
    Program("published-05-blob-exp", partial(_blob, 9, activation=_Exp, initialise=HE), BLOB, EXPLODED),
    Program(
        "published-08-relu-30",
        partial(_circle, 30, 32, {"steps": 200}, initialise=None),
        "published-08-he",
        VANISHED,
    ),
    Program("published-08-he", partial(_circle, 30, 32, {"optimizer": adam(1e-3), "steps": 300}), CIRCLE),
    Program(
        "published-09-tanh-30",
        partial(
            _circle, 30, 32, {"optimizer": adam(1e-3), "steps": 200}, activation=nn.Tanh, initialise=None
        ),
        CIRCLE,
        VANISHED,
    ),
    Program(
        "published-10-lr-1",
        partial(_circle, 8, fit={"optimizer": adam(1.0)}, activation=nn.Tanh, initialise=HE),
        CIRCLE,
        HIGH,
    ),
    Program(
        "published-10-lr-1e-5",
        partial(_circle, 8, fit={"optimizer": adam(1e-5)}, activation=nn.Tanh, initialise=HE),
        CIRCLE,
        LOW,
    ),
)
