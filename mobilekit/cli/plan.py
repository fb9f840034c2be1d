"""``mobilekit plan``: decide, and touch no weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import ON_DISK, Answer, LoadingDevice, command, parse_settings

if TYPE_CHECKING:
    from mobilekit.schema.plan import Plan

EPILOG = (
    "Examples: mobilekit plan embedded --method aimer --set sparsity=0.25 --out plan   ·   "
    "mobilekit plan MODEL --method aimer --set variant=random --out plan --json"
)


@command
def main(
    model: Annotated[
        str, typer.Argument(help="Checkpoint directory, cached hub id, or 'embedded'.")
    ],
    method: Annotated[str, typer.Option(help="Method; `mobilekit methods` lists them.")],
    out: Annotated[Path, typer.Option(help="Directory to write plan.json into.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A method setting.")
    ] = None,
    device: LoadingDevice = "auto",
) -> Answer:
    """Write what a method would do, as a plan to read and edit.

    Methods that look at weights alone read them from the files, one after the other, whatever the
    size of the model; interrupted, they go on where they were. Others load the model, as all do
    with a GPU as the device.
    """
    from mobilekit.compress.tensors import beside
    from mobilekit.core import console
    from mobilekit.core.files import atomic_directory, atomic_write_json, check_target
    from mobilekit.schema.plan import PLAN_FILE

    check_target(out)
    plan = make_plan(model, method, setting or [], device)
    for warning in plan.warnings:
        console.warn(warning)
    with atomic_directory(out) as fresh:
        plan = beside(plan, fresh)
        atomic_write_json(fresh / PLAN_FILE, [plan.to_json()])
    return Answer(
        plan.to_json(),
        headers=("layer", "kept", "removed"),
        rows=plan_rows(plan),
        closing=["", *_notes(plan), f"Plan {out / PLAN_FILE}"],
    )


def make_plan(source: str, method: str, settings: list[str], device: str) -> Plan:
    """Let a method plan for a model, in memory or on disk; no tokenizer is only a warning."""
    from mobilekit import compress
    from mobilekit.compress.stored import plan_stored, plans_from_disk
    from mobilekit.core import console
    from mobilekit.models import has_tokenizer, load, resolve

    chosen = compress.METHODS.get(method)
    parsed = parse_settings(settings)
    config = chosen.Config.parse(parsed, f"method {method}")
    compress.check_inputs(config, resolve(source))
    if not has_tokenizer(resolve(source)):
        console.warn(f"{source} has no tokenizer; it can be compressed, but not exported")
    if device in ON_DISK and plans_from_disk(chosen, getattr(config, "variant", None)):
        return plan_stored(source, method, **parsed)
    return compress.plan(load(source, device=device), method, **parsed)


def _notes(plan: Plan) -> list[str]:
    return [f"Note: {plan.scores['note']}"] if "note" in plan.scores else []


def plan_rows(plan: Plan) -> list[list[str]]:
    """Return one row a layer: how many units stay, which go."""
    rows = []
    for layer in plan.scores.get("layers", []):
        gone: list[Any] = layer.get("pruned", [])
        shown = ", ".join(str(index) for index in gone) or "none"
        rows.append([str(layer["layer"]), str(len(layer.get("kept", []))), shown])
    return rows
