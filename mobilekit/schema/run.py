"""The record of one pipeline run: what ran, on what, with which models before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import read_json
from mobilekit.core.strict import StrictModel

from .contract import Contract
from .published import PublishedFigures

RUN_SCHEMA: Final = "mobilekit.run/1"
RUN_FILE = "run.json"

StepName = Literal["compress", "recover", "export", "verify", "profile", "evaluate"]


class StepRecord(StrictModel):
    """One step of a run, in the order in which they ran."""

    name: StepName
    detail: str = Field("", description="What the step did, for people: 'aimer, sparsity 0.25'.")
    seconds: float = Field(ge=0, description="Wall time of the work, done before where cached.")
    cached: bool = False
    output: str | None = Field(None, description="Path relative to the run directory.")
    peak_rss_bytes: int | None = Field(
        None, ge=0, description="Measured: of the run's own process, not of its workers."
    )
    estimated_peak_bytes: int | None = Field(
        None, ge=0, description="Estimated before the run, for the same process."
    )


class ModelRecord(StrictModel):
    """One checkpoint by content hash, with its size counted from the weights."""

    hash: str
    class_: str = Field(alias="class", description="Architecture class, 'Qwen3MoeForCausalLM'.")
    parameters: int = Field(ge=0)
    active_parameters: int | None = Field(None, ge=0, description="Used for one token.")
    weight_bytes: int = Field(ge=0)
    path: str | None = None


class ModelPair(StrictModel):
    """The checkpoint that went in, and the one that was exported."""

    before: ModelRecord
    after: ModelRecord | None = Field(None, description="Null until the compression ended.")


class RecoveryRecord(StrictModel):
    """What recovery training did; losses are mean cross-entropies in nats a token."""

    tokens: int = Field(ge=0)
    seconds: float = Field(ge=0)
    loss_before: float | None = None
    loss_after: float | None = None
    curve: tuple[tuple[int, float], ...] = Field((), description="(step, training loss) pairs.")


class RunRecord(Contract):
    """What ``run.json`` holds."""

    schema_: Literal["mobilekit.run/1"] = Field(RUN_SCHEMA, alias="schema")
    mobilekit: str = Field(description="Version of MobileKit that ran.")
    created: str = Field(description="UTC time at the start, ISO 8601.")
    command: str = Field(description="The command that reproduces the run.")
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = Field({}, description="Version a package.")
    host: dict[str, Any] = {}
    steps: tuple[StepRecord, ...] = ()
    models: ModelPair | None = None
    recovery: RecoveryRecord | None = None
    published: tuple[PublishedFigures, ...] = Field(
        (), description="Of others, on the published question sets that were asked."
    )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def read_run(run_dir: Path) -> RunRecord:
    """Read ``run.json`` of a run directory.

    Raises:
        InvalidInputError: If it is missing, not JSON, of a newer schema, or malformed.
    """
    path = run_dir / RUN_FILE
    if not run_dir.exists():
        raise InvalidInputError(f"run directory {run_dir} does not exist", hint="Check the path.")
    if not path.is_file():
        raise InvalidInputError(
            f"{run_dir} is not a run directory: no {RUN_FILE} in it",
            hint="Give the directory that `mobilekit run RECIPE --out DIR` wrote.",
        )
    return RunRecord.parse(read_json(path), str(path))
