"""Any network as a classifier that Lightning can train."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from gradscope.models.named_optimizers import OPTIMIZERS


class Classifier(pl.LightningModule):
    """Train `network`, which gives one logit a class, by cross-entropy with an optimizer of `OPTIMIZERS`."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "adam",
        learning_rate: float = 3e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ):
        super().__init__()
        self.network = network
        self.optimizer = (optimizer, learning_rate, momentum, weight_decay)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits, (batch, classes)."""
        return self.network(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's mean cross-entropy in nats."""
        x, target = batch
        loss = functional.cross_entropy(self(x), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log "test_accuracy", the share of right answers."""
        x, target = batch
        self.log("test_accuracy", (self(x).argmax(1) == target).float().mean())

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer by its name."""
        name, rate, momentum, decay = self.optimizer
        return OPTIMIZERS[name](self.parameters(), rate, momentum, decay)
