"""How fast is the database of a layer made, and what does shrinking candidates give?

The database of one MLP layer: rows × columns with random correlated inputs, at every level, by the
blocked and shrinking algorithm and by the plain one (one column at a time, both matrices written
in full at each step), in the same run, results compared. Then candidates of a search a minute:
physically smaller, against zeros in the dense model.

    python benchmarks/obs_database.py --json obs.json
    python benchmarks/obs_database.py --rows 256 --columns 1024      # a quick look
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mobilekit as mk
from mobilekit.compress.darwinlm.fitness import Teacher
from mobilekit.compress.obs import Removal, inverse, remove_units
from mobilekit.compress.obs.hessian import working_dtype
from mobilekit.core import console
from mobilekit.core.files import atomic_write, atomic_write_json
from mobilekit.train.finetune import finetune

LEVELS = 11


def layer(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a random weight and the second-order matrix of correlated inputs, float32."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    samples = 2 * columns
    hidden = torch.randn(samples, columns // 4, generator=generator)
    inputs = hidden @ torch.randn(columns // 4, columns, generator=generator) / columns**0.5
    inputs += 0.1 * torch.randn(samples, columns, generator=generator)
    return weight, (inputs.T @ inputs).double() * (2.0 / samples)


def plain(
    weight: Tensor, hessian: Tensor, removed: list[int], dtype: torch.dtype
) -> tuple[list[int], dict[int, Tensor]]:
    """Remove one column at a time, as the equations stand; return the order and the snapshots."""
    matrix, inverted = inverse(hessian, 1e-2, "the layer")
    work, inv = weight.to(dtype), inverted.to(dtype)
    alive = torch.ones(weight.shape[1], dtype=torch.bool)
    order: list[int] = []
    found: dict[int, Tensor] = {}
    last = max(count for count in removed if count < weight.shape[1])
    with console.progress(last, "plain algorithm", announce=True) as bar:
        for _ in range(last):
            scores = work.square().sum(0) / inv.diagonal()
            j = int(torch.where(alive, scores, torch.inf).argmin())
            pivot, row = inv[j, j].clone(), inv[j].clone()
            work.addr_(work[:, j] / pivot, row, alpha=-1)
            inv.addr_(row / pivot, row, alpha=-1)
            work[:, j] = 0.0
            inv[j], inv[:, j], inv[j, j] = 0.0, 0.0, 1.0
            alive[j] = False
            order.append(j)
            if len(order) in removed:
                found[len(order)] = work.clone()
            bar.advance(1)
    return order, found


def compared(
    ours: Removal, removed: list[int], order: list[int], snapshots: dict[int, Tensor]
) -> dict[str, Any]:
    """Return how far the two results are apart."""
    worst = 0.0
    for level, count in zip(ours.levels, removed, strict=True):
        if level.weight is not None:
            expected = snapshots[count][:, list(level.kept)]
            change = (level.weight - expected).abs().max() / expected.abs().max()
            worst = max(worst, float(change))
    length = len(order)
    return {"same_order": list(ours.order[:length]) == order, "max_relative_difference": worst}


def measure_layer(rows: int, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    """Time both ways on one layer; the plain way works in ``dtype``, the faster for it."""
    weight, hessian = layer(rows, columns)
    removed = [round(k * columns / (LEVELS - 1) / 32) * 32 for k in range(LEVELS)]
    removed[-1] = columns
    before = peak_bytes()
    start = time.perf_counter()
    ours = remove_units(weight, hessian.to(dtype), width=1, removed=removed)
    own_seconds = time.perf_counter() - start
    own_peak = peak_bytes() - before
    start = time.perf_counter()
    order, snapshots = plain(weight, hessian.to(dtype), removed, dtype)
    plain_seconds = time.perf_counter() - start
    return {
        "rows": rows,
        "columns": columns,
        "dtype": str(dtype).removeprefix("torch."),
        "levels": LEVELS,
        "seconds": own_seconds,
        "plain_seconds": plain_seconds,
        "ratio": plain_seconds / own_seconds,
        "peak_bytes_above_start": own_peak,
        **compared(ours, removed, order, snapshots),
    }


def measure_candidates(rounds: int) -> dict[str, Any]:
    """Time a candidate at 50 %, fine-tuned and compared: smaller, and with zeros instead."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    rows = torch.randint(1, 4096, (32, 128))
    with tempfile.TemporaryDirectory() as name:
        plan = mk.plan(
            model,
            "darwinlm",
            data=[rows],
            workdir=Path(name),
            variant="uniform_magnitude",
            levels=3,
        )
        small = mk.apply(model, plan)
    teacher = Teacher(model, rows[:8])
    seconds: dict[str, list[float]] = {"smaller": [], "zeros": []}
    for _ in range(rounds):
        for way, source in (("smaller", small), ("zeros", model)):
            start = time.perf_counter()
            candidate = copy.deepcopy(source).requires_grad_(True)
            finetune(candidate, list(rows[:16, None]), 1e-5)
            teacher.divergence(candidate.eval())
            seconds[way].append(time.perf_counter() - start)
    minutes = {way: 60 / statistics.median(values) for way, values in seconds.items()}
    return {
        "parameters": {"dense": _count(model), "smaller": _count(small)},
        "tokens": {"finetune": rows[:16].numel(), "fitness": rows[:8].numel()},
        "a_minute": minutes,
        "ratio": minutes["smaller"] / minutes["zeros"],
    }


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def markdown(found: dict[str, Any]) -> str:
    """Return what was found as tables."""
    lines = [
        f"{found['threads']} threads.",
        "",
        "| layer | dtype | plain, s | ours, s | ratio | order | largest difference | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["layers"]:
        cells = [
            f"{row['rows']} × {row['columns']}",
            row["dtype"],
            f"{row['plain_seconds']:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.1f}",
            "the same" if row["same_order"] else "another",
            f"{row['max_relative_difference']:.1e}",
            f"{row['peak_bytes_above_start'] / 1e6:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rate = found["candidates"]
    sizes = {name: f"{value / 1e6:.1f} M" for name, value in rate["parameters"].items()}
    return "\n".join(
        [
            *lines,
            "",
            f"Candidates a minute, {rate['tokens']['finetune']} tokens of fine-tuning and "
            f"{rate['tokens']['fitness']} of comparison: {rate['a_minute']['smaller']:.1f} at "
            f"{sizes['smaller']} parameters, {rate['a_minute']['zeros']:.1f} with zeros in the "
            f"dense {sizes['dense']}: {rate['ratio']:.2f} times as many.",
        ]
    )


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--dtypes", nargs="+", help="of the matrices; as in use where not given")
    parser.add_argument("--rounds", type=int, default=5, help="of candidates")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    names = given.dtypes or [str(working_dtype(given.columns)).removeprefix("torch.")]
    found = {
        "threads": torch.get_num_threads(),
        "layers": [
            measure_layer(given.rows, given.columns, getattr(torch, name)) for name in names
        ],
        "candidates": measure_candidates(given.rounds),
    }
    text = markdown(found)
    console.emit(text)
    if given.markdown:
        atomic_write(given.markdown, text + "\n")
    if given.json:
        atomic_write_json(given.json, found)


if __name__ == "__main__":
    main()
