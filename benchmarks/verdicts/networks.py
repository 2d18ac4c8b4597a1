"""Networks and initialisations that several families of programs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import init

Initialise = Callable[[Tensor], object]


def he(weight: Tensor) -> None:
    """Draw from N(0, 2 / fan_in)."""
    init.kaiming_normal_(weight, nonlinearity="relu")


def he_uniform(weight: Tensor) -> None:
    """Draw from U(±sqrt(6 / fan_in)), what Keras calls he_uniform."""
    init.kaiming_uniform_(weight, nonlinearity="relu")


def glorot(weight: Tensor) -> None:
    """Draw from U(±sqrt(6 / (fan_in + fan_out)))."""
    init.xavier_uniform_(weight)


def lecun(weight: Tensor) -> None:
    """Draw from N(0, 1 / fan_in)."""
    init.kaiming_normal_(weight, nonlinearity="linear")


def orthogonal(weight: Tensor) -> None:
    """Draw an orthogonal matrix."""
    init.orthogonal_(weight)


def uniform(bound: float) -> Initialise:
    """Draw from U(±bound)."""
    return lambda weight: init.uniform_(weight, -bound, bound)


def normal(deviation: float) -> Initialise:
    """Draw from N(0, deviation²)."""
    return lambda weight: init.normal_(weight, 0, deviation)


def constant(value: float) -> Initialise:
    """Set every entry to one value."""
    return lambda weight: init.constant_(weight, value)


def scaled(initialise: Initialise, factor: float) -> Initialise:
    """Draw as `initialise` does and multiply by a factor."""

    def draw(weight: Tensor) -> None:
        initialise(weight)
        with torch.no_grad():
            weight.mul_(factor)

    return draw


def initialised(model: nn.Module, initialise: Initialise | None) -> nn.Module:
    """Initialise weights of linear and convolution layers, biases to zero; None keeps torch's own."""
    for module in model.modules():
        if initialise and isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            initialise(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def mlp(
    sizes: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    initialise: Initialise | None = he,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    output: nn.Module | None = None,
) -> nn.Sequential:
    """Build Linear (norm) activation (dropout) ... Linear (output) in one Sequential."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), *([norm(fan_out)] if norm else []), activation()]
        layers += [nn.Dropout(dropout)] if dropout else []
    layers += [nn.Linear(sizes[-2], sizes[-1]), *([output] if output else [])]
    model = nn.Sequential(*layers)
    initialised(model, initialise)
    return model


class Apply(nn.Module):
    """Apply a function, so that it has a name among the layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class Residual(nn.Module):
    """Add a branch to its input, x + scale * branch(x); a trained scale is ReZero (Bachlechner 2020)."""

    def __init__(self, branch: nn.Module, scale: float = 1.0, trained: bool = False):
        super().__init__()
        self.branch = branch
        self.scale = nn.Parameter(torch.tensor(scale)) if trained else scale

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.scale * self.branch(inputs)


class Attention(nn.Module):
    """Self-attention over nn.MultiheadAttention, with an optional causal mask."""

    def __init__(self, width: int, heads: int = 2, causal: bool = False):
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.causal = causal

    def forward(self, inputs: Tensor) -> Tensor:
        length = inputs.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return self.attend(inputs, inputs, inputs, attn_mask=mask, need_weights=False)[0]


def pre_norm_block(width: int, causal: bool = False, heads: int = 2) -> nn.Sequential:
    """Build a pre-LN transformer block."""
    attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal))
    feed_forward = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
    )
    return nn.Sequential(Residual(attention), Residual(feed_forward))


class Tokens(nn.Module):
    """Embed tokens and places, run a body, and project with a head (every place, or the mean over places)."""

    def __init__(self, vocabulary: int, width: int, length: int, body: nn.Module, outputs: int, pool: bool):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.body = body
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        self.pool = pool

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.body(self.embed(tokens) + self.place))
        return self.head(hidden.mean(1) if self.pool else hidden)


class Recurrent(nn.Module):
    """Run a recurrent layer over (batch, time, features) and classify its last output."""

    def __init__(self, cell: nn.RNNBase, outputs: int):
        super().__init__()
        self.cell = cell
        width = cell.hidden_size * (2 if cell.bidirectional else 1)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.cell(inputs)[0][:, -1])
