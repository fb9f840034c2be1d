"""Peak memory of this process, by the name of the counter that the operating system has for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

_PROC_SELF = Path("/proc/self")


class MemoryMeter(Protocol):
    """Reads memory counters of the calling process, in bytes.

    Attributes:
        counter: Name of the peak counter.
        reason: Why the peak is null, where it is.
    """

    counter: str
    reason: str | None

    def reset(self) -> bool:
        """Start the peak anew from the present size; false where the system cannot."""

    def peak(self) -> int | None:
        """Return the peak since the start of the process or the last reset."""

    def current(self) -> int | None:
        """Return the present resident size."""


class StatusMeter:
    """Linux: ``VmHWM`` and ``VmRSS`` of ``/proc/self/status``."""

    counter = "VmHWM"

    def __init__(self, proc: Path = _PROC_SELF) -> None:
        self.proc = proc
        self.reason = None if self.peak() is not None else "no VmHWM in the process status"

    def reset(self) -> bool:
        """Start the peak anew by writing 5 to ``clear_refs``; false where that is refused."""
        try:
            (self.proc / "clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def peak(self) -> int | None:
        """Return VmHWM in bytes."""
        return self._field("VmHWM")

    def current(self) -> int | None:
        """Return VmRSS in bytes."""
        return self._field("VmRSS")

    def _field(self, name: str) -> int | None:
        try:
            text = (self.proc / "status").read_text()
        except OSError:
            return None
        for line in text.splitlines():
            key, _, value = line.partition(":")
            words = value.split()
            if key == name and len(words) == 2 and words[1] == "kB" and words[0].isdigit():
                return int(words[0]) * 1024
        return None


class RusageMeter:
    """Other Unix systems: ``ru_maxrss``, which cannot be reset and has no present size."""

    counter = "ru_maxrss"
    reason: str | None = None

    def reset(self) -> bool:
        """Return false: this counter only grows."""
        return False

    def peak(self) -> int | None:
        """Return ``ru_maxrss`` in bytes; macOS counts bytes, the others KiB."""
        import resource

        value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return value if sys.platform == "darwin" else value * 1024

    def current(self) -> int | None:
        """Return ``None``: there is no such counter."""
        return None


class NoMeter:
    """A system without any counter that this package knows."""

    counter = "none"

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason

    def reset(self) -> bool:
        """Return false."""
        return False

    def peak(self) -> int | None:
        """Return ``None``."""
        return None

    def current(self) -> int | None:
        """Return ``None``."""
        return None


def memory_meter() -> MemoryMeter:
    """Return the best meter that this system has."""
    if _PROC_SELF.is_dir():
        return StatusMeter()
    if sys.platform == "win32":
        return NoMeter("no memory counter is read on Windows")
    return RusageMeter()
