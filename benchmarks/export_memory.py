"""Is the memory of an export estimated well? Each worker's measured peak beside its estimate.

Exports the embedded model and random Qwen3 checkpoints of two sizes, one artifact at a time and
nothing from the cache, and prints estimated and measured peak resident sets of the worker and of
the process that starts it. The estimate should be at or above what was measured, by at most half.
Run it after a converter or a back end changed, and put what it shows into ``export/estimate.py``.

    python benchmarks/export_memory.py
    python benchmarks/export_memory.py --size embedded --target onnx --json out.json
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import mobilekit as mk
from mobilekit.core import console
from mobilekit.core.files import atomic_write_json
from mobilekit.core.memory import peak_rss_bytes, reset_peak_rss
from mobilekit.models import embedded_path

# name -> layers, hidden size, intermediate size, heads, KV heads, vocabulary; the head is tied
SHAPES = {
    "16m": (6, 384, 1024, 6, 2, 16384),
    "100m": (12, 768, 2048, 12, 4, 24576),
}
HEADERS = (
    *("model", "target", "precision", "context", "worker est.", "worker", "ratio"),
    *("parent est.", "parent", "file est.", "file"),
)


@dataclass(frozen=True)
class Row:
    """One artifact; bytes."""

    model: str
    target: str
    precision: str
    context_length: int
    worker_estimated: int
    worker_measured: int
    parent_estimated: int
    parent_measured: int
    file_estimated: int
    file_measured: int


def checkpoint(name: str, folder: Path) -> Path:
    """Return the embedded model, or write a random one of the given size."""
    if name == "embedded":
        return embedded_path()
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    layers, hidden, inner, heads, kv_heads, vocabulary = SHAPES[name]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_path() / file, folder / name / file)
    return folder / name


def measure(name: str, source: Path, target: str, precision: str, context: int, out: Path) -> Row:
    """Export one artifact and return what was estimated and measured."""
    plan = mk.export.plan_export(mk.export.facts_of(source), [target], [precision], context)
    reset_peak_rss()
    manifest = mk.export.build(
        source, out, targets=[target], precisions=[precision], context_length=context
    )
    (artifact,) = manifest.artifacts
    shutil.rmtree(out)
    ((_, _, need),) = plan.artifacts
    return Row(
        model=name,
        target=target,
        precision=precision,
        context_length=context,
        worker_estimated=need.memory_bytes,
        worker_measured=artifact.settings["lowering"]["worker_peak_rss_bytes"],
        parent_estimated=plan.need.own_bytes,
        parent_measured=peak_rss_bytes() or 0,
        file_estimated=need.disk_bytes["output"],
        file_measured=artifact.total_bytes,
    )


def main() -> None:
    """Measure what was asked for, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", action="append", choices=["embedded", *SHAPES])
    parser.add_argument("--target", action="append", choices=mk.export.TARGETS)
    parser.add_argument("--precision", action="append", choices=mk.export.PRECISIONS)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOBILEKIT_CACHE"] = str(Path(folder) / "cache")
        for name in given.size or ["embedded", *SHAPES]:
            source = checkpoint(name, Path(folder))
            for target in given.target or mk.export.TARGETS:
                for precision in given.precision or ("fp32", "int8"):
                    out = Path(folder) / "bundle"
                    rows.append(measure(name, source, target, precision, given.context_length, out))
    console.table(HEADERS, [cells(row) for row in rows])
    if given.json:
        atomic_write_json(given.json, [asdict(row) for row in rows])


def cells(row: Row) -> list[str]:
    """Return a row in MB."""
    pairs = [
        (row.worker_estimated, row.worker_measured),
        (row.parent_estimated, row.parent_measured),
        (row.file_estimated, row.file_measured),
    ]
    worker, parent, file = [[f"{a / 1e6:.1f}", f"{b / 1e6:.1f}"] for a, b in pairs]
    ratio = f"{row.worker_estimated / row.worker_measured:.2f}"
    named = [row.model, row.target, row.precision, str(row.context_length)]
    return [*named, *worker, ratio, *parent, *file]


if __name__ == "__main__":
    main()
