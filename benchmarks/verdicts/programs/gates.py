"""Gates (held out): highways, gated units, squeeze and excitation, modulation, weights made by a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits, friedman, images
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, sgd

WIDTH = 32


class _Highway(nn.Module):
    """Mix a transformed input with the input itself by a gate (Srivastava 2015); without `carry`, drop it."""

    def __init__(self, opening: float, carry: bool, activation: Callable[[Tensor], Tensor] = torch.relu):
        super().__init__()
        self.change, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.open, self.carry, self.activation = nn.Sigmoid(), carry, activation
        nn.init.constant_(self.gate.bias, opening)

    def forward(self, inputs: Tensor) -> Tensor:
        share = self.open(self.gate(inputs))
        kept = share * self.activation(self.change(inputs))
        return kept + (1 - share) * inputs if self.carry else kept


class _GLU(nn.Module):
    """Multiply one projection by another, through a function (Dauphin 2017; Shazeer 2020)."""

    def __init__(self, fan_in: int, function: Callable[[Tensor], Tensor], norm: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(fan_in) if norm else nn.Identity()
        self.value, self.gate = nn.Linear(fan_in, WIDTH), nn.Linear(fan_in, WIDTH)
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = self.norm(inputs)
        return self.value(inputs) * self.function(self.gate(inputs))


def _digits(
    layers: Callable[[], list[nn.Module]],
    fit: dict[str, Any] | None = None,
    initialise: net.Initialise | None = None,
) -> Setup:
    """Classify digits by some layers of 32 features behind an entrance."""
    model = nn.Sequential()
    model.enter, model.layers, model.head = (
        nn.Linear(64, WIDTH),
        nn.Sequential(*layers()),
        nn.Linear(WIDTH, 10),
    )
    if initialise:
        net.initialised(model.layers, initialise)
    return classify(model, digits(), **{"optimizer": adam(3e-3), "steps": 250, **(fit or {})})


def _highway(
    count: int, opening: float = -2.0, carry: bool = True, fit: dict[str, Any] | None = None
) -> Setup:
    return _digits(lambda: [_Highway(opening, carry) for _ in range(count)], fit)


def _units(
    count: int,
    function: Callable[[Tensor], Tensor] = torch.sigmoid,
    norm: bool = False,
    fit: dict[str, Any] | None = None,
    initialise: net.Initialise | None = None,
) -> Setup:
    return _digits(lambda: [_GLU(WIDTH, function, norm) for _ in range(count)], fit, initialise)


def _itself(inputs: Tensor) -> Tensor:
    return inputs


class _Excite(nn.Module):
    """Weigh channels by what their means say (Hu 2018); level: bias of the gate."""

    def __init__(self, channels: int, level: float):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)
        self.open = nn.Sigmoid()
        nn.init.constant_(self.excite.bias, level)

    def forward(self, inputs: Tensor) -> Tensor:
        weights = self.open(self.excite(self.squeeze(inputs.mean((2, 3))).relu()))
        return inputs * weights[:, :, None, None]


def _excited(level: float = 0.0, fit: dict[str, Any] | None = None) -> Setup:
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), _Excite(12, level), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(12, 16, 3), nn.ReLU(), _Excite(16, level), nn.Flatten(), nn.Linear(64, 10)]
    return classify(
        nn.Sequential(*layers), images(), **{"optimizer": adam(5e-3), "steps": 200, **(fit or {})}
    )


class _Modulated(nn.Module):
    """Scale and shift features of the left half of an image by what the right half says (Perez 2018)."""

    def __init__(self, loudness: float):
        super().__init__()
        self.left, self.right = nn.Linear(32, WIDTH), net.mlp((32, 24, 2 * WIDTH))
        self.head = net.mlp((WIDTH, WIDTH, 10))
        with torch.no_grad():
            self.right[-1].weight.mul_(loudness)

    def forward(self, inputs: Tensor) -> Tensor:
        scale, shift = self.right(inputs[:, 32:]).chunk(2, 1)
        return self.head((self.left(inputs[:, :32]) * (1 + scale) + shift).relu())


def _modulated(loudness: float, fit: dict[str, Any] | None = None) -> Setup:
    return classify(_Modulated(loudness), digits(), **{"optimizer": adam(3e-3), "steps": 250, **(fit or {})})


class _Hyper(nn.Module):
    """Make the weights of a small network out of half of the features, apply it to the others (Ha 2017).

    gain: multiplies the last layer of the maker; blank: that layer has no bias to start the weights from.
    """

    def __init__(self, gain: float, blank: bool, hidden: int = 16):
        super().__init__()
        self.maker = net.mlp((5, 24, 5 * hidden + 2 * hidden + 1), nn.Tanh, net.glorot)
        self.hidden = hidden
        with torch.no_grad():
            self.maker[-1].weight.mul_(gain)
            if not blank:
                self.maker[-1].bias.normal_(0, 0.4)

    def forward(self, inputs: Tensor) -> Tensor:
        sizes = (5 * self.hidden, self.hidden, self.hidden, 1)
        first, bias, second, level = self.maker(inputs[:, 5:]).split(sizes, 1)
        inner = (torch.einsum("bi,bhi->bh", inputs[:, :5], first.view(-1, self.hidden, 5)) + bias).relu()
        return (inner * second).sum(1, keepdim=True) + level


def _hyper(gain: float = 0.1, blank: bool = False, fit: dict[str, Any] | None = None) -> Setup:
    return regress(_Hyper(gain, blank), friedman(), **{"optimizer": adam(5e-3), "steps": 300, **(fit or {})})


class _Maxout(nn.Module):
    """Take the largest of three projections (Goodfellow 2013)."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.three(inputs).unflatten(1, (WIDTH, 3)).amax(2)


class _Chosen(nn.Module):
    """Send each sample to the experts that a gate prefers; hard: to one, and the gate learns nothing."""

    def __init__(self, hard: bool):
        super().__init__()
        self.gate, self.experts = nn.Linear(64, 4), nn.ModuleList(net.mlp((64, 16, 10)) for _ in range(4))
        self.hard = hard

    def forward(self, inputs: Tensor) -> Tensor:
        weights = self.gate(inputs).softmax(1)
        if self.hard:
            weights = F.one_hot(weights.argmax(1), 4).float()
        return torch.einsum("be,ebc->bc", weights, torch.stack([expert(inputs) for expert in self.experts]))


class _Powers(nn.Module):
    """Multiply powers of the inputs through logarithms (Durbin 1989); `floor` keeps them finite."""

    def __init__(self, fan_in: int, fan_out: int, floor: float):
        super().__init__()
        self.powers, self.floor = nn.Linear(fan_in, fan_out), floor
        nn.init.normal_(self.powers.weight, 0, 0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.powers((inputs.abs() + self.floor).log()).clamp(max=4).exp()


def _powers(floor: float) -> Setup:
    """Classify digits by products of their pixels' brightness, many of which are zero."""
    inputs, targets = digits()
    bright = inputs - inputs.min()
    model = nn.Sequential(_Powers(64, 32, floor), nn.BatchNorm1d(32), nn.Linear(32, 10))
    return classify(model, (bright, targets), adam(5e-3), steps=250)


REF, UNITS, HYPER, FILM = "gates-highway-4", "gates-units-4", "gates-made-weights", "gates-modulated"
MOMENTUM: dict[str, Any] = {"optimizer": sgd(0.05, momentum=0.9), "clip": 5.0, "steps": 200}
PROGRAMS = (
    Program("gates-highway-4", partial(_highway, 4), target=0.97),
    Program("gates-highway-20", partial(_highway, 20), REF),
    Program("gates-highway-nearly-closed", partial(_highway, 6, -6.0), REF),
    Program("gates-units-4", partial(_units, 4), target=0.97),
    Program("gates-swish-normed", partial(_units, 4, F.silu, True, {"steps": 400}), UNITS),
    Program("gates-units-momentum", partial(_units, 4, norm=True, fit=MOMENTUM), UNITS),
    Program("gates-products-normed", partial(_units, 3, _itself, True), UNITS),
    Program("gates-excited", _excited, target=0.95),
    Program("gates-modulated", partial(_modulated, 1.0), target=0.97),
    Program("gates-modulated-from-zero", partial(_modulated, 0.0), FILM),
    Program("gates-made-weights", _hyper, target=0.85),
    Program("gates-maxout", partial(_digits, lambda: [_Maxout(), _Maxout()]), REF),
    Program(
        "gates-one-expert",
        lambda: classify(_Chosen(True), digits(), adam(5e-3), steps=250),
        target=0.95,
    ),
    Program("gates-powers", partial(_powers, 0.1), target=0.9),
    Program(
        "gates-never-carried-closed",
        partial(_highway, 4, -12.0, False),
        REF,
        ("vanishing-signal", "vanishing-gradient", "saturated-activation", "poor-initialization"),
        ("layers.*",),
    ),
    Program(
        "gates-products-loud",
        partial(_units, 5, _itself, False, {"optimizer": sgd(0.01)}, net.normal(0.6)),
        "gates-products-normed",
        ("exploding-signal", "exploding-gradient", "non-finite", "poor-initialization"),
        ("layers.*",),
    ),
    Program(
        "gates-excitation-shut",
        partial(_excited, -14.0),
        "gates-excited",
        ("saturated-activation", "vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("2", "2.*", "6", "6.*"),
    ),
    Program(
        "gates-modulated-loudly",
        partial(_modulated, 3000.0, {"optimizer": sgd(0.02)}),
        FILM,
        ("exploding-signal", "exploding-gradient", "poor-initialization"),
        ("right.*",),
    ),
    Program(
        "gates-made-weights-of-zero",
        partial(_hyper, 0.0, True),
        HYPER,
        ("zero-gradient", "symmetric-weights", "poor-initialization", "vanishing-signal"),
        ("maker.*",),
    ),
    Program(
        "gates-made-weights-loud",
        partial(_hyper, 60.0, False, {"optimizer": sgd(0.01)}),
        HYPER,
        ("exploding-signal", "exploding-gradient", "poor-initialization"),
        ("maker.*",),
    ),
    Program(
        "gates-powers-of-zero", partial(_powers, 0.0), "gates-powers", ("non-finite",), ("0", "0.powers")
    ),
    Program(
        "gates-units-clipped-away",
        partial(_units, 4, norm=True, fit={**MOMENTUM, "clip": 1e-4}),
        "gates-units-momentum",
        ("over-clipping",),
    ),
    Program(
        "gates-products-clipped-in-vain",
        partial(
            _units, 5, _itself, False, {"optimizer": sgd(0.05), "clip": 1e9, "steps": 120}, net.normal(0.45)
        ),
        "gates-products-normed",
        (
            "ineffective-clipping",
            "exploding-gradient",
            "exploding-signal",
            "non-finite",
            "poor-initialization",
        ),
        ("layers.*",),
    ),
)
