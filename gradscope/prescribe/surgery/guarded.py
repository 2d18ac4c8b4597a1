"""Run anybody's code with operations that stay finite at the edge of their domain, and that have a slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROOT_FLOOR, LOG_FLOOR, NO_DENOMINATOR = 1e-8, 1e-6, 1e-12
MASKED = -1e4  # for minus infinity in front of a softmax; its exponential is zero in every dtype
_SLOPE = 1.0  # of the line that goes on below the floor: enough to lead what fell below it back
_SHARPNESS = 4.0  # of the sigmoid whose slope stands for that of a comparison

Function = Callable[..., Any]
Guard = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]


class Guarded(TorchFunctionMode):
    """While entered, guard what torch computes in forward passes and losses; backward() follows by itself.

    finite: roots, logarithms, powers, quotients and softmaxes are kept off the points at which they, or their
    slopes, are infinite. slopes: rounding, signs and comparisons pass the gradient on as if they were not
    there (Bengio et al. 2013). Nothing changes where the inputs are inside the domain.
    """

    def __init__(self, finite: bool = True, slopes: bool = False) -> None:
        """Choose the guards."""
        super().__init__()
        self._guards: dict[str, Guard] = {**(_FINITE if finite else {}), **(_SLOPES if slopes else {})}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the guard of this operation compute it, or torch where it has none."""
        guard = self._guards.get(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {})) if guard is None else guard(func, args, kwargs or {})


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _above(least: float, slope: float) -> Guard:
    """Return a guard that keeps the operand at `least` or above it; below, the gradient is that of a line."""

    def guard(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operand = args[0]
        if not _is_number(operand):
            return func(*args, **kwargs)
        result = func(operand.clamp(min=least), *args[1:], **kwargs)
        below = torch.where(operand < least, operand, operand.detach())
        return result + slope * (below - operand.detach())

    return guard


def _exponential(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Bound the exponent so that even the fourth power of the result is finite."""
    if not _is_number(args[0]):
        return func(*args, **kwargs)
    return func(args[0].clamp(max=math.log(torch.finfo(args[0].dtype).max) / 4), *args[1:], **kwargs)


def _arc(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Keep a cosine or sine off ±1, where the angle's slope is infinite."""
    return func(args[0].clamp(-1 + LOG_FLOOR, 1 - LOG_FLOOR), *args[1:], **kwargs)


def _off_zero(value: Any) -> Any:
    """Put 1 for denominators of zero, as one does for a count of nothing or a vector without length."""
    if isinstance(value, Tensor):
        return torch.where(value.abs() < NO_DENOMINATOR, torch.ones_like(value), value)
    return value or 1.0


def _quotient(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(args[0], _off_zero(args[1]), *args[2:], **kwargs) if len(args) > 1 else func(*args, **kwargs)


def _inverse(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(_off_zero(args[0]), *args[1:], **kwargs)


def _power(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Guard powers below 1, whose slope at zero is infinite, and those that a negative number has not."""
    if len(args) < 2 or not _is_number(args[0]) or not isinstance(args[1], (int, float)):
        return func(*args, **kwargs)
    base, exponent = args[0], args[1]
    if exponent != int(exponent):
        base = base.clamp(min=ROOT_FLOOR)
    elif exponent < 0:
        base = _off_zero(base)
    return func(base, *args[1:], **kwargs)


def _softmax(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Put a large finite number for infinite scores: a row of nothing else is then spread evenly."""
    if not _is_number(args[0]):
        return func(*args, **kwargs)
    return func(args[0].nan_to_num(math.nan, -MASKED, MASKED), *args[1:], **kwargs)


def _attention(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Put the same for masks of attention, which torch turns into minus infinity."""
    masks = {name: _soft_mask(value) for name, value in kwargs.items() if name.endswith("_mask")}
    return func(*args, **{**kwargs, **masks})


def _soft_mask(mask: Any) -> Any:
    if not isinstance(mask, Tensor):
        return mask
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, MASKED)
    return mask.clamp(min=MASKED)


def _passed_through(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute a step, and let the gradient pass it."""
    result = func(*args, **kwargs)
    soft = args[0]
    if not (_is_number(soft) and soft.requires_grad and soft.shape == result.shape):
        return result
    return soft + (result - soft).detach()


def _sign(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute signs, and let the gradient pass between -1 and 1 (Hubara et al. 2016)."""
    result = func(*args, **kwargs)
    if not (_is_number(args[0]) and args[0].requires_grad):
        return result
    soft = args[0].clamp(-1, 1)
    return soft + (result - soft).detach()


def _comparison(sign: float) -> Guard:
    """Return a guard that remembers what was compared, for the cast that may follow."""

    def guard(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        numbers = [value for value in args[:2] if _is_number(value)]
        if any(value.requires_grad for value in numbers):
            result.compared = sign * (args[0] - args[1])
        return result

    return guard


def _cast(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give the outcome of a comparison, made a number, the slope of a sigmoid."""
    result = func(*args, **kwargs)
    compared = getattr(args[0], "compared", None)
    if compared is None or not result.is_floating_point():
        return result
    soft = (_SHARPNESS * compared).sigmoid().to(result.dtype)
    return soft + (result - soft).detach()


def _named(guards: Mapping[str, Guard]) -> dict[str, Guard]:
    """Return the guards under each of their names."""
    return {name: guard for names, guard in guards.items() for name in names.split()}


_FINITE = _named(
    {
        "sqrt": _above(ROOT_FLOOR, _SLOPE),
        "rsqrt": _above(ROOT_FLOOR, -_SLOPE),
        "log log2 log10": _above(LOG_FLOOR, _SLOPE),
        "log1p": _above(-1 + LOG_FLOOR, _SLOPE),
        "exp exp2 expm1 cosh sinh": _exponential,
        "acos asin arccos arcsin": _arc,
        "div divide true_divide __truediv__ __div__": _quotient,
        "reciprocal __rtruediv__ __rdiv__": _inverse,
        "pow __pow__ float_power": _power,
        "softmax log_softmax softmin": _softmax,
        "multi_head_attention_forward": _attention,
    }
)
_SLOPES = _named(
    {
        "round floor ceil trunc fix": _passed_through,
        "sign sgn": _sign,
        "gt ge greater greater_equal __gt__ __ge__": _comparison(1.0),
        "lt le less less_equal __lt__ __le__": _comparison(-1.0),
        "float double half bfloat16 to type type_as": _cast,
    }
)
