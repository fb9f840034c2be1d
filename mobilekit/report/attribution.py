"""What compression did by itself, and what the export added: torch against torch, then export.

A runtime written for one device beats torch eager whatever the model. Without this split a reader
would take that gain for the gain of compression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.plan import Edit, KeepEdit, RemoveEdit

from .evidence import Evidence
from .headline import Tile, figures
from .numbers import MISSING, Change, change, count, plain_ms
from .subjects import Subject, baseline, overlap, scalar, shipped, spread
from .tables import Cell, Table, num, table
from .units import BLOCKS, UNIT_NAMES

_MISSING = "not measured"


@dataclass(frozen=True)
class Attribution:
    """The two parts of the change, as a table and as sentences; empty where unknown."""

    table: Table | None
    alone: str
    cost: str


def attribution(evidence: Evidence, found: Sequence[Subject]) -> Attribution:
    """Return how much of the change each part of the chain is answerable for."""
    old, new = baseline(found), shipped(found)
    middle = next((s for s in found if s.id == "after"), None)
    trained = evidence.run.recovery is not None
    return Attribution(
        table=_table(old, middle, new) if old and middle and new else None,
        alone=_alone(figures(old, middle), trained) if old and middle else "",
        cost=_cost(evidence),
    )


def _table(old: Subject, middle: Subject, new: Subject) -> Table | None:
    if new.artifact is None:
        return None
    first, second = figures(old, middle), figures(middle, new)
    rows = [_row(first[name], second[name]) for name in first]
    rows[1:1] = _first_token(old, middle, new)
    names = ("Figure", old.name, middle.name, "by compression", new.id, "by export")
    return table(names, rows)


def _row(first: Tile, second: Tile) -> list[Cell | str]:
    return [
        first.label,
        num(first.before or _MISSING),
        num(first.after or _MISSING),
        _moved(first),
        num(second.after or _MISSING),
        _moved(second),
    ]


def _moved(tile: Tile) -> Cell:
    if tile.change is None:
        return Cell(MISSING, "num muted")
    verdict = tile.change.verdict
    notes = ("within noise" if verdict == "unclear" else "", tile.caveat)
    return Cell(tile.change.text, f"num {verdict}", "\n".join(note for note in notes if note))


def _first_token(*trio: Subject) -> list[list[Cell | str]]:
    """Return the row on the time to first token, of the first prompt that all three ran."""
    ran = [_ttft(subject) for subject in trio]
    shared = [name for name in ran[0] if all(name in other for other in ran)]
    if not shared:
        return []
    name = shared[0]
    first = _ttft_tile(trio[0], trio[1], name)
    return [_row(first, _ttft_tile(trio[1], trio[2], name))]


def _ttft_tile(old: Subject, new: Subject, workload: str) -> Tile:
    before, after = _ttft(old)[workload], _ttft(new)[workload]
    moved = change(before, after, better="lower")
    samples = ([s.ns / 1e6 for s in one.samples("prefill", workload)] for one in (old, new))
    if moved is not None and overlap(*(spread(values) for values in samples)):
        moved = Change(moved.text, "unclear")
    label = f"Time to first token, {workload}"
    return Tile(label, plain_ms(before), plain_ms(after), moved)


def _ttft(subject: Subject) -> dict[str, float]:
    """Return the median time to first token by workload, in milliseconds."""
    pairs = ((r.workload.id, scalar(r.metrics.get("ttft_ms"))) for r in subject.profiles)
    return {name: value for name, value in pairs if value is not None}


def _alone(tiles: dict[str, Tile], trained: bool) -> str:
    """Return one sentence on compression by itself, from what was measured on both sides."""
    words = {"size": "weights", "decode": "decode speed", "perplexity": "perplexity"}
    parts = []
    for name, word in words.items():
        moved = tiles[name].change
        if moved is not None:
            noise = " (within noise)" if moved.verdict == "unclear" else ""
            caveat = f" {tiles[name].caveat}" if tiles[name].caveat else ""
            parts.append(f"{word} {moved.text}{noise}{caveat}")
    if not parts:
        return ""
    what = "Compression and recovery alone" if trained else "Compression alone"
    return (
        f"{what}, both sides in torch: {', '.join(parts)}. "
        "The rest comes from the export: another runtime and another precision."
    )


def _cost(evidence: Evidence) -> str:
    """Return what pruning does to the cost of a token, and what expert pruning does not."""
    models = evidence.run.models
    edits = [edit for plan in evidence.plans for edit in plan.edits]
    experts = any(isinstance(edit, KeepEdit) and edit.unit == "expert" for edit in edits)
    narrowed = _narrowed(edits)
    if models is None or models.after is None:
        return ""
    old, new = models.before.active_parameters, models.after.active_parameters
    figures_ = f" ({count(old)} before, {count(new)} after)" if old and new else ""
    stays = (
        "Expert pruning makes the model smaller, not a token cheaper: each token still runs "
        "through as many experts"
    )
    if experts and not narrowed:
        return f"{stays}, so its active parameters hardly change{figures_}."
    if not narrowed or not old or not new or new >= old:
        return f"{stays}." if experts else ""
    what = f"each token runs through fewer parameters{figures_} once {narrowed} are gone"
    return f"{stays}. But {what}." if experts else f"{what[0].upper()}{what[1:]}."


def _narrowed(edits: Sequence[Edit]) -> str:
    """Return in words what every token ran through before; empty where it still does."""
    kept = {edit.unit for edit in edits if isinstance(edit, KeepEdit)}
    gone = {edit.unit for edit in edits if isinstance(edit, RemoveEdit)}
    names = [name for unit, name in UNIT_NAMES.items() if unit in kept]
    if gone & set(BLOCKS):
        names.append("whole sub-blocks")
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
