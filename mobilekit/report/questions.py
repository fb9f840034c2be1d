"""The question set: accuracy with intervals and paired tests, by category and field, and its cost.

Every figure is from results of this run; ``published`` keeps those of others apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import groups as grouped
from . import positions
from .accuracy import ALPHA, CHANCE, accuracy_of, asked_of, paired_p
from .charts import Kind, Share, intervals
from .groups import FieldGroup
from .numbers import MISSING, finite, p_value, percent, significant
from .pareto import Cost, Pareto, Worth, latency_cost, memory_cost, pareto, size_cost
from .subjects import Subject, baseline, shipped
from .tables import Cell, Table, num, table

_FEW = 500  # questions; below, a category has too few to look at first
_COLUMNS = (
    *("Model or artifact", "Questions", "Right", "95 % interval", "Without an answer", "Ties"),
    *("Letters from even", "Paired test vs before"),
)


@dataclass(frozen=True)
class Questions:
    """What the section on the question set shows; every part may be missing."""

    suite: str
    accuracy: str | None
    paired: str
    models: Table | None
    pareto: Pareto | None
    is_small: bool
    categories: str | None
    tests: Table | None
    tests_note: str
    fields: tuple[FieldGroup, ...]
    fields_note: str
    letters: str | None
    letters_note: str
    rotated: str | None
    order: Table | None


def questions(found: Sequence[Subject]) -> Questions | None:
    """Return the view of the question set, None where no model was asked one."""
    asked = [subject for subject in found if asked_of(subject) is not None]
    if not asked:
        return None
    pair = _pair(asked)
    scored = {kind: a for kind, s in pair.items() if (a := accuracy_of(s)) is not None}
    categories, fields = grouped.category_groups(scored), grouped.field_groups(scored)
    first = asked_of(asked[0])
    return Questions(
        suite=first.workload.id if first else "",
        accuracy=_accuracies(asked),
        paired=_paired(pair.get("before"), pair.get("after")),
        models=_models(asked),
        pareto=_pareto(found),
        is_small=sum(group.n or 0 for group in categories) < _FEW,
        categories=grouped.category_chart(categories),
        tests=grouped.category_tests(categories),
        tests_note=grouped.tests_note(categories),
        fields=grouped.by_category(fields, categories),
        fields_note=grouped.fields_note(fields),
        letters=positions.letters_chart(pair),
        letters_note=positions.letters_note(pair),
        rotated=positions.rotated_chart(pair),
        order=positions.order_table(asked),
    )


def _pair(asked: Sequence[Subject]) -> dict[Kind, Subject]:
    """Return the model before and the one that the headline is about, where they were asked."""
    old, new = baseline(asked), shipped(asked)
    if new is None:
        new = next((subject for subject in asked if subject is not old), None)
    found: dict[Kind, Subject] = {}
    if old is not None:
        found["before"] = old
    if new is not None:
        found["after"] = new
    return found


def _accuracies(asked: Sequence[Subject]) -> str | None:
    rows = []
    for subject in asked:
        accuracy = accuracy_of(subject)
        if accuracy is not None:
            low, high, text = accuracy.low, accuracy.high, percent(accuracy.value)
            share = Share(subject.name, accuracy.value, low, high, text, subject.kind)
            rows.append((subject.name, [share]))
    if not rows:
        return None
    label = "Accuracy of each model and artifact with its 95 % interval; more is better"
    return intervals(label, rows, reference=CHANCE)


def _paired(old: Subject | None, new: Subject | None) -> str:
    if old is None or new is None:
        return ""
    p = paired_p(accuracy_of(old), accuracy_of(new))
    if p is None:
        return ""
    verdict = "a difference" if p < ALPHA else "no difference that this set can show"
    return (
        f"Exact McNemar test on the same questions, before against {new.id}: "
        f"{p_value(p)}, {verdict}."
    )


def _models(asked: Sequence[Subject]) -> Table | None:
    old = baseline(asked)
    first = accuracy_of(old) if old else None
    rows: list[list[Cell | str]] = []
    for subject in asked:
        result, accuracy = asked_of(subject), accuracy_of(subject)
        metrics = result.metrics if result else {}
        p = None if subject is old else paired_p(first, accuracy)
        count = finite(metrics.get("asked")) or finite(metrics.get("n"))
        ties = finite(metrics.get("ties"))
        reason = metrics.get("reason")
        right = num(percent(accuracy.value)) if accuracy else num(MISSING, str(reason or ""))
        cells = [
            num(MISSING if count is None else f"{count:.0f}"),
            right,
            num(accuracy.interval_text() if accuracy else MISSING),
            num(percent(finite(metrics.get("invalid_rate"))), _why_invalid(metrics)),
            num(MISSING if ties is None else f"{ties:.0f}"),
            num(significant(positions.distance_of(subject), 2)),
            num(MISSING if p is None else p_value(p)),
        ]
        rows.append([subject.name, *cells])
    return table(_COLUMNS, rows) if rows else None


def _why_invalid(metrics: dict[str, object]) -> str:
    found = metrics.get("invalid")
    reasons = found.items() if isinstance(found, dict) else ()
    return ", ".join(f"{count} {str(why).replace('_', ' ')}" for why, count in reasons)


def _worth(subject: Subject) -> tuple[float, float | None, float | None] | None:
    accuracy = accuracy_of(subject)
    if accuracy is None:
        return None
    low, high = (None if v is None else 100 * v for v in (accuracy.low, accuracy.high))
    return 100 * accuracy.value, low, high


def _shown(value: float) -> str:
    return percent(value / 100)


def _pareto(found: Sequence[Subject]) -> Pareto | None:
    worth = Worth("accuracy, %", "higher", _worth, _shown, 100 * CHANCE)
    latency = latency_cost("Accuracy", found)
    costs: list[Cost] = [size_cost("Accuracy")]
    costs += [latency] if latency else []
    return pareto(found, worth, [*costs, memory_cost("Accuracy")])
