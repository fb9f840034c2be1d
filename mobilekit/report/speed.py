"""Size, latency, memory and energy: charts and tables over raw samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.result import EnergyRecord

from .busy import busy_sentence, share_cell
from .charts import Bar, Strip, bars, strips
from .numbers import MISSING, plain_ms, rate, significant, size
from .subjects import (
    Phase,
    Subject,
    added_bytes,
    per_token_ms,
    reported_rate,
    spread,
    throughput,
)
from .tables import Cell, Table, num, plain, table

_LATENCY_COLUMNS = (
    "Model or artifact",
    "p50",
    "p90",
    "p99",
    "mean ± std",
    "samples",
    "median rate",
)
_COLD: tuple[Phase, ...] = ("load", "first")
_PHASES: tuple[tuple[Phase, str], ...] = (
    ("prefill", "Prefill: time to first token"),
    ("decode", "Decode: time a token"),
)


@dataclass(frozen=True)
class Speed:
    """What the sections on size, latency, memory and energy show; None where not measured."""

    size: str | None
    decode: str | None
    memory: str | None
    strips: str | None
    latency: tuple[tuple[str, Table], ...]
    memory_table: Table | None
    energy: Table | None
    no_energy: str
    cold: Table | None
    setup: Table | None
    throttled: tuple[str, ...]
    busy: str
    device: str
    place: str
    workload: str
    skipped: tuple[tuple[str, str], ...]


def speed(found: Sequence[Subject], device: str) -> Speed:
    """Return the charts and tables on speed and memory on one device."""
    return Speed(
        size=_size_bars(found),
        decode=_decode_bars(found),
        memory=_memory_bars(found),
        strips=_strips(found),
        latency=_latency(found),
        memory_table=_memory_table(found),
        energy=_energy_table(found),
        no_energy=_one_status(found),
        cold=_cold(found),
        setup=_setup(found),
        throttled=tuple(s.name for s in found if s.throttled),
        busy=busy_sentence(found),
        device=device,
        place=device.partition(", ")[0],
        workload=next((s.decode_workload for s in found), ""),
        skipped=_skipped(found),
    )


def _skipped(found: Sequence[Subject]) -> tuple[tuple[str, str], ...]:
    """Return which subjects did not run, one line a reason."""
    names: dict[str, list[str]] = {}
    for subject in found:
        if subject.skipped:
            names.setdefault(subject.skipped, []).append(subject.name)
    return tuple((", ".join(who), why) for why, who in names.items())


def _size_bars(found: Sequence[Subject]) -> str | None:
    items = [Bar(s.name, s.bytes, size(s.bytes), s.kind, missing="not recorded") for s in found]
    if all(item.value is None for item in items):
        return None
    return bars("Bytes of each checkpoint and artifact; less is better", items)


def _decode_bars(found: Sequence[Subject]) -> str | None:
    items = [
        Bar(s.name, s.decode_rate(), rate(s.decode_rate()), s.kind, missing=_why(s)) for s in found
    ]
    if all(item.value is None for item in items):
        return None
    return bars("Decoded tokens a second of each model and artifact; more is better", items)


def _memory_bars(found: Sequence[Subject]) -> str | None:
    items = []
    for subject in found:
        record = subject.memory()
        added = added_bytes(record)
        items.append(Bar(subject.name, added, size(added), subject.kind, missing=_why(subject)))
    if all(item.value is None for item in items):
        return None
    return bars(
        "Memory that each model and artifact adds to its process at the peak; less is better", items
    )


def _why(subject: Subject) -> str:
    return "not run on this device" if subject.skipped else "not measured"


def _strips(found: Sequence[Subject]) -> str | None:
    rows = [Strip(s.name, s.decode_ms(), s.kind) for s in found if s.decode_ms()]
    if not rows:
        return None
    label = "Raw decode latencies a token, logarithmic axis, with median and p10 to p90"
    return strips(label, rows, show=plain_ms)


def _latency(found: Sequence[Subject]) -> tuple[tuple[str, Table], ...]:
    """Return one table of percentiles for each phase and workload that was sampled."""
    tables = []
    workloads = sorted({r.workload.id for s in found for r in s.profiles})
    for phase, words in _PHASES:
        for workload in workloads:
            rows = [r for s in found if (r := _latency_row(s, phase, workload)) is not None]
            if rows:
                tables.append((f"{words} · {workload}", table(_LATENCY_COLUMNS, rows)))
    return tuple(tables)


def _latency_row(subject: Subject, phase: Phase, workload: str) -> list[Cell | str] | None:
    samples = subject.samples(phase, workload)
    stats = spread(per_token_ms(samples) if phase == "decode" else [s.ns / 1e6 for s in samples])
    if stats is None:
        return None
    times = [num(plain_ms(v)) for v in (stats.p50, stats.p90, stats.p99)]
    std = f"\u00a0±\u00a0{significant(stats.std, 2)}" if stats.std else ""
    mean = num(plain_ms(stats.mean).replace("\u00a0ms", f"{std}\u00a0ms"))
    # the same median over repetitions as in the headline, so that no figure has two values
    known = reported_rate(subject.profiles, phase, workload)
    speed_ = rate(throughput(samples) if known is None else known)
    return [subject.name, *times, mean, num(str(stats.n)), num(speed_)]


def _cold(found: Sequence[Subject]) -> Table | None:
    """Return the cold start, which happens once a process: no percentiles where n is 1."""
    rows: list[list[Cell | str]] = []
    for subject in found:
        cells = []
        for phase in _COLD:
            stats = spread([s.ns / 1e6 for s in subject.samples(phase)])
            note = f"median of {stats.n}" if stats and stats.n > 1 else ""
            cells.append(num(plain_ms(stats.p50) if stats else MISSING, note))
        if any(cell.text != MISSING for cell in cells):
            rows.append([subject.name, *cells])
    return table(("Model or artifact", "Load", "First inference, cold"), rows) if rows else None


def _setup(found: Sequence[Subject]) -> Table | None:
    """Return which runtime ran what, with its version and threads."""
    rows: list[list[Cell | str]] = []
    for subject in found:
        for result in subject.profiles:
            runtime, load = result.runtime, result.workload
            threads = runtime.get("threads")
            words = (
                load.id,
                *(plain(runtime.get(key, MISSING)) for key in ("name", "version")),
                "runtime's choice" if threads is None else plain(threads),
                plain(runtime.get("context_length", MISSING)),
                f"{load.repetitions} after {load.warmup} warm-up",
            )
            if result.samples:
                cells = [Cell(word, "short") for word in words]
                rows.append([subject.name, *cells, share_cell(result)])
    columns = (
        *("Model or artifact", "Workload", "Runtime", "Version", "Threads", "Context"),
        *("Repetitions", "CPUs used by other work"),
    )
    return table(columns, rows) if rows else None


def _memory_table(found: Sequence[Subject]) -> Table | None:
    rows: list[list[Cell | str]] = []
    for subject in found:
        record = subject.memory()
        if record is None:
            continue
        peak, start = record.peak_bytes, record.baseline_bytes
        added = added_bytes(record)
        cells = [num(size(start)), num(size(peak), record.reason or ""), num(size(added))]
        rows.append([subject.name, Cell(record.counter, "short"), *cells])
    columns = ("Model or artifact", "Counter", "Baseline", "Peak", "Added")
    return table(columns, rows) if rows else None


def _one_status(found: Sequence[Subject]) -> str:
    """Return the sentence that stands for the table where energy was unavailable throughout."""
    records = [r.energy for s in found for r in s.profiles if r.energy is not None]
    reasons = {record.reason or "" for record in records}
    if len(reasons) == 1 and all(record.status == "unavailable" for record in records):
        return reasons.pop()
    return ""


def _energy_table(found: Sequence[Subject]) -> Table | None:
    """Return the energy status of each subject; measured and modelled joules in columns apart."""
    rows: list[list[Cell | str]] = []
    for subject in found:
        seen: list[EnergyRecord] = []
        for result in subject.profiles:
            if result.energy is not None and result.energy not in seen:
                seen.append(result.energy)
                rows.append([subject.name, *_energy_cells(result.energy)])
    columns = ("Model or artifact", "Status", "Measured", "Modelled", "Source or reason")
    return table(columns, rows) if rows else None


def _energy_cells(record: EnergyRecord) -> list[Cell | str]:
    per_token = record.joules_per_token
    text = f"{significant(record.joules)} J" if record.joules is not None else "–"
    note = f"{significant(per_token)} J a token" if per_token is not None else ""
    measured = num(text, note) if record.status == "measured" else num("–")
    modelled = num(text, note) if record.status == "modelled" else num("–")
    words = record.reason if record.status == "unavailable" else record.source
    status = Cell(record.status, "ok" if record.status == "measured" else "muted")
    return [status, measured, modelled, words or "–"]
