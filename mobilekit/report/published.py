"""What others published on the question set that was asked: a table of its own, in no chart.

It stands there only where the questions are the same and are answered by letter. Of any other set
the page says among its limits that it is not the benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilekit.schema.published import PublishedFigures
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

from .accuracy import asked_of
from .numbers import finite, percent
from .subjects import Subject
from .tables import Cell, Table, num, table

_COLUMNS = ("Model", "Kind", "Accuracy, published")


@dataclass(frozen=True)
class Published:
    """Others' figures with what must be said of them; no table where none is comparable."""

    table: Table | None
    notes: tuple[str, ...]


def published(run: RunRecord, found: Sequence[Subject]) -> Published | None:
    """Return what was published on the set that the section on questions shows, if anything."""
    asked = next((result for s in found if (result := asked_of(s)) is not None), None)
    if asked is None:
        return None
    figures = next((one for one in run.published if _is_on(one, asked)), None)
    if figures is None:
        return None
    if reason := figures.reason or _not_comparable(asked):
        return Published(None, (f"No published accuracy stands here: {reason}.",))
    notes = (
        f"Accuracies of other models on all {figures.questions:,} questions of {figures.dataset}, "
        f"none of them measured by MobileKit: {figures.protocol}. Source: {figures.source}.",
        *_differences(figures, asked),
    )
    return Published(_table(figures, _source_name(run)), notes)


def _is_on(figures: PublishedFigures, asked: Result) -> bool:
    dataset = asked.metrics.get("dataset")
    return isinstance(dataset, dict) and (
        dataset.get("is_mobile_mmlu") is True and dataset.get("name") == figures.dataset
    )


def _not_comparable(asked: Result) -> str | None:
    if asked.metrics.get("scorer") == "cloze":
        return "cloze scores the text of the options, and published figures are of letters"
    return None


def _differences(figures: PublishedFigures, asked: Result) -> list[str]:
    """Return in what this run is no repetition of theirs."""
    found = []
    if asked.metrics.get("scorer") == "generate":
        found.append("This run let the models write their answers: another scorer.")
    count = finite(asked.metrics.get("asked"))
    if count is not None and count < figures.questions:
        found.append(f"This run asked {count:,.0f} of the questions.")
    if asked.metrics.get("accuracy") is None:
        found.append("Without an answer key this run has no accuracy of its own.")
    return found


def _source_name(run: RunRecord) -> str:
    """Return the last part of the name of the model that went in: a hub id's, or a folder's."""
    model = run.recipe.get("model")
    source = model.get("source") if isinstance(model, dict) else None
    return str(source or "").rstrip("/").rpartition("/")[2].partition("@")[0]


def _table(figures: PublishedFigures, source: str) -> Table:
    rows: list[list[Cell | str]] = []
    for one in figures.models:
        is_source = one.model.casefold() == source.casefold()
        note = "has the name of the model that went in" if is_source else ""
        rows.append([one.model, Cell(one.group, "", note), num(percent(one.accuracy))])
    return table(_COLUMNS, rows)
