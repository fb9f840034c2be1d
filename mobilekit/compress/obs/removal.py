"""Greedy structured removal by optimal brain surgeon, with a snapshot at every level.

Removing the columns M of W costs s_M and is repaired by δ_M:

    s_M = Σ_i W_iM (H⁻¹_MM)⁻¹ W_iMᵀ,    δ_M = −W_:M (H⁻¹_MM)⁻¹ H⁻¹_M:

Source: DarwinLM eq. (3)-(4); ZipLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .columns import ColumnRemoval
from .groups import GroupRemoval
from .hessian import inverse


@dataclass(frozen=True)
class Level:
    """One snapshot.

    Attributes:
        kept: Units that are left, ascending.
        weight: Their columns after repair, shape (rows, kept · width); ``None`` where nothing was
            removed (the original stands), or nothing is left.
        error: Σ s so far: the damped squared output error.
    """

    kept: tuple[int, ...]
    weight: Tensor | None
    error: float


@dataclass(frozen=True)
class Removal:
    """A layer at every level.

    Attributes:
        levels: One an entry of the counts asked for.
        order: Units in the order in which they went.
        total: Squared output error of removing everything, by the same measure as the errors.
    """

    levels: tuple[Level, ...]
    order: tuple[int, ...]
    total: float


class Selection:
    """Which units may go next: any, or one of each run of units before any run loses another.

    Args:
        count: How many units there are.
        runs: Equal runs of units, side by side (query heads that share a key-value head), that
            lose one each a round; 1 for a free choice.
    """

    def __init__(self, count: int, runs: int = 1) -> None:
        if runs < 1 or count % runs:
            raise ValueError(f"expected runs that divide {count} units, got {runs}")
        self._run = torch.arange(count) // (count // runs)
        self._runs = runs
        self._lost = torch.zeros(runs, dtype=torch.long)

    def open(self, alive: Tensor, device: torch.device) -> Tensor:
        """Return which of the units ``alive`` (their ids) may go now, bool, same shape."""
        if self._runs == 1:
            return torch.ones(len(alive), dtype=torch.bool, device=device)
        runs = self._run[alive.cpu()]
        return (self._lost[runs] == self._lost.min()).to(device)

    def take(self, unit: int) -> None:
        """Note that a unit went."""
        self._lost[self._run[unit]] += 1


class _Engine(Protocol):
    """Removes the cheapest unit that may go, again and again."""

    @property
    def alive(self) -> Tensor: ...

    def step(self, selection: Selection) -> tuple[int, float]: ...

    def weight(self) -> Tensor: ...


def remove_units(
    weight: Tensor,
    hessian: Tensor,
    *,
    width: int,
    removed: Sequence[int],
    runs: int = 1,
    damping: float = 1e-2,
    name: str = "the layer",
    advance: Callable[[int], None] | None = None,
) -> Removal:
    """Remove units one after the other, the cheapest first, and repair the others each time.

    Args:
        weight: W, shape (rows, units · width), any float dtype.
        hessian: H of its inputs, shape (units · width, units · width).
        width: Columns a unit: 1 for a channel, the head's dimension for a head.
        removed: How many units are gone at each level, ascending, from 0 up to all of them.
        runs: As for :class:`Selection`.
        damping: Share of the mean diagonal of H that is added to it.
        name: What the layer is called in messages.
        advance: Told how many units went, now and then.

    Returns:
        Snapshots in W's dtype, one a level. Removed sets are nested.

    Raises:
        InvalidInputError: If H cannot be inverted.
        ValueError: If ``removed`` is not as said, or shapes do not fit.
    """
    count = unit_count(weight, hessian, width, removed)
    matrix, inverted = inverse(hessian, damping, name)
    work = weight.detach().to(matrix.device, matrix.dtype, copy=True)
    work[:, hessian.diagonal() == 0] = 0.0  # an input that is always 0 needs no weight
    total = float(((work @ matrix) * work).sum())
    engine: _Engine = (ColumnRemoval if width == 1 else GroupRemoval)(work, inverted, width)
    selection = Selection(count, runs)
    order: list[int] = []
    levels = []
    error = 0.0
    for level in removed:
        if level == count:  # all go: in which order does not matter any more
            order += engine.alive.tolist()
            error = total
        while len(order) < level:
            unit, cost = engine.step(selection)
            order.append(unit)
            error += cost
            if advance is not None:
                advance(1)
        levels.append(_snapshot(engine, level, count, error, weight.dtype))
    return Removal(tuple(levels), tuple(order), total)


def _snapshot(engine: _Engine, level: int, count: int, error: float, dtype: torch.dtype) -> Level:
    if level == count:
        return Level((), None, error)
    if level == 0:
        return Level(tuple(range(count)), None, error)
    kept = tuple(engine.alive.tolist())
    return Level(kept, engine.weight().to(dtype), error)


def unit_count(weight: Tensor, hessian: Tensor, width: int, removed: Sequence[int]) -> int:
    """Return how many units a layer has.

    Raises:
        ValueError: If shapes do not fit, or ``removed`` does not ascend from 0 to at most all.
    """
    columns = weight.shape[1]
    if tuple(hessian.shape) != (columns, columns) or columns % width:
        raise ValueError(
            f"expected H of shape {(columns, columns)} and units of {width} columns, "
            f"got {tuple(hessian.shape)}"
        )
    count = columns // width
    if list(removed) != sorted(set(removed)) or not removed or removed[0] != 0:
        raise ValueError(f"expected ascending counts from 0 on, got {list(removed)}")
    if removed[-1] > count:
        raise ValueError(f"expected at most {count} removed units, got {removed[-1]}")
    return count
