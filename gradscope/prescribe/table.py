"""Which remedies suit which ailment, best first. Each one declines where it doesn't fit the case."""

from __future__ import annotations

from collections.abc import Callable

from gradscope.prescribe.activation import (
    leak,
    replace_bounded,
    replace_squashing,
    replace_unbounded,
    self_normalize,
    smooth,
)
from gradscope.prescribe.case import Case
from gradscope.prescribe.clipping import clip, clip_adaptively, loosen, stop_clipping
from gradscope.prescribe.fixes import (
    check_data,
    clip_at_the_right_place,
    enlarge_batch,
    find_missing_gradients,
    find_nonfinite,
    find_zero_gradients,
    shrink_accumulation,
    unfreeze,
    zero_gradients,
)
from gradscope.prescribe.initialization import break_symmetry, initialize, initialize_orthogonally
from gradscope.prescribe.loss import drop_output_activation, match_shapes, robust_loss, use_logits
from gradscope.prescribe.normalization import (
    normalize,
    normalize_queries,
    raise_norm_epsilon,
    replace_degenerate,
)
from gradscope.prescribe.optimizer import (
    decay_less,
    decay_weights_only,
    freeze,
    lower_epsilon,
    optimize_all,
    use_adam,
    use_sgd,
)
from gradscope.prescribe.precision import scale_loss, use_bfloat16, use_float32
from gradscope.prescribe.rate import higher, lower, warm_up
from gradscope.prescribe.residual import add_skips
from gradscope.prescribe.scaling import scale_inputs, scale_targets
from gradscope.prescribe.width import widen
from gradscope.records import Remedy

Prescription = Callable[[Case], Remedy | None]

TABLE: dict[str, tuple[Prescription, ...]] = {
    "vanishing-gradient": (
        initialize_orthogonally,
        replace_squashing,
        initialize,
        add_skips,
        normalize,
        self_normalize,
        use_adam,
    ),
    "exploding-gradient": (
        initialize_orthogonally,
        initialize,
        clip,
        normalize,
        add_skips,
        lower,
        clip_adaptively,
    ),
    "vanishing-signal": (replace_squashing, initialize, normalize, add_skips, self_normalize, scale_inputs),
    "exploding-signal": (replace_unbounded, initialize, normalize, lower, scale_inputs),
    "non-finite": (replace_unbounded, use_bfloat16, initialize, lower, clip, find_nonfinite, check_data),
    "zero-gradient": (drop_output_activation, leak, break_symmetry, find_zero_gradients, use_logits),
    "missing-gradient": (find_missing_gradients, unfreeze, freeze),
    "dead-units": (lower, leak, initialize, widen, normalize, smooth, scale_inputs),
    "saturated-activation": (initialize, scale_inputs, normalize, replace_bounded),
    "attention-collapse": (warm_up, normalize_queries, lower, clip),
    "rank-collapse": (add_skips, initialize, normalize, lower),
    "poor-initialization": (replace_squashing, initialize, normalize, break_symmetry, add_skips),
    "symmetric-weights": (break_symmetry,),
    "unscaled-input": (scale_inputs, scale_targets, normalize, lower),
    "output-mismatch": (drop_output_activation, match_shapes, use_logits),
    "learning-rate-too-high": (lower, warm_up, clip),
    "learning-rate-too-low": (higher, use_adam),
    "not-optimized": (optimize_all, freeze),
    "excessive-weight-decay": (decay_less, decay_weights_only),
    "over-clipping": (loosen, stop_clipping),
    "ineffective-clipping": (clip_at_the_right_place, clip),
    "gradient-not-zeroed": (zero_gradients, shrink_accumulation),
    "gradient-underflow": (use_bfloat16, scale_loss, use_float32),
    "epsilon-floor": (lower_epsilon, use_sgd),
    "degenerate-normalization": (replace_degenerate, enlarge_batch, raise_norm_epsilon),
    "loss-divergence": (lower, warm_up, clip, scale_targets, robust_loss),
}
