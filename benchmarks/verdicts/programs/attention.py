"""Transformers and attention (tuning): a look-up among tokens, and digits cut into patches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits, tokens
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, sgd

WIDTH, LENGTH, VOCABULARY = 32, 12, 16


class _Patches(nn.Module):
    """A vision transformer on rows of pixels; the mean over places is classified."""

    def __init__(self, body: nn.Module, width: int = WIDTH):
        super().__init__()
        self.embed, self.body = nn.Linear(8, width), body
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.embed(rows) + self.place)).mean(1))


def _fit(model: nn.Module, data: tuple[Tensor, Tensor], fit: dict[str, Any] | None) -> Setup:
    options = {"optimizer": adam(3e-3), "steps": 200, "batch_size": 32, **(fit or {})}
    return classify(model, data, **options)


def _rows() -> tuple[Tensor, Tensor]:
    return digits()[0].view(-1, 8, 8), digits()[1]


def _stack(blocks: int = 2) -> nn.Sequential:
    return nn.Sequential(*[net.pre_norm_block(WIDTH) for _ in range(blocks)])


def _patches(
    body: Callable[[], nn.Module] = _stack,
    change: Callable[[_Patches], object] = lambda model: None,
    fit: dict[str, Any] | None = None,
    scale: float = 1.0,
) -> Setup:
    model = _Patches(body())
    change(model)
    rows, targets = _rows()
    return _fit(model, (scale * rows, targets), fit)


def _encoder(layers: int, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class _Lookup(nn.Module):
    """Predict what followed a marked token: one attention layer, the marker's successor as key."""

    def __init__(self, blocks: int):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.join = nn.Linear(2 * WIDTH, WIDTH)
        self.body, self.head = _stack(blocks), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        here = self.embed(tokens)
        before = torch.cat([torch.zeros_like(here[:, :1]), here[:, :-1]], 1)
        return self.head(self.body(self.join(torch.cat([here, before], 2))).mean(1))


def _lookup(fit: dict[str, Any] | None = None) -> Setup:
    return _fit(
        _Lookup(1), tokens(LENGTH, VOCABULARY), {"optimizer": adam(5e-3), "steps": 400, **(fit or {})}
    )


def _bare_attention(blocks: int) -> nn.Module:
    """Stack attention without skips or feed-forward layers: tokens become equal (Dong 2021)."""
    return nn.Sequential(*[net.Attention(WIDTH) for _ in range(blocks)])


class _Scaled(nn.Module):
    """Attention written by hand; without 1/sqrt(width) and with unnormalised inputs its softmax saturates."""

    def __init__(self, temperature: float):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.softmax, self.temperature = nn.Softmax(-1), temperature

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.query(inputs) @ self.key(inputs).transpose(1, 2)
        return self.value(self.softmax(scores * self.temperature) @ inputs)


def _by_hand(temperature: float) -> nn.Module:
    return nn.Sequential(net.Residual(_Scaled(temperature)), nn.LayerNorm(WIDTH), net.pre_norm_block(WIDTH))


def _only_scaled(temperature: float) -> nn.Module:
    """Three layers of attention by hand and nothing else that could learn round them."""
    return nn.Sequential(*[nn.Sequential(_Scaled(temperature), nn.LayerNorm(WIDTH)) for _ in range(3)])


def _log_scores(safe: bool) -> nn.Module:
    """Take the logarithm of a softmax by hand; without a floor it is minus infinity once one is sure."""
    floor = 1e-6 if safe else 0.0
    log = net.Apply(lambda x: (torch.softmax(20 * x * x, -1) + floor).log() / 10)
    return nn.Sequential(net.pre_norm_block(WIDTH), nn.Linear(WIDTH, WIDTH), log, nn.Linear(WIDTH, WIDTH))


REF = "attention-patches-pre-norm"
RATE = ("learning-rate-too-high",)
PROGRAMS = (
    Program(REF, _patches, target=0.93),
    Program("attention-patches-post-norm", partial(_patches, partial(_encoder, 2, False)), REF),
    Program("attention-patches-encoder", partial(_patches, partial(_encoder, 2, True)), REF),
    Program("attention-four-blocks", partial(_patches, partial(_stack, 4)), REF),
    Program(
        "attention-warmup-cosine",
        partial(
            _patches,
            fit={"schedule": lambda step: min(1.0, step / 30) * (1 - step / 200), "optimizer": adamw(5e-3)},
        ),
        REF,
    ),
    Program("attention-clipped", partial(_patches, fit={"clip": 1.0}), REF),
    Program("attention-autocast-bfloat16", partial(_patches, fit={"autocast": torch.bfloat16}), REF),
    Program("attention-by-hand", partial(_patches, partial(_by_hand, WIDTH**-0.5)), REF),
    Program(
        "attention-only-scaled",
        partial(_patches, partial(_only_scaled, WIDTH**-0.5), fit={"steps": 300, "optimizer": adam(5e-3)}),
        target=0.85,
    ),
    Program("attention-log-safely", partial(_patches, partial(_log_scores, True)), REF),
    Program("attention-lookup", _lookup, target=0.85),
    Program(
        "attention-sharp-80",
        partial(_patches, partial(_only_scaled, 80.0), fit={"optimizer": adam(1e-3)}),
        "attention-only-scaled",
        ("attention-collapse", "saturated-activation", "poor-initialization"),
        ("body.*",),
    ),
    Program(
        "attention-bare-8",
        partial(_patches, partial(_bare_attention, 8)),
        REF,
        ("rank-collapse", "vanishing-gradient", "vanishing-signal", "poor-initialization"),
    ),
    Program("attention-lr-1", partial(_patches, fit={"optimizer": adam(1.0)}), REF, RATE),
    Program(
        "attention-post-norm-lr",
        partial(_patches, partial(_encoder, 4, False), fit={"optimizer": adam(0.1)}),
        REF,
        RATE,
    ),
    Program(
        "attention-lr-1e-6", partial(_patches, fit={"optimizer": adam(1e-6)}), REF, ("learning-rate-too-low",)
    ),
    Program("attention-lookup-lr-1", partial(_lookup, {"optimizer": adam(1.0)}), "attention-lookup", RATE),
    Program(
        "attention-over-clipped",
        partial(_patches, fit={"optimizer": sgd(0.1), "clip": 1e-3}),
        REF,
        ("over-clipping",),
    ),
    Program(
        "attention-lookup-decay",
        partial(_lookup, {"optimizer": adamw(1e-2, weight_decay=10.0)}),
        "attention-lookup",
        ("excessive-weight-decay",),
    ),
    Program(
        "attention-log-of-zero",
        partial(_patches, partial(_log_scores, False)),
        "attention-log-safely",
        ("non-finite",),
        ("body.2",),
    ),
)
