"""What pydantic refuses, in the words of who wrote the file: no types of Python, no classes."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .errors import InvalidInputError
from .suggest import did_you_mean

_KINDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "model": "a mapping",
    "string": "text",
}
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


def kind_of(value: object) -> str:
    """Return what a value of a YAML or JSON file is, for people."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return shown(value)
    names: dict[type, str] = {dict: "a mapping", str: "text", int: "a number", float: "a number"}
    return names.get(type(value), "a list")


def shown(value: object) -> str:
    """Return a value as the file has it, cut to 60 characters."""
    literals = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return literals[value]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def explain(model: type[BaseModel], error: ValidationError, where: str) -> InvalidInputError:
    """Return the first thing that is wrong, what was given, and what to do."""
    errors = error.errors()
    # a misspelt key also makes a required one "missing": name the misspelling first
    first: Any = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    place, path, records = _locate(model, first["loc"])
    start = f"{where}: {place}"
    if first["type"] == "extra_forbidden":
        known = sorted({key for record in records for key in _keys(record)})
        return InvalidInputError(
            f"{start}unknown key '{path}'{did_you_mean(path.split('.')[-1], known)}{more}",
            hint=f"Known keys here: {', '.join(known)}." if known else "Remove the key.",
        )
    if first["type"] == "missing":
        return InvalidInputError(
            f"{start}key '{path}' is missing{more}", hint="Add the key and try again."
        )
    if first["type"].startswith("union_tag"):
        return _wrong_tag(start, first)
    given = shown(first["input"])
    suggestion = _suggestion(first)
    return InvalidInputError(
        f"{start}'{path}' is {given}{suggestion}{more}" if path else f"{start}got {given}{more}",
        hint=f"Expected: {_expected(first)}.",
    )


def _locate(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[str, str, list[type[BaseModel]]]:
    """Return the list entry that a location is in, the dotted key from there, and what is around.

    Entries count from 1, as in all our messages; the tag of a union is no key and is left out.
    """
    keys: list[str] = []
    place, records = "", [model]
    for depth, part in enumerate(location):
        if isinstance(part, int):
            place, keys = f"{place}{'.'.join(keys)} entry {part + 1}: ", []
        elif tagged := [m for m in records if part in _tags(m)]:
            records = tagged
        else:
            keys.append(part)
            fields = [_keys(m)[part] for m in records if part in _keys(m)]
            if depth < len(location) - 1 and fields:
                records = [m for field in fields for m in _models_in(field)]
    return place, ".".join(keys), records


def _keys(record: type[BaseModel]) -> dict[str, Any]:
    """Return the annotation of each key of a record, by the name that a file gives it."""
    return {field.alias or name: field.annotation for name, field in record.model_fields.items()}


def _tags(record: type[BaseModel]) -> set[str]:
    """Return the values by which a union tells this record from the others."""
    first = next(iter(record.model_fields.values()), None)
    return set(get_args(first.annotation)) if first is not None else set()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the record types inside an annotation such as ``tuple[Step, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]


def _wrong_tag(start: str, error: Any) -> InvalidInputError:
    key = error["ctx"]["discriminator"].strip("'")
    if error["type"] == "union_tag_not_found":
        return InvalidInputError(
            f"{start}key '{key}' is missing", hint="Add the key and try again."
        )
    known = _quoted(error["ctx"]["expected_tags"])
    tag = error["ctx"]["tag"]
    return InvalidInputError(
        f"{start}unknown {key} '{tag}'{did_you_mean(tag, known)}",
        hint=f"Known: {', '.join(sorted(known))}.",
    )


def _suggestion(error: Any) -> str:
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    # tight: 'int5' is no misspelling of 'int8'
    return did_you_mean(error["input"], _quoted(error["ctx"]["expected"]), cutoff=0.78)


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _expected(error: Any) -> str:
    """Return what would have been right."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("tuple_type", "list_type"):
        one = error["input"]
        return f"a list, such as [{one}]" if isinstance(one, str | int | float) else "a list"
    if kind in ("too_short", "too_long"):
        most = kind == "too_long"
        count = context["max_length" if most else "min_length"]
        entries = "entry" if count == 1 else "entries"
        return f"a list with at {'most' if most else 'least'} {count} {entries}"
    if kind in _BOUNDS and isinstance(error["input"], bool):
        return "a number"
    name = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if name in _KINDS:
        return _KINDS[name]
    said: str = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return said.removesuffix(".")
