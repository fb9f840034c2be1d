"""Which class exports to which format at which precision: tried, not claimed.

Every cell exports a tiny instance of the real class and runs the artifact against eager. Cells are
kept under ``--work`` as they are done, and a later call goes on; a change of the code starts anew.

    python benchmarks/support_table.py                         # all cells, then the table
    python benchmarks/support_table.py --only llama mamba2
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mobilekit.export.backends import BACKENDS
from mobilekit.export.lowering import code_hash

import mobilekit as mk
from mobilekit.core import console
from mobilekit.core.errors import MobileKitError
from mobilekit.core.files import atomic_write_json, sha256_json
from mobilekit.models.families import family_of
from mobilekit.models.tiny import TINY_MODELS, make_tiny, write_byte_tokenizer

CONTEXT = 64
FORMATS = {"executorch": ".pte", "onnx": ".onnx", "coreml": ".mlpackage"}


@dataclass(frozen=True)
class Cell:
    """One class in one format at one precision; ``reason`` says why there is no artifact."""

    model: str
    target: str
    precision: str
    passed: bool | None = None
    max_abs: float | None = None
    bytes: int | None = None
    share: float | None = None
    reason: str | None = None

    def shown(self) -> str:
        """Return the cell as the table has it."""
        if self.reason is not None:
            return self.reason
        assert self.bytes is not None
        assert self.share is not None
        verdict = f"{self.max_abs:.0e}" if self.passed else f"**fails** ({self.max_abs:.0e})"
        return f"{verdict} · {self.bytes / 1e3:.0f} kB · {self.share:.0%}"


def cells(names: list[str]) -> list[tuple[str, str, str]]:
    """Return every (model, target, precision) that a back end offers."""
    return [
        (name, target, precision)
        for name in names
        for target in FORMATS
        for precision in BACKENDS.get(target).precisions
    ]


def try_cell(name: str, target: str, precision: str, work: Path) -> Cell:
    """Export one cell, or take it from an earlier call."""
    kept = work / f"{name}-{target}-{precision}-{sha256_json(code_hash())[:12]}.json"
    if kept.is_file():
        return Cell(**json.loads(kept.read_text()))
    bundle = kept.with_suffix("")
    try:
        manifest = mk.export.build(
            checkpoint(name, work),
            bundle,
            targets=[target],
            precisions=[precision],
            context_length=CONTEXT,
        )
    except MobileKitError as error:
        cell = Cell(name, target, precision, reason=error.message.partition(": ")[2][:120])
    else:
        item = manifest.artifacts[0]
        found = item.parity.against_same
        cell = Cell(
            name,
            target,
            precision,
            passed=item.parity.passed,
            max_abs=found.max_abs if found else None,
            bytes=item.total_bytes,
            share=item.weights.share_at_precision,
            reason=item.parity.reason,
        )
    atomic_write_json(kept, asdict(cell))
    return cell


def checkpoint(name: str, work: Path) -> Path:
    """Return the directory of a tiny instance, saved once."""
    folder = work / f"checkpoint-{name}"
    if not folder.is_dir():
        mk.save(make_tiny(name), folder)
        write_byte_tokenizer(folder)
    return folder


def table(done: list[Cell], names: list[str]) -> list[str]:
    """Return the table in Markdown, a row a class and format, a column a precision."""
    precisions = ["fp32", "fp16", "int8", "int4"]
    lines = [f"| class | format | {' | '.join(precisions)} |", "| --- " * (2 + 4) + "|"]
    for name in names:
        title = f"`{type(make_tiny(name)).__name__}`"
        variant = name.partition("-")[2]
        title += f" ({variant})" if variant else ""
        for target, suffix in FORMATS.items():
            row = {c.precision: c.shown() for c in done if (c.model, c.target) == (name, target)}
            shown = " | ".join(row.get(precision, "–") for precision in precisions)
            lines.append(f"| {title} | `{suffix}` | {shown} |")
    return lines


def main() -> None:
    """Try what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="*", default=list(TINY_MODELS), help="names of classes")
    parser.add_argument("--work", type=Path, default=Path("runs/support"), help="kept cells")
    args = parser.parse_args()
    names = [name for name in args.only if family_of(make_tiny(name))]
    args.work.mkdir(parents=True, exist_ok=True)
    wanted, done = cells(names), []
    with console.progress(len(wanted), "support table") as bar:
        for cell in wanted:
            done.append(try_cell(*cell, args.work))
            bar.advance(1, note=" ".join(cell))
    for line in table(done, names):
        console.emit(line)


if __name__ == "__main__":
    main()
