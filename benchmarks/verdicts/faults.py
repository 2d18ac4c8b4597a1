"""Faults that can be put into any healthy program, as a mutation of its Setup."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.verdicts.program import Setup

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Softplus)
NORMALIZATIONS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)


class Inapplicable(Exception):
    """Raised where a program has nothing that a fault could be put into."""


@dataclass(frozen=True)
class Mutated:
    """A Setup with a fault in it; where: name patterns of the faulty layers, none if it has no place."""

    setup: Setup
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """A kind of fault: the rules that name it rightly, and how it is put into a Setup."""

    name: str
    causes: tuple[str, ...]
    apply: Callable[[Setup], Mutated] = field(repr=False, compare=False)


def _weighted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear and convolutional layers by name, in the order in which they were registered."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    return [(name, part) for name, part in model.named_modules() if isinstance(part, kinds)]


def _chosen(model: nn.Module, place: str) -> list[tuple[str, nn.Module]]:
    """Return the "first", "middle" or "last" of the weighted layers, or the "body": all but the last."""
    layers = _weighted(model)
    if len(layers) < 3:
        raise Inapplicable
    middle = len(layers) // 2
    slices = {
        "first": slice(1),
        "middle": slice(middle, middle + 1),
        "last": slice(-1, None),
        "body": slice(-1),
    }
    return layers[slices[place]]


def _names(parts: Iterable[tuple[str, nn.Module]]) -> tuple[str, ...]:
    return tuple(name for name, _ in parts)


def _groups(setup: Setup, **factors: float) -> Mutated:
    """Multiply settings of the optimizer."""
    for group in setup.optimizer.param_groups:
        for name, factor in factors.items():
            group[name] = group[name] * factor
    return Mutated(setup)


def _settings(setup: Setup, **values: float) -> Mutated:
    """Set settings of the optimizer, which it must know."""
    for group in setup.optimizer.param_groups:
        if not values.keys() <= group.keys():
            raise Inapplicable
        group.update(values)
    return Mutated(setup)


def _momentum(setup: Setup) -> Mutated:
    """Carry on each update for a thousand steps."""
    for group in setup.optimizer.param_groups:
        if "momentum" not in group or isinstance(setup.optimizer, torch.optim.RMSprop):
            raise Inapplicable
        group.update(momentum=0.999, lr=group["lr"] * 3)
    return Mutated(setup)


def _all_weights(setup: Setup, factor: float) -> Mutated:
    with torch.no_grad():
        for parameter in setup.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return Mutated(setup)


def _weights(setup: Setup, place: str, change: Callable[[Tensor], object]) -> Mutated:
    parts = _chosen(setup.model, place)
    with torch.no_grad():
        for _, part in parts:
            change(part.weight)  # type: ignore[arg-type]
    return Mutated(setup, _names(parts))


def _alike(weight: Tensor) -> None:
    weight.copy_(weight[:1].expand_as(weight).clone())


def _dead(setup: Setup, everywhere: bool) -> Mutated:
    """Keep rectifiers below zero by the bias before them."""
    modules = list(setup.model.named_modules())
    pairs = [
        (before, after)
        for before, after in pairwise(modules)
        if isinstance(after[1], nn.ReLU) and getattr(before[1], "bias", None) is not None
    ]
    if len(pairs) < 2:
        raise Inapplicable
    chosen = pairs if everywhere else [pairs[len(pairs) // 2]]
    with torch.no_grad():
        for (_, before), _ in chosen:
            before.bias.fill_(-30.0)  # type: ignore[union-attr, operator]
    return Mutated(setup, () if everywhere else _names(chosen[0]))


def _activations(setup: Setup, make: Callable[[], nn.Module]) -> Mutated:
    found = [name for name, part in setup.model.named_modules() if isinstance(part, ACTIVATIONS)]
    if len(found) < 2:
        raise Inapplicable
    for name in found:
        parent, _, own = name.rpartition(".")
        setattr(setup.model.get_submodule(parent), own, make())
    return Mutated(setup)


def _inputs(setup: Setup, factor: float = 1.0, offset: float = 0.0) -> Mutated:
    """Change what the model is given, in training and evaluation alike."""
    if not setup.data[0].is_floating_point():
        raise Inapplicable

    def change(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
        first = inputs[0]
        return (first * factor + offset if isinstance(first, Tensor) else first, *inputs[1:])

    setup.model.register_forward_pre_hook(change)
    return Mutated(setup)


def _targets(setup: Setup, factor: float) -> Mutated:
    """Train towards targets of another unit; the score converts back."""
    if len(setup.data) != 2 or not setup.data[1].is_floating_point() or setup.data[1].unique().numel() < 20:
        raise Inapplicable

    def back(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output if module.training else output / factor

    setup.model.register_forward_hook(back)
    loss = setup.loss
    return Mutated(replace(setup, loss=lambda model, batch: loss(model, (batch[0], batch[1] * factor))))


def _frozen(setup: Setup, place: str) -> Mutated:
    parts = _chosen(setup.model, place)
    for _, part in parts:
        part.requires_grad_(False)
    return Mutated(setup, _names(parts))


def _left_out(setup: Setup, place: str) -> Mutated:
    parts = _chosen(setup.model, place)
    left = {parameter for _, part in parts for parameter in part.parameters()}
    for group in setup.optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in left]
    if not any(group["params"] for group in setup.optimizer.param_groups):
        raise Inapplicable
    return Mutated(setup, _names(parts))


def _detached(setup: Setup) -> Mutated:
    [(name, middle)] = _chosen(setup.model, "middle")
    middle.register_forward_hook(lambda module, inputs, output: output.detach())
    before = _weighted(setup.model)[: _names(_weighted(setup.model)).index(name) + 1]
    return Mutated(setup, _names(before))


def _appended(setup: Setup, function: Callable[[Tensor], Tensor]) -> Mutated:
    """Let the last weighted layer end in an activation, as far as the model is called for its outputs."""

    class Ended(nn.Module):
        def __init__(self, layer: nn.Module):
            super().__init__()
            self.layer, self.end = layer, _Function(function)

        def forward(self, inputs: Tensor) -> Tensor:
            result: Tensor = self.end(self.layer(inputs))
            return result

    [(name, last)] = _chosen(setup.model, "last")
    parent, _, own = name.rpartition(".")
    setattr(setup.model.get_submodule(parent), own, Ended(last))
    return Mutated(setup, (f"{name}.*",))


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def _loss(setup: Setup, factor: float, optimizer: type[torch.optim.Optimizer]) -> Mutated:
    if not isinstance(setup.optimizer, optimizer):
        raise Inapplicable
    loss = setup.loss
    return Mutated(replace(setup, loss=lambda model, batch: factor * loss(model, batch)))


def _norms(setup: Setup) -> Mutated:
    found = [item for item in setup.model.named_modules() if isinstance(item[1], NORMALIZATIONS)]
    if not found:
        raise Inapplicable
    name, middle = found[len(found) // 2]
    with torch.no_grad():
        middle.weight.zero_()  # type: ignore[union-attr, operator]
    middle.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    return Mutated(setup, (name,))


def _nan(setup: Setup, after: int = 40) -> Mutated:
    [(name, middle)] = _chosen(setup.model, "middle")
    calls = 0

    def spoil(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += module.training
        return output * float("nan") if calls > after else output

    middle.register_forward_hook(spoil)
    return Mutated(setup, (name,))


def _unzeroed(setup: Setup) -> Mutated:
    return Mutated(replace(setup, zero_gradients=False))


LOW, HIGH = ("learning-rate-too-low",), ("learning-rate-too-high",)
SMALL = ("vanishing-signal", "vanishing-gradient", "poor-initialization")
BLOWN = ("exploding-signal", "exploding-gradient", "poor-initialization")
LARGE = (*BLOWN, "saturated-activation", "attention-collapse")
ALIKE = ("symmetric-weights", "poor-initialization", "rank-collapse")
UNTRAINED = ("not-optimized", "missing-gradient")
SGD, ADAM = torch.optim.SGD, torch.optim.Adam
FAULTS = (
    Fault("rate-x1e-4", LOW, partial(_groups, lr=1e-4)),
    Fault("rate-x1e-3", LOW, partial(_groups, lr=1e-3)),
    Fault("rate-x1e-2", LOW, partial(_groups, lr=1e-2)),
    Fault("rate-x30", HIGH, partial(_groups, lr=30.0)),
    Fault("rate-x300", HIGH, partial(_groups, lr=300.0)),
    Fault("momentum", HIGH, _momentum),
    Fault("weights-x0.01", SMALL, partial(_all_weights, factor=0.01)),
    Fault("weights-x0.1", SMALL, partial(_all_weights, factor=0.1)),
    Fault("weights-x5", LARGE, partial(_all_weights, factor=5.0)),
    Fault("weights-x30", LARGE, partial(_all_weights, factor=30.0)),
    Fault(
        "layer-x0",
        ("zero-gradient", "symmetric-weights", "dead-units", "poor-initialization", "vanishing-signal"),
        partial(_weights, place="middle", change=Tensor.zero_),
    ),
    Fault("layer-x100", LARGE, partial(_weights, place="middle", change=lambda weight: weight.mul_(100))),
    Fault("layer-alike", ALIKE, partial(_weights, place="middle", change=_alike)),
    Fault("body-alike", ALIKE, partial(_weights, place="body", change=_alike)),
    Fault("bias-dead", ("dead-units",), partial(_dead, everywhere=False)),
    Fault("biases-dead", ("dead-units",), partial(_dead, everywhere=True)),
    Fault(
        "sigmoids", (*SMALL, "saturated-activation", "rank-collapse"), partial(_activations, make=nn.Sigmoid)
    ),
    Fault("inputs-x1000", ("unscaled-input",), partial(_inputs, factor=1000.0)),
    Fault("inputs-plus-100", ("unscaled-input",), partial(_inputs, offset=100.0)),
    Fault("inputs-x1e-4", ("unscaled-input", "vanishing-signal"), partial(_inputs, factor=1e-4)),
    Fault(
        "inputs-x0",
        ("vanishing-signal", "unscaled-input", "rank-collapse", "zero-gradient"),
        partial(_inputs, factor=0.0),
    ),
    Fault("targets-x1000", ("output-mismatch",), partial(_targets, factor=1000.0)),
    Fault("targets-x1e-3", ("output-mismatch",), partial(_targets, factor=1e-3)),
    Fault("decay-1", ("excessive-weight-decay",), partial(_settings, weight_decay=1.0)),
    Fault("decay-30", ("excessive-weight-decay",), partial(_settings, weight_decay=30.0)),
    *(Fault(f"{place}-frozen", UNTRAINED, partial(_frozen, place=place)) for place in ("middle", "body")),
    *(
        Fault(f"{place}-left-out", UNTRAINED, partial(_left_out, place=place))
        for place in ("first", "last", "body")
    ),
    Fault("middle-detached", ("missing-gradient",), _detached),
    Fault("gradient-not-zeroed", ("gradient-not-zeroed",), _unzeroed),
    Fault("epsilon-1", ("epsilon-floor", "learning-rate-too-low"), partial(_settings, eps=1.0)),
    Fault("relu-at-end", ("output-mismatch", "dead-units"), partial(_appended, function=torch.relu)),
    Fault(
        "softmax-at-end",
        ("output-mismatch",),
        partial(_appended, function=partial(torch.softmax, dim=-1)),
    ),
    Fault("sigmoid-at-end", ("output-mismatch",), partial(_appended, function=torch.sigmoid)),
    Fault(
        "loss-x1e-5",
        ("learning-rate-too-low", "gradient-underflow"),
        partial(_loss, factor=1e-5, optimizer=SGD),
    ),
    Fault("loss-x1e4", HIGH, partial(_loss, factor=1e4, optimizer=SGD)),
    Fault("loss-x1e-9", ("epsilon-floor",), partial(_loss, factor=1e-9, optimizer=ADAM)),
    Fault(
        "loss-negated",
        ("output-mismatch", "loss-divergence"),
        partial(_loss, factor=-1.0, optimizer=torch.optim.Optimizer),
    ),
    Fault("norm-silent", ("degenerate-normalization", "zero-gradient", "vanishing-signal"), _norms),
    Fault("nan-in-middle", ("non-finite",), _nan),
)
