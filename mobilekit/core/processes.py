"""Worker processes that end with the process that started them."""

from __future__ import annotations

import os
import threading


def end_with_parent() -> None:
    """Make this process end when the parent's end of its stdin closes.

    The parent starts the worker with ``stdin=PIPE`` and keeps it open: a parent that is killed
    must leave nobody behind who writes, or who takes processor time from the next measurement.
    """
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    os.read(0, 1)  # blocks; not sys.stdin, whose lock would be held when the process ends
    os._exit(1)
