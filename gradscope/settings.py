"""Every option and threshold of gradscope, with its default and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gradscope.errors import SettingsError


def option(default: Any, meaning: str, source: str = "our choice") -> Any:
    """Declare a setting: its default, what it does, and the source of the figure."""
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True)
class Settings:
    """All settings; immutable. Recording options come first, then what the rules compare with."""

    # Recording
    every_n_steps: int | str = option(
        "auto", 'record every n-th step; "auto" is dense at first, then sparser'
    )
    dense_steps: int = option(32, '"auto": record every step below this one')
    steps_per_doubling: int = option(16, '"auto": recorded steps in each doubling of the step count')
    longest_interval: int = option(50, '"auto": never leave more steps than this between two recorded ones')
    overhead_budget: float | None = option(
        None,
        "share of the training's time that recording may take; recorded steps are spaced so that it holds",
    )
    layers: tuple[str, ...] = option(
        (), "shell-style name patterns of the modules to watch; all leaves if empty"
    )
    update_sample: int = option(4096, "larger parameters have their update measured on this many entries")
    segment_steps: int = option(256, "recorded steps in a sealed Parquet segment")
    dead_window: int = option(10, "recorded steps without any activity after which a unit counts as dead")

    # Judging: what the rules compare with. All are ratios, shares or counts: none depends on a unit
    patience: int = option(5, "recorded steps that a condition must last; zeros and NaN count at once")
    fewest_steps: int = option(
        10, "fewer recorded steps than this leave a verdict without finding inconclusive"
    )
    shallowest: int = option(4, "fewer weight layers than this have no profile over depth to judge")
    vanishing_ratio: float = option(
        1e-3,
        "a profile that falls by more than this from one end of the network to the other vanishes",
        "measured: at most 3e-6 in vanishing networks, 0.05 to 150 in others (14 configurations, 3 seeds)",
    )
    exploding_ratio: float = option(
        1e3, "a profile that grows by more than this from one end to the other explodes", "as vanishing_ratio"
    )
    fluctuation_deviations: float = option(
        4.0, "standard deviations of Hanin's band that a profile may stray", "Hanin 2018"
    )
    gain_agreement: float = option(
        0.15, "measured and predicted gain a layer agree within this relative difference", "measured on demos"
    )
    spike_ratio: float = option(
        10.0, "gradient norms above this multiple of their running median are spikes", "Pascanu et al. 2013"
    )
    improved_share: float = option(
        0.75, "a loss that fell by at least this share shows a network that trains"
    )
    stuck_share: float = option(0.1, "a loss that fell by less than this share shows one that doesn't")
    chance_share: float = option(0.9, "a loss above this share of a constant guess's loss is a guess")
    known_share: float = option(
        0.8,
        "a first loss below this share of a constant guess's is that of a network that was trained before",
        "measured: untrained networks start at 0.95 of a guess's loss or more",
    )
    dead_share: float = option(
        0.7,
        "share of never-active units in a layer that is too many",
        "healthy: up to 0.29 at width 32, depth 30; 0.5 where all inputs look alike to a deep layer",
    )
    saturated_share: float = option(
        0.5, "share of saturated units in a layer that is too many", "DeepDiagnosis 2022"
    )
    passed_share: float = option(
        0.1,
        "a saturated layer that passes more of the gradient signal than this share does not block it",
        "measured: 0.27 to 0.7 in networks that learn, 0 to 0.1 in those that don't",
    )
    sigma_w2_factor: float = option(
        10.0,
        "initial weight variance may differ from the critical one by this factor",
        "torch's default, 6 times too small for ReLU, is still in use at small depth",
    )
    update_ratio_high: float = option(
        0.03,
        "median update / weight above this is too large a step",
        "usual band 1e-4 to 1e-2; lr 1.0: 0.07 to 0.1",
    )
    update_burst: float = option(
        0.25, "median update / weight of a step that leaves little of what was learned", "healthy: up to 0.3"
    )
    update_ratio_low: float = option(
        3e-5,
        "median update / weight below this is too small a step",
        "usual band 1e-4 to 1e-2; lr 1e-5: 1e-5",
    )
    divergence_ratio: float = option(2.0, "a loss that ends above this multiple of its start has diverged")

    symmetric_spread: float = option(1e-6, "units whose weights differ by less than this share are alike")
    input_low: float = option(0.01, "root mean square of an input under which it is too small", "LeCun 1998")
    input_high: float = option(10.0, "root mean square of an input above which it is too large", "LeCun 1998")
    decay_share: float = option(0.8, "share of weight decay in an update that is too much")
    decay_shrinkage: float = option(0.7, "final / initial weight norm under which weights shrink")
    clipped_share: float = option(0.9, "share of clipped steps that makes clipping the rule")
    clip_coefficient: float = option(0.1, "share of the gradient that clipping should leave")
    clip_update_ratio: float = option(1e-4, "update / weight under which clipped steps are too short")
    pile_up_ratio: float = option(
        1.05,
        "gradients above this multiple of the largest that one backward pass can give pile up",
        "an exact bound (Cauchy and Schwarz) but for rounding",
    )
    underflow_share: float = option(
        0.05,
        "share of gradient entries that may be zero in half precision",
        "Micikevicius et al. 2018: 1 to 5 %",
    )
    epsilon_share: float = option(0.1, "share of entries near Adam's epsilon that is too many")
    flat_share: float = option(0.1, "a normalised output's deviation / gain under which it is flat")
    entropy_share: float = option(
        0.05, "attention entropy / largest under which it collapsed", "Zhai et al. 2023"
    )
    cosine_share: float = option(
        0.999,
        "cosine between rows above which rank collapsed",
        "Dong et al. 2021 take 0.95; measured: up to 0.991 in most attention networks that train",
    )

    def __post_init__(self) -> None:
        """Reject values that cannot work; SettingsError says which and what is allowed."""
        every = self.every_n_steps
        if every != "auto" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise SettingsError(f'every_n_steps is {every!r}; give a whole number of at least 1, or "auto"')
        budget = self.overhead_budget
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1
        ):
            raise SettingsError(f"overhead_budget is {budget!r}; give a share of the time, such as 0.02")
        if not isinstance(self.layers, tuple) or not all(isinstance(name, str) for name in self.layers):
            raise SettingsError(f'layers is {self.layers!r}; give a list of name patterns, such as ["net.*"]')
        for item in fields(self):
            self._check_number(item.name, item.default)

    def _check_number(self, name: str, default: Any) -> None:
        """Reject what is no number of the kind that the default is."""
        value = getattr(self, name)
        if isinstance(default, int) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SettingsError(f"{name} is {value!r}; give a whole number of at least 1")
        if isinstance(default, float) and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0
        ):
            raise SettingsError(f"{name} is {value!r}; give a number of at least 0")

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name, for run.json."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Build settings from names and values; unknown names, perhaps of a newer version, are ignored."""
        known = {item.name for item in fields(cls)}
        chosen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**{name: value for name, value in chosen.items() if name in known})
