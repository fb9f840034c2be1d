"""This machine's processor as a device."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilekit.core import console
from mobilekit.core.errors import MissingDependencyError, NotExecutableError
from mobilekit.schema.result import Result, Workload

from . import workloads as work
from .config import ProfileConfig
from .devices import Progress
from .job import Job
from .launch import run_worker
from .results import results_of, skipped
from .targets import Target, targets_of

_PROC = Path("/proc")
_SYSFS = Path("/sys")


class HostDevice:
    """Runs each artifact in a fresh process on this machine's processor; a GPU is hidden from it.

    Args:
        proc: Where procfs is mounted.
        sysfs: Where sysfs is mounted.
    """

    def __init__(self, proc: Path = _PROC, sysfs: Path = _SYSFS) -> None:
        self.proc, self.sysfs = proc, sysfs

    def availability(self) -> str | None:
        """Return ``None``: the host is always there."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return class, processor, cores, memory, system; null with a reason where unknown."""
        cpu = _cpu_model(self.proc)
        described: dict[str, Any] = {
            "class": f"host-{platform.machine() or 'unknown'}",
            "cpu": cpu,
            "cores": os.cpu_count(),
            "usable_cores": _usable_cores(),
            "memory_bytes": _memory_bytes(),
            "is_virtual": _is_virtual(self.proc),
            "os": _os_name(),
            "kernel": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "load_average_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }
        if cpu is None:
            described["cpu_reason"] = "the system does not name its processor"
        return described

    def profile(
        self,
        source: str | Path,
        config: ProfileConfig,
        *,
        artifacts: Sequence[str] | None,
        label: str | None,
        progress: Progress,
    ) -> list[Result]:
        """Measure every workload on every chosen artifact, one process an artifact."""
        loads = work.parse_all(list(config.workloads))
        targets = targets_of(source, artifacts, label)
        for target in targets:
            if target.context_length is not None:
                for load in loads:
                    work.check_fits(load, target.context_length)
        results: list[Result] = []
        for target in targets:

            def advance(share: float, note: str) -> None:
                progress(share / len(targets), note)

            results += self._measure(target, loads, config, advance)
        return results

    def _measure(
        self, target: Target, loads: Sequence[Workload], config: ProfileConfig, progress: Progress
    ) -> list[Result]:
        """Return one result a workload; of what cannot run here, why not."""
        described = self.describe()
        progress(0.0, target.ref.id)
        reason = _why_not(target)
        if reason is None:
            try:
                outcome = run_worker(
                    target.ref.id,
                    lambda folder: self._job(target, config, folder),
                    on_tick=_ticker(target, loads, config, progress),
                )
                return results_of(target, loads, described, config, outcome)
            except NotExecutableError as error:
                reason = error.message
            except MissingDependencyError as error:
                if target.is_requested:
                    raise
                reason = error.message
        console.status(f"  {target.ref.id} skipped: {reason}")
        progress(1.0, target.ref.id)
        return skipped(target, loads, described, reason)

    def _job(self, target: Target, config: ProfileConfig, folder: Path) -> Job:
        return Job(
            source=str(target.root),
            artifact=target.artifact,
            workloads=config.workloads,
            repetitions=config.repetitions,
            warmup=config.warmup,
            threads=config.threads,
            outcome=str(folder / "outcome.json"),
            ticks=str(folder / "ticks"),
            sysfs=str(self.sysfs),
        )


def _ticker(
    target: Target, loads: Sequence[Workload], config: ProfileConfig, progress: Progress
) -> Any:
    step = 1 / (len(loads) * (config.warmup + config.repetitions))
    return lambda count: progress(count * step, target.ref.id)


def _why_not(target: Target) -> str | None:
    """Return why an artifact cannot be measured on this system."""
    if target.format == "mlpackage" and sys.platform != "darwin":
        return (
            "Core ML runs on macOS and iOS only; the speed of another evaluator of the program "
            "says nothing about a device"
        )
    return None


def _cpu_model(proc: Path) -> str | None:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string")
    for key in ("model name", "Hardware", "Model"):
        if value := _cpuinfo(proc).get(key):
            return value
    return platform.processor() or None


def _sysctl(name: str) -> str | None:
    try:
        found = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _cpuinfo(proc: Path) -> dict[str, str]:
    """Return the first value of each key of ``/proc/cpuinfo``."""
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _is_virtual(proc: Path) -> bool | None:
    """Tell whether the processor reports a hypervisor; ``None`` where it does not say."""
    flags = _cpuinfo(proc).get("flags")
    return "hypervisor" in flags.split() if flags is not None else None


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)
