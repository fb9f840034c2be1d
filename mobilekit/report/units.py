"""What a plan did to every layer's heads and channels, from its scores and its edits.

The edits decide what was kept, since a user may have edited the plan after it was scored. Nothing
else of a plan is trusted: what is missing or malformed in its scores is absent here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mobilekit.schema.plan import KeepEdit, Plan, RemoveEdit

from .numbers import finite

Block = Literal["attention", "mlp"]

METHOD = "darwinlm"  # whose plans have levels
BLOCKS: tuple[Block, ...] = ("attention", "mlp")
BLOCK_NAMES: dict[str, str] = {"attention": "attention", "mlp": "MLP"}
BLOCK_OF: dict[str, Block] = {"head": "attention", "kv_head": "attention", "channel": "mlp"}
UNIT_NAMES = {"head": "query heads", "kv_head": "key-value heads", "channel": "channels"}
_USUAL: dict[Block, str] = {"attention": "head", "mlp": "channel"}
_LARGEST = 1e100  # beyond it, and below its inverse, the arithmetic of an axis could overflow


@dataclass(frozen=True)
class UnitRow:
    """The heads or the channels of one layer.

    Attributes:
        layer: Index of the layer.
        unit: ``head``, ``kv_head`` or ``channel``.
        kept: How many the edits leave; None where neither edits nor scores tell.
        of: How many there were; None where the scores do not tell.
        level: The level that the method chose; None where it is not recorded.
        scored: How many the chosen level keeps, by the scores.
        errors: Relative output error at each level; None for what is no number.
        is_removed: Whether the whole sub-block went, with its norm.
    """

    layer: int
    unit: str
    kept: int | None
    of: int | None
    level: int | None = None
    scored: int | None = None
    errors: tuple[float | None, ...] = ()
    is_removed: bool = False

    @property
    def block(self) -> Block:
        """The sub-block that the units are of."""
        return BLOCK_OF[self.unit]

    @property
    def share(self) -> float | None:
        """Share kept, in [0, 1]; None where it is not known."""
        if self.is_removed:
            return 0.0
        if self.kept is None or self.of is None or self.kept > self.of:
            return None
        return self.kept / self.of

    @property
    def is_edited(self) -> bool:
        """Whether the edits keep another number than the level that was chosen."""
        return self.scored is not None and self.scored != self.kept

    @property
    def error(self) -> float | None:
        """Relative output error at the chosen level; None where the edits are not that level."""
        inside = self.level is not None and self.level < len(self.errors)
        return self.errors[self.level or 0] if inside and not self.is_edited else None


def unit_rows(plan: Plan) -> list[UnitRow]:
    """Return the heads and channels of every layer that a plan speaks of, layer by layer."""
    kept = {(e.unit, e.layer): len(e.indices) for e in plan.edits if isinstance(e, KeepEdit)}
    gone = {(e.unit, e.layer) for e in plan.edits if isinstance(e, RemoveEdit)}
    rows: dict[tuple[str, int], UnitRow] = {}
    for entry in entries(plan.scores.get("layers")):
        layer, unit = whole(entry.get("layer")), entry.get("unit")
        if layer is None or not isinstance(unit, str) or unit not in BLOCK_OF:
            continue
        if (unit, layer) not in rows:
            is_removed = (BLOCK_OF[unit], layer) in gone
            rows[unit, layer] = _row(entry, layer, unit, kept.get((unit, layer)), is_removed)
    for unit, layer in kept:
        if unit in BLOCK_OF and (unit, layer) not in rows:
            rows[unit, layer] = UnitRow(layer, unit, kept[unit, layer], None)
    for block in BLOCKS:
        known = {row.layer for row in rows.values() if row.block == block}
        for layer in (layer for name, layer in gone if name == block and layer not in known):
            unit = _USUAL[block]
            rows[unit, layer] = UnitRow(layer, unit, 0, None, is_removed=True)
    return sorted(rows.values(), key=lambda row: (row.layer, BLOCKS.index(row.block), row.unit))


def _row(
    entry: dict[str, Any], layer: int, unit: str, edited: int | None, is_removed: bool
) -> UnitRow:
    of = whole(entry.get("of")) or None
    errors = entry.get("errors")
    return UnitRow(
        layer=layer,
        unit=unit,
        kept=0 if is_removed else of if edited is None else edited,
        of=of,
        level=whole(entry.get("level")),
        scored=whole(entry.get("kept")),
        errors=tuple(amount(e) for e in errors) if isinstance(errors, list | tuple) else (),
        is_removed=is_removed,
    )


def entries(value: object) -> Iterator[dict[str, Any]]:
    """Yield the records of what should be a list of records."""
    for entry in value if isinstance(value, list | tuple) else ():
        if isinstance(entry, dict):
            yield entry


def whole(value: object) -> int | None:
    """Return what should be a number of things or an index, None where it is neither."""
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if isinstance(value, int) and fits else None


def amount(value: object) -> float | None:
    """Return what should be a quantity that can be drawn, None where it is not."""
    number = finite(value)
    if number is None or abs(number) > _LARGEST:
        return None
    return number if abs(number) > 1 / _LARGEST else 0.0


def listed(values: Sequence[int]) -> str:
    """Return indices in words, runs of them as ranges: ``0 to 3, 7``."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    words = ((f"{a} to {b}" if b > a + 1 else f"{a}, {b}") if b > a else f"{a}" for a, b in runs)
    return ", ".join(words)
