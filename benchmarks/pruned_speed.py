"""Are pruned artifacts smaller and faster on this host? A Qwen3 of real widths, random weights.

A dense model (hidden size 1024, 8 layers) and its DarwinLM prunings at several shares, levels
uneven over the layers, are exported and timed by the profiler: file size, prefill and decode speed,
as ratios to the dense model's artifact of the same format and precision. Weights are random, so
nothing is said of quality.

Bundles and timings are kept under ``--work``; a later call goes on. Time on an idle machine.

    python benchmarks/pruned_speed.py --work runs/pruned --json pruned.json
    python benchmarks/pruned_speed.py --targets onnx --precisions int4 --sparsities 0 0.5
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import mobilekit as mk
from mobilekit.core import console
from mobilekit.core.files import atomic_write, atomic_write_json
from mobilekit.models import describe
from mobilekit.models.tiny import write_byte_tokenizer
from mobilekit.schema.bundle import open_bundle
from mobilekit.schema.plan import KeepEdit

CONTEXT, PROMPT, NEW_TOKENS = 512, 128, 64
_MODEL: dict[str, Any] = {
    "vocab_size": 32_768,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def dense(folder: Path) -> Path:
    """Make the dense checkpoint."""
    path = folder / "dense"
    if not path.is_dir():
        torch.manual_seed(0)
        mk.save(Qwen3ForCausalLM(Qwen3Config(**_MODEL)).eval(), path)
        write_byte_tokenizer(path)
    return path


def pruned(source: Path, folder: Path, sparsity: float) -> Path:
    """Remove a share of heads and channels: more in the middle than at both ends.

    Which ones go does not matter for speed, and weights are random: the first stay.
    """
    path = folder / f"pruned-{sparsity:g}"
    if not path.is_dir():
        model: Any = mk.load(source, device="cpu")
        plan = mk.plan(model, "darwinlm", sparsity=0.0)
        result = mk.apply(model, plan.model_copy(update={"edits": tuple(edits(sparsity))}))
        mk.save(result, path, tokenizer_from=source)
    return path


def edits(sparsity: float) -> list[KeepEdit]:
    """Return what stays of every layer; over the depth the mean share removed is the sparsity."""
    layers, heads = _MODEL["num_hidden_layers"], _MODEL["num_attention_heads"]
    per_group = heads // _MODEL["num_key_value_heads"]
    width = _MODEL["intermediate_size"]
    found = []
    for layer in range(layers):
        depth = min(layer, layers - 1 - layer) / (layers / 2 - 1)  # 0 at the ends, 1 in the middle
        share = sparsity * (0.75 + 0.5 * depth)
        channels = round(width * (1 - share) / 64) * 64
        found.append(KeepEdit(unit="channel", layer=layer, indices=tuple(range(channels))))
        if round(share * per_group) >= 1:  # half of the heads of each group of two
            kept = tuple(head for head in range(heads) if head % per_group == 0)
            found.append(KeepEdit(unit="head", layer=layer, indices=kept))
    return found


def measured(checkpoint: Path, given: Any) -> list[dict[str, Any]]:
    """Export a checkpoint and time every artifact."""
    bundle = checkpoint.with_name(f"{checkpoint.name}-bundle")
    if not bundle.is_dir():
        mk.export.build(
            checkpoint,
            bundle,
            targets=given.targets,
            precisions=given.precisions,
            context_length=CONTEXT,
        )
    if given.export_only:
        return []
    found = []
    for item in open_bundle(bundle).manifest.artifacts:
        path = given.work / "timings" / f"{checkpoint.name}-{item.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            results = mk.profile.run(
                bundle,
                artifacts=[item.id],
                workloads=[f"pp{PROMPT}", f"tg{NEW_TOKENS}"],
                repetitions=given.repetitions,
                threads=given.threads,
            )
            atomic_write_json(path, [one.to_json() for one in results])
        prefill, decode = (one["metrics"] for one in json.loads(path.read_text()))
        found.append(
            {
                "artifact": item.id,
                "bytes": item.total_bytes,
                "parity": item.parity.passed,
                "ttft_ms": prefill["ttft_ms"]["median"],
                "tpot_ms": decode["tpot_ms"]["median"],
            }
        )
    return found


def table(found: dict[float, Any]) -> str:
    """Return one row an artifact: ratios to the dense one."""
    lines = [
        f"Prefill of {PROMPT} tokens and decoding of {NEW_TOKENS}; speeds and sizes are ratios to "
        "the dense artifact.",
        "",
        "| removed | artifact | parameters | file | prefill speed | decode speed |",
        "|---|---|---|---|---|---|",
    ]
    base = {row["artifact"]: row for row in found[0.0]["artifacts"]}
    for sparsity, entry in found.items():
        for row in entry["artifacts"]:
            first = base[row["artifact"]]
            cells = [
                f"{sparsity:.0%}",
                row["artifact"],
                f"{entry['parameters'] / 1e6:.1f} M",
                f"{row['bytes'] / 1e6:.1f} MB ({row['bytes'] / first['bytes']:.2f})",
                f"{first['ttft_ms'] / row['ttft_ms']:.2f}",
                f"{first['tpot_ms'] / row['tpot_ms']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Export and time what is left, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/pruned_speed"))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.25, 0.5])
    parser.add_argument("--targets", nargs="+", default=["onnx", "executorch"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int4"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export-only", action="store_true", help="time later, on an idle machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    source = dense(given.work)
    found: dict[float, Any] = {}
    for sparsity in sorted({0.0, *given.sparsities}):
        path = pruned(source, given.work, sparsity) if sparsity else source
        facts = describe(path)
        found[sparsity] = {"parameters": facts["parameters"], "artifacts": measured(path, given)}
    if given.export_only:
        return
    text = table(found)
    console.emit(text)
    if given.json is not None:
        atomic_write_json(given.json, {str(key): value for key, value in found.items()})
    if given.markdown is not None:
        atomic_write(given.markdown, text + "\n")


if __name__ == "__main__":
    main()
