"""The ladder as a table, and whether accuracy falls along it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from mobilekit.metrics.intervals import mcnemar_exact

PRECISIONS = ("fp32", "int8", "int4")
ALPHA = 0.05
BUSY = 0.10  # of all CPUs' time, as in the report


def summary(variants: list[dict[str, Any]]) -> dict[str, Any]:
    """Return every step down a ladder: its change, and the exact McNemar test on it.

    A step goes to the next sparsity at one precision, or to the next precision at one sparsity.
    """
    steps = [_step(old, new) for old, new in _neighbours(variants)]
    rises = [step for step in steps if step["change"] > 0]
    return {
        "steps": steps,
        "falls": sum(step["change"] < 0 for step in steps),
        "rises": len(rises),
        "rises_beyond_chance": sum(step["p"] < ALPHA for step in rises),
        "falls_beyond_chance": sum(s["p"] < ALPHA for s in steps if s["change"] < 0),
        "spearman": {
            f"seed {seed}, {precision}": _spearman(line)
            for (seed, precision), line in _lines(variants).items()
        },
    }


def _lines(variants: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    lines: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for one in sorted(variants, key=lambda one: one["sparsity"]):
        lines[one["seed"], one["precision"]].append(one)
    return lines


def _neighbours(variants: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    pairs = []
    lines = _lines(variants)
    for line in lines.values():
        pairs += list(zip(line, line[1:], strict=False))
    for (seed, precision), line in lines.items():
        place = PRECISIONS.index(precision)
        finer = lines.get((seed, PRECISIONS[place - 1])) if place else None
        pairs += list(zip(finer, line, strict=True)) if finer else []
    return pairs


def _step(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    first, second = set(old["correct_ids"]), set(new["correct_ids"])
    ends = [{key: one[key] for key in ("sparsity", "precision")} for one in (old, new)]
    return {
        "seed": old["seed"],
        "from": ends[0],
        "to": ends[1],
        "change": new["accuracy"] - old["accuracy"],
        "p": mcnemar_exact(len(first - second), len(second - first)),
    }


def _spearman(line: list[dict[str, Any]]) -> float:
    """Return the rank correlation of sparsity and accuracy; -1 is strictly falling."""
    sparsities = [one["sparsity"] for one in line]
    accuracies = [one["accuracy"] for one in line]
    return statistics.correlation(_ranks(sparsities), _ranks(accuracies))


def _ranks(values: list[float]) -> list[float]:
    """Return ranks from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


def markdown(found: dict[str, Any]) -> str:
    """Return the table for people, and what became of the expectation."""
    seeds = found["seeds"]
    head = [
        *("experts a layer", "precision", "file MB"),
        *(f"right, seed {seed} (95 % interval)" for seed in seeds),
        *(["mean"] if len(seeds) > 1 else []),
        *("prefill ms", "decode ms/token", "memory MB"),
    ]
    grouped: dict[tuple[float, str], list[dict[str, Any]]] = defaultdict(list)
    for one in found["variants"]:
        grouped[one["sparsity"], one["precision"]].append(one)
    lines = [_row(head), _row(["---:" if i != 1 else "---" for i in range(len(head))])]
    lines += [_row(_cells(group, len(seeds) > 1)) for group in grouped.values()]
    said = [_verdict(found["summary"]), _measure(found), *busy_sentence(found)]
    return "\n".join([*lines, "", *said])


def _measure(found: dict[str, Any]) -> str:
    return (
        f"Chance is 25 %; who knows every fact and reads no option is right in "
        f"{found['blind_share']:.0%}."
    )


def busy_sentence(found: dict[str, Any]) -> list[str]:
    """Return what other work did while latencies were taken, nothing where it was under 10 %."""
    records = [record for one in found["variants"] for record in one["busy"] if record]
    shares = [r["cpu_share"] for r in records if r["cpu_share"] is not None]
    worst = max(shares, default=0.0)
    if worst - max((r["resolution"] for r in records if r["resolution"]), default=0.0) <= BUSY:
        return []
    median = statistics.median(shares)
    return [
        f"Latencies are those of a busy machine: other work used {median:.0%} of the CPUs in the "
        f"median run, {worst:.0%} at most."
    ]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(group: list[dict[str, Any]], several: bool) -> list[str]:
    first = group[0]
    shares = [
        f"{one['accuracy']:.1%} ({one['interval'][0]:.1%} to {one['interval'][1]:.1%})"
        for one in group
    ]
    mean = [f"{statistics.fmean(one['accuracy'] for one in group):.1%}"] if several else []
    times = [
        statistics.median(one[key]["p50"] for one in group) for key in ("prefill_ms", "decode_ms")
    ]
    added = statistics.median(
        one["memory"]["peak_bytes"] - one["memory"]["baseline_bytes"] for one in group
    )
    return [
        f"{first['experts']} of 16",
        first["precision"],
        f"{first['bytes'] / 1e6:.2f}",
        *shares,
        *mean,
        *(f"{value:.3g}" for value in times),
        f"{added / 1e6:.1f}",
    ]


def _verdict(found: dict[str, Any]) -> str:
    return (
        f"Of {len(found['steps'])} steps down the ladder accuracy fell on {found['falls']} "
        f"({found['falls_beyond_chance']} beyond chance, exact McNemar p < {ALPHA:g}, not "
        f"corrected) and rose on {found['rises']} ({found['rises_beyond_chance']} beyond chance)."
    )
