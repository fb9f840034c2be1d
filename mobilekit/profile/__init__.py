"""Measure latency, memory and energy of checkpoints and artifacts on a device.

``profile.run(bundle)`` gives one :class:`~mobilekit.schema.result.Result` an artifact and workload,
with every raw sample in it.
"""

from __future__ import annotations

from .config import ProfileConfig
from .devices import DEVICES
from .running import list_devices, run
from .summary import HEADERS, row, summary_line

__all__ = [
    "DEVICES",
    "HEADERS",
    "ProfileConfig",
    "list_devices",
    "row",
    "run",
    "summary_line",
]
