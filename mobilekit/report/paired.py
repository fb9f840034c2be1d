"""Whether perplexity moved: both models scored the same windows of text, so compare those."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

from .numbers import finite
from .subjects import Subject

_FEWEST_WINDOWS = 8


def perplexity_interval(old: Subject | None, new: Subject | None) -> tuple[float, float] | None:
    """Return the 95 % interval of the relative change of perplexity, as shares.

    Both models scored the same windows of text: the difference of their nats a token has the
    standard error of a ratio estimate over the windows, and Student's t with one degree of
    freedom less than there are windows. None where the windows differ, or are fewer than eight.
    """
    pair = [_windows(s) if s else [] for s in (old, new)]
    k = len(pair[0])
    if k < _FEWEST_WINDOWS or [t for t, _ in pair[0]] != [t for t, _ in pair[1]]:
        return None
    total = sum(tokens for tokens, _ in pair[0])
    moves = [(t, after - before) for (t, before), (_, after) in zip(*pair, strict=True)]
    mean = sum(d for _, d in moves) / total
    error = math.sqrt(k / (k - 1) * sum((d - mean * t) ** 2 for t, d in moves)) / total
    reach = student_t(k - 1) * error
    return math.expm1(mean - reach), math.expm1(mean + reach)


def same_text(old: Subject | None, new: Subject | None) -> bool:
    """Tell whether two perplexities are of the same tokens of the same text, cut alike."""
    pair = [_conditions(s) if s else None for s in (old, new)]
    return pair[0] is not None and pair[0] == pair[1]


def _conditions(subject: Subject) -> tuple[Any, ...] | None:
    for result in subject.evaluations:
        metrics = result.metrics
        if metrics.get("perplexity") is not None:
            dataset = metrics.get("dataset")
            text = dataset.get("sha256") if isinstance(dataset, dict) else None
            return text, *(metrics.get(key) for key in ("tokens", "bytes", "window"))
    return None


def student_t(freedom: int, confidence: float = 0.95) -> float:
    """Return the two-sided quantile of Student's t; within 0.001 from seven degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5, three terms.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _windows(subject: Subject) -> list[tuple[float, float]]:
    """Return (tokens, nats) of each scored window of the held-out text."""
    for result in subject.evaluations:
        windows = result.metrics.get("windows")
        if isinstance(windows, list):
            pairs = [(finite(w[0]), finite(w[1])) for w in windows if isinstance(w, list | tuple)]
            return [(t, nats) for t, nats in pairs if t and nats is not None]
    return []
