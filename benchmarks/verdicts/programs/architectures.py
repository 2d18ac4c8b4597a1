"""Less usual architectures (tuning): graphs, experts, adapters, diffusion, policies, shared weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import communities, digits, ring
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, classify, sgd, trained


class _Graph(nn.Module):
    """Graph convolutions A relu(A x W) W (Kipf 2017) over all nodes at once."""

    def __init__(self, layers: int, activation: nn.Module):
        super().__init__()
        self.adjacency = communities()[2]
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))
        self.activation, self.head = activation, nn.Linear(16, 4)

    def forward(self, nodes: Tensor) -> Tensor:
        for layer in self.layers:
            nodes = self.activation(self.adjacency @ layer(nodes))
        return self.head(nodes)


def _graph(layers: int = 2, fit: dict[str, Any] | None = None, activation: nn.Module | None = None) -> Setup:
    model = _Graph(layers, activation or nn.ReLU())
    features, groups, _ = communities()
    return classify(
        model,
        (features, groups),
        **{"optimizer": adam(1e-2), "steps": 150, "batch_size": 10000, **(fit or {})},
    )


class _Experts(nn.Module):
    """Send each sample to the expert that a router prefers (Shazeer 2017), weighted by its probability."""

    def __init__(self, experts: int, router_bias: float):
        super().__init__()
        self.router = nn.Linear(64, experts)
        self.experts = nn.ModuleList(net.mlp((64, 24, 10)) for _ in range(experts))
        with torch.no_grad():
            self.router.bias[0] += router_bias

    def forward(self, inputs: Tensor) -> Tensor:
        weights = self.router(inputs).softmax(1)
        chosen = weights.argmax(1)
        outputs = inputs.new_zeros(len(inputs), 10)
        for index, expert in enumerate(self.experts):
            rows = chosen == index
            if rows.any():
                outputs[rows] = weights[rows, index, None] * expert(inputs[rows])
        return outputs


def _experts(fit: dict[str, Any] | None = None, router_bias: float = 0.0) -> Setup:
    return classify(_Experts(4, router_bias), digits(), **{"optimizer": adam(5e-3), **(fit or {})})


class _Adapter(nn.Module):
    """Add a low-rank product to a frozen layer (LoRA, Hu 2022): B starts at zero, A does not."""

    def __init__(self, layer: nn.Linear, rank: int, both_zero: bool):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        if both_zero:
            nn.init.zeros_(self.down.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + self.up(self.down(inputs))


def _adapters(both_zero: bool = False, fit: dict[str, Any] | None = None) -> Setup:
    """Pre-train on five digits, freeze, adapt to digits whose pixels are reversed."""
    model = net.mlp((64, 48, 48, 10))
    inputs, targets = digits()
    optimizer = adam(3e-3)(model.parameters())
    for _ in range(150):
        rows = torch.randint(0, len(inputs), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    layers = [_Adapter(layer, 8, both_zero) if isinstance(layer, nn.Linear) else layer for layer in model]
    adapted = nn.Sequential(*layers)
    flipped = inputs.view(-1, 8, 8).transpose(1, 2).reshape(-1, 64)
    return classify(adapted, (flipped, targets), **{"optimizer": adam(5e-3), **(fit or {})})


def _backbone(frozen: bool, head_bias: float = 0.0) -> Setup:
    """Train a head on a frozen, random convolution backbone."""
    backbone = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten())
    backbone.requires_grad_(not frozen)
    model = nn.Sequential(backbone, *net.mlp((16 * 36, 32, 10)))
    nn.init.constant_(model[1].bias, head_bias)
    return classify(model, digits(), adam(3e-3), steps=150)


class _Denoiser(nn.Module):
    """A small U-Net on points: down, neck, up with a skip, told the noise level."""

    def __init__(self, width: int = 48, saturate: bool = False):
        super().__init__()
        self.enter, self.down, self.neck = nn.Linear(3, width), nn.Linear(width, 16), nn.Linear(16, 16)
        self.up, self.leave = nn.Linear(16 + width, width), nn.Linear(width, 2)
        self.activation = nn.SiLU()
        self.squash = nn.Sigmoid() if saturate else nn.Identity()

    def forward(self, points: Tensor) -> Tensor:
        wide = self.activation(self.enter(points))
        narrow = self.activation(self.neck(self.activation(self.down(wide))))
        return self.squash(self.leave(self.activation(self.up(torch.cat([narrow, wide], 1)))))


def _diffusion(fit: dict[str, Any] | None = None, saturate: bool = False, scale: float = 1.0) -> Setup:
    """Predict the noise that was added to points on a ring (Ho 2020); score: explained share of the noise."""
    points = scale * ring()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        level = torch.rand(len(batch[0]), 1)
        noise = torch.randn_like(batch[0])
        noisy = (1 - level).sqrt() * batch[0] + level.sqrt() * noise
        return F.mse_loss(model(torch.cat([noisy, level], 1)), noise)

    def score(model: nn.Module) -> float:
        fixed = torch.Generator().manual_seed(3)
        level = torch.rand(len(points), 1, generator=fixed)
        noise = torch.randn(points.shape, generator=fixed)
        noisy = (1 - level).sqrt() * points + level.sqrt() * noise
        error = F.mse_loss(model(torch.cat([noisy, level], 1)), noise).item()
        return max(0.0, 1 - error) if error == error else 0.0

    model = _Denoiser(saturate=saturate)
    options = {"steps": 300, **(fit or {})}
    optimizer = options.pop("optimizer", adam(5e-3))
    return Setup(model, optimizer(model.parameters()), (points,), loss, score, 0.0, **options)


def _policy(fit: dict[str, Any] | None = None, gain: float = 1.0) -> Setup:
    """Learn which of ten arms suits a digit from a sparse reward of 0 or 1 (REINFORCE, Williams 1992)."""
    inputs, targets = digits()
    model = net.mlp((64, 64, 10))
    with torch.no_grad():
        model[-1].weight.mul_(0.1)
        model[-1].bias[0] = gain - 1.0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        policy = torch.distributions.Categorical(logits=model(batch[0]))
        arms = policy.sample()
        reward = (arms == batch[1]).float()
        return -((reward - 0.1) * policy.log_prob(arms)).mean()

    options = {"steps": 500, "batch_size": 128, **(fit or {})}
    optimizer = options.pop("optimizer", adam(5e-3))
    base = classify(model, digits())
    return Setup(
        model, optimizer(model.parameters()), (inputs, targets), loss, base.score, base.chance, **options
    )


def _contrast(fit: dict[str, Any] | None = None, temperature: float = 0.1) -> Setup:
    """Pull two noisy views of a digit together (SimCLR, Chen 2020); score: minus the loss on fixed views."""
    model = net.mlp((64, 64, 64, 16))
    inputs, targets = digits()

    def embed(model: nn.Module, views: Tensor) -> Tensor:
        return F.normalize(model(views), dim=1)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        one = embed(model, batch[0] + 0.5 * torch.randn_like(batch[0]))
        two = embed(model, batch[0] + 0.5 * torch.randn_like(batch[0]))
        return F.cross_entropy(one @ two.T / temperature, torch.arange(len(one)))

    def score(model: nn.Module) -> float:
        random = torch.Generator().manual_seed(4)
        one, two = (
            embed(model, inputs[:256] + 0.5 * torch.randn(256, 64, generator=random)) for _ in range(2)
        )
        value = -F.cross_entropy(one @ two.T / temperature, torch.arange(256)).item()
        return value if value == value else -5.545

    options = {"steps": 250, **(fit or {})}
    optimizer = options.pop("optimizer", adam(2e-3))
    return Setup(model, optimizer(trained(model)), (inputs, targets), loss, score, -5.545, **options)


class _TiedDepth(nn.Module):
    """Apply one layer many times (a universal network), with or without a skip."""

    def __init__(self, calls: int, skip: bool, gain: float = 1.0):
        super().__init__()
        self.enter, self.layer, self.norm = nn.Linear(64, 32), nn.Linear(32, 32), nn.LayerNorm(32)
        self.head, self.calls, self.skip = nn.Linear(32, 10), calls, skip
        net.scaled(net.orthogonal, gain)(self.layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        for _ in range(self.calls):
            new = torch.tanh(self.layer(self.norm(hidden) if self.skip else hidden))
            hidden = hidden + new if self.skip else new
        return self.head(hidden)


def _tied(calls: int, skip: bool, gain: float = 1.0, fit: dict[str, Any] | None = None) -> Setup:
    return classify(
        _TiedDepth(calls, skip, gain), digits(), **{"optimizer": adam(3e-3), "steps": 200, **(fit or {})}
    )


class _Siamese(nn.Module):
    """Tell whether two digits are equal, with one shared body called twice."""

    def __init__(self, distance: Callable[[Tensor], Tensor]):
        super().__init__()
        self.body, self.distance, self.head = net.mlp((64, 48, 16)), net.Apply(distance), nn.Linear(16, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        one, two = self.body(pairs[:, :64]), self.body(pairs[:, 64:])
        return self.head(self.distance(one - two))


def _siamese(distance: Callable[[Tensor], Tensor], fit: dict[str, Any] | None = None) -> Setup:
    inputs, targets = digits()
    random = torch.Generator().manual_seed(11)
    other = torch.randperm(len(inputs), generator=random)
    same = torch.cat([torch.where(targets == value)[0].roll(1) for value in range(10)])
    mine = torch.cat([torch.where(targets == value)[0] for value in range(10)])
    pairs = torch.cat([torch.cat([inputs, inputs[other]], 1), torch.cat([inputs[mine], inputs[same]], 1)])
    equal = torch.cat([targets == targets[other], torch.ones(len(mine), dtype=torch.bool)])[:, None].float()
    loss = F.binary_cross_entropy_with_logits
    return classify(
        _Siamese(distance), (pairs, equal), **{"optimizer": adam(5e-3), "loss": loss, **(fit or {})}
    )


GRAPH, EXPERTS, LORA, DIFFUSION = "graph-convolution", "mixture-of-experts", "adapters-lora", "diffusion-unet"
HIGH, LOW = ("learning-rate-too-high",), ("learning-rate-too-low",)
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
PROGRAMS = (
    Program(GRAPH, _graph, target=0.9),
    Program("graph-convolution-tanh", partial(_graph, activation=nn.Tanh()), GRAPH),
    Program(EXPERTS, _experts, target=0.93),
    Program(LORA, _adapters, target=0.85),
    Program("frozen-backbone", partial(_backbone, True), target=0.95),
    Program(DIFFUSION, _diffusion, target=0.5),
    Program("policy-sparse-reward", _policy, target=0.75),
    Program("contrastive", _contrast, target=-3.0),
    Program("tied-depth-skip", partial(_tied, 8, True), target=0.95),
    Program("tied-depth-orthogonal", partial(_tied, 8, False), "tied-depth-skip"),
    Program("siamese", partial(_siamese, torch.abs), target=0.9),
    Program("graph-smoothed-12", partial(_graph, 12), GRAPH, ("rank-collapse", *VANISHED)),
    Program(
        "graph-sigmoid-8",
        partial(_graph, 8, activation=nn.Sigmoid()),
        GRAPH,
        ("rank-collapse", "saturated-activation", *VANISHED),
    ),
    Program("graph-lr-1e-6", partial(_graph, fit={"optimizer": adam(1e-6)}), GRAPH, LOW),
    Program("mixture-lr-1", partial(_experts, {"optimizer": adam(3.0)}), EXPERTS, HIGH),
    Program("mixture-lr-1e-6", partial(_experts, {"optimizer": adam(1e-6)}), EXPERTS, LOW),
    Program(
        "adapters-both-zero",
        partial(_adapters, True),
        LORA,
        ("zero-gradient", "symmetric-weights", "poor-initialization"),
        ("*.up", "*.down"),
    ),
    Program("adapters-lr-1", partial(_adapters, fit={"optimizer": adam(3.0)}), LORA, HIGH),
    Program(
        "frozen-backbone-dead-head",
        partial(_backbone, True, -200.0),
        "frozen-backbone",
        ("dead-units", "poor-initialization"),
        ("1", "2"),
    ),
    Program("diffusion-lr-3", partial(_diffusion, {"optimizer": adam(3.0)}), DIFFUSION, HIGH),
    Program(
        "diffusion-sigmoid-output",
        partial(_diffusion, saturate=True),
        DIFFUSION,
        ("output-mismatch",),
        ("leave", "squash"),
    ),
    Program("diffusion-lr-1e-6", partial(_diffusion, {"optimizer": adam(1e-6)}), DIFFUSION, LOW),
    Program(
        "policy-lr-1", partial(_policy, {"optimizer": adam(1.0), "steps": 300}), "policy-sparse-reward", HIGH
    ),
    Program(
        "contrastive-over-clipped",
        partial(_contrast, {"optimizer": sgd(0.1), "clip": 1e-4}),
        "contrastive",
        ("over-clipping",),
    ),
    Program("tied-depth-contracting", partial(_tied, 20, False, 0.2), "tied-depth-orthogonal", VANISHED),
    Program(
        "tied-depth-saturated",
        partial(_tied, 10, False, 40.0, {"optimizer": sgd(0.01)}),
        "tied-depth-orthogonal",
        ("saturated-activation", "exploding-gradient", "poor-initialization"),
        ("layer",),
    ),
    Program(
        "siamese-root",
        partial(_siamese, lambda x: (x * x - 1e-3).sqrt()),
        "siamese",
        ("non-finite",),
        ("distance",),
    ),
    Program(
        "siamese-never-zeroed",
        partial(_siamese, torch.abs, {"optimizer": sgd(0.1), "zero_gradients": False}),
        "siamese",
        ("gradient-not-zeroed",),
    ),
)
