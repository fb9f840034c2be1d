"""The before/after table for the command line: the headline's figures, as text and as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .headline import Headline, Tile


@dataclass(frozen=True)
class Comparison:
    """Headers and rows for people; ``data`` for ``--json``, null where nothing was measured."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    data: dict[str, Any]


def compare_figures(head: Headline) -> Comparison:
    """Return the table of a headline."""
    rows = tuple(_row(tile) for tile in head.tiles.values())
    figures = {name: _figures(tile) for name, tile in head.tiles.items()}
    return Comparison(
        headers=("", "before", "after", "change"),
        rows=rows,
        data={"after": head.artifact, "figures": figures},
    )


def _row(tile: Tile) -> tuple[str, ...]:
    moved = tile.change.text if tile.change else ""
    if tile.change is not None and tile.change.verdict == "unclear":
        moved += " (within noise)"
    if tile.caveat and moved:
        moved += f" ({tile.caveat})"
    missing = "" if tile.before is None and tile.after is not None else "not measured"
    return tile.label, tile.before or missing, tile.after or "not measured", moved


def _figures(tile: Tile) -> dict[str, Any]:
    before, after = tile.values
    verdict = tile.change.verdict if tile.change else None
    note = "; ".join(words for words in (tile.note, tile.caveat) if words)
    return {"before": before, "after": after, "verdict": verdict, "note": note}
