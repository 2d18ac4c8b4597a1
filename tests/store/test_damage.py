"""A damaged run directory is never fatal, unless nothing can be known of it; the damage is always named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gradscope.errors import RunError
from gradscope.records import Event
from gradscope.store import find_run, read_run
from tests.store.recording import begin, record, write


def segments(run: Path, table: str) -> list[Path]:
    return sorted((run / table).glob("*.parquet"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write a run of 10 steps: two sealed segments of 4 steps, a journal of 2, an event."""
    writer = begin(tmp_path / "run", segment_steps=4)
    for step in range(10):
        writer.append(record(step))
    writer.event(Event("skipped-step", 3, "the scale was halved"))
    return tmp_path / "run"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut to 3 bytes": lambda path: path.write_bytes(path.read_bytes()[:3]),
    "cut to a half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("nothing like it\n" * 9),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("table", ["layers", "parameters", "steps"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_segment_is_named_and_the_rest_is_read(
    run: Path, damage: Callable[[Path], object], table: str
) -> None:
    victim = segments(run, table)[0]
    damage(victim)
    read = read_run(run)
    assert len(read.problems) == 1
    assert table in read.problems[0]
    assert victim.name[:15] in read.problems[0]
    assert len(read.layer_statistics) == 3 * (6 if table == "layers" else 10)
    assert len(read.parameter_statistics) == 2 * (6 if table == "parameters" else 10)
    assert read.steps["step"].tolist() == list(range(10))
    assert read.steps["loss"].isna().sum() == (4 if table == "steps" else 0)
    assert len(read.events) == 1


def test_every_length_and_every_flipped_bit_of_a_segment_is_noticed(run: Path) -> None:
    victim = segments(run, "layers")[0]
    whole = victim.read_bytes()
    chance = random.Random(0)
    for _ in range(25):
        place = chance.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        for data in (bytes(flipped), whole[:place]):
            victim.write_bytes(data)
            read = read_run(run)
            assert read.problems == (f"layers/{victim.name} was left out: it is damaged",)
            assert len(read.layer_statistics) == 18


def test_a_journal_cut_anywhere_keeps_its_complete_records(run: Path) -> None:
    journal = next((run / "live").iterdir())
    whole = journal.read_bytes()
    lengths = [*range(0, 2200, 101), *range(len(whole) - 40, len(whole) + 1, 7), len(whole)]
    for length in lengths:
        journal.write_bytes(whole[:length])
        read = read_run(run)
        assert read.problems == ()
        assert 8 <= len(read.steps) <= 10
        assert len(read.layer_statistics) == 3 * len(read.steps)
    assert len(read.steps) == 10


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"rank": 0, "colour": 1}', b"5"])
def test_a_journal_whose_header_is_of_another_version_is_named(run: Path, text: bytes) -> None:
    import struct
    import zlib

    journal = next((run / "live").iterdir())
    journal.write_bytes(struct.pack("<8sII", b"GSJRNL1\n", len(text), zlib.crc32(text)) + text)
    read = read_run(run)
    assert read.problems == (f"live/{journal.name} was not read: its header is not of this format version",)
    assert len(read.steps) == 8


def test_a_flipped_bit_in_a_journal_costs_one_step_or_is_named(run: Path) -> None:
    journal = next((run / "live").iterdir())
    whole = journal.read_bytes()
    chance = random.Random(1)
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        journal.write_bytes(bytes(flipped))
        read = read_run(run)
        assert 8 <= len(read.steps) <= 10
        assert len(read.steps) == 10 or len(read.problems) == 1 or _length_is_hit(flipped, whole)


def _length_is_hit(flipped: bytearray, whole: bytes) -> bool:
    """A longer header than there are bytes looks like one that was still being written."""
    return flipped[8:12] != whole[8:12]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_journal_leaves_the_segments(run: Path, damage: Callable[[Path], object]) -> None:
    damage(next((run / "live").iterdir()))
    read = read_run(run)
    assert 8 <= len(read.steps) <= 10
    assert len(read.problems) <= 1


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_events_leave_the_rest(run: Path, damage: Callable[[Path], object]) -> None:
    damage(run / "events.jsonl")
    read = read_run(run)
    assert len(read.steps) == 10
    assert len(read.problems) <= 1


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_json_is_one_clear_line(run: Path, damage: Callable[[Path], object]) -> None:
    damage(run / "run.json")
    if (run / "run.json").is_file() and (run / "run.json").read_bytes().endswith(b"}"):
        return  # only the line break is gone
    with pytest.raises(RunError) as caught:
        read_run(run)
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("damaged", "no run.json", "cannot read"))


@pytest.mark.parametrize("folder", ["live", "layers", "parameters", "steps"])
def test_a_folder_that_is_gone_or_a_file_is_named(run: Path, folder: str) -> None:
    shutil.rmtree(run / folder)
    assert any(folder in problem for problem in read_run(run).problems)
    (run / folder).write_text("")
    assert any(folder in problem for problem in read_run(run).problems)


def test_foreign_files_are_named_and_hidden_ones_ignored(run: Path) -> None:
    (run / "layers" / "notes.txt").write_text("mine")
    (run / "layers" / "0000-000-000009-00000000.parquet.bak").write_text("mine")
    (run / "steps" / ".hidden").write_text("mine")
    read = read_run(run)
    assert len(read.problems) == 2
    assert all("is not gradscope's" in problem for problem in read.problems)
    assert len(read.steps) == 10


def test_a_foreign_parquet_file_under_our_name_is_named(run: Path) -> None:
    import zlib

    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(run / "foreign")
    data = (run / "foreign").read_bytes()
    (run / "layers" / f"0000-000-000007-{zlib.crc32(data):08x}.parquet").write_bytes(data)
    (run / "layers" / f"0000-000-000008-{zlib.crc32(b'x'):08x}.parquet").write_bytes(b"x")
    read = read_run(run)
    assert sum("was left out" in problem for problem in read.problems) == 2
    assert len(read.layer_statistics) == 30


WRONG: dict[str, object] = {
    "layers": [5, {"a": 1}, [7], "text", None],
    "format_version": ["1", None, True, 1.5],
    "status": ["ended", 3, None],
    "restarts": ["2", 1.5, True],
    "optimizers": [[{"groups": []}], {"kind": "SGD"}],
    "training": [[], "x"],
    "parameters": [[{"name": "a", "layer": "b", "role": "weight", "shape": ["x"]}]],
    "model": [None, 5],
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_types_in_run_json_are_one_clear_line(run: Path, field: str) -> None:
    document = json.loads((run / "run.json").read_text())
    for value in WRONG[field]:
        (run / "run.json").write_text(json.dumps({**document, field: value}))
        with pytest.raises(RunError) as caught:
            read_run(run)
        assert "\n" not in str(caught.value)
        assert field in str(caught.value) or "another program" in str(caught.value)


def test_what_is_no_run_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"name": "x"}')
    for name, said in {
        "gone": "there is no",
        "file": "is a file",
        "empty": "no run.json",
        "other": "another program",
    }.items():
        with pytest.raises(RunError, match=said):
            read_run(tmp_path / name)
    with pytest.raises(RunError, match="holds no run"):
        find_run(tmp_path / "empty")


def test_a_newer_format_says_to_upgrade(run: Path) -> None:
    (run / "run.json").write_text('{"format_version": 2, "everything": "else"}')
    with pytest.raises(RunError, match=r"format version 2, .* reads up to 1; upgrade gradscope"):
        read_run(run)


def test_damaged_event_lines_are_counted_and_a_torn_one_is_ignored(run: Path) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write('nonsense\n{"kind": 5}\n[]\n{"kind": "stopped", "step": 4, "message": "x"}\n{"kind": "to')
    read = read_run(run)
    assert read.problems == ("events.jsonl: 3 damaged lines were left out",)
    assert [event.kind for event in read.events] == ["skipped-step", "stopped"]


def test_a_damaged_segment_whose_journal_is_still_there_is_read_from_it(tmp_path: Path) -> None:
    path = write(tmp_path / "run", range(3), close=False)
    journal = next((path / "live").iterdir())
    data = journal.read_bytes()
    begin(path)
    journal.write_bytes(data)
    segments(path, "layers")[0].write_bytes(b"")
    assert len(read_run(path).layer_statistics) == 9


def flipped(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 5)):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_fuzz(run: Path) -> None:
    """Damage a random handful of files of 2,000 runs in random ways: a Run or a RunError, nothing else."""
    chance = random.Random(2)
    whole = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    for _ in range(2000):
        damaged = chance.sample(sorted(whole), chance.randint(1, 4))
        for path in damaged:
            if chance.random() < 0.5:
                flipped(path, chance)
            else:
                chance.choice(list(DAMAGES.values()))(path)
        with suppress(RunError):
            read = read_run(run)
            read.layer_table("activation_rms")
            read.parameter_table("gradient_norm")
        for path in damaged:
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
            path.write_bytes(whole[path])
    assert read_run(run).problems == ()
