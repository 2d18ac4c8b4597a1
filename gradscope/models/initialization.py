"""How the weights of a linear layer start: the schemes of the literature, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _lecun(weight: Tensor) -> Tensor:
    """Draw from N(0, 1 / fan_in), which keeps the variance through SELU (Klambauer 2017)."""
    return nn.init.kaiming_normal_(weight, nonlinearity="linear")


def _he(weight: Tensor) -> Tensor:
    """Draw from N(0, 2 / fan_in), which keeps the mean square through ReLU (He 2015)."""
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


# "xavier": variance 2 / (fan_in + fan_out) (Glorot 2010). "orthogonal": all singular values 1 (Saxe 2014).
# "normal": N(0, 1) whatever the width, the classic mistake. "default": torch's own, variance 1 / (3 fan_in).
SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "default": lambda weight: weight,
    "he": _he,
    "xavier": nn.init.xavier_normal_,
    "lecun": _lecun,
    "orthogonal": nn.init.orthogonal_,
    "normal": nn.init.normal_,
    "zero": nn.init.zeros_,
}


@torch.no_grad()
def initialize(layer: nn.Linear, scheme: str, gain: float = 1.0, bias: float = 0.0) -> None:
    """Draw a layer's weights by `scheme`, multiply them by `gain`, and start all biases at `bias`.

    The scheme "default" keeps torch's own random biases too, and adds `bias` to them.
    """
    SCHEMES[scheme](layer.weight).mul_(gain)
    if scheme != "default":
        layer.bias.zero_()
    layer.bias.add_(bias)
