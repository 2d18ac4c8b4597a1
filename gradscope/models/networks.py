"""Small networks for 8 × 8 images: convolutional, recurrent, and a transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

RECURRENT: dict[str, Callable[[int, int], nn.Module]] = {
    "rnn": lambda features, width: nn.RNN(features, width, batch_first=True),
    "lstm": lambda features, width: nn.LSTM(features, width, batch_first=True),
    "gru": lambda features, width: nn.GRU(features, width, batch_first=True),
}


class ConvNet(nn.Module):
    """Two convolutions with pooling, then a linear classifier."""

    def __init__(self, channels: int = 16, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(2 * channels * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 64) pixels to (batch, classes) logits."""
        return self.classifier(self.features(images.view(-1, 1, 8, 8)).flatten(1))  # type: ignore[no-any-return]


class Reader(nn.Module):
    """A recurrent network that reads the image as a sequence, `pixels` at a time, and then names it."""

    def __init__(self, kind: str = "lstm", pixels: int = 8, width: int = 64, classes: int = 10):
        super().__init__()
        self.pixels = pixels
        self.recurrent = RECURRENT[kind](pixels, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 64) pixels to (batch, classes) logits."""
        states, _ = self.recurrent(images.view(len(images), -1, self.pixels))
        return self.classifier(states[:, -1])  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A pre-norm transformer encoder over the image's rows, with learned positions."""

    def __init__(self, depth: int = 2, width: int = 32, heads: int = 4, classes: int = 10):
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.positions = nn.Parameter(0.02 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 64) pixels to (batch, classes) logits."""
        rows = self.embedding(images.view(-1, 8, 8)) + self.positions
        return self.classifier(self.encoder(rows).mean(dim=1))  # type: ignore[no-any-return]
