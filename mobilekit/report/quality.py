"""Quality before and after: held-out perplexity, sample-set accuracy, category intervals, Pareto."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.result import Result

from . import maps
from .charts import Bar, Share, bars, intervals
from .numbers import Change, finite, p_value, percent, significant, size
from .subjects import Subject, baseline, scalar, shipped
from .tables import Cell, Table, num, table

CHANCE = 0.25  # four options a question


@dataclass(frozen=True)
class Accuracy:
    """Share of questions answered rightly, in [0, 1], with its Wilson 95 % interval."""

    suite: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    result: Result

    def interval_text(self) -> str:
        """Return the interval as percentages, or that there is none."""
        if self.low is None or self.high is None:
            return "not recorded"
        return f"{percent(self.low)} to {percent(self.high)}"


@dataclass(frozen=True)
class Quality:
    """What the section on quality shows; every part may be missing."""

    perplexity: str | None
    accuracy: str | None
    categories: str | None
    pareto: str | None
    key: tuple[tuple[int, str, str, str, str], ...]
    table: Table | None
    suite: str
    paired: str


def perplexity_of(subject: Subject) -> float | None:
    """Return the held-out perplexity of a subject."""
    return next(
        (v for r in subject.evaluations if (v := scalar(r.metrics.get("perplexity"))) is not None),
        None,
    )


def accuracy_of(subject: Subject) -> Accuracy | None:
    """Return the accuracy on the question set, where one was run with a key."""
    for result in subject.evaluations:
        value = scalar(result.metrics.get("accuracy"))
        if value is not None:
            low, high = _interval(result.metrics)
            n = finite(result.metrics.get("n"))
            size_ = None if n is None else int(n)
            return Accuracy(result.workload.id, value, low, high, size_, result)
    return None


def _interval(record: dict[str, object]) -> tuple[float | None, float | None]:
    """Return the ends of an interval from the forms that results use."""
    inner = record.get("accuracy")
    for holder in (record, inner if isinstance(inner, dict) else {}):
        for name in ("interval", "accuracy_interval", "ci95", "wilson95", "wilson"):
            pair = holder.get(name)
            if isinstance(pair, list | tuple) and len(pair) == 2:
                return finite(pair[0]), finite(pair[1])
        if "low" in holder and "high" in holder:
            return finite(holder["low"]), finite(holder["high"])
    return None, None


def compare(old: Accuracy | None, new: Accuracy | None) -> Change | None:
    """Return the change in points; ``unclear`` unless a paired test or the intervals tell."""
    if old is None or new is None:
        return None
    points = (new.value - old.value) * 100
    if abs(points) < 0.05:
        return Change("no change", "same")
    text = f"{'+' if points > 0 else '−'}{abs(points):.1f} points"
    p = paired_p(new.result)
    apart = _disjoint(old, new) if p is None else p < 0.05
    if not apart:
        return Change(text, "unclear")
    return Change(text, "better" if points > 0 else "worse")


def _disjoint(old: Accuracy, new: Accuracy) -> bool:
    if None in (old.low, old.high, new.low, new.high):
        return False
    return bool(old.high < new.low or new.high < old.low)  # type: ignore[operator]


def paired_p(result: Result) -> float | None:
    """Return the p value of the exact McNemar test against the model before, where recorded."""
    record = result.metrics.get("mcnemar")
    return finite(record.get("p_value")) if isinstance(record, dict) else None


def quality(found: Sequence[Subject]) -> Quality:
    """Return the charts, tables and sentences on quality."""
    points = _points(found)
    new = shipped(found)
    scored = [a for a in (accuracy_of(s) for s in found) if a is not None]
    return Quality(
        perplexity=_perplexity_bars(found),
        accuracy=_accuracy_bars(found),
        categories=_categories(baseline(found), new),
        pareto=_pareto(points),
        key=tuple(_key(found, points)),
        table=_table(found),
        suite=scored[0].suite if scored else "",
        paired=_paired(new),
    )


def _perplexity_bars(found: Sequence[Subject]) -> str | None:
    items = []
    for subject in found:
        value = perplexity_of(subject)
        items.append(Bar(subject.name, value, significant(value), subject.kind))
    if all(item.value is None for item in items):
        return None
    return bars("Held-out perplexity of each model and artifact; less is better", items)


def _accuracy_bars(found: Sequence[Subject]) -> str | None:
    items = []
    for subject in found:
        accuracy = accuracy_of(subject)
        if accuracy is None:
            items.append(Bar(subject.name, None, "", subject.kind))
            continue
        low, high = accuracy.low, accuracy.high
        items.append(
            Bar(subject.name, accuracy.value, percent(accuracy.value), subject.kind, low, high)
        )
    if all(item.value is None for item in items):
        return None
    label = "Accuracy of each model and artifact with its 95 % interval; more is better"
    return bars(label, items, maximum=1.0, reference=CHANCE)


def _categories(old: Subject | None, new: Subject | None) -> str | None:
    """Return a dot and interval a category, before beside after."""
    pair = [(s.kind, accuracy_of(s)) for s in (old, new) if s is not None]
    records = [(k, a.result.metrics.get("categories")) for k, a in pair if a is not None]
    mappings = [(k, r) for k, r in records if isinstance(r, dict) and r]
    if not mappings:
        return None
    rows = []
    for name in sorted({str(name) for _, record in mappings for name in record}):
        shares = []
        for kind, record in mappings:
            entry = record.get(name)
            if not isinstance(entry, dict):
                continue
            value, (low, high) = scalar(entry.get("accuracy")), _interval(entry)
            n = finite(entry.get("n"))
            text = percent(value, 0) + (f" of {n:.0f}" if n is not None and kind == "after" else "")
            shares.append(Share(f"{name}, {kind}", value, low, high, text, kind))
        rows.append((name, shares))
    return intervals("Accuracy by category with Wilson 95 % intervals", rows, reference=CHANCE)


def _points(found: Sequence[Subject]) -> list[tuple[Subject, maps.Point]]:
    """Return the subjects that have both a size and a perplexity, numbered from 1."""
    points = []
    for subject in found:
        value = perplexity_of(subject)
        if value is None or not subject.bytes:
            continue
        number = len(points) + 1
        where = f"{number} · {subject.name}: {size(subject.bytes)}, perplexity {significant(value)}"
        points.append(
            (subject, maps.Point(number, where, subject.bytes / 1e6, value, *_mark(subject)))
        )
    return points


def _mark(subject: Subject) -> tuple[maps.Shape, str]:
    """Return shape by format and fill by precision: hollow where weights stay 16 or 32 bits."""
    if subject.artifact is None:
        return "cross", subject.kind
    shapes: dict[str, maps.Shape] = {"pte": "circle", "onnx": "square", "mlpackage": "diamond"}
    hollow = subject.artifact.precision in ("fp32", "fp16", "bf16")
    return shapes[subject.artifact.format], "after hollow" if hollow else "after"


def _pareto(points: Sequence[tuple[Subject, maps.Point]]) -> str | None:
    if len(points) < 2:
        return None
    return maps.scatter(
        "Perplexity against file size; less is better on both axes",
        [point for _, point in points],
        x_name="file size, MB",
        y_name="held-out perplexity",
        show_x=lambda v: f"{v:g}",
        show_y=lambda v: f"{v:g}",
    )


def _key(
    found: Sequence[Subject], points: Sequence[tuple[Subject, maps.Point]]
) -> list[tuple[int, str, str, str, str]]:
    """Return number, marker, name, size and perplexity of each point of the scatter."""
    return [
        (p.number, maps.marker_icon(p.shape, p.cls), s.name, size(s.bytes), significant(p.y))
        for s, p in points
    ]


def _table(found: Sequence[Subject]) -> Table | None:
    rows: list[list[Cell | str]] = []
    for subject in found:
        ppl, bits = perplexity_of(subject), _bits(subject)
        accuracy = accuracy_of(subject)
        if ppl is None and accuracy is None:
            continue
        low_high = accuracy.interval_text() if accuracy else ""
        asked = "" if accuracy is None or accuracy.n is None else f"n = {accuracy.n}"
        rows.append(
            [
                subject.name,
                num(significant(ppl, 4)),
                num(significant(bits, 4)),
                num(percent(accuracy.value) if accuracy else "–", asked),
                num(low_high or "–"),
            ]
        )
    columns = ("Model or artifact", "Perplexity", "Bits per byte", "Accuracy", "95 % interval")
    return table(columns, rows) if rows else None


def _bits(subject: Subject) -> float | None:
    return subject.figure("bits_per_byte")


def _paired(new: Subject | None) -> str:
    accuracy = accuracy_of(new) if new else None
    p = paired_p(accuracy.result) if accuracy else None
    if p is None:
        return ""
    verdict = "a difference" if p < 0.05 else "no difference that this set can show"
    return f"Exact McNemar test on the same questions, before against after: {p_value(p)}, {verdict}."
