"""Greedy layer-wise pre-training with autoencoders (Bengio, Lamblin, Popovici and Larochelle 2007)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def pretrain_layers(
    layers: list[nn.Linear],
    activation: Callable[[Tensor], Tensor],
    data: Tensor,
    steps: int = 200,
    lr: float = 0.01,
    batch_size: int = 128,
    noise: float = 0.0,
) -> list[float]:
    """Train each layer in turn to keep what its input says; return each layer's reconstruction error.

    Layer k sees the outputs of the layers under it, already trained. It is trained with a linear decoder that
    is thrown away afterwards. data: (samples, fan-in of the first layer); noise: share of inputs set to 0 (a
    denoising autoencoder, Vincent 2008). The error is the share of the input's variance that is lost: 0 is
    perfect, 1 is no better than the mean.
    """
    errors = []
    for layer in layers:
        errors.append(_train_autoencoder(layer, activation, data, steps, lr, batch_size, noise))
        with torch.no_grad():
            data = activation(layer(data))
    return errors


def _train_autoencoder(
    layer: nn.Linear,
    activation: Callable[[Tensor], Tensor],
    data: Tensor,
    steps: int,
    lr: float,
    batch_size: int,
    noise: float,
) -> float:
    decoder = nn.Linear(layer.out_features, layer.in_features).to(data)
    spread = data.var(dim=0).sum() / data.shape[1]  # a small signal is as important as a large one
    optimizer = torch.optim.Adam([*layer.parameters(), *decoder.parameters()], lr=lr)
    loss = torch.tensor(torch.nan)
    for _ in range(steps):
        batch = data[torch.randint(len(data), (batch_size,))]
        corrupted = batch * (torch.rand_like(batch) >= noise)
        loss = (decoder(activation(layer(corrupted))) - batch).square().mean() / spread
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
