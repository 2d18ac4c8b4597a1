"""The optimizers that a model can be trained with, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import optim
from torch.nn import Parameter
from torch.optim import Optimizer


def _moving_average(parameters: Iterable[Parameter], rate: float, momentum: float, decay: float) -> Optimizer:
    """Step by the moving average v = m v + (1 − m) g at `rate`, in torch's form of momentum, v = m v + g.

    torch's buffer is 1 / (1 − m) times the average, so the rate shrinks by that factor; its dampening
    would not do, since torch does not dampen the first gradient.
    """
    return optim.SGD(parameters, rate * (1 - momentum), momentum, dampening=0.0, weight_decay=decay)


Build = Callable[[Iterable[Parameter], float, float, float], Optimizer]

# name: (parameters, learning rate, momentum, weight decay) -> optimizer
OPTIMIZERS: dict[str, Build] = {
    "sgd": lambda p, rate, momentum, decay: optim.SGD(p, rate, weight_decay=decay),
    "momentum": lambda p, rate, momentum, decay: optim.SGD(p, rate, momentum, weight_decay=decay),
    "moving-average": _moving_average,
    "adam": lambda p, rate, momentum, decay: optim.Adam(p, rate, (momentum, 0.999), weight_decay=decay),
    "adamw": lambda p, rate, momentum, decay: optim.AdamW(p, rate, (momentum, 0.999), weight_decay=decay),
    "rmsprop": lambda p, rate, momentum, decay: optim.RMSprop(p, rate, weight_decay=decay),
}
