"""The levels of every layer: how many heads or channels are gone at each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilekit.core.errors import UsageError
from mobilekit.models.families import Slice, UnitGroup, family_of

from .config import DarwinConfig, GroupMode

if TYPE_CHECKING:
    from torch import nn

_BLOCK_OF = {"head": "attention", "kv_head": "attention", "channel": "mlp"}
_MULTIPLE = 32  # widths that kernels like


@dataclass(frozen=True)
class Grid:
    """One layer's heads or channels, and the levels between which a search chooses.

    Attributes:
        layer: Index of the layer.
        unit: ``head``, ``kv_head`` or ``channel``.
        count: Units now.
        width: Columns of the output projection that belong to a unit.
        projection: Path of the output projection.
        removed: Units that are gone at each level, from 0 on; all of them at the last level means
            that the sub-block is removed.
        steps: The level at which everything would be gone, whether or not the search may go there.
        runs: Runs of units that lose as many each (query heads of a key-value head), or 1.
    """

    layer: int
    unit: str
    count: int
    width: int
    projection: str
    removed: tuple[int, ...]
    steps: int
    runs: int

    @property
    def most(self) -> int:
        """The last level."""
        return len(self.removed) - 1

    @property
    def key(self) -> str:
        """What the layer's entry in a database is called."""
        return f"{self.layer}.{self.unit}"

    @property
    def block(self) -> str:
        """The sub-block, as an edit that removes it calls it."""
        return _BLOCK_OF[self.unit]


def grids(model: nn.Module, config: DarwinConfig) -> tuple[list[Grid], list[str]]:
    """Return every layer's grid, heads first, and what cannot be pruned, for the report.

    Raises:
        UsageError: If levels coincide, or no layer has anything to remove.
        UnsupportedModelError: If the family has no heads.
    """
    family = family_of(model)
    skipped = []
    head = "kv_head" if config.group_mode == "whole" else "head"
    heads = family.units(model, head)
    # the last attention must stay: without it, no token would see another
    may_go = config.remove_blocks and len(heads) > 1
    found = [_head_grid(group, config, may_go=may_go) for group in heads]
    if "channel" in family.units_of:
        found += [_channel_grid(group, config) for group in family.units(model, "channel")]
    else:
        skipped.append(
            f"the feed-forward layers of {type(model).__name__} have no channels to remove: only "
            "attention heads go"
        )
    usable = [grid for grid in found if grid.most > 0]
    skipped += [
        f"layer {grid.layer} keeps its {grid.count} {grid.unit}: there is no other level"
        for grid in found
        if grid.most == 0
    ]
    if not usable:
        raise UsageError(
            f"no layer of this {type(model).__name__} has heads or channels that could go",
            hint="Prune a larger model, or set remove_blocks=true.",
        )
    return usable, skipped


def output_projection(group: UnitGroup) -> Slice:
    """Return the slice of a group along the inputs of its output projection."""
    (found,) = (piece for piece in group.slices if piece.dim == 1)
    return found


def _head_grid(group: UnitGroup, config: DarwinConfig, *, may_go: bool) -> Grid:
    runs = _runs(group, config.group_mode)
    counts = spread_counts(group.count // runs, config.levels, 1)
    return _grid(group, [count * runs for count in counts], runs, may_go=may_go)


def _runs(group: UnitGroup, mode: GroupMode) -> int:
    if mode != "even":
        return 1
    if group.shares == 0:
        raise UsageError(
            f"the query heads of layer {group.layer} are unevenly many for its key-value heads",
            hint="It was pruned with group_mode=free before: use that mode again.",
        )
    return group.shares


def _channel_grid(group: UnitGroup, config: DarwinConfig) -> Grid:
    steps = config.levels - 1
    multiple = config.channel_multiple or _multiple(group.count, steps)
    counts = spread_counts(group.count, config.levels, multiple)
    if config.channel_multiple is not None and len(counts) < config.levels:
        raise UsageError(
            f"{config.levels} levels of {group.count} channels in steps of {multiple} coincide",
            hint=f"Use at most {len(counts)} levels, or a smaller channel_multiple.",
        )
    return _grid(group, counts, 1, may_go=config.remove_blocks)


def _multiple(count: int, steps: int) -> int:
    """Return the largest power of two up to 32 that leaves every level apart from the others."""
    multiple = _MULTIPLE
    while multiple > 1 and count < 2 * multiple * steps:
        multiple //= 2
    return multiple


def spread_counts(count: int, levels: int, multiple: int) -> list[int]:
    """Return how many units are gone at each level: even steps, multiples, none twice.

    The last entry is all of them, whether or not that is a multiple.
    """
    steps = levels - 1
    inner = {round(k * count / steps / multiple) * multiple for k in range(steps)}
    return [*sorted(value for value in inner if value < count), count]


def _grid(group: UnitGroup, removed: list[int], runs: int, *, may_go: bool) -> Grid:
    projection = output_projection(group)
    return Grid(
        layer=group.layer,
        unit=group.kind,
        count=group.count,
        width=projection.width,
        projection=projection.module,
        removed=tuple(removed if may_go else removed[:-1]),
        steps=len(removed) - 1,
        runs=runs,
    )


def uniform_levels(grids: Sequence[Grid], sparsity: float) -> tuple[int, ...]:
    """Return levels as even over the layers as their sum, the nearest to the target, allows.

    Where the sum is no multiple of the number of layers, the layers with the higher level are
    spread over the depth.

    Raises:
        UsageError: If the target is beyond the last level of every layer.
    """
    most = [grid.most for grid in grids]
    total = math.floor(sparsity * sum(grid.steps for grid in grids) + 0.5)
    if total > sum(most):
        reached = sum(grid.removed[-1] for grid in grids) / sum(grid.count for grid in grids)
        raise UsageError(
            f"a sparsity of {sparsity:g} is beyond the last levels of {grids[0].unit}s, which "
            f"remove {reached:.0%}",
            hint="Choose a smaller one, or remove_blocks=true.",
        )
    levels = [0] * len(most)
    for step in range(max(most)):
        open_ = [i for i, limit in enumerate(most) if limit > step]
        take = min(len(open_), total)
        for k in range(take):
            levels[open_[(2 * k + 1) * len(open_) // (2 * take)]] += 1
        total -= take
    return tuple(levels)
