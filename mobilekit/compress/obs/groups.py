"""Removal of blocks of columns: few steps, each with a small inverse of every block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .removal import Selection


class GroupRemoval:
    """State of a layer from which blocks of columns go, one after the other.

    What is removed is cut out at once, so that matrices shrink with every step.

    Args:
        weight: W, shape (rows, units · width); not kept.
        inverse: H⁻¹, shape (units · width, units · width); not kept.
        width: Columns a unit, h.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, width: int) -> None:
        self._weight, self._inverse, self._width = weight, inverse, width
        self.alive = torch.arange(weight.shape[1] // width, device=weight.device)

    def step(self, selection: Selection) -> tuple[int, float]:
        """Remove the cheapest unit that may go; return its id and its cost s."""
        costs, solved = self._costs()
        allowed = selection.open(self.alive, costs.device)
        index = int(torch.where(allowed, costs, torch.inf).argmin())
        unit, cost = int(self.alive[index]), float(costs[index])
        self._cut(index, solved[index])
        selection.take(unit)
        return unit, cost

    def weight(self) -> Tensor:
        """Return the columns that are left, shape (rows, left · width)."""
        return self._weight

    def _costs(self) -> tuple[Tensor, Tensor]:
        """Return s of every unit, (U,), and (H⁻¹_MM)⁻¹ W_:Mᵀ, (U, h, rows)."""
        units, width = len(self.alive), self._width
        own = self._weight.T.reshape(units, width, -1)  # (U, h, rows)
        blocks = self._inverse.view(units, width, units, width).diagonal(dim1=0, dim2=2)
        solved = _solve(blocks.movedim(-1, 0), own)
        return (own * solved).sum((1, 2)), solved

    def _cut(self, index: int, solved: Tensor) -> None:
        width = self._width
        columns = torch.arange(index * width, (index + 1) * width, device=self.alive.device)
        left = torch.ones(self._weight.shape[1], dtype=torch.bool, device=self.alive.device)
        left[columns] = False
        rows = self._inverse[columns][:, left]  # (h, rest)
        block = self._inverse[columns][:, columns]
        self._weight = self._weight[:, left] - solved.T @ rows
        rest = self._inverse[left][:, left] - rows.T @ _solve(block[None], rows[None])[0]
        self._inverse = (rest + rest.T) / 2  # rounding must not tilt it
        self.alive = self.alive[self.alive != self.alive[index]]


def _solve(blocks: Tensor, right: Tensor) -> Tensor:
    """Return blocks⁻¹ · right for (U, h, h) positive blocks; pseudo-inverse where one is not."""
    factors, failed = torch.linalg.cholesky_ex(blocks)
    if bool(failed.any()):
        inverted: Tensor = torch.linalg.pinv(blocks, hermitian=True)
        return inverted @ right
    return torch.cholesky_solve(right, factors)
