"""Character language models (tuning): transformers and gated networks on English text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import text
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, next_token, sgd

LENGTH, WIDTH = 16, 24


class _Gated(nn.Module):
    """Embed, run a recurrent layer, project; `tied` shares the embedding with the projection."""

    def __init__(self, alphabet: int, kind: type[nn.RNNBase], tied: bool, detach: bool = False):
        super().__init__()
        self.embed = nn.Embedding(alphabet, WIDTH)
        self.cell = kind(WIDTH, WIDTH, batch_first=True)
        self.neck = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, alphabet)
        self.detach = detach
        if tied:
            nn.init.normal_(self.embed.weight, std=WIDTH**-0.5)
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.cell(self.embed(tokens))[0]
        return self.head(self.neck(hidden.detach() if self.detach else hidden))


def _model(
    body: Callable[[], nn.Module] | None = None,
    fit: dict[str, Any] | None = None,
    change: Callable[[nn.Module], object] = lambda model: None,
    tied: bool = False,
) -> Setup:
    alphabet = text(LENGTH)[2]
    blocks = body or (lambda: nn.Sequential(*[net.pre_norm_block(WIDTH, causal=True) for _ in range(2)]))
    model = net.Tokens(alphabet, WIDTH, LENGTH, blocks(), alphabet, pool=False)
    if tied:
        nn.init.normal_(model.embed.weight, std=WIDTH**-0.5)
        model.head.weight = model.embed.weight
    change(model)
    return next_token(
        model, text(LENGTH), **{"optimizer": adamw(1e-2), "steps": 130, "batch_size": 32, **(fit or {})}
    )


def _gated(
    kind: type[nn.RNNBase] = nn.GRU,
    fit: dict[str, Any] | None = None,
    tied: bool = False,
    detach: bool = False,
    change: Callable[[nn.Module], object] = lambda model: None,
) -> Setup:
    model = _Gated(text(LENGTH)[2], kind, tied, detach)
    change(model)
    return next_token(
        model, text(LENGTH), **{"optimizer": adam(1e-2), "steps": 150, "batch_size": 32, **(fit or {})}
    )


def _post_norm(layers: int) -> nn.Module:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 64, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

        def forward(self, hidden: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
            return self.encoder(hidden, mask=mask)

    return Causal()


def _loud(model: nn.Module) -> None:
    """Start the tied embedding at unit scale, so that the logits are 32 times too large."""
    with torch.no_grad():
        model.head.weight.mul_(60.0)


def _sharp(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            with torch.no_grad():
                module.in_proj_weight[: 2 * WIDTH] *= 100


def _bare(blocks: int) -> nn.Module:
    return nn.Sequential(*[net.Attention(WIDTH, causal=True) for _ in range(blocks)])


def _silent(model: nn.Module) -> None:
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.neck.weight)


REF, GRU = "language-transformer", "language-gru"
HIGH, LOW = ("learning-rate-too-high",), ("learning-rate-too-low",)
PROGRAMS = (
    Program(REF, _model, target=-2.5),
    Program("language-transformer-tied", partial(_model, tied=True), REF),
    Program("language-post-norm-2", partial(_model, partial(_post_norm, 2), {"optimizer": adamw(5e-3)}), REF),
    Program(
        "language-warmup",
        partial(_model, fit={"optimizer": adamw(1e-2), "schedule": lambda step: min(1.0, step / 30)}),
        REF,
    ),
    Program("language-clipped", partial(_model, fit={"clip": 1.0}), REF),
    Program("language-accumulated", partial(_model, fit={"accumulate": 2, "batch_size": 16}), REF),
    Program("language-autocast", partial(_model, fit={"autocast": torch.bfloat16}), REF),
    Program(GRU, _gated, target=-2.5),
    Program("language-lstm", partial(_gated, nn.LSTM), GRU),
    Program("language-gru-tied", partial(_gated, tied=True), target=-2.6),
    Program(
        "language-rnn-clipped", partial(_gated, nn.RNN, {"optimizer": adam(5e-3), "clip": 1.0}), target=-2.6
    ),
    Program("language-lr-1", partial(_model, fit={"optimizer": adamw(1.0)}), REF, HIGH),
    Program("language-lr-1e-6", partial(_model, fit={"optimizer": adamw(1e-6)}), REF, LOW),
    Program("language-gru-lr-3", partial(_gated, fit={"optimizer": adam(3.0)}), GRU, HIGH),
    Program("language-gru-sgd-1e-4", partial(_gated, fit={"optimizer": sgd(1e-4)}), GRU, LOW),
    Program(
        "language-decay",
        partial(_model, fit={"optimizer": adamw(1e-2, weight_decay=30.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
    Program(
        "language-over-clipped",
        partial(_gated, fit={"optimizer": sgd(0.5), "clip": 1e-3}),
        GRU,
        ("over-clipping",),
    ),
    Program("language-detached", partial(_gated, detach=True), GRU, ("missing-gradient",), ("embed", "cell")),
    Program(
        "language-bare-8",
        partial(_model, partial(_bare, 8), {"steps": 100}),
        REF,
        ("rank-collapse", "vanishing-gradient", "vanishing-signal", "poor-initialization"),
    ),
    Program(
        "language-loud-head",
        partial(_model, change=_loud, fit={"optimizer": sgd(0.003)}),
        REF,
        (
            "poor-initialization",
            "exploding-signal",
            "exploding-gradient",
            "output-mismatch",
            "learning-rate-too-low",
        ),
        ("head",),
    ),
    Program(
        "language-zero-head-and-neck",
        partial(_gated, change=_silent, fit={"optimizer": sgd(0.5)}),
        GRU,
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
        ("head", "neck"),
    ),
    Program(
        "language-never-zeroed",
        partial(_gated, fit={"optimizer": sgd(0.5), "zero_gradients": False}),
        GRU,
        ("gradient-not-zeroed",),
    ),
    Program(
        "language-post-norm-lr", partial(_model, partial(_post_norm, 4), {"optimizer": adam(0.1)}), REF, HIGH
    ),
)
