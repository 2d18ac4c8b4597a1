"""Look at a model before it is trained: one forward and one backward pass, judged at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.diagnose import profile
from gradscope.diagnose.rule import Undecided
from gradscope.diagnose.series import median
from gradscope.diagnose.wording import explain_gain
from gradscope.errors import GradscopeError
from gradscope.examine import examine
from gradscope.memory import Memory
from gradscope.observe import Recorder
from gradscope.records import Evidence, Report, Run
from gradscope.settings import Settings

_FAR_OFF = 2.0  # an initial loss beyond this multiple of the expected one deserves a look

# What an optimizer, and clipping before it, did with the gradients: nothing of the initialisation.
_CLIPPING = ["clipped_grad_norm", "clip_coefficient"]
_OPTIMIZERS = {
    "clipped_gradient_norm",
    "update_norm",
    "update_ratio",
    "momentum_norm",
    "second_moment_rms",
    "epsilon_fraction",
}

_LONGEST_WALK = 100  # autograd nodes from the loss back to the output

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
Loss = Callable[[Any, Any], Tensor]


def preflight(
    model: nn.Module, batch: Any, loss_fn: Loss | None = None, settings: Settings | None = None
) -> Report:
    """Judge a model at its initialisation by one batch; the model, its gradients and all random states stay.

    batch: (inputs, targets), or whatever a LightningModule's training_step takes. loss_fn: (output, target)
    -> scalar; None asks the LightningModule's training_step. What needs several steps is listed as not
    checked, and a model in which nothing is found is "inconclusive": no single step can call a training
    healthy. The evidence compares the measured gain a layer with the predicted one, and the initial loss
    with the one expected of an untrained classifier, log C for C balanced classes. Raises GradscopeError if
    there is no loss to differentiate.
    """
    sink = Memory()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise GradscopeError("preflight needs a model with at least one trained parameter")
    optimizer = torch.optim.SGD(trained, lr=0.0)
    recorder = Recorder(model, [optimizer], sink, settings)
    with _untouched(model), torch.enable_grad():
        recorder.start()
        try:
            recorder.begin_step()
            loss, compared = _loss(model, batch, loss_fn)
            recorder.minimised(loss)
            loss.backward()
            recorder.before_update(optimizer)
            recorder.end_step({"loss": float(loss.detach()), "micro_batches": 1.0})
        finally:
            recorder.stop("finished")
    run = sink.run(Path("preflight"))
    if run is None:
        reason = sink.events[-1].message if sink.events else "nothing was recorded"
        raise GradscopeError(f"preflight could not observe the model: {reason}")
    return initial_report(_with_shapes(run, compared) if compared else run, settings)


def _loss(model: nn.Module, batch: Any, loss_fn: Loss | None) -> tuple[Tensor, Shapes | None]:
    """Return the loss, and the shapes of output and target if they broadcast in it."""
    compared = None
    if loss_fn is not None:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise GradscopeError("preflight's batch must be (inputs, targets) where loss_fn is given")
        output, target = model(batch[0]), batch[1]
        loss = loss_fn(output, target)
        if all(isinstance(item, Tensor) for item in (loss, output, target)):
            compared = _broadcast(loss, output, target)
    elif hasattr(model, "training_step"):
        with warnings.catch_warnings():
            # self.log() without a Trainer says that it does nothing.
            warnings.filterwarnings("ignore", message=".*self.trainer.*")
            given = model.training_step(batch, 0)  # type: ignore[operator]
        loss = given["loss"] if isinstance(given, dict) else given
    else:
        raise GradscopeError("preflight needs loss_fn, or a LightningModule with a training_step")
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise GradscopeError("preflight's loss must be one number that depends on trained parameters")
    return loss, compared


def _broadcast(loss: Tensor, output: Tensor, target: Tensor) -> Shapes | None:
    """Return the shapes of output and target if the loss compared more pairs of entries than either has.

    Shapes that merely differ are none of ours: a loss function may reshape them before it compares.
    """
    seen, queue = {output.grad_fn, loss.grad_fn}, [loss.grad_fn]
    for node in queue:
        for name in ("_saved_self", "_saved_self_sym_sizes"):
            kept = getattr(node, name, None)
            shape = tuple(kept.shape if isinstance(kept, Tensor) else kept or ())
            if math.prod(shape) > max(output.numel(), target.numel()):
                return tuple(output.shape), tuple(target.shape)
        behind = [item for item, _ in getattr(node, "next_functions", ()) if item not in seen]
        seen.update(behind)
        queue += behind if len(seen) < _LONGEST_WALK else []
    return None


def _with_shapes(run: Run, compared: Shapes) -> Run:
    return replace(run, info=replace(run.info, loss={**run.info.loss, "shapes": compared}), _tables={})


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put gradients, buffers (such as BatchNorm's running statistics) and random states back afterwards."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
        for parameter in model.parameters():
            parameter.grad = None
        try:
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.grad = gradients.get(name)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])


def initial_report(run: Run, settings: Settings | None = None) -> Report:
    """Judge the first recorded step of a run for what it tells of the initialisation.

    What the optimizer made of the gradients is left out, and persistence, which a rule otherwise waits for,
    one step can't show.
    """
    known = run.parameter_statistics.copy()
    known[[name for name in known.columns if name in _OPTIMIZERS]] = np.nan
    run = replace(
        run,
        steps=run.steps.drop(columns=_CLIPPING, errors="ignore"),
        parameter_statistics=known,
        _tables={},
    )
    report = examine(run, replace(settings or Settings(), fewest_steps=1, patience=1))
    if report.verdict == "healthy":
        report = replace(report, verdict="inconclusive")
    known_gain = _gain(run, settings or Settings())
    return replace(report, evidence=(*report.evidence, *known_gain, *_initial_loss(run)))


def summary(report: Report) -> str:
    """Return what was found at initialisation in a few lines: each finding, or that there is none."""
    loss = next((item.statement for item in report.evidence if item.name == "initial loss"), "")
    found = [
        f"gradscope preflight: {finding.rule} ({finding.severity}). {' '.join(finding.message.split())}"
        for finding in report.findings
    ]
    first = found or ["gradscope preflight: nothing found at initialisation."]
    return "\n".join([*first[:-1], f"{first[-1]} {loss}".strip()])


def _gain(run: Run, settings: Settings) -> tuple[Evidence, ...]:
    """Compare the gradient signal's gain a layer with the one predicted; nothing for shallow networks."""
    try:
        items = max(profile.deep_networks(run, settings), key=len)
    except Undecided:
        return ()
    measured = math.exp(-median(profile.signal_profile(run, items).trend))
    predicted = profile.predicted_gain(run, items)
    if not math.isfinite(measured):
        return ()
    normal = f"predicted {predicted:.2f}" if math.isfinite(predicted) else "no prediction"
    text = explain_gain(run, items, measured, settings)
    return (Evidence("measured against predicted gain per layer", measured, normal, text),)


def _initial_loss(run: Run) -> tuple[Evidence, ...]:
    """Compare the loss with that of a classifier that knows nothing; nothing for other losses."""
    functions = " ".join(str(name) for name in run.info.loss.get("functions", ()))
    classes = _classes(run)
    if "BinaryCrossEntropy" in functions:
        expected, of = math.log(2), "log 2, of a binary classifier that knows nothing"
    elif ("NllLoss" in functions or "CrossEntropy" in functions) and classes > 1:
        expected, of = math.log(classes), f"log {classes}, of {classes} balanced classes"
    else:
        return ()
    loss = float(run.steps["loss"].iloc[0])
    near = loss <= _FAR_OFF * expected
    says = (
        "as of a classifier that knows nothing yet" if near else "the outputs are too large, or don't fit it"
    )
    return (
        Evidence(
            "initial loss", loss, f"about {expected:.3g} ({of})", f"The initial loss is {loss:.3g}: {says}."
        ),
    )


def _classes(run: Run) -> int:
    feeding = [str(name) for name in run.info.loss.get("inputs", ())]
    shapes = [layer.output_shape for layer in run.layers if layer.name in feeding and layer.output_shape]
    return int(shapes[-1][-1]) if shapes else 0
