"""Published faulty programs on tables and images (tuning), ported from their described configurations.

The Keras originals train for hundreds of epochs; here the steps are fewer and, where the learning rate is not
the fault, it is higher, so that the repaired twin still succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits, images, table
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, rmsprop, sgd

GLOROT, HE, SMALL = net.glorot, net.he_uniform, net.uniform(0.05)
BCE = F.binary_cross_entropy_with_logits


def _one_unit_softmax(output: nn.Module) -> Setup:
    """#11: 10,000 ones and 10,000 zeros (here 1,000 each) of 128 features."""
    inputs = torch.cat([torch.ones(1000, 128), torch.zeros(1000, 128)])
    targets = inputs[:, :1].clone()
    model = net.mlp((128, 50, 50, 50, 1), initialise=GLOROT, dropout=0.2, output=output)
    return classify(model, (inputs, targets), rmsprop(), F.binary_cross_entropy, steps=100, threshold=0.5)


def _cubic_noise(lr: float, factor: float = 1.0) -> Setup:
    """#12: y = 5 x² + noise³ on x = 0 … 5 in steps of 0.1."""
    random = torch.Generator().manual_seed(12)
    inputs = torch.arange(0, 5, 0.1)[:, None]
    targets = 5 * inputs.square() + torch.randn(inputs.shape, generator=random) ** 3
    model = net.mlp((1, 50, 30, 1), initialise=SMALL)
    return regress(model, (inputs, targets), sgd(lr), steps=500, batch_size=25)


def _fourth_power(scaled: bool) -> Setup:
    """#13: y = x⁴ on x = -100 … 100."""
    inputs = torch.arange(-100, 101.0)[:, None]
    targets = inputs**4
    if scaled:
        inputs, targets = ((value - value.mean()) / value.std() for value in (inputs, targets))
    first, second = net.mlp((1, 50), initialise=GLOROT), net.mlp((50, 50, 1), nn.ELU, GLOROT)
    return regress(nn.Sequential(*first, nn.Sigmoid(), *second), (inputs, targets), adam(1e-2), steps=400)


def _clouds(lr: float) -> Setup:
    """#14: two shifted uniform clouds, five epochs."""
    random = torch.Generator().manual_seed(14)
    inputs = torch.rand(1000, 2, generator=random)
    targets = torch.arange(1000) % 2
    inputs = inputs + targets[:, None]
    model = net.mlp((2, 2, 2), nn.Sigmoid, GLOROT)
    return classify(model, (inputs, targets), adam(lr), steps=5 * 16)


def _xor(repaired: bool) -> Setup:
    """#15: XOR with mean absolute error and slow SGD."""
    inputs = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    targets = torch.tensor([[0.0], [1], [1], [0]])
    model = net.mlp((2, 4, 1), nn.Sigmoid, GLOROT, output=nn.Sigmoid())
    if repaired:
        return regress(model, (inputs, targets), adam(0.1), steps=400)
    return regress(model, (inputs, targets), sgd(0.05, momentum=0.11), F.l1_loss, steps=400)


def _xor_softmax(repaired: bool) -> Setup:
    """#16: XOR with a softmax over one unit."""
    inputs = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    targets = torch.tensor([[0.0], [1], [1], [0]])
    if repaired:
        model = net.mlp((2, 8, 8, 1), nn.Tanh, GLOROT, output=nn.Sigmoid())
        return regress(model, (inputs, targets), adam(0.03), steps=300)
    model = net.mlp((2, 2, 3, 1), nn.Sigmoid, SMALL, output=nn.Softmax(1))
    return regress(model, (inputs, targets), sgd(1e-3), steps=300)


def _digits_no_activation(repaired: bool) -> Setup:
    """#17: two linear layers of unit normal weights, SGD 3.0, mean squared error."""
    if repaired:
        model = net.mlp((64, 30, 10), nn.Sigmoid, GLOROT)
        return classify(model, digits(), sgd(0.5), steps=400)
    model = net.mlp((64, 30, 10), nn.Identity, net.normal(1.0))
    return classify(
        model,
        digits(),
        sgd(3.0),
        lambda outputs, targets: F.mse_loss(outputs, F.one_hot(targets, 10).float()),
    )


def _unbounded(output: nn.Module | None) -> Setup:
    """#18: targets outside of a sigmoid's range."""
    random = torch.Generator().manual_seed(18)
    inputs = 2 * torch.rand(500, 1, generator=random) - 1
    model = net.mlp((1, 5, 1), nn.Sigmoid, GLOROT, output=output)
    return regress(model, (inputs, 4 * inputs + 3), sgd(0.1), steps=500, batch_size=32)


def _softmax_unscaled(repaired: bool) -> Setup:
    """#19: three features in [0, 1e4], a softmax over one unit, momentum SGD."""
    random = torch.Generator().manual_seed(19)
    inputs = 1e4 * torch.rand(500, 3, generator=random)
    targets = inputs.mean(1, keepdim=True) / 1e4
    if repaired:
        inputs, targets = ((value - value.mean(0)) / value.std(0) for value in (inputs, targets))
        model = net.mlp((3, 8, 8, 1), nn.Tanh, GLOROT)
        return regress(model, (inputs, targets), sgd(0.05, momentum=0.9))
    model = net.mlp((3, 3, 2, 1), nn.Tanh, GLOROT, dropout=0.5, output=nn.Softmax(1))
    return regress(model, (inputs, targets), sgd(0.1, momentum=0.9))


def _multi_label(repaired: bool) -> Setup:
    """#20: three independent labels through a softmax and mean squared error."""
    random = torch.Generator().manual_seed(20)
    inputs = torch.randn(600, 20, generator=random)
    targets = (inputs @ torch.randn(20, 3, generator=random) > 0).float()
    if repaired:
        model = net.mlp((20, 32, 32, 3), initialise=GLOROT, output=nn.Sigmoid())
        return regress(model, (inputs, targets), adam(1e-2), F.binary_cross_entropy)
    model = net.mlp((20, 20, 20, 3), initialise=GLOROT, dropout=0.5, output=nn.Softmax(1))
    return regress(model, (inputs, targets), sgd(0.01))


def _byte_codes(repaired: bool) -> Setup:
    """#21: learn a permutation of the 256 byte codes, bit by bit."""
    codes = torch.arange(256)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(21))
    bits = ((codes[:, None] >> torch.arange(8)) & 1).float()
    if repaired:
        model = net.mlp((8, 128, 128, 8), initialise=HE)
        return regress(model, (2 * bits - 1, bits[order]), adam(5e-3), steps=400)
    model = net.mlp((8, 8, 8, 8), nn.Sigmoid, net.normal(0.05), output=nn.Sigmoid())
    return regress(model, (bits, bits[order]), sgd(0.1), steps=400)


def _line(lr: float) -> Setup:
    """#22: one linear unit."""
    random = torch.Generator().manual_seed(22)
    inputs = torch.randn(256, 1, generator=random)
    targets = 3 * inputs + 2 + 0.3 * torch.randn(256, 1, generator=random)
    return regress(nn.Sequential(nn.Linear(1, 1)), (inputs, targets), rmsprop(lr), batch_size=32)


def _iris(repaired: bool) -> Setup:
    """#23: Iris, unscaled, four ReLU units, a sigmoid before the cross-entropy."""
    if repaired:
        return classify(net.mlp((4, 8, 3), initialise=HE), table("iris"), adam(1e-2), batch_size=32)
    model = net.mlp((4, 4, 3), initialise=net.normal(0.05), output=nn.Sigmoid())
    return classify(model, table("iris", scaled=False), adam(), batch_size=32, steps=100)


def _binary_relu(repaired: bool) -> Setup:
    """#24: a ReLU as the output of a binary classifier of unscaled features (here: breast cancer)."""
    inputs, targets = table("breast_cancer", scaled=repaired)
    targets = targets[:, None].float()
    model = net.mlp((30, 3, 1), initialise=HE if repaired else SMALL, output=None if repaired else nn.ReLU())
    if repaired:
        return classify(model, (inputs, targets), adam(1e-2), BCE)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy(outputs.clamp(1e-7, 1 - 1e-7), targets)

    return classify(model, (inputs, targets), adam(), loss, threshold=0.5)


def _ones(repaired: bool) -> Setup:
    """#25: a text classifier (here: digits) whose hidden layer starts at ones."""
    model = net.mlp((64, 256, 10), initialise=GLOROT if repaired else net.constant(1.0))
    return classify(model, digits(), adam(), steps=150)


def _convolution(
    first: Callable[[Tensor], object] = GLOROT, second: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), second(),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    net.initialised(model, GLOROT)
    first(model[0].weight)
    return model


def _first_convolution(first: Callable[[Tensor], object]) -> Setup:
    """#26: a first convolution of zeros, Adadelta 1.0."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adadelta(parameters, lr=1.0)

    return classify(_convolution(first), images(), optimizer, steps=150)


def _second_convolution(second: Callable[[], nn.Module]) -> Setup:
    """#27: a hard sigmoid behind the second convolution."""
    return classify(_convolution(second=second), images(), adam(), steps=150)


def _nine(
    fit: dict[str, Any] | None = None, scale: int = 1, output: nn.Module | None = None, **network: Any
) -> Setup:
    """#28: 9 → 64 → 64 → 1; scale 0 leaves the raw table, 2 normalises twice."""
    random = torch.Generator().manual_seed(28)
    ranges = torch.tensor([8.0, 400, 200, 5000, 25, 80, 1, 1, 1])
    offsets = torch.tensor([3.0, 60, 50, 1600, 8, 70, 0, 0, 0])
    raw = ranges * torch.rand(400, 9, generator=random) + offsets
    unit = (raw - raw.mean(0)) / raw.std(0)
    targets = 23 - 5 * unit[:, 3:4] + 3 * unit[:, 5:6] + 4 * unit[:, 2:3] * unit[:, 0:1]
    inputs = (raw, unit, (unit - raw.mean(0)) / raw.std(0))[scale]
    model = net.mlp((9, 64, 64, 1), output=output, **network)
    options = {"optimizer": adam(1e-2, weight_decay=1e-5), "steps": 300, **(fit or {})}
    return regress(model, (inputs, targets), **options)


def _broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) - targets).square().mean()


def _flipped(outputs: Tensor, targets: Tensor) -> Tensor:
    return -F.mse_loss(outputs, targets)


def _summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets, reduction="sum")


NINE = "published-28-clean"
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
EXPLODED = ("non-finite", "exploding-signal", "exploding-gradient", "poor-initialization")
OUTPUT, HIGH, LOW = ("output-mismatch",), ("learning-rate-too-high",), ("learning-rate-too-low",)
PROGRAMS = (
    Program(
        "published-11-one-unit-softmax",
        partial(_one_unit_softmax, nn.Softmax(1)),
        "published-11-sigmoid",
        (*OUTPUT, "zero-gradient"),
        ("9", "10"),
    ),
    Program("published-11-sigmoid", partial(_one_unit_softmax, nn.Sigmoid()), target=1.0),
    Program(
        "published-12-cubic-noise",
        partial(_cubic_noise, 0.1),
        "published-12-lr-1e-3",
        (*HIGH, "dead-units"),
        (),
    ),
    Program("published-12-lr-1e-3", partial(_cubic_noise, 1e-3), target=0.8),
    Program(
        "published-13-fourth-power",
        partial(_fourth_power, False),
        "published-13-scaled",
        ("unscaled-input", "output-mismatch", "learning-rate-too-low"),
    ),
    Program("published-13-scaled", partial(_fourth_power, True), target=0.9),
    Program("published-14-clouds", partial(_clouds, 1e-3), "published-14-lr-0.1", LOW),
    Program("published-14-lr-0.1", partial(_clouds, 0.1), target=0.95),
    Program(
        "published-15-xor",
        partial(_xor, False),
        "published-15-adam",
        (*LOW, "output-mismatch", "vanishing-gradient", "saturated-activation"),
    ),
    Program("published-15-adam", partial(_xor, True), target=0.9),
    Program(
        "published-16-xor-softmax",
        partial(_xor_softmax, False),
        "published-16-repaired",
        (*OUTPUT, "zero-gradient"),
        ("4", "5"),
    ),
    Program("published-16-repaired", partial(_xor_softmax, True), target=0.9),
    Program(
        "published-17-no-activation",
        partial(_digits_no_activation, False),
        "published-17-repaired",
        (*HIGH, *EXPLODED),
    ),
    Program("published-17-repaired", partial(_digits_no_activation, True), target=0.9),
    Program(
        "published-18-range", partial(_unbounded, nn.Sigmoid()), "published-18-linear", OUTPUT, ("2", "3")
    ),
    Program("published-18-linear", partial(_unbounded, None), target=0.9),
    Program(
        "published-19-softmax-unscaled",
        partial(_softmax_unscaled, False),
        "published-19-repaired",
        (*OUTPUT, "unscaled-input", "zero-gradient"),
    ),
    Program("published-19-repaired", partial(_softmax_unscaled, True), target=0.9),
    Program(
        "published-20-multi-label", partial(_multi_label, False), "published-20-repaired", (*OUTPUT, *LOW), ()
    ),
    Program("published-20-repaired", partial(_multi_label, True), target=0.9),
    Program(
        "published-21-byte-codes", partial(_byte_codes, False), "published-21-repaired", (*VANISHED, *LOW)
    ),
    Program("published-21-repaired", partial(_byte_codes, True), target=0.7),
    Program("published-22-line", partial(_line, 1e-3), "published-22-lr-0.1", LOW),
    Program("published-22-lr-0.1", partial(_line, 0.1), target=0.95),
    Program(
        "published-23-iris",
        partial(_iris, False),
        "published-23-repaired",
        (*OUTPUT, *LOW, "poor-initialization", "dead-units"),
        (),
    ),
    Program("published-23-repaired", partial(_iris, True), target=0.93),
    Program(
        "published-24-relu-output",
        partial(_binary_relu, False),
        "published-24-repaired",
        (*OUTPUT, "unscaled-input", "dead-units"),
        (),
    ),
    Program("published-24-repaired", partial(_binary_relu, True), target=0.95),
    Program(
        "published-25-ones",
        partial(_ones, False),
        "published-25-glorot",
        ("symmetric-weights", "poor-initialization"),
        ("0", "1", "2"),
    ),
    Program("published-25-glorot", partial(_ones, True), target=0.95),
    Program(
        "published-26-zero-convolution",
        partial(_first_convolution, net.constant(0.0)),
        "published-26-glorot",
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
        ("0",),
    ),
    Program("published-26-glorot", partial(_first_convolution, GLOROT), target=0.95),
    Program(
        "published-27-hard-sigmoid",
        partial(_second_convolution, nn.Hardsigmoid),
        "published-27-relu",
        ("saturated-activation", "vanishing-gradient"),
        (),
    ),
    Program("published-27-relu", partial(_second_convolution, nn.ReLU), target=0.9),
    Program(NINE, _nine, target=0.9),
    Program("published-28-lr-3", partial(_nine, {"optimizer": adam(3.0)}), NINE, HIGH),
    Program("published-28-lr-1e-5", partial(_nine, {"optimizer": adam(1e-5)}), NINE, LOW),
    Program("published-28-eps-1e-16", partial(_nine, {"optimizer": adam(1e-2, eps=1e-16)}), NINE),
    Program(
        "published-28-l2-100",
        partial(_nine, {"optimizer": adam(1e-2, weight_decay=100.0)}),
        NINE,
        ("excessive-weight-decay",),
    ),
    Program("published-28-not-normalised", partial(_nine, scale=0), NINE, ("unscaled-input",), ("0", "1")),
    Program("published-28-normalised-twice", partial(_nine, scale=2), NINE, ("unscaled-input",), ("0", "1")),
    Program(
        "published-28-softmax-output",
        partial(_nine, output=nn.Softmax(1)),
        NINE,
        (*OUTPUT, "zero-gradient"),
        ("4", "5"),
    ),
    Program("published-28-sigmoid-output", partial(_nine, output=nn.Sigmoid()), NINE, OUTPUT, ("4", "5")),
    Program(
        "published-28-constant-init",
        partial(_nine, initialise=net.constant(0.1)),
        NINE,
        ("symmetric-weights", "poor-initialization"),
        (),
    ),
    Program("published-28-summed-loss", partial(_nine, {"loss": _summed}), NINE),
    Program("published-28-broadcast", partial(_nine, {"loss": _broadcast}), NINE, OUTPUT, ()),
    Program(
        "published-28-flipped",
        partial(_nine, {"loss": _flipped}),
        NINE,
        ("loss-divergence", "output-mismatch"),
    ),
)
