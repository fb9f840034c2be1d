"""A result in one line and in one row of a table, for people."""

from __future__ import annotations

from typing import Any

from mobilekit.schema.result import Result

HEADERS = (
    "artifact",
    "workload",
    "load",
    "TTFT",
    "prefill tok/s",
    "decode tok/s",
    "± std",
    "p90 a token",
    "peak memory",
    "J a token",
)
_NONE = "–"


def row(result: Result) -> list[str]:
    """Return the cells under ``HEADERS``; a dash where there is no figure.

    Rates are means over repetitions, latencies medians, as their names say elsewhere: TTFT is
    p50, load happened once.
    """
    names = [result.artifact.id, result.workload.id]
    if "skipped" in result.metrics:
        return [*names, "skipped", *[_NONE] * (len(HEADERS) - 3)]
    peak = result.memory.peak_bytes if result.memory else None
    rate_of = "decode_tokens_per_s" if result.workload.new_tokens else "prefill_tokens_per_s"
    joules = result.energy.joules_per_token if result.energy else None
    return [
        *names,
        _milliseconds(_figure(result, "load_ms", "p50")),
        _milliseconds(_figure(result, "ttft_ms", "p50")),
        _rate(_figure(result, "prefill_tokens_per_s", "mean")),
        _rate(_figure(result, "decode_tokens_per_s", "mean")),
        _rate(_figure(result, rate_of, "std")),
        _milliseconds(_figure(result, "tpot_ms", "p90")),
        _NONE if peak is None else f"{peak / 1e6:.0f} MB",
        _NONE if joules is None else f"{joules:.3g}",
    ]


def summary_line(result: Result) -> str:
    """Return the workload with its rate and spread, or why it was skipped."""
    if "skipped" in result.metrics:
        return f"{result.workload.id} skipped ({result.metrics['skipped']})"
    parts = []
    for name, word in (("prefill_tokens_per_s", "prefill"), ("decode_tokens_per_s", "decode")):
        mean, std = _figure(result, name, "mean"), _figure(result, name, "std")
        if mean is not None:
            spread = f" ± {_rate(std)}" if std is not None else ""
            parts.append(f"{word} {_rate(mean)}{spread} tok/s")
    return f"{result.workload.id} {', '.join(parts) or 'no figure'}"


def _figure(result: Result, metric: str, statistic: str) -> float | None:
    record: Any = result.metrics.get(metric)
    return record.get(statistic) if isinstance(record, dict) else None


def _rate(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _milliseconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"
