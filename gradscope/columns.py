"""What is recorded: every statistic's name, unit, meaning, and how the values of several ranks merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Merge = Literal["sum", "min", "max", "mean", "root-mean-square", "spread", "first", "extent", "norm", "ratio"]


@dataclass(frozen=True)
class Column:
    """One recorded statistic: its name, its unit, what it means, and how values of several ranks merge.

    `merge` names the rule: "sum", "min", "max", "first", or, weighted by the column that `weight` names,
    "mean", "root-mean-square" and "spread" (a standard deviation about the merged mean). Of parameters, which
    ranks hold shards or copies of: "extent" (entries, copies counted once), "norm" (of all shards together)
    and "ratio" (of the merged norm of that name to the one that `weight` names).
    """

    name: str
    unit: str
    meaning: str
    merge: Merge
    weight: str | None = None


def _activation(name: str, unit: str, meaning: str, merge: Merge) -> Column:
    return Column(f"activation_{name}", unit, meaning, merge, "activation_count")


def _signal(name: str, unit: str, meaning: str, merge: Merge) -> Column:
    return Column(f"signal_{name}", unit, meaning, merge, "signal_count")


# Every optimizer step that is recorded has one row of these. Further parameter groups add lr_1, lr_2, ...
STEP_COLUMNS: tuple[Column, ...] = (
    Column("step", "optimizer steps", "optimizer steps done before this one; the first step is 0", "first"),
    Column("epoch", "epochs", "epoch that the step belongs to", "first"),
    Column("batch_idx", "batches", "index of the step's last batch in its epoch", "first"),
    Column("micro_batches", "batches", "micro-batches accumulated into this step; NaN in plain loops", "max"),
    Column("loss", "loss", "mean over the micro-batches of the loss that was minimised", "mean"),
    Column("lr", "1", "learning rate of the first parameter group of the first optimizer", "first"),
    Column(
        "grad_norm", "loss / weight", "norm of all gradients: accumulated, unscaled, before clipping", "first"
    ),
    Column("clipped_grad_norm", "loss / weight", "norm of all gradients as the optimizer used them", "first"),
    Column("clip_coefficient", "1", "clipped_grad_norm / grad_norm", "first"),
    Column("amp_scale", "1", "loss scale of 16-bit mixed precision", "first"),
    Column("skipped", "0 or 1", "1 if the loss scaler skipped the update", "max"),
    Column("seconds", "s", "wall time of the whole step, gradscope's own part included", "max"),
    Column("overhead_seconds", "s", "wall time of gradscope's own part of the step", "max"),
)

# One row a recorded step and layer. A layer called k times in a step is merged over its calls.
LAYER_COLUMNS: tuple[Column, ...] = (
    Column("calls", "calls", "forward calls in the step, recomputation not counted", "max"),
    Column("activation_count", "entries", "output entries that the activation statistics cover", "sum"),
    _activation("mean", "activation", "mean of the output", "mean"),
    _activation("std", "activation", "standard deviation of the output about its mean", "spread"),
    _activation("rms", "activation", "root mean square of the output", "root-mean-square"),
    _activation("min", "activation", "smallest entry", "min"),
    _activation("max", "activation", "largest entry", "max"),
    _activation(
        "zero_fraction",
        "fraction",
        "share of entries that are exactly 0",
        "mean",
    ),
    _activation(
        "saturated_fraction",
        "fraction",
        "share of entries where a bounded activation's derivative is under 5 % of its maximum; else absent",
        "mean",
    ),
    _activation(
        "dead_unit_fraction",
        "fraction",
        "share of a rectifier's units that were active for no sample in any of the last 10 recorded steps "
        "(in all so far, while fewer); absent for other layers; of several ranks the smallest",
        "min",
    ),
    _activation(
        "cosine",
        "1",
        "mean cosine between rows of the output, from 16 of them: between the first sample's tokens where "
        "the last of three or more axes counts units, else between samples (of long rows, 1,024 entries); of "
        "several calls or ranks the mean of each one's own",
        "mean",
    ),
    _activation(
        "nonfinite", "entries", "NaN and infinite entries; the other statistics are absent then", "sum"
    ),
    Column(
        "attention_entropy",
        "fraction",
        "mean entropy of rows of attention weights, 16 of each head in the first sample, over log of the "
        "positions that have any weight; at the module that is attention or a softmax, else at the layer "
        "that attention by functions feeds; absent without gradients, within activation checkpointing and in "
        "compiled models; of several calls or ranks the mean",
        "mean",
        "activation_count",
    ),
    Column(
        "attention_entropy_lowest",
        "fraction",
        "that of the head with the lowest; of MultiheadAttention without gradients the mean weights' own",
        "min",
    ),
    Column("signal_count", "entries", "entries that the signal statistics cover", "sum"),
    _signal(
        "rms",
        "loss / activation",
        "root mean square of the gradient with respect to the output, loss scale and averaging over ranks "
        "divided out",
        "root-mean-square",
    ),
    _signal(
        "absmax", "loss / activation", "largest magnitude of the gradient with respect to the output", "max"
    ),
    _signal("zero_fraction", "fraction", "share of entries of that gradient that are exactly 0", "mean"),
    _signal("nonfinite", "entries", "NaN and infinite entries of that gradient", "sum"),
)

# One row a recorded step and parameter. Weights are read before the update.
PARAMETER_COLUMNS: tuple[Column, ...] = (
    Column(
        "count",
        "entries",
        "entries of the parameter (of this rank's shard, if sharded); a complex entry counts as two",
        "extent",
    ),
    Column("weight_norm", "weight", "Euclidean norm of the parameter before the update", "norm", "count"),
    Column(
        "weight_rms",
        "weight",
        "root mean square of the parameter before the update",
        "root-mean-square",
        "count",
    ),
    Column(
        "weight_absmax",
        "weight",
        "largest magnitude in the parameter",
        "max",
    ),
    Column("weight_mean", "weight", "mean of this rank's shard; of sharded parameters only", "mean", "count"),
    Column(
        "weight_std",
        "weight",
        "standard deviation of the parameter about its mean",
        "spread",
        "count",
    ),
    Column("weight_nonfinite", "entries", "NaN and infinite entries of the parameter", "sum"),
    Column("gradient_missing", "0 or 1", "1 if the trained parameter's gradient was None at the step", "min"),
    Column(
        "gradient_norm",
        "loss / weight",
        "norm of the gradient: accumulated, synchronised, unscaled, before clipping",
        "norm",
        "count",
    ),
    Column("gradient_rms", "loss / weight", "root mean square of that gradient", "root-mean-square", "count"),
    Column(
        "gradient_absmax",
        "loss / weight",
        "largest magnitude of that gradient",
        "max",
    ),
    Column(
        "gradient_zero_fraction",
        "fraction",
        "share of that gradient's entries that are exactly 0",
        "mean",
        "count",
    ),
    Column("gradient_nonfinite", "entries", "NaN and infinite entries of that gradient", "sum"),
    Column(
        "clipped_gradient_norm",
        "loss / weight",
        "norm of the gradient that the optimizer used",
        "norm",
        "count",
    ),
    Column("update_norm", "weight", "norm of the parameter's real change over the step", "norm", "count"),
    Column("update_ratio", "1", "update_norm / weight_norm", "ratio", "weight_norm"),
    Column(
        "momentum_norm",
        "loss / weight",
        "norm of the optimizer's first-moment buffer after the step (from a sample above 65,536 entries)",
        "norm",
        "count",
    ),
    Column(
        "second_moment_rms",
        "(loss / weight)²",
        "root mean square of Adam's second moment after the step (of a sample above 65,536 entries)",
        "root-mean-square",
        "count",
    ),
    Column(
        "epsilon_fraction",
        "fraction",
        "share of entries with sqrt(v_hat) < 10 eps in Adam's denominator (of a sample above 65,536 entries)",
        "mean",
        "count",
    ),
)


def meaning_of(name: str) -> str:
    """Return what a statistic of layers means."""
    return next(column.meaning for column in LAYER_COLUMNS if column.name == name)
