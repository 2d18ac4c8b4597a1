"""Apply a remedy to a copy of a model; the original is never touched.

An action is a mapping with "do", the name of an operation, and its arguments:

- "replace-activation": to, from (names of those to replace; all hidden ones if absent), layers (modules)
- "initialize": scheme ("own", "he", "xavier", "lecun", "orthogonal", "lsuv", or one for each layer), layers,
  everything (attention, norms and embeddings far from their usual size, too)
- "normalize": norm ("batch", "layer", "group"), layers (those whose activations it goes before)
- "replace-norm": norm ("layer", "group", "none"), layers · "set-epsilon": eps, layers
- "residual": layers, scale (of the branch) · "widen": factor
- "freeze", "unfreeze": parameters
- "train": a change of the training, see gradscope.prescribe.training; the model stays as it is
- "all": actions, one after the other

Without "layers", an operation takes every hidden layer that it suits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.surgery.activations import replace_activations
from gradscope.prescribe.surgery.copying import copy_of
from gradscope.prescribe.surgery.guarded import Guarded
from gradscope.prescribe.surgery.initialization import initialize
from gradscope.prescribe.surgery.norms import normalize, replace_norms, set_epsilon
from gradscope.prescribe.surgery.optimization import (
    change_optimizer,
    clip_gradients,
    warm_up,
)
from gradscope.prescribe.surgery.residual import add_residuals
from gradscope.prescribe.surgery.running import check_shape, runs
from gradscope.prescribe.surgery.width import widen
from gradscope.prescribe.training import steps_of
from gradscope.records import Remedy

__all__ = ["Guarded", "apply", "change_optimizer", "clip_gradients", "runs", "warm_up"]

Operation = Callable[[nn.Module, Mapping[str, Any], Any], None]


def _freeze(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    known = dict(model.named_parameters())
    for name in action["parameters"]:
        if name not in known:
            raise SurgeryRefused(f"the model has no parameter {name!r}")
        known[name].requires_grad_(action["do"] == "unfreeze")


def _leave(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Changes of the training leave the model as it is."""


OPERATIONS: dict[str, Operation] = {
    "replace-activation": replace_activations,
    "initialize": initialize,
    "normalize": normalize,
    "replace-norm": replace_norms,
    "set-epsilon": set_epsilon,
    "residual": add_residuals,
    "widen": widen,
    "freeze": _freeze,
    "unfreeze": _freeze,
    "train": _leave,
}


def apply(remedy: Remedy | Mapping[str, Any], model: nn.Module, batch: Any = None) -> nn.Module:
    """Return a copy of a model with a remedy, or its action, applied; the model itself stays as it is.

    batch: an input of the model, or a tuple of them. With it, the copy is run once and refused if that fails
    or gives another shape; "lsuv" needs it. Random numbers come from torch's global generator. Raises
    SurgeryRefused, with the reason, where the remedy can't be applied.
    """
    action = remedy.action if isinstance(remedy, Remedy) else remedy
    steps = list(steps_of(action))
    if not steps:
        title = f" ({remedy.title})" if isinstance(remedy, Remedy) else ""
        raise SurgeryRefused(f"this remedy{title} has no automatic form; follow its code by hand")
    copied = copy_of(model)
    for step in steps:
        if step["do"] not in OPERATIONS:
            raise SurgeryRefused(f"unknown operation {step['do']!r}; known are {', '.join(OPERATIONS)}")
        OPERATIONS[step["do"]](copied, step, batch)
    if batch is not None:
        check_shape(copy_of(model), copied, batch)  # even a forward pass may leave traces, as in lazy layers
    return copied
