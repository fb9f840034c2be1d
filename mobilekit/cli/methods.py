"""``mobilekit methods``: which compression methods there are, and their settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Answer, command

if TYPE_CHECKING:
    from mobilekit.compress.config import MethodConfig, VariantInfo

EPILOG = "Examples: mobilekit methods   ·   mobilekit methods aimer"


@command
def main(
    name: Annotated[str | None, typer.Argument(help="Method whose settings to show.")] = None,
) -> Answer:
    """List the compression methods, or one's settings."""
    from mobilekit.compress import METHODS

    if name is not None:
        return _settings(name, METHODS.get(name).Config)
    rows, data = [], []
    for known in METHODS.names():
        method = METHODS.get(known)
        summary = (inspect.getdoc(method) or "").partition("\n")[0]
        needs = ", ".join(sorted(method.needs))
        rows.append([known, needs, summary])
        data.append({"name": known, "needs": sorted(method.needs), "summary": summary})
    return Answer(data, headers=("method", "acts on", "summary"), rows=rows)


def _settings(name: str, config: type[MethodConfig]) -> Answer:
    rows: list[list[str]] = []
    variants = {key: info._asdict() for key, info in config.variants.items()}
    schema: dict[str, Any] = {**config.model_json_schema(), "variants": variants}
    own = inspect.get_annotations(config)  # these before those that several methods share
    fields = sorted(config.model_fields.items(), key=lambda item: item[0] not in own)
    for key, field in fields:
        rows.append([key, repr(field.default), field.description or ""])
    lines = [f"Settings of {name}, given as --set KEY=VALUE or in a recipe:", ""]
    return Answer(
        schema,
        lines=lines,
        headers=("setting", "default", "meaning"),
        rows=rows,
        closing=_variants(config.variants),
    )


def _variants(variants: Mapping[str, VariantInfo]) -> list[str]:
    """Return one line a variant: what it needs of calibration, and what it does."""
    if not variants:
        return []
    rows = [("variant", "needs of calibration", "does")]
    rows += [(name, info.needs, info.summary) for name, info in variants.items()]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return ["", *(f"{a:{first}}   {b:{second}}   {c}" for a, b, c in rows)]
