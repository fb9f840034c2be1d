"""Contract 1: a plan says what a compression method does to a model, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import read_json, safe_join
from mobilekit.core.strict import StrictModel
from mobilekit.core.wording import kind_of

from .contract import Contract

PLAN_SCHEMA: Final = "mobilekit.plan/1"
PLAN_FILE = "plan.json"
TENSORS_FILE = "tensors.safetensors"


class KeepEdit(StrictModel):
    """Keep these units of one layer, in this order; the others go."""

    op: Literal["keep"] = "keep"
    unit: str = Field(description="Kind of unit: expert, head, channel, ...")
    layer: int = Field(ge=0, description="Index of the decoder layer or block.")
    indices: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ascending(self) -> KeepEdit:
        if list(self.indices) != sorted(set(self.indices)):
            raise ValueError(f"indices of layer {self.layer} ascending and without repeats")
        return self


class RemoveEdit(StrictModel):
    """Remove one sub-block; the residual stream passes through."""

    op: Literal["remove"] = "remove"
    unit: str = Field(description="Which sub-block: attention or mlp.")
    layer: int = Field(ge=0)


class ReplaceEdit(StrictModel):
    """Replace the module at a path by one of ``models/modules``."""

    op: Literal["replace"] = "replace"
    path: str
    module: str
    settings: dict[str, Any] = {}


Edit = Annotated[KeepEdit | RemoveEdit | ReplaceEdit, Field(discriminator="op")]


class TensorFile(StrictModel):
    """A safetensors file that holds a plan's large values.

    Attributes:
        path: Its name, where it lies beside the plan; a whole path in memory. The plans of a
            checkpoint name it as well, but it need not be there: the weights hold its values.
        sha256: Of the file.
    """

    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Plan(Contract):
    """What one method does to one model: readable, complete, editable."""

    schema_: Literal["mobilekit.plan/1"] = Field(PLAN_SCHEMA, alias="schema")
    method: str
    method_version: int = Field(ge=1)
    config: dict[str, Any]
    seed: int
    parent: str | None = Field(description="Content hash of the checkpoint planned for, or null.")
    edits: tuple[Edit, ...]
    tensors: TensorFile | None = None
    scores: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, ``schema`` first."""
        return self.model_dump(mode="json", by_alias=True)


def read_plans(path: Path) -> list[Plan]:
    """Read a ``plan.json``: the plans applied to a checkpoint, in order.

    Raises:
        InvalidInputError: If it is missing, not JSON, or not a list of plans.
    """
    data = read_json(path)
    if isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise InvalidInputError(
            f"{path} holds {kind_of(data)}, expected a list of plans",
            hint="Write it with: mobilekit plan MODEL --method NAME --out DIR",
        )
    plans = [Plan.parse(entry, f"{path} entry {i}") for i, entry in enumerate(data)]
    return [_located(plan, path.parent) for plan in plans]


def _located(plan: Plan, folder: Path) -> Plan:
    """Return a plan that says where its tensors are, if it has any."""
    if plan.tensors is None or Path(plan.tensors.path).is_absolute():
        return plan
    return with_tensors(plan, safe_join(folder, plan.tensors.path))


def with_tensors(plan: Plan, path: Path | str) -> Plan:
    """Return a plan whose tensors lie elsewhere."""
    assert plan.tensors is not None
    file = plan.tensors.model_copy(update={"path": str(path)})
    return plan.model_copy(update={"tensors": file})
