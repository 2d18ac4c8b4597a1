"""Before/after trials of remedies."""

from gradscope.treat.patient import Patient
from gradscope.treat.treatment import treat

__all__ = ["Patient", "treat"]
