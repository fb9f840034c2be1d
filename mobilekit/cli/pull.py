"""``mobilekit pull``: a bundle from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command, megabytes

EPILOG = (
    "Examples: mobilekit pull owner/name --out bundle   ·   "
    "mobilekit pull hf://owner/name@v1 --out bundle --json"
)


@command
def main(
    repo_id: Annotated[
        str, typer.Argument(help="owner/name, with @revision for a branch, tag or commit.")
    ],
    out: Annotated[Path, typer.Option(help="Bundle directory to create.")],
) -> Answer:
    """Pull a bundle from the Hugging Face hub.

    Takes what the manifest names and checks every checksum: a bundle that fails is not kept.
    """
    from mobilekit import hub

    manifest = hub.pull(repo_id, out).manifest
    return Answer(
        manifest.to_json(),
        headers=("artifact", "size", "precision"),
        rows=[[a.id, megabytes(a.total_bytes), a.precision] for a in manifest.artifacts],
        closing=["", f"Bundle {out}"],
    )
