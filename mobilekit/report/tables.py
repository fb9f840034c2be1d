"""Tables as data; the template decides how they look, and how they stack on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a style class (``ok``, ``fail``, ``muted``, ``num``), a small note."""

    text: str
    cls: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Column names and rows; the first cell of a row is its header."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell | str]], caption: str = "") -> Table:
    """Return a table; a plain string becomes a cell without a class.

    Raises:
        ValueError: If a row has not one cell a column.
    """
    filled = []
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells under {len(columns)} columns")
        filled.append(tuple(c if isinstance(c, Cell) else Cell(c) for c in row))
    return Table(tuple(columns), tuple(filled), caption)


def num(text: str, note: str = "") -> Cell:
    """Return a cell of figures: right-aligned, tabular digits."""
    return Cell(text, "num", note)


def plain(value: object) -> str:
    """Return a JSON value as short text for a settings list."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
