"""Whether the place of an option decides: chosen letters, and answers to rotated options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .accuracy import CHANCE, asked_of
from .charts import Kind
from .columns import Column, columns
from .numbers import MISSING, finite, percent, significant
from .subjects import Subject
from .tables import Cell, Table, num, table

_LETTERS = ("A", "B", "C", "D")
_ORDER_COLUMNS = (
    *("Model or artifact", "Rotations", "Mean accuracy", "Right in every rotation"),
    *("Same answer in every rotation", "Letters from even"),
)


def letters_chart(models: Mapping[Kind, Subject]) -> str | None:
    """Return how often each letter was chosen, before beside after."""
    histograms = {kind: _histogram(_position(subject)) for kind, subject in models.items()}
    return _chart("Share of each chosen letter", histograms)


def rotated_chart(models: Mapping[Kind, Subject]) -> str | None:
    """Return the same over all rotations: every content stood at every place, so even is 25 %."""
    histograms = {
        kind: _histogram(_mapping(order_of(subject).get("position_prior")))
        for kind, subject in models.items()
    }
    return _chart("Share of each chosen letter over all rotations", histograms)


def _chart(label: str, histograms: Mapping[Kind, Mapping[str, float]]) -> str | None:
    known = {kind: counts for kind, counts in histograms.items() if sum(counts.values()) > 0}
    if not known:
        return None
    groups = [
        (letter, [_column(kind, letter, counts) for kind, counts in known.items()])
        for letter in _LETTERS
    ]
    return columns(label, groups, reference=CHANCE)


def _column(kind: Kind, letter: str, counts: Mapping[str, float]) -> Column:
    total, count = sum(counts.values()), counts[letter]
    return Column(kind, count / total, f"{letter}, {kind}: {count:.0f} of {total:.0f}")


def letters_note(models: Mapping[Kind, Subject]) -> str:
    """Return the distances from even, and how far chance alone would be from it."""
    parts, chosen = [], 0.0
    for kind, subject in models.items():
        position = _position(subject)
        distance = finite(position.get("total_variation"))
        if distance is not None:
            parts.append(f"{significant(distance, 2)} {kind}")
            chosen = sum(_histogram(position).values())
    if not parts or not chosen:
        return ""
    return (
        f"Distance from even (total variation; 0 even, 0.75 always one letter): "
        f"{', '.join(parts)}. Even choices would be about "
        f"{significant(expected_distance(chosen), 2)} off by chance; a key that is not even adds "
        "to it."
    )


def expected_distance(n: float) -> float:
    """Return the mean total-variation distance from uniform of ``n`` fair choices of four.

    Each letter's count is nearly normal: its mean absolute deviation is √(2/π) standard ones.
    """
    return 0.5 * len(_LETTERS) * math.sqrt(2 / math.pi * CHANCE * (1 - CHANCE) / n)


def order_table(found: Sequence[Subject]) -> Table | None:
    """Return how each model answered when the options were rotated, where that was asked."""
    rows: list[list[Cell | str]] = []
    for subject in found:
        record = order_of(subject)
        if not record:
            continue
        rotations = finite(record.get("rotations"))
        distance = finite(_mapping(record.get("position_prior")).get("total_variation"))
        shares = [finite(record.get(key)) for key in ("acc_mean", "acc_worst", "consistency")]
        reason = record.get("reason")
        cells = [num(MISSING if rotations is None else f"{rotations:.0f}")]
        cells += [num(percent(share)) for share in shares]
        if shares[0] is None and reason:
            cells[1] = num(MISSING, str(reason))
        cells.append(num(significant(distance, 2)))
        rows.append([subject.name, *cells])
    return table(_ORDER_COLUMNS, rows) if rows else None


def order_of(subject: Subject) -> dict[str, Any]:
    """Return the record of rotated options, empty where they were not rotated."""
    asked = asked_of(subject)
    return _mapping(asked.metrics.get("order")) if asked else {}


def distance_of(subject: Subject) -> float | None:
    """Return the distance of the chosen letters from even."""
    return finite(_position(subject).get("total_variation"))


def _position(subject: Subject) -> dict[str, Any]:
    asked = asked_of(subject)
    return _mapping(asked.metrics.get("position")) if asked else {}


def _histogram(record: Mapping[str, Any]) -> dict[str, float]:
    counts = _mapping(record.get("histogram"))
    return {letter: max(0.0, finite(counts.get(letter)) or 0.0) for letter in _LETTERS}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
