"""What was done to the model: steps, settings, seeds, experts, recovery, weight storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.manifest import Manifest
from mobilekit.schema.plan import KeepEdit, Plan
from mobilekit.schema.run import RunRecord, StepRecord

from .evidence import Evidence
from .levels import Levels, levels
from .lines import curve
from .maps import ExpertRow, heatmap
from .numbers import MISSING, finite, percent, seconds, significant, size
from .outcome import outcome
from .tables import Cell, Table, num, plain, table

_STEP_COLUMNS = (
    *("Step", "What it did", "Time", "Peak RSS, measured", "Peak RSS, estimated"),
    "Output",
)
_WORKER_COLUMNS = (
    *("Artifact", "Lowering took", "Peak RSS, measured", "Peak RSS, estimated"),
    "What the worker did",
)


@dataclass(frozen=True)
class MethodNote:
    """One applied plan: method, settings, seed, what it says of itself, what it warns of."""

    method: str
    settings: tuple[tuple[str, str], ...]
    summary: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    outcome: tuple[tuple[str, str], ...]
    heatmap: str | None
    criterion: str
    direction: str
    experts: Table | None
    levels: Levels | None


@dataclass(frozen=True)
class Changes:
    """What the section on changes shows."""

    steps: Table | None
    every_step: Table | None
    workers: Table | None
    methods: tuple[MethodNote, ...]
    recovery: tuple[tuple[str, str], ...]
    curve: str | None
    weights: Table | None


def changes(evidence: Evidence) -> Changes:
    """Return the tables, charts and sentences on what was done."""
    run = evidence.run
    record = run.recovery
    return Changes(
        steps=_steps(run)[0],
        every_step=_steps(run)[1],
        workers=_workers(evidence.manifest),
        methods=tuple(_method(plan) for plan in evidence.plans),
        recovery=_recovery(run),
        curve=curve(
            "Training loss over the steps of recovery training",
            record.curve,
            y_name="training loss",
            x_name="step",
        )
        if record is not None and record.curve
        else None,
        weights=weights_table(evidence.manifest),
    )


def _steps(run: RunRecord) -> tuple[Table | None, Table | None]:
    """Return the steps by name, and every single one where a name occurs more than once."""
    names = list(dict.fromkeys(step.name for step in run.steps))
    if not names:
        return None, None
    groups = [[step for step in run.steps if step.name == name] for name in names]
    short = table(_STEP_COLUMNS, [_step_row(group) for group in groups])
    if len(names) == len(run.steps):
        return short, None
    return short, table(_STEP_COLUMNS, [_step_row([step]) for step in run.steps])


def _step_row(group: Sequence[StepRecord]) -> list[Cell | str]:
    fresh = [step.seconds for step in group if not step.cached]
    time = num(seconds(sum(fresh))) if fresh else Cell("from cache", "num muted")
    detail = group[0].detail if len(group) == 1 else f"{len(group)} parts"
    if 0 < len(fresh) < len(group):
        detail += f", {len(group) - len(fresh)} from cache"
    measured = [step.peak_rss_bytes for step in group if step.peak_rss_bytes is not None]
    estimated = [s.estimated_peak_bytes for s in group if s.estimated_peak_bytes is not None]
    outputs = {(step.output or MISSING).partition("/")[0] for step in group}
    output = group[0].output if len(group) == 1 else ", ".join(sorted(outputs))
    peaks = [num(size(max(found, default=None))) for found in (measured, estimated)]
    return [group[0].name, detail or MISSING, time, *peaks, Cell(output or MISSING, "short")]


def _workers(manifest: Manifest | None) -> Table | None:
    """Return each export worker's own peak beside its estimate, where the manifest has them."""
    rows: list[list[Cell | str]] = []
    for item in manifest.artifacts if manifest else ():
        lowering = item.settings.get("lowering")
        if not isinstance(lowering, dict):
            continue
        keys = ("worker_peak_rss_bytes", "estimated_worker_peak_bytes")
        peaks = [num(size(finite(lowering.get(key)))) for key in keys]
        did = "checked a cached file" if lowering.get("cached") is True else "lowered and checked"
        rows.append([item.id, num(seconds(finite(lowering.get("seconds")))), *peaks, did])
    return table(_WORKER_COLUMNS, rows) if rows else None


def _recovery(run: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return what recovery training read, took and gained; nothing where there was none."""
    record = run.recovery
    if record is None:
        return ()
    before, after = record.loss_before, record.loss_after
    losses = "not recorded"
    if before is not None and after is not None:
        losses = f"{significant(before)} → {significant(after)} nats a token"
        losses += f" (perplexity {significant(_exp(before))} → {significant(_exp(after))})"
    facts = [
        ("held-out loss", losses),
        ("tokens read", significant(record.tokens)),
        ("training time", seconds(record.seconds)),
    ]
    objective = run.recipe.get("recover")
    if isinstance(objective, dict) and objective.get("objective"):
        facts.append(("objective", plain(objective["objective"]).replace("_", " ")))
    return tuple(facts)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _method(plan: Plan) -> MethodNote:
    rows = expert_rows(plan)
    larger = plan.scores.get("larger_is", "removable") == "removable"
    criterion = plain(plan.scores.get("criterion", plan.method))
    label = f"Scores of {plan.method} for every expert of each layer; crosses mark pruned experts"
    direction = "removed" if larger else "kept"
    scored = any(finite(s) is not None for row in rows for s in row.scores)
    settings = {
        **plan.config,
        "seed": plan.seed,
        "method version": plan.method_version,
        "edits": _edits(plan),
    }
    return MethodNote(
        method=plan.method,
        settings=tuple((key, plain(value)) for key, value in settings.items()),
        summary=tuple(_summary(plan)),
        warnings=plan.warnings,
        outcome=tuple(outcome(plan, rows)),
        heatmap=heatmap(label, rows, larger_is_removable=larger) if rows else None,
        criterion=criterion if scored and criterion != plan.method else "",
        direction=f"larger scores are {direction} first" if scored else "",
        experts=_experts(rows) if rows else None,
        levels=levels(plan),
    )


def _summary(plan: Plan) -> list[tuple[str, str]]:
    """Return before → after lines for pairs of keys, single lines for the rest.

    What is null does not apply to the model, such as the experts of a dense one.
    """
    lines = []
    for key, value in plan.summary.items():
        if key.endswith("_after") and f"{key.removesuffix('_after')}_before" in plan.summary:
            continue
        name = key.removesuffix("_before")
        after = plan.summary.get(f"{name}_after")
        if value is None and (after is None or not key.endswith("_before")):
            continue
        pair = key.endswith("_before") and after is not None
        label = (name if pair else key).replace("_", " ")
        shown = _figure(value)
        if key.endswith("_removed_of_original") and finite(value) is not None:
            shown = percent(finite(value))
        lines.append((label, f"{shown} → {_figure(after)}" if pair else shown))
    return lines


def _figure(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f")
    return significant(value) if isinstance(value, float) else plain(value)


def _edits(plan: Plan) -> str:
    """Return how many edits of each kind the plan holds."""
    tally: dict[str, int] = {}
    for edit in plan.edits:
        unit = edit.module if edit.op == "replace" else edit.unit
        tally[f"{edit.op} {unit}"] = tally.get(f"{edit.op} {unit}", 0) + 1
    return ", ".join(f"{n} × “{name}”" for name, n in tally.items()) or "no edits"


def expert_rows(plan: Plan) -> list[ExpertRow]:
    """Return every layer's scores and pruned experts, from the plan's scores and edits.

    The edits decide who was pruned, since a user may have edited the plan after it was scored.
    """
    kept = {
        edit.layer: frozenset(edit.indices)
        for edit in plan.edits
        if isinstance(edit, KeepEdit) and edit.unit == "expert"
    }
    layers = plan.scores.get("layers")
    rows = []
    for entry in layers if isinstance(layers, list) else []:
        scores = entry.get("scores") if isinstance(entry, dict) else None
        layer = entry.get("layer") if isinstance(entry, dict) else None
        if not isinstance(scores, list) or not isinstance(layer, int):
            continue
        every = frozenset(range(len(scores)))
        rows.append(ExpertRow(layer, [finite(s) for s in scores], every - kept.get(layer, every)))
    return rows


def _experts(rows: Sequence[ExpertRow]) -> Table:
    """Return one row an expert, layer by layer."""
    cells: list[list[Cell | str]] = []
    for row in rows:
        for index, score in enumerate(row.scores):
            gone = index in row.pruned
            state = Cell("pruned", "gone") if gone else Cell("kept", "muted")
            shown = "no score" if score is None else f"{score:.6f}"
            cells.append([f"{row.layer}", num(str(index)), num(shown), state])
    return table(("Layer", "Expert", "Score", "Decision"), cells)


def weights_table(manifest: Manifest | None) -> Table | None:
    """Return how each artifact stores its weights, or ``None`` where there is none."""
    if manifest is None or not manifest.artifacts:
        return None
    rows: list[list[Cell | str]] = []
    for item in manifest.artifacts:
        stored = sorted(item.weights.bytes_by_dtype.items(), key=lambda pair: -pair[1])
        words = ", ".join(f"{dtype} {size(n)}" for dtype, n in stored) or "–"
        share = percent(item.weights.share_at_precision)
        total = sum(record.bytes for record in item.files)
        rows.append([item.id, Cell(item.precision, "short"), num(share), num(size(total)), words])
    columns = (
        *("Artifact", "Precision", "Weight bytes at this precision", "All files"),
        "Weight bytes by dtype",
    )
    return table(columns, rows)
