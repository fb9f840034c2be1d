"""Contract 3: a result is what a device gives back; the same document from every device."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from mobilekit.core.strict import StrictModel

from .contract import Contract

RESULT_SCHEMA: Final = "mobilekit.result/1"
Letter = Literal["A", "B", "C", "D", ""]


class Sample(StrictModel):
    """One raw timing: phase, token index where it has one, nanoseconds of a monotonic clock."""

    phase: Literal["load", "first", "prefill", "decode", "question"]
    repetition: int = Field(0, ge=0)
    token: int | None = Field(None, ge=0)
    tokens: int = Field(1, ge=1, description="Tokens that this sample processed.")
    ns: int = Field(ge=0)


class MemoryRecord(StrictModel):
    """Peak memory by the name of the counter that was read."""

    counter: str
    peak_bytes: int | None = Field(description="Peak of the whole process.")
    baseline_bytes: int | None = Field(description="Same counter after imports, before loading.")
    reason: str | None = Field(None, description="Why a value is null.")


class EnergyRecord(StrictModel):
    """Joules with their source, or the reason why there are none; never 0 for missing."""

    status: Literal["measured", "modelled", "unavailable"]
    joules: float | None = None
    joules_per_token: float | None = None
    std: float | None = None
    source: str | None = None
    scope: Literal["package", "device", "rail", "model-estimate"] | None = None
    baseline_watts: float | None = None
    interval_s: float | None = None
    samples: int | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _null_exactly_when_unavailable(self) -> EnergyRecord:
        if (self.status == "unavailable") != (self.joules is None):
            raise ValueError("joules null exactly when the status is 'unavailable'")
        if self.status == "unavailable" and not self.reason:
            raise ValueError("a reason for status 'unavailable'")
        return self


class ArtifactRef(StrictModel):
    """Which artifact was run: its id and its SHA-256 (a checkpoint's content hash)."""

    id: str
    sha256: str
    bytes: int | None = None


class Workload(StrictModel):
    """What was run; ``pp128`` and ``tg64`` as llama-bench names them."""

    id: str
    prompt_tokens: int = 0
    new_tokens: int = 0
    repetitions: int = 1
    warmup: int = 0
    settings: dict[str, Any] = {}


class Result(Contract):
    """One experiment on one device."""

    schema_: Literal["mobilekit.result/1"] = Field(RESULT_SCHEMA, alias="schema")
    kind: Literal["profile", "evaluate"]
    device: dict[str, Any] = Field(description="Has at least 'class', such as host-x86_64.")
    runtime: dict[str, Any]
    artifact: ArtifactRef
    workload: Workload
    samples: tuple[Sample, ...] = ()
    metrics: dict[str, Any] = {}
    memory: MemoryRecord | None = None
    energy: EnergyRecord | None = None
    thermal: dict[str, Any] = {}
    letters: dict[str, Letter] = Field({}, description="Chosen letter a question id, no text.")
    created: str = Field(description="UTC time, ISO 8601.")

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)
