"""One artifact to make: what the worker is told, and what it gives back."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mobilekit.core.strict import StrictModel
from mobilekit.schema.manifest import (
    LayerPrecision,
    ParityRecord,
    ProgramRecord,
    RuntimeRequirement,
    WeightRecord,
)


class Job(StrictModel):
    """What one worker process is to do."""

    checkpoint: str
    checkpoint_hash: str
    target: str
    precision: str
    overrides: tuple[tuple[str, LayerPrecision], ...] = ()
    context_length: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    vectors: str = Field(description="Path of the parity vectors.")
    out: str = Field(description="Directory to put the artifact's files into.")
    answer: str = Field(description="Where to write the same-precision reference's answer.")
    outcome: str = Field(description="Where to write the outcome.")
    threads: int = Field(ge=1)
    estimated_peak_bytes: int = Field(description="Estimated peak of the worker, for the record.")


class LoweredRecord(StrictModel):
    """A lowered artifact as the cache keeps it; ``files`` maps path to SHA-256."""

    files: dict[str, str]
    programs: dict[str, ProgramRecord]
    runtime: RuntimeRequirement
    weights: WeightRecord
    settings: dict[str, Any]
    seconds: float
    peak_rss_bytes: int | None


class Outcome(StrictModel):
    """What a worker gives back: a record, or the error that stopped it."""

    lowered: LoweredRecord | None = None
    parity: ParityRecord | None = None
    cached: bool = False
    peak_rss_bytes: int | None = Field(None, description="Of the worker, parity check included.")
    error: dict[str, str] | None = Field(None, description="kind, message and hint.")
