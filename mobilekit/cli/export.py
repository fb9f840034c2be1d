"""``mobilekit export``: checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Answer, IgnoreEstimates, command, megabytes

if TYPE_CHECKING:
    from mobilekit.schema.manifest import LayerPrecision, Manifest

EPILOG = (
    "Examples: mobilekit export embedded --out bundle   ·   "
    "mobilekit export MODEL --target onnx --precision int8 --out bundle"
)

_Override = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=PRECISION",
        help="Precision of some layers of the quantized artifacts, such as 'lm_head=int8' or "
        "'model.layers.0.*=float'; the first that matches wins.",
    ),
]


@command
def main(
    model: Annotated[
        str, typer.Argument(help="Checkpoint directory, cached hub id, or 'embedded'.")
    ],
    out: Annotated[Path, typer.Option(help="Bundle directory to create.")],
    target: Annotated[
        list[str] | None, typer.Option(help="executorch, onnx or coreml; all by default.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8 or int4; fp32 and int8 by default.")
    ] = None,
    context_length: Annotated[int, typer.Option(help="Positions that the cache holds.")] = 512,
    override: _Override = None,
    ignore_estimates: IgnoreEstimates = False,
) -> Answer:
    """Write a bundle for the phone, each artifact verified.

    First prints the plan, with the estimated peak memory and disk of every artifact, and refuses
    (exit 2) what does not fit this machine.
    """
    from mobilekit import export
    from mobilekit.core import needs
    from mobilekit.core.files import check_target

    check_target(out)
    chosen: dict[str, Any] = {
        "targets": target or export.TARGETS,
        "precisions": precision or ("fp32", "int8"),
        "context_length": context_length,
    }
    plan = export.prepare(model, **chosen)
    needs.announce(plan.headline(out), plan.needs, export.places(out))
    manifest = export.build(
        model,
        out,
        **chosen,
        overrides=_overrides(override or []),
        ignore_estimates=ignore_estimates,
    )
    return _answer(manifest, out)


def _overrides(pairs: list[str]) -> dict[str, LayerPrecision]:
    """Parse ``PATTERN=PRECISION`` options."""
    from mobilekit.core.errors import UsageError

    known: dict[str, LayerPrecision] = {"float": "float", "int8": "int8", "int4": "int4"}
    parsed = {}
    for pair in pairs:
        pattern, _, precision = pair.rpartition("=")
        if not pattern or precision not in known:
            raise UsageError(
                f"--override '{pair}' is not PATTERN=PRECISION",
                hint="Give a layer pattern and float, int8 or int4: --override 'lm_head=int8'.",
            )
        parsed[pattern] = known[precision]
    return parsed


def _answer(manifest: Manifest, out: Path) -> Answer:
    """Return one line an artifact; the exit code tells whether one failed."""
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
