from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.records import Event, LayerInfo, OptimizerInfo, ParameterInfo, RunInfo
from gradscope.store.documents import DocumentError, dump_event, dump_info, load_event, load_info

text = st.text(max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
facts = st.dictionaries(text, plain | st.lists(plain, max_size=3).map(tuple), max_size=3)
layers = st.builds(
    LayerInfo,
    text,
    text,
    text,
    parameters=st.lists(text, max_size=2).map(tuple),
    activation=st.none() | text,
    fan_in=st.none() | st.integers(),
    output_shape=st.none() | st.lists(st.integers(), max_size=3).map(tuple),
    options=st.dictionaries(
        text, text | st.integers() | st.booleans() | st.floats(allow_nan=False), max_size=3
    ),
)
parameters = st.builds(
    ParameterInfo,
    text,
    text,
    text,
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    group=st.none() | text,
    initial=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
)
infos = st.builds(
    RunInfo,
    st.just(1),
    text,
    training=facts,
    loss=facts,
    optimizers=st.lists(
        st.builds(OptimizerInfo, text, st.lists(facts, max_size=2).map(tuple)), max_size=2
    ).map(tuple),
    layers=st.lists(layers, max_size=2).map(tuple),
    parameters=st.lists(parameters, max_size=2).map(tuple),
)


@settings(deadline=None)
@given(infos)
def test_what_is_written_is_read(info: RunInfo) -> None:
    assert load_info(dump_info(info)) == info


@settings(deadline=None)
@given(
    st.builds(Event, text, st.integers(), text, st.none() | text, st.none() | text, facts), st.integers(0, 9)
)
def test_an_event_is_one_line(event: Event, attempt: int) -> None:
    line = dump_event(event, attempt)
    assert line.count(b"\n") == 1
    assert load_event(line) == (event, attempt)


def test_what_json_cannot_hold_is_still_strict_json() -> None:
    odd = {
        "nan": math.nan,
        "inf": -math.inf,
        "path": Path("a"),
        "array": np.arange(2),
        "one": np.float32(0.5),
    }
    info = RunInfo(
        1, "m", training=odd, parameters=(ParameterInfo("a", "b", "c", (), initial={"std": math.nan}),)
    )
    document = json.loads(dump_info(info), parse_constant=pytest.fail)
    assert document["training"] == {"nan": None, "inf": "-Infinity", "path": "a", "array": [0, 1], "one": 0.5}
    assert math.isnan(load_info(dump_info(info)).parameters[0].initial["std"])


def test_fields_of_a_newer_version_are_ignored() -> None:
    info = RunInfo(1, "m", layers=(LayerInfo("a", "Linear", "linear"),))
    document = json.loads(dump_info(info))
    document["colour"] = "red"
    document["layers"][0]["colour"] = "red"
    assert load_info(json.dumps(document).encode()) == info


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format_version": 1}']
)
def test_damage_is_a_document_error(data: bytes) -> None:
    with pytest.raises(DocumentError):
        load_info(data)


def test_the_place_of_the_damage_is_named() -> None:
    document = json.loads(dump_info(replace(RunInfo(1, "m"), layers=(LayerInfo("a", "b", "c"),))))
    document["layers"][0]["fan_in"] = "wide"
    with pytest.raises(DocumentError, match=r"layers\[0\].fan_in is 'wide', not int"):
        load_info(json.dumps(document).encode())


def test_texts_that_utf8_cannot_hold_are_spelled_out_also_in_older_and_damaged_files() -> None:
    layer = LayerInfo("\ud800", "Linear", "linear", options={"\udfff": "\ud801"})
    spelled = LayerInfo(r"\ud800", "Linear", "linear", options={r"\udfff": r"\ud801"})
    written = dump_info(RunInfo(1, "tests.Model", layers=(layer,)))
    older = written.replace(rb"\\ud", rb"\ud")
    assert older != written
    for data in (written, older):
        assert load_info(data).layers == (spelled,)
    with pytest.raises(DocumentError, match="not valid JSON"):
        load_info(written.replace(b"tests.Model", b"\xed\xa0\x80"))
