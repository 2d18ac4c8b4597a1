"""Attach gradscope to a Lightning Trainer: one callback, the module unchanged."""

import argparse

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from gradscope import GradScope
from gradscope.models.data import split_digits


class ConvNet(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def training_step(self, batch, batch_idx):
        images, digits = batch
        return nn.functional.cross_entropy(self.network(images), digits)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(run_dir: str, quick: bool) -> None:
    pl.seed_everything(0)
    train, _ = split_digits(seed=0)
    trainer = pl.Trainer(
        max_epochs=1 if quick else 10,
        callbacks=[GradScope(run_dir=run_dir)],  # prints the verdict, and how to see the report
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(ConvNet(), DataLoader(train, batch_size=64, shuffle=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for a moment only")
    parser.add_argument("--run-dir", default="gradscope_runs", help="folder for the run")
    options = parser.parse_args()
    main(options.run_dir, options.quick)
