"""How many questions were answered rightly, and whether two models differ on the same ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mobilekit.metrics.intervals import mcnemar_exact
from mobilekit.schema.result import Result

from .numbers import Change, finite, percent
from .subjects import Subject, scalar

CHANCE = 0.25  # four options a question
ALPHA = 0.05


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


def asked_of(subject: Subject) -> Result | None:
    """Return the result of the question set, with a key or without."""
    return next((r for r in subject.evaluations if "accuracy" in r.metrics), None)


def accuracy_of(subject: Subject) -> Accuracy | None:
    """Return the accuracy on the question set, where one was run with a key."""
    for result in subject.evaluations:
        value = scalar(result.metrics.get("accuracy"))
        if value is not None:
            low, high = interval_of(result.metrics)
            n = finite(result.metrics.get("n"))
            size = None if n is None else int(n)
            return Accuracy(result.workload.id, value, low, high, size, result)
    return None


def interval_of(record: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the ends of a record's interval, None where there is none."""
    pair = record.get("interval")
    if isinstance(pair, list | tuple) and len(pair) == 2:
        return finite(pair[0]), finite(pair[1])
    return None, None


def compare(old: Accuracy | None, new: Accuracy | None) -> Change | None:
    """Return the change in points; ``unclear`` unless a paired test or the intervals tell."""
    if old is None or new is None:
        return None
    p = paired_p(old, new)
    return moved(old.value, new.value, is_sure=_disjoint(old, new) if p is None else p < ALPHA)


def moved(old: float, new: float, *, is_sure: bool) -> Change:
    """Return the change between two shares in points."""
    points = (new - old) * 100
    if abs(points) < 0.05:
        return Change("no change", "same")
    text = f"{'+' if points > 0 else '−'}{abs(points):.1f} points"
    if not is_sure:
        return Change(text, "unclear")
    return Change(text, "better" if points > 0 else "worse")


def _disjoint(old: Accuracy, new: Accuracy) -> bool:
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return False
    return old.high < new.low or new.high < old.low


def paired_p(
    old: Accuracy | None, new: Accuracy | None, ids: Collection[str] | None = None
) -> float | None:
    """Return the p value of the exact McNemar test, where both answered the same questions.

    Args:
        old: One model's answers.
        new: The other's.
        ids: Only these questions; all where ``None``.
    """
    if old is None or new is None or set(old.result.letters) != set(new.result.letters):
        return None
    right = [a.result.metrics.get("correct_ids") for a in (old, new)]
    if not all(isinstance(found, list) for found in right) or old.n != new.n:
        return None
    first, second = ({str(i) for i in found or []} for found in right)
    if ids is not None:
        first, second = first.intersection(ids), second.intersection(ids)
    return mcnemar_exact(len(first - second), len(second - first))
