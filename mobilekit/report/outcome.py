"""What a plan took away, in figures: parameters, and each kind of unit."""

from __future__ import annotations

from collections.abc import Sequence

from mobilekit.schema.plan import Plan

from .maps import ExpertRow
from .numbers import change, count
from .units import BLOCK_NAMES, BLOCKS, UNIT_NAMES, UnitRow, listed, unit_rows, whole

_TOTALS = {"parameters": "parameters", "active_parameters": "active for a token"}


def outcome(plan: Plan, experts: Sequence[ExpertRow]) -> list[tuple[str, str]]:
    """Return a line on each figure that the plan changes and records.

    Args:
        plan: The plan.
        experts: Its experts, as its edits leave them.
    """
    facts = []
    for key, name in _TOTALS.items():
        before, after = (whole(plan.summary.get(f"{key}_{when}")) for when in ("before", "after"))
        if before is not None and after is not None:
            facts.append((name, _moved(count(before), count(after), before, after)))
    every = sum(len(row.scores) for row in experts)
    if every:
        left = every - sum(len(row.pruned) for row in experts)
        facts.append(("experts", _moved(str(every), str(left), every, left)))
    rows = unit_rows(plan)
    facts.extend(line for unit in UNIT_NAMES if (line := _units(rows, unit)) is not None)
    for block in BLOCKS:
        own = [row for row in rows if row.block == block]
        gone = [row.layer for row in own if row.is_removed]
        if gone:
            where = f"layer {gone[0]}" if len(gone) == 1 else f"layers {listed(gone)}"
            so_many = f"{len(gone)} of {len({row.layer for row in own})} layers"
            facts.append((f"{BLOCK_NAMES[block]} removed whole", f"in {so_many}: {where}"))
    return facts


def _units(rows: Sequence[UnitRow], unit: str) -> tuple[str, str] | None:
    """Return how many units of one kind there were and are, over the layers that tell."""
    own = [row for row in rows if row.unit == unit]
    known = [row for row in own if row.of is not None and row.share is not None]
    if not known:
        return None
    before, after = (sum(row.of or 0 for row in known), sum(row.kept or 0 for row in known))
    words = _moved(f"{before}", f"{after}", before, after)
    rest = len(own) - len(known)
    if rest:
        words += f", without {rest} layer{'s' * (rest > 1)} whose number is not recorded"
    return UNIT_NAMES[unit], words


def _moved(old: str, new: str, before: int, after: int) -> str:
    moved = change(before, after, better="lower")
    return f"{old} → {new} ({moved.text})" if moved else f"{old} → {new}"
