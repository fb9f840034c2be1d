"""The tables of ``benchmarks/aimer_claims.py``, and the rank correlation in them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

CALIBRATED = ("frequency", "seer", "ean", "reap", "man", "msan")
WEIGHTS = ("aimer", "anti_aimer", "magnitude")
CRITERIA = (*WEIGHTS, "random", *CALIBRATED)
Run = dict[str, Any]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the rank correlation of two lists, equal values sharing a rank; None if one is flat.

    Source: Pearson's correlation of the ranks.
    """
    a, b = _ranks(first), _ranks(second)
    if len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(a, b)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    # an equal value's first and last place, counted from 1, in the middle of which it stands
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def losses(run: Run, criterion: str, ratio: str, calibration: str = "all") -> float:
    """Return the mean held-out loss of one criterion, over the seeds where it is ``random``."""
    found: Any = run["cells"][ratio][criterion]
    if criterion == "random":
        return statistics.fmean(found)
    return float(found[calibration] if criterion in CALIBRATED else found)


def cells_table(runs: Sequence[Run]) -> str:
    """Return one row a seed and ratio: the mean held-out loss of every criterion."""
    calibrated = [f"{name} / 1-dom" for name in CALIBRATED]
    rows = [["seed", "removed", "dense", *WEIGHTS, "random (mean ± sd)", *calibrated]]
    for run in runs:
        for ratio in run["cells"]:
            drawn = run["cells"][ratio]["random"]
            cells = [f"{losses(run, name, ratio):.3f}" for name in WEIGHTS]
            cells.append(f"{statistics.fmean(drawn):.3f} ± {statistics.stdev(drawn):.3f}")
            for name in CALIBRATED:
                both = [losses(run, name, ratio, which) for which in ("all", "one")]
                cells.append(" / ".join(f"{value:.3f}" for value in both))
            rows.append([str(run["seed"]), f"{float(ratio):.0%}", f"{run['dense']:.3f}", *cells])
    return _markdown(rows)


def summary_table(runs: Sequence[Run]) -> str:
    """Return one row a criterion: what it costs on average, and whom it beats how often."""
    ratios = list(runs[0]["cells"])
    cells = [(run, ratio) for run in runs for ratio in ratios]
    heads = [f"added loss at {float(ratio):.0%}" for ratio in ratios]
    rows = [["criterion", *heads, "better than random", "better than aimer"]]
    columns = [(name, "all") for name in CRITERIA] + [(name, "one") for name in CALIBRATED]
    for name, which in columns:
        added = [
            statistics.fmean(losses(run, name, ratio, which) - run["dense"] for run in runs)
            for ratio in ratios
        ]
        beats = []
        for other in ("random", "aimer"):
            won = sum(_less(run, ratio, name, which, other) for run, ratio in cells)
            beats.append("–" if name == other else f"{won}/{len(cells)}")
        label = name if which == "all" else f"{name}, one domain"
        rows.append([label, *(f"{value:.3f}" for value in added), *beats])
    return _markdown(rows)


def _less(run: Run, ratio: str, name: str, which: str, other: str) -> bool:
    return losses(run, name, ratio, which) < losses(run, other, ratio)


def scores_table(runs: Sequence[Run]) -> str:
    """Return one row a seed and layer: how far scores spread, and how they rank experts."""
    rows = [
        [
            "seed",
            "layer",
            "AIMER scores",
            "tokens an expert gets, of the even share",
            "ρ(−A, frequency)",
            "ρ(magnitude, frequency)",
        ]
    ]
    for run in runs:
        for layer in run["layers"]:
            low, high = min(layer["aimer"]), max(layer["aimer"])
            counts = layer["frequency"]
            even = statistics.fmean(counts)
            against = [
                spearman([-score for score in layer["aimer"]], counts),
                spearman(layer["magnitude"], counts),
            ]
            rows.append(
                [
                    str(run["seed"]),
                    str(layer["layer"]),
                    f"{low:.4f} to {high:.4f}",
                    f"{min(counts) / even:.2f} to {max(counts) / even:.2f}",
                    *("–" if value is None else f"{value:+.2f}" for value in against),
                ]
            )
    return _markdown(rows)


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
