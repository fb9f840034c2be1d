"""What work is estimated to need, beside what the machine has; every need is an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import console
from .errors import UsageError
from .files import device_of, free_disk_bytes
from .memory import AvailableMemory, available_memory

OVERRIDE = "--ignore-estimates"


@dataclass(frozen=True)
class Need:
    """The estimated need of one step.

    Attributes:
        step: Its name.
        memory_bytes: Estimated peak of all its processes together, this one included.
        own_bytes: Estimated peak of this process alone.
        disk_bytes: Estimated bytes that it writes and leaves, by place ("output", "cache").
    """

    step: str
    memory_bytes: int
    own_bytes: int
    disk_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_disk_bytes(self) -> int:
        """Estimated bytes on all disks."""
        return sum(self.disk_bytes.values())


def gigabytes(count: float) -> str:
    """Return bytes as GB (10^9), as MB below a tenth of one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def announce(headline: str, needs: Sequence[Need], places: Mapping[str, Path]) -> None:
    """Print the plan to stderr: a headline, what is available, and a line a step."""
    memory = available_memory()
    have = gigabytes(memory.bytes) if memory else "an unknown amount"
    free = ", ".join(f"{gigabytes(free_disk_bytes(p))} ({name})" for name, p in places.items())
    console.status(headline)
    console.status(f"       available: {have} of memory; free disk: {free}")
    for need in needs:
        disk = need.total_disk_bytes
        line = f"  {need.step:28} estimated peak {gigabytes(need.memory_bytes):>8}"
        console.status(line + (f"   estimated disk {gigabytes(disk):>8}" if disk else ""))


def check_needs(
    needs: Sequence[Need],
    places: Mapping[str, Path],
    *,
    ignore_estimates: bool = False,
    memory: AvailableMemory | None = None,
) -> None:
    """Refuse work that is estimated not to fit: steps one by one in memory, all of them on disk.

    Args:
        needs: One a step, in order.
        places: Where each place of the needs lies; it need not exist yet.
        ignore_estimates: Warn instead of refusing, for who knows better.
        memory: What is available; looked up where ``None``.

    Raises:
        UsageError: With the estimate, what is there, and what to do.
    """
    for reason, advice in _shortages(needs, places, memory or available_memory()):
        if not ignore_estimates:
            raise UsageError(reason, hint=f"{advice}, or go on in spite of it with {OVERRIDE}.")
        console.warn(f"{reason}; going on, as {OVERRIDE} asks")


def _shortages(
    needs: Sequence[Need], places: Mapping[str, Path], memory: AvailableMemory | None
) -> list[tuple[str, str]]:
    found = []
    most = max(needs, key=lambda need: need.memory_bytes, default=None)
    if most is not None and memory is not None and most.memory_bytes > memory.bytes:
        found.append(
            (
                f"{most.step} needs an estimated {gigabytes(most.memory_bytes)} of memory, but "
                f"{gigabytes(memory.bytes)} are available ({memory.source})",
                "Free memory, use a smaller model or a machine with more",
            )
        )
    wanted: dict[int, int] = {}
    where: dict[int, Path] = {}
    for need in needs:
        for place, count in need.disk_bytes.items():
            disk = device_of(places[place])
            wanted[disk] = wanted.get(disk, 0) + count
            where.setdefault(disk, places[place])
    for disk, count in wanted.items():
        free = free_disk_bytes(where[disk])
        if count > free:
            found.append(
                (
                    f"the work needs an estimated {gigabytes(count)} of disk, but "
                    f"{gigabytes(free)} are free at {where[disk]}",
                    "Free some space or choose another --out",
                )
            )
    return found
