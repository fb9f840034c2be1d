"""From what a worker measured to the documents that everything else reads."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from mobilekit.schema.result import Result, Sample, Workload

from . import workloads as work
from .config import ProfileConfig
from .job import Measured, Outcome, RuntimeFacts
from .latency import latency_metrics, slope, throttling
from .targets import Target


def results_of(
    target: Target,
    loads: Sequence[Workload],
    device: dict[str, Any],
    config: ProfileConfig,
    outcome: Outcome,
) -> list[Result]:
    """Return one result a workload.

    The cold start happened once in the process, so its samples stand in the first result only.
    """
    return [
        _result(
            target,
            _workload(load, config, outcome),
            device,
            outcome,
            measured,
            cold=outcome.cold if index == 0 else (),
        )
        for index, (load, measured) in enumerate(zip(loads, outcome.measured, strict=True))
    ]


def skipped(
    target: Target,
    loads: Sequence[Workload],
    device: dict[str, Any],
    reason: str,
) -> list[Result]:
    """Return the results of something that cannot run on the device: the reason, no figure."""
    return [
        Result(
            kind="profile",
            device=device,
            runtime={"name": target.runtime, "version": None, "precision": target.precision},
            artifact=target.ref,
            workload=load.model_copy(update={"repetitions": 0}),
            metrics={"skipped": reason},
            created=_now(),
        )
        for load in loads
    ]


def _result(
    target: Target,
    load: Workload,
    device: dict[str, Any],
    outcome: Outcome,
    measured: Measured,
    *,
    cold: tuple[Sample, ...],
) -> Result:
    samples = (*cold, *measured.samples)
    runtime: RuntimeFacts | None = outcome.runtime
    return Result(
        kind="profile",
        device=device,
        runtime=runtime.model_dump(mode="json") if runtime else {},
        artifact=target.ref,
        workload=load,
        samples=samples,
        metrics={**latency_metrics(samples), **_footprint(target, measured, outcome)},
        memory=measured.memory,
        energy=measured.energy,
        thermal={**measured.thermal, "throttling": throttling(measured.samples)},
        created=_now(),
    )


def _workload(load: Workload, config: ProfileConfig, outcome: Outcome) -> Workload:
    settings = {
        "seed": work.SEED,
        "page_cache": "warm",  # the checksum was taken just before the file was loaded
        "is_peak_reset": outcome.is_peak_reset,
    }
    counts = {"repetitions": config.repetitions, "warmup": config.warmup}
    return load.model_copy(update={**counts, "settings": settings})


def _footprint(target: Target, measured: Measured, outcome: Outcome) -> dict[str, Any]:
    """Return what is known of the process beside its timings and records."""
    rss = measured.rss_bytes
    metrics: dict[str, Any] = {
        "rss_bytes_by_repetition": list(rss) if rss is not None else None,
        "rss_slope_bytes_per_repetition": slope(rss) if rss is not None else None,
        "processor_wait_share": measured.wait_share,
        "other_work": measured.other_work,
    }
    if target.state_bytes is not None:
        metrics["state_bytes"] = target.state_bytes
    if outcome.idle_drift_watts is not None:
        metrics["idle_drift_watts"] = outcome.idle_drift_watts
    return metrics


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
