"""What was done to the model: steps, settings, seeds, experts, recovery, weight storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.manifest import Manifest
from mobilekit.schema.plan import KeepEdit, Plan
from mobilekit.schema.run import RunRecord

from .charts import curve
from .evidence import Evidence
from .maps import ExpertRow, heatmap
from .numbers import finite, percent, seconds, significant, size
from .tables import Cell, Table, num, plain, table


@dataclass(frozen=True)
class MethodNote:
    """One applied plan: method, settings, seed, what it says of itself, what it warns of."""

    method: str
    settings: tuple[tuple[str, str], ...]
    summary: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    heatmap: str | None
    criterion: str
    direction: str
    experts: Table | None
    edits: str


@dataclass(frozen=True)
class Changes:
    """What the section on changes shows."""

    steps: Table | None
    methods: tuple[MethodNote, ...]
    recovery: str
    curve: str | None
    weights: Table | None


def changes(evidence: Evidence) -> Changes:
    """Return the tables, charts and sentences on what was done."""
    run = evidence.run
    record = run.recovery
    return Changes(
        steps=_steps(run),
        methods=tuple(_method(plan) for plan in evidence.plans),
        recovery=_recovery(run),
        curve=curve(
            "Training loss over the steps of recovery training",
            record.curve,
            y_name="loss, nats a token",
            x_name="steps",
        )
        if record is not None and record.curve
        else None,
        weights=_weights(evidence.manifest),
    )


def _steps(run: RunRecord) -> Table | None:
    rows: list[list[Cell | str]] = []
    for step in run.steps:
        time = Cell("from cache", "num muted") if step.cached else num(seconds(step.seconds))
        detail = step.detail or "–"
        rows.append([step.name, detail, time, num(size(step.peak_rss_bytes)), step.output or "–"])
    columns = ("Step", "What it did", "Time", "Peak RSS", "Output")
    return table(columns, rows) if rows else None


def _recovery(run: RunRecord) -> str:
    record = run.recovery
    if record is None:
        return "No recovery training was run."
    trained = f"Recovery training read {significant(record.tokens)} tokens in {seconds(record.seconds)}"
    if record.loss_before is None or record.loss_after is None:
        return f"{trained}; its losses were not recorded."
    return (
        f"{trained}; the loss went from {significant(record.loss_before)} to "
        f"{significant(record.loss_after)} nats a token."
    )


def _method(plan: Plan) -> MethodNote:
    rows = expert_rows(plan)
    larger = plan.scores.get("larger_is", "removable") == "removable"
    criterion = plain(plan.scores.get("criterion", plan.method))
    label = f"Scores of {plan.method} for every expert of each layer; crosses mark pruned experts"
    direction = "removed" if larger else "kept"
    scored = any(finite(s) is not None for row in rows for s in row.scores)
    settings = {**plan.config, "seed": plan.seed, "version of the method": plan.method_version}
    return MethodNote(
        method=plan.method,
        settings=tuple((key, plain(value)) for key, value in settings.items()),
        summary=tuple(_summary(plan)),
        warnings=plan.warnings,
        heatmap=heatmap(label, rows, larger_is_removable=larger) if rows else None,
        criterion=criterion if scored else "",
        direction=f"{'Larger' if scored else ''} scores are {direction} first" if scored else "",
        experts=_experts(rows) if rows else None,
        edits=_edits(plan),
    )


def _summary(plan: Plan) -> list[tuple[str, str]]:
    """Return before → after lines for pairs of keys, single lines for the rest."""
    lines = []
    for key, value in plan.summary.items():
        if key.endswith("_after") and f"{key.removesuffix('_after')}_before" in plan.summary:
            continue
        name = key.removesuffix("_before")
        after = plan.summary.get(f"{name}_after")
        pair = key.endswith("_before") and after is not None
        label = (name if pair else key).replace("_", " ")
        lines.append((label, f"{_figure(value)} → {_figure(after)}" if pair else _figure(value)))
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
    return ", ".join(f"{n} × {name}" for name, n in tally.items()) or "no edits"


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


def _weights(manifest: Manifest | None) -> Table | None:
    if manifest is None or not manifest.artifacts:
        return None
    rows: list[list[Cell | str]] = []
    for item in manifest.artifacts:
        stored = sorted(item.weights.bytes_by_dtype.items(), key=lambda pair: -pair[1])
        words = ", ".join(f"{dtype} {size(n)}" for dtype, n in stored) or "–"
        share = percent(item.weights.share_at_precision)
        total = sum(record.bytes for record in item.files)
        rows.append([item.id, item.precision, num(share), words, num(size(total))])
    columns = ("Artifact", "Precision", "Share at that width", "Weight bytes by dtype", "All files")
    return table(columns, rows)
