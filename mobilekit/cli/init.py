"""``mobilekit init``: write a commented recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command

EPILOG = "Examples: mobilekit init   ·   mobilekit init mine.yaml --force"


@command
def main(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> Answer:
    """Write a commented recipe.yaml that runs as it is."""
    from mobilekit.core.errors import UsageError
    from mobilekit.core.files import atomic_write
    from mobilekit.recipes import DEMO

    if path.is_dir():
        raise UsageError(
            f"{path} is a directory", hint=f"Name a file: mobilekit init {path / 'recipe.yaml'}"
        )
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="Use --force to overwrite it, or name another.")
    atomic_write(path, DEMO.read_text(encoding="utf-8"))
    return Answer({"recipe": str(path)}, [f"Wrote {path}", f"Run it with: mobilekit run {path}"])
