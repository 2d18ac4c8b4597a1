"""gradscope finds out why a deep network doesn't train."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradscope.errors import GradscopeError
    from gradscope.examine import examine
    from gradscope.loop import watch
    from gradscope.preflight import preflight
    from gradscope.pytorch_lightning import GradScope
    from gradscope.settings import Settings
    from gradscope.store import read_run
    from gradscope.treat import treat

_PUBLIC = {
    "GradScope": "gradscope.pytorch_lightning",
    "GradscopeError": "gradscope.errors",
    "Settings": "gradscope.settings",
    "examine": "gradscope.examine",
    "preflight": "gradscope.preflight",
    "read_run": "gradscope.store",
    "treat": "gradscope.treat",
    "watch": "gradscope.loop",
}

__all__ = ["GradScope", "GradscopeError", "Settings", "examine", "preflight", "read_run", "treat", "watch"]


def __getattr__(name: str) -> Any:
    """Load a public name when first asked for: `import gradscope` needs neither torch nor Lightning."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gradscope' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _Package(ModuleType):
    """Keeps a public function's name the function's where a submodule has the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds every submodule to its name in the package once it is loaded.
        if isinstance(value, ModuleType) and name in _PUBLIC:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
