"""Sequence to sequence (tuning): reverse short sequences with attention, recurrent and not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, sgd

LENGTH, SYMBOLS, WIDTH, BLANK = 6, 12, 32, 0
Loss = Callable[[Tensor, Tensor], Tensor]


@cache
def _phrases(padded: bool = False) -> tuple[Tensor, Tensor]:
    """Return sequences (2048, 6) of symbols 2 to 11 and the same reversed; padded: some end in blanks."""
    random = torch.Generator().manual_seed(31)
    source = torch.randint(2, SYMBOLS, (2048, LENGTH), generator=random)
    target = source.flip(1)
    if padded:
        lengths = torch.randint(3, LENGTH + 1, (2048, 1), generator=random)
        places = torch.arange(LENGTH)
        source = source.masked_fill(places >= lengths, BLANK)
        order = (lengths - 1 - places).clamp(min=0)
        target = source.gather(1, order).masked_fill(places >= lengths, BLANK)
    return source, target


def _shifted(target: Tensor) -> Tensor:
    """Return what the decoder is shown: the start symbol 1, then the target but for its last symbol."""
    return F.pad(target[:, :-1], (1, 0), value=1)


def _translate(
    model: nn.Module, fit: dict[str, Any] | None = None, loss: Loss = F.cross_entropy, padded: bool = False
) -> Setup:
    """Teach with the true past shown; score: the share of right symbols, blanks left out."""
    source, target = _phrases(padded)
    real = target != BLANK

    def train(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0], _shifted(batch[1])).float().flatten(0, 1), batch[1].flatten())

    def score(model: nn.Module) -> float:
        outputs = model(source[:512], _shifted(target[:512]))
        right = outputs.argmax(2) == target[:512]
        return right[real[:512]].float().mean().item() if outputs.isfinite().all() else chance

    chance = target[real].bincount().max().item() / int(real.sum())
    options = {"optimizer": adam(1e-2), "steps": 250, **(fit or {})}
    return replace(classify(model, (source, target), **options), loss=train, score=score, chance=chance)


class _Dot(nn.Module):
    """Look up the memory by scaled dot products; `sharpness` multiplies them."""

    def __init__(self, sharpness: float = 1.0):
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.sharpness = sharpness / WIDTH**0.5

    def forward(self, state: Tensor, memory: Tensor, blank: Tensor) -> Tensor:
        scores = self.sharpness * self.query(state) @ self.key(memory).mT
        return scores.masked_fill(blank[:, None], -torch.inf).softmax(2) @ memory


class _Additive(nn.Module):
    """Look up the memory by a small network (Bahdanau 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.mix = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, state: Tensor, memory: Tensor, blank: Tensor) -> Tensor:
        hidden = torch.tanh(self.query(state)[:, :, None] + self.key(memory)[:, None])
        scores = self.mix(hidden)[..., 0]
        return scores.masked_fill(blank[:, None], -1e9).softmax(2) @ memory


class _Recurrent(nn.Module):
    """GRU encoder and decoder (Luong 2015); `look` is the attention, None hands on the last state alone."""

    def __init__(
        self,
        look: nn.Module | None = None,
        end: nn.Module | None = None,
        detached: bool = False,
        inverted: bool = False,
    ):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, WIDTH, padding_idx=BLANK)
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.decoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.look, self.end = look, end or nn.Identity()
        self.head = nn.Linear(2 * WIDTH if look else WIDTH, SYMBOLS)
        self.detached, self.inverted = detached, inverted

    def forward(self, source: Tensor, shown: Tensor) -> Tensor:
        memory, last = self.encoder(self.embed(source))
        if self.detached:
            memory, last = memory.detach(), last.detach()
        state, _ = self.decoder(self.embed(shown), last)
        if self.look is None:
            return self.end(self.head(state))
        blank = source != BLANK if self.inverted else source == BLANK
        return self.end(self.head(torch.cat([state, self.look(state, memory, blank)], 2)))


class _Transformer(nn.Module):
    """torch's own encoder-decoder (Vaswani 2017), one block each; the tied one is post-norm."""

    def __init__(self, tied: bool = False):
        super().__init__()
        self.embed, self.place = nn.Embedding(SYMBOLS, WIDTH), nn.Parameter(0.3 * torch.randn(LENGTH, WIDTH))
        options = {"dropout": 0.0, "batch_first": True, "norm_first": not tied}
        self.body = nn.Transformer(WIDTH, 2, 1, 1, 64, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(WIDTH, SYMBOLS)
        with torch.no_grad():
            self.embed.weight.mul_(0.3)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, source: Tensor, shown: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        memory, state = self.embed(source) + self.place, self.embed(shown) + self.place
        return self.head(self.body(memory, state, tgt_mask=mask, tgt_is_causal=True))


class _Convolution(nn.Module):
    """Gated convolutions over source and shifted target side by side (van den Oord 2016)."""

    def __init__(self, gate_bias: float = 0.0, skip: bool = True):
        super().__init__()
        self.skip = skip
        self.embed = nn.Embedding(SYMBOLS, 16)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, 2 * WIDTH, 3) for _ in range(4))
        self.head = nn.Linear(WIDTH, SYMBOLS)
        for layer in self.layers:
            nn.init.constant_(layer.bias[WIDTH:], gate_bias)

    def forward(self, source: Tensor, shown: Tensor) -> Tensor:
        hidden = torch.cat([self.embed(source.flip(1)), self.embed(shown)], 2).mT
        for layer in self.layers:
            change = F.glu(layer(F.pad(hidden, (2, 0))), 1)
            hidden = hidden + change if self.skip else change
        return self.head(hidden.mT)


def _luong(fit: dict[str, Any] | None = None, sharpness: float = 1.0, **network: Any) -> Setup:
    return _translate(_Recurrent(_Dot(sharpness), **network), fit)


def _bare(part: str | None = None, fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    """Hand on the encoder's last state alone; part: the only part that the optimizer is given."""
    model = _Recurrent(**network)
    chosen = {"parameters": list(model.get_submodule(part).parameters())} if part else {}
    return _translate(model, {"steps": 120, **chosen, **(fit or {})})


def _transformer(fit: dict[str, Any] | None = None, loss: Loss = F.cross_entropy, **network: Any) -> Setup:
    return _translate(_Transformer(**network), {"optimizer": adam(3e-3), **(fit or {})}, loss)


def _padded() -> Setup:
    return _translate(_Recurrent(_Additive()), None, _of_real, padded=True)


def _smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.2)


def _of_real(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=BLANK)


def _of_logs(outputs: Tensor, targets: Tensor) -> Tensor:
    """Take the logarithm of probabilities again, which changes nothing."""
    return F.cross_entropy(outputs.log_softmax(1), targets)


def _warm_up(step: int) -> float:
    """Rise over 60 steps, then fall with the root of the step (Vaswani 2017)."""
    return min((step + 1) / 60, (60 / (step + 1)) ** 0.5)


REF, BARE, TRANSFORMER, GATED = (f"translation-{name}" for name in ("luong", "bare", "transformer", "gated"))
PROGRAMS = (
    Program("translation-luong", _luong, target=0.97),
    Program("translation-additive", _padded, REF),
    Program("translation-bare", _bare, target=0.6),
    Program("translation-transformer", _transformer, target=0.95),
    Program(
        "translation-tied-warm-up",
        partial(_transformer, {"optimizer": adam(5e-3), "schedule": _warm_up}, tied=True),
        TRANSFORMER,
    ),
    Program("translation-smoothed", partial(_transformer, loss=_smoothed), TRANSFORMER),
    Program("translation-log-softmax-twice", partial(_transformer, loss=_of_logs), TRANSFORMER),
    Program("translation-adam-clipped-tightly", partial(_luong, {"clip": 1e-3, "steps": 200}), REF),
    Program("translation-gated", lambda: _translate(_Convolution()), REF),
    Program(
        "translation-sharp-look",
        partial(_luong, {"optimizer": adam(3e-3)}, 3000.0),
        REF,
        ("attention-collapse", "poor-initialization", "saturated-activation"),
        ("look", "look.*"),
    ),
    Program("translation-inverted-mask", partial(_luong, inverted=True), REF, ("non-finite",), ("look",)),
    Program(
        "translation-encoder-detached",
        partial(_bare, detached=True),
        BARE,
        ("missing-gradient",),
        ("encoder",),
    ),
    Program(
        "translation-decoder-forgotten",
        partial(_bare, "encoder"),
        BARE,
        ("not-optimized",),
        ("decoder", "head", "embed"),
    ),
    Program(
        "translation-gates-shut",
        lambda: _translate(_Convolution(-15.0, skip=False)),
        GATED,
        ("saturated-activation", "vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("layers.*",),
    ),
    Program(
        "translation-over-clipped",
        partial(_luong, {"optimizer": sgd(0.5), "clip": 1e-3}),
        REF,
        ("over-clipping",),
    ),
    Program(
        "translation-decay",
        partial(_transformer, {"optimizer": adamw(3e-3, weight_decay=50.0)}),
        TRANSFORMER,
        ("excessive-weight-decay",),
    ),
)
