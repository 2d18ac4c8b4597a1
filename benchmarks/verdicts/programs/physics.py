"""Physics-informed regression (tuning): equations as losses, operators, flows, coordinate networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, regress, sgd

Residual = Callable[[nn.Module, Tensor], Tensor]
RATE = 3.0


def _slope(values: Tensor, places: Tensor) -> Tensor:
    """Return the derivative of each value by its place, itself differentiable."""
    return torch.autograd.grad(values.sum(), places, create_graph=True)[0]


@cache
def _oscillation(unit: float = 1.0) -> Pair:
    """Return three seconds (512, 1), `unit`s each, and the solution of u' = sin(3 t) - u, u(0) = 1."""
    time = torch.linspace(0, 3, 512)[:, None]
    particular = ((RATE * time).sin() - RATE * (RATE * time).cos()) / (1 + RATE**2)
    return unit * time, particular + (1 + RATE / (1 + RATE**2)) * (-time).exp()


def _body(depth: int = 2, activation: Callable[[], nn.Module] = nn.Tanh, **network: Any) -> nn.Sequential:
    return net.mlp((1, *[32] * depth, 1), activation, **{"initialise": net.glorot, **network})


def _solve(model: nn.Module, data: Pair, residual: Residual, fit: dict[str, Any] | None = None) -> Setup:
    """Minimise the squared residual of an equation; score: explained share of the true solution."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return residual(model, batch[0].clone().requires_grad_()).square().mean()

    options = {"optimizer": adam(1e-2), "steps": 300, **(fit or {})}
    return replace(regress(model, data, **options), loss=loss)


def _ode(
    fit: dict[str, Any] | None = None,
    unit: float = 1.0,
    start: float = 1.0,
    weight: float = 1.0,
    **network: Any,
) -> Setup:
    """Solve u' = sin(3 t) - u with a penalty `start` on u(0) - 1; weight: of the whole loss."""

    def residual(model: nn.Module, time: Tensor) -> Tensor:
        values = model(time)
        equation = unit * _slope(values, time) + values - (RATE * time / unit).sin()
        initial = start**0.5 * (model(torch.zeros(1, 1)) - 1)
        return weight**0.5 * torch.cat([equation, initial.expand_as(equation)])

    return _solve(_body(**network), _oscillation(unit), residual, fit)


class _Bounded(nn.Module):
    """Vanish on both ends of [0, 1], whatever the body says: x (1 - x) body(x)."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, places: Tensor) -> Tensor:
        return 4 * places * (1 - places) * self.body(places)


def _poisson() -> Setup:
    """Solve -u'' = 9 sin(3 pi x) on [0, 1] in units of pi²; the right-hand side is scaled to order one."""
    places = torch.linspace(0, 1, 257)[:, None]
    turns = 3 * math.pi

    def residual(model: nn.Module, places: Tensor) -> Tensor:
        curvature = _slope(_slope(model(places), places), places)
        return curvature / turns**2 + (turns * places).sin()

    fit = {"optimizer": adam(5e-3), "steps": 400}
    return _solve(_Bounded(_body()), (places, (turns * places).sin()), residual, fit)


def _radial(safety: float) -> Setup:
    """Solve x · grad u = -2 r² u, u(1) = 1/e, on a grid with the origin, where the radius' slope is 0 / 0."""
    line = torch.linspace(-1.5, 1.5, 17)
    places = torch.cartesian_prod(line, line)
    radius = net.Apply(lambda x: (x.square().sum(1, keepdim=True) + safety).sqrt())

    def residual(model: nn.Module, places: Tensor) -> Tensor:
        values = model(places)
        squared = places.square().sum(1, keepdim=True)
        equation = (places * _slope(values, places)).sum(1, keepdim=True) + 2 * squared * values
        edge = model(torch.tensor([[1.0, 0.0]])) - math.exp(-1)
        return torch.cat([equation, 3 * edge.expand_as(equation)])

    truth = (-places.square().sum(1, keepdim=True)).exp()
    return _solve(nn.Sequential(radius, *_body()), (places, truth), residual)


class _Decay(nn.Module):
    """A curve and the unknown constant of its law, a parameter beside the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.constant = _body(), nn.Parameter(torch.zeros(()))

    def forward(self, time: Tensor) -> Tensor:
        return self.body(time)


def _inverse() -> Setup:
    """Find k of u' = -k u, in a parameter group of its own, from noisy values; score: 1 - |k / 2 - 1|."""
    model, time = _Decay(), torch.linspace(0, 2, 256)[:, None]
    seen = (-2 * time).exp() + 0.05 * torch.randn(time.shape, generator=torch.Generator().manual_seed(1))

    def loss(model: Any, batch: Batch) -> Tensor:
        time = batch[0].clone().requires_grad_()
        values = model(time)
        law = _slope(values, time) + model.constant * values
        return F.mse_loss(values, batch[1]) + 0.1 * law.square().mean()

    groups = [{"params": model.body.parameters()}, {"params": [model.constant], "lr": 3e-2}]
    setup = regress(model, (time, seen), adam(1e-2), parameters=groups, steps=350)  # type: ignore[arg-type]
    return replace(setup, loss=loss, score=lambda model: 1 - abs(float(model.constant) / 2 - 1))


class _Hamiltonian(nn.Module):
    """Predict the motion (q', p') as the turned gradient of a scalar network (Greydanus 2019)."""

    def __init__(self, **network: Any):
        super().__init__()
        self.energy = net.mlp((2, 32, 32, 1), nn.Tanh, **{"initialise": net.glorot, **network})

    def forward(self, states: Tensor) -> Tensor:
        with torch.enable_grad():
            states = states.detach().clone().requires_grad_()
            slope = _slope(self.energy(states), states)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


def _pendulum(fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    states = 2 * torch.randn(512, 2, generator=torch.Generator().manual_seed(2))
    motion = torch.stack([states[:, 1], -states[:, 0].sin()], 1)
    options = {"optimizer": adam(1e-2), **(fit or {})}
    return regress(_Hamiltonian(**network), (states, motion), **options)


class _Flow(nn.Module):
    """Follow a learned field by Euler steps, all through one shared network (Chen 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.field = net.mlp((2, 24, 2), nn.Tanh, net.glorot)

    def forward(self, states: Tensor) -> Tensor:
        for _ in range(10):
            states = states + 0.1 * self.field(states)
        return states


def _flow(fit: dict[str, Any] | None = None) -> Setup:
    """Predict where a turning, damped motion ends; targets have unit scale."""
    start = torch.randn(512, 2, generator=torch.Generator().manual_seed(3))
    angle = 1.5 + 0.5 * start.norm(dim=1)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    end = (turn @ start[..., None])[..., 0]
    options = {"optimizer": adam(1e-2), "steps": 250, **(fit or {})}
    return regress(_Flow(), (start, end), **options)


class _Operator(nn.Module):
    """Map a function, known at 16 sensors, and a place to a value: a product of two bodies (Lu 2021)."""

    def __init__(self, flat: bool = False):
        super().__init__()
        self.branch, self.trunk = (
            net.mlp((16, 32, 16), nn.Tanh, net.glorot),
            net.mlp((1, 32, 16), nn.Tanh, net.glorot),
        )
        self.flat = flat

    def forward(self, rows: Tensor) -> Tensor:
        return (self.branch(rows[:, :16]) * self.trunk(rows[:, 16:])).sum(1, keepdim=not self.flat)


def _operator(fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    """Learn integration: the function is a random sum of sines, the target its integral up to a place."""
    random = torch.Generator().manual_seed(4)
    weights = torch.randn(1024, 1, 4, generator=random)
    turns = math.pi * torch.arange(1, 5)
    sensors, places = torch.linspace(0, 1, 16)[None, :, None], torch.rand(1024, 1, generator=random)
    values = (weights * (turns * sensors).sin()).sum(2)
    integral = (weights[:, 0] * (1 - (turns * places).cos()) / turns).sum(1, keepdim=True)
    data = torch.cat([values, places], 1), integral / integral.std()
    options = {"optimizer": adam(1e-2), "steps": 400, **(fit or {})}
    return regress(_Operator(**network), data, **options)


def _ripples(*layers: nn.Module, fit: dict[str, Any] | None = None) -> Setup:
    """Fit a fast curve of one coordinate."""
    places = torch.linspace(-1, 1, 400)[:, None]
    targets = 1.2 * (14 * places).sin() + 0.5 * (25 * places).cos()
    return regress(nn.Sequential(*layers), (places, targets), **{"optimizer": adam(1e-2), **(fit or {})})


def _sine_network() -> Setup:
    """A network of sines (Sitzmann 2020), whose first layer is fast."""
    first, second, last = nn.Linear(1, 48), nn.Linear(48, 48), nn.Linear(48, 1)
    nn.init.uniform_(first.weight, -20, 20)
    nn.init.uniform_(second.weight, -((6 / 48) ** 0.5), (6 / 48) ** 0.5)
    return _ripples(
        first, net.Apply(torch.sin), second, net.Apply(torch.sin), last, fit={"optimizer": adam(5e-3)}
    )


REF, FLOW, OPERATOR = "physics-ode", "physics-flow", "physics-operator"
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
PROGRAMS = (
    Program("physics-ode", _ode, target=0.98),
    Program("physics-poisson", _poisson, target=0.95),
    Program("physics-radial-safely", partial(_radial, 1e-6), target=0.95),
    Program("physics-inverse", _inverse, target=0.95),
    Program("physics-hamiltonian", _pendulum, target=0.95),
    Program("physics-flow", _flow, target=0.8),
    Program("physics-operator", _operator, target=0.9),
    Program("physics-sines", _sine_network, target=0.95),
    Program(
        "physics-milliseconds",
        partial(_ode, unit=1000.0),
        REF,
        ("unscaled-input", "saturated-activation"),
        ("0", "1"),
    ),
    Program("physics-radial", partial(_radial, 0.0), "physics-radial-safely", ("non-finite",), ("0",)),
    Program(
        "physics-heavy-start",
        partial(_ode, {"optimizer": sgd(0.01)}, start=3e4),
        REF,
        ("learning-rate-too-high", "exploding-gradient", "loss-divergence"),
    ),
    Program(
        "physics-quadrature-weight",
        partial(_ode, weight=1e-12),
        REF,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
    Program(
        "physics-equal-weights",
        partial(_pendulum, initialise=net.constant(0.1)),
        "physics-hamiltonian",
        ("symmetric-weights", "poor-initialization"),
    ),
    Program("physics-ode-quiet-16", partial(_ode, depth=16, initialise=net.normal(0.02)), REF, VANISHED),
    Program(
        "physics-operator-flat",
        partial(_operator, flat=True),
        OPERATOR,
        ("output-mismatch",),
    ),
    Program(
        "physics-flow-never-zeroed",
        partial(_flow, fit={"optimizer": sgd(0.1), "zero_gradients": False}),
        FLOW,
        ("gradient-not-zeroed",),
    ),
)
