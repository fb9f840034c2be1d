"""What every suite hands back; :func:`mobilekit.evaluate.run` makes a ``Result`` of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from mobilekit.schema.result import Letter, Sample, Workload

__all__ = ["Outcome", "Progress"]


class Progress(Protocol):
    """Told how far a suite is; ``mobilekit.core.console.Bar.advance`` is one."""

    def __call__(self, amount: float = 1, note: str = "") -> None:
        """Move on by ``amount`` tokens or questions."""


@dataclass(frozen=True)
class Outcome:
    """One suite on one model: plain JSON values, without device and artifact."""

    workload: Workload
    metrics: dict[str, Any]
    samples: tuple[Sample, ...] = ()
    letters: dict[str, Letter] = field(default_factory=dict)
