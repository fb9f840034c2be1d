"""Where a model can be measured: what a device must do, and the table of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mobilekit.core.registry import Registry
from mobilekit.schema.result import Result

if TYPE_CHECKING:
    from .config import ProfileConfig

# called with the share done since the last call, and what is being measured; the shares add up to 1
Progress = Callable[[float, str], None]


class Device(Protocol):
    """Something that can run artifacts and give back results."""

    def describe(self) -> dict[str, Any]:
        """Return ``class``, names and versions; what cannot be read is null with a reason."""

    def availability(self) -> str | None:
        """Return why the device cannot be used now, or ``None`` where it can."""

    def profile(
        self,
        source: str | Path,
        config: ProfileConfig,
        *,
        artifacts: Sequence[str] | None,
        label: str | None,
        progress: Progress,
    ) -> list[Result]:
        """Measure every workload on every chosen artifact (see ``profile.run``)."""


DEVICES: Registry[Callable[[], Device]] = Registry("device")
DEVICES.register("host", "mobilekit.profile.host:HostDevice")
