"""From levels to a model: edits, repaired weights, candidates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mobilekit.compress.evolution import Group, State
from mobilekit.compress.tensors import fill_
from mobilekit.models import surgery
from mobilekit.schema.plan import Edit, KeepEdit, RemoveEdit

from .grid import Grid

if TYPE_CHECKING:
    from .database import Database


@dataclass(frozen=True)
class Choice:
    """A level for every layer.

    Attributes:
        grids: The layers.
        levels: Theirs, in the same order.
    """

    grids: tuple[Grid, ...]
    levels: tuple[int, ...]

    def edits(self, database: Database) -> list[Edit]:
        """Return what is removed."""
        found: list[Edit] = []
        for grid, level in zip(self.grids, self.levels, strict=True):
            kept = database.kept(grid, level)
            if not kept:
                found.append(RemoveEdit(unit=grid.block, layer=grid.layer))
            elif len(kept) < grid.count:
                found.append(KeepEdit(unit=grid.unit, layer=grid.layer, indices=kept))
        return found

    def weights(self, database: Database) -> dict[str, Tensor]:
        """Return the output projections that change, by their names in the result."""
        return {
            f"{grid.projection}.weight": database.weight(grid, level)
            for grid, level in zip(self.grids, self.levels, strict=True)
            if level > 0 and grid.removed[level] < grid.count
        }


def groups(grids: Sequence[Grid]) -> tuple[Group, ...]:
    """Return one group of a search for each kind of unit."""
    return tuple(
        Group(unit, tuple(grid.most for grid in grids if grid.unit == unit))
        for unit in dict.fromkeys(grid.unit for grid in grids)
    )


def choice(grids: Sequence[Grid], state: State) -> Choice:
    """Return the levels of a state, layer by layer; the grids of a group lie side by side."""
    return Choice(tuple(grids), tuple(level for group in state for level in group))


def stitched(model: nn.Module, picked: Choice, database: Database, *, trainable: bool) -> nn.Module:
    """Return the model at the given levels, physically smaller.

    Args:
        model: The dense model; it stays as it is.
        picked: The levels.
        database: The layers at their levels.
        trainable: Whether the result has memory of its own throughout, in float32, with gradients;
            else it shares what is not cut with ``model``.
    """
    edits = picked.edits(database)
    if trainable:
        result = surgery.copy_for(model, edits)
    else:
        result = copy.deepcopy(model, memo={id(tensor): tensor for tensor in _tensors(model)})
    surgery.restructure_(result, edits)
    for name, value in picked.weights(database).items():
        fill_(result, name, value, str(database.folder))
    if trainable:
        result.float().requires_grad_(True)
    return result


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def parameter_costs(model: nn.Module, grids: Sequence[Grid]) -> list[list[int]]:
    """Return how many parameters each layer's sub-block has at each level, counted on meta."""
    base = _layer_sizes(model)
    costs: list[list[int]] = [[0] * len(grid.removed) for grid in grids]
    for unit in dict.fromkeys(grid.unit for grid in grids):
        own = [number for number, grid in enumerate(grids) if grid.unit == unit]
        for level in range(1, max(len(grids[number].removed) for number in own)):
            for half in (own[0::2], own[1::2]):  # not every layer can lose its attention at once
                chosen = [n for n in half if level < len(grids[n].removed)]
                sizes = _sizes_at(model, [(grids[n], level) for n in chosen])
                for n in chosen:
                    layer = grids[n].layer
                    costs[n][level] = sizes[layer] - base[layer]
    return [[value - min(row) for value in row] for row in costs]


def _sizes_at(model: nn.Module, chosen: Sequence[tuple[Grid, int]]) -> list[int]:
    """Return the parameters of every decoder layer with some layers at a level."""
    edits: list[Edit] = []
    for grid, level in chosen:
        left = grid.count - grid.removed[level]
        if left == 0:
            edits.append(RemoveEdit(unit=grid.block, layer=grid.layer))
        else:
            edits.append(KeepEdit(unit=grid.unit, layer=grid.layer, indices=_any(grid, left)))
    small = surgery.meta_copy(model)
    surgery.restructure_(small, edits)
    return _layer_sizes(small)


def _any(grid: Grid, left: int) -> tuple[int, ...]:
    """Return some units to keep, as many of every run."""
    run = grid.count // grid.runs
    return tuple(r * run + k for r in range(grid.runs) for k in range(left // grid.runs))


def _layer_sizes(model: nn.Module) -> list[int]:
    layers: Any = model.get_submodule("model.layers")
    return [sum(p.numel() for p in layer.parameters()) for layer in layers]


def as_state(levels: Sequence[int], grids: Sequence[Grid]) -> State:
    """Return flat levels, in the order of ``grids``, as a state."""
    left = iter(levels)
    return tuple(tuple(next(left) for _ in group.most) for group in groups(grids))
