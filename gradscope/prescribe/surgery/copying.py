"""Copy a model so that nothing done to the copy reaches the original."""

from __future__ import annotations

import copy

import torch
from torch import nn

from gradscope.errors import SurgeryRefused

_ATTACHED = ("_trainer", "_fabric")  # of a LightningModule: what runs it


def copy_of(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, tied weights tied; a LightningModule's copy belongs to no Trainer.

    Raises SurgeryRefused where the model can't be copied, as with tensors that aren't leaves, or not changed.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise SurgeryRefused(f"{name or 'the model'} was compiled by torch.jit; change it before that")
    attached = [
        module.__dict__[name] for module in model.modules() for name in _ATTACHED if module.__dict__.get(name)
    ]
    try:
        copied = copy.deepcopy(model, {id(owner): owner for owner in attached})
    except Exception as error:
        raise SurgeryRefused(
            f"{type(model).__name__} can't be copied ({error}); make it deep-copyable first"
        ) from error
    for module in copied.modules():
        for name in _ATTACHED:
            if module.__dict__.get(name):
                module.__dict__[name] = None
    return copied
