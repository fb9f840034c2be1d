"""``mobilekit report``: one page out of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command

EPILOG = "Examples: mobilekit report runs/demo   ·   mobilekit report runs/demo --json"


@command
def main(
    run: Annotated[Path, typer.Argument(help="Run directory that `mobilekit run` wrote.")],
) -> Answer:
    """Write RUN/report.html and RUN/model_card.md."""
    from mobilekit import report

    written = report.write(run)
    table = report.comparison(run)
    return Answer(
        {"report": str(written), "comparison": table.data},
        headers=table.headers,
        rows=table.rows,
        closing=["", f"Report {written}"],
    )
