"""``mobilekit verify``: repeat the parity check of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Answer, command

if TYPE_CHECKING:
    from mobilekit.schema.bundle import Bundle

EPILOG = (
    "Examples: mobilekit verify runs/demo/bundle   ·   "
    "mobilekit verify bundle.zip --artifact onnx-cpu-int8 --json"
)


@command
def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory or zip.")],
    artifact: Annotated[
        str | None, typer.Option(help="Id of one artifact; all by default.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The checkpoint it was exported from, to name the layer at fault."),
    ] = None,
) -> Answer:
    """Repeat the parity check of a bundle; exit 1 if it fails.

    Checks every checksum, then runs every artifact on the parity vectors again.
    """
    from mobilekit import export
    from mobilekit.core import console
    from mobilekit.schema.bundle import open_bundle

    from .export import PARITY_HEADERS, parity_cells

    opened = open_bundle(bundle)
    for name in opened.unlisted():
        console.warn(f"{name} is not in the manifest, so no checksum covers it")
    records = export.verify(opened, checkpoint=_checkpoint(opened, model), only=artifact)
    ran_at_export = {item.id: item.parity.executed for item in opened.manifest.artifacts}
    failed = [
        name
        for name, record in records.items()
        if record.passed is False or (ran_at_export[name] and not record.executed)
    ]
    return Answer(
        {name: record.model_dump(mode="json") for name, record in records.items()},
        headers=("artifact", *PARITY_HEADERS),
        rows=[[name, *parity_cells(record)] for name, record in records.items()],
        exit_code=1 if failed else 0,
    )


def _checkpoint(bundle: Bundle, model: str | None) -> Path | None:
    """Return the checkpoint to diagnose with: the one named, or the run's own beside the bundle."""
    from mobilekit import export
    from mobilekit.models import resolve

    if model is not None:
        return resolve(model)
    beside = bundle.root.parent / "checkpoint"
    there = (beside / "config.json").is_file()
    return beside if there and export.is_origin(bundle.manifest, beside) else None
