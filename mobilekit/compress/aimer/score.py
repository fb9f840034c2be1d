"""The maths of AIMER: scores from weights, and how many experts to remove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .kernel import Kernel, total, unit_sums

_DIGITS = 10  # significant digits of a score


class WeightSums(NamedTuple):
    """What every score from weights alone follows from.

    Attributes:
        absolute: Each expert's P = Σ|w| over all its matrices, shape (E,), float64, on a CPU.
        squared: Each expert's Q = Σw², likewise.
        elements: N, how many weights an expert has.
    """

    absolute: Tensor
    squared: Tensor
    elements: int


def weight_sums(tensors: Sequence[Tensor], kernel: Kernel | None = None) -> WeightSums:
    """Return each expert's sums over all its matrices.

    Args:
        tensors: The experts' matrices, each of shape (E, …), any float dtype, any device.
        kernel: Which kernel adds up; chosen by dtype, device and size where ``None``.

    Raises:
        ValueError: If the tensors disagree in E, or there are none.

    Source: AIMER, eq. (3)-(5).
    """
    if len({tensor.shape[0] for tensor in tensors}) != 1:
        raise ValueError(f"expected tensors of one E, got {[list(t.shape) for t in tensors]}")
    parts = [unit_sums(tensor, kernel) for tensor in tensors]
    return pooled(parts, sum(tensor[0].numel() for tensor in tensors))


def pooled(parts: Sequence[Tensor], elements: int) -> WeightSums:
    """Return the sums over all matrices of each expert.

    Args:
        parts: The sums of each matrix, shape (E, 4), as :func:`unit_sums` gives them.
        elements: How many weights an expert has in all of them.
    """
    sums = total(parts)
    return WeightSums(sums[:, 0] + sums[:, 1], sums[:, 2] + sums[:, 3], elements)


def aimer_scores(weights: Sequence[Tensor] | WeightSums) -> Tensor:
    """Return the AIMER score of each expert; higher means more removable.

    Args:
        weights: The experts' matrices, each of shape (E, …), any float dtype; or their sums.

    Returns:
        Scores, shape (E,), float64, in [1/√N, 1]; +inf for an expert that is all zeros, which is
        the first that should go; NaN where a weight is not finite.

    Raises:
        ValueError: If the tensors disagree in E.

    Source: AIMER, eq. (7): A = P / √(N·Q). The published code scores an all-zero expert 0 and so
    keeps it; we remove it.
    """
    absolute, squared, elements = _sums(weights)
    scores = absolute / (elements * squared).sqrt()
    dead = absolute == 0
    return torch.where(dead, torch.full_like(scores, math.inf), scores)


def magnitude_scores(weights: Sequence[Tensor] | WeightSums) -> Tensor:
    """Return each expert's mean absolute weight P/N, shape (E,), float64; higher means keep.

    Source: AIMER, weight-only ablation.
    """
    absolute, _, elements = _sums(weights)
    return absolute / elements


def _sums(weights: Sequence[Tensor] | WeightSums) -> WeightSums:
    return weights if isinstance(weights, WeightSums) else weight_sums(weights)


def rounded(scores: Tensor) -> list[float]:
    """Return the scores as numbers of ten significant digits, by which experts are ranked.

    Kernels and devices add up in float64, but in different orders: their scores differ by some
    1e-16. Rounded like this they are equal, but for one score in about a million, which lies that
    near to a boundary and differs in its tenth digit.
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
