"""Small vision (held out): ConvNeXt blocks, class tokens over patches, finer images from coarse ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, images
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, regress, sgd

WIDTH = 16


class _ChannelNorm(nn.Module):
    """LayerNorm over the channels of (batch, channels, height, width)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(inputs.movedim(1, -1)).movedim(-1, 1)


class _Response(nn.Module):
    """Weigh channels by their share of the response (Woo 2023); `safety` keeps a silent image from 0 / 0."""

    def __init__(self, safety: float):
        super().__init__()
        self.safety = safety

    def forward(self, inputs: Tensor) -> Tensor:
        size = (inputs.square().sum((2, 3), keepdim=True) + self.safety).sqrt()
        return inputs + inputs * size / (size.mean(1, keepdim=True) + self.safety)


class _Next(nn.Module):
    """A ConvNeXt block (Liu 2022): depthwise, norm, widen, narrow, scale, and back into the stream."""

    def __init__(self, scale: float, skip: bool, norm: bool, response: nn.Module | None = None):
        super().__init__()
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm = _ChannelNorm(WIDTH) if norm else nn.Identity()
        self.widen, self.act = nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.GELU()
        self.response, self.narrow = response or nn.Identity(), nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.scale, self.skip = nn.Parameter(torch.full((WIDTH, 1, 1), scale)), skip

    def forward(self, inputs: Tensor) -> Tensor:
        change = self.narrow(self.response(self.act(self.widen(self.norm(self.depthwise(inputs))))))
        return inputs + self.scale * change if self.skip else self.scale * change


def _next(
    fit: dict[str, Any] | None = None,
    blocks: int = 2,
    scale: float = 1e-2,
    skip: bool = True,
    norm: bool = True,
    response: Callable[[], nn.Module] = nn.Identity,
    unit: float = 1.0,
    prepare: Callable[[Any], Any] = lambda model: None,
    last: Callable[[], nn.Module] = nn.Identity,
) -> Setup:
    """Classify digits; unit: of their pixels; last: comes behind the mean over places."""
    inputs, targets = images()
    model = nn.Sequential()
    model.stem = nn.Conv2d(1, WIDTH, 2, 2)
    model.blocks = nn.Sequential(*(_Next(scale, skip, norm, response()) for _ in range(blocks)))
    model.pool, model.last, model.head = (
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
        last(),
        nn.Linear(4 * WIDTH, 10),
    )
    parameters = prepare(model)
    options = {"optimizer": adamw(4e-3), "steps": 150, "parameters": parameters, **(fit or {})}
    return classify(model, (unit * inputs, targets), **options)


def _usual_statistics() -> nn.Module:
    return nn.Sequential(net.Apply(lambda inputs: 30 * inputs + 200), nn.BatchNorm1d(4 * WIDTH))


def _group_of_one() -> nn.Module:
    return nn.GroupNorm(4 * WIDTH, 4 * WIDTH)


def _only_stem(model: Any) -> Any:
    """Give the optimizer the first layer, instead of the model."""
    return list(model.stem.parameters())


def _spectral(model: Any) -> None:
    for block in model.blocks:
        spectral_norm(block.widen)


class _Patches(nn.Module):
    """Let a class token attend to 16 patches (Dosovitskiy 2021); sharp: multiplies queries and keys."""

    def __init__(self, blocks: int, sharp: float, skip: bool, unit: float):
        super().__init__()
        self.embed, self.token = nn.Linear(4, WIDTH), nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.place = nn.Parameter(unit * torch.randn(17, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) if skip else nn.Identity() for _ in range(blocks))
        self.attends = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(blocks))
        wide = ((WIDTH, 2 * WIDTH, WIDTH) for _ in range(blocks))
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), *net.mlp(sizes, nn.GELU, None)) if skip else nn.Identity()
            for sizes in wide
        )
        self.skip, self.norm, self.head = skip, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)
        with torch.no_grad():
            for attend in self.attends:
                attend.in_proj_weight[: 2 * WIDTH].mul_(sharp)  # type: ignore[index, operator, union-attr]

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.embed(F.unfold(inputs, 2, stride=2).mT)
        hidden = torch.cat([self.token.expand(len(inputs), -1, -1), patches], 1) + self.place
        for norm, attend, forward in zip(self.norms, self.attends, self.forwards, strict=True):
            normed = norm(hidden)
            found = attend(normed, normed, normed, need_weights=False)[0]
            hidden = hidden + found if self.skip else found
            hidden = hidden + forward(hidden) if self.skip else forward(hidden)
        return self.head(self.norm(hidden[:, 0]))


def _patches(
    fit: dict[str, Any] | None = None,
    blocks: int = 2,
    sharp: float = 1.0,
    skip: bool = True,
    unit: float = 0.1,
) -> Setup:
    options = {"optimizer": adam(5e-3), "steps": 200, **(fit or {})}
    return classify(_Patches(blocks, sharp, skip, unit), images(), **options)


@cache
def _coarse(unit: float = 1.0) -> Pair:
    """Return digits of 4 x 4 pixels, and what interpolation lacks of their 8 x 8 pixels."""
    fine, _ = images()
    coarse = F.avg_pool2d(fine, 2)
    return coarse, unit * (fine - F.interpolate(coarse, scale_factor=2, mode="nearest"))


def _refine(
    fit: dict[str, Any] | None = None,
    unit: float = 1.0,
    end: Callable[[], nn.Module] = nn.Identity,
    activation: Callable[[], nn.Module] = nn.ReLU,
    reduction: str = "mean",
    factor: float = 1.0,
    initialise: net.Initialise = net.he,
    bias: float | None = None,
) -> Setup:
    """Make four pixels of one (Shi 2016); score: the explained variance of what interpolation lacks."""
    body = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), activation(), nn.Conv2d(24, 24, 3, padding=1), activation()
    )
    model = nn.Sequential()
    model.body, model.fine, model.shuffle, model.end = (
        body,
        nn.Conv2d(24, 4, 3, padding=1),
        nn.PixelShuffle(2),
        end(),
    )
    net.initialised(model, initialise)
    if bias is not None:
        nn.init.constant_(body[2].bias, bias)

    def loss(answer: Tensor, wanted: Tensor) -> Tensor:
        return factor * F.mse_loss(answer.float(), wanted, reduction=reduction)

    return regress(model, _coarse(unit), loss=loss, **{"optimizer": adam(5e-3), "steps": 150, **(fit or {})})


class _Bound(nn.Module):
    """Keep pixels between 0 and 1, where they would be if nobody had standardised them; flat elsewhere."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.clamp(0, 1)


PLAIN: dict[str, Any] = {"steps": 400, "optimizer": sgd(0.1, momentum=0.9)}
HALF: dict[str, Any] = {"autocast": torch.float16, "batch_size": 16, "steps": 250}
REF, TOKEN, FINE = "vision-next", "vision-token", "vision-refine"
PROGRAMS = (
    Program("vision-next", _next, target=0.95),
    Program("vision-next-scale-of-1e-6", partial(_next, scale=1e-6, blocks=3), REF),
    Program("vision-next-response", partial(_next, response=partial(_Response, 1e-6)), REF),
    Program("vision-next-spectral", partial(_next, prepare=_spectral, scale=1.0), REF),
    Program(
        "vision-next-accumulated", partial(_next, {"accumulate": 2, "batch_size": 32, "steps": 100}), REF
    ),
    Program("vision-next-statistics", partial(_next, last=_usual_statistics), REF),
    Program("vision-next-always-clipped", partial(_next, {"clip": 0.05}), REF),
    Program("vision-next-bare-2", partial(_next, scale=1.0, skip=False), REF),
    Program("vision-token", _patches, target=0.95),
    Program(
        "vision-token-warm",
        partial(_patches, {"optimizer": adamw(1e-2), "schedule": lambda step: min(1.0, (step + 1) / 80)}),
        TOKEN,
    ),
    Program("vision-refine", _refine, target=0.45),
    Program("vision-refine-half", partial(_refine, HALF), FINE),
    Program("vision-refine-plainly", partial(_refine, PLAIN), target=0.4),
    Program(
        "vision-sharp-token",
        partial(_patches, sharp=60.0),
        TOKEN,
        ("attention-collapse", "poor-initialization"),
        ("attends.*",),
    ),
    Program(
        "vision-token-bare-6",
        partial(_patches, blocks=6, skip=False),
        TOKEN,
        ("rank-collapse", "vanishing-signal", "vanishing-gradient", "attention-collapse"),
        ("attends.*",),
    ),
    Program(
        "vision-next-group-of-one",
        partial(_next, last=_group_of_one),
        REF,
        ("degenerate-normalization",),
        ("last",),
    ),
    Program(
        "vision-next-bare-12",
        partial(_next, scale=1.0, skip=False, norm=False, blocks=10),
        REF,
        ("vanishing-signal", "vanishing-gradient", "poor-initialization"),
    ),
    Program(
        "vision-next-only-the-stem",
        partial(_next, prepare=_only_stem),
        REF,
        ("not-optimized",),
        ("head", "blocks.*"),
    ),
    Program(
        "vision-refine-bounded",
        partial(_refine, end=_Bound),
        FINE,
        ("output-mismatch", "zero-gradient"),
        ("fine", "shuffle", "end"),
    ),
    Program(
        "vision-refine-relu",
        partial(_refine, end=nn.ReLU),
        FINE,
        ("output-mismatch", "dead-units"),
        ("fine", "shuffle", "end"),
    ),
    Program(
        "vision-refine-half-underflow",
        partial(_refine, HALF, factor=1e-7),
        "vision-refine-half",
        ("gradient-underflow", "zero-gradient"),
    ),
    Program(
        "vision-refine-never-zeroed",
        partial(_refine, {**PLAIN, "zero_gradients": False}),
        "vision-refine-plainly",
        ("gradient-not-zeroed",),
    ),
)
