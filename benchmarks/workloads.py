"""The four training workloads of the speed benchmark: small enough for 2 cores, each slow in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Workload:
    """A model with one fixed batch: build() makes the model, batch() its inputs and targets."""

    name: str
    summary: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a skip (He 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.skip = (
            nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(out)) + self.skip(x))


class TransformerBlock(nn.Module):
    """A pre-LN block: causal self-attention, then an MLP of four times the width (Radford 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Six pre-LN blocks over 128 tokens of a vocabulary of 512."""

    def __init__(self, blocks: int = 6, width: int = 256, heads: int = 4, length: int = 128) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(512, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 512)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.blocks(self.tokens(tokens) + self.positions(places))
        return self.head(self.norm(hidden)).flatten(0, 1)


def mlp(depth: int, width: int) -> nn.Module:
    """Build depth × (Linear + ReLU) and a head of ten classes, He-initialised."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def resnet() -> nn.Module:
    """Build six basic blocks of 32 to 128 channels."""
    channels = [32, 32, 64, 64, 128, 128]
    blocks, inputs = [], 32
    for outputs in channels:
        blocks.append(BasicBlock(inputs, outputs, 1 if inputs == outputs else 2))
        inputs = outputs
    stem = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def _vectors(batch: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, width), torch.randint(10, (batch,))


def _tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(512, (8, 128)), torch.randint(512, (8 * 128,))


WORKLOADS = (
    Workload("mlp", "20 × (Linear 512 + ReLU), batch 256", lambda: mlp(20, 512), lambda: _vectors(256, 512)),
    Workload("tiny", "50 × (Linear 64 + ReLU), batch 64", lambda: mlp(50, 64), lambda: _vectors(64, 64)),
    Workload(
        "resnet",
        "6 basic blocks of 32 to 128 channels, 32×32, batch 32",
        resnet,
        lambda: (torch.randn(32, 3, 32, 32), torch.randint(10, (32,))),
    ),
    Workload("gpt", "6 pre-LN blocks, d 256, 4 heads, 128 tokens, batch 8", LanguageModel, _tokens),
)
