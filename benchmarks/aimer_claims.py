"""Do AIMER's claims about quality hold on models that this machine can train? As it comes out.

Byte-level Qwen3-MoE models (3 layers, 16 experts, top-2) are trained on Python sources, C++ headers
and prose. Experts are then removed by every criterion, without recovery, and the held-out loss of
the three domains is compared: by AIMER, by its score upside down, by magnitude, at random, and by
the calibrated criteria, which look at text of all domains or of one. Seeds are 1, 2, 3, … in
order; none is left out.

Trained models and cells are kept under ``--work``, and a later call goes on.

    python benchmarks/aimer_claims.py --work runs/claims
    python benchmarks/aimer_claims.py --work runs/claims --seeds 1 --markdown claims.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from claims import subjects, tables
from torch import nn

import mobilekit as mk
from mobilekit.compress.aimer.selection import choose_in_parts
from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import atomic_write, atomic_write_json, read_json
from mobilekit.schema.plan import KeepEdit, Plan
from mobilekit.train.heldout import heldout_loss

RATIOS = ("0.25", "0.5", "0.75")
RANDOM_SEEDS = range(8)
CALIBRATION_SEED = 1_000  # a stream of its own: not the windows that a model was trained on first


def settings(steps: int) -> dict[str, Any]:
    """Return what a cell depends on besides its name."""
    return {
        "steps": steps,
        "texts": subjects.texts_sha256(),
        "sequence": subjects.SEQUENCE,
        "batch": subjects.BATCH,
        "heldout_windows": subjects.HELDOUT_WINDOWS,
        "calibration_windows": subjects.CALIBRATION_WINDOWS,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def evaluate(model: nn.Module) -> dict[str, float]:
    """Return the held-out loss of each domain, nats a byte."""
    return {
        name: heldout_loss(
            model, text.heldout_windows(), batch_size=subjects.BATCH, description=f"loss on {name}"
        )
        for name, text in subjects.texts().items()
    }


def calibration(seed: int, which: str) -> torch.Tensor:
    """Return the windows that calibrated criteria look at, shape (N, S)."""
    domains = subjects.DOMAINS if which == "all" else (subjects.ONE_DOMAIN,)
    generator = torch.Generator().manual_seed(CALIBRATION_SEED + seed)
    return subjects.mixed_windows(subjects.CALIBRATION_WINDOWS, domains, generator)


def upside_down(plan: Plan) -> Plan:
    """Return AIMER's plan with the sign of its score turned."""
    edits = []
    for layer in plan.scores["layers"]:
        pruned = choose_in_parts([-score for score in layer["scores"]], len(layer["pruned"]))
        kept = [i for i in range(len(layer["scores"])) if i not in pruned]
        edits.append(KeepEdit(unit="expert", layer=layer["layer"], indices=tuple(kept)))
    return plan.model_copy(update={"edits": tuple(edits)})


def planned(model: nn.Module, criterion: str, ratio: str, which: str, seed: int) -> Plan:
    """Return the plan of a cell; ``which`` is the calibration set, or the seed of ``random``."""
    sparsity = float(ratio)
    if criterion == "anti_aimer":
        return upside_down(mk.plan(model, "aimer", sparsity=sparsity))
    if criterion == "random":
        return mk.plan(model, "aimer", variant="random", sparsity=sparsity, seed=int(which))
    data = calibration(seed, which) if criterion in tables.CALIBRATED else None
    return mk.plan(model, "aimer", variant=criterion, sparsity=sparsity, data=data)


def cells() -> Iterator[tuple[str, str, str]]:
    """Give every (ratio, criterion, calibration set or random seed)."""
    for ratio in RATIOS:
        for criterion in tables.CRITERIA:
            if criterion == "random":
                yield from ((ratio, criterion, str(seed)) for seed in RANDOM_SEEDS)
            elif criterion in tables.CALIBRATED:
                yield from ((ratio, criterion, which) for which in ("all", "one"))
            else:
                yield ratio, criterion, ""


def kept_result(path: Path, work: Callable[[], Any]) -> Any:
    """Return what a file holds, or do the work, without bars of its own, and keep its result."""
    if not path.is_file():
        console.configure(quiet=True)
        try:
            atomic_write_json(path, work())
        finally:
            console.configure()
    return read_json(path)


def measured_cell(
    model: nn.Module, seed: int, ratio: str, criterion: str, which: str
) -> dict[str, Any]:
    """Prune the model as a cell says, and measure what is left."""
    began = time.perf_counter()
    plan = planned(model, criterion, ratio, which, seed)
    seconds = time.perf_counter() - began
    kept = [list(edit.indices) for edit in plan.edits if isinstance(edit, KeepEdit)]
    by_domain = evaluate(mk.apply(model, plan))
    return {"losses": by_domain, "kept": kept, "seconds": seconds, "warnings": plan.warnings}


def layer_scores(model: nn.Module, seed: int) -> list[dict[str, Any]]:
    """Return each layer's scores by AIMER, by magnitude and by frequency."""
    found: list[dict[str, Any]] = []
    for criterion in ("aimer", "magnitude", "frequency"):
        plan = planned(model, criterion, RATIOS[0], "all", seed)
        for index, layer in enumerate(plan.scores["layers"]):
            if criterion == "aimer":
                found.append({"layer": layer["layer"]})
            found[index][criterion] = layer["scores"]
    return found


def run_seed(work: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train one model and measure all its cells; what is done is read."""
    folder = work / f"seed-{seed}"
    model = subjects.trained(folder, seed, steps)
    dense = kept_result(folder / "dense.json", lambda: evaluate(model))
    found: dict[str, Any] = {ratio: {} for ratio in RATIOS}
    planning: dict[str, list[float]] = {}
    todo = list(cells())
    with console.progress(len(todo), f"cells of seed {seed}", announce=True) as bar:
        for ratio, criterion, which in todo:
            path = folder / "cells" / f"{ratio}-{criterion}{which and '-'}{which}.json"
            work_left = partial(measured_cell, model, seed, ratio, criterion, which)
            cell = kept_result(path, work_left)
            _put(found[ratio], criterion, which, statistics.fmean(cell["losses"].values()))
            planning.setdefault(criterion, []).append(cell["seconds"])
            bar.advance(1, note=f"{criterion} {ratio}")
    return {
        "seed": seed,
        "dense": statistics.fmean(dense.values()),
        "dense_by_domain": dense,
        "cells": found,
        "layers": kept_result(folder / "layers.json", lambda: layer_scores(model, seed)),
        "planning_seconds": {name: statistics.median(took) for name, took in planning.items()},
    }


def _put(cells: dict[str, Any], criterion: str, which: str, loss: float) -> None:
    if criterion == "random":
        cells.setdefault(criterion, []).append(loss)
    elif which:
        cells.setdefault(criterion, {})[which] = loss
    else:
        cells[criterion] = loss


def check_work(work: Path, found: dict[str, Any]) -> None:
    """Refuse a folder of an experiment with other settings."""
    path = work / "settings.json"
    if path.is_file() and read_json(path) != found:
        raise UsageError(
            f"{work} holds cells of other settings, texts or versions",
            hint="Give another --work, or delete this one.",
        )
    atomic_write_json(path, found)


def page(runs: list[dict[str, Any]]) -> str:
    """Return the three tables as Markdown."""
    planning = {
        name: statistics.median(run["planning_seconds"][name] for run in runs)
        for name in ("aimer", "frequency", "reap")
    }
    tokens = subjects.CALIBRATION_WINDOWS * subjects.SEQUENCE
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in planning.items())
    return "\n".join(
        [
            "Mean held-out loss over three domains, nats a byte, no recovery; lower is better:\n",
            tables.cells_table(runs),
            "Mean over seeds; cells won are of seeds × ratios:\n",
            tables.summary_table(runs),
            "Scores of the trained models:\n",
            tables.scores_table(runs),
            f"Planning ({tokens} tokens where there is calibration), median: {took}.\n",
        ]
    )


def main() -> None:
    """Run what is left of the experiment, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/aimer_claims"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--json", type=Path, help="Write all figures here.")
    parser.add_argument("--markdown", type=Path, help="Write the tables here as well.")
    given = parser.parse_args()
    found = settings(given.steps)
    check_work(given.work, found)
    runs = [run_seed(given.work, seed, given.steps) for seed in given.seeds]
    if given.json is not None:
        atomic_write_json(given.json, {"settings": found, "runs": runs})
    if given.markdown is not None:
        atomic_write(given.markdown, page(runs))
    console.emit(page(runs))


if __name__ == "__main__":
    main()
