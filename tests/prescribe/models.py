"""Real models of several architectures, for surgery and for the remedies' code."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp(
    depth: int = 6, width: int = 16, activation: type[nn.Module] = nn.ReLU, inputs: int | None = None
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth - 1):
        layers += [nn.Linear(inputs or width if index == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class FunctionalMLP(nn.Module):
    """Calls its activations inside forward(), and has a sigmoid at the output."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = torch.sigmoid(self.fc1(x.flatten(1)))
        if mask is not None:
            x = x * mask
        x = functional.dropout(self.fc2(x).sigmoid(), 0.5, self.training)
        return torch.sigmoid(self.fc3(x))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.features(x), 1))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(out)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(6, 10, num_layers=2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decode = nn.Linear(16, 11, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(self.encoder(self.embed(tokens)))


class Lit(pl.LightningModule):
    """A LightningModule around a network, or with layers of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def patients() -> dict[str, tuple[nn.Module, Tensor]]:
    """Return a model and a batch for it, by architecture."""
    torch.manual_seed(0)
    return {
        "mlp": (mlp(inputs=16), torch.randn(8, 16)),
        "functional": (FunctionalMLP(), torch.randn(8, 8)),
        "conv": (ConvNet(), torch.randn(4, 3, 8, 8)),
        "resnet": (ResNet(), torch.randn(4, 3, 8, 8)),
        "lstm": (Recurrent(), torch.randn(4, 7, 6)),
        "transformer": (Transformer(), torch.randint(0, 11, (4, 9))),
        "lightning": (Lit(mlp(inputs=16)), torch.randn(8, 16)),
    }
