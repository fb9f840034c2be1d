"""What a figure of quality costs: scatters of all variants against size, latency and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from . import maps
from .charts import quantile
from .numbers import MISSING, plain_ms, size
from .subjects import Subject, added_bytes, scalar


@dataclass(frozen=True)
class Cost:
    """One axis on which less is better.

    Attributes:
        title: What is plotted against it.
        name: The axis, with its unit.
        of: Its value for a subject in that unit, None where not measured.
        show: Prints what ``of`` gives.
        note: How it was measured.
    """

    title: str
    name: str
    of: Callable[[Subject], float | None]
    show: Callable[[float], str]
    note: str


@dataclass(frozen=True)
class Worth:
    """The vertical axis: its value for a subject, and the ends of its interval where known.

    ``reference`` is a value that a line marks, such as chance.
    """

    name: str
    better: Literal["lower", "higher"]
    of: Callable[[Subject], tuple[float, float | None, float | None] | None]
    show: Callable[[float], str]
    reference: float | None = None


@dataclass(frozen=True)
class KeyRow:
    """One numbered line of the key."""

    number: int
    icon: Markup
    name: str
    figures: str


@dataclass(frozen=True)
class Pareto:
    """Scatters with one key: the same number is the same subject in each."""

    charts: tuple[tuple[str, str, str], ...]
    key: tuple[KeyRow, ...]


def pareto(found: Sequence[Subject], worth: Worth, costs: Sequence[Cost]) -> Pareto | None:
    """Return one scatter a cost that two subjects or more have; None where there is none."""
    valued = [(s, v) for s in found if (v := worth.of(s)) is not None]
    numbers = {s.id: number for number, (s, _) in enumerate(valued, start=1)}
    charts, used = [], set()
    for cost in costs:
        points = []
        for subject, (y, low, high) in valued:
            x = cost.of(subject)
            if x is None:
                continue
            label = f"{numbers[subject.id]} · {subject.name}: {cost.show(x)}, {worth.show(y)}"
            shape, cls = mark(subject)
            points.append(maps.Point(numbers[subject.id], label, x, y, shape, cls, low, high))
        if len(points) < 2:
            continue
        used |= {point.number for point in points}
        words = f"{cost.title}; {worth.better} is better for {worth.name}, less for {cost.name}"
        drawn = maps.scatter(
            words,
            points,
            x_name=cost.name,
            y_name=worth.name,
            better=worth.better,
            reference=worth.reference,
        )
        charts.append((cost.title, cost.note, drawn))
    if not charts:
        return None
    rows = [
        KeyRow(numbers[s.id], maps.marker_icon(*mark(s)), s.name, _figures(s, v[0], worth, costs))
        for s, v in valued
        if numbers[s.id] in used
    ]
    return Pareto(tuple(charts), tuple(rows))


def _figures(subject: Subject, y: float, worth: Worth, costs: Sequence[Cost]) -> str:
    known = (MISSING if (x := cost.of(subject)) is None else cost.show(x) for cost in costs)
    return " · ".join([*known, worth.show(y)])


def mark(subject: Subject) -> tuple[maps.Shape, str]:
    """Return shape by format and fill by precision: hollow where weights stay 16 or 32 bits."""
    if subject.artifact is None:
        return "cross", subject.kind
    shapes: dict[str, maps.Shape] = {"pte": "circle", "onnx": "square", "mlpackage": "diamond"}
    hollow = subject.artifact.precision in ("fp32", "fp16", "bf16")
    return shapes[subject.artifact.format], "after hollow" if hollow else "after"


def size_cost(what: str) -> Cost:
    """Return the axis of file sizes in MB; ``what`` is plotted against it."""
    return Cost(
        title=f"{what} against size",
        name="file size, MB",
        of=lambda s: s.bytes / 1e6 if s.bytes else None,
        show=lambda mb: size(mb * 1e6),
        note="weights of a checkpoint, files of an artifact",
    )


def memory_cost(what: str) -> Cost:
    """Return the axis of memory that a subject adds to its process, in MB."""

    def added(subject: Subject) -> float | None:
        found = added_bytes(subject.memory())
        return None if found is None else found / 1e6

    return Cost(
        title=f"{what} against memory",
        name="memory added, MB",
        of=added,
        show=lambda mb: size(mb * 1e6),
        note="peak less baseline of the process",
    )


def latency_cost(what: str, found: Sequence[Subject]) -> Cost | None:
    """Return the axis of what an answer takes: the prefill of the prompt that most ran.

    A question is one prefill; where no prompt was profiled, the axis is a decoding step.
    """
    ran = [(r.workload, s.id) for s in found for r in s.profiles if _prefill_ms(s, r.workload.id)]
    names = {load.id: {other for one, other in ran if one.id == load.id} for load, _ in ran}
    best = max(sorted(names), key=lambda name: len(names[name]), default=None)
    if best is not None and len(names[best]) > 1:
        tokens = next(load.prompt_tokens for load, _ in ran if load.id == best)
        return Cost(
            title=f"{what} against latency",
            name=f"prefill of {tokens} tokens, ms",
            of=lambda s: _prefill_ms(s, best),
            show=plain_ms,
            note=f"median time of a prompt of {tokens} tokens ({best}); a question is one prompt",
        )
    workload = next((s.decode_workload for s in found if s.decode_ms()), None)
    if workload is None:
        return None
    return Cost(
        title=f"{what} against latency",
        name="decode, ms a token",
        of=lambda s: quantile(sorted(s.decode_ms()), 0.5) if s.decode_ms() else None,
        show=plain_ms,
        note=f"median time of a decoded token ({workload}); no prompt was profiled on two models",
    )


def _prefill_ms(subject: Subject, workload: str) -> float | None:
    """Return the median time to first token of one workload."""
    for result in subject.profiles:
        if result.workload.id == workload and result.workload.prompt_tokens:
            known = scalar(result.metrics.get("ttft_ms"))
            if known is not None:
                return known
    times = sorted(s.ns / 1e6 for s in subject.samples("prefill", workload))
    return quantile(times, 0.5) if times else None
