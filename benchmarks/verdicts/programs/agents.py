"""Agents (tuning): policy gradients, Q-learning, critics, imitation and control through known dynamics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, sgd

SIDE, HORIZON, DISCOUNT = 5, 8, 0.9
CHANCE = 50 / 600  # share of the rooms in which one constant move leads to the goal
MOVES = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])


@cache
def _rooms() -> Tensor:
    """Return all pairs (600, 4) of a place and another one, the goal, on a 5 x 5 grid."""
    places = torch.cartesian_prod(*[torch.arange(SIDE)] * 4)
    return places[(places[:, :2] != places[:, 2:]).any(1)]


def _seen(rooms: Tensor) -> Tensor:
    """Return what an agent sees (count, 20): rows and columns of both places, one-hot."""
    return F.one_hot(rooms, SIDE).flatten(1).float()


def _moved(rooms: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rooms after moves, and the rewards: 1 at the goal, -0.1 a step elsewhere."""
    places = (rooms[:, :2] + MOVES[moves]).clamp(0, SIDE - 1)
    arrived = (places == rooms[:, 2:]).all(1)
    return torch.cat([places, rooms[:, 2:]], 1), arrived.float() - 0.1 * (~arrived).float()


def _success(choose: Callable[[Tensor], Tensor]) -> float:
    """Return the share of rooms in which choosing the best move reaches the goal in time."""
    rooms, done = _rooms(), torch.zeros(len(_rooms()), dtype=torch.bool)
    for _ in range(HORIZON):
        values = choose(_seen(rooms))
        if not values.isfinite().all():
            return 0.0
        rooms, rewards = _moved(rooms, values.argmax(1))
        done |= rewards > 0
        rooms = torch.where(done[:, None], torch.cat([rooms[:, 2:], rooms[:, 2:]], 1), rooms)
    return done.float().mean().item()


class _Actor(nn.Module):
    """A policy and a critic on one trunk; `cut` keeps the critic's gradient out of the trunk."""

    def __init__(self, cut: bool, gain: float):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.actor, self.critic, self.cut = nn.Linear(48, 4), nn.Linear(48, 1), cut
        with torch.no_grad():
            self.actor.weight.mul_(gain)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(seen)
        value = self.critic(features.detach() if self.cut else features)
        return self.actor(features).log_softmax(1), value[:, 0]


def _walk(model: nn.Module, rooms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Walk HORIZON steps; return what was seen, the moves and the discounted returns, step after step."""
    seen, moves, rewards, alive = [], [], [], torch.ones(len(rooms))
    for _ in range(HORIZON):
        seen.append(_seen(rooms))
        with torch.no_grad():
            moves.append(torch.multinomial(model(seen[-1])[0].exp().nan_to_num(0.25) + 1e-8, 1)[:, 0])
        rooms, reward = _moved(rooms, moves[-1])
        rewards.append(alive * reward)
        alive = alive * (reward < 0)
    returns = [rewards[-1]]
    for reward in rewards[-2::-1]:
        returns.append(reward + DISCOUNT * returns[-1])
    return torch.cat(seen), torch.cat(moves), torch.cat(returns[::-1])


def _policy(
    fit: dict[str, Any] | None = None,
    clipped: bool = False,
    only: str | None = None,
    cut: bool = True,
    gain: float = 0.1,
) -> Setup:
    """Learn by policy gradient with a critic (Williams 1992).

    clipped: use the surrogate of PPO (Schulman 2017); only: the part whose parameters the optimizer gets.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen, moves, returns = _walk(model, batch[0])
        logs, values = model(seen)
        chosen = logs.gather(1, moves[:, None])[:, 0]
        edge = returns - values.detach()
        edge = (edge - edge.mean()) / (edge.std() + 1e-6)
        ratio = (chosen - chosen.detach()).exp()
        gain = torch.minimum(ratio * edge, ratio.clamp(0.8, 1.2) * edge) if clipped else chosen * edge
        surprise = -(logs.exp() * logs).sum(1)
        return -(gain + 0.01 * surprise).mean() + 0.5 * F.mse_loss(values, returns)

    model = _Actor(cut, gain)
    chosen = {"parameters": list(model.get_submodule(only).parameters())} if only else {}
    options = {"optimizer": adam(5e-3), "steps": 120, **chosen, **(fit or {})}
    setup = regress(model, (_rooms(), _rooms().float()), **options)
    return replace(setup, loss=loss, score=lambda model: _success(lambda seen: model(seen)[0]), chance=CHANCE)


class _Values(nn.Module):
    """The values of the moves, and a frozen copy that follows slowly (Mnih 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = (net.mlp((20, 48, 48, 4)) for _ in range(2))
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.calls = 0

    def forward(self, seen: Tensor) -> Tensor:
        return self.online(seen)

    def renew(self, share: float, every: int) -> None:
        """Move the copy a share of the way every so many calls."""
        self.calls += 1
        if self.calls % every == 0:
            with torch.no_grad():
                for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
                    old.lerp_(new, share)


def _q_learning(
    fit: dict[str, Any] | None = None, soft: bool = False, scale: float = 1.0, frozen: bool = False
) -> Setup:
    """Learn the values of moves from random ones, against a slow copy.

    scale: of the rewards; frozen: the optimizer gets the copy's parameters.
    """

    def loss(model: Any, batch: Batch) -> Tensor:
        model.renew(0.1 if soft else 1.0, 1 if soft else 10)
        moves = torch.randint(0, 4, (len(batch[0]),))
        later, rewards = _moved(batch[0], moves)
        with torch.no_grad():
            ahead = model.target(_seen(later)).amax(1) * (rewards < 0)
        values = model(_seen(batch[0])).gather(1, moves[:, None])[:, 0]
        return F.mse_loss(values, scale * rewards + DISCOUNT * ahead)

    model = _Values()
    chosen = {"parameters": list(model.target.parameters())} if frozen else {}
    options = {"optimizer": adam(5e-3), "steps": 600, "batch_size": 256, **chosen, **(fit or {})}
    setup = regress(model, (_rooms(), _rooms().float()), **options)
    return replace(setup, loss=loss, score=lambda model: _success(lambda seen: model(seen)), chance=CHANCE)


def _imitation(fit: dict[str, Any] | None = None) -> Setup:
    """Copy an expert, a fifth of whose moves are random: the loss can't go far down."""
    rooms = _rooms().repeat(8, 1)
    way = rooms[:, 2:] - rooms[:, :2]
    best = torch.where(way[:, 1] != 0, (way[:, 1] < 0).long(), 2 + (way[:, 0] < 0).long())
    random = torch.Generator().manual_seed(61)
    noise = torch.randint(0, 4, best.shape, generator=random)
    shown = torch.where(torch.rand(best.shape, generator=random) < 0.2, noise, best)
    model = net.mlp((20, 48, 48, 4))
    options = {"optimizer": adam(5e-3), "steps": 200, **(fit or {})}
    setup = classify(model, (_seen(rooms), shown), **options)
    return replace(setup, score=_success, chance=CHANCE)


class _Pilot(nn.Module):
    """Push a cart by a bounded force that depends on its place and speed."""

    def __init__(self, gain: float, unit: float):
        super().__init__()
        self.body, self.unit = net.mlp((2, 24, 24, 1), nn.Tanh, net.glorot, output=nn.Tanh()), unit
        with torch.no_grad():
            self.body[4].weight.mul_(gain)

    def forward(self, states: Tensor) -> Tensor:
        return self.body(self.unit * states)


def _control(
    fit: dict[str, Any] | None = None,
    steps: int = 12,
    pull: float = 0.3,
    gain: float = 1.0,
    unit: float = 1.0,
) -> Setup:
    """Bring carts to rest by the gradient through their known motion.

    Score: the share of carts that end near rest, chance that of idle ones;
    pull: how the cart is driven away from rest; gain: of the last layer; unit: of what the pilot is told.
    """
    starts = torch.rand(512, 2, generator=torch.Generator().manual_seed(62)) * 2 - 1

    def drive(model: Callable[[Tensor], Tensor], states: Tensor) -> list[Tensor]:
        passed = [states]
        for _ in range(steps):
            place, speed = passed[-1][:, :1], passed[-1][:, 1:]
            force = 3 * model(passed[-1]) + pull * place
            passed.append(torch.cat([place + 0.25 * speed, speed + 0.25 * force], 1))
        return passed

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack(drive(model, batch[0])).square().sum(2).mean()

    def score(model: Callable[[Tensor], Tensor]) -> float:
        return (drive(model, starts)[-1].norm(dim=1) < 0.2).float().mean().item()

    options = {"optimizer": adam(1e-2), "steps": 100, **(fit or {})}
    idle = score(lambda states: torch.zeros(len(states), 1))
    setup = regress(_Pilot(gain, unit), (starts, starts), **options)
    return replace(setup, loss=loss, score=score, chance=idle)


REF, LEARNER, PILOT = "agents-policy", "agents-values", "agents-pilot"
PROGRAMS = (
    Program("agents-policy", _policy, target=0.8),
    Program("agents-policy-shared-trunk", partial(_policy, cut=False), target=0.8),
    Program("agents-surrogate", partial(_policy, {"accumulate": 2}, clipped=True), target=0.8),
    Program("agents-values", _q_learning, target=0.9),
    Program("agents-values-soft-copy", partial(_q_learning, soft=True), LEARNER),
    Program("agents-imitation", _imitation, target=0.9),
    Program("agents-pilot", _control, target=0.9),
    Program("agents-pilot-long-clipped", partial(_control, {"clip": 0.5}, 30, 1.5), target=0.9),
    Program(
        "agents-policy-sure-at-start",
        partial(_policy, gain=300.0),
        REF,
        ("poor-initialization", "exploding-signal", "zero-gradient"),
        ("actor",),
    ),
    Program(
        "agents-actor-not-optimized",
        partial(_policy, only="critic"),
        REF,
        ("not-optimized",),
        ("actor", "trunk.*"),
    ),
    Program(
        "agents-policy-lr-1", partial(_policy, {"optimizer": adam(1.0)}), REF, ("learning-rate-too-high",)
    ),
    Program(
        "agents-policy-lr-1e-6", partial(_policy, {"optimizer": adam(1e-6)}), REF, ("learning-rate-too-low",)
    ),
    Program(
        "agents-great-rewards",
        partial(_q_learning, {"optimizer": sgd(0.05)}, scale=1000.0),
        LEARNER,
        ("learning-rate-too-high", "exploding-gradient", "loss-divergence", "output-mismatch"),
    ),
    Program(
        "agents-wrong-copy-optimized",
        partial(_q_learning, frozen=True),
        LEARNER,
        ("not-optimized",),
        ("online.*",),
    ),
    Program(
        "agents-imitation-never-zeroed",
        partial(_imitation, {"optimizer": sgd(0.5), "zero_gradients": False}),
        "agents-imitation",
        ("gradient-not-zeroed",),
    ),
    Program(
        "agents-pilot-unscaled",
        partial(_control, {"optimizer": sgd(0.05)}, unit=1000.0),
        PILOT,
        ("saturated-activation", "unscaled-input"),
        ("body.0", "body.1"),
    ),
    Program(
        "agents-pilot-saturated",
        partial(_control, gain=2000.0),
        PILOT,
        ("saturated-activation", "zero-gradient", "poor-initialization"),
        ("body.4", "body.5"),
    ),
    Program(
        "agents-pilot-long",
        partial(_control, {"optimizer": sgd(0.01)}, 30, 1.5),
        "agents-pilot-long-clipped",
        ("exploding-gradient", "learning-rate-too-high"),
    ),
)
