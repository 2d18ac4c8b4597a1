"""What each of several processes runs: `python -m tests.distributed.programs SCENARIO FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import gradscope

RANKS, STEPS, BATCH, CLIP = 2, 4, 12, 0.1


class Net(nn.Module):
    """Odd sizes, so that shards are uneven, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu = nn.Linear(6, 15), nn.LayerNorm(15), nn.ReLU(inplace=True)
        self.twice, self.tanh, self.head = nn.Linear(15, 15), nn.Tanh(), nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.first(x)))
        return self.head(self.tanh(self.twice(self.twice(h))))


def build() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Return the global batches."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(BATCH, 6, generator=generator), torch.randint(3, (BATCH,), generator=generator))
        for _ in range(steps)
    ]


def my_part(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what this rank trains on of a global batch."""
    rank, size = int(os.environ["RANK"]), BATCH // RANKS
    return batch[0][rank * size : (rank + 1) * size], batch[1][rank * size : (rank + 1) * size]


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in (model.first, model.twice):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def flattened(model: nn.Module) -> nn.Module:
    model.twice = FullyShardedDataParallel(model.twice, use_orig_params=True, device_id=torch.device("cpu"))
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp1": flattened,
    "fsdp2": sharded,
    "compiled": lambda model: torch.compile(DistributedDataParallel(model), backend="aot_eager"),
}


def clip(model: nn.Module) -> None:
    if isinstance(model, FullyShardedDataParallel):
        model.clip_grad_norm_(CLIP)
    else:
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)


def train(
    model: nn.Module,
    run: Path | None,
    part: Callable[[Any], Any],
    steps: int = STEPS,
    after: Callable[[int], None] = lambda step: None,
) -> Counter[str]:
    """Train a few steps, watched if a run is given; return the collectives that it took."""
    torch._dynamo.reset()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scope = gradscope.watch(model, optimizer, run, every_n_steps=1, verbose=False)
    with scope if run else _nothing() as watched, profile(activities=[ProfilerActivity.CPU]) as profiler:
        for step, batch in enumerate(batches(steps)):
            x, y = part(batch)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            if watched is not None:
                watched.before_clipping()
            clip(model)
            optimizer.step()
            if watched is not None:
                watched.step(loss)
            after(step)
    names = [event.name for event in profiler.events()]
    return Counter(name for name in names if name.startswith(("gloo:", "c10d::", "_c10d_functional::")))


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def plainly(kind: str, folder: Path) -> None:
    """Train bare and watched; save weights, random state and collectives of both."""
    for name, run in (("bare", None), ("watched", folder / "run")):
        model = WRAPPERS[kind](build())
        collectives = train(model, run, my_part)
        weights = [getattr(item, "to_local", lambda item=item: item)() for item in model.parameters()]
        torch.save(
            {
                "weights": [weight.detach().clone() for weight in weights],
                "random": torch.get_rng_state(),
                "collectives": dict(collectives),
            },
            folder / f"{name}-{distributed.get_rank()}.pt",
        )


def killed(kind: str, folder: Path) -> None:
    """Train with DDP until rank 1 is killed in the middle."""

    def after(step: int) -> None:
        if step == 3 and distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train(DistributedDataParallel(build()), folder / "run", my_part, 10, after)


def alone(kind: str, folder: Path) -> None:
    """Watch on rank 0 only, as people do who think that one rank is enough."""
    run = folder / "run" if distributed.get_rank() == 0 else None
    train(DistributedDataParallel(build()), run, my_part)


def lightning(kind: str, folder: Path) -> None:
    """Train by Lightning's strategy, bare and watched."""
    from tests.distributed import fitting

    for name, watched in (("bare", False), ("watched", True)):
        weights = fitting.fit(kind, folder / "run" if watched else None)
        torch.save({"weights": weights}, folder / f"{name}-{os.environ['RANK']}.pt")


SCENARIOS: dict[str, Callable[[str, Path], None]] = {
    "plainly": plainly,
    "killed": killed,
    "alone": alone,
    "lightning": lightning,
}


def main() -> None:
    scenario, _, kind = sys.argv[1].partition("-")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if scenario != "lightning":
        distributed.init_process_group("gloo")
    SCENARIOS[scenario](kind, Path(sys.argv[2]))
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort the process while Python takes it down


if __name__ == "__main__":
    main()
