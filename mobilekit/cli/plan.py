"""``mobilekit plan``: decide, and touch no weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Answer, LoadingDevice, command, parse_settings

if TYPE_CHECKING:
    from mobilekit.schema.plan import Plan

EPILOG = (
    "Examples: mobilekit plan embedded --method aimer --set sparsity=0.25 --out plan   ·   "
    "mobilekit plan MODEL --method aimer --set variant=random --out plan --json"
)

_UNITS = {"head": "query heads", "kv_head": "key-value heads", "channel": "channels"}


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
    size of the model; interrupted, they go on where they were. Others load the model. A search
    deals its candidates over the processes of torchrun.
    """
    from mobilekit.compress.tensors import beside
    from mobilekit.core import console
    from mobilekit.core.files import atomic_directory, atomic_write_json, check_target
    from mobilekit.schema.plan import PLAN_FILE
    from mobilekit.train.ranks import launched

    check_target(out)
    with launched(device) as ranks:
        plan = make_plan(model, method, setting or [], device)
        for warning in plan.warnings:
            console.warn(warning)
        if ranks.is_first:
            with atomic_directory(out) as fresh:
                atomic_write_json(fresh / PLAN_FILE, [beside(plan, fresh).to_json()])
        ranks.wait()
    return Answer(
        plan.to_json(),
        headers=plan_headers(plan),
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
    if plans_from_disk(chosen, getattr(config, "variant", None)):
        return plan_stored(source, method, device=device, **parsed)
    return compress.plan(load(source, device=device), method, **parsed)


def _notes(plan: Plan) -> list[str]:
    return [f"Note: {plan.scores['note']}"] if "note" in plan.scores else []


def plan_headers(plan: Plan) -> tuple[str, ...]:
    """Return what stands above the columns of `plan_rows`."""
    if _has_levels(plan):
        return ("layer", "units", "level", "kept", "removed")
    return ("layer", "kept", "removed")


def plan_rows(plan: Plan) -> list[list[str]]:
    """Return one row a layer: how many units stay, which go; or a row for each kind of unit."""
    if _has_levels(plan):
        return [_level_row(entry) for entry in plan.scores["layers"]]
    rows = []
    for layer in plan.scores.get("layers", []):
        gone: list[Any] = layer.get("pruned", [])
        shown = ", ".join(str(index) for index in gone) or "none"
        rows.append([str(layer["layer"]), str(len(layer.get("kept", []))), shown])
    return rows


def _has_levels(plan: Plan) -> bool:
    return any("level" in layer for layer in plan.scores.get("layers", []))


def _level_row(entry: dict[str, Any]) -> list[str]:
    """Return what one level of heads or channels leaves; ``kept`` and ``of`` are counts there."""
    kept, of = entry["kept"], entry["of"]
    last = len(entry.get("errors", [])) - 1
    level = f"{entry['level']} of {last}" if last > 0 else str(entry["level"])
    shares = "all" if kept == 0 else f"{1 - kept / of:.1%}" if kept < of else "none"
    unit = _UNITS.get(entry["unit"], entry["unit"])
    return [str(entry["layer"]), unit, level, f"{kept} of {of}", shares]
