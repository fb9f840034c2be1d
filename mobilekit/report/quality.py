"""Quality before and after: held-out perplexity, sample-set accuracy, categories, Pareto."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobilekit.metrics.intervals import mcnemar_exact
from mobilekit.schema.result import Result

from . import maps
from .charts import Bar, Kind, Share, bars, intervals
from .numbers import MISSING, Change, finite, p_value, percent, significant, size
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
    device: str


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


def _interval(record: dict[str, Any]) -> tuple[float | None, float | None]:
    pair = record.get("interval")
    if isinstance(pair, list | tuple) and len(pair) == 2:
        return finite(pair[0]), finite(pair[1])
    return None, None


def compare(old: Accuracy | None, new: Accuracy | None) -> Change | None:
    """Return the change in points; ``unclear`` unless a paired test or the intervals tell."""
    if old is None or new is None:
        return None
    points = (new.value - old.value) * 100
    if abs(points) < 0.05:
        return Change("no change", "same")
    text = f"{'+' if points > 0 else '−'}{abs(points):.1f} points"
    p = paired_p(old, new)
    apart = _disjoint(old, new) if p is None else p < 0.05
    if not apart:
        return Change(text, "unclear")
    return Change(text, "better" if points > 0 else "worse")


def _disjoint(old: Accuracy, new: Accuracy) -> bool:
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return False
    return old.high < new.low or new.high < old.low


def paired_p(old: Accuracy | None, new: Accuracy | None) -> float | None:
    """Return the p value of the exact McNemar test, where both answered the same questions."""
    if old is None or new is None or set(old.result.letters) != set(new.result.letters):
        return None
    right = [a.result.metrics.get("correct_ids") for a in (old, new)]
    if not all(isinstance(ids, list) for ids in right) or old.n != new.n:
        return None
    first, second = ({str(i) for i in ids or []} for ids in right)
    return mcnemar_exact(len(first - second), len(second - first))


def quality(found: Sequence[Subject]) -> Quality:
    """Return the charts, tables and sentences on quality."""
    points = _points(found)
    new = shipped(found)
    scored = [a for a in (accuracy_of(s) for s in found) if a is not None]
    return Quality(
        perplexity=_perplexity_bars(found),
        accuracy=_accuracies(found),
        categories=_categories(baseline(found), new),
        pareto=_pareto(points),
        key=tuple(_key(points)),
        table=_table(found),
        suite=scored[0].suite if scored else "",
        paired=_paired(baseline(found), new),
        device=", ".join(_devices(found)),
    )


def _devices(found: Sequence[Subject]) -> list[str]:
    """Return the classes of the devices that evaluated."""
    names = (str(r.device.get("class") or "") for s in found for r in s.evaluations)
    return [name for name in dict.fromkeys(names) if name]


def _perplexity_bars(found: Sequence[Subject]) -> str | None:
    items = []
    for subject in found:
        value = perplexity_of(subject)
        items.append(Bar(subject.name, value, significant(value), subject.kind))
    if all(item.value is None for item in items):
        return None
    return bars("Held-out perplexity of each model and artifact; less is better", items)


def _accuracies(found: Sequence[Subject]) -> str | None:
    rows = []
    for subject in found:
        accuracy = accuracy_of(subject)
        if accuracy is not None:
            low, high, text = accuracy.low, accuracy.high, percent(accuracy.value)
            share = Share(subject.name, accuracy.value, low, high, text, subject.kind)
            rows.append((subject.name, [share]))
    if not rows:
        return None
    label = "Accuracy of each model and artifact with its 95 % interval; more is better"
    return intervals(label, rows, reference=CHANCE)


def _categories(old: Subject | None, new: Subject | None) -> str | None:
    """Return a dot and interval a category, before beside after."""
    pair = [(s.kind, accuracy_of(s)) for s in (old, new) if s is not None]
    records = [(k, a.result.metrics.get("categories")) for k, a in pair if a is not None]
    mappings = [(k, r) for k, r in records if isinstance(r, dict) and r]
    if not mappings:
        return None
    rows = []
    for name in sorted({str(name) for _, record in mappings for name in record}):
        entries = [(kind, record.get(name)) for kind, record in mappings]
        known = [(kind, entry) for kind, entry in entries if isinstance(entry, dict)]
        asked = next((n for _, e in known if (n := finite(e.get("n"))) is not None), None)
        title = name if asked is None else f"{name} · {asked:.0f}"
        rows.append((title, [_share(name, kind, entry) for kind, entry in known]))
    return intervals("Accuracy by category with Wilson 95 % intervals", rows, reference=CHANCE)


def _share(name: str, kind: Kind, entry: dict[str, Any]) -> Share:
    value, (low, high) = finite(entry.get("accuracy")), _interval(entry)
    return Share(f"{name}, {kind}", value, low, high, percent(value, 0), kind)


def _points(found: Sequence[Subject]) -> list[tuple[Subject, maps.Point]]:
    """Return the subjects that have both a size and a perplexity, numbered from 1."""
    points: list[tuple[Subject, maps.Point]] = []
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
    )


def _key(
    points: Sequence[tuple[Subject, maps.Point]],
) -> list[tuple[int, str, str, str, str]]:
    """Return number, marker, name, size and perplexity of each point of the scatter."""
    return [
        (p.number, maps.marker_icon(p.shape, p.cls), s.name, size(s.bytes), significant(p.y))
        for s, p in points
    ]


def _table(found: Sequence[Subject]) -> Table | None:
    rows: list[list[Cell | str]] = []
    old = baseline(found)
    first = accuracy_of(old) if old else None
    for subject in found:
        ppl, accuracy = perplexity_of(subject), accuracy_of(subject)
        if ppl is None and accuracy is None:
            continue
        p = None if subject is old else paired_p(first, accuracy)
        share = percent(accuracy.value) if accuracy else MISSING
        figures = (significant(ppl, 4), significant(subject.figure("bits_per_byte"), 4), share)
        interval = accuracy.interval_text() if accuracy else MISSING
        paired = MISSING if p is None else p_value(p)
        rows.append([subject.name, *[num(text) for text in (*figures, interval, paired)]])
    columns = (
        *("Model or artifact", "Perplexity", "Bits per byte", "Accuracy", "95 % interval"),
        "Paired test vs before",
    )
    return table(columns, rows) if rows else None


def _paired(old: Subject | None, new: Subject | None) -> str:
    if old is None or new is None:
        return ""
    p = paired_p(accuracy_of(old), accuracy_of(new))
    if p is None:
        return ""
    verdict = "a difference" if p < 0.05 else "no difference that this set can show"
    return (
        f"Exact McNemar test on the same questions, before against {new.id}: "
        f"{p_value(p)}, {verdict}."
    )
