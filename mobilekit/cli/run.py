"""``mobilekit run``: carry out a recipe."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Answer, IgnoreEstimates, command

if TYPE_CHECKING:
    from mobilekit.recipe import Recipe

EPILOG = "Examples: mobilekit run recipe.yaml --out runs/first   ·   … --out runs/first --resume"


@command
def main(
    recipe: Annotated[Path, typer.Argument(help="Recipe file; `mobilekit init` writes one.")],
    out: Annotated[
        Path | None, typer.Option(help="Run directory to create; runs/RECIPE by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run; finished steps are kept.")
    ] = False,
    ignore_estimates: IgnoreEstimates = False,
) -> Answer:
    """Run a recipe from the checkpoint to the report.

    First prints the plan, with the estimated peak memory and disk of every step, and refuses
    (exit 2) what does not fit this machine.
    """
    from mobilekit.recipe import load_recipe

    target = out or Path("runs") / recipe.stem
    shown = f"mobilekit run {recipe} --out {target}"
    return run_recipe(
        load_recipe(recipe),
        target,
        resume=resume,
        command=shown,
        ignore_estimates=ignore_estimates,
    )


def run_recipe(
    recipe: Recipe, out: Path, *, resume: bool, command: str, ignore_estimates: bool = False
) -> Answer:
    """Run a recipe, and answer with the before/after table and the report's path."""
    from mobilekit.core.errors import CheckFailedError, MobileKitError
    from mobilekit.pipeline import run
    from mobilekit.report import comparison

    failure, is_new = None, not out.exists()
    try:
        run(recipe, out, resume=resume, command=command, ignore_estimates=ignore_estimates)
    except CheckFailedError as error:
        failure = error
    except MobileKitError:
        if is_new:
            _discard_unused(out)
        raise
    table = comparison(out)
    if failure is not None:
        raise failure
    return Answer(
        data={"run": str(out), "report": str(out / "report.html"), "comparison": table.data},
        headers=table.headers,
        rows=table.rows,
        closing=["", f"Report {out / 'report.html'}"],
    )


def _discard_unused(out: Path) -> None:
    """Remove a run directory in which no step left anything, so that the name is free again."""
    if {path.name for path in out.rglob("*")} <= {".state", "lock", "created.json"}:
        shutil.rmtree(out, ignore_errors=True)
