"""``mobilekit evaluate``: quality of a checkpoint or of the artifact that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command, parse_settings

EPILOG = (
    "Examples: mobilekit evaluate embedded --suite perplexity   ·   "
    "mobilekit evaluate runs/demo/bundle --artifact onnx-cpu-int8 --suite mobile_mmlu"
)


@command
def main(
    path: Annotated[
        str, typer.Argument(help="Bundle, checkpoint directory, cached hub id, or 'embedded'.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(help="perplexity or mobile_mmlu; both by default.")
    ] = None,
    artifact: Annotated[
        str | None, typer.Option(help="Id of a bundle's artifact; all that run here by default.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A suite setting.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write the results (JSON) into.")
    ] = None,
) -> Answer:
    """Score a checkpoint or the artifact that ships.

    Perplexity on held-out text, and four-option questions by log-likelihood.
    """
    from mobilekit import evaluate
    from mobilekit.core import console
    from mobilekit.core.files import atomic_directory, atomic_write_json, check_target

    if out is not None:
        check_target(out)
    settings = parse_settings(setting or [])
    configs = evaluate.make_configs(suite or evaluate.SUITES.names(), settings)
    results = []
    for name in evaluate.targets_of(path, artifact):
        if (reason := evaluate.cannot_run(path, name)) is not None:
            console.warn(f"{name} is not evaluated: {reason}")
            continue
        results += [evaluate.run_on(path, name, config) for config in configs]
    if out is not None:
        with atomic_directory(out) as fresh:
            for result in results:
                name = f"evaluate-{result.workload.id}-{result.artifact.id}.json"
                atomic_write_json(fresh / name, result.to_json())
    return Answer(
        [result.to_json() for result in results],
        headers=("artifact", "suite", "result"),
        rows=[[r.artifact.id, r.workload.id, evaluate.summary_line(r)] for r in results],
        closing=["", f"Results {out}"] if out else [],
    )
