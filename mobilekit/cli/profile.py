"""``mobilekit profile``: latency, memory and energy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command

EPILOG = (
    "Examples: mobilekit profile runs/demo/bundle --workload pp128 --workload tg64   ·   "
    "mobilekit profile embedded --repetitions 10 --json"
)


@command
def main(
    path: Annotated[
        str, typer.Argument(help="Bundle, checkpoint directory, cached hub id, or 'embedded'.")
    ],
    artifact: Annotated[
        list[str] | None, typer.Option(help="Id of an artifact; all by default.")
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option(help="ppN, tgN or ppN+tgM; pp128 and tg64 by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device; `mobilekit devices` lists them.")] = "host",
    repetitions: Annotated[int, typer.Option(min=1, help="Counted runs of a workload.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write the results (JSON) into.")
    ] = None,
) -> Answer:
    """Measure latency, peak memory and energy.

    Each artifact runs in a fresh process that imports only its own runtime.
    """
    from mobilekit import profile
    from mobilekit.core.files import atomic_directory, atomic_write_json, check_target

    if out is not None:
        check_target(out)
    results = profile.run(
        path,
        device,
        artifacts=artifact,
        workloads=tuple(workload or ("pp128", "tg64")),
        repetitions=repetitions,
        threads=threads,
    )
    if out is not None:
        with atomic_directory(out) as fresh:
            for result in results:
                name = f"profile-{device}-{result.artifact.id}-{result.workload.id}.json"
                atomic_write_json(fresh / name, result.to_json())
    return Answer(
        [result.to_json() for result in results],
        headers=profile.HEADERS,
        rows=[profile.row(result) for result in results],
        closing=["", f"Results {out}"] if out else [],
    )
