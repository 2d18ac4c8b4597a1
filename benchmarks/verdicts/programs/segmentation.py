"""Dense prediction (tuning): find the ink of noisy digits, with U-Nets and plain encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, images
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, sgd

Loss = Callable[[Tensor, Tensor], Tensor]


@cache
def _scenes(classes: int = 2, brightest: float = 0.0) -> Pair:
    """Return noisy digits (1797, 1, 8, 8) and where the ink is: (1797, 1, 8, 8) of 0 and 1, or three classes.

    brightest: the standardised grey level from which a pixel counts as ink.
    """
    clean, _ = images()
    random = torch.Generator().manual_seed(21)
    noisy = clean + 0.4 * torch.randn(clean.shape, generator=random)
    if classes == 2:
        return noisy, (clean > brightest).float()
    return noisy, ((clean[:, 0] > -0.7).long() + (clean[:, 0] > 1.2).long())


def _overlap(guessed: Tensor, wanted: Tensor) -> float:
    """Return the intersection over the union of two masks."""
    return ((guessed & wanted).sum() / (guessed | wanted).sum().clamp(min=1)).item()


def _segment(model: nn.Module, scenes: Pair, loss: Loss, fit: dict[str, Any] | None = None) -> Setup:
    """Score the mean overlap of the classes (of the ink alone if there are two); chance marks everything."""
    inputs, targets = scenes
    kinds = range(1, 2) if targets.is_floating_point() else range(3)

    def mean(guessed: Tensor) -> float:
        return sum(_overlap(guessed == kind, targets == kind) for kind in kinds) / len(kinds)

    def score(model: nn.Module) -> float:
        outputs = model(inputs)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        if not outputs.isfinite().all():
            return chance
        return mean((outputs > 0).float() if len(kinds) == 1 else outputs.argmax(1))

    chance = max(mean(torch.full_like(targets, kind)) for kind in kinds)
    options = {"optimizer": adam(1e-2), "steps": 120, **(fit or {})}
    make = regress if len(kinds) == 1 else classify
    return replace(make(model, scenes, loss=loss, **options), score=score, chance=chance)


def _block(fan_in: int, width: int, norm: type[nn.Module] | None) -> nn.Sequential:
    layers = [nn.Conv2d(fan_in, width, 3, padding=1), *([norm(width)] if norm else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class _UNet(nn.Module):
    """Two scales with a skip; `end` follows the head; `aside` adds a head on the coarse scale."""

    def __init__(
        self,
        norm: type[nn.Module] | None = nn.BatchNorm2d,
        outputs: int = 1,
        up: nn.Module | None = None,
        end: nn.Module | None = None,
        aside: bool = False,
    ):
        super().__init__()
        self.down, self.neck = _block(1, 8, norm), _block(8, 16, norm)
        self.up, self.leave = up or nn.Upsample(scale_factor=2), _block(24, 8, norm)
        self.head, self.end = nn.Conv2d(8, outputs, 1), end or nn.Identity()
        self.aside = nn.Conv2d(16, outputs, 1) if aside else None

    def forward(self, inputs: Tensor) -> Any:
        fine = self.down(inputs)
        coarse = self.neck(F.max_pool2d(fine, 2))
        outputs = self.end(self.head(self.leave(torch.cat([fine, self.up(coarse)], 1))))
        return (outputs, self.up(self.aside(coarse))) if self.aside else outputs


def _unet(fit: dict[str, Any] | None = None, loss: Loss | None = None, **network: Any) -> Setup:
    return _segment(_UNet(**network), _scenes(), loss or F.binary_cross_entropy_with_logits, fit)


def _dice(outputs: Tensor, targets: Tensor) -> Tensor:
    ink = outputs.sigmoid()
    return 1 - (2 * (ink * targets).sum() + 1) / (ink.sum() + targets.sum() + 1)


def _deep_supervision(outputs: Any, targets: Tensor) -> Tensor:
    fine, coarse = (F.binary_cross_entropy_with_logits(output, targets) for output in outputs)
    return fine + 0.3 * coarse


def _thrice(end: nn.Module | None = None, fit: dict[str, Any] | None = None) -> Setup:
    return _segment(_UNet(outputs=3, end=end), _scenes(3), F.cross_entropy, fit)


def _rare() -> Setup:
    weighted = partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(4.0))
    return _segment(_UNet(), _scenes(2, 1.8), weighted)


class _Straight(nn.Module):
    """Round a code, and pass the gradient on as if it had not been rounded (van den Oord 2017), or not."""

    def __init__(self, through: bool):
        super().__init__()
        self.through = through

    def forward(self, code: Tensor) -> Tensor:
        rounded = (4 * code).round() / 4
        return code + (rounded - code).detach() if self.through else rounded


class _Standardise(nn.Module):
    """Standardise each channel of each image by hand; without `safety` a closed ReLU channel is 0 / 0."""

    def __init__(self, safety: float):
        super().__init__()
        self.safety = safety

    def forward(self, inputs: Tensor) -> Tensor:
        centred = inputs - inputs.mean((2, 3), keepdim=True)
        variance = centred.square().mean((2, 3), keepdim=True)
        return centred / (variance + self.safety).sqrt()


def _through_neck(
    *neck: nn.Module,
    scale: float = 1.0,
    fit: dict[str, Any] | None = None,
) -> Setup:
    """Squeeze each image to one pixel and paint it again, without a skip."""
    act = nn.ReLU
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), act(), nn.Conv2d(16, 24, 3, 2, 1), act(), nn.Conv2d(24, 24, 2), act())
    )
    decoder = nn.Sequential(
        *(nn.ConvTranspose2d(24, 24, 2), act(), nn.ConvTranspose2d(24, 16, 2, 2), act()),
        nn.ConvTranspose2d(16, 1, 2, 2),
    )
    model = nn.Sequential()
    model.encoder, model.neck, model.decoder = encoder, nn.Sequential(*neck), decoder
    inputs, targets = _scenes()
    loss = F.binary_cross_entropy_with_logits
    return _segment(model, (scale * (inputs + 3), targets) if scale != 1 else (inputs, targets), loss, fit)


def _stack(initialise: net.Initialise, fit: dict[str, Any] | None = None) -> Setup:
    """Eight convolutions at full resolution, as for denoising, without normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(1, 10, 3, padding=1), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(10, 10, 3, padding=1), nn.ReLU()]
    model = net.initialised(nn.Sequential(*layers, nn.Conv2d(10, 1, 3, padding=1)), initialise)
    options = {"optimizer": adam(3e-3), "batch_size": 32, **(fit or {})}
    return _segment(model, _scenes(), F.binary_cross_entropy_with_logits, options)


def _by_hand(safety: float) -> Setup:
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), _Standardise(safety)]
    layers += [nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1)]
    nn.init.constant_(layers[0].bias, -1.5)
    return _segment(nn.Sequential(*layers), _scenes(), F.binary_cross_entropy_with_logits)


REF, NECK, STACK, CODED = (f"segmentation-{name}" for name in ("unet", "neck", "stack", "straight-through"))
LONG = {"steps": 250}
PROGRAMS = (
    Program("segmentation-unet", _unet, target=0.9),
    Program("segmentation-dice", partial(_unet, loss=_dice), REF),
    Program("segmentation-deep-supervision", partial(_unet, loss=_deep_supervision, aside=True), REF),
    Program("segmentation-rare-ink", _rare, target=0.5),
    Program("segmentation-three-classes", _thrice, target=0.7),
    Program("segmentation-neck", partial(_through_neck, fit=LONG), target=0.75),
    Program(
        "segmentation-straight-through",
        partial(_through_neck, nn.Tanh(), _Straight(True), fit=LONG),
        target=0.6,
    ),
    Program("segmentation-stack", partial(_stack, net.he), REF),
    Program("segmentation-by-hand-safely", partial(_by_hand, 1e-5), REF),
    Program(
        "segmentation-one-channel-softmax",
        partial(_unet, loss=F.binary_cross_entropy, end=nn.Softmax(1)),
        REF,
        ("output-mismatch", "zero-gradient"),
        ("head", "end"),
    ),
    Program(
        "segmentation-relu-logits",
        partial(_thrice, nn.ReLU()),
        "segmentation-three-classes",
        ("output-mismatch", "dead-units"),
        ("head", "end"),
    ),
    Program(
        "segmentation-by-hand",
        partial(_by_hand, 0.0),
        "segmentation-by-hand-safely",
        ("non-finite",),
        ("2",),
    ),
    Program(
        "segmentation-norm-of-one-pixel",
        partial(_through_neck, nn.GroupNorm(24, 24), fit=LONG),
        NECK,
        ("degenerate-normalization",),
        ("neck.*",),
    ),
    Program(
        "segmentation-rounded-code",
        partial(_through_neck, nn.Tanh(), _Straight(False), fit=LONG),
        CODED,
        ("zero-gradient",),
        ("encoder.*", "neck.*"),
    ),
    Program(
        "segmentation-16-bit",
        partial(_through_neck, scale=10000.0, fit=LONG),
        NECK,
        ("unscaled-input",),
        ("encoder.0", "encoder.1"),
    ),
    Program(
        "segmentation-loud-stack",
        partial(_stack, net.normal(1.0), fit={"optimizer": sgd(0.01)}),
        STACK,
        ("exploding-signal", "exploding-gradient", "poor-initialization"),
    ),
)
