"""Relative output error of every layer against the share removed, the chosen level marked."""

from __future__ import annotations

from collections.abc import Sequence

from mobilekit.schema.plan import Plan

from .level_map import row_title
from .lines import Axis, Line, lines
from .units import BLOCK_NAMES, UNIT_NAMES, UnitRow, amount, listed

_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_CLOSE = 1e-6
_FEW = 24  # lines that can lie over one another without becoming one patch


def error_curves(plan: Plan, rows: Sequence[UnitRow]) -> list[tuple[str, str, str]]:
    """Return a title, what must be said beside it, and a chart for each kind of unit."""
    levels = plan.scores.get("levels")
    grids = levels if isinstance(levels, dict) else {}
    charts = []
    for unit, name in UNIT_NAMES.items():
        own = [row for row in rows if row.unit == unit]
        if any(error is not None for row in own for error in row.errors):
            block = BLOCK_NAMES[own[0].block]
            title = f"{block[0].upper()}{block[1:]}: {name}"
            charts.append((title, *_chart(own, _grid(grids.get(unit)))))
    return charts


def _chart(rows: Sequence[UnitRow], grid: Sequence[float]) -> tuple[str, str]:
    """Return what is to be said of a chart, and the chart."""
    width = _width(rows, grid)
    items, missing = [], []
    for row in rows:
        shares = _shares(row, grid, width)
        points = list(zip(shares, row.errors, strict=True)) if shares else []
        share = row.share
        marked = (1 - share, row.error) if share is not None and row.error is not None else None
        cls = "thin many" if len(rows) > _FEW else "thin"
        items.append(Line(row_title(row), points, cls, marked))
        if not points:
            missing.append(row.layer)
    axis = Axis(0.0, 1.0, tuple((q, f"{q * 100:.0f}\u00a0%") for q in _QUARTERS))
    label = (
        f"Relative output error against the share of {UNIT_NAMES[rows[0].unit]} removed, one line "
        f"a layer, {len(rows)} in all; dots mark the chosen levels"
    )
    words = ["share removed across; dots, the chosen levels"]
    edited = [row.layer for row in rows if row.is_edited]
    if missing:
        words.append(f"no line for layers {listed(missing)}: their levels are not recorded")
    if edited:
        words.append(f"no dot for layers {listed(edited)}: they were edited by hand")
    return "; ".join(words), lines(label, items, axis, y_name="relative output error")


def _grid(value: object) -> list[float]:
    """Return what is gone at each level, ascending from zero; nothing where it is malformed."""
    found = [amount(entry) for entry in value] if isinstance(value, list | tuple) else []
    good = [entry for entry in found if entry is not None]
    ascends = all(a < b for a, b in zip(good, good[1:], strict=False))
    return good if len(good) == len(found) > 1 and good[0] == 0 and ascends else []


def _width(rows: Sequence[UnitRow], grid: Sequence[float]) -> float:
    """Return how much of the grid one unit is: columns of a head, where it counts columns."""
    for row in rows:
        gone = None if row.of is None or row.scored is None else row.of - row.scored
        if row.level and row.level < len(grid) and gone and gone > 0:
            return grid[row.level] / gone
    most = max((row.of or 0 for row in rows), default=0)
    return 1.0 if not grid or grid[-1] <= most else grid[-1] / (most or 1)


def _shares(row: UnitRow, grid: Sequence[float], width: float) -> list[float]:
    """Return the share removed at each level; nothing where the grid is not this layer's."""
    if row.of is None or len(grid) != len(row.errors):
        return []
    shares = [gone / width / row.of for gone in grid]
    known = row.level is not None and row.level < len(shares) and row.scored is not None
    if known and abs(shares[row.level or 0] - (1 - (row.scored or 0) / row.of)) > _CLOSE:
        return []
    return shares if shares[-1] <= 1 + _CLOSE else []
