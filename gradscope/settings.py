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
    layers: tuple[str, ...] = option(
        (), "shell-style name patterns of the modules to watch; all leaves if empty"
    )
    update_sample: int = option(4096, "larger parameters have their update measured on this many entries")
    segment_steps: int = option(256, "recorded steps in a sealed Parquet segment")
    dead_window: int = option(10, "recorded steps without any activity after which a unit counts as dead")

    def __post_init__(self) -> None:
        """Reject values that cannot work; SettingsError says which and what is allowed."""
        every = self.every_n_steps
        if every != "auto" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise SettingsError(f'every_n_steps is {every!r}; give a whole number of at least 1, or "auto"')
        for name in (
            "dense_steps",
            "steps_per_doubling",
            "longest_interval",
            "update_sample",
            "segment_steps",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(f"{name} is {value!r}; give a whole number of at least 1")

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name, for run.json."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Build settings from names and values; unknown names, perhaps of a newer version, are ignored."""
        known = {item.name for item in fields(cls)}
        chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**{name: value for name, value in chosen.items() if name in known})
