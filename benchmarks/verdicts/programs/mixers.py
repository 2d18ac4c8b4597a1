"""Mixers (held out): networks that mix patches of a digit by layers instead of attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, regress, sgd

PATCHES, PIXELS, WIDTH = 16, 4, 24
Block = Callable[[], nn.Module]
LAYER_NORM = partial(nn.LayerNorm, WIDTH)


def _patches(inputs: Tensor) -> Tensor:
    """Cut images (N, 64) into 16 patches of 2 by 2 pixels, (N, 16, 4)."""
    return inputs.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, PATCHES, PIXELS)


@cache
def _cut_digits(unit: float = 1.0, level: float = 0.0) -> Pair:
    """Return the digits as patches (1797, 16, 4), times `unit` and raised by `level`, and their classes."""
    inputs, targets = digits()
    return unit * _patches(inputs) + level, targets


@cache
def _centres(unit: float = 1.0) -> Pair:
    """Return the patches and the centre of the ink (1797, 2), as shares of the side times `unit`.

    Shares are spread over 0.1 to 0.9, as the centres of digits hardly differ.
    """
    inputs, _ = digits()
    ink = (inputs - inputs.min()).view(-1, 8, 8)
    ink = ink / ink.sum((1, 2), keepdim=True)
    place = torch.arange(8.0)
    centre = torch.stack([(ink.sum(1) * place).sum(1), (ink.sum(2) * place).sum(1)], 1)
    low, high = centre.min(0).values, centre.max(0).values
    return _patches(inputs), unit * (0.1 + 0.8 * (centre - low) / (high - low))


class _OverPatches(nn.Module):
    """Apply a network along the patches instead of along the features."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden.mT).mT


class _Affine(nn.Module):
    """Scale and shift each feature, what takes the place of a norm in ResMLP (Touvron 2021)."""

    def __init__(self, level: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((WIDTH,), level))
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scale * hidden + self.shift


class _Shift(nn.Module):
    """Move groups of features by a patch, which mixes without a weight (Yu 2022)."""

    def forward(self, hidden: Tensor) -> Tensor:
        still, left, right = hidden.chunk(3, 2)
        return torch.cat([still, left.roll(1, 1), right.roll(-1, 1)], 2)


class _Mean(nn.Module):
    """Blend each patch with the mean over all patches; share: of the mean."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        return self.share * hidden.mean(1, keepdim=True) + (1 - self.share) * hidden


class _SpatialGate(nn.Module):
    """Multiply half of the features by a mix over patches of the others (Liu 2021).

    opening: what the mix starts at, which is 1 in the paper, with weights that are nearly zero; squash: of
    the mix; spread: of its weights.
    """

    def __init__(self, opening: float, squash: nn.Module, spread: float):
        super().__init__()
        self.norm, self.mix, self.squash = nn.LayerNorm(WIDTH), nn.Linear(PATCHES, PATCHES), squash
        nn.init.normal_(self.mix.weight, 0, spread)
        nn.init.constant_(self.mix.bias, opening)

    def forward(self, hidden: Tensor) -> Tensor:
        kept, other = hidden.chunk(2, 2)
        return kept * self.squash(self.mix(self.norm(other).mT).mT)


def _gated(
    opening: float = 1.0,
    squash: Callable[[], nn.Module] = nn.Identity,
    spread: float = 1e-3,
    skip: bool = True,
) -> nn.Module:
    """Return a gated block."""
    inner = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU())
    inner.append(_SpatialGate(opening, squash(), spread)).append(nn.Linear(WIDTH, WIDTH))
    return net.Residual(inner) if skip else inner


def _mixing(
    activation: Callable[[], nn.Module] = nn.GELU,
    norm: Callable[[], nn.Module] = LAYER_NORM,
    skip: bool = True,
    layer_scale: float | None = None,
    dropout: float = 0.0,
    frozen: bool = False,
    initialise: net.Initialise | None = None,
) -> nn.Module:
    """Return a block that mixes patches, then features (Tolstikhin 2021).

    layer_scale: what the branches are scaled by at first; frozen: patches are mixed at random, on purpose.
    """
    token = nn.Sequential(nn.Linear(PATCHES, 24), activation(), nn.Linear(24, PATCHES))
    channel = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), activation(), nn.Dropout(dropout))
    channel.append(nn.Linear(2 * WIDTH, WIDTH))
    net.initialised(nn.Sequential(token, channel), initialise)
    token.requires_grad_(not frozen)
    branches = []
    for inner in (_OverPatches(token), channel):
        branch = nn.Sequential(norm(), inner)
        if layer_scale is not None:
            branch.append(_Affine(layer_scale))
        branches.append(net.Residual(branch) if skip else branch)
    return nn.Sequential(*branches)


def _without_weights(mixer: nn.Module, skip: bool = True) -> nn.Module:
    """Return a block whose patches are mixed by no weights, and whose features are mixed by two layers."""
    channel = nn.Sequential(nn.LayerNorm(WIDTH), net.mlp((WIDTH, 2 * WIDTH, WIDTH), nn.GELU, net.lecun))
    if not skip:
        return nn.Sequential(mixer, nn.Linear(WIDTH, WIDTH), nn.Tanh())
    return nn.Sequential(net.Residual(nn.Sequential(nn.LayerNorm(WIDTH), mixer)), net.Residual(channel))


def _bare(activation: Callable[[], nn.Module] = nn.Tanh, initialise: net.Initialise = net.lecun) -> nn.Module:
    """Return a layer along the patches and one along the features, without skip or norm."""
    layers = [_OverPatches(nn.Linear(PATCHES, PATCHES)), nn.Linear(WIDTH, WIDTH), activation()]
    return net.initialised(nn.Sequential(*layers), initialise)


class _Mixer(nn.Module):
    """Embed patches, run blocks over them, pool, and answer.

    flat: the patches are laid side by side instead of averaged; cut: no gradient passes below the head;
    zeros: what the head starts as.
    """

    def __init__(
        self,
        blocks: list[nn.Module],
        outputs: int = 10,
        neck: Callable[[], nn.Module] = LAYER_NORM,
        end: Callable[[], nn.Module] = nn.Identity,
        flat: bool = False,
        cut: bool = False,
        zeros: bool = False,
    ):
        super().__init__()
        self.embed, self.blocks = nn.Linear(PIXELS, WIDTH), nn.Sequential(*blocks)
        self.neck = neck()
        self.head = nn.Linear(WIDTH * (PATCHES if flat else 1), outputs)
        self.end, self.flat, self.cut = end(), flat, cut
        if zeros:
            nn.init.zeros_(self.head.weight)

    def forward(self, patches: Tensor) -> Tensor:
        hidden = self.blocks(self.embed(patches))
        hidden = self.neck(hidden if self.flat else hidden.mean(1)).flatten(1)
        return self.end(self.head(hidden.detach() if self.cut else hidden))


def _classify(
    block: Block = _mixing,
    count: int = 2,
    fit: dict[str, Any] | None = None,
    data: Callable[[], Pair] = _cut_digits,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    only: str = "",
    initialise: net.Initialise | None = None,
    **network: Any,
) -> Setup:
    """Classify digits; only: the one part that is optimized; initialise: draws all weights anew."""
    model = _Mixer([block() for _ in range(count)], **network)
    net.initialised(model, initialise)
    parameters = [p for p in model.get_submodule(only).parameters() if p.requires_grad]
    options = {"optimizer": adam(5e-3), "steps": 250, **(fit or {})}
    return classify(model, data(), loss=loss, parameters=parameters, **options)


def _locate(
    unit: float = 1.0, end: Callable[[], nn.Module] = nn.Identity, fit: dict[str, Any] | None = None
) -> Setup:
    """Tell the centre of the ink from all patches."""
    model = _Mixer([_mixing()], 2, end=end, flat=True)
    return regress(model, _centres(unit), **{"optimizer": adam(3e-3), "steps": 250, **(fit or {})})


def _smoothed(answers: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(answers, classes, label_smoothing=0.2)


def _logarithm_of_share(answers: Tensor, classes: Tensor) -> Tensor:
    """Return the cross-entropy by hand: the logarithm of the right class's softmax."""
    share = answers.softmax(1)
    return -share.gather(1, classes[:, None]).log().mean()


def _tiny(answers: Tensor, classes: Tensor) -> Tensor:
    """Return the cross-entropy times 1e-7 in half precision, as a loss among many is weighed."""
    return F.cross_entropy(answers, classes) * 1e-7


def _warm(step: int) -> float:
    """Return a warm-up of 60 steps, then a decline to nothing at step 300."""
    return min((step + 1) / 60, (300 - step) / 240)


REF, DESCENT, AFFINE, BARE = "mixers-patches", "mixers-descent", "mixers-affine", "mixers-bare-tanh"
GATED, POOLED, SHARES = "mixers-gated", "mixers-averaging", "mixers-centre-in-shares"
PLAIN = {"optimizer": sgd(0.1, momentum=0.9), "steps": 250}
HALF = {"autocast": torch.float16, "steps": 120}
GENTLY = {"optimizer": sgd(0.01, momentum=0.9), "steps": 300}
LONG = PLAIN | {"steps": 400}
EVEN = net.scaled(net.lecun, 2**0.25)  # keeps a signal's size through a layer and one with a ReLU
RESMLP = partial(_mixing, norm=_Affine, layer_scale=0.1)
PROGRAMS = (
    Program("mixers-patches", _classify, target=0.9),
    Program("mixers-descent", partial(_classify, fit=PLAIN), REF),
    Program("mixers-gated", partial(_classify, _gated), REF),
    Program("mixers-gated-six", partial(_classify, _gated, 6, {"steps": 150}), REF),
    Program("mixers-affine", partial(_classify, RESMLP, fit=LONG, neck=nn.Identity), REF),
    Program(
        "mixers-branches-from-nearly-nothing", partial(_classify, partial(_mixing, layer_scale=1e-4), 6), REF
    ),
    Program("mixers-sigmoids-with-skips", partial(_classify, partial(_mixing, nn.Sigmoid), 6), REF),
    Program("mixers-head-of-zero", partial(_classify, zeros=True), REF),
    Program("mixers-random-mix-frozen", partial(_classify, partial(_mixing, frozen=True)), REF),
    Program(
        "mixers-moved-patches", partial(_classify, lambda: _without_weights(_Shift()), 3, {"steps": 400}), REF
    ),
    Program("mixers-averaging", partial(_classify, lambda: _without_weights(_Mean(0.9)), 3, flat=True), REF),
    Program(
        "mixers-warmed-up-to-0.03",
        partial(_classify, fit={"optimizer": adam(0.03), "steps": 300, "schedule": _warm}),
        REF,
    ),
    Program(
        "mixers-dropout-in-batches-of-8",
        partial(_classify, partial(_mixing, dropout=0.5), fit={"batch_size": 8, "steps": 900}),
        REF,
    ),
    Program("mixers-smoothed-labels", partial(_classify, loss=_smoothed), REF),
    Program("mixers-bare-tanh", partial(_classify, _bare, 4, PLAIN, flat=True), REF),
    Program(
        "mixers-bare-relu",
        partial(_classify, partial(_bare, nn.ReLU, EVEN), 8, GENTLY, flat=True, neck=nn.Identity),
        REF,
    ),
    Program("mixers-half", partial(_classify, fit=HALF), REF),
    Program("mixers-centre-in-shares", partial(_locate, end=nn.Sigmoid), target=0.85),
    Program("mixers-clipped-at-1", partial(_classify, fit=PLAIN | {"clip": 1.0}), REF),
    Program(
        "mixers-bare-sigmoid",
        partial(_classify, partial(_bare, nn.Sigmoid), 8, PLAIN, flat=True),
        BARE,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("blocks.*",),
    ),
    Program(
        "mixers-bare-relu-times-4",
        partial(
            _classify,
            partial(_bare, nn.ReLU, net.scaled(EVEN, 4.0)),
            8,
            GENTLY,
            flat=True,
            neck=nn.Identity,
        ),
        "mixers-bare-relu",
        ("exploding-signal", "exploding-gradient", "poor-initialization", "non-finite"),
        ("blocks.*",),
    ),
    Program(
        "mixers-bare-clipped-in-vain",
        partial(
            _classify,
            partial(_bare, nn.ReLU, net.scaled(EVEN, 3.0)),
            8,
            GENTLY | {"clip": 1e9},
            flat=True,
            neck=nn.Identity,
        ),
        "mixers-bare-relu",
        (
            "ineffective-clipping",
            "exploding-gradient",
            "exploding-signal",
            "poor-initialization",
            "non-finite",
        ),
        ("blocks.*",),
    ),
    Program(
        "mixers-bare-one-start-for-all",
        partial(_classify, partial(_bare, initialise=net.constant(0.02)), 4, flat=True),
        BARE,
        ("symmetric-weights", "poor-initialization"),
        ("blocks.*",),
    ),
    Program(
        "mixers-gates-shut",
        partial(_classify, partial(_gated, -15.0, nn.Sigmoid, skip=False)),
        GATED,
        ("saturated-activation", "vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("blocks.*",),
    ),
    Program(
        "mixers-averaging-five-times-bare",
        partial(_classify, lambda: _without_weights(_Mean(0.95), skip=False), 5, flat=True),
        POOLED,
        ("rank-collapse",),
        ("blocks.*",),
    ),
    Program(
        "mixers-norm-of-one-value",
        partial(_classify, neck=partial(nn.GroupNorm, WIDTH, WIDTH)),
        REF,
        ("degenerate-normalization",),
        ("neck",),
    ),
    Program(
        "mixers-affine-bytes",
        partial(_classify, RESMLP, fit=LONG, data=partial(_cut_digits, 90.0, 75.0), neck=nn.Identity),
        AFFINE,
        ("unscaled-input",),
        ("embed", "blocks.*"),
    ),
    Program(
        "mixers-centre-in-pixels",
        partial(_locate, 640.0, nn.Sigmoid),
        SHARES,
        ("output-mismatch", "saturated-activation"),
        ("end", "head"),
    ),
    Program(
        "mixers-cut-below-the-head",
        partial(_classify, cut=True),
        REF,
        ("missing-gradient",),
        ("embed", "blocks*"),
    ),
    Program(
        "mixers-neck-alone-optimized",
        partial(_classify, only="neck"),
        REF,
        ("not-optimized",),
        ("embed", "blocks*", "head"),
    ),
    Program(
        "mixers-rate-of-1", partial(_classify, fit={"optimizer": adam(1.0)}), REF, ("learning-rate-too-high",)
    ),
    Program(
        "mixers-rate-of-1e-5",
        partial(_classify, fit={"optimizer": sgd(1e-5)}),
        DESCENT,
        ("learning-rate-too-low",),
    ),
    Program(
        "mixers-logarithm-of-nothing",
        partial(_classify, fit=PLAIN | {"optimizer": sgd(2.0)}, loss=_logarithm_of_share),
        DESCENT,
        ("non-finite", "learning-rate-too-high"),
    ),
    Program(
        "mixers-half-underflow",
        partial(_classify, fit=HALF, loss=_tiny),
        "mixers-half",
        ("gradient-underflow", "zero-gradient"),
    ),
    Program(
        "mixers-epsilon-of-one",
        partial(_classify, fit={"optimizer": adam(1e-3, eps=1.0)}),
        REF,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
    Program(
        "mixers-decay",
        partial(_classify, fit={"optimizer": adamw(5e-3, weight_decay=50.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
)
