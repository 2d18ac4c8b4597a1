"""The names that people import from gradscope."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import gradscope


@pytest.mark.parametrize("name", gradscope.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(gradscope, name).__name__ == name


@pytest.mark.parametrize(
    "first", ["gradscope.examine", "gradscope.treat", "gradscope.callback", "gradscope.cli"]
)
def test_a_function_stays_a_function_whatever_was_imported_first(first: str) -> None:
    code = f"import {first}, gradscope\nassert not hasattr(gradscope.examine, '__path__')\n"
    code += "gradscope.treat, gradscope.examine\n"
    code += "print(type(gradscope.examine).__name__, type(gradscope.treat).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["function", "function"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gradscope.nothing


def test_installing_it_changes_nobody_s_training() -> None:
    """Lightning calls every registered callback factory; none is, so nobody is watched unasked."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        found = entry_points(group=f"{package}.callbacks_factory")
        assert [item for item in found if item.value.startswith("gradscope")] == []
