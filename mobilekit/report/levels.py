"""The section on levels: how much of every layer's attention and MLP was kept, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.plan import Plan

from .error_curves import error_curves
from .level_map import level_map
from .numbers import count, percent
from .search import SearchView, search_view
from .tables import Cell, Table, num, plain, table
from .units import BLOCK_NAMES, BLOCKS, METHOD, UNIT_NAMES, UnitRow, listed, unit_rows, whole

_COLUMNS = ("Layer", "Units", "Level", "Kept", "Relative error")


@dataclass(frozen=True)
class Levels:
    """What the page shows of one plan that chose levels.

    ``curves`` are title, remark and chart of each kind of unit.
    """

    picture: str | None
    removed: tuple[str, ...]
    table: Table | None
    search: SearchView | None
    curves: tuple[tuple[str, str, str], ...]
    skipped: tuple[str, ...]
    calibration: tuple[tuple[str, str], ...]


def levels(plan: Plan) -> Levels | None:
    """Return the parts on a plan's levels; None for a plan of another kind."""
    rows = unit_rows(plan)
    if plan.method != METHOD and not rows:
        return None
    return Levels(
        picture=level_map(_label(rows), rows) if rows else None,
        removed=tuple(removed_blocks(rows)),
        table=_table(rows) if rows else None,
        search=search_view(plan),
        curves=tuple(error_curves(plan, rows)),
        skipped=tuple(_strings(plan.scores.get("skipped"))),
        calibration=tuple(_calibration(plan)),
    )


def removed_blocks(rows: Sequence[UnitRow]) -> list[str]:
    """Return a sentence on the layers that lost a whole sub-block, one a kind."""
    found = []
    for block in BLOCKS:
        gone = sorted({row.layer for row in rows if row.block == block and row.is_removed})
        if gone:
            where = f"layer {gone[0]}" if len(gone) == 1 else f"layers {listed(gone)}"
            found.append(f"{BLOCK_NAMES[block]} removed whole in {where}")
    return [line[0].upper() + line[1:] for line in found]


def _label(rows: Sequence[UnitRow]) -> str:
    """Return the picture in words."""
    layers = len({row.layer for row in rows})
    parts = []
    for unit, name in UNIT_NAMES.items():
        known = [row for row in rows if row.unit == unit and row.share is not None and row.of]
        total = sum(row.of or 0 for row in known)
        if total:
            parts.append(f"{sum(row.kept or 0 for row in known)} of {total} {name} kept")
    so_many = "1 layer" if layers == 1 else f"{layers} layers"
    return "; ".join(
        [f"Share kept by attention and MLP in {so_many}", *parts, *removed_blocks(rows)]
    )


def _table(rows: Sequence[UnitRow]) -> Table:
    return table(_COLUMNS, [_cells(row) for row in rows])


def _cells(row: UnitRow) -> list[Cell | str]:
    most = len(row.errors) - 1
    of = f" of {most}" if row.level is not None and row.level <= most else ""
    level = num("–" if row.level is None else f"{row.level}{of}")
    if row.is_edited:
        level = num(level.text, "edited by hand")
    if row.is_removed:
        kept = Cell("none", "num gone", "removed whole")
    elif row.kept is None:
        kept = num("not recorded")
    else:
        share = percent(row.share) if row.share is not None else "share not known"
        kept = num(f"{row.kept} of {row.of}" if row.of else str(row.kept), share)
    error = "–" if row.error is None else f"{row.error:.4g}"
    return [f"{row.layer}", UNIT_NAMES[row.unit], level, kept, num(error)]


def _strings(value: object) -> list[str]:
    return [plain(entry) for entry in value if entry] if isinstance(value, list | tuple) else []


def _calibration(plan: Plan) -> list[tuple[str, str]]:
    """Return where the calibration tokens come from; nothing where it is not recorded."""
    record = plan.scores.get("calibration")
    if not isinstance(record, dict):
        return []
    facts = []
    for key, value in record.items():
        number = whole(value)
        if key == "sha256" and isinstance(value, str):
            facts.append(("SHA-256", f"{value[:12]}…" if len(value) > 12 else value))
        elif key == "tokens" and number is not None:
            facts.append((str(key), count(number)))
        else:
            facts.append((str(key), plain(value)))
    return facts
