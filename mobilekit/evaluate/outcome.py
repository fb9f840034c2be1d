"""What a suite is given and hands back; :func:`mobilekit.evaluate.run` makes a ``Result`` of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mobilekit.schema.result import Letter, Sample, Workload

if TYPE_CHECKING:
    from mobilekit.data.tokenizer import TextTokenizer
    from mobilekit.runtime.base import TokenLogits

__all__ = ["Control", "Outcome", "Progress", "Suite"]

C = TypeVar("C")


class Progress(Protocol):
    """Told how far a suite is; ``mobilekit.core.console.Bar.advance`` is one."""

    def __call__(self, amount: float = 1, note: str = "") -> None:
        """Move on by ``amount`` tokens or questions."""


@dataclass(frozen=True)
class Control:
    """How a run is followed and resumed; ``model_id`` is the checksum of what runs."""

    progress: Progress | None = None
    resume_file: Path | None = None
    model_id: str = ""


@dataclass(frozen=True)
class Outcome:
    """One suite on one model: plain JSON values, without device and artifact."""

    workload: Workload
    metrics: dict[str, Any]
    samples: tuple[Sample, ...] = ()
    letters: dict[str, Letter] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite(Generic[C]):
    """A suite by its settings type.

    Attributes:
        run: Runs it on one model.
        size: How many steps of progress it takes.
        digest: SHA-256 over the content of all data that it reads; raises where that is unusable.
    """

    run: Callable[[TokenLogits, TextTokenizer, C, Control], Outcome]
    size: Callable[[C], int]
    digest: Callable[[C], str]
