"""Whether other work ran on the machine while a model was timed: what the profiler counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.result import Result

from .numbers import MISSING, finite, percent
from .subjects import Subject
from .tables import Cell, num

LIMIT = 0.10  # of all CPUs' time; beyond it a speed is told with what else ran


@dataclass(frozen=True)
class Disturbance:
    """Other work while something was timed, in words that go on after "while"."""

    share: float
    words: str


def disturbance(subject: Subject, workload: str | None = None) -> Disturbance | None:
    """Return what disturbed the timing of a subject, None where nothing is known to have.

    The share of other work counts only as far as it is above what the counters' ticks can put it
    off. Runs too short for them still tell how long the measured thread waited for a processor.
    """
    results = [r for r in subject.profiles if workload in (None, r.workload.id)]
    known = other_share(results)
    if known is not None and known[0] - known[1] > LIMIT:
        return Disturbance(known[0], f"other work used {percent(known[0], 0)} of the CPUs")
    waits = (finite(r.metrics.get("processor_wait_share")) for r in results)
    waited = max((share for share in waits if share is not None), default=0.0)
    if waited > LIMIT:
        return Disturbance(waited, f"it waited {percent(waited, 0)} of the time for a processor")
    return None


def worst(*subjects: Subject) -> Disturbance | None:
    """Return the largest disturbance of the decoding speeds of several subjects."""
    found = [d for s in subjects if (d := disturbance(s, s.decode_workload)) is not None]
    return max(found, key=lambda one: one.share, default=None)


def other_share(results: Sequence[Result]) -> tuple[float, float] | None:
    """Return the CPU share of other work and its resolution, over the time of all results."""
    seconds = shares = resolutions = 0.0
    for result in results:
        record = result.metrics.get("other_work")
        record = record if isinstance(record, dict) else {}
        share, length = finite(record.get("cpu_share")), finite(record.get("seconds"))
        if share is None or not length:
            continue
        seconds += length
        shares += share * length
        resolutions += (finite(record.get("resolution")) or 0.0) * length
    return (shares / seconds, resolutions / seconds) if seconds else None


def share_cell(result: Result) -> Cell:
    """Return the CPU share of other work during one result, or why it is not known."""
    record = result.metrics.get("other_work")
    record = record if isinstance(record, dict) else {}
    known = other_share([result])
    if known is None:
        return num(MISSING, str(record.get("reason") or "not recorded"))
    share, resolution = known
    return num(percent(share, 0), f"± {percent(resolution, 0)}" if resolution > 0.01 else "")


def busy_sentence(found: Sequence[Subject]) -> str:
    """Return the warning that stands beside speeds, empty where nothing disturbed them."""
    named = [(s.name, d) for s in found if (d := disturbance(s)) is not None]
    if not named:
        return ""
    if len(named) == 1:
        name, one = named[0]
        return f"While {name} was timed, {one.words}: its speed is that of a busy machine."
    largest = max((one for _, one in named), key=lambda one: one.share)
    who = ", ".join(f"{name} {percent(one.share, 0)}" for name, one in named)
    return (
        f"The machine was busy: at worst {largest.words} while a model was timed. Speeds are "
        f"those of a busy machine, by model: {who}."
    )
