"""The maths of AIMER: scores from weights, and how many experts to remove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1 << 22  # elements upcast at once: 32 MB in float64
_DIGITS = 10  # significant digits of a score


def weight_sums(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Return each expert's sum of |w| and of w² over all its matrices, and its element count.

    Args:
        tensors: The experts' matrices, each of shape (E, …), any float dtype, any device.

    Returns:
        P = Σ|w| and Q = Σw², each of shape (E,), float64, on the tensors' device; and N.

    Raises:
        ValueError: If the tensors disagree in E, or there are none.

    Source: AIMER, eq. (3)-(5). Summed in float64, a chunk of experts at a time: scores of a layer
    differ in the 3rd or 4th decimal, and this way every device ranks them alike.
    """
    if len({tensor.shape[0] for tensor in tensors}) != 1:
        raise ValueError(f"expected tensors of one E, got {[list(t.shape) for t in tensors]}")
    count = tensors[0].shape[0]
    absolute = torch.zeros(count, dtype=torch.float64, device=tensors[0].device)
    squared = torch.zeros_like(absolute)
    elements = 0
    for tensor in tensors:
        flat = tensor.detach().reshape(count, -1)  # (E, n)
        elements += flat.shape[1]
        step = max(1, _CHUNK // max(1, flat.shape[1]))
        for start in range(0, count, step):
            wide = flat[start : start + step].double()
            absolute[start : start + step] += wide.abs().sum(dim=1)
            squared[start : start + step] += wide.square().sum(dim=1)
    return absolute, squared, elements


def aimer_scores(tensors: Sequence[Tensor]) -> Tensor:
    """Return the AIMER score of each expert; higher means more removable.

    Args:
        tensors: The experts' matrices, each of shape (E, …), any float dtype.

    Returns:
        Scores, shape (E,), float64, in [1/√N, 1]; +inf for an expert that is all zeros, which is
        the first that should go; NaN where a weight is not finite.

    Raises:
        ValueError: If the tensors disagree in E.

    Source: AIMER, eq. (7): A = P / √(N·Q). The published code scores an all-zero expert 0 and so
    keeps it; we remove it.
    """
    absolute, squared, elements = weight_sums(tensors)
    scores = absolute / (elements * squared).sqrt()
    dead = absolute == 0
    return torch.where(dead, torch.full_like(scores, math.inf), scores)


def magnitude_scores(tensors: Sequence[Tensor]) -> Tensor:
    """Return each expert's mean absolute weight P/N, shape (E,), float64; higher means keep.

    Source: AIMER, weight-only ablation.
    """
    absolute, _, elements = weight_sums(tensors)
    return absolute / elements


def rounded(scores: Tensor) -> list[float]:
    """Return the scores as numbers of ten significant digits, by which experts are ranked.

    Devices sum in different orders; beyond these digits they may differ, and a plan may not.
    """
    return [float(f"{score:.{_DIGITS}g}") for score in scores.tolist()]


def choose_pruned(removable: Sequence[float], count: int) -> list[int]:
    """Return the ``count`` experts to remove, ascending.

    Args:
        removable: One number an expert; the higher, the sooner it goes. Ties: the lower id goes.
        count: How many to remove, 0 to E.
    """
    order = sorted(range(len(removable)), key=lambda expert: (-removable[expert], expert))
    return sorted(order[:count])


@dataclass(frozen=True)
class UniformCount:
    """How many experts every layer loses.

    Attributes:
        removed: Experts removed a layer.
        target: Experts that the sparsity asks for, over all layers.
        largest: The most that may be removed a layer.
        wanted: Experts a layer that come nearest to the target, top-k aside.
    """

    removed: int
    target: int
    largest: int
    wanted: int


def uniform_count(sparsity: float, experts: Sequence[int], top_k: Sequence[int]) -> UniformCount:
    """Choose one number of experts to remove from every layer.

    Args:
        sparsity: Fraction of all experts to remove, in [0, 1).
        experts: Experts of each layer.
        top_k: Experts that each layer must keep.

    Returns:
        The feasible count whose total is nearest to round(sparsity · ΣE); ties go to the smaller.

    Source: AIMER's published code (the paper gives a ratio only).
    """
    layers = len(experts)
    target = round(sparsity * sum(experts))
    largest = min(count - k for count, k in zip(experts, top_k, strict=True))

    def nearest(limit: int) -> int:
        return min(range(limit + 1), key=lambda removed: (abs(removed * layers - target), removed))

    return UniformCount(nearest(largest), target, largest, wanted=nearest(max(experts)))
