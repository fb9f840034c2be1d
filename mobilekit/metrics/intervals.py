"""How sure a share is, and whether two shares on the same questions differ."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["mcnemar_exact", "wilson_interval"]


def wilson_interval(correct: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a share, in [0, 1], by Wilson's score interval.

    Args:
        correct: Successes, between 0 and ``n``.
        n: Trials, at least 1.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: If the counts contradict each other or the confidence is out of range.

    Source: Wilson (1927), without continuity correction.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"an interval needs 0 <= correct <= n and n >= 1, got {correct} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / n
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at 0 and n the closed form gives the bound itself up to rounding
    low = 0.0 if correct == 0 else (middle - spread) / scale
    high = 1.0 if correct == n else (middle + spread) / scale
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value that two models answer the same questions equally well.

    Args:
        only_first: Questions that only the first model answered rightly.
        only_second: Questions that only the second model answered rightly.

    Returns:
        The exact binomial p-value, in (0, 1]; 1 where no question tells the models apart.

    Raises:
        ValueError: If a count is negative.

    Source: McNemar (1947), exact conditional form: the discordant answers are fair coin tosses.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts are not negative, got {only_first} and {only_second}")
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways, tail = 1, 1
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    # integers up to here: no rounding, however large the counts
    return min(1.0, 2 * tail / (1 << n))
