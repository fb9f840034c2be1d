"""The timed loops: cold start, warm-ups, repetitions, then energy in a run of its own.

Reading energy counters costs time, so latency is taken first, without them; the energy run
repeats the same work afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilekit.runtime.base import TokenLogits, Tokens
from mobilekit.schema.result import EnergyRecord, MemoryRecord, Sample, Workload

from . import workloads as work
from .job import Measured
from .meters import energy
from .meters.contention import cpu_times, other_work, waited_ns
from .meters.memory import MemoryMeter, memory_meter
from .meters.thermal import hottest, read_thermal

ENERGY_SECONDS = 2.0
IDLE_SECONDS = 3.0  # before and after; a bench protocol takes 30, which the demo cannot spend


@dataclass
class Measurement:
    """What came out for one opened model."""

    runtime: TokenLogits
    cold: tuple[Sample, ...]
    measured: list[Measured]
    is_peak_reset: bool
    idle_drift_watts: float | None = None


@dataclass(frozen=True)
class Plan:
    """What to run, how often, and where the counters are."""

    workloads: Sequence[Workload]
    repetitions: int
    warmup: int
    sysfs: Path = Path("/sys")
    memory: MemoryMeter = field(default_factory=memory_meter)
    on_repetition: Callable[[], None] = lambda: None


def measure(open_runtime: Callable[[], TokenLogits], plan: Plan) -> Measurement:
    """Open a model and measure every workload on it.

    Args:
        open_runtime: Loads the model; everything it needs is imported by now, so that the memory
            before the call is the baseline.
        plan: What to run.

    Raises:
        UsageError: If a workload does not fit the context; found before anything is timed.
    """
    is_reset = plan.memory.reset()
    baseline = plan.memory.peak()
    runtime, cold = _cold_start(open_runtime)
    loading = plan.memory.peak()
    for workload in plan.workloads:
        work.check_fits(workload, runtime.context_length)
    measured = [_workload(runtime, w, plan, (baseline, loading)) for w in plan.workloads]
    records, drift = _energies(runtime, plan)
    measured = [
        item.model_copy(update={"energy": record})
        for item, record in zip(measured, records, strict=True)
    ]
    return Measurement(runtime, cold, measured, is_reset, drift)


def _cold_start(open_runtime: Callable[[], TokenLogits]) -> tuple[TokenLogits, tuple[Sample, ...]]:
    start = time.perf_counter_ns()
    runtime = open_runtime()
    loaded = time.perf_counter_ns()
    np.argmax(runtime.forward(np.zeros(1, dtype=np.int64), 0))
    ran = time.perf_counter_ns()
    return runtime, (
        Sample(phase="load", ns=loaded - start),
        Sample(phase="first", ns=ran - loaded),
    )


def _workload(
    runtime: TokenLogits,
    workload: Workload,
    plan: Plan,
    earlier: tuple[int | None, int | None],
) -> Measured:
    """Measure one workload; ``earlier`` is the memory before loading, and the peak of loading."""
    is_reset = plan.memory.reset()  # so that no workload inherits the peak of the one before
    prompt, new = work.random_tokens(workload, runtime.vocab_size)
    for _ in range(plan.warmup):
        time_repetition(runtime, prompt, new, 0)
        plan.on_repetition()
    before = read_thermal(plan.sysfs)
    waited, start, times = waited_ns(), time.perf_counter_ns(), cpu_times()
    samples: list[Sample] = []
    rss: list[int | None] = []
    heat: list[float | None] = []
    for repetition in range(plan.repetitions):
        samples += time_repetition(runtime, prompt, new, repetition)
        rss.append(plan.memory.current())
        heat.append(hottest(plan.sysfs))
        plan.on_repetition()
    others = other_work(times, cpu_times())
    wait_share = _share(waited, waited_ns(), time.perf_counter_ns() - start)
    known = [value for value in rss if value is not None]
    return Measured(
        workload=workload.id,
        samples=tuple(samples),
        memory=_memory_record(plan.memory, *earlier, is_reset=is_reset),
        rss_bytes=tuple(known) if len(known) == len(rss) else None,
        wait_share=wait_share,
        other_work=others,
        energy=energy.unavailable("not measured yet"),
        thermal=_thermal(before, read_thermal(plan.sysfs), heat),
    )


def time_repetition(
    runtime: TokenLogits, prompt: Tokens, new: Tokens, repetition: int
) -> list[Sample]:
    """Run a workload once and return one sample a call.

    A call is timed from the end of the one before it to the choice of its most likely token, so
    the samples of a repetition add up to its wall time. Forgetting the cache is not timed.

    Args:
        runtime: What runs the model.
        prompt: Tokens (N,) of the prompt, possibly none.
        new: Tokens (M,) fed one by one, possibly none.
        repetition: Number to write into the samples.
    """
    runtime.reset()
    calls = ([(prompt, 0)] if len(prompt) else []) + [
        (new[i : i + 1], len(prompt) + i) for i in range(len(new))
    ]
    stamps = [time.perf_counter_ns()]
    for tokens, position in calls:
        np.argmax(runtime.forward(tokens, position))
        stamps.append(time.perf_counter_ns())
    skip = 1 if len(prompt) else 0
    samples = []
    for i, (tokens, _) in enumerate(calls):
        phase: Literal["prefill", "decode"] = "prefill" if i < skip else "decode"
        samples.append(
            Sample(
                phase=phase,
                repetition=repetition,
                token=None if i < skip else i - skip,
                tokens=len(tokens),
                ns=stamps[i + 1] - stamps[i],
            )
        )
    return samples


def _share(before: int | None, after: int | None, elapsed: int) -> float | None:
    return None if before is None or after is None else (after - before) / max(elapsed, 1)


def _memory_record(
    meter: MemoryMeter, baseline: int | None, loading: int | None, *, is_reset: bool
) -> MemoryRecord:
    """Return the peak of loading the model and of this workload, whichever is larger."""
    peaks = [peak for peak in (loading, meter.peak()) if peak is not None]
    inherited = "the counter cannot be reset: the peak is that of all workloads so far"
    return MemoryRecord(
        counter=meter.counter,
        peak_bytes=max(peaks, default=None),
        baseline_bytes=baseline,
        reason=meter.reason or (None if is_reset else inherited),
    )


def _thermal(
    before: dict[str, Any], after: dict[str, Any], heat: Sequence[float | None]
) -> dict[str, Any]:
    known = [value for value in heat if value is not None]
    hottest_c = list(heat) if known else None
    return {"before": before, "after": after, "hottest_c_by_repetition": hottest_c}


def _energies(runtime: TokenLogits, plan: Plan) -> tuple[list[EnergyRecord], float | None]:
    """Return one record a workload, and how far the idle power drifted meanwhile."""
    try:
        zones = energy.find_zones(plan.sysfs)
        before = _idle_watts(zones)
        traces = [_energy_trace(runtime, workload, plan, zones) for workload in plan.workloads]
        after = _idle_watts(zones)
    except energy.EnergyUnavailableError as error:
        return [energy.unavailable(str(error)) for _ in plan.workloads], None
    records = [
        energy.energy_record(
            zones,
            trace,
            idle_watts=(before + after) / 2,
            tokens=workload.prompt_tokens + workload.new_tokens,
        )
        for workload, trace in zip(plan.workloads, traces, strict=True)
    ]
    return records, after - before


def _idle_watts(zones: Sequence[energy.Zone]) -> float:
    with energy.Recorder(zones) as recorder:
        time.sleep(IDLE_SECONDS)
    if recorder.failure is not None:
        raise recorder.failure
    return energy.watts(recorder.readings, zones)


def _energy_trace(
    runtime: TokenLogits, workload: Workload, plan: Plan, zones: Sequence[energy.Zone]
) -> list[list[energy.Reading]]:
    """Repeat a workload until the window is long enough; return the readings by repetition."""
    prompt, new = work.random_tokens(workload, runtime.vocab_size)
    bounds: list[tuple[int, int]] = []
    with energy.Recorder(zones) as recorder:
        start = time.monotonic()
        while len(bounds) < plan.repetitions or time.monotonic() - start < ENERGY_SECONDS:
            first = recorder.mark()
            time_repetition(runtime, prompt, new, 0)
            bounds.append((first, recorder.mark()))
    if recorder.failure is not None:
        raise recorder.failure
    return [recorder.readings[first : last + 1] for first, last in bounds]
