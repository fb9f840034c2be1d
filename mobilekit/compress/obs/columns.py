"""Removal of single columns: many steps, whose updates are applied in blocks.

One step of the plain algorithm writes H⁻¹ and W anew: 2 · (m² + rows · m) numbers of traffic. With
u = H⁻¹_:j / √H⁻¹_jj and c = W_:j / √H⁻¹_jj a step is H⁻¹ −= u uᵀ, W −= c uᵀ. Here a few dozen u and
c are held back and applied by one matrix product; a step then needs one column of each matrix, the
diagonal, and the columns' norms, which follow by ‖W_:k − c u_k‖² = ‖W_:k‖² − 2 u_k cᵀW_:k +
u_k² ‖c‖². That reads W once and writes nothing. At every product, removed columns are cut out of
both matrices, and the norms are taken anew, so that their rounding cannot add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .removal import Selection

_HELD = 64  # updates held back


class ColumnRemoval:
    """State of a layer from which columns go, one after the other.

    Args:
        weight: W, shape (rows, m); not kept.
        inverse: H⁻¹, shape (m, m); not kept.
        width: Columns a unit: 1.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, width: int = 1) -> None:
        if width != 1:
            raise ValueError(f"expected units of one column, got {width}")
        self._rows = weight.T.contiguous()  # (m, rows): a column of W is contiguous here
        self._inverse = inverse
        self._ids = torch.arange(weight.shape[1], device=weight.device)
        self._start()

    def _start(self) -> None:
        """Begin a block of updates with matrices that are up to date."""
        count, rows = self._rows.shape
        self._held = 0
        self._u = self._rows.new_zeros(_HELD, count)
        self._c = self._rows.new_zeros(_HELD, rows)
        self._diagonal = self._inverse.diagonal().clone()
        self._norms = self._rows.square().sum(1)
        self._left = torch.ones(count, dtype=torch.bool, device=self._rows.device)

    @property
    def alive(self) -> Tensor:
        """Ids of the columns that are left, ascending."""
        return self._ids[self._left]

    def step(self, selection: Selection) -> tuple[int, float]:
        """Remove the cheapest column that may go; return its id and its cost s."""
        allowed = self._left & selection.open(self._ids, self._left.device)
        costs = torch.where(allowed, self._norms / self._diagonal, torch.inf)
        index = int(costs.argmin())
        unit, cost = int(self._ids[index]), float(costs[index])
        self._remove(index)
        selection.take(unit)
        if self._held == _HELD:
            self._apply()
        return unit, max(0.0, cost)

    def weight(self) -> Tensor:
        """Return the columns that are left, shape (rows, left)."""
        self._apply()
        return self._rows.T

    def _remove(self, index: int) -> None:
        held, u_before, c_before = self._held, self._u[: self._held], self._c[: self._held]
        root = self._diagonal[index].sqrt()
        u = (self._inverse[index] - u_before.T @ u_before[:, index]) / root  # (m,)
        c = (self._rows[index] - c_before.T @ u_before[:, index]) / root  # (rows,)
        products = self._rows @ c - u_before.T @ (c_before @ c)  # cᵀW, (m,)
        self._norms += u * (u * c.square().sum() - 2 * products)
        self._diagonal -= u.square()
        self._left[index] = False
        self._u[held], self._c[held] = u, c
        self._held += 1

    def _apply(self) -> None:
        """Carry out what was held back, on the columns that are left."""
        if not self._held:
            return
        u, c = self._u[: self._held][:, self._left], self._c[: self._held]
        self._rows = self._rows[self._left].addmm_(u.T, c, alpha=-1)
        kept = self._inverse[self._left][:, self._left]
        self._inverse = kept.addmm_(u.T, u, alpha=-1)
        self._ids = self.alive
        self._start()
