"""What README.md says can be done: commands and options exist, links lead somewhere, its loop runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from torch import nn

import gradscope
from gradscope import cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = sorted(
    {
        line.split("#")[0].split(">")[0].strip()
        for language, block in BLOCKS
        if not language
        for line in block.splitlines()
        if line.startswith("gradscope ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    known = cli.gradscope.commands[name]
    context = click.Context(known, info_name=name)
    known.parse_args(context, [word for word in arguments if word != "..."])


def test_every_command_is_named() -> None:
    named = {command.split()[1] for command in COMMANDS}
    assert named == set(cli.gradscope.commands)


def test_options_that_scripts_need_are_named() -> None:
    for option in ("--fail-on", "--allow-inconclusive", "--format json"):
        assert option in TEXT
    for status in (0, 1, 2):
        assert f"\n| {status} |" in TEXT


def test_targets_of_make_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"^make ([a-z-]+)", TEXT, re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/lecture.md", "docs/rules.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert link.startswith("http") or (path.parent / link).exists(), link


def test_the_loop_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(3)],
        "loss_function": nn.CrossEntropyLoss(),
    }
    sources = [block for language, block in BLOCKS if language == "python"]
    for source in sources:
        compile(source, "README.md", "exec")
    exec(next(source for source in sources if "gradscope.watch" in source), given)
    assert len(gradscope.read_run("runs/first").steps) == 3
