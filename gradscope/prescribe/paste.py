"""Write the code that a remedy offers: figures, names of layers folded into loops, blocks."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence

_FEWEST_IN_LOOP = 3


def figure(value: float) -> str:
    """Return a number as people write it: three significant digits, "1e-12" beyond usual sizes."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.3g}"
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else text


def rounded(value: float) -> float:
    """Return the nearest of 1, 2, 3, 5 and 7 times a power of ten, the figure to type for a rate."""
    exponent = math.floor(math.log10(value))
    choices = [step * 10.0**power for power in (exponent, exponent + 1) for step in (1, 2, 3, 5, 7)]
    return float(f"{min(choices, key=lambda choice: abs(math.log(choice / value))):.1g}")


def through(gain: float, layers: int) -> str:
    """Return what is left of a gradient after so many layers."""
    exponent = layers * math.log10(gain) if gain > 0 else -math.inf
    if abs(exponent) < 0.05:
        return "1"
    return f"1e{exponent:.0f}" if abs(exponent) >= 3 else figure(10**exponent)


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names for a sentence, and how many more there are."""
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def name_list(names: Sequence[str], indent: str = "") -> str:
    """Return a Python expression that evaluates to these names, runs of numbered ones folded into loops."""
    loops, single = _fold(list(dict.fromkeys(names)))
    if not loops:
        return _literal(single, indent)
    if len(loops) == 1 and not single:
        return f"[{loops[0]}]"
    items = [f"*({loop})" for loop in loops] + [repr(name) for name in single]
    inner = "".join(f"{indent}    {item},\n" for item in items)
    return f"[\n{inner}{indent}]"


def _literal(names: Sequence[str], indent: str) -> str:
    line = repr(list(names))
    if len(line) <= 80:
        return line
    inner = textwrap.indent(_filled([f"{name!r}," for name in names]), f"{indent}    ")
    return f"[\n{inner}\n{indent}]"


def _filled(items: Sequence[str], width: int = 90) -> str:
    """Return items in lines of about this width; names may hold spaces, so no line breaks inside one."""
    lines = [""]
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) > width:
            lines.append("")
        lines[-1] += f" {item}" if lines[-1] else item
    return "\n".join(lines)


def _fold(names: list[str]) -> tuple[list[str], list[str]]:
    """Split names into generator expressions over one number each and the names that fit none."""
    families: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal() and part.isascii() and str(int(part)) == part:
                key = ".".join([*parts[:place], ""]), ".".join(["", *parts[place + 1 :]])
                families[key][int(part)] = name
    left, loops = set(names), []
    for (before, after), members in sorted(families.items(), key=lambda item: -len(item[1])):
        numbers = sorted(number for number, name in members.items() if name in left)
        for run in _progressions(numbers):
            loops.append(_loop(before, after, run))
            left -= {members[number] for number in run}
    return loops, [name for name in names if name in left]


def _progressions(numbers: list[int]) -> list[range]:
    """Return the evenly spaced stretches of rising numbers that are long enough for a loop."""
    found, start = [], 0
    while start < len(numbers) - 1:
        step, end = numbers[start + 1] - numbers[start], start + 1
        while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
            end += 1
        if end - start + 1 >= _FEWEST_IN_LOOP:
            found.append(range(numbers[start], numbers[end] + step, step))
            start = end + 1
        else:
            start += 1
    return found


def _loop(before: str, after: str, numbers: range) -> str:
    pattern = before.replace("{", "{{").replace("}", "}}"), after.replace("{", "{{").replace("}", "}}")
    start = f"{numbers.start}, " if numbers.start or numbers.step > 1 else ""
    step = f", {numbers.step}" if numbers.step > 1 else ""
    text = f"{pattern[0]}{{i}}{pattern[1]}"
    return f"f{text!r} for i in range({start}{numbers.stop}{step})"


def block(*lines: str | Iterable[str]) -> str:
    """Join lines of code; an iterable stands for several lines."""
    flat: list[str] = []
    for line in lines:
        flat.extend([line] if isinstance(line, str) else line)
    return "\n".join(flat)


def joined(first: str, second: str) -> str:
    """Put one piece of code after another; torch is imported once."""
    return block(first, "", second.removeprefix("import torch\n\n") if "import torch" in first else second)
