"""What a remedy changes of the training rather than of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Clipping:
    """Clip gradients: all to a joint norm, each entry to a value, each unit to a share of its weights.

    algorithm "norm" (Pascanu et al. 2013), "value", "adaptive" (Brock et al. 2021: limit is the largest
    |gradient| / |weight| of a unit) or "none", which takes clipping away.
    """

    algorithm: Literal["norm", "value", "adaptive", "none"]
    limit: float = 0.0


@dataclass(frozen=True)
class TrainingChange:
    """Changes of the training; what is None, False or empty stays as it is.

    rate: learning rate of every parameter group; rate_factor: multiplies each group's own rate instead.
    warmup_steps: steps over which the rate rises linearly from near 0. optimizer: class name in torch.optim;
    options: further arguments of the optimizer, such as "eps" or "momentum". scale_inputs, scale_targets:
    standardise them with mean and deviation of the training data. precision: as Lightning's Trainer names it.
    all_parameters: every trainable parameter of the model gets into the optimizer. search: learning rates, of
    which a short training on the first batches with each finds the one to use. keep_finite, pass_steps:
    operations are guarded, see gradscope.prescribe.surgery.guarded. fill_missing: the mean of each feature is
    put for inputs that are not finite.
    """

    rate: float | None = None
    rate_factor: float | None = None
    warmup_steps: int | None = None
    clipping: Clipping | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scale_inputs: bool = False
    scale_targets: bool = False
    precision: str | None = None
    all_parameters: bool = False
    search: tuple[float, ...] = ()
    keep_finite: bool = False
    pass_steps: bool = False
    fill_missing: bool = False

    def __bool__(self) -> bool:
        """Say whether anything changes."""
        return self != TrainingChange()

    @property
    def of_optimizer(self) -> TrainingChange:
        """Return what of it an optimizer is made or set by."""
        return TrainingChange(
            rate=self.rate,
            rate_factor=self.rate_factor,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
            options=self.options,
            all_parameters=self.all_parameters,
        )


def training_change(action: Mapping[str, Any]) -> TrainingChange:
    """Return all changes of the training in an action; of two that contradict, the later one holds."""
    known = {item.name for item in fields(TrainingChange)}
    changes: dict[str, Any] = {}
    for step in steps_of(action):
        if step["do"] == "train":
            changes |= {name: value for name, value in step.items() if name in known}
    if isinstance(changes.get("clipping"), Mapping):
        changes["clipping"] = Clipping(**changes["clipping"])
    if "search" in changes:
        changes["search"] = tuple(changes["search"])
    return TrainingChange(**changes)


def steps_of(action: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the single changes of an action in order; an empty action has none."""
    if action.get("do") == "all":
        for part in action["actions"]:
            yield from steps_of(part)
    elif action:
        yield action
