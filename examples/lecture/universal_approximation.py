"""One hidden layer approximates any continuous function, the closer the wider it is (Cybenko 1989)."""

from __future__ import annotations

import math
from collections.abc import Callable

import plotly.graph_objects as go
import torch
from page import Claim, Figure, Result, Table, at_least, at_most, main
from torch import Tensor, nn

GRID = torch.linspace(-1, 1, 2001, dtype=torch.float64).unsqueeze(1)
WIDTHS = {1: (2, 4, 8, 16), 3: (8, 16, 32, 64)}  # frequency of the sine: widths of the hidden layer
QUICK_WIDTHS = {1: (2, 4, 8), 3: (8, 16)}
KNOWN = {(1, 2): 0.83, (1, 4): 0.025, (1, 8): 0.0012, (3, 8): 0.12, (3, 16): 0.042, (3, 32): 0.010, (3, 64): 0.006}


def one_hidden_layer(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()


def fit(network: nn.Module, inputs: Tensor, targets: Tensor, iterations: int) -> None:
    """Minimise the mean squared error with L-BFGS on the whole data."""
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=iterations, tolerance_grad=1e-10, tolerance_change=1e-14,
        history_size=50, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)


def fitted(width: int, target: Callable[[Tensor], Tensor], iterations: int, seeds: int = 3) -> tuple[float, Tensor]:
    """Return the smallest sup error of some seeds, on a grid ten times finer than the data, and its curve."""
    inputs = torch.linspace(-1, 1, 201, dtype=torch.float64).unsqueeze(1)
    tries = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = one_hidden_layer(width)
        network[0].weight.data *= width  # spread the kinks over the interval
        fit(network, inputs, target(inputs), iterations)
        curve = network(GRID).detach()
        tries.append(((curve - target(GRID)).abs().max().item(), curve))
    return min(tries, key=lambda attempt: attempt[0])
