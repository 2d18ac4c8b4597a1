"""Inject the same faults into the healthy reference of every family: which are seen, whatever the network?

    python benchmarks/verdicts/injections.py [--only 'FAULT@FAMILY'] [--seeds 1] [--jobs 2] [--fresh]

A tuning instrument: rules may learn from it. Programs written by hand show which faults exist;
the grid shows whether a rule knows a fault or only networks in which it was met. A run is labelled
by what became of it, as in the benchmark: many a fault does no harm to a network, and such runs are controls.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from benchmarks.verdicts import programs, training
from benchmarks.verdicts.judging import GRADSCOPE, judge
from benchmarks.verdicts.program import Outcome, Program, Setup, improvement, label

INJECTED = Path(__file__).parent / "runs" / "injected"
HEALTHY = "healthy"
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Softplus)

SHUT = ("dead-units", "saturated-activation", "poor-initialization", "zero-gradient")
LOW, HIGH = ("learning-rate-too-low",), ("learning-rate-too-high", "loss-divergence")
SMALL = ("poor-initialization", "vanishing-gradient", "vanishing-signal", "rank-collapse")
LARGE = ("poor-initialization", "exploding-gradient", "exploding-signal", "saturated-activation")
CUT = ("missing-gradient", "zero-gradient")
ALIKE = ("symmetric-weights", "poor-initialization", "zero-gradient", "rank-collapse", "vanishing-signal")


class DoesNotApplyError(Exception):
    """The network has no place for a fault."""


@dataclass(frozen=True)
class Fault:
    """What is done to a setup, which returns it and the names of the faulty layers; which rules name it."""

    name: str
    inject: Callable[[Setup], tuple[Setup, tuple[str, ...]]]
    causes: tuple[str, ...]


def _rate(factor: float, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    for group in setup.optimizer.param_groups:
        group["lr"] *= factor
    return setup, ()


def _option(name: str, value: float, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    if any(name not in group for group in setup.optimizer.param_groups):
        raise DoesNotApplyError(name)
    for group in setup.optimizer.param_groups:
        group[name] = value
    return setup, ()


def _loss(factor: float, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    plain = setup.loss
    return replace(setup, loss=lambda model, batch: factor * plain(model, batch)), ()


def _no_reset(setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    return replace(setup, zero_gradients=False), ()


def _modules(setup: Setup, kinds: tuple[type[nn.Module], ...]) -> list[tuple[str, Any]]:
    found = [(name, item) for name, item in setup.model.named_modules() if isinstance(item, kinds)]
    if not found:
        raise DoesNotApplyError("no such module")
    return found


def _hidden(setup: Setup) -> tuple[str, Any]:
    """Return the layer in the middle, neither the first nor the last."""
    layers = _modules(setup, LAYERS)
    if len(layers) < 3:
        raise DoesNotApplyError("too few layers")
    return layers[len(layers) // 2]


@torch.no_grad()
def _scale_all(factor: float, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    for item in setup.model.parameters():
        if item.dim() >= 2 and item.requires_grad:
            item.mul_(factor)
    return setup, ()


@torch.no_grad()
def _one_layer(change: Callable[[Tensor], object], setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    name, layer = _hidden(setup)
    change(layer.weight)
    return setup, (name,)


@torch.no_grad()
def _all_layers(change: Callable[[Tensor], object], setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    for _, layer in _modules(setup, LAYERS):
        change(layer.weight)
    return setup, ()


@torch.no_grad()
def _biases(value: float, every: bool, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    layers = _modules(setup, LAYERS)[:-1] if every else [_hidden(setup)]
    biased = [(name, layer) for name, layer in layers if layer.bias is not None]
    if not biased:
        raise DoesNotApplyError("no biases")
    for _, layer in biased:
        layer.bias.fill_(value)
    return setup, ()


@torch.no_grad()
def _norms(value: float, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    for _, norm in _modules(setup, NORMS):
        if norm.weight is not None:
            norm.weight.fill_(value)
    return setup, ()


def _activations(kind: type[nn.Module], setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    for name, _ in _modules(setup, ACTIVATIONS):
        parent, _, own = name.rpartition(".")
        setattr(setup.model.get_submodule(parent), own, kind())
    return setup, ()


def _inputs(change: Callable[[Tensor], Tensor], setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            change(item) if isinstance(item, Tensor) and item.is_floating_point() else item
            for item in arguments
        )

    setup.model.register_forward_pre_hook(before)
    return setup, ()


def _on(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    def after(module: nn.Module, arguments: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) and output.is_floating_point() else output

    module.register_forward_hook(after)


def _outputs(change: Callable[[Tensor], Tensor], setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    _on(setup.model, change)
    return setup, ()


def _detached(setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    _on(_hidden(setup)[1], Tensor.detach)
    return setup, ()


def _born(setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    """Let a layer divide zero by zero from the middle of the training on."""
    name, layer = _hidden(setup)
    calls = 0

    def change(output: Tensor) -> Tensor:
        nonlocal calls
        calls += output.requires_grad
        return output if calls < setup.steps // 2 else output * (output - output) / (output - output)

    _on(layer, change)
    return setup, (name,)


def _frozen(place: int, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    name, layer = _modules(setup, LAYERS)[place]
    for item in layer.parameters():
        item.requires_grad_(False)
    return setup, (name,)


def _left_out(place: int, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    name, layer = _modules(setup, LAYERS)[place]
    left = {id(item) for item in layer.parameters()}
    for group in setup.optimizer.param_groups:
        group["params"] = [item for item in group["params"] if id(item) not in left]
    return setup, (name,)


FAULTS = (
    *(Fault(f"rate-{factor:g}", partial(_rate, factor), LOW) for factor in (1e-4, 1e-3)),
    *(Fault(f"rate-{factor:g}", partial(_rate, factor), HIGH) for factor in (30.0, 300.0)),
    Fault("epsilon-1", partial(_option, "eps", 1.0), ("epsilon-floor",)),
    Fault("decay-10", partial(_option, "weight_decay", 10.0), ("excessive-weight-decay",)),
    Fault("loss-1e-9", partial(_loss, 1e-9), ("epsilon-floor", "vanishing-gradient", *LOW)),
    Fault("no-zero-grad", _no_reset, ("gradient-not-zeroed",)),
    *(Fault(f"weights-{factor:g}", partial(_scale_all, factor), SMALL) for factor in (0.01, 0.1)),
    *(Fault(f"weights-{factor:g}", partial(_scale_all, factor), LARGE) for factor in (5.0, 30.0)),
    Fault("layer-zero", partial(_one_layer, Tensor.zero_), ALIKE),
    Fault("layer-100", partial(_one_layer, lambda item: item.mul_(100.0)), LARGE),
    Fault("layers-zero", partial(_all_layers, Tensor.zero_), ALIKE),
    Fault("layers-alike", partial(_all_layers, lambda item: item.fill_(1 / item[0].numel())), ALIKE),
    Fault("bias-low", partial(_biases, -10.0, False), SHUT),
    Fault(
        "biases-low", partial(_biases, -10.0, True), ("dead-units", "poor-initialization", "zero-gradient")
    ),
    Fault("norms-zero", partial(_norms, 0.0), (*ALIKE, "degenerate-normalization", "vanishing-gradient")),
    Fault("sigmoids", partial(_activations, nn.Sigmoid), (*SMALL, "saturated-activation")),
    Fault("inputs-1000", partial(_inputs, lambda item: 1000.0 * item), ("unscaled-input",)),
    Fault("inputs-plus-100", partial(_inputs, lambda item: item + 100.0), ("unscaled-input",)),
    Fault("inputs-1e-4", partial(_inputs, lambda item: 1e-4 * item), ("unscaled-input",)),
    Fault("output-relu", partial(_outputs, torch.relu), ("output-mismatch", "dead-units")),
    Fault("output-sigmoid", partial(_outputs, torch.sigmoid), ("output-mismatch", "saturated-activation")),
    Fault("detached", _detached, CUT),
    Fault("born", _born, ("non-finite",)),
    Fault("first-left-out", partial(_left_out, 0), CUT),
    Fault("last-frozen", partial(_frozen, -1), CUT),
)


def hosts() -> list[Program]:
    """Return each family's first reference that a plain loop trains."""
    found = []
    for family in programs.TUNING.values():
        for program in family:
            if program.causes or program.twin is not None:
                continue
            setup = program.build()
            if isinstance(setup, Setup) and not setup.by_lightning:
                found.append(program)
                break
    return found


@dataclass(frozen=True)
class Injected:
    """A recorded run of a host with a fault, or healthy; error: why there is none."""

    fault: str
    host: str
    seed: int
    where: tuple[str, ...] = ()
    outcome: Outcome | None = None

    @property
    def path(self) -> Path:
        """Return where it is kept."""
        return INJECTED / f"{self.fault}@{self.host}-{self.seed}"


def record(task: tuple[str, str, int]) -> Injected:
    """Train a host with a fault under gradscope, unless that is recorded."""
    run = Injected(*task)
    file = run.path / "outcome.json"
    if not file.exists():
        shutil.rmtree(run.path, ignore_errors=True)
        torch.set_num_threads(1)
        found = _train(run)
        run.path.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    found = json.loads(file.read_text())
    outcome = Outcome(**found["outcome"]) if found["outcome"] else None
    return replace(run, where=tuple(found["where"]), outcome=outcome)


def _train(run: Injected) -> dict[str, Any]:
    where: tuple[str, ...] = ()
    inject = next((fault.inject for fault in FAULTS if fault.name == run.fault), None)

    def build() -> Setup:
        nonlocal where
        setup = programs.PROGRAMS[run.host].build()
        assert isinstance(setup, Setup)
        if inject is not None:
            setup, where = inject(setup)
        return setup

    try:
        outcome = training.train(Program(run.host, build), run.seed, run.path / "run")
    except (DoesNotApplyError, RuntimeError, ValueError, IndexError, TypeError):
        return {"where": where, "outcome": None}  # the host has no place for the fault, or refuses to run
    return {"where": where, "outcome": asdict(outcome)}


@dataclass(frozen=True)
class Seen:
    """A labelled run and what gradscope says of it."""

    run: Injected
    label: str
    share: float
    rules: tuple[str, ...] = ()
    right: bool = False
    placed: bool | None = None


def see(run: Injected) -> Seen:
    """Label a run against its host, and have it judged."""
    from gradscope import read_run
    from gradscope.store import find_run

    fault = next(fault for fault in FAULTS if fault.name == run.fault)
    host = record((HEALTHY, run.host, run.seed)).outcome
    assert run.outcome is not None
    assert host is not None
    share = improvement(run.outcome, host.score)
    kind = label(share, is_control=False)
    if kind == "borderline":
        return Seen(run, kind, share)
    program = Program(run.host, programs.PROGRAMS[run.host].build, None, fault.causes, run.where)
    said = judge(GRADSCOPE, read_run(find_run(run.path / "run")), ())
    rules = tuple(symptom.rule for symptom in said.symptoms)
    placed = said.localises(program) if run.where else None
    return Seen(run, kind, share, rules, said.names(fault.causes, first=True), placed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and judge the grid as the command line asks; print a line a fault, then every miss."""
    parser = argparse.ArgumentParser(description="Inject faults into healthy programs, and judge.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="FAULT@HOST, with wildcards")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="record again")
    options = parser.parse_args(arguments)
    if options.fresh:
        shutil.rmtree(INJECTED, ignore_errors=True)
    names = [program.name for program in hosts()]
    seeds = range(options.seeds)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        healthy = list(pool.map(record, [(HEALTHY, name, seed) for name in names for seed in seeds]))
        assert all(run.outcome for run in healthy)
        tasks = [
            (fault.name, name, seed)
            for fault in FAULTS
            for name in names
            for seed in seeds
            if fnmatch(f"{fault.name}@{name}", options.only)
        ]
        runs = [run for run in pool.map(record, tasks, chunksize=4) if run.outcome is not None]
        seen = list(pool.map(see, runs, chunksize=4))
    print(table(seen))
    print("\n".join(misses(seen)))
    return 0


def table(seen: Sequence[Seen]) -> str:
    """Return a line of counts for each fault, and for all of them, as a Markdown table."""
    lines = [
        "| fault | false alarms | detected | cause first | layer |",
        "|---|---|---|---|---|",
    ]
    by_fault = {
        name: [item for item in seen if item.run.fault == name]
        for name in dict.fromkeys(item.run.fault for item in seen)
    }
    for name, chosen in (by_fault | {"all": list(seen)}).items():
        count: Counter[str] = Counter()
        for item in chosen:
            count[item.label] += 1
            if item.label == "healthy":
                count["false"] += bool(item.rules)
            elif item.label == "ailing":
                count["detected"] += bool(item.rules)
                count["first"] += item.right
                count["with place"] += item.placed is not None
                count["placed"] += bool(item.placed)
        ailing = count["ailing"]
        cells = [
            f"{count['false']} / {count['healthy']}",
            f"{count['detected']} / {ailing}",
            f"{count['first']} / {ailing}",
            f"{count['placed']} / {count['with place']}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def misses(seen: Sequence[Seen]) -> list[str]:
    """Return a line for each run judged wrongly."""
    lines = []
    for item in seen:
        name = f"{item.run.fault}@{item.run.host} (seed {item.run.seed}, {item.share:.2f})"
        rules = ", ".join(item.rules) or "healthy"
        if item.label == "healthy" and item.rules:
            lines.append(f"{name}: false alarm: {rules}")
        elif item.label == "ailing" and not item.right:
            lines.append(f"{name}: {'cause' if item.rules else 'not detected'}: {rules}")
        elif item.label == "ailing" and item.placed is False:
            lines.append(f"{name}: wrong layer: {rules}; right: {', '.join(item.run.where)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
