"""The rules, one ailment a file; this list is the index."""

from __future__ import annotations

from gradscope.diagnose.rule import Rule, rule_of
from gradscope.diagnose.rules import (
    attention_collapse,
    dead_units,
    degenerate_normalization,
    epsilon_floor,
    excessive_weight_decay,
    exploding_gradient,
    exploding_signal,
    gradient_not_zeroed,
    gradient_underflow,
    ineffective_clipping,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_divergence,
    missing_gradient,
    non_finite,
    not_optimized,
    output_mismatch,
    over_clipping,
    poor_initialization,
    rank_collapse,
    saturated_activation,
    symmetric_weights,
    unscaled_input,
    vanishing_gradient,
    vanishing_signal,
    zero_gradient,
)

# What these find does not pass by itself; others, such as a vanishing gradient or a learning rate that a
# schedule still raises, may.
_ONLINE = (non_finite, exploding_gradient, zero_gradient, gradient_not_zeroed, loss_divergence)

RULES: tuple[Rule, ...] = tuple(
    rule_of(module, online=module in _ONLINE)
    for module in (
        vanishing_gradient,
        exploding_gradient,
        vanishing_signal,
        exploding_signal,
        non_finite,
        zero_gradient,
        missing_gradient,
        dead_units,
        saturated_activation,
        attention_collapse,
        rank_collapse,
        poor_initialization,
        symmetric_weights,
        unscaled_input,
        output_mismatch,
        learning_rate_too_high,
        learning_rate_too_low,
        not_optimized,
        excessive_weight_decay,
        over_clipping,
        ineffective_clipping,
        gradient_not_zeroed,
        gradient_underflow,
        epsilon_floor,
        degenerate_normalization,
        loss_divergence,
    )
)
