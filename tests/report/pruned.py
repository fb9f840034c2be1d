"""An invented DarwinLM plan, in the form of the schema: no such model was pruned."""

from __future__ import annotations

import random
from typing import Any

HEADS, CHANNELS, GENERATIONS, STEPS = 16, 1024, 60, 10


def darwin_plan(layers: int = 8, generations: int = GENERATIONS, **scores: Any) -> dict[str, Any]:
    """A plan whose layers 1 and 2 lost their attention, and 3 its MLP, where there are as many.

    Args:
        layers: How many layers there are.
        generations: How many generations the search took; 0 leaves the search out.
        scores: Replaces keys of the scores.
    """
    rng = random.Random(11)
    heads = [round(HEADS * step / STEPS) for step in range(STEPS + 1)]
    channels = [round(CHANNELS * step / STEPS / 32) * 32 for step in range(STEPS)] + [CHANNELS]
    rows: list[dict[str, Any]] = []
    edits: list[dict[str, Any]] = []
    for layer in range(layers):
        for unit, block, grid in (("head", "attention", heads), ("channel", "mlp", channels)):
            whole = layer in ((1, 2) if unit == "head" else (3,))
            level = STEPS if whole else rng.randrange(2, 8)
            if layer == 0 and unit == "head":
                level = 0
            total = grid[-1]
            kept, steep = total - grid[level], rng.uniform(1.5, 4.0)
            errors = [(gone / total) ** steep for gone in grid]
            rows.append({"layer": layer, "unit": unit, "level": level, "kept": kept, "of": total})
            rows[-1]["errors"] = errors
            if whole:
                edits.append({"op": "remove", "unit": block, "layer": layer})
            elif level:
                indices = sorted(rng.sample(range(total), kept))
                edits.append({"op": "keep", "unit": unit, "layer": layer, "indices": indices})
    found: dict[str, Any] = {
        "layers": rows,
        "levels": {"head": [gone * 64 for gone in heads], "channel": channels},
        "cost": "parameters",
        "skipped": ["layer 9 keeps its 2 head: there is no other level"],
        "calibration": {"name": "embedded", "sha256": "5e" * 32, "tokens": 65_536},
    }
    if generations:
        found["search"] = {"generations": [_generation(g, rng) for g in range(generations)]}
    return {
        "schema": "mobilekit.plan/1",
        "method": "darwinlm",
        "method_version": 1,
        "config": {"variant": "darwin", "sparsity": 0.5},
        "seed": 0,
        "parent": "sha256:" + "0a1b" * 16,
        "edits": edits,
        "scores": {**found, **scores},
        "summary": {
            "parameters_before": 40_000_000,
            "parameters_after": 25_000_000,
            "active_parameters_before": 40_000_000,
            "active_parameters_after": 25_000_000,
            "routed_experts_before": None,
            "routed_experts_after": None,
            "routed_experts_original": None,
            "parameters_removed_of_original": 0.375,
        },
        "warnings": [],
    }


def _generation(number: int, rng: random.Random) -> dict[str, Any]:
    parent = (0.08 + 2.4 * 0.93**number) * rng.uniform(0.9, 1.1)
    best = parent * rng.choice([1.0, rng.uniform(0.9, 0.99)])
    tokens = {"train": 1_560_000, "fitness": 74_000}
    return {
        "generation": number,
        "fitness": best,
        "parent": parent,
        "tokens": tokens,
        "seconds": 31.5,
    }
