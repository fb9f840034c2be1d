"""``mobilekit export``: checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command, megabytes

EPILOG = (
    "Examples: mobilekit export embedded --out bundle   ·   "
    "mobilekit export MODEL --target onnx --precision int8 --out bundle"
)


@command
def main(
    model: Annotated[str, typer.Argument(help="Checkpoint directory, or 'embedded'.")],
    out: Annotated[Path, typer.Option(help="Bundle directory to create.")],
    target: Annotated[
        list[str] | None, typer.Option(help="executorch, onnx or coreml; all by default.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or int8; both by default.")
    ] = None,
    context_length: Annotated[int, typer.Option(help="Positions that the cache holds.")] = 512,
) -> Answer:
    """Write a bundle for the phone, each artifact verified."""
    from mobilekit import export
    from mobilekit.core.files import check_target

    check_target(out)
    manifest = export.build(
        model,
        out,
        targets=target or export.TARGETS,
        precisions=precision or export.PRECISIONS,
        context_length=context_length,
    )
    rows = []
    for item in manifest.artifacts:
        size = megabytes(item.total_bytes)
        share = f"{item.weights.share_at_precision:.1%}"
        rows.append([item.id, size, share, *parity_cells(item.parity)])
    failed = any(item.parity.passed is False for item in manifest.artifacts)
    return Answer(
        manifest.to_json(),
        headers=("artifact", "size", "at width", *PARITY_HEADERS),
        rows=rows,
        closing=["", f"Bundle {out}"],
        exit_code=1 if failed else 0,
    )


PARITY_HEADERS = ("max|Δ| fp32", "max|Δ| same", "KL same", "top-1", "greedy", "verdict")


def parity_cells(parity: object) -> list[str]:
    """Return the cells of one parity record."""
    from mobilekit.schema.manifest import ParityRecord

    assert isinstance(parity, ParityRecord)
    fp32, same, greedy = parity.against_fp32, parity.against_same, parity.greedy
    if not parity.executed or fp32 is None or same is None or greedy is None:
        return ["", "", "", "", "", f"not run: {parity.reason}"]
    excused = f" (+{greedy.excused} near-ties)" if greedy.excused else ""
    verdict = "ok" if parity.passed else f"FAILED: {parity.first_diverging_layer or 'see report'}"
    return [
        f"{fp32.max_abs:.1e}",
        f"{same.max_abs:.1e}",
        f"{same.kl:.1e}",
        f"{same.top1:.1%}",
        f"{greedy.equal}/{greedy.prompts}{excused}",
        verdict,
    ]
