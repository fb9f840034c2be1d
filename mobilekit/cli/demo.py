"""``mobilekit demo``: the whole pipeline on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, IgnoreEstimates, command

EPILOG = "Examples: mobilekit demo   ·   mobilekit demo --out runs/first --json"


@command
def main(
    out: Annotated[
        Path, typer.Option(help="Run directory; an unfinished one is gone on with.")
    ] = Path("runs/demo"),
    ignore_estimates: IgnoreEstimates = False,
) -> Answer:
    """Run everything on the embedded model; needs no network."""
    from mobilekit.recipe import load_recipe
    from mobilekit.recipes import DEMO

    from .run import run_recipe

    return run_recipe(
        load_recipe(DEMO),
        out,
        resume=True,
        command="mobilekit demo",
        ignore_estimates=ignore_estimates,
    )
