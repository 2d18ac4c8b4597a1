"""Networks of coordinates (held out): a picture, a sound and a shape as functions, and rays through a fog."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, regress, sgd

SIDE, SAMPLES = 40, 24  # pixels of the picture's edge, samples along a ray


@cache
def _picture(levels: bool = False) -> Pair:
    """Return the coordinates of a picture's 1600 pixels and their brightness: rings, grating, disc.

    levels: brightness from 0 to 255, otherwise of unit deviation.
    """
    axis = torch.linspace(-1, 1, SIDE)
    places = torch.cartesian_prod(axis, axis)
    x, y = places.unbind(1)
    rings = (9 * (x.square() + y.square()).sqrt()).cos()
    light = rings + 0.7 * (10 * x + 4 * y).sin() + 1.5 * ((x - 0.4).square() + (y + 0.3).square() < 0.1)
    light = ((light - light.mean()) / light.std())[:, None]
    shades = 255 * (light - light.min()) / (light.max() - light.min())
    return places, shades if levels else light


@cache
def _sound() -> Pair:
    """Return the times of 1024 samples of a sound, from -1 to 1, and the samples, of unit deviation."""
    time = torch.linspace(-1, 1, 1024)[:, None]
    sound = (30 * time).sin() * (3 * time).cos() + 0.5 * (70 * time + 4 * time.square()).sin()
    return time, sound / sound.std()


@cache
def _shape(pixels: bool = False) -> Pair:
    """Return points (1024, 2) and their signed distance, of unit deviation, to two discs.

    pixels: coordinates from 0 to 800, otherwise from -1 to 1.
    """
    points = 2 * torch.rand(1024, 2, generator=torch.Generator().manual_seed(311)) - 1
    discs = torch.tensor([[-0.4, 0.3], [0.4, -0.2]])
    away = torch.cdist(points, discs).amin(1, keepdim=True) - 0.3
    return 400 * (points + 1) if pixels else points, (away - away.mean()) / away.std()


@cache
def _rays() -> Pair:
    """Return rays as the positions of their samples, (1024, 24, 2), and the light they gather, (1024, 1).

    A disc of fog shines by its distance from the middle of the scene; behind it everything is black.
    """
    random = torch.Generator().manual_seed(312)
    angle = 2 * math.pi * torch.rand(1024, 1, generator=random)
    aside = 1.6 * torch.rand(1024, 1, generator=random) - 0.8
    along = torch.linspace(-1, 1, SAMPLES)
    x = along * angle.cos() - aside * angle.sin()
    y = along * angle.sin() + aside * angle.cos()
    places = torch.stack([x, y], 2)
    density = 8.0 * ((places - torch.tensor([0.2, 0.1])).square().sum(2) < 0.2)
    return places, _gather(density, 1 + (3 * x).sin())


def _gather(density: Tensor, light: Tensor) -> Tensor:
    """Sum the light of samples, less what the samples before them swallow (Mildenhall 2020)."""
    clear = (-density * 2 / SAMPLES).exp()
    before = F.pad(clear.cumprod(1)[:, :-1], (1, 0), value=1.0)
    return ((1 - clear) * before * light).sum(1, keepdim=True)


class _Sine(nn.Module):
    """sin(frequency x)."""

    def __init__(self, frequency: float):
        super().__init__()
        self.frequency = frequency

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.frequency * inputs).sin()


def _sines(
    sizes: Sequence[int], frequency: float = 10.0, gain: float = 1.0, default: bool = False
) -> nn.Sequential:
    """Build a sine network (Sitzmann 2020): weights but the first's are divided by the frequency.

    gain: multiplies the weights between; default: leaves torch's initialisation, which isn't so divided.
    """
    model = net.mlp(sizes, partial(_Sine, frequency), initialise=None)
    linears = [module for module in model if isinstance(module, nn.Linear)]
    for depth, linear in enumerate(linears) if not default else ():
        bound = gain * math.sqrt(6 / linear.in_features) / frequency if depth else 1 / linear.in_features
        nn.init.uniform_(linear.weight, -bound, bound)
    return model


class _Fourier(nn.Module):
    """Sines and cosines of random projections of the coordinates (Tancik 2020)."""

    def __init__(self, inputs: int, features: int, scale: float):
        super().__init__()
        self.register_buffer("turns", scale * torch.randn(inputs, features))

    def forward(self, places: Tensor) -> Tensor:
        turned = places @ self.get_buffer("turns")
        return torch.cat([turned.sin(), turned.cos()], -1)


class _Grid(nn.Module):
    """Features at the nodes of grids of several sizes, interpolated at the coordinates."""

    def __init__(self, sizes: Sequence[int] = (4, 8, 16), features: int = 4):
        super().__init__()
        self.levels = nn.ParameterList(0.1 * torch.randn(1, features, size, size) for size in sizes)

    def forward(self, places: Tensor) -> Tensor:
        where = places[None, :, None]
        read = [F.grid_sample(level, where, align_corners=True)[0, :, :, 0].T for level in self.levels]
        return torch.cat(read, 1)


class _Fog(nn.Module):
    """Density and light at the samples of rays, gathered along each ray."""

    def __init__(self, positive: nn.Module, shift: float):
        super().__init__()
        self.encode = _Fourier(2, 24, 3.0)
        self.trunk = net.mlp((48, 48, 48), output=nn.ReLU())
        self.thickness, self.positive, self.light = nn.Linear(48, 1), positive, nn.Linear(48, 1)
        nn.init.constant_(self.thickness.bias, shift)

    def forward(self, places: Tensor) -> Tensor:
        hidden = self.trunk(self.encode(places))
        return _gather(self.positive(self.thickness(hidden))[..., 0], self.light(hidden)[..., 0])


class _Quantised(nn.Module):
    """Answer in 8 bits, as the files that pictures come from."""

    def forward(self, light: Tensor) -> Tensor:
        return light.mul(64).round() / 64


def _fit(
    model: Callable[[], nn.Module],
    fit: dict[str, Any] | None = None,
    data: Callable[[], Pair] = _picture,
    only: str = "",
) -> Setup:
    """Fit a function of the coordinates; only: the one part that the optimizer is given."""
    built = model()
    parameters = built.get_submodule(only).parameters()
    options = {"optimizer": adam(2e-3), "steps": 250, "batch_size": 256, **(fit or {})}
    return regress(built, data(), parameters=parameters, **options)


def _encoded(*sizes: int, scale: float = 4.0, **network: Any) -> nn.Sequential:
    """Build Fourier features and a network behind them."""
    model = nn.Sequential()
    model.encode, model.body = _Fourier(2, 48, scale), net.mlp((96, *sizes), **network)
    return model


def _gridded() -> nn.Sequential:
    model = nn.Sequential()
    model.grid, model.body = _Grid(), net.mlp((12, 32, 1))
    return model


PICTURE = partial(_sines, (2, 48, 48, 48, 1))
FAST = partial(_sines, (2, 48, 48, 48, 48, 48, 1), 30.0)
DEEP = partial(_sines, (2, *[40] * 7, 1))
ENCODED = partial(_encoded, 48, 48, 1)
DISC = partial(net.mlp, (2, 48, 48, 1), nn.Tanh, net.glorot)
FOG = partial(_Fog, nn.Softplus(), 0.0)
SLOWLY = {"optimizer": adam(3e-4), "steps": 400}
DESCENT = {"optimizer": sgd(0.002, momentum=0.9), "steps": 400}
REF, FEATURES, GRID, RAYS = "coordinates-sines", "coordinates-fourier", "coordinates-grid", "coordinates-fog"
PROGRAMS = (
    Program("coordinates-sines", partial(_fit, PICTURE), target=0.9),
    Program(
        "coordinates-sound", partial(_fit, partial(_sines, (1, 64, 64, 1), 30.0), data=_sound), target=0.9
    ),
    Program(
        "coordinates-seven-sines",
        partial(_fit, DEEP, {"optimizer": adam(5e-4)}),
        REF,
    ),
    Program("coordinates-fourier", partial(_fit, ENCODED), target=0.9),
    Program("coordinates-fourier-tanh", partial(_fit, partial(ENCODED, activation=nn.Tanh)), FEATURES),
    Program("coordinates-grid", partial(_fit, _gridded, {"optimizer": adam(1e-2)}), target=0.9),
    Program(
        "coordinates-distance",
        partial(_fit, DISC, {"optimizer": adam(5e-3), "steps": 400}, _shape),
        target=0.9,
    ),
    Program("coordinates-fog", partial(_fit, FOG, data=_rays), target=0.85),
    Program(
        "coordinates-small-steps-many",
        partial(_fit, ENCODED, {"optimizer": adam(2e-4), "steps": 1200, "batch_size": 128}),
        FEATURES,
    ),
    Program(
        "coordinates-fourier-descent",
        partial(_fit, ENCODED, {"optimizer": sgd(0.05, momentum=0.9)}),
        FEATURES,
    ),
    Program("coordinates-16-bits", partial(_fit, ENCODED, {"autocast": torch.bfloat16}), FEATURES),
    Program("coordinates-seven-sines-descent", partial(_fit, DEEP, DESCENT), REF),
    Program("coordinates-fast-sines", partial(_fit, FAST, SLOWLY), REF),
    Program(
        "coordinates-sines-undivided",
        partial(_fit, partial(FAST, default=True), SLOWLY),
        "coordinates-fast-sines",
        ("poor-initialization", "exploding-gradient"),
    ),
    Program(
        "coordinates-sines-twice-divided",
        partial(_fit, partial(DEEP, gain=0.1), DESCENT),
        "coordinates-seven-sines-descent",
        ("poor-initialization", "vanishing-signal", "vanishing-gradient"),
    ),
    Program(
        "coordinates-sigmoids",
        partial(_fit, partial(_encoded, *[32] * 10, 1, activation=nn.Sigmoid, initialise=net.glorot)),
        FEATURES,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
    ),
    Program(
        "coordinates-shades-to-255",
        partial(_fit, partial(ENCODED, output=nn.Sigmoid()), data=partial(_picture, levels=True)),
        FEATURES,
        ("output-mismatch", "saturated-activation"),
        ("body.4", "body.5"),
    ),
    Program(
        "coordinates-in-pixels",
        partial(_fit, DISC, {"optimizer": adam(5e-3), "steps": 400}, partial(_shape, pixels=True)),
        "coordinates-distance",
        ("unscaled-input", "saturated-activation"),
        ("0", "1"),
    ),
    Program(
        "coordinates-fog-without-density",
        partial(_fit, partial(_Fog, nn.ReLU(), -3.0), data=_rays),
        RAYS,
        ("dead-units", "zero-gradient"),
        ("positive", "thickness"),
    ),
    Program(
        "coordinates-grid-left-out",
        partial(_fit, _gridded, {"optimizer": adam(1e-2)}, only="body"),
        GRID,
        ("not-optimized",),
        ("grid*",),
    ),
    Program(
        "coordinates-rounded",
        partial(_fit, partial(ENCODED, output=_Quantised())),
        FEATURES,
        ("zero-gradient",),
        ("body.*",),
    ),
    Program(
        "coordinates-epsilon-of-one",
        partial(_fit, ENCODED, {"optimizer": adam(2e-3, eps=1.0)}),
        FEATURES,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
    Program(
        "coordinates-sines-too-fast",
        partial(_fit, PICTURE, {"optimizer": adam(0.2)}),
        REF,
        ("learning-rate-too-high",),
    ),
)
