"""Momentum and Adam written out in a few lines each, as they stand on the blackboard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class MovingAverageSGD(Optimizer):
    """Descend along the gradients' moving average: v = b v + (1 - b) g, w = w - lr v.

    Equal to torch.optim.SGD(lr=lr * (1 - momentum), momentum=momentum), whose buffer is v / (1 - b). (Torch's
    dampening=momentum is not the same: it does not damp the first gradient.)
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; give at least 0 and less than 1")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, if one is given."""
        loss = _evaluate(closure)
        for group, weight, gradient, state in _gradients(self):
            beta = group["momentum"]
            velocity = state.setdefault("momentum_buffer", torch.zeros_like(weight))
            velocity.mul_(beta).add_(gradient, alpha=1 - beta)
            weight.sub_(velocity, alpha=group["lr"])
        return loss


class WrittenAdam(Optimizer):
    """Adam (Kingma and Ba 2015): averages of the gradient and of its square, corrected for their start.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g²,  w = w - lr m_hat / (sqrt(v_hat) + eps). Weight
    decay either adds decay * w to the gradient (L2), or, decoupled, shrinks w by lr * decay (AdamW,
    Loshchilov and Hutter 2019).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, if one is given."""
        loss = _evaluate(closure)
        for group, weight, gradient, state in _gradients(self):
            (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            if group["decoupled"]:
                weight.mul_(1 - lr * decay)
            else:
                gradient = gradient + decay * weight
            state["step"] = t = state.get("step", 0) + 1
            mean = state.setdefault("exp_avg", torch.zeros_like(weight))
            square = state.setdefault("exp_avg_sq", torch.zeros_like(weight))
            mean.mul_(beta1).add_((1 - beta1) * gradient)
            square.mul_(beta2).add_((1 - beta2) * gradient**2)
            mean_hat, square_hat = mean / (1 - beta1**t), square / (1 - beta2**t)
            weight.sub_(lr * mean_hat / (square_hat.sqrt() + group["eps"]))
        return loss


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _gradients(optimizer: Optimizer) -> Iterable[tuple[dict[str, Any], Tensor, Tensor, dict[str, Any]]]:
    """Yield group, weight, gradient and state of each parameter that has a gradient."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                yield group, weight, weight.grad, optimizer.state[weight]
