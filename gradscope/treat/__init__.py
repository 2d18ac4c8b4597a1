"""Before/after trials of remedies: `gradscope.treat(build, data)`, and `gradscope.treat.Patient`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from gradscope.records import Treatment
from gradscope.treat.patient import Patient
from gradscope.treat.treatment import treat

__all__ = ["Patient", "treat"]


class _CallablePackage(ModuleType):
    """Lets `gradscope.treat` be the function that people call although it is also this package."""

    def __call__(self, *arguments: Any, **options: Any) -> Treatment:
        return treat(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
