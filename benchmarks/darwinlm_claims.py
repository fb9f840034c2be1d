"""Do DarwinLM's claims hold on models that this machine can train? As it comes out.

Byte-level Llama models (6 layers, 8 query heads on 4 key-value heads, 1.5 M parameters) are trained
on Python sources. Half of the heads and channels is then removed by every variant; the held-out
divergence from the dense model and the held-out loss are taken at once, and after the same short
recovery training of every model. Seeds are 1, 2, 3, … in order; none is left out.

The claims: (i) repair by OBS is far better than magnitude at the same levels; (ii) evolution is
closer to the dense model than the uniform start, on held-out text; (iii) evolution is not worse
than as many random allocations, nor than the allocation by layer errors; (iv) fine-tuning
candidates before they are compared makes the recovered model better.

Models, databases, searches and cells are kept under ``--work``, and a later call goes on.

    python benchmarks/darwinlm_claims.py --work runs/darwinlm
    python benchmarks/darwinlm_claims.py --work runs/darwinlm --seeds 1 --markdown claims.md
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from aimer_claims import check_work, kept_result
from claims import subjects
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mobilekit as mk
from mobilekit.compress.darwinlm.fitness import Teacher
from mobilekit.core import console
from mobilekit.core.files import atomic_write, atomic_write_json
from mobilekit.train.heldout import heldout_loss
from mobilekit.train.loop import LoopSettings, run_loop

VARIANTS = (
    "uniform_magnitude",
    "uniform_wanda",
    "uniform",
    "zip_dp",
    "random",
    "evopress",
    "darwin",
    "evopress from zip_dp",
)
SCORES = {"uniform_wanda": "wanda", "uniform_magnitude": "magnitude"}
SEQUENCE, BATCH = 128, 16
HELDOUT_WINDOWS = 128
CALIBRATION_WINDOWS = 256  # 32,768 tokens
RECOVERY_STEPS = 200
_MODEL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2 * SEQUENCE,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SEARCH: dict[str, Any] = {
    "levels": 9,
    "channel_multiple": 16,
    "offspring": 8,
    "survivors": [4, 2, 1],
    "fitness_tokens": [2048, 4096, 8192],
    "finetune_tokens": [4096, 8192, 16384],
}


def windows(count: int, generator: torch.Generator) -> Tensor:
    """Return random windows of the training part of the Python sources, shape (count, S)."""
    text = subjects.texts()["python"].training
    starts = torch.randint(len(text) - SEQUENCE + 1, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(SEQUENCE)].long()


def heldout() -> Tensor:
    """Return windows spread evenly over the held-out files, shape (N, S)."""
    text = subjects.texts()["python"].heldout
    whole = text[: len(text) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)
    return whole[torch.arange(HELDOUT_WINDOWS) * len(whole) // HELDOUT_WINDOWS].long()


def train(model: Any, steps: int, rate: float, seed: int, name: str, state: Path | None) -> None:
    """Train a model on the sources, in place; the same seed sees the same windows."""

    def loss(step: int, generator: torch.Generator) -> Tensor:
        ids = windows(BATCH, generator)
        found: Tensor = model(input_ids=ids, labels=ids).loss
        return found

    settings = LoopSettings(
        steps=steps,
        learning_rate=rate,
        seed=seed,
        warmup_steps=min(50, steps // 10),
        final_learning_rate=0.05,
        checkpoint_every=100 if state is not None else 0,
    )
    run_loop(model, loss, settings, description=name, state_path=state)
    model.eval()


def trained(folder: Path, seed: int, steps: int) -> nn.Module:
    """Return the dense model of a seed."""
    if not (folder / "model").is_dir():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**_MODEL))
        state = folder / "training.safetensors"
        train(model, steps, 2e-3, seed, f"training, seed {seed}", state)
        mk.save(model, folder / "model")
    return mk.load(folder / "model", device="cpu")


def measured(model: nn.Module, teacher: Teacher) -> dict[str, float]:
    """Return the held-out divergence from the dense model, and the held-out loss, nats a byte."""
    return {
        "kl": teacher.divergence(model),
        "loss": heldout_loss(model, teacher.rows, batch_size=BATCH),
    }


def settings_of(variant: str, generations: int) -> dict[str, Any]:
    """Return the settings that a variant has."""
    name, _, start = variant.partition(" from ")
    found = {"variant": name, **{k: _SEARCH[k] for k in ("levels", "channel_multiple")}}
    if name in ("random", "evopress", "darwin"):
        found |= dict(_SEARCH, generations=generations, start=start or "uniform")
    if name != "darwin":
        found.pop("finetune_tokens", None)
    return found


def cell(
    dense: nn.Module, teacher: Teacher, folder: Path, variant: str, seed: int, given: Any
) -> dict[str, Any]:
    """Prune by a variant, measure, recover, measure again."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    data = list(windows(CALIBRATION_WINDOWS, generator).split(BATCH))
    score = SCORES.get(variant, "obs")
    plan = mk.plan(
        dense,
        "darwinlm",
        data=data,
        workdir=folder / "database" / score,
        sparsity=given.sparsity,
        seed=seed,
        **settings_of(variant, given.generations),
    )
    model = mk.apply(dense, plan)
    once = measured(model, teacher)
    train(model, RECOVERY_STEPS, 3e-4, 20_000 + seed, f"recovery of {variant}", None)
    return {
        "once": once,
        "recovered": measured(model, teacher),
        "parameters": sum(p.numel() for p in model.parameters()),
        "levels": [[row["layer"], row["unit"], row["level"]] for row in plan.scores["layers"]],
        "generations": plan.scores.get("search", {}).get("generations", []),
    }


def run_seed(seed: int, given: Any) -> dict[str, Any]:
    """Train one model and measure all its cells; what is done is read."""
    folder = given.work / f"seed-{seed}"
    dense = trained(folder, seed, given.steps)
    teacher = Teacher(dense, heldout())
    found: dict[str, Any] = {}
    with console.progress(len(VARIANTS), f"variants of seed {seed}", announce=True) as bar:
        for variant in VARIANTS:
            path = folder / "cells" / f"{given.sparsity:g}-{variant}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            found[variant] = kept_result(
                path, partial(cell, dense, teacher, folder, variant, seed, given)
            )
            bar.advance(1, note=variant)
    base = kept_result(folder / "dense.json", lambda: measured(dense, teacher))
    return {"seed": seed, "dense": base, "cells": found}


def page(runs: list[dict[str, Any]], given: Any) -> str:
    """Return the table and what the claims come to, as Markdown."""
    seeds = ", ".join(str(run["seed"]) for run in runs)
    dense = statistics.fmean(run["dense"]["loss"] for run in runs)
    lines = [
        f"{given.sparsity:.0%} of heads and channels removed; mean ± standard deviation over seeds "
        f"{seeds}; dense loss {dense:.3f} nats a byte; recovery: {RECOVERY_STEPS} steps.",
        "",
        "| variant | KL | loss | KL after recovery | loss after recovery |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        cells = [
            _spread([run["cells"][variant][when][what] for run in runs])
            for when in ("once", "recovered")
            for what in ("kl", "loss")
        ]
        lines.append(f"| {' | '.join([variant, *cells])} |")
    return "\n".join([*lines, "", *claims(runs)])


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def claims(runs: list[dict[str, Any]]) -> list[str]:
    """Return how often each claim held, pair by pair of the same seed, and by how much."""
    pairs = [
        ("(i) KL of uniform / uniform_magnitude", "uniform", "uniform_magnitude", "once", "kl"),
        ("(ii) KL of evopress / uniform", "evopress", "uniform", "once", "kl"),
        ("(iii) KL of evopress / random", "evopress", "random", "once", "kl"),
        ("(iii) KL of evopress / zip_dp", "evopress", "zip_dp", "once", "kl"),
        ("KL of evopress from zip_dp / zip_dp", "evopress from zip_dp", "zip_dp", "once", "kl"),
        ("(iv) KL of darwin / evopress", "darwin", "evopress", "recovered", "kl"),
        ("(iv) loss of darwin / evopress", "darwin", "evopress", "recovered", "loss"),
    ]
    lines = []
    for name, first, second, when, what in pairs:
        ratios = [
            run["cells"][first][when][what] / run["cells"][second][when][what] for run in runs
        ]
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        lower = sum(ratio < 1 for ratio in ratios)
        after = " after recovery" if when == "recovered" else ""
        lines.append(f"* {name}{after}: {shown} (lower in {lower} of {len(ratios)})")
    return lines


def main() -> None:
    """Run what is left of the experiment, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/darwinlm_claims"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1_200)
    parser.add_argument("--generations", type=int, default=15)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--json", type=Path, help="Write all figures here.")
    parser.add_argument("--markdown", type=Path, help="Write the table here as well.")
    given = parser.parse_args()
    found = {
        "steps": given.steps,
        "generations": given.generations,
        "model": _MODEL,
        "search": _SEARCH,
        "texts": subjects.texts_sha256(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    check_work(given.work, found)
    runs = [run_seed(seed, given) for seed in given.seeds]
    text = page(runs, given)
    if given.json is not None:
        atomic_write_json(given.json, {"settings": found, "runs": runs})
    if given.markdown is not None:
        atomic_write(given.markdown, text + "\n")
    console.emit(text)


if __name__ == "__main__":
    main()
