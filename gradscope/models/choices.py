"""Check the options of a model: a value that cannot work is refused in one line that says what would."""

from __future__ import annotations

from collections.abc import Collection


def check_choice(option: str, value: object, allowed: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of the names in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{option} is {value!r}; choose one of: {', '.join(allowed)}")


def check_whole(option: str, value: object, smallest: int = 1) -> None:
    """Raise ValueError unless `value` is an int of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"{option} is {value!r}; give a whole number of at least {smallest}")


def check_number(option: str, value: object, interval: str = "(-inf, inf)") -> None:
    """Raise ValueError unless `value` is a number in `interval`, such as "[0, 1)"."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    inside = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    on_open_end = (value == low and interval[0] == "(") or (value == high and interval[-1] == ")")
    if not inside or on_open_end:
        raise ValueError(f"{option} is {value!r}; give a number in {interval}")
