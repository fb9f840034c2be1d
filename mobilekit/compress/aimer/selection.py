"""How many experts every layer loses, and which: by rank within each part of a layer.

A group-limited router (DeepSeek, GLM) knows its groups by position: experts are ranked and removed
within each group, as many from every one, so that none slips into a neighbour's place. With one
part a layer this is the paper's rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.core.errors import UnsupportedModelError, UsageError
from mobilekit.models.families import UnitGroup

from .score import choose_pruned, uniform_count


@dataclass(frozen=True)
class LayerCount:
    """What a sparsity comes to, in experts a layer.

    Attributes:
        removed: Experts that every layer loses, a multiple of its parts.
        wanted: The multiple that comes nearest to the sparsity, minimum aside.
        largest: The most that may go.
        target: Experts that the sparsity asks for, over all layers.
    """

    removed: int
    wanted: int
    largest: int
    target: int


def layer_count(
    sparsity: float, layers: int, experts: int, minimum: int, partitions: int = 1
) -> LayerCount:
    """Choose one number of experts that every layer loses, as many from each of its parts.

    Args:
        sparsity: Fraction of all experts to remove, in [0, 1).
        layers: Number of layers.
        experts: Experts a layer, a multiple of ``partitions``.
        minimum: Experts that a layer must keep.
        partitions: Parts of a layer.

    Returns:
        The feasible count whose total is nearest to round(sparsity · layers · experts); ties go
        to the smaller.

    Source: AIMER's published code for one part; groups are ours.
    """
    parts = layers * partitions
    needed = -(-minimum // partitions)  # what stays is spread evenly, so each part keeps its share
    choice = uniform_count(sparsity, [experts // partitions] * parts, [needed] * parts)
    return LayerCount(
        removed=choice.removed * partitions,
        wanted=choice.wanted * partitions,
        largest=choice.largest * partitions,
        target=choice.target,
    )


def choose_in_parts(removable: Sequence[float], count: int, partitions: int = 1) -> list[int]:
    """Return the experts to remove, ascending: ``count / partitions`` from each part.

    Args:
        removable: One number an expert; the higher, the sooner it goes. Ties: the lower id goes.
        count: How many to remove, a multiple of ``partitions``.
        partitions: Equal parts, side by side.

    Raises:
        ValueError: If the parts cannot be equal.
    """
    if partitions < 1 or len(removable) % partitions or count % partitions:
        raise ValueError(f"{count} of {len(removable)} experts in {partitions} equal parts")
    size, each = len(removable) // partitions, count // partitions
    starts = range(0, len(removable), size)
    return [s + i for s in starts for i in choose_pruned(removable[s : s + size], each)]


def count_removed(
    groups: Sequence[UnitGroup], sparsity: float, *, clip: bool
) -> tuple[int, list[str]]:
    """Return how many experts every layer loses, and what to say about it.

    Raises:
        UsageError: If layers have different numbers of experts, or fewer would stay than a layer
            needs and ``clip`` is off.
        UnsupportedModelError: If a layer's groups are not equal.
    """
    experts, partitions = _uniform(groups)
    minimum = max(group.minimum for group in groups)
    choice = layer_count(sparsity, len(groups), experts, minimum, partitions)
    total = experts * len(groups)
    warnings = []
    if choice.wanted > choice.largest:
        text = (
            f"sparsity {sparsity:g} leaves {experts - choice.wanted} of {experts} experts a layer, "
            f"fewer than {_needed(minimum, partitions)}"
        )
        legal = math.floor(choice.largest / experts * 10_000) / 10_000
        if not clip:
            raise UsageError(
                text, hint=f"Use a sparsity of at most {legal:g}, or set clip=true to stop there."
            )
        warnings.append(f"{text}; clipped to {choice.largest} removed a layer")
    elif choice.removed * len(groups) != choice.target:
        equal = f" (and in each of its {partitions} groups)" if partitions > 1 else ""
        warnings.append(
            f"sparsity {sparsity:g} asks for {choice.target} of {total} experts; "
            f"the nearest equal number a layer{equal} is {choice.removed}, "
            f"{choice.removed * len(groups)} in all"
        )
    if sparsity > 0 and choice.removed == 0:
        warnings.append(f"sparsity {sparsity:g} removes no expert at all")
    return choice.removed, warnings


def _needed(minimum: int, partitions: int) -> str:
    if partitions == 1:
        return f"the router's top-{minimum}"
    kept = -(-minimum // partitions) * partitions
    return f"the {kept} that the router needs in its {partitions} groups"


def _uniform(groups: Sequence[UnitGroup]) -> tuple[int, int]:
    """Return the number of experts and of parts that all layers have."""
    experts = {group.count for group in groups}
    if len(experts) > 1:
        raise UsageError(
            f"layers have different numbers of experts ({min(experts)} to {max(experts)})",
            hint="aimer removes the same number from every layer: start from a uniform model.",
        )
    count, partitions = experts.pop(), {group.partitions for group in groups}
    parts = max(partitions)
    if len(partitions) > 1 or count % parts:
        found = " and ".join(str(number) for number in sorted(partitions))
        raise UnsupportedModelError(
            f"a router's groups must be equal, this model has {count} experts a layer in {found}",
            hint="Check num_experts (n_routed_experts) and n_group in config.json.",
        )
    return count, parts
