"""Momentum as a moving average and Adam with its two moments, equal to torch.optim and compared (Kingma, Ba 2015)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from charts import line_chart
from page import Claim, Figure, Result, Table, at_least, at_most, main
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.models.optimizers import MovingAverageSGD, WrittenAdam

SCALES = torch.logspace(0, 4, 10, dtype=torch.float64)  # curvatures of the quadratic: condition number 10^4
Build = Callable[[list[nn.Parameter]], Optimizer]

PAIRS: dict[str, tuple[Build, Build]] = {  # ours, and what should be the same in torch
    "momentum, v = 0.9 v + 0.1 g": (
        lambda weights: MovingAverageSGD(weights, lr=0.05, momentum=0.9),
        lambda weights: torch.optim.SGD(weights, lr=0.05 * (1 - 0.9), momentum=0.9),
    ),
    "Adam": (
        lambda weights: WrittenAdam(weights, lr=0.01),
        lambda weights: torch.optim.Adam(weights, lr=0.01),
    ),
    "Adam + L2": (
        lambda weights: WrittenAdam(weights, lr=0.01, weight_decay=0.1),
        lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.1),
    ),
    "AdamW": (
        lambda weights: WrittenAdam(weights, lr=0.01, weight_decay=0.1, decoupled=True),
        lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
    ),
}
WITH_DAMPENING: Build = lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, dampening=0.9)  # noqa: E731


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, test images and labels: 1347 and 450 digits of 8 × 8 pixels."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(images / 16 - 0.3)[order], torch.tensor(labels)[order]
    return images[:1347], labels[:1347], images[1347:], labels[1347:]


def deep_network(seed: int, depth: int = 12, width: int = 32) -> nn.Sequential:
    """Build a deep ReLU network in float64, with He initialisation."""
    torch.manual_seed(seed)
    sizes = [64, *[width] * depth]
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)).double()


def trained(build: Build, steps: int, seed: int = 0) -> tuple[nn.Sequential, list[float]]:
    """Train the deep network on digits; return it and the loss at each step."""
    images, labels, _, _ = digits()
    network = deep_network(seed)
    optimizer, losses = build(list(network.parameters())), []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network, losses


def difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Return the largest difference of two networks' weights, relative to the largest weight."""
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    largest = max(weight.abs().max().item() for _, weight in pairs)
    return max((mine - weight).abs().max().item() for mine, weight in pairs) / largest


def quadratic_descent(build: Build, steps: int) -> list[float]:
    """Minimise half the sum of curvature times weight²; return the loss at each step."""
    weights = nn.Parameter(torch.ones(len(SCALES), dtype=torch.float64))
    optimizer, losses = build([weights]), []
    for _ in range(steps):
        loss = (SCALES * weights.square()).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
