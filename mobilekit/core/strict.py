"""Typed, strict, immutable data that comes from a user: recipes, method settings, manifests."""

from __future__ import annotations

from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .errors import InvalidInputError, UsageError
from .wording import explain


class StrictModel(BaseModel):
    """A frozen record that refuses unknown keys and explains what it refuses in two lines.

    Scalars are strict: "0.25" is no number, and true is not 1. A list is taken for a tuple, since
    YAML and JSON have no other way to write one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kinds = {f.alias or name: f.annotation for name, f in cls.model_fields.items()}
        return {key: _as_tuples(value, kinds.get(key)) for key, value in data.items()}

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """Check ``data`` and return the record.

        Args:
            data: Plain mappings, lists and scalars, as YAML or JSON gives them.
            where: What the data is ("recipe.yaml", "step 1 (aimer)"), for the message.

        Raises:
            InvalidInputError: With the first thing that is wrong, and what was expected.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise explain(cls, error, where) from None
        except UsageError as error:  # of a validator that looks a name up
            raise InvalidInputError(f"{where}: {error.message}", hint=error.hint) from None


def _as_tuples(value: Any, annotation: Any) -> Any:
    """Return ``value`` with its lists as tuples, as deep as ``annotation`` asks for tuples."""
    if not isinstance(value, list | tuple):
        return value
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is tuple:
            inner = get_args(part)[:1]
            return tuple(_as_tuples(item, inner[0] if inner else None) for item in value)
    return value


__all__ = ["StrictModel"]
