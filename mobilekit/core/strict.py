"""Typed, strict, immutable data that comes from a user: recipes, method settings, manifests."""

from __future__ import annotations

from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .errors import InvalidInputError
from .suggest import did_you_mean


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
            raise _explain(cls, error, where) from None


def _as_tuples(value: Any, annotation: Any) -> Any:
    """Return ``value`` with its lists as tuples, as deep as ``annotation`` asks for tuples."""
    if not isinstance(value, list | tuple):
        return value
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is tuple:
            inner = get_args(part)[:1]
            return tuple(_as_tuples(item, inner[0] if inner else None) for item in value)
    return value


def _explain(model: type[BaseModel], error: ValidationError, where: str) -> InvalidInputError:
    errors = error.errors()
    # a misspelt key also makes a required one "missing": name the misspelling first
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"]]
    path = ".".join(location)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return InvalidInputError(
            f"{where}: unknown key '{path}'{did_you_mean(location[-1], known)}{more}",
            hint=f"Known keys here: {', '.join(sorted(known))}." if known else "Remove the key.",
        )
    if first["type"] == "missing":
        return InvalidInputError(
            f"{where}: key '{path}' is missing{more}", hint="Add the key and try again."
        )
    given = repr(first["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return InvalidInputError(
        f"{where}: '{path}' is {given}{more}" if path else f"{where}: got {given}{more}",
        hint=f"Expected: {first['msg'].removeprefix('Value error, ').removesuffix('.')}.",
    )


def _known_keys(model: type[BaseModel], path: list[str]) -> set[str]:
    """Return the keys that the record at ``path`` inside ``model`` accepts."""
    current: Any = model
    for part in path:
        candidates = [m for m in _models_in(current) if part in m.model_fields]
        if candidates:
            current = candidates[0].model_fields[part].annotation
    return {name for m in _models_in(current) for name in m.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the record types inside an annotation such as ``tuple[Step, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]


__all__ = ["StrictModel"]
