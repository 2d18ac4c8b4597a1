"""Attach gradscope to a transformer in Hugging Face style: it returns an object that holds the loss."""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradscope


@dataclass
class Config:
    vocabulary: int = 12
    length: int = 16
    hidden: int = 64
    heads: int = 4
    layers: int = 4


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class Block(nn.Module):
    """Self-attention and a feed-forward network, each on a normalised copy of the residual stream."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden)
        self.attention = nn.MultiheadAttention(config.hidden, config.heads, batch_first=True)
        self.feed_forward_norm = nn.LayerNorm(config.hidden)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.hidden, 4 * config.hidden),
            nn.GELU(),
            nn.Linear(4 * config.hidden, config.hidden),
        )

    def forward(self, stream, mask):
        normed = self.attention_norm(stream)
        stream = stream + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return stream + self.feed_forward(self.feed_forward_norm(stream))


class CausalLanguageModel(nn.Module):
    """Predict each token from those before it."""

    def __init__(self, config: Config):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.length, config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, input_ids, labels):
        length = input_ids.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        stream = self.embeddings(input_ids) + self.positions(torch.arange(length))
        for block in self.blocks:
            stream = block(stream, mask)
        logits = self.head(self.norm(stream))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(loss, logits)


def copying_task(samples: int, config: Config) -> Tensor:
    """Return sequences whose second half repeats the first: (samples, length) token ids."""
    half = torch.randint(config.vocabulary, (samples, config.length // 2))
    return torch.cat([half, half], dim=1)


def main(run_dir: str, quick: bool) -> None:
    torch.manual_seed(0)
    config = Config()
    tokens = copying_task(1920 if quick else 6400, config)
    batches = DataLoader(TensorDataset(tokens), batch_size=32, shuffle=True)
    model = CausalLanguageModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with gradscope.watch(model, optimizer, run_dir=run_dir) as scope:
        for (input_ids,) in batches:
            outputs = model(input_ids, labels=input_ids)
            optimizer.zero_grad()
            outputs.loss.backward()
            optimizer.step()
            scope.step(outputs.loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for a moment only")
    parser.add_argument("--run-dir", default="gradscope_runs", help="folder for the run")
    options = parser.parse_args()
    main(options.run_dir, options.quick)
