"""The front door for a plain training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.errors import GradscopeError
from gradscope.observe import Recorder
from gradscope.settings import Settings
from gradscope.store import RunWriter


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    run_dir: str | Path = "gradscope_runs",
    **settings: Any,
) -> Watch:
    """Watch a model in a plain training loop; use as a context manager, and call `step` after each update.

    settings: every_n_steps, layers and the other options of `gradscope.Settings`. Gradients are read when
    the optimizer is about to use them.
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    for item in optimizers:
        if not isinstance(item, Optimizer):
            raise GradscopeError(
                f"watch needs a torch optimizer, or a list of them; got {type(item).__name__}"
            )
    if not isinstance(model, nn.Module):
        raise GradscopeError(f"watch needs a torch module as its model; got {type(model).__name__}")
    return Watch(model, optimizers, Path(run_dir), Settings.from_mapping(settings))


class Watch:
    """A plain loop under observation."""

    def __init__(
        self, model: nn.Module, optimizers: list[Optimizer], run_dir: Path, settings: Settings
    ) -> None:
        self.run_dir = run_dir
        self._optimizers = optimizers
        self._recorder = Recorder(model, optimizers, RunWriter(run_dir, settings=settings), settings)
        self._handles: list[Any] = []
        self._losses: list[Tensor] = []

    def __enter__(self) -> Watch:
        self._recorder.start()
        self._handles = [item.register_step_pre_hook(self._before_update) for item in self._optimizers]
        self._recorder.begin_step()
        return self

    def step(self, loss: Tensor | float | None = None) -> None:
        """End a step: call it once after each optimizer step, with the loss that was minimised."""
        facts = {"micro_batches": 1.0}
        if loss is not None and self._recorder.recording:
            facts["loss"] = float(loss.detach() if isinstance(loss, Tensor) else loss)
            if isinstance(loss, Tensor):
                self._recorder.minimised(loss)
        self._recorder.end_step(facts)
        self._recorder.begin_step()

    def _before_update(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        self._recorder.before_update(optimizer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if error is None:
            self._recorder.stop("finished")
        elif isinstance(error, KeyboardInterrupt):
            self._recorder.stop("interrupted", "KeyboardInterrupt")
        else:
            self._recorder.stop("failed", f"{type(error).__name__}: {error}")
