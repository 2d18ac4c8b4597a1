from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gradscope.demo import Outcome, find_program, index_page, run_demos, verdict_table
from gradscope.errors import GradscopeError
from gradscope.models import PROGRAMS
from gradscope.store import read_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Outcome], Path, str]:
    folder, screen = tmp_path_factory.mktemp("reports") / "new", StringIO()
    outcomes = run_demos(["dead-relu", "relu-he"], folder, Console(file=screen, width=160))
    return outcomes, folder, screen.getvalue()


def test_a_page_is_written_for_each_program_and_an_index(demo: tuple[list[Outcome], Path, str]) -> None:
    _, folder, _ = demo
    pages = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}
    assert set(pages) == {"dead-relu.html", "relu-he.html", "index.html"}
    assert all(len(page) < 3_000_000 for page in pages.values())
    for part in ('href="dead-relu.html"', 'href="relu-he.html"', "for 2 of 2", "Healthy programs"):
        assert part in pages["index.html"]
    assert not any(word in pages["index.html"] for word in ("http:", "https:", "//cdn", "<script", "src="))


def test_runs_can_be_read_again(demo: tuple[list[Outcome], Path, str]) -> None:
    for outcome in demo[0]:
        assert read_run(outcome.report.run.path).info.status == "finished"


def test_the_terminal_shows_verdicts_and_nothing_of_lightning(demo: tuple[list[Outcome], Path, str]) -> None:
    outcomes, _, screen = demo
    assert [outcome.as_expected for outcome in outcomes] == [True, True]
    for word in ("dead-relu", "ailing", "dead-units", "relu-he", "healthy", "index.html"):
        assert word in screen
    assert "GPU" not in screen
    assert "workers" not in screen


def test_a_wrong_verdict_shows_in_table_and_index(demo: tuple[list[Outcome], Path, str]) -> None:
    ill, sound = demo[0]
    wrong = replace(ill, program=replace(ill.program, finding="vanishing-gradient"))
    assert not wrong.as_expected
    assert not replace(sound, program=replace(sound.program, finding="dead-units")).as_expected
    assert not replace(ill, program=replace(ill.program, finding=None)).as_expected
    screen = StringIO()
    Console(file=screen, width=160).print(verdict_table([wrong, sound]))
    assert screen.getvalue().count("✗") == 1
    narrow = StringIO()
    Console(file=narrow, width=60).print(verdict_table([wrong, sound]))
    assert narrow.getvalue().count("✗") == 1
    assert "…" not in narrow.getvalue()
    page = index_page([wrong, sound])
    assert "for 1 of 2" in page
    assert "expected: " in page


def test_an_unknown_name_is_one_line_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="did you mean dead-relu") as caught:
        run_demos(["relu-he", "dead-rely"], tmp_path / "none", Console(file=StringIO()))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_an_experiment_of_the_lecture_is_named_with_its_script() -> None:
    with pytest.raises(GradscopeError, match=r"python examples/lecture/word_embeddings\.py"):
        find_program("word-embeddings")


def test_every_program_can_be_found_by_name() -> None:
    assert [find_program(name) for name in PROGRAMS] == list(PROGRAMS.values())
