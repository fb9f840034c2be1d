"""How fast are experts scored: in memory, from disk, on a GPU?

In memory: the kernels of AIMER against the time that reading the same tensor takes in the same
round, beside two library norms and a loop over experts. From disk: `plan` on a random checkpoint
of Qwen3-30B-A3B's layers, made here and deleted in the end, against reading its files from the same
cold cache, and the anonymous memory meanwhile. On a GPU: seconds at Qwen3-30B-A3B's shapes.

    python benchmarks/aimer_scoring.py --json out.json --markdown out.md
    python benchmarks/aimer_scoring.py --part memory --rounds 20
    python benchmarks/aimer_scoring.py --part disk --gigabytes 8 --folder /somewhere/with/space
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from scoring.disk import measure, write_checkpoint
from scoring.memory import as_rows, gpu, speeds

from mobilekit.core import console
from mobilekit.core.files import atomic_write, atomic_write_json

PARTS = ("memory", "disk", "gpu")


def main() -> None:
    """Measure what was asked for, and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=15, help="in memory; from disk a fifth of it")
    parser.add_argument("--fused", action="store_true", help="torch.compile's pass too")
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg()[0],
    }
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        os.environ["MOBILEKIT_CACHE"] = str(folder / "cache")
        for part in given.part or PARTS:
            found[part] = _measured(part, folder, given)
    found["load_average_after"] = os.getloadavg()[0]
    text = markdown(found)
    console.emit(text)
    if given.markdown:
        atomic_write(given.markdown, text + "\n")
    if given.json:
        atomic_write_json(given.json, found)


def _measured(part: str, folder: Path, given: argparse.Namespace) -> Any:
    if part == "memory":
        dtypes = [torch.bfloat16, torch.float16, torch.float32]
        return as_rows(speeds(dtypes, given.rounds, fused=given.fused))
    if part == "gpu":
        return gpu()
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    write_checkpoint(checkpoint, given.gigabytes)
    return measure(checkpoint, folder / "out", max(1, given.rounds // 5))


def markdown(found: dict[str, Any]) -> str:
    """Return what was found as tables."""
    load = f"{found['load_average_before']:.1f} to {found['load_average_after']:.1f}"
    lines = [
        f"{found['threads']} threads; load average {load} (an idle machine begins near 0).",
        "",
    ]
    for part, write in (("memory", _memory), ("disk", _disk), ("gpu", _gpu)):
        if part in found:
            lines += [*write(found[part]), ""]
    return "\n".join(lines).rstrip()


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| dtype | way | GB/s | of reading | s per 10^9 weights |", "|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row['gb_per_s']:.2f} | {row['of_reading']:.2f} | {row['s_per_1e9']:.3f}"
        lines.append(f"| {row['dtype']} | {row['way']} | {figures} |")
    return lines


def _disk(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['bytes'] / 1e9:.1f} GB in {found['shards']} shards, cold cache, medians of "
        f"{found['rounds']}.",
        "",
        "| what | s | GB/s |",
        "|---|---|---|",
    ]
    for name, seconds in found["median_seconds"].items():
        lines.append(f"| {name} | {seconds:.2f} | {found['gb_per_s'][name]:.2f} |")
    cut = found["compress"]
    return [
        *lines,
        "",
        f"plan / fastest read: {found['plan_over_fastest_read']:.2f}; anonymous memory of plan: "
        f"{found['anonymous_bytes'] / 1e6:.0f} MB above the start. compress wrote "
        f"{cut['written_bytes'] / 1e9:.1f} GB in {cut['seconds']:.1f} s, anonymous memory "
        f"{cut['anonymous_bytes'] / 1e6:.0f} MB.",
    ]


def _gpu(found: dict[str, Any]) -> list[str]:
    if found["seconds"] is None:
        return [f"GPU: null ({found['reason']})."]
    times = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in found["seconds"].items())
    published = f"published: {found['published_seconds']} s, on its authors' GPU"
    return [f"GPU ({found['device']}), Qwen3-30B-A3B's experts: {times} ({published})."]


if __name__ == "__main__":
    main()
