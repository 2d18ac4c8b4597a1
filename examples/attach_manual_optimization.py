"""Attach gradscope where the module steps its optimizers itself: a GAN with two of them."""

import argparse

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from gradscope import GradScope
from gradscope.models.data import split_digits


class Gan(pl.LightningModule):
    """A generator that draws digits, and a discriminator that tells them from real ones."""

    def __init__(self, noise: int = 16):
        super().__init__()
        self.automatic_optimization = False
        self.noise = noise
        self.generator = nn.Sequential(nn.Linear(noise, 64), nn.ReLU(), nn.Linear(64, 64))
        self.discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        real, _ = batch
        generator_optimizer, discriminator_optimizer = self.optimizers()
        fake = self.generator(torch.randn(len(real), self.noise))
        self.descend(discriminator_optimizer, self.score(real, 1.0) + self.score(fake.detach(), 0.0))
        self.descend(generator_optimizer, self.score(fake, 1.0))

    def score(self, images, target):
        """Return how far the discriminator is from calling the images real (1) or drawn (0)."""
        logits = self.discriminator(images)
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def descend(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        )


def main(run_dir: str, quick: bool) -> None:
    pl.seed_everything(0)
    train, _ = split_digits(seed=0)
    trainer = pl.Trainer(
        max_epochs=1 if quick else 10,
        callbacks=[GradScope(run_dir=run_dir)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Gan(), DataLoader(train, batch_size=64, shuffle=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for a moment only")
    parser.add_argument("--run-dir", default="gradscope_runs", help="folder for the run")
    options = parser.parse_args()
    main(options.run_dir, options.quick)
