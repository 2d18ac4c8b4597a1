"""Greedy layer-wise pre-training: each layer first learns to reconstruct what the layer below gives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def pretrain_layer_by_layer(
    layers: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
    learning_rate: float = 1e-3,
) -> list[float]:
    """Train each layer in turn as the encoder of an autoencoder, the layers below it fixed (Bengio 2007).

    The decoder is a linear layer that is thrown away. Return each layer's mean reconstruction error over
    its last epoch.
    """
    return [
        _train_autoencoder(nn.Sequential(*layers[:index]), layer, batches, epochs, learning_rate)
        for index, layer in enumerate(layers)
    ]


def _train_autoencoder(
    below: nn.Module,
    layer: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
    learning_rate: float,
) -> float:
    decoder: nn.Module | None = None
    errors: list[Tensor] = []
    for _ in range(epochs):
        errors = []
        for images, _ in batches:
            with torch.no_grad():
                given = below(images.flatten(1))
            code = layer(given)
            if decoder is None:
                decoder = nn.Linear(code.shape[1], given.shape[1])
                optimizer = torch.optim.Adam([*layer.parameters(), *decoder.parameters()], learning_rate)
            error = functional.mse_loss(decoder(code), given)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(error.detach())
        
    return float(torch.stack(errors).mean())
