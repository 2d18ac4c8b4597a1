"""Fit a model by Lightning's strategies on the CPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from gradscope import GradScope
from tests.distributed.programs import CLIP, RANKS, batches, build, my_part

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = build()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


class Sharded(Plain):
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net.first, self.net.twice):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class FlattenedOnCpu(FSDPStrategy):
    """Lightning's FSDP strategy refuses to be used without a GPU; torch's FSDP does not."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


def strategy(kind: str) -> Any:
    if kind == "fsdp1":
        policy = {nn.LayerNorm}
        return FlattenedOnCpu(auto_wrap_policy=policy, process_group_backend="gloo", use_orig_params=True)
    if kind == "fsdp2":
        return ModelParallelStrategy(RANKS, 1, process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo")


def fit(kind: str, run: Path | None, clipped: bool = True) -> list[Tensor]:
    """Train over two micro-batches a step; return this rank's weights. Lightning can't clip FSDP1's norm."""
    scope = GradScope(str(run), every_n_steps=1, verbose=False) if run else None
    model = (Sharded if kind == "fsdp2" else Plain)()
    trainer = pl.Trainer(
        strategy=strategy(kind) if kind != "one" else "auto",
        accelerator="cpu",
        devices=1 if kind == "one" else RANKS,
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=CLIP if clipped and kind != "fsdp1" else None,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[scope] if scope else [],
    )
    part = (lambda batch: batch) if kind == "one" else my_part
    trainer.fit(model, DataLoader([part(batch) for batch in batches()], batch_size=None))
    weights = [getattr(item, "to_local", lambda item=item: item)() for item in model.parameters()]
    return [weight.detach().clone() for weight in weights]
