"""The sawtooth of Telgarsky (2016) from constructed weights, and the exact count of its pieces."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def deep_sawtooth(folds: int) -> nn.Sequential:
    """Compose the tent map with itself: 2 ReLU units for each fold, 2^folds linear pieces on [0, 1].

    tent(x) = 2 relu(x) - 4 relu(x - 1/2) climbs to 1 at x = 1/2 and falls back to 0 at x = 1.
    """
    hidden, output = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0, -4.0]])
    thresholds = torch.tensor([0.0, -0.5])
    layers = [_linear(hidden, thresholds), nn.ReLU()]
    for _ in range(folds - 1):
        layers += [_linear(hidden @ output, thresholds), nn.ReLU()]
    return nn.Sequential(*layers, _linear(output, torch.zeros(1)))


def flat_sawtooth(folds: int) -> nn.Sequential:
    """Build the same function with one hidden layer: a ReLU unit for each of its 2^folds slopes."""
    pieces = 2**folds
    knots = torch.arange(pieces) / pieces
    changes = 2.0 * pieces * (-1.0) ** torch.arange(pieces)  # of the slope, from piece to piece
    changes[0] = pieces
    return nn.Sequential(
        _linear(torch.ones(pieces, 1), -knots), nn.ReLU(), _linear(changes.unsqueeze(0), torch.zeros(1))
    )


def sawtooth(x: Tensor, folds: int) -> Tensor:
    """Return the folds-fold tent of x in [0, 1]: twice the distance to a full period, in periods."""
    scaled = x * 2 ** (folds - 1)
    teeth: Tensor = 2 * (scaled - scaled.round()).abs()
    return teeth


def count_pieces(network: nn.Sequential, low: float = 0.0, high: float = 1.0, tolerance: float = 0.0) -> int:
    """Count the linear pieces on [low, high] of a Linear/ReLU network with one input and one output.

    A breakpoint of the network is a zero of some unit. They are found layer by layer: between two breakpoints
    each unit is linear, so its zeros follow from its values at them. Slopes that differ by no more than
    `tolerance` times the largest count as one piece. In float64 dyadic weights are counted exactly.
    """
    points = torch.tensor([low, high], dtype=torch.float64)
    values = points.unsqueeze(1)
    for layer in network:
        if isinstance(layer, nn.ReLU):
            points, values = _with_zeros(points, values)
            values = values.relu()
        elif isinstance(layer, nn.Linear):
            values = values @ layer.weight.detach().double().T + layer.bias.detach().double()
        else:
            raise TypeError(f"count_pieces follows Linear and ReLU layers, not {type(layer).__name__}")
    slopes = values[:, 0].diff() / points.diff()
    return 1 + int((slopes.diff().abs() > tolerance * slopes.abs().max()).sum())


def _with_zeros(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Add to the points every place where a unit changes sign, and interpolate all units there."""
    left, right = values[:-1], values[1:]
    interval, unit = torch.nonzero(left * right < 0, as_tuple=True)
    share = left[interval, unit] / (left[interval, unit] - right[interval, unit])
    zeros = points[interval] + share * (points[interval + 1] - points[interval])
    at_zeros = left[interval] + share.unsqueeze(1) * (right[interval] - left[interval])
    at_zeros[torch.arange(len(unit)), unit] = 0.0
    points, order = torch.cat([points, zeros]).sort()
    values = torch.cat([values, at_zeros])[order]
    kept = torch.cat([torch.tensor([True]), points.diff() > 0])
    return points[kept], values[kept]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer
