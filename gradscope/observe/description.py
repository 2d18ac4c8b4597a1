"""What is known of a run: the model's layers and parameters, completed as recorded steps show more."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscope.observe.flow import Flow
from gradscope.observe.layers import describe_layer
from gradscope.observe.parameters import (
    describe_optimizers,
    describe_parameters,
    local_part,
    named_parameters,
)
from gradscope.observe.wrappers import class_of, compiled_modules, unwrapped
from gradscope.records import FORMAT_VERSION, LayerInfo, ParameterInfo, RunInfo
from gradscope.settings import Settings

Say = Callable[..., None]  # called with an event's kind, its message and details


class Description:
    """Describes a model and its optimizers; `info` is what is known by now."""

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer],
        settings: Settings,
        training: Mapping[str, Any],
        versions: Mapping[str, str],
    ) -> None:
        self._model, self._modules, self._optimizers = model, modules, optimizers
        self._limit = settings.update_sample
        self.parameters, _ = named_parameters(model)
        self._lazy = any(is_lazy(parameter) for parameter in self.parameters.values())
        kind, described = class_of(unwrapped(model)), self._describe_parameters()
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.info = RunInfo(
            format_version=FORMAT_VERSION,
            model=f"{kind.__module__}.{kind.__qualname__}",
            ranks=int(training.get("world_size", 1)),
            started=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            versions={"python": platform.python_version(), "torch": torch.__version__, **versions},
            settings=settings.as_dict(),
            training=dict(training),
            optimizers=describe_optimizers(optimizers, names),
            layers=self._describe_layers(described),
            parameters=described,
        )

    def _describe_layers(self, parameters: Sequence[ParameterInfo]) -> tuple[LayerInfo, ...]:
        owned: dict[str, list[str]] = {}
        for parameter in parameters:
            owned.setdefault(parameter.layer, []).append(parameter.name)
        return tuple(
            describe_layer(name, module, tuple(owned.get(name, ()))) for name, module in self._modules.items()
        )

    def _describe_parameters(self) -> tuple[ParameterInfo, ...]:
        return describe_parameters(self._model, self._optimizers, self._limit)

    def sharded(self) -> list[tuple[int, nn.Parameter]]:
        """Return the parameters of which this rank has a part, with their places in the table."""
        whole = {parameter.name: parameter.size for parameter in self.info.parameters}
        return [
            (row, parameter)
            for row, (name, parameter) in enumerate(self.parameters.items())
            if not is_lazy(parameter) and 0 < local_part(parameter).numel() < whole[name]
        ]

    def materialise(self) -> None:
        """Describe the parameters that lazy modules have made by now, before their first update."""
        if self._lazy:
            self._lazy = False
            self.info = replace(self.info, parameters=self._describe_parameters())

    def add(self, training: Mapping[str, Any]) -> RunInfo:
        """Add facts of the training; return all that is known."""
        self.info = replace(self.info, training={**self.info.training, **training})
        return self.info

    def learn(self, flow: Flow, say: Say) -> RunInfo:
        """Complete the description with what a recorded step showed for the first time; return it."""
        flow.news = False
        dataflow, flow.dataflow = flow.dataflow, None
        if dataflow is not None:
            try:
                flow.learn(dataflow)
                self.info = replace(self.info, loss=flow.named(dataflow.loss))
            except Exception as error:
                say("not-observable", f"the model's graph could not be read: {error}")
            finally:
                dataflow.release()
            self._say_what_never_fired(flow, say)
        self.info = replace(self.info, layers=tuple(flow.layers))
        return self.info

    def _say_what_never_fired(self, flow: Flow, say: Say) -> None:
        silent = all(layer.depth < 0 for layer in flow.layers)
        if flow.compiled:
            say("not-observable", "the model is compiled: which layers feed which, and functions, don't show")
        elif silent and flow.layers:
            say(
                "not-observable",
                "no layer showed anything, so only parameters are recorded; neither a compiled model nor "
                "another of its class may run before watching begins, and a copy is not the model",
            )
        for index, layer in enumerate(flow.layers):
            if layer.depth < 0:
                reason = "did not run in the first recorded step"
                if silent or id(self._modules[layer.name]) in compiled_modules(self._model):
                    reason += ", or was compiled before watching began"
                flow.layers[index] = replace(layer, not_observable=reason)
                say("never-fired", f"{layer.name} ({layer.kind}) {reason}", layer=layer.name)
