"""Which remedies suit which ailment, best first. Each one declines where it doesn't fit the case."""

from __future__ import annotations

from collections.abc import Callable

from gradscope.prescribe import (
    activation,
    clipping,
    fixes,
    initialization,
    loss,
    normalization,
    optimizer,
    precision,
    rate,
    residual,
    scaling,
    width,
)
from gradscope.prescribe.case import Case
from gradscope.records import Remedy

Prescription = Callable[[Case], Remedy | None]

TABLE: dict[str, tuple[Prescription, ...]] = {
    "vanishing-gradient": (
        initialization.initialize_orthogonally,
        activation.replace_squashing,
        initialization.initialize,
        residual.add_skips,
        normalization.normalize,
        activation.self_normalize,
        optimizer.use_adam,
    ),
    "exploding-gradient": (
        clipping.clip_spikes,
        initialization.initialize_orthogonally,
        initialization.initialize,
        residual.skip_norms,
        clipping.clip,
        normalization.normalize,
        rate.lower,
        clipping.clip_adaptively,
    ),
    "vanishing-signal": (
        activation.replace_squashing,
        initialization.initialize,
        normalization.normalize,
        residual.add_skips,
        activation.self_normalize,
        scaling.scale_inputs,
    ),
    "exploding-signal": (
        activation.replace_unbounded,
        initialization.initialize,
        normalization.normalize,
        rate.lower,
        scaling.scale_inputs,
    ),
    "non-finite": (
        fixes.blame_data,
        activation.replace_unbounded,
        precision.use_bfloat16,
        initialization.initialize_if_at_once,
        rate.lower_if_blown_up,
        clipping.clip_if_blown_up,
        fixes.find_nonfinite,
        fixes.check_data,
    ),
    "zero-gradient": (
        loss.use_single_score,
        initialization.break_symmetry,
        activation.leak_if_dead,
        fixes.find_zero_gradients,
        initialization.reinitialize,
    ),
    "missing-gradient": (fixes.find_missing_gradients, fixes.unfreeze, optimizer.freeze),
    "dead-units": (
        rate.lower_if_killed,
        initialization.initialize,
        activation.leak,
        width.widen,
        normalization.normalize,
        activation.smooth,
    ),
    "saturated-activation": (
        initialization.initialize,
        rate.lower_if_saturated_later,
        scaling.scale_inputs,
        normalization.normalize,
        activation.replace_bounded,
    ),
    "attention-collapse": (rate.warm_up, normalization.normalize_queries, rate.lower, clipping.clip),
    "rank-collapse": (residual.add_skips, normalization.normalize, initialization.initialize, rate.lower),
    "poor-initialization": (
        activation.replace_squashing,
        initialization.reinitialize,
        normalization.normalize,
        residual.add_skips,
    ),
    "symmetric-weights": (initialization.break_symmetry,),
    "unscaled-input": (scaling.scale_inputs, scaling.scale_targets, normalization.normalize, rate.lower),
    "output-mismatch": (
        loss.use_single_score,
        loss.match_shapes,
        loss.drop_output_activation,
        loss.use_logits,
        scaling.scale_targets,
    ),
    "learning-rate-too-high": (rate.lower, rate.warm_up, clipping.clip),
    "learning-rate-too-low": (rate.higher, optimizer.use_adam),
    "not-optimized": (optimizer.optimize_all, optimizer.freeze),
    "excessive-weight-decay": (optimizer.decay_less, optimizer.decay_weights_only),
    "over-clipping": (clipping.loosen, clipping.stop_clipping),
    "ineffective-clipping": (fixes.clip_at_the_right_place, clipping.clip),
    "gradient-not-zeroed": (fixes.zero_gradients, fixes.shrink_accumulation),
    "gradient-underflow": (precision.use_bfloat16, precision.scale_loss, precision.use_float32),
    "epsilon-floor": (optimizer.lower_epsilon, optimizer.use_sgd),
    "degenerate-normalization": (
        normalization.replace_degenerate,
        fixes.enlarge_batch,
        normalization.raise_norm_epsilon,
    ),
    "loss-divergence": (rate.lower, rate.warm_up, clipping.clip, scaling.scale_targets, loss.robust_loss),
}
