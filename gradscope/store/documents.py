"""run.json and events.jsonl: the nouns as strict JSON, and back with every type checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gradscope.records import Event, RunInfo, storable


class DocumentError(ValueError):
    """A document is not what it should be; the message says where."""


def dump_info(info: RunInfo) -> bytes:
    """Return the content of run.json."""
    return json.dumps(to_plain(asdict(info)), indent=1, allow_nan=False).encode() + b"\n"


def load_info(data: bytes) -> RunInfo:
    """Return what run.json says; DocumentError if it is damaged."""
    info: RunInfo = _decode(RunInfo, _parse(data), "")
    return info


def format_version(data: bytes) -> int | None:
    """Return the format version of a run.json, None if it isn't gradscope's; DocumentError if damaged."""
    version = _parse(data).get("format_version")
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def dump_event(event: Event, attempt: int) -> bytes:
    """Return a line of events.jsonl; the attempt says which restart of the run it belongs to."""
    return json.dumps({"attempt": attempt, **to_plain(asdict(event))}, allow_nan=False).encode() + b"\n"


def load_event(line: bytes) -> tuple[Event, int]:
    """Return an event and the attempt it belongs to; DocumentError if the line is damaged."""
    values = _parse(line)
    attempt = _decode(int, values.get("attempt", 0), "attempt")
    return _decode(Event, values, ""), attempt


def to_plain(value: Any) -> Any:
    """Return a value as strict JSON can hold it: NaN as null, infinities by name, unknown objects as text."""
    if isinstance(value, str):
        return storable(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {storable(str(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    return storable(str(value))


def _parse(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data.decode())
        if b"\\u" in data:  # an escape may stand for a lone surrogate
            values = to_plain(values)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"it is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise DocumentError("it is not a JSON object")
    return values


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Build `kind` from plain JSON; unknown fields, perhaps of a newer version, are ignored."""
    if kind is Any:
        return _frozen(value)
    if kind is float:
        return _decode_float(value, where)
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        return _expect(value in arguments, value, where, " or ".join(map(str, arguments)))
    if origin is tuple:
        _expect(isinstance(value, list), value, where, "a list")
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), value, where, "an object")
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return _expect(right, value, where, kind.__name__)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    values = {}
    for item in fields(kind):
        place = f"{where}.{item.name}" if where else item.name
        if item.name in value:
            values[item.name] = _decode(_hints(kind)[item.name], value[item.name], place)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise DocumentError(f"{place} is missing")
    return kind(**values)


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    if float in kinds and value in ("Infinity", "-Infinity"):
        return float(value)
    plain = (bool, int, float, str)
    exact = [kind for kind in kinds if kind in plain and type(value) is kind]
    others = [kind for kind in kinds if kind not in plain and kind is not NoneType]
    chosen = [*exact, *others, *(kind for kind in kinds if kind is not NoneType)]
    return _decode(chosen[0], value, where)


def _decode_float(value: Any, where: str) -> float:
    if value is None or value in ("Infinity", "-Infinity"):
        return float("nan" if value is None else value)
    _expect(isinstance(value, int | float) and not isinstance(value, bool), value, where, "a number")
    return float(value)


def _expect(condition: bool, value: Any, where: str, what: str) -> Any:
    if not condition:
        raise DocumentError(f"{where or 'the document'} is {str(value)[:40]!r}, not {what}")
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
