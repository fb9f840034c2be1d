"""The machine: cores, processor features that kernels choose by, memory, disk, and the cache."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilekit.core.cache import cache_root
from mobilekit.core.files import free_disk_bytes
from mobilekit.core.memory import available_memory

_PROC = Path("/proc")
# the kernel's name of a feature -> the name that people know; those that quantized kernels use
_FEATURES = {
    **{"fma": "FMA", "f16c": "F16C", "avx2": "AVX2", "avx_vnni": "AVX-VNNI"},
    **{"avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "amx_int8": "AMX int8"},
    **{"asimd": "NEON", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "sve": "SVE"},
}


@dataclass(frozen=True)
class Machine:
    """What there is; ``None`` where the system does not say.

    Attributes:
        architecture: As the kernel names it ("x86_64").
        cores: Cores that this process may use.
        features: Processor features, or ``None`` where they cannot be read.
        memory_bytes: Memory, or the smallest limit below it.
        available_bytes: What can still be used.
        available_source: What set that figure.
        disk: Free bytes by place ("cache", "working directory").
        cache: Path, bytes and entries of the cache.
    """

    architecture: str
    cores: int | None
    features: tuple[str, ...] | None
    memory_bytes: int | None
    available_bytes: int | None
    available_source: str | None
    disk: dict[str, int]
    cache: dict[str, Any]


def look(proc: Path = _PROC) -> Machine:
    """Return what this machine has; nothing heavy is imported."""
    memory = available_memory(proc)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cache = cache_root()
    return Machine(
        architecture=platform.machine(),
        cores=usable,
        features=cpu_features(proc),
        memory_bytes=memory.total_bytes if memory else None,
        available_bytes=memory.bytes if memory else None,
        available_source=memory.source if memory else None,
        disk={
            "cache": free_disk_bytes(cache),
            "working directory": free_disk_bytes(Path.cwd()),
        },
        cache={"path": str(cache), **_size(cache)},
    )


def cpu_features(proc: Path = _PROC) -> tuple[str, ...] | None:
    """Return the features of the first processor, or ``None`` without ``/proc/cpuinfo``."""
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return tuple(shown for flag, shown in _FEATURES.items() if flag in present)
    return None


def _size(cache: Path) -> dict[str, int]:
    """Return how many artifacts the cache keeps, and the bytes of all that is in it."""
    total = 0
    for folder, _, files in os.walk(cache):
        for name in files:
            try:
                total += (Path(folder) / name).lstat().st_size
            except FileNotFoundError:  # another process is at work
                continue
    lowered = cache / "lowered"
    entries = sum(1 for _ in lowered.iterdir()) if lowered.is_dir() else 0
    return {"bytes": total, "artifacts": entries}
