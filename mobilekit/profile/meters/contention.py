"""How long the measured process waited for a processor that others were using."""

from __future__ import annotations

from pathlib import Path

_PROC_SELF = Path("/proc/self")


def waited_ns(proc: Path = _PROC_SELF) -> int | None:
    """Return the nanoseconds that the main thread was ready but not running, since its start.

    A latency taken while this grows is partly that of the other processes on the machine.
    ``None`` where the system does not count it.
    """
    try:
        words = (proc / "schedstat").read_text().split()
    except OSError:
        return None
    return int(words[1]) if len(words) == 3 and words[1].isdigit() else None
