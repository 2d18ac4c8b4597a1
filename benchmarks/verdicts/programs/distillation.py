"""Teachers and students (held out): soft targets, hints, averaged teachers, several exits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import MakeOptimizer, adam, adamw, sgd, trained

Build = Callable[[], nn.Module]
Loss = Callable[[Any, Tensor, Tensor], Tensor]
WIDTH = 32


@cache
def _taught() -> nn.Module:
    """Return a wide network that has learned the digits, as what is downloaded has."""
    inputs, targets = digits()
    with torch.random.fork_rng():
        torch.manual_seed(421)
        model = net.mlp((64, 128, 64, 10))
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(200):
            rows = torch.randint(0, len(inputs), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return model


def _teacher() -> nn.Module:
    """Return a frozen copy of the teacher."""
    copy = net.mlp((64, 128, 64, 10))
    copy.load_state_dict(_taught().state_dict())
    return copy.requires_grad_(False)


@cache
def _misread(share: float) -> Pair:
    """Return digits of which a share has a random class."""
    inputs, targets = digits()
    random = torch.Generator().manual_seed(422)
    wrong = torch.rand(len(targets), generator=random) < share
    return inputs, torch.where(wrong, torch.randint(0, 10, targets.shape, generator=random), targets)


class _Student(nn.Module):
    """A body and a head."""

    def __init__(self, body: nn.Module, width: int = WIDTH, output: nn.Module | None = None):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 10)
        self.output = output or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.head(self.body(inputs)))


def _body(
    depth: int = 1,
    activation: Build = nn.ReLU,
    initialise: net.Initialise | None = net.he,
    norm: Callable[[int], nn.Module] | None = None,
    shift: float = 0.0,
    width: int = WIDTH,
) -> nn.Module:
    """Return `depth` hidden layers, biases at `shift`."""
    layers = net.mlp((64, *(depth * [width]), width), activation, initialise, norm, output=activation())
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, shift)
    return layers


def _skipped(depth: int) -> nn.Module:
    """Return sigmoids behind batch norms, each level with a skip."""
    levels = [
        net.Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Sigmoid()))
        for _ in range(depth)
    ]
    return nn.Sequential(nn.Linear(64, WIDTH), *levels, nn.BatchNorm1d(WIDTH))


class _Pupil(nn.Module):
    """A student beside its frozen teacher; hinted: with a projection from its features to the teacher's.

    temper: what turns softened logits into probabilities; cosine: the likeness of features of 64.
    """

    def __init__(
        self, body: Build = _body, width: int = WIDTH, output: nn.Module | None = None, hinted: bool = False
    ):
        super().__init__()
        self.student, self.teacher = _Student(body(), width, output), _teacher()
        self.project = nn.Linear(width, 64) if hinted else nn.Identity()
        self.temper = nn.Softmax(1)
        self.cosine = net.Apply(_cosine)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.student(inputs)

    def told(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher(inputs)

    def shown(self, inputs: Tensor) -> Tensor:
        """Return the teacher's last features."""
        with torch.no_grad():
            return self.teacher[:4](inputs)


def _cosine(pair: Tensor) -> Tensor:
    """Return the cosines of rows (2, N, width), without a floor under the lengths."""
    one, two = pair / pair.norm(dim=2, keepdim=True)
    return (one * two).sum(1)


def _soft(temperature: float = 4.0, squared: bool = True, share: float = 0.9) -> Loss:
    """Match softened outputs (Hinton 2015), weighed by the temperature squared, beside the classes."""

    def loss(model: _Pupil, inputs: Tensor, targets: Tensor) -> Tensor:
        answers = model(inputs).float()
        wanted = (model.told(inputs) / temperature).softmax(1)
        soft = F.kl_div((answers / temperature).log_softmax(1), wanted, reduction="batchmean")
        soft = soft * temperature**2 if squared else soft
        return share * soft + (1 - share) * F.cross_entropy(answers, targets)

    return loss


def _logarithm(temperature: float) -> Loss:
    """Match softened outputs by the logarithm of probabilities that may have become 0."""

    def loss(model: _Pupil, inputs: Tensor, targets: Tensor) -> Tensor:
        wanted = (model.told(inputs) / temperature).softmax(1)
        return -(wanted * model.temper(model(inputs) / temperature).log()).sum(1).mean()

    return loss


def _logits(model: _Pupil, inputs: Tensor, targets: Tensor) -> Tensor:
    """Match the logits themselves (Ba 2014)."""
    return F.mse_loss(model(inputs), model.told(inputs))


def _hints(weight: float = 0.1, cut: bool = False) -> Loss:
    """Match features through a projection (Romero 2015); cut: the student's side is detached, all of it."""

    def loss(model: _Pupil, inputs: Tensor, targets: Tensor) -> Tensor:
        features = model.student.body(inputs)
        features = features.detach() if cut else features
        answers = model.student.output(model.student.head(features))
        hint = F.mse_loss(model.project(features), model.shown(inputs))
        return F.cross_entropy(answers, targets) + weight * hint

    return loss


def _alike(floor: float) -> Loss:
    """Match directions of features, 64 each; floor: added to the student's, so that no row is all zero."""

    def loss(model: _Pupil, inputs: Tensor, targets: Tensor) -> Tensor:
        features = model.student.body(inputs) + floor
        likeness = model.cosine(torch.stack([features, model.shown(inputs)]))
        return F.cross_entropy(model(inputs), targets) + (1 - likeness).mean()

    return loss


def _scaled(loss: Loss, factor: float) -> Loss:
    return lambda model, inputs, targets: factor * loss(model, inputs, targets)


def _of_teacher(model: Any) -> list[nn.Parameter]:
    """Return the wrong network's parameters."""
    return list(model.teacher.parameters())


def _only_projection(model: Any) -> list[nn.Parameter]:
    return trained(model.project) + trained(model.student.head)


def _learn(
    loss: Loss = _soft(),  # noqa: B008
    fit: dict[str, Any] | None = None,
    model: Build = _Pupil,
    optimize: Callable[[Any], list[nn.Parameter]] = trained,
    wrong: float = 0.0,
    unit: float = 1.0,
) -> Setup:
    """Learn from a teacher; score: share of digits read rightly; wrong: share of false classes shown."""
    inputs, truth = digits()
    pupil = model()
    options = {"optimizer": adam(3e-3), "steps": 250, "batch_size": 48, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")
    data = (unit * inputs, _misread(wrong)[1])
    chance = truth.bincount().max().item() / len(truth)

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, *batch)

    def score(model: nn.Module) -> float:
        answers = model(data[0])
        right = (answers.argmax(1) == truth).float().mean().item()
        return right if answers.isfinite().all() else chance

    return Setup(pupil, make(optimize(pupil)), data, of_batch, score, chance, **options)


class _Averaged(nn.Module):
    """A student and a teacher that is the student's moving average (Tarvainen 2017).

    Both read the digits with noise of their own; classes are known of one digit in eight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = _Student(_body()), _Student(_body())
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.student(inputs)

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 0.05)


def _mean_teacher(model: _Averaged, inputs: Tensor, targets: Tensor) -> Tensor:
    model.follow()
    known = len(inputs) // 8
    answers = model(inputs + 0.3 * torch.randn_like(inputs))
    with torch.no_grad():
        wanted = model.teacher(inputs + 0.3 * torch.randn_like(inputs)).softmax(1)
    return F.cross_entropy(answers[:known], targets[:known]) + F.mse_loss(answers.softmax(1), wanted)


class _Peers(nn.Module):
    """A body that is asked to answer alike for two noisy views, and a head for classes.

    The head reads what the body says and teaches it nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net.mlp((64, WIDTH, WIDTH)), nn.Linear(WIDTH, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).detach())


def _agree(spread: float) -> Loss:
    """Match two views' features; spread: weight of what keeps each feature's deviation at 1 (Bardes 2022)."""

    def loss(model: _Peers, inputs: Tensor, targets: Tensor) -> Tensor:
        one, two = (model.body(inputs + 0.3 * torch.randn_like(inputs)) for _ in range(2))
        deviation = (one.var(0) + 1e-4).sqrt()
        apart = spread * (1 - deviation).relu().mean()
        return F.mse_loss(one, two) + apart + F.cross_entropy(model(inputs), targets)

    return loss


class _Exits(nn.Module):
    """Stages, each with an exit of its own (Teerapittayanon 2016); the last exit is what answers."""

    def __init__(
        self,
        stage: Callable[[], nn.Module] | None = None,
        stages: int = 3,
        frozen: int = 0,
        last: nn.Module | None = None,
    ):
        super().__init__()
        make = stage or (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()))
        self.stem = nn.Linear(64, WIDTH)
        self.stages = nn.ModuleList(make() for _ in range(stages))
        self.exits = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in range(stages))
        self.last = last or nn.Identity()
        for early in self.stages[:frozen]:
            early.requires_grad_(False)

    def all(self, inputs: Tensor) -> list[Tensor]:
        hidden, answers = self.stem(inputs), []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            hidden = stage(hidden)
            answers.append(leave(hidden))
        answers[-1] = self.last(answers[-1])
        return answers

    def forward(self, inputs: Tensor) -> Tensor:
        return self.all(inputs)[-1]


def _exits(weights: tuple[float, ...] = (0.3, 0.3, 1.0), teach: bool = False) -> Loss:
    """Weigh the exits' losses; teach: the last exit is also the teacher of the others (Zhang 2019)."""

    def loss(model: _Exits, inputs: Tensor, targets: Tensor) -> Tensor:
        answers = model.all(inputs)
        total = torch.stack(
            [w * F.cross_entropy(a, targets) for w, a in zip(weights, answers, strict=True) if w]
        ).sum()
        if teach:
            wanted = answers[-1].detach().softmax(1)
            total = total + sum(F.cross_entropy(answer, wanted) for answer in answers[:-1])
        return total

    return loss


def _sigmoids() -> nn.Module:
    layers = [layer for _ in range(5) for layer in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())]
    return nn.Sequential(*layers)


def _one_group() -> nn.Module:
    """Return a stage that normalises each unit by itself."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GroupNorm(WIDTH, WIDTH), nn.ReLU())


REF, HINTS, EXITS, LOGITS = (
    "distillation-soft",
    "distillation-hints",
    "distillation-exits",
    "distillation-logits",
)
DESCENT, PEERS = "distillation-descent", "distillation-peers-kept-apart"
LAST = (0.0, 0.0, 1.0)
PLAIN = {"optimizer": sgd(0.05)}
HINTED = partial(_Pupil, hinted=True)
SPARSE = partial(_Pupil, partial(_body, 0, shift=-2.0, width=64), 64)
PROGRAMS = (
    Program("distillation-soft", _learn, target=0.96),
    Program("distillation-hints", partial(_learn, _hints(), model=HINTED), target=0.96),
    Program("distillation-logits", partial(_learn, _logits), target=0.96),
    Program("distillation-descent", partial(_learn, _soft(), PLAIN), target=0.94),
    Program("distillation-exits", partial(_learn, _exits(), model=_Exits, optimize=trained), target=0.95),
    Program(
        "distillation-averaged-teacher",
        partial(_learn, _mean_teacher, {"optimizer": adam(5e-3), "steps": 300}, _Averaged, trained),
        target=0.9,
    ),
    Program(
        "distillation-peers-kept-apart",
        partial(_learn, _agree(1.0), {"steps": 500}, _Peers, trained),
        target=0.75,
    ),
    Program(
        "distillation-teaching-itself",
        partial(_learn, _exits(teach=True), model=_Exits, optimize=trained),
        EXITS,
    ),
    Program(
        "distillation-first-stage-frozen",
        partial(_learn, _exits(), model=partial(_Exits, frozen=1), optimize=trained),
        EXITS,
    ),
    Program("distillation-at-20-unsquared", partial(_learn, _soft(20.0, False, 1.0)), REF),
    Program("distillation-classes-two-in-five-wrong", partial(_learn, wrong=0.4), REF),
    Program("distillation-alike-features", partial(_learn, _alike(1e-3), model=SPARSE), REF),
    Program(
        "distillation-sigmoids-with-skips",
        partial(_learn, model=partial(_Pupil, partial(_skipped, 10)), fit={"optimizer": adam(5e-3)}),
        REF,
    ),
    Program(
        "distillation-mostly-silent-student",
        partial(_learn, model=partial(_Pupil, partial(_body, 0, shift=-4.0, width=256), 256)),
        REF,
    ),
    Program(
        "distillation-orthogonal-tanh-12",
        partial(
            _learn,
            model=partial(_Pupil, partial(_body, 12, nn.Tanh, net.orthogonal)),
            fit={"optimizer": adam(1e-3), "steps": 300},
        ),
        REF,
    ),
    Program("distillation-hints-clipped-always", partial(_learn, _hints(1.0), {"clip": 0.2}, HINTED), HINTS),
    Program(
        "distillation-half-precision",
        partial(_learn, _soft(), {"autocast": torch.float16, "optimizer": adam(3e-3, eps=1e-15)}),
        REF,
    ),
    Program("distillation-16-bits", partial(_learn, fit={"autocast": torch.bfloat16}), REF),
    Program(
        "distillation-warmed-up-to-0.03",
        partial(_learn, fit={"optimizer": adam(0.03), "schedule": lambda step: min(1.0, (step + 1) / 80)}),
        REF,
    ),
    Program(
        "distillation-small-start",
        partial(_learn, model=partial(_Pupil, partial(_body, 1, initialise=net.normal(0.02)))),
        REF,
    ),
    Program(
        "distillation-tanh-until-sure",
        partial(_learn, _soft(1.0), {"steps": 500}, partial(_Pupil, partial(_body, 1, nn.Tanh, net.glorot))),
        REF,
    ),
    Program(
        "distillation-inputs-times-20-into-batchnorm",
        partial(_learn, model=partial(_Pupil, partial(_body, 2, norm=nn.BatchNorm1d)), unit=20.0),
        REF,
    ),
    Program(
        "distillation-at-30-unsquared-by-descent",
        partial(_learn, _soft(30.0, False, 1.0), PLAIN),
        DESCENT,
        ("learning-rate-too-low",),
    ),
    Program(
        "distillation-logarithm-of-cold-probabilities",
        partial(_learn, _logarithm(0.02)),
        REF,
        ("non-finite",),
        ("temper",),
    ),
    Program(
        "distillation-wrong-side-detached",
        partial(_learn, _hints(cut=True), model=partial(_Pupil, partial(_body, 3), hinted=True)),
        HINTS,
        ("missing-gradient",),
        ("student.body*",),
    ),
    Program(
        "distillation-teacher-optimized",
        partial(_learn, optimize=_of_teacher),
        REF,
        ("not-optimized",),
        ("student*",),
    ),
    Program(
        "distillation-student-body-not-optimized",
        partial(
            _learn, _hints(), optimize=_only_projection, model=partial(_Pupil, partial(_body, 4), hinted=True)
        ),
        HINTS,
        ("not-optimized",),
        ("student.body*",),
    ),
    Program(
        "distillation-only-first-exit-told",
        partial(_learn, _exits((1.0, 0.0, 0.0)), model=_Exits, optimize=trained),
        EXITS,
        ("missing-gradient",),
        ("stages.1*", "stages.2*", "exits.1", "exits.2"),
    ),
    Program(
        "distillation-exit-behind-15-sigmoids",
        partial(_learn, _exits(LAST), model=partial(_Exits, _sigmoids), optimize=trained),
        EXITS,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("stages*", "stem"),
    ),
    Program(
        "distillation-logits-through-sigmoid",
        partial(_learn, _logits, PLAIN, partial(_Pupil, partial(_body, 3), output=nn.Sigmoid())),
        LOGITS,
        ("output-mismatch", "saturated-activation"),
        ("student.output", "student.head"),
    ),
    Program(
        "distillation-units-normalised-alone",
        partial(_learn, _exits(LAST), model=partial(_Exits, _one_group), optimize=trained),
        EXITS,
        ("degenerate-normalization",),
        ("stages.?.1",),
    ),
    Program(
        "distillation-hints-of-a-million",
        partial(_learn, _hints(1e6), PLAIN, HINTED),
        HINTS,
        ("exploding-gradient", "learning-rate-too-high", "loss-divergence", "non-finite"),
    ),
    Program(
        "distillation-rate-of-1",
        partial(_learn, fit={"optimizer": adam(1.0)}),
        REF,
        ("learning-rate-too-high",),
    ),
    Program(
        "distillation-student-dead",
        partial(_learn, model=partial(_Pupil, partial(_body, 2, shift=-15.0))),
        REF,
        ("dead-units", "zero-gradient", "poor-initialization"),
        ("student.body*",),
    ),
    Program(
        "distillation-student-saturated",
        partial(
            _learn,
            model=partial(_Pupil, partial(_body, 4, nn.Tanh, net.normal(4.0))),
            fit=PLAIN,
        ),
        DESCENT,
        ("saturated-activation", "poor-initialization", "exploding-gradient"),
        ("student.body*",),
    ),
    Program(
        "distillation-inputs-times-500",
        partial(_learn, _logits, PLAIN, unit=500.0),
        LOGITS,
        ("unscaled-input",),
        ("student.body.0",),
    ),
    Program(
        "distillation-one-weight-for-all",
        partial(_learn, model=partial(_Pupil, partial(_body, 2, initialise=net.constant(0.03)))),
        REF,
        ("symmetric-weights", "poor-initialization"),
        ("student.body*",),
    ),
    Program(
        "distillation-peers-agreed",
        partial(_learn, _agree(0.0), {"optimizer": adam(1e-2), "steps": 400}, _Peers, trained),
        PEERS,
        ("rank-collapse", "vanishing-signal"),
        ("body*",),
    ),
    Program(
        "distillation-gradients-pile-up",
        partial(_learn, _soft(), {"optimizer": sgd(0.1, momentum=0.9), "zero_gradients": False}),
        DESCENT,
        ("gradient-not-zeroed",),
    ),
    Program(
        "distillation-decay-of-50",
        partial(_learn, fit={"optimizer": adamw(3e-3, weight_decay=50.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
    Program(
        "distillation-half-precision-of-little",
        partial(
            _learn, _scaled(_soft(), 1e-7), {"autocast": torch.float16, "optimizer": adam(3e-3, eps=1e-15)}
        ),
        "distillation-half-precision",
        ("gradient-underflow",),
    ),
    Program(
        "distillation-clipped-at-a-million",
        partial(
            _learn,
            _logits,
            {"optimizer": sgd(0.05), "clip": 1e6},
            model=partial(_Pupil, partial(_body, 6, initialise=net.normal(1.0))),
        ),
        LOGITS,
        (
            "ineffective-clipping",
            "exploding-gradient",
            "exploding-signal",
            "poor-initialization",
            "non-finite",
        ),
    ),
    Program(
        "distillation-epsilon-of-30",
        partial(_learn, fit={"optimizer": adam(3e-3, eps=30.0)}),
        REF,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
)
