"""Memory counters of this process, by the name that the operating system gives them."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes() -> int | None:
    """Return the peak resident set of this process (Linux ``VmHWM``), or ``None``."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
