"""The import table: which part of gradscope may import what. This table is the documentation."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "gradscope"

# part: (parts of ours that it may import, whether it may import torch, whether it may import Lightning)
TABLE: dict[str, tuple[set[str], bool, bool]] = {
    "columns": (set(), False, False),
    "records": (set(), False, False),
    "errors": (set(), False, False),
    "settings": ({"errors"}, False, False),
    "summarise": ({"records", "settings"}, True, False),
    "prescribe": ({"records", "settings"}, False, False),
    "prescribe/surgery": ({"records", "settings", "errors", "prescribe"}, True, False),
    "present": ({"records", "settings"}, False, False),
    "store": ({"records", "errors", "settings"}, False, False),
    "observe": ({"records", "settings", "summarise"}, True, False),
    "diagnose": ({"records", "settings", "errors"}, False, False),
    "examine": ({"records", "settings", "diagnose", "prescribe"}, False, False),
    "models": (set(), True, True),
}
NOUNS = {"columns"}  # as records: anybody may import them
FRONT_DOORS = {
    "treat",
    "callback",
    "closing",
    "places",
    "loss_scale",
    "memory",
    "online",
    "preflight",
    "quiet",
    "lightning",
    "pytorch_lightning",
    "loop",
    "cli",
    "demo",
    "__main__",
    "__init__",
}
LIGHTNING_PARTS = {"callback", "demo", "lightning", "pytorch_lightning", "models", "treat"}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    name = "/".join(relative.parts[:2])
    return name if name in TABLE else relative.parts[0]


def imported(path: Path) -> set[str]:
    """Return every module that a file imports, imports for type checking left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_only_what_the_table_allows(path: Path) -> None:
    part = part_of(path)
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("gradscope.")} - NOUNS
    outside = {name.split(".")[0] for name in names}
    if part in FRONT_DOORS:
        assert part in LIGHTNING_PARTS or not outside & LIGHTNING
        return
    allowed, torch_allowed, lightning_allowed = TABLE[part]
    assert ours <= allowed | {part.split("/")[0]}
    assert torch_allowed or "torch" not in outside
    assert lightning_allowed or not outside & LIGHTNING
    assert not ours & (FRONT_DOORS - {"__init__"})


def test_every_part_is_in_the_table() -> None:
    assert {part_of(path) for path in FILES} <= set(TABLE) | FRONT_DOORS


@pytest.mark.parametrize(
    "module", ["gradscope", "gradscope.cli", "gradscope.store", "gradscope.examine", "gradscope.present"]
)
def test_reading_side_loads_neither_torch_nor_lightning(module: str) -> None:
    heavy = ("torch", "pytorch_lightning", "lightning")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_no_module_has_a_name_that_explains_nothing() -> None:
    assert not {path.stem for path in FILES} & {
        "utils",
        "util",
        "helpers",
        "helper",
        "common",
        "base",
        "manager",
        "misc",
    }
