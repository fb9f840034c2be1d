"""Where a model can be measured: a table of devices, and the call that runs on one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mobilekit.core.registry import Registry
from mobilekit.schema.result import Result

Progress = Callable[[float, str], None]
"""Called with the share done since the last call, and what is being measured."""


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    workloads: tuple[str, ...]
    repetitions: int
    warmup: int
    threads: int | None


class Device(Protocol):
    """Something that can run artifacts and give back results."""

    def describe(self) -> dict[str, Any]:
        """Return ``class``, names and versions; what cannot be read is null with a reason."""

    def availability(self) -> str | None:
        """Return why the device cannot be used now, or ``None`` where it can."""

    def profile(
        self,
        source: str | Path,
        settings: Settings,
        *,
        artifacts: Sequence[str] | None,
        label: str | None,
        progress: Progress | None,
    ) -> list[Result]:
        """Measure every workload on every chosen artifact."""


DEVICES: Registry[Callable[[], Device]] = Registry("device")
DEVICES.register("host", "mobilekit.profile.host:HostDevice")


def run(
    path: str | Path,
    device: str = "host",
    *,
    artifacts: Sequence[str] | None = None,
    workloads: Sequence[str] = ("pp128", "tg64"),
    repetitions: int = 5,
    warmup: int = 3,
    threads: int | None = None,
    label: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure a bundle's artifacts, or a checkpoint, on a device.

    Args:
        path: Bundle directory or zip, checkpoint directory, or "embedded".
        device: Name of a registered device.
        artifacts: Ids, targets or back ends to measure; all that the device can run where
            ``None``. A checkpoint has only "torch".
        workloads: ``ppN``, ``tgN`` or ``ppN+tgM``.
        repetitions: Timed repetitions a workload.
        warmup: Untimed repetitions before them.
        threads: Compute threads; the runtime's own choice where ``None``.
        label: Id of a checkpoint in its results, "torch" where ``None``.
        progress: Called as the work goes on; the shares of all calls add up to 1.

    Returns:
        One result an artifact and workload. Where the device cannot run an artifact, its result
        has no samples and says why in ``metrics["skipped"]``.

    Raises:
        UsageError: If a name is unknown, or a workload does not fit the context.
        InvalidInputError: If a file is missing or fails its checksum.
        MobileKitError: If the process that runs an artifact crashes.
    """
    settings = Settings(tuple(workloads), repetitions, warmup, threads)
    chosen = DEVICES.get(device)()
    return chosen.profile(
        path, settings, artifacts=artifacts, label=label, progress=progress
    )


def list_devices() -> list[dict[str, Any]]:
    """Return every registered device: name, whether it is usable, why not, and what it is."""
    listed = []
    for name in DEVICES.names():
        device = DEVICES.get(name)()
        reason = device.availability()
        described = device.describe() if reason is None else {}
        listed.append(
            {"name": name, "available": reason is None, "reason": reason, "device": described}
        )
    return listed
