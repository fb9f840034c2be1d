"""Several tests at once: how sure one of them still is."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["holm"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given.

    Rejecting where the adjusted value is below α keeps the probability of *any* false rejection
    at α, whatever the tests' dependence.

    Args:
        p_values: Each in [0, 1].

    Raises:
        ValueError: If a value is no probability.

    Source: Holm (1979), step-down: the k-th smallest of m is multiplied by m - k + 1, and never
    falls below the one before it.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie in [0, 1], got {list(p_values)}")
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    ascending = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(ascending):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
