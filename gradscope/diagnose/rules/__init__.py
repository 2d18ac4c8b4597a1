"""The rules, one ailment a file; this list is the index."""

from __future__ import annotations

from gradscope.diagnose.rule import Rule, rule_of
from gradscope.diagnose.rules import (
    dead_units,
    exploding_gradient,
    exploding_signal,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_divergence,
    missing_gradient,
    non_finite,
    poor_initialization,
    saturated_activation,
    vanishing_gradient,
    vanishing_signal,
    zero_gradient,
)

RULES: tuple[Rule, ...] = tuple(
    rule_of(module)
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
        poor_initialization,
        learning_rate_too_high,
        learning_rate_too_low,
        loss_divergence,
    )
)
