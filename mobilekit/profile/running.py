"""The room's two verbs: measure on a device, list the devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mobilekit.core import console
from mobilekit.core.errors import MissingDependencyError
from mobilekit.schema.result import Result

from .config import ProfileConfig
from .devices import DEVICES, Progress
from .workloads import parse_all


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
        progress: Called with the share done since the last call, and what is being measured;
            the console's bar where ``None``.

    Returns:
        One result an artifact and workload. Where the device cannot run an artifact, its result
        has no figures and says why in ``metrics["skipped"]``.

    Raises:
        UsageError: If a name is unknown, or a workload does not fit the context.
        InvalidInputError: If a number is out of range, or a file is missing or has changed.
        MissingDependencyError: If the device is not there, or an artifact that was asked for by
            name needs a package that is not installed.
        MobileKitError: If the process that runs an artifact crashes.
    """
    chosen = DEVICES.get(device)()
    reason = chosen.availability()
    if reason is not None:
        raise MissingDependencyError(
            f"device '{device}' cannot be used: {reason}", hint="List them: mobilekit devices"
        )
    parse_all(list(workloads))
    given = {"repetitions": repetitions, "warmup": warmup, "threads": threads}
    config = ProfileConfig.parse(
        {"devices": [device], "workloads": list(workloads), **given}, "profile"
    )
    with _reporting(progress) as report:
        return chosen.profile(path, config, artifacts=artifacts, label=label, progress=report)


@contextlib.contextmanager
def _reporting(progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    with console.progress(1.0, "profile") as bar:
        yield bar.advance


def list_devices() -> list[dict[str, Any]]:
    """Return every registered device: its name, whether it is usable, why not, and what it is."""
    listed = []
    for name in DEVICES.names():
        device = DEVICES.get(name)()
        reason = device.availability()
        described = device.describe() if reason is None else {}
        listed.append({"name": name, "available": reason is None, "reason": reason, **described})
    return listed
