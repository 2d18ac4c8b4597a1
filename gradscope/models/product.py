"""Multiply n numbers with a neural network: a deep tree of 4(n-1) neurons, or 2^n in one layer.

Lin, Tegmark and Rolnick, "Why does deep and cheap learning work so well?", 2017, and Rolnick and Tegmark,
"The power of deeper networks for expressing natural functions", 2018, which proves that one layer needs 2^n.
"""

from __future__ import annotations

import math
from itertools import product as combinations

import torch
from torch import Tensor, nn

SECOND_DERIVATIVE = 0.25  # of softplus at 0


class ProductGate(nn.Module):
    """Multiply two numbers with four softplus neurons; the relative error is about (x² + y²) / 12.

    The even part of softplus is log 2 + z²/8 + O(z⁴), and (x + y)² - (x - y)² = 4xy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 4, bias=False)
        self.output = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]]))
            self.output.weight.copy_(torch.tensor([[1.0, 1, -1, -1]]) / (4 * SECOND_DERIVATIVE))

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the products of pairs, (..., 2) to (...)."""
        products: Tensor = self.output(nn.functional.softplus(self.hidden(pairs)))
        return products.squeeze(-1)


class ProductTree(nn.Module):
    """Multiply n = 2^levels numbers pair by pair: n - 1 gates, 4(n - 1) neurons, log2(n) hidden layers.

    Inputs are at most `scale` in size. A product of two is at most scale², so a level multiplies its
    results by 1/scale (a factor that belongs in the next level's weights): all gates work at one scale.
    """

    def __init__(self, inputs: int, scale: float = 0.1) -> None:
        super().__init__()
        if inputs < 2 or inputs & (inputs - 1):
            raise ValueError(f"ProductTree multiplies 2, 4, 8, ... inputs, not {inputs}")
        self.inputs, self.scale = inputs, scale
        self.gates = nn.ModuleList(
            nn.ModuleList(ProductGate() for _ in range(inputs >> level))
            for level in range(1, inputs.bit_length())
        )

    @property
    def neurons(self) -> int:
        """Return the number of hidden units."""
        return 4 * (self.inputs - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product over the last axis, (batch, inputs) to (batch)."""
        for level in self.gates:
            pairs = x.unflatten(-1, (-1, 2))
            assert isinstance(level, nn.ModuleList)
            gated = [gate(pairs[:, place]) for place, gate in enumerate(level)]
            x = torch.stack(gated, dim=-1) / self.scale
        return x[:, 0] * self.scale ** (self.inputs - 1)


class FlatProduct(nn.Module):
    """Multiply n numbers with one hidden layer of 2^n softplus neurons, one for each choice of signs.

    The sum over signs s of s_1 ... s_n softplus(s·x) cancels every term of the Taylor series up to
    x_1 ... x_n, which is left with the factor 2^n times the n-th derivative of softplus at 0 (n even).
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        if inputs < 2 or inputs % 2:
            raise ValueError(f"FlatProduct multiplies an even number of inputs, not {inputs}")
        signs = torch.tensor(list(combinations([1.0, -1.0], repeat=inputs)))
        self.hidden = nn.Linear(inputs, len(signs), bias=False)
        self.output = nn.Linear(len(signs), 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(signs)
            self.output.weight.copy_(signs.prod(dim=1) / (2**inputs * softplus_derivative(inputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the product over the last axis, (batch, inputs) to (batch)."""
        products: Tensor = self.output(nn.functional.softplus(self.hidden(x)))
        return products.squeeze(-1)


def softplus_derivative(order: int) -> float:
    """Return the even-order derivative of softplus at 0: (2^n - 1) B_n / n, with B_n a Bernoulli number."""
    return float(2**order - 1) * _bernoulli(order) / order


def _bernoulli(order: int) -> float:
    """Return a Bernoulli number of even order by its recursion."""
    numbers = [1.0]
    for n in range(1, order + 1):
        numbers.append(-sum(math.comb(n + 1, k) * numbers[k] for k in range(n)) / (n + 1))
    return numbers[order]
