"""The record of a search: what each generation chose; enough to go on from after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import atomic_write_json, read_json, sha256_json
from mobilekit.core.strict import StrictModel

from .settings import EvolutionSettings
from .space import Group, State, check_state

_SCHEMA: Literal["mobilekit.evolution/1"] = "mobilekit.evolution/1"
_ANEW = "Remove the file to search anew, or keep the state elsewhere."


class GenerationRecord(StrictModel):
    """What one generation chose."""

    generation: int = Field(ge=0, description="Counts from 0.")
    fitness: float = Field(
        allow_inf_nan=False, description="The winner's in the last stage; lower is better."
    )
    parent_fitness: float | None = Field(
        allow_inf_nan=False, description="The parent's on the same data; null if not finite."
    )
    winner: State = Field(description="The next parent.")
    parent_survived: bool = Field(description="Whether the winner is the parent itself.")
    evaluations: tuple[int, ...] = Field(description="Candidates that each stage looked at.")
    seconds: float = Field(ge=0.0, allow_inf_nan=False)


class SearchRecord(StrictModel):
    """All that a search needs to go on, since randomness depends on the generation alone."""

    schema_: Literal["mobilekit.evolution/1"] = Field(_SCHEMA, alias="schema")
    identity: str = Field(description="SHA-256 of what the result depends on.")
    generation: int = Field(ge=0, description="Generations done.")
    parent: State
    history: tuple[GenerationRecord, ...]


def identity_of(
    start: State, groups: Sequence[Group], settings: EvolutionSettings, own: Any
) -> str:
    """Return the SHA-256 of what a search depends on, except how long it is to run.

    Args:
        start: The first parent.
        groups: What is searched.
        settings: ``generations`` is left out, so that a finished search can be made longer.
        own: What fitness and acceptance depend on: a JSON value of the caller's.
    """
    return sha256_json(
        {
            "start": start,
            "groups": [[group.name, group.most] for group in groups],
            "settings": settings.model_dump(mode="json", exclude={"generations"}),
            "own": own,
        }
    )


def save_record(path: Path, identity: str, history: list[GenerationRecord]) -> None:
    """Write the record of a history that is not empty, whole or not at all."""
    record = SearchRecord(
        schema=_SCHEMA,
        identity=identity,
        generation=len(history),
        parent=history[-1].winner,
        history=tuple(history),
    )
    atomic_write_json(path, record.model_dump(mode="json", by_alias=True))


def load_record(path: Path, identity: str, groups: Sequence[Group]) -> SearchRecord | None:
    """Return the record at ``path``, or ``None`` where there is none yet.

    Raises:
        UsageError: If it is of another search.
        InvalidInputError: If it is damaged.
    """
    if not path.exists():
        return None
    record = SearchRecord.parse(read_json(path), str(path))
    if record.identity != identity:
        raise UsageError(f"{path} is the state of another search", hint=_ANEW)
    _check(path, record, groups)
    return record


def _check(path: Path, record: SearchRecord, groups: Sequence[Group]) -> None:
    done = [entry.generation for entry in record.history]
    winner = record.history[-1].winner if record.history else None
    if done != list(range(record.generation)) or winner not in (None, record.parent):
        raise InvalidInputError(
            f"{path}: its history does not lead to generation {record.generation} and its parent",
            hint=_ANEW,
        )
    try:
        for entry in record.history:
            check_state(entry.winner, groups)
    except UsageError as error:
        raise InvalidInputError(f"{path}: {error.message}", hint=_ANEW) from None
