"""Optimal brain surgeon as it is written in the papers: one unit at a time, everything in full."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def plain_removal(
    weight: Tensor, inverse: Tensor, width: int, steps: int, runs: int = 1
) -> tuple[list[int], list[Tensor], list[float]]:
    """Return the order, W after every step (removed columns are zeros), and the costs."""
    work, inv = weight.clone(), inverse.clone()
    count = weight.shape[1] // width
    alive, order, weights, costs = list(range(count)), [], [], []
    lost = [0] * runs
    for _ in range(steps):
        scores = {}
        for unit in alive:
            if lost[unit // (count // runs)] > min(lost):
                continue
            m = slice(unit * width, (unit + 1) * width)
            block = torch.linalg.inv(inv[m, m])
            scores[unit] = float((work[:, m] @ block * work[:, m]).sum())
        unit = min(scores, key=lambda u: scores[u])
        m = slice(unit * width, (unit + 1) * width)
        block = torch.linalg.inv(inv[m, m])
        work = work - work[:, m] @ block @ inv[m, :]
        inv = inv - inv[:, m] @ block @ inv[m, :]
        work[:, m] = 0.0
        inv[m, :], inv[:, m] = 0.0, 0.0
        inv[range(m.start, m.stop), range(m.start, m.stop)] = 1.0
        lost[unit // (count // runs)] += 1
        alive.remove(unit)
        order.append(unit)
        weights.append(work.clone())
        costs.append(scores[unit])
    return order, weights, costs


def columns_of(units: Sequence[int], width: int) -> list[int]:
    return [unit * width + k for unit in units for k in range(width)]
