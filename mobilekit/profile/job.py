"""What a worker process is told to measure, and what it gives back; both travel as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mobilekit.core.strict import StrictModel
from mobilekit.schema.result import EnergyRecord, MemoryRecord, Sample


class Job(StrictModel):
    """One artifact or checkpoint to measure in one process."""

    source: str = Field(description="Bundle directory, or checkpoint directory.")
    artifact: str | None = Field(description="Artifact id; null for a checkpoint.")
    workloads: tuple[str, ...]
    repetitions: int = Field(ge=1)
    warmup: int = Field(ge=0)
    threads: int | None = Field(None, ge=1)
    outcome: str = Field(description="Where to write the outcome.")
    ticks: str = Field(description="A byte is added to this file after each repetition.")
    sysfs: str = Field("/sys", description="Where sysfs is mounted.")


class Measured(StrictModel):
    """What one workload gave."""

    workload: str
    samples: tuple[Sample, ...]
    memory: MemoryRecord
    rss_bytes: tuple[int, ...] | None = Field(description="After each repetition; null: unread.")
    wait_share: float | None = Field(description="Of the wall time; waiting for a processor.")
    other_work: dict[str, Any] = Field(description="What other processes did meanwhile.")
    energy: EnergyRecord
    thermal: dict[str, Any]


class RuntimeFacts(StrictModel):
    """What ran the artifact."""

    name: str
    version: str
    threads: int | None = Field(description="As asked for; null: the runtime's own choice.")
    precision: str | None = None
    libraries: tuple[str, ...] = Field((), description="Machine-learning libraries it imported.")
    context_length: int
    vocab_size: int


class Problem(StrictModel):
    """A two-line error that crosses the process boundary."""

    kind: str
    message: str
    hint: str


class Outcome(StrictModel):
    """All that one worker measured, or the error that stopped it."""

    runtime: RuntimeFacts | None = None
    cold: tuple[Sample, ...] = Field((), description="Loading and the first inference.")
    measured: tuple[Measured, ...] = ()
    is_peak_reset: bool = False
    idle_drift_watts: float | None = None
    error: Problem | None = None
