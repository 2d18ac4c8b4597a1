"""The experiments of the deep-learning lecture, by name; the scripts stand in examples/lecture."""

from __future__ import annotations

from typing import NamedTuple


class Experiment(NamedTuple):
    """A lecture experiment: its name, what it shows in one line, and its script in the source tree."""

    name: str
    shows: str

    @property
    def script(self) -> str:
        """Return the script's path from the root of the source tree."""
        return f"examples/lecture/{self.name.replace('-', '_')}.py"


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("universal-approximation", "one wide hidden layer fits a sine; the error against the width"),
    Experiment("depth-against-width", "2k ReLU units in depth draw a sawtooth that takes 2^k in one layer"),
    Experiment("no-flattening", "a tree of 4(n-1) neurons multiplies n numbers; one layer takes 2^n"),
    Experiment(
        "vanishing-and-exploding", "gain per layer, measured and predicted; which cure works at which depth"
    ),
    Experiment("hierarchical-features", "what each layer of a conv net knows: probes, CKA, filters, patches"),
    Experiment("word-embeddings", "king - male + female = queen, by skip-gram on a generated corpus"),
    Experiment("pretraining", "layer-wise autoencoders for a deep sigmoid network; when they pay"),
    Experiment("optimizers", "momentum and Adam written out, equal to torch's; moments and updates recorded"),
    Experiment("regularization", "dropout, L2 and decoupled weight decay; Adam + L2 is not weight decay"),
)
