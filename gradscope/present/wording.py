"""Turn names and numbers into text that is safe to show: short, bounded, free of control characters."""

from __future__ import annotations

import math
import unicodedata
from datetime import datetime
from typing import Any

LONGEST_TEXT = 2_000
LONGEST_NAME = 320
MISSING = "–"
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # they shape Persian and Indic words and emoji, and cannot reorder anything


def clean(text: object, longest: int = LONGEST_TEXT, keep: str = "") -> str:
    """Return the text with control, direction-changing and lone surrogate characters as code points."""
    visible = "".join(
        char
        if char in keep or char in _JOINERS or unicodedata.category(char) not in _INVISIBLE
        else f"\\u{ord(char):04x}"
        for char in str(text)[: longest + 1]
    )
    return elide(visible, longest)


def name(text: object) -> str:
    """Return the name of a layer, parameter or class, ready to show."""
    return clean(text, LONGEST_NAME) or "(model)"


def code(text: str) -> str:
    """Return source code with its line breaks and tabs, cut at a length that nobody pastes."""
    return clean(text.strip("\n"), 20_000, keep="\n\t")


def elide(text: str, longest: int) -> str:
    """Cut the middle out of a text that is too long: both ends of a qualified name matter."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def figure(value: Any, digits: int = 3) -> str:
    """Return a number with three significant digits, in scientific notation where that is shorter."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _other(value, digits)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:.{digits}g}"
    if "e" in text or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return text.replace("-", "−") if text.startswith("-") else text


def _other(value: Any, digits: int) -> str:
    if isinstance(value, (bool, str)):
        return clean(value, 200)
    if isinstance(value, (list, tuple)):
        return clean(", ".join(figure(item, digits) for item in value[:20]), 200)
    try:
        return figure(float(value), digits)
    except (TypeError, ValueError):
        return clean(value, 200)


def count(number: float, noun: str) -> str:
    """Return a number with its noun: "1 layer", "12,000 layers"."""
    return f"{number:,.0f} {noun}" if number == 1 else f"{number:,.0f} {noun}s"


def short(number: int) -> str:
    """Return a count with three digits and a suffix: 999, 83.2 k, 1.5 M."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {suffix}"
    return str(number)


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage; "<0.1 %" for what is more than nothing."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING if fraction is None or math.isnan(fraction) else figure(fraction)
    if abs(fraction) > 1e4:
        return figure(fraction)
    if 0 < fraction < 1e-3:
        return "<0.1 %"
    return f"{100 * fraction:.1f} %" if 0 < fraction < 0.1 else f"{100 * fraction:.0f} %"


def cosine(value: float) -> str:
    """Return a cosine; close to 1 by what is missing from it, which three digits would hide."""
    missing = 1 - value
    return f"1 − {figure(missing, 2)}" if 0 < missing < 1e-3 else figure(min(value, 1.0))


def duration(seconds: float) -> str:
    """Return a time span in the units that a person would use."""
    if not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(text: str) -> datetime | None:
    """Return the time that an ISO 8601 text names, None if it names none."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None


def rule_title(rule: str) -> str:
    """Return a rule's name as a heading."""
    titles = {"non-finite": "Non-finite values", "not-optimized": "Layer not optimized"}
    return titles.get(rule) or clean(rule, 80).replace("-", " ").capitalize()
