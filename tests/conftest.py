"""Tests stop children by Ctrl-C, which those of a job in the background would ignore, as it does itself."""

from __future__ import annotations

import signal
import threading

if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
