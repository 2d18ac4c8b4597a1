"""Attach gradscope to a plain torch loop: a context manager, and one line a step."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader

import gradscope
from gradscope.models.data import split_digits


class Reader(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(input_size=8, hidden_size=64, batch_first=True)
        self.output = nn.Linear(64, 10)

    def forward(self, images):
        states, _ = self.lstm(images.view(-1, 8, 8))
        return self.output(states[:, -1])


def main(run_dir: str, quick: bool) -> None:
    torch.manual_seed(0)
    train, _ = split_digits(seed=0)
    batches = DataLoader(train, batch_size=64, shuffle=True)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with gradscope.watch(model, optimizer, run_dir=run_dir) as scope:
        for _ in range(1 if quick else 10):
            for images, digits in batches:
                loss = nn.functional.cross_entropy(model(images), digits)
                optimizer.zero_grad()
                loss.backward()
                scope.before_clipping()  # only because this loop clips
                nn.utils.clip_grad_norm_(model.parameters(), max_norm=5.0)
                optimizer.step()
                scope.step(loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for a moment only")
    parser.add_argument("--run-dir", default="gradscope_runs", help="folder for the run")
    options = parser.parse_args()
    main(options.run_dir, options.quick)
