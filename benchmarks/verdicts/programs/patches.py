"""Small vision transformers and their hybrids (held out): digits cut into patches, stems, masks, windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, images
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, sgd, trained

Build = Callable[[], nn.Module]
WIDTH, TOKENS = 32, 16


@cache
def _bytes() -> Pair:
    """Return the digits as bytes from 0 to 255."""
    inputs, targets = images()
    return 255 * (inputs - inputs.min()) / (inputs.max() - inputs.min()), targets


class _SelfAttention(nn.Module):
    """Self-attention of two heads with a named softmax; sharpness: multiplies the logits.

    weigh: what turns logits into weights; hidden: places (TOKENS, TOKENS) that must not be looked at.
    """

    def __init__(self, sharpness: float = 1.0, weigh: nn.Module | None = None, hidden: Tensor | None = None):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.weigh, self.sharpness, self.hidden = weigh or nn.Softmax(3), sharpness, hidden

    def forward(self, tokens: Tensor) -> Tensor:
        count, length = tokens.shape[:2]
        q, k, v = self.qkv(tokens).view(count, length, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        logits = self.sharpness * q @ k.transpose(2, 3) / (WIDTH // 2) ** 0.5
        if self.hidden is not None:
            logits = logits.masked_fill(self.hidden, -torch.inf)
        return self.out((self.weigh(logits) @ v).transpose(1, 2).reshape(count, length, WIDTH))


class _Rectified(nn.Module):
    """Weigh by the rectified logit over the number of places (Wortsman 2023): most weights are exactly 0."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.relu() / logits.shape[-1]


class _Scale(nn.Module):
    """Multiply each channel by a trained number (Touvron 2021)."""

    def __init__(self, start: float):
        super().__init__()
        self.gain = nn.Parameter(torch.full((WIDTH,), start))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gain * tokens


class _DropPath(nn.Module):
    """Leave a branch out for a random part of the batch (Huang 2016)."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, tokens: Tensor) -> Tensor:
        kept = torch.rand(len(tokens), 1, 1) >= self.share
        return tokens * kept / (1 - self.share) if self.training else tokens


class _PostNorm(nn.Module):
    """Add a branch, then normalise (Vaswani 2017)."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch, self.norm = branch, nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.branch(tokens))


def _feed(activation: Build = nn.GELU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), activation(), nn.Linear(2 * WIDTH, WIDTH))


def _pre_norm(
    attention: Build = _SelfAttention, ending: Build = nn.Identity, activation: Build = nn.GELU
) -> nn.Module:
    """Return a pre-norm block, each branch with an ending of its own."""
    look = nn.Sequential(nn.LayerNorm(WIDTH), attention(), ending())
    think = nn.Sequential(nn.LayerNorm(WIDTH), _feed(activation), ending())
    return nn.Sequential(net.Residual(look), net.Residual(think))


def _post_norm() -> nn.Module:
    return nn.Sequential(_PostNorm(_SelfAttention()), _PostNorm(_feed()))


def _bare() -> nn.Module:
    """Return attention alone: no skip, no network behind it."""
    return _SelfAttention()


def _unskipped(activation: Build = nn.GELU) -> nn.Module:
    """Return a feed-forward network whose skip was forgotten."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), activation())


class _Mixed(nn.Module):
    """A block of ConvMixer (Trockman 2022): a depthwise and a pointwise convolution over the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.GELU(), nn.BatchNorm2d(WIDTH)
        )
        self.along = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.GELU(), nn.BatchNorm2d(WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tokens.transpose(1, 2).view(-1, WIDTH, 4, 4)
        return self.along(grid + self.across(grid)).flatten(2).transpose(1, 2)


def _patchify() -> nn.Module:
    """Return the usual stem: patches of 2 x 2, each multiplied by one matrix."""
    return nn.Conv2d(1, WIDTH, 2, 2)


def _convolved(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Return a stem of two convolutions (Xiao 2021)."""
    first = [nn.Conv2d(1, 16, 3, 2, 1), norm(16), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(16, WIDTH, 3, 1, 1), norm(WIDTH), nn.ReLU())


def _unnormed() -> nn.Module:
    """Return the same stem without its norms."""
    return _convolved(lambda width: nn.Identity())


def _deep_stem(depth: int, activation: Build, initialise: net.Initialise | None) -> nn.Module:
    """Return a plain stack of convolutions without norms."""
    layers: list[nn.Module] = [nn.Conv2d(1, WIDTH, 3, 2, 1), activation()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), activation()]
    return net.initialised(nn.Sequential(*layers), initialise)


class _ViT(nn.Module):
    """A stem that makes tokens, places, blocks, a norm, and a head on the mean or on a class token.

    before: acts on the pooled token ahead of the head; cut: detaches it; spread: of the places at first.
    """

    def __init__(
        self,
        block: Build = _pre_norm,
        depth: int = 2,
        stem: Build = _patchify,
        by_token: bool = False,
        spread: float = 0.1,
        before: nn.Module | None = None,
        cut: bool = False,
        norm: bool = True,
    ):
        super().__init__()
        self.stem = stem()
        self.place = nn.Parameter(spread * torch.randn(TOKENS + by_token, WIDTH))
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH)) if by_token else None
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.before, self.head, self.cut = before or nn.Identity(), nn.Linear(WIDTH, 10), cut

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.stem(pictures).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), 1, WIDTH), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.place))
        pooled = self.before(tokens[:, 0] if self.token is not None else tokens.mean(1))
        return self.head(pooled.detach() if self.cut else pooled)


class _OneEach(nn.Module):
    """Normalise each channel over its one pooled value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(WIDTH, WIDTH)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.norm(pooled)


def _vit(
    fit: dict[str, Any] | None = None,
    data: Callable[[], Pair] = images,
    prepare: Callable[[_ViT], object] = lambda model: None,
    optimize: Callable[[Any], list[nn.Parameter]] = trained,
    scale: float = 1.0,
    **network: Any,
) -> Setup:
    """Read digits; prepare: done to the new model; optimize: what is optimized; scale: of the loss."""
    model = _ViT(**network)
    prepare(model)
    options = {"optimizer": adam(3e-3), "steps": 200, "batch_size": 48, **(fit or {})}

    def loss(answers: Tensor, targets: Tensor) -> Tensor:
        return scale * nn.functional.cross_entropy(answers, targets)

    return classify(model, data(), loss=loss, parameters=optimize(model), **options)


def _freeze_stem(model: _ViT) -> None:
    model.stem.requires_grad_(False)


def _zero_head(model: _ViT) -> None:
    nn.init.zeros_(model.head.weight)


def _redraw(initialise: net.Initialise) -> Callable[[_ViT], object]:
    """Return what draws all weights of linear layers and convolutions anew."""
    return lambda model: net.initialised(model, initialise)


def _head_alone(model: _ViT) -> list[nn.Parameter]:
    return list(model.head.parameters())


def _near() -> Tensor:
    """Return what a place must not see: all but itself and its eight neighbours on the grid."""
    row, column = torch.arange(TOKENS) // 4, torch.arange(TOKENS) % 4
    apart = [(axis[:, None] - axis).abs() > 1 for axis in (row, column)]
    return apart[0] | apart[1]


def _padded() -> Tensor:
    """Return a mask of padding that takes the last place's row for its column."""
    return (torch.arange(TOKENS) == TOKENS - 1)[:, None].expand(TOKENS, TOKENS)


def _warmed(warm: int, steps: int) -> Callable[[int], float]:
    """Return a linear warm-up followed by half a cosine."""
    return lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + cos(pi * step / steps))


REF, HYBRID, DESCENT, POST = "patches-mean", "patches-hybrid", "patches-descent", "patches-post-norm"
PLAIN = {"optimizer": sgd(0.1, momentum=0.9)}
HALF = {"optimizer": adam(3e-3, eps=1e-15), "autocast": torch.float16, "steps": 120}
PROGRAMS = (
    Program("patches-mean", _vit, target=0.95),
    Program("patches-hybrid", partial(_vit, stem=_convolved), target=0.96),
    Program("patches-descent", partial(_vit, PLAIN, stem=_convolved), target=0.96),
    Program("patches-class-token", partial(_vit, by_token=True), REF),
    Program("patches-places-from-zero", partial(_vit, spread=0.0), REF),
    Program("patches-head-from-zero", partial(_vit, prepare=_zero_head), REF),
    Program("patches-stem-frozen-at-random", partial(_vit, prepare=_freeze_stem), REF),
    Program(
        "patches-branches-from-1e-4",
        partial(_vit, block=partial(_pre_norm, ending=partial(_Scale, 1e-4))),
        REF,
    ),
    Program(
        "patches-dropped-paths",
        partial(_vit, {"steps": 300}, block=partial(_pre_norm, ending=partial(_DropPath, 0.3))),
        REF,
    ),
    Program(
        "patches-rectified-weights",
        partial(_vit, block=partial(_pre_norm, partial(_SelfAttention, weigh=_Rectified()))),
        REF,
    ),
    Program(
        "patches-neighbours-only",
        partial(_vit, block=partial(_pre_norm, partial(_SelfAttention, hidden=_near()))),
        REF,
    ),
    Program("patches-post-norm", partial(_vit, block=_post_norm), REF),
    Program(
        "patches-warmed-up-to-0.02",
        partial(_vit, {"optimizer": adamw(0.02), "steps": 300, "schedule": _warmed(60, 300)}),
        REF,
    ),
    Program("patches-mixed-by-convolutions", partial(_vit, block=_Mixed), REF),
    Program("patches-16-bits", partial(_vit, {"autocast": torch.bfloat16}), REF),
    Program("patches-deep-4", partial(_vit, depth=4), REF),
    Program("patches-bytes-into-batchnorm", partial(_vit, data=_bytes, stem=_convolved), HYBRID),
    Program("patches-bytes-behind-layer-norms", partial(_vit, PLAIN, _bytes, stem=_unnormed), DESCENT),
    Program("patches-half-precision", partial(_vit, HALF, depth=1), target=0.8),
    Program(
        "patches-bytes",
        partial(_vit, PLAIN, _bytes, stem=_unnormed, norm=False),
        DESCENT,
        ("unscaled-input",),
        ("stem*",),
    ),
    Program("patches-rate-of-0.3", partial(_vit, {"optimizer": adam(0.3)}), REF, ("learning-rate-too-high",)),
    Program(
        "patches-rate-of-1e-6", partial(_vit, {"optimizer": adam(1e-6)}), REF, ("learning-rate-too-low",)
    ),
    Program(
        "patches-too-sharp",
        partial(_vit, block=partial(_pre_norm, partial(_SelfAttention, 3000.0)), by_token=True),
        "patches-class-token",
        ("attention-collapse", "poor-initialization"),
        ("blocks.?.0*",),
    ),
    Program(
        "patches-averaged-ten-times",
        partial(_vit, block=_bare, depth=10, norm=False),
        REF,
        ("rank-collapse", "vanishing-signal", "vanishing-gradient"),
        ("blocks*",),
    ),
    Program(
        "patches-skips-forgotten",
        partial(_vit, block=partial(_unskipped, nn.Sigmoid), depth=10),
        REF,
        ("vanishing-gradient", "vanishing-signal", "rank-collapse"),
        ("blocks*",),
    ),
    Program(
        "patches-hidden-from-all",
        partial(_vit, block=partial(_pre_norm, partial(_SelfAttention, hidden=_padded()))),
        "patches-neighbours-only",
        ("non-finite",),
        ("blocks.0.0.branch.1*",),
    ),
    Program(
        "patches-all-weights-normal",
        partial(_vit, prepare=_redraw(net.normal(5.0))),
        REF,
        ("poor-initialization", "attention-collapse", "exploding-signal", "exploding-gradient"),
    ),
    Program(
        "patches-one-weight-for-all",
        partial(_vit, prepare=_redraw(net.constant(0.02))),
        REF,
        ("symmetric-weights", "poor-initialization"),
    ),
    Program(
        "patches-channel-norm-of-one",
        partial(_vit, before=_OneEach()),
        REF,
        ("degenerate-normalization",),
        ("before*",),
    ),
    Program(
        "patches-head-alone-optimized",
        partial(_vit, optimize=_head_alone),
        REF,
        ("not-optimized",),
        ("stem", "blocks*", "norm"),
    ),
    Program(
        "patches-head-reads-a-copy",
        partial(_vit, cut=True),
        REF,
        ("missing-gradient",),
        ("stem", "blocks*", "norm"),
    ),
    Program(
        "patches-gradients-pile-up",
        partial(_vit, PLAIN | {"zero_gradients": False}, stem=_convolved),
        DESCENT,
        ("gradient-not-zeroed",),
    ),
    Program(
        "patches-decay-of-30",
        partial(_vit, {"optimizer": adamw(3e-3, weight_decay=30.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
    Program(
        "patches-stem-of-twelve-sigmoids",
        partial(_vit, stem=partial(_deep_stem, 12, nn.Sigmoid, net.glorot)),
        HYBRID,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("stem*",),
    ),
    Program(
        "patches-stem-of-hard-tanh",
        partial(_vit, PLAIN, stem=partial(_deep_stem, 3, nn.Tanh, net.normal(5.0))),
        DESCENT,
        ("saturated-activation", "poor-initialization"),
        ("stem*",),
    ),
    Program(
        "patches-half-precision-of-little",
        partial(_vit, HALF, depth=1, scale=1e-6),
        "patches-half-precision",
        ("gradient-underflow",),
    ),
    Program(
        "patches-clipped-to-1e-5",
        partial(_vit, PLAIN | {"clip": 1e-5}, stem=_convolved),
        DESCENT,
        ("over-clipping",),
    ),
)
