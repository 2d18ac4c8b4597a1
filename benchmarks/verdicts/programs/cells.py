"""Recurrent depth (held out): hand-written cells, linear recurrences, weights shared over depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, sgd

WIDTH = 32


@cache
def _sums(length: int, unit: float = 1.0) -> Pair:
    """Return series (800, length, 2) of numbers and marks, and the sum (800, 1) of the two marked numbers.

    One mark is in the first half, one in the second (Hochreiter 1997); unit: of the numbers that are read.
    """
    random = torch.Generator().manual_seed(121)
    numbers, marks = torch.rand(800, length, generator=random) * 2 - 1, torch.zeros(800, length)
    places = torch.stack([torch.randint(0, length // 2, (800,), generator=random) for _ in range(2)], 1)
    marks.scatter_(1, places + torch.tensor([0, length // 2]), 1.0)
    targets = (numbers * marks).sum(1, keepdim=True)
    return torch.stack([unit * numbers, marks], 2), targets / targets.std()


class _Elman(nn.Module):
    """The plain cell: an activation of the input and the last state."""

    def __init__(self, activation: nn.Module, initialise: net.Initialise):
        super().__init__()
        self.enter, self.back, self.activation = (
            nn.Linear(2, WIDTH),
            nn.Linear(WIDTH, WIDTH, bias=False),
            activation,
        )
        initialise(self.back.weight)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        return self.activation(self.enter(inputs) + self.back(state))


class _Minimal(nn.Module):
    """A cell with one gate (Zhou 2016); opening: bias of the gate."""

    def __init__(self, opening: float):
        super().__init__()
        self.enter, self.back, self.gate = (
            nn.Linear(2, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH + 2, WIDTH),
        )
        self.open = nn.Sigmoid()
        nn.init.constant_(self.gate.bias, opening)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        share = self.open(self.gate(torch.cat([inputs, state], 1)))
        return (1 - share) * state + share * (self.enter(inputs) + self.back(share * state)).tanh()


class _Diagonal(nn.Module):
    """Each unit keeps a share of its own of its state (Orvieto 2023); low, high: the shares."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.keep = nn.Parameter(torch.linspace(low, high, WIDTH))

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        return self.keep * state + self.enter(inputs)


class _Flowing(nn.Module):
    """A step of Euler's method through dx/dt = f(x, input) (Chen 2018)."""

    def __init__(self, step: float):
        super().__init__()
        self.field, self.step = net.mlp((WIDTH + 2, 64, WIDTH), nn.SiLU, net.lecun), step

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        return state + self.step * self.field(torch.cat([inputs, state], 1))


class _Reader(nn.Module):
    """Run a cell over time and read its last state."""

    def __init__(self, cell: nn.Module, head: nn.Module):
        super().__init__()
        self.cell, self.head = cell, head

    def forward(self, series: Tensor) -> Tensor:
        state = torch.zeros(len(series), WIDTH)
        for inputs in series.unbind(1):
            state = self.cell(inputs, state)
        return self.head(state)


def _add(
    cell: Callable[[], nn.Module],
    fit: dict[str, Any] | None = None,
    length: int = 10,
    unit: float = 1.0,
    head: Callable[[], nn.Module] = lambda: net.mlp((WIDTH, WIDTH, 1)),
) -> Setup:
    """Add the marked numbers."""
    options = {"optimizer": adam(5e-3), "steps": 250, **(fit or {})}
    return regress(_Reader(cell(), head()), _sums(length, unit), **options)


class _Repeated(nn.Module):
    """Apply one layer again and again; fed: the input is added each time (Bai 2019)."""

    def __init__(
        self,
        times: int,
        fed: bool,
        initialise: net.Initialise,
        activation: Callable[[], nn.Module] = nn.Tanh,
        norm: bool = False,
    ):
        super().__init__()
        self.enter, self.layer, self.head = (
            nn.Linear(64, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 10),
        )
        self.activation, self.norm = activation(), nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.times, self.fed = times, fed
        initialise(self.layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        entered = self.enter(inputs)
        state = entered
        for _ in range(self.times):
            state = self.activation(self.norm(self.layer(state) + (entered if self.fed else 0)))
        return self.head(state)


def _repeat(
    times: int, fed: bool, initialise: net.Initialise, fit: dict[str, Any] | None = None, **layer: Any
) -> Setup:
    """Classify digits by a layer that is repeated."""
    options = {"optimizer": adam(3e-3), "steps": 250, **(fit or {})}
    return classify(_Repeated(times, fed, initialise, **layer), digits(), **options)


def _elman(
    activation: Callable[[], nn.Module] = nn.Tanh, initialise: net.Initialise = net.orthogonal
) -> nn.Module:
    return _Elman(activation(), initialise)


def _identity(weight: Tensor) -> None:
    nn.init.eye_(weight)


def _quiet_head() -> nn.Module:
    """Start the read-out at zero, all of it."""
    return net.initialised(net.mlp((WIDTH, WIDTH, 1)), net.constant(0.0))


class _LogHead(nn.Module):
    """Read the state through a logarithm of its size; `floor` keeps the logarithm and its slope finite."""

    def __init__(self, floor: float):
        super().__init__()
        self.floor, self.out = floor, nn.Linear(2 * WIDTH, 1)

    def forward(self, state: Tensor) -> Tensor:
        return self.out(torch.cat([state, (state.abs() + self.floor).log()], 1))


class _Closing(nn.Module):
    """A read-out behind a ReLU that its bias keeps shut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        nn.init.constant_(self.first.bias, -60.0)

    def forward(self, state: Tensor) -> Tensor:
        return self.last(self.act(self.first(state)))


REF, MINIMAL, DIAGONAL, EQUAL, CHAIN = (
    f"cells-{name}" for name in ("elman", "minimal", "diagonal", "equilibrium", "repeated-5")
)
RELU_IDENTITY = partial(_elman, nn.ReLU, _identity)
PROGRAMS = (
    Program("cells-elman", partial(_add, _elman), target=0.8),
    Program("cells-minimal", partial(_add, partial(_Minimal, 0.0), {"steps": 400}), target=0.8),
    Program("cells-diagonal", partial(_add, partial(_Diagonal, 0.7, 1.0)), target=0.8),
    Program("cells-euler", partial(_add, partial(_Flowing, 0.3), {"steps": 400}), target=0.8),
    Program("cells-relu-identity", partial(_add, RELU_IDENTITY), target=0.8),
    Program(
        "cells-clipped-momentum",
        partial(_add, _elman, {"optimizer": sgd(0.05, momentum=0.9), "clip": 1.0, "steps": 300}),
        REF,
    ),
    Program("cells-equilibrium", partial(_repeat, 12, True, net.scaled(net.orthogonal, 0.7)), target=0.97),
    Program("cells-repeated-5", partial(_repeat, 5, False, net.orthogonal), target=0.97),
    Program("cells-repeated-20-fed", partial(_repeat, 20, True, net.scaled(net.orthogonal, 0.3)), EQUAL),
    Program("cells-repeated-normed", partial(_repeat, 8, True, net.lecun, norm=True), EQUAL),
    Program("cells-log-head", partial(_add, _elman, head=partial(_LogHead, 0.1)), target=0.8),
    Program(
        "cells-contracting-24",
        partial(_add, partial(_elman, nn.Tanh, net.scaled(net.orthogonal, 0.03)), length=24),
        "cells-diagonal-24",
        ("vanishing-gradient", "poor-initialization"),
    ),
    Program(
        "cells-diagonal-24", partial(_add, partial(_Diagonal, 0.8, 1.0), {"steps": 300}, 24), target=0.75
    ),
    Program(
        "cells-growing-diagonal",
        partial(_add, partial(_Diagonal, 1.6, 1.9), {"steps": 300}, 24),
        "cells-diagonal-24",
        ("exploding-signal", "exploding-gradient", "non-finite", "poor-initialization"),
        ("cell", "cell.*"),
    ),
    Program(
        "cells-saturated",
        partial(_add, partial(_elman, nn.Tanh, net.scaled(net.orthogonal, 40.0))),
        REF,
        ("saturated-activation", "exploding-gradient", "poor-initialization"),
        ("cell", "cell.*"),
    ),
    Program(
        "cells-gate-never-opens",
        partial(_add, partial(_Minimal, -30.0), {"steps": 400}),
        MINIMAL,
        ("saturated-activation", "vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("cell", "cell.*"),
    ),
    Program(
        "cells-unscaled-numbers",
        partial(_add, _elman, {"optimizer": sgd(0.05, momentum=0.9), "steps": 300}, unit=1e5),
        "cells-clipped-momentum",
        ("unscaled-input", "saturated-activation"),
        ("cell", "cell.*"),
    ),
    Program(
        "cells-read-out-of-zero",
        partial(_add, _elman, head=_quiet_head),
        REF,
        ("zero-gradient", "symmetric-weights", "poor-initialization"),
        ("head.*",),
    ),
    Program(
        "cells-log-of-zero",
        partial(_add, RELU_IDENTITY, head=partial(_LogHead, 0.0)),
        "cells-log-head",
        ("non-finite",),
        ("head", "head.*"),
    ),
    Program(
        "cells-shut-read-out",
        partial(_add, _elman, head=_Closing),
        REF,
        ("dead-units", "poor-initialization"),
        ("head.*",),
    ),
    Program(
        "cells-repeated-sigmoid-20",
        partial(_repeat, 20, False, net.glorot, activation=nn.Sigmoid),
        CHAIN,
        ("vanishing-gradient", "vanishing-signal", "rank-collapse", "poor-initialization"),
    ),
    Program(
        "cells-clipped-to-nothing",
        partial(_add, _elman, {"optimizer": sgd(0.05, momentum=0.9), "clip": 1e-4, "steps": 200}),
        "cells-clipped-momentum",
        ("over-clipping",),
    ),
    Program(
        "cells-clip-that-never-binds",
        partial(
            _add,
            partial(_elman, nn.ReLU, net.scaled(net.orthogonal, 3.0)),
            {"clip": 1e10},
            12,
        ),
        "cells-relu-identity",
        (
            "ineffective-clipping",
            "exploding-gradient",
            "exploding-signal",
            "non-finite",
            "poor-initialization",
        ),
        ("cell", "cell.*", "cell.back"),
    ),
    Program(
        "cells-adam-lr-1",
        partial(_add, _elman, {"optimizer": adam(1.0)}),
        REF,
        ("learning-rate-too-high",),
    ),
)
