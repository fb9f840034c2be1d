"""From raw samples to figures: percentiles, rates, throttling. Pure functions.

Definitions: time to first token is prefill plus the choice of the first token (token ids are
given, so no tokenising); time per output token is (t_last - t_first) / (n - 1) of one repetition;
the decode rate is its inverse; the prefill rate is prompt tokens by prefill time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mobilekit.schema.result import Sample

THROTTLING_SHARE = 0.10
_MIN_FOR_DECILES = 20  # two samples a decile


def percentile(values: Sequence[float], share: float) -> float:
    """Return the quantile of unsorted values, linear between neighbours.

    Args:
        values: At least one number.
        share: In [0, 1]; 0.5 is the median.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return p50, p90, p99, mean, sample standard deviation and n of raw values.

    Nothing is made up for missing values: all are null with a ``reason`` where there is no value,
    and ``std`` is null for a single one.
    """
    n = len(values)
    if n == 0:
        empty = dict.fromkeys(("p50", "p90", "p99", "mean", "std"))
        return {**empty, "n": 0, "reason": "no samples"}
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    return {
        "p50": percentile(values, 0.5),
        "p90": percentile(values, 0.9),
        "p99": percentile(values, 0.99),
        "mean": mean,
        "std": spread,
        "n": n,
    }


def latency_metrics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the figures that the samples of one workload allow.

    ``ttft_ms`` and ``prefill_tokens_per_s`` come with a prompt, ``tpot_ms`` (over single tokens)
    and ``decode_tokens_per_s`` (over repetitions) with generation, ``load_ms`` and
    ``first_inference_ms`` with a cold start.
    """
    prefill = [s for s in samples if s.phase == "prefill"]
    decode = [s for s in samples if s.phase == "decode"]
    metrics: dict[str, Any] = {}
    for phase, name in (("load", "load_ms"), ("first", "first_inference_ms")):
        if cold := [s.ns / 1e6 for s in samples if s.phase == phase]:
            metrics[name] = summarise(cold)
    if prefill:
        metrics["ttft_ms"] = summarise([s.ns / 1e6 for s in prefill])
        metrics["prefill_tokens_per_s"] = summarise([s.tokens / s.ns * 1e9 for s in prefill])
    if decode:
        after_first = _after_first_token(decode, has_prompt=bool(prefill))
        metrics["tpot_ms"] = summarise([s.ns / 1e6 for s in after_first])
        metrics["decode_tokens_per_s"] = summarise(_rates(after_first))
    return metrics


def _after_first_token(decode: Sequence[Sample], *, has_prompt: bool) -> list[Sample]:
    """Return the steps between tokens; without a prompt the first step makes the first token."""
    return [s for s in decode if has_prompt or s.token != 0]


def _rates(steps: Sequence[Sample]) -> list[float]:
    """Return tokens a second of each repetition."""
    by_repetition: dict[int, list[int]] = {}
    for step in steps:
        by_repetition.setdefault(step.repetition, []).append(step.ns)
    return [len(ns) / sum(ns) * 1e9 for ns in by_repetition.values()]


def throttling(samples: Sequence[Sample]) -> dict[str, Any]:
    """Tell whether the device slowed down from the first to the last decile of the samples.

    A step at a later position attends to more tokens and is slower without any throttling, so
    each sample is first divided by the median over the repetitions of the same step.

    Returns:
        ``flag`` (true, false, or null with a ``reason``) and the medians of both deciles,
        ``first`` and ``last``, relative to the same step's median.
    """
    timed = [s for s in samples if s.phase in ("prefill", "decode")]
    missing = {"flag": None, "first": None, "last": None}
    if len({s.repetition for s in timed}) < 2:
        return {**missing, "reason": "needs two repetitions"}
    if len(timed) < _MIN_FOR_DECILES:
        return {**missing, "reason": f"needs {_MIN_FOR_DECILES} samples, has {len(timed)}"}
    first, last = decile_medians(_relative(timed))
    return {"flag": last > first * (1 + THROTTLING_SHARE), "first": first, "last": last}


def decile_medians(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last tenth of values in time order."""
    count = max(1, len(values) // 10)
    return percentile(values[:count], 0.5), percentile(values[-count:], 0.5)


def _relative(samples: Sequence[Sample]) -> list[float]:
    step: Callable[[Sample], tuple[str, int | None]] = lambda s: (s.phase, s.token)  # noqa: E731
    by_step: dict[tuple[str, int | None], list[float]] = {}
    for sample in samples:
        by_step.setdefault(step(sample), []).append(float(sample.ns))
    medians = {key: max(percentile(ns, 0.5), 1.0) for key, ns in by_step.items()}
    return [sample.ns / medians[step(sample)] for sample in samples]


def slope(values: Sequence[float]) -> float | None:
    """Return the least-squares slope of values against their index, or None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    middle = (n - 1) / 2
    mean = math.fsum(values) / n
    above = math.fsum((i - middle) * (v - mean) for i, v in enumerate(values))
    return above / math.fsum((i - middle) ** 2 for i in range(n))
