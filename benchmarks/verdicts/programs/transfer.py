"""Transfer (tuning): frozen bodies, adapters, distillation, twin networks and triplets on digits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress

Loss = Callable[[nn.Module, Batch], Tensor]


@cache
def _task(high: bool) -> Pair:
    """Return the digits 0 to 4, or 5 to 9 (`high`), as classes 0 to 4."""
    inputs, targets = digits()
    rows = (targets >= 5) == high
    return inputs[rows], targets[rows] - 5 * high


class _Classifier(nn.Module):
    """A body and a head, under names that a user would give."""

    def __init__(self, body: nn.Module, head: nn.Module, cut: bool = False):
        super().__init__()
        self.body, self.head, self.cut = body, head, cut

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        return self.head(features.detach() if self.cut else features)


def _body(features: int = 32) -> nn.Sequential:
    return net.mlp((64, 48, 48, features), output=nn.ReLU())


def _taught(model: nn.Module, data: Pair, steps: int = 150) -> nn.Module:
    """Train a model on a task, as what is downloaded has been."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(0, len(data[0]), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
    return model


def _pretrained() -> _Classifier:
    """Return a body that knows the low digits, with a new head."""
    model = _taught(_Classifier(_body(), nn.Linear(32, 5)), _task(False))
    return _Classifier(model.body, nn.Linear(32, 5))


def _tune(
    prepare: Callable[[_Classifier], Iterable[Any] | None] = lambda model: None,
    fit: dict[str, Any] | None = None,
    model: _Classifier | None = None,
) -> Setup:
    """Fine-tune on the high digits; prepare: changes the model, and may choose what the optimizer gets."""
    model = model or _pretrained()
    chosen = prepare(model)
    options = {"optimizer": adam(3e-3), "steps": 200, "parameters": chosen, **(fit or {})}
    return classify(model, _task(True), **options)


def _freeze_body(model: _Classifier) -> None:
    model.body.requires_grad_(False)


def _bias_only(model: _Classifier) -> None:
    """Train biases and the head (BitFit, Ben Zaken 2022)."""
    for name, parameter in model.body.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


def _two_rates(model: _Classifier) -> list[dict[str, Any]]:
    return [{"params": model.body.parameters(), "lr": 1e-5}, {"params": model.head.parameters(), "lr": 1e-2}]


def _old_head(model: _Classifier) -> list[nn.Parameter]:
    """Give the optimizer the parameters, replace the head afterwards."""
    model.body.requires_grad_(False)
    old = list(model.parameters())
    model.head = nn.Linear(32, 5)
    return [parameter for parameter in old if parameter.requires_grad]


def _closed_head(model: _Classifier) -> None:
    model.body.requires_grad_(False)
    hidden = nn.Linear(32, 32)
    nn.init.constant_(hidden.bias, -100.0)
    model.head = nn.Sequential(hidden, nn.ReLU(), nn.Linear(32, 5))


class _Adapter(nn.Module):
    """A small residual neck behind a frozen layer (Houlsby 2019); its last layer starts at zero."""

    def __init__(self, width: int, neck: int = 12):
        super().__init__()
        self.down, self.up = nn.Linear(width, neck), nn.Linear(neck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.up(self.down(inputs).relu())


def _add_adapters(model: _Classifier) -> None:
    model.body.requires_grad_(False)
    first, second, last = model.body[:2], model.body[2:4], model.body[4:]
    model.body = nn.Sequential(*first, _Adapter(48), *second, _Adapter(48), *last)


def _converged(fit: dict[str, Any]) -> Setup:
    """Go on with a model that has learned the task already."""
    model = _taught(_Classifier(_body(), nn.Linear(32, 5)), _task(True), 300)
    return _tune(fit=fit, model=model)


def _from_scratch(cut: bool, fit: dict[str, Any] | None = None) -> Setup:
    """Learn all ten digits through four features; cut: the body is detached, though nobody had trained it."""
    model = _Classifier(_body(4), net.mlp((4, 32, 10)), cut)
    return classify(model, digits(), **{"optimizer": adam(5e-3), "steps": 300, **(fit or {})})


class _Distilled(nn.Module):
    """A student beside its frozen teacher; returns the student's answer."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = _taught(net.mlp((64, 64, 10)), digits(), 250).requires_grad_(False)
        self.student = net.mlp((64, 24, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.student(inputs)


def _distilled(logarithm: bool = True, sharpness: float = 0.25, fit: dict[str, Any] | None = None) -> Setup:
    """Learn from the teacher's softened answers (Hinton 2015); kl_div wants the student's logarithms."""

    def loss(model: Any, batch: Batch) -> Tensor:
        answer = sharpness * model(batch[0])
        wanted = (sharpness * model.teacher(batch[0])).softmax(1)
        told = answer.log_softmax(1) if logarithm else answer.softmax(1)
        return F.kl_div(told, wanted, reduction="batchmean") / sharpness**2

    setup = classify(_Distilled(), digits(), **{"optimizer": adam(5e-3), "steps": 250, **(fit or {})})
    return replace(setup, loss=loss)


def _views(inputs: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return two noisy views of each digit."""
    one, two = (inputs + 0.5 * torch.randn(inputs.shape, generator=random) for _ in range(2))
    return one, two


def _find_twin(body: nn.Module) -> float:
    """Return minus the nats it takes to find a digit's other view among 256 (van den Oord 2018)."""
    one, two = (
        F.normalize(body(views), dim=1)
        for views in _views(digits()[0][:256], torch.Generator().manual_seed(5))
    )
    value = -F.cross_entropy(10 * one @ two.T, torch.arange(256)).item()
    return value if value == value else -5.545


class _Twins(nn.Module):
    """A body called on both views, and a predictor between them."""

    def __init__(self, predictor: bool, norm: bool):
        super().__init__()
        self.body = net.mlp((64, 64, 64, 16), norm=nn.BatchNorm1d if norm else None)
        if norm:
            self.body.append(nn.BatchNorm1d(16, affine=False))
        self.predictor = net.mlp((16, 24, 16)) if predictor else nn.Identity()


def _twins(stop: bool = True, fit: dict[str, Any] | None = None) -> Setup:
    """Agree on two views without negatives (SimSiam, Chen 2021); without the stop all answers become one."""

    def loss(model: Any, batch: Batch) -> Tensor:
        one, two = (model.body(views) for views in _views(batch[0]))
        aims = (two.detach(), one.detach()) if stop else (two, one)
        pairs = zip((one, two), aims, strict=True)
        return -torch.stack(
            [F.cosine_similarity(model.predictor(mine), aim).mean() for mine, aim in pairs]
        ).mean()

    options = {"optimizer": adam(5e-3), "steps": 250, "batch_size": 128, **(fit or {})}
    setup = regress(_Twins(stop, stop), (digits()[0], digits()[0]), **options)
    return replace(setup, loss=loss, score=lambda model: _find_twin(model.body), chance=-5.545)


class _Distance(nn.Module):
    """Return the distance of each row to each other row; its slope at 0 is 0 / 0 without `safety`."""

    def __init__(self, safety: float):
        super().__init__()
        self.safety = safety

    def forward(self, points: Tensor) -> Tensor:
        return ((points[:, None] - points[None]).square().sum(2) + self.safety).sqrt()


class _Embedding(nn.Module):
    """Return the distances between the samples of a batch."""

    def __init__(self, safety: float):
        super().__init__()
        self.body, self.distance = net.mlp((64, 48, 48, 8)), _Distance(safety)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.distance(self.body(inputs))


def _triplets(safety: float = 1e-6, fit: dict[str, Any] | None = None) -> Setup:
    """Bring the farthest friend nearer than the nearest stranger (Hermans 2017).

    Score: the share of 400 digits whose nearest neighbour is of their class.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        distance, same = model(batch[0]), batch[1][:, None] == batch[1]
        friends = distance.masked_fill(~same, 0).amax(1)
        strangers = distance.masked_fill(same, 1e9).amin(1)
        return (friends - strangers + 1).relu().mean()

    def score(model: nn.Module) -> float:
        distance, targets = model(digits()[0][:400]), digits()[1][:400]
        nearest = (distance + 1e9 * torch.eye(400)).argmin(1)
        return (targets[nearest] == targets).float().mean().item() if distance.isfinite().all() else 0.1

    options = {"optimizer": adam(2e-3), "steps": 200, **(fit or {})}
    return replace(classify(_Embedding(safety), digits(), **options), loss=loss, score=score)


REF, SCRATCH, TRIPLETS = "transfer-whole", "transfer-from-scratch", "transfer-triplets"
PROGRAMS = (
    Program("transfer-whole", _tune, target=0.97),
    Program("transfer-probe", partial(_tune, _freeze_body), target=0.85),
    Program("transfer-bias-only", partial(_tune, _bias_only), target=0.85),
    Program("transfer-two-rates", partial(_tune, _two_rates), target=0.85),
    Program("transfer-adapters", partial(_tune, _add_adapters), REF),
    Program("transfer-converged", partial(_converged, {"optimizer": adam(1e-5)}), REF),
    Program("transfer-from-scratch", partial(_from_scratch, False), target=0.9),
    Program("transfer-distilled", _distilled, target=0.95),
    Program("transfer-twins", _twins, target=-3.0),
    Program("transfer-triplets", _triplets, target=0.95),
    Program(
        "transfer-new-head-forgotten",
        partial(_tune, _old_head),
        "transfer-probe",
        ("not-optimized",),
        ("head",),
    ),
    Program(
        "transfer-closed-head",
        partial(_tune, _closed_head),
        "transfer-probe",
        ("dead-units", "poor-initialization"),
        ("head.0", "head.1"),
    ),
    Program(
        "transfer-body-detached", partial(_from_scratch, True), SCRATCH, ("missing-gradient",), ("body.*",)
    ),
    Program(
        "transfer-student-without-logarithm",
        partial(_distilled, False, 0.1),
        "transfer-distilled",
        ("output-mismatch",),
    ),
    Program("transfer-twins-agreed", partial(_twins, False), "transfer-twins", ("rank-collapse",)),
    Program("transfer-triplets-root", partial(_triplets, 0.0), TRIPLETS, ("non-finite",), ("distance",)),
)
