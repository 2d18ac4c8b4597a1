"""gradscope finds out why a deep network doesn't train."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradscope.errors import GradscopeError
    from gradscope.examine import examine
    from gradscope.loop import watch
    from gradscope.pytorch_lightning import GradScope
    from gradscope.settings import Settings
    from gradscope.store import read_run
    from gradscope.treat import treat

_PUBLIC = {
    "GradScope": "gradscope.pytorch_lightning",
    "GradscopeError": "gradscope.errors",
    "Settings": "gradscope.settings",
    "examine": "gradscope.examine",
    "read_run": "gradscope.store",
    "treat": "gradscope.treat",
    "watch": "gradscope.loop",
}

__all__ = ["GradScope", "GradscopeError", "Settings", "examine", "read_run", "treat", "watch"]


def __getattr__(name: str) -> Any:
    """Load a public name when first asked for: `import gradscope` needs neither torch nor Lightning."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gradscope' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
