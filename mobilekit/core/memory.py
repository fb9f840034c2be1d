"""Memory, in bytes: counters of this process, and what the machine has left for it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
# a cgroup without a limit says "max" (version 2) or a number near 2^63 (version 1)
_NO_LIMIT = 1 << 60


def peak_rss_bytes() -> int | None:
    """Return the peak resident set of this process (Linux ``VmHWM``), or ``None``."""
    return _field(_PROC / "self" / "status", "VmHWM")


def reset_peak_rss() -> bool:
    """Start the peak anew from the present size; false where the system does not let us."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def release_freed_memory() -> None:
    """Give back to the system what this process has freed; the C library keeps it otherwise.

    Only glibc has to be asked; elsewhere this collects garbage and no more.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@dataclass(frozen=True)
class AvailableMemory:
    """What this process may use without swapping, what it holds already included.

    Attributes:
        bytes: The least of what the machine and every control group around this process leave.
        total_bytes: The machine's memory, or the smallest limit below it.
        source: What set ``bytes``: "MemAvailable", or the control group's limit file.
    """

    bytes: int
    total_bytes: int
    source: str


def available_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> AvailableMemory | None:
    """Return what this process may use, control-group limits honoured.

    Args:
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.

    Returns:
        ``None`` where the system does not say (no Linux).
    """
    free, total = _field(proc / "meminfo", "MemAvailable"), _field(proc / "meminfo", "MemTotal")
    if free is None or total is None:
        return None
    found = [AvailableMemory(free, total, "MemAvailable")]
    for group in _groups(proc, cgroup):
        for limit_file, usage_file in _COUNTERS:
            limit, used = _number(group / limit_file), _number(group / usage_file)
            if limit is not None and used is not None and limit < _NO_LIMIT:
                left = max(0, limit - used + _reclaimable(group))
                found.append(AvailableMemory(left, min(limit, total), str(group / limit_file)))
    least = min(found, key=lambda item: item.bytes)
    own = _field(proc / "self" / "status", "VmRSS") or 0
    total = min(item.total_bytes for item in found)
    return AvailableMemory(min(least.bytes + own, total), total, least.source)


_COUNTERS = (
    ("memory.max", "memory.current"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
)


def _groups(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Yield the control groups that this process is in, from its own up to the mounted root."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = cgroup / "memory" if controllers else cgroup
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # in a container the path may be the host's; the root that is mounted is then our own group
        yield from (base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _reclaimable(group: Path) -> int:
    """Return the page cache that a group counts as used, but gives up when asked."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(values.get("inactive_file", values.get("total_inactive_file", 0)))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str) -> int | None:
    """Return a field that procfs gives in kB."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
