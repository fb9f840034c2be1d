"""Quality before and after: held-out perplexity, its Pareto chart, and all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .accuracy import accuracy_of, paired_p
from .charts import Bar, bars
from .numbers import MISSING, p_value, percent, significant
from .pareto import Pareto, Worth, pareto, size_cost
from .subjects import Subject, baseline, scalar
from .tables import Cell, Table, num, table


@dataclass(frozen=True)
class Quality:
    """What the section on quality shows; every part may be missing."""

    perplexity: str | None
    pareto: Pareto | None
    table: Table | None
    device: str


def perplexity_of(subject: Subject) -> float | None:
    """Return the held-out perplexity of a subject."""
    return next(
        (v for r in subject.evaluations if (v := scalar(r.metrics.get("perplexity"))) is not None),
        None,
    )


def quality(found: Sequence[Subject]) -> Quality:
    """Return the charts and tables on quality."""
    return Quality(
        perplexity=_perplexity_bars(found),
        pareto=pareto(found, _PERPLEXITY, [size_cost("Perplexity")]),
        table=_table(found),
        device=", ".join(_devices(found)),
    )


def _worth(subject: Subject) -> tuple[float, None, None] | None:
    value = perplexity_of(subject)
    return None if value is None else (value, None, None)


_PERPLEXITY = Worth("held-out perplexity", "lower", _worth, significant)


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
