"""Removal by a fixed score and without repair: the baselines of optimal brain surgeon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .removal import Level, Removal, Selection, unit_count

Score = Literal["magnitude", "wanda"]


def remove_by_score(
    weight: Tensor,
    hessian: Tensor,
    score: Score,
    *,
    width: int,
    removed: Sequence[int],
    runs: int = 1,
) -> Removal:
    """Remove the units of the lowest score; what is left keeps its weights.

    Args:
        weight: W, shape (rows, units · width).
        hessian: H of its inputs, (units · width, units · width): for wanda's score, and to measure
            the errors, which are tr(ΔW H ΔWᵀ) as those of :func:`remove_units`, undamped.
        score: ``magnitude``: Σ W_ij² over a unit; ``wanda``: Σ W_ij² H_jj (its square).
        width: Columns a unit.
        removed: How many units are gone at each level, ascending, from 0 on.
        runs: As for :class:`Selection`.

    Raises:
        ValueError: If ``removed`` is not as said, or shapes do not fit.
    """
    count = unit_count(weight, hessian, width, removed)
    wide = weight.detach().to(hessian.device, hessian.dtype)
    columns = wide.square().sum(0)
    if score == "wanda":
        columns = columns * hessian.diagonal()
    order = _order(columns.view(count, width).sum(1), runs)
    levels = []
    for level in removed:
        gone = torch.zeros(count, dtype=torch.bool)
        gone[order[:level]] = True
        kept = tuple((~gone).nonzero().flatten().tolist())
        lost = wide * gone.repeat_interleave(width).to(wide.device)
        own = None
        if 0 < level < count:
            own = weight.detach()[:, (~gone).repeat_interleave(width).to(weight.device)].clone()
        levels.append(Level(kept, own, float(((lost @ hessian) * lost).sum())))
    total = float(((wide @ hessian) * wide).sum())
    return Removal(tuple(levels), tuple(order[: removed[-1]]), total)


def _order(scores: Tensor, runs: int) -> list[int]:
    """Return every unit, the first to go first."""
    selection, order = Selection(len(scores), runs), []
    alive = torch.arange(len(scores))
    scores = scores.cpu()
    while len(alive):
        allowed = selection.open(alive, alive.device)
        unit = int(alive[torch.where(allowed, scores[alive], torch.inf).argmin()])
        selection.take(unit)
        order.append(unit)
        alive = alive[alive != unit]
    return order
