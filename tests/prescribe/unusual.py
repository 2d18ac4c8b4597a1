"""Models unlike the usual ones: each builds what a user may bring, and an input for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.prescribe.models import mlp


class TiedTokens(nn.Module):
    """Shares its embedding with its output, and one linear layer with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(11, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.body(self.embed(x)))
        return self.head(torch.tanh(self.body(x)))


def _double(fan_in: int, fan_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(fan_out, fan_out, 3, padding=1),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Halves and doubles the resolution, and joins both ways by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = (
            _double(1, 8),
            _double(8, 16),
            nn.ConvTranspose2d(16, 8, 2, stride=2),
        )
        self.join, self.out = _double(16, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        coarse = self.middle(functional.max_pool2d(fine, 2))
        return self.out(self.join(torch.cat([self.up(coarse), fine], 1)))


class ChannelNorm(nn.LayerNorm):
    """Normalises over the channels of (batch, channel, row, column)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """A depthwise convolution, a normalisation over channels, two linear layers with the channels last."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), ChannelNorm(width)
        self.wide, self.act, self.narrow = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm(self.depthwise(x)).permute(0, 2, 3, 1)
        return x + (self.gamma * self.narrow(self.act(self.wide(branch)))).permute(0, 3, 1, 2)


class Next(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 4, stride=4), nn.Sequential(NextBlock(), NextBlock())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Decoder(nn.Module):
    """Layers of torch's transformer decoder, given a mask, between tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in "12"
        )
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = memory = self.embed(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=mask)
        return self.head(x)


class CausalAttention(nn.Module):
    """Attention by hand, whose forward() takes another way in training."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.project = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        share = 0.1 if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], dropout_p=share, is_causal=True
        )
        return self.project(mixed.transpose(1, 2).reshape(batch, length, width))


class LanguageModel(nn.Module):
    """A decoder by hand with tied embeddings."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, width), nn.Embedding(20, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in "12")
        self.attention = CausalAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        x = x + self.attention(self.norms[0](x))
        return self.head(x + self.mlp(self.norms[1](x)))


class Projected(nn.Module):
    """An LSTM whose state is projected to fewer units."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 10, num_layers=2, proj_size=4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Cells(nn.Module):
    """A recurrence written as a loop over cells."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above, self.head = nn.GRUCell(6, 10), nn.LSTMCell(10, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        low, state = x.new_zeros(len(x), 10), (x.new_zeros(len(x), 10), x.new_zeros(len(x), 10))
        for step in range(x.shape[1]):
            low = self.below(x[:, step], low)
            state = self.above(low, state)
        return self.head(torch.relu(state[0]))


class Experts(nn.Module):
    """A mixture that sends each sample to its two best experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(8, 4), nn.Linear(8, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        best = functional.softmax(self.gate(x), -1).topk(2, -1)
        weights = torch.zeros_like(x[:, :4]).scatter(1, best.indices, best.values)
        answers = torch.stack([expert(x) for expert in self.experts], 1)
        return self.out(functional.relu(x + (weights.unsqueeze(-1) * answers).sum(1)))


class Containers(nn.Module):
    """Keeps its layers in a ModuleDict, one activation for two of them, and in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleDict({"left": nn.Linear(8, 8), "right": nn.Linear(8, 8), "act": nn.Tanh()})
        self.chain, self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sides["act"](self.sides["left"](x)) + self.sides["act"](self.sides["right"](x))
        for layer in self.chain:
            x = functional.relu(layer(x))
        return self.out(x)


class Branching(nn.Module):
    """Chooses its activation by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(self.second(x)) if x.sum() > 0 else torch.tanh(self.second(x))
        return self.out(x)


class Options(nn.Module):
    """Branches on an argument that is a flag with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, *, with_hidden: bool = False) -> Any:
        hidden = functional.leaky_relu(self.first(x), 0.2)
        return (self.out(hidden), hidden) if with_hidden else self.out(hidden)


class Heads(pl.LightningModule):
    """A LightningModule with its layers in submodules of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU())
        self.heads, self.criterion = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 3)}), nn.MSELoss()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x)
        return self.heads["a"](hidden) + self.heads["b"](hidden)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return self.criterion(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU6(), nn.Conv2d(4, 8, 1), nn.PReLU(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def _one_activation() -> nn.Module:
    activation = nn.Tanh()
    return nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 8), activation, nn.Linear(8, 2))


def _computed_weights() -> nn.Module:
    first = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))


def _rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 8, dtype=dtype)


def _tokens() -> Tensor:
    return torch.randint(11, (4, 5))


PATIENTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "U-Net": (UNet, lambda: torch.randn(2, 1, 8, 8)),
    "ConvNeXt": (Next, lambda: torch.randn(2, 3, 16, 16)),
    "encoder": (_encoder, lambda: torch.randn(4, 5, 16)),
    "decoder": (Decoder, _tokens),
    "language model": (LanguageModel, _tokens),
    "tied and shared": (TiedTokens, _tokens),
    "bidirectional": (
        lambda: nn.GRU(8, 16, num_layers=2, bidirectional=True),
        lambda: torch.randn(4, 5, 8),
    ),
    "projected": (Projected, lambda: torch.randn(4, 5, 6)),
    "cells": (Cells, lambda: torch.randn(4, 5, 6)),
    "experts": (Experts, _rows),
    "containers": (Containers, _rows),
    "branching": (Branching, _rows),
    "options": (Options, _rows),
    "Lightning": (Heads, _rows),
    "depthwise": (depthwise, lambda: torch.randn(2, 4, 6, 6)),
    "one activation": (_one_activation, _rows),
    "computed weights": (_computed_weights, _rows),
    "float64": (lambda: mlp(width=8).double(), lambda: _rows(torch.float64)),
    "bfloat16": (lambda: mlp(width=8).bfloat16(), lambda: _rows(torch.bfloat16)),
    "float16": (lambda: mlp(width=8).half(), lambda: _rows(torch.float16)),
}
