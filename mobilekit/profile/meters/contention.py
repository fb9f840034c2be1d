"""What other processes did to a measurement: the waiting of its own, and their share of the CPUs.

Both are differences of the kernel's counters over the timed run. What a system does not count is
null, with the reason.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_PROC_SELF = Path("/proc/self")
# columns of /proc/stat's "cpu" line; guest time is contained in user time, iowait is idle
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_BUSY = tuple(name for name in _COLUMNS if name not in ("idle", "iowait"))


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


@dataclass(frozen=True)
class CpuTimes:
    """The processor time of the whole machine and of this process, up to one moment.

    ``ticks`` are those of each state over all CPUs, None where unreadable; ``own`` and ``wall``
    are in seconds; ``runnable`` counts tasks that run or are ready, this one left out.
    """

    ticks: dict[str, int] | None
    own: float
    wall: float
    runnable: int | None


def cpu_times(proc: Path = _PROC) -> CpuTimes:
    """Return the counters now."""
    # all threads of this process, so that a runtime's own workers are not taken for others
    own, wall = time.process_time(), time.perf_counter()
    return CpuTimes(_ticks(proc), own, wall, _runnable(proc))


def other_work(
    before: CpuTimes,
    after: CpuTimes,
    *,
    cpus: int | None = None,
    ticks_per_second: int | None = None,
) -> dict[str, Any]:
    """Return what everything but this process did in between.

    Args:
        before: Counters at the start.
        after: Counters at the end.
        cpus: Of the machine; those that the system names where ``None``.
        ticks_per_second: Of /proc/stat; the system's own where ``None``.

    Returns:
        ``cpu_share``: processor time that others used, as a share of the time of all CPUs, in
        [0, 1]; ``steal_share``: the part of it that a hypervisor took; ``resolution``: how far
        whole ticks can put the share off; ``seconds`` and ``cpus``; ``runnable``: other tasks
        that were ready before and after; ``load_average_1m``. A share is null, with a ``reason``,
        where the system does not count.

    Source: proc_stat(5).
    """
    cores, seconds = cpus or os.cpu_count() or 1, after.wall - before.wall
    found: dict[str, Any] = {
        "cpu_share": None,
        "steal_share": None,
        "resolution": None,
        "seconds": seconds,
        "cpus": cores,
        "runnable": [before.runnable, after.runnable],
        "load_average_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "reason": None,
    }
    if before.ticks is None or after.ticks is None:
        return {**found, "reason": "the system has no readable /proc/stat"}
    rate = ticks_per_second or os.sysconf("SC_CLK_TCK")
    spent = {name: (after.ticks[name] - before.ticks[name]) / rate for name in _BUSY}
    whole = max(seconds * cores, 1e-9)
    others = sum(spent.values()) - (after.own - before.own)
    return {
        **found,
        "cpu_share": min(max(others / whole, 0.0), 1.0),
        "steal_share": min(max(spent["steal"] / whole, 0.0), 1.0),
        # every state is cut down to whole ticks at both ends
        "resolution": min(len(_BUSY) / rate / whole, 1.0),
    }


def _ticks(proc: Path) -> dict[str, int] | None:
    try:
        words = (proc / "stat").read_text().partition("\n")[0].split()
    except OSError:
        return None
    if len(words) < 1 + len(_COLUMNS) or words[0] != "cpu":
        return None
    values = words[1 : 1 + len(_COLUMNS)]
    if not all(word.isascii() and word.isdigit() for word in values):
        return None
    return dict(zip(_COLUMNS, map(int, values), strict=True))


def _runnable(proc: Path) -> int | None:
    try:
        words = (proc / "loadavg").read_text().split()
    except OSError:
        return None
    running = words[3].partition("/")[0] if len(words) > 3 else ""
    return max(0, int(running) - 1) if running.isascii() and running.isdigit() else None
