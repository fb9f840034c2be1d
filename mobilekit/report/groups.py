"""Categories and fields of the question set, before beside after, with paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobilekit.metrics.multiple import holm

from .accuracy import ALPHA, CHANCE, Accuracy, interval_of, moved, paired_p
from .charts import Kind, Share, intervals
from .numbers import MISSING, finite, p_value, percent
from .tables import Cell, Table, num, table

FEWEST = 10  # questions; below, a field's interval spans most of the axis
_COLUMNS = ("Category", "Questions", "Before", "After", "Change", "Paired test", "Corrected")


@dataclass(frozen=True)
class Group:
    """Questions that belong together: their shares by model, and the test between the models."""

    name: str
    category: str
    n: int | None
    shares: tuple[Share, ...]
    p: float | None

    @property
    def title(self) -> str:
        """Return the name in words, with the number of questions."""
        words = self.name.replace("_", " ")
        return words if self.n is None else f"{words} · {self.n}"


@dataclass(frozen=True)
class FieldGroup:
    """All fields of one category: one line, and charts in two halves."""

    summary: str
    halves: tuple[str, ...]


def category_groups(models: Mapping[Kind, Accuracy]) -> list[Group]:
    """Return the categories by name; a test only where the fields' ids are recorded."""
    ids: dict[str, set[str]] = {}
    for accuracy in models.values():
        for entry in _records(accuracy, "fields").values():
            ids.setdefault(str(entry.get("category", "")), set()).update(_ids(entry))
    names = sorted({name for one in models.values() for name in _records(one, "categories")})
    return [_group(models, "categories", name, ids.get(name)) for name in names]


def field_groups(models: Mapping[Kind, Accuracy]) -> list[Group]:
    """Return the fields by category and name."""
    names = sorted({name for one in models.values() for name in _records(one, "fields")})
    ids: dict[str, set[str]] = {}
    for accuracy in models.values():
        for name, entry in _records(accuracy, "fields").items():
            ids.setdefault(name, set()).update(_ids(entry))
    found = [_group(models, "fields", name, ids[name]) for name in names]
    return sorted(found, key=lambda group: (group.category, group.name))


def _group(models: Mapping[Kind, Accuracy], key: str, name: str, ids: set[str] | None) -> Group:
    entries = {kind: _records(one, key).get(name) for kind, one in models.items()}
    known = {kind: entry for kind, entry in entries.items() if entry is not None}
    counts = [n for entry in known.values() if (n := finite(entry.get("n"))) is not None]
    categories = [str(entry["category"]) for entry in known.values() if entry.get("category")]
    return Group(
        name=name,
        category=categories[0] if categories else "",
        n=int(counts[0]) if counts else None,
        shares=tuple(_share(name, kind, entry) for kind, entry in known.items()),
        p=paired_p(models.get("before"), models.get("after"), ids) if ids else None,
    )


def _records(accuracy: Accuracy, key: str) -> dict[str, dict[str, Any]]:
    found = accuracy.result.metrics.get(key)
    entries = found.items() if isinstance(found, dict) else ()
    return {str(name): entry for name, entry in entries if isinstance(entry, dict)}


def _ids(entry: Mapping[str, Any]) -> list[str]:
    found = entry.get("ids")
    return [str(one) for one in found] if isinstance(found, list) else []


def _share(name: str, kind: Kind, entry: Mapping[str, Any]) -> Share:
    value, (low, high) = finite(entry.get("accuracy")), interval_of(dict(entry))
    title = f"{name.replace('_', ' ')}, {kind}"
    return Share(title, value, low, high, percent(value, 0), kind)


def corrected(groups: Sequence[Group]) -> list[float | None]:
    """Return Holm's p-values over the groups that have a test."""
    known = [group.p for group in groups if group.p is not None]
    adjusted = iter(holm(known))
    return [None if group.p is None else next(adjusted) for group in groups]


def category_chart(groups: Sequence[Group]) -> str | None:
    """Return a dot and interval a category, before beside after."""
    if not groups:
        return None
    rows = [(group.title, group.shares) for group in groups]
    return intervals("Accuracy by category with Wilson 95 % intervals", rows, reference=CHANCE)


def category_tests(groups: Sequence[Group]) -> Table | None:
    """Return the change of every category, with its test alone and corrected for all of them."""
    rows: list[list[Cell | str]] = []
    for group, sure in zip(groups, corrected(groups), strict=True):
        if len(group.shares) < 2 or any(share.value is None for share in group.shares):
            continue
        old, new = (share.value or 0.0 for share in group.shares)
        change = moved(old, new, is_sure=sure is not None and sure < ALPHA)
        note = "within noise" if change.verdict == "unclear" else ""
        figures = [num(MISSING if group.n is None else str(group.n))]
        figures += [num(percent(value)) for value in (old, new)]
        figures.append(Cell(change.text, f"num {change.verdict}", note))
        tests = [MISSING if p is None else p_value(p) for p in (group.p, sure)]
        rows.append([group.name, *figures, *[num(text) for text in tests]])
    return table(_COLUMNS, rows) if rows else None


def tests_note(groups: Sequence[Group]) -> str:
    """Return how the categories' tests are to be read."""
    tested = sum(group.p is not None for group in groups)
    if not tested:
        return (
            "Categories have no paired test of their own: the results do not say which question "
            f"belongs to which. Of {len(groups)} comparisons one may stand out by chance."
        )
    return (
        "Paired test: exact McNemar on the same questions. Corrected: Holm’s method over the "
        f"{tested} categories, so that none of them is called a difference by chance (5 %)."
    )


def by_category(groups: Sequence[Group], categories: Sequence[Group]) -> tuple[FieldGroup, ...]:
    """Return the fields' charts, one group a category, where fields have enough questions."""
    if not any((group.n or 0) >= FEWEST for group in groups):
        return ()
    overall = {group.name: group for group in categories}
    found = []
    for name in dict.fromkeys(group.category for group in groups):
        mine = [group for group in groups if group.category == name]
        middle = -(-len(mine) // 2)
        halves = tuple(_fields_chart(name, part) for part in (mine[:middle], mine[middle:]) if part)
        found.append(FieldGroup(_summary(name, mine, overall.get(name)), halves))
    return tuple(found)


def _fields_chart(name: str, groups: Sequence[Group]) -> str:
    label = f"Accuracy by field, {name or 'all fields'}, with Wilson 95 % intervals"
    rows = [(group.title, group.shares) for group in groups]
    return intervals(label, rows, reference=CHANCE)


def _summary(name: str, fields: Sequence[Group], category: Group | None) -> str:
    words = [name or "Fields", f"{len(fields)} field{'s' if len(fields) > 1 else ''}"]
    shares = category.shares if category else ()
    figures = [percent(share.value) for share in shares if share.value is not None]
    return " · ".join([*words, *([" → ".join(figures)] if figures else [])])


def fields_note(groups: Sequence[Group]) -> str:
    """Return which fields differ beyond chance, or why none is shown."""
    largest = max((group.n or 0 for group in groups), default=0)
    if largest < FEWEST:
        asked = f"at most {largest} question{'s' if largest > 1 else ''} a field"
        return f"{asked}: too few for a figure of its own." if groups else ""
    tested = [(g, p) for g, p in zip(groups, corrected(groups), strict=True) if p is not None]
    if not tested:
        return ""
    sure = [group for group, p in tested if p < ALPHA]
    over = f"Paired tests, corrected over {len(tested)} fields by Holm’s method"
    if not sure:
        return f"{over}: no field differs beyond chance."
    changes = (moved(g.shares[0].value or 0, g.shares[1].value or 0, is_sure=True) for g in sure)
    words = [
        f"{group.name.replace('_', ' ')} {change.text}"
        for group, change in zip(sure, changes, strict=True)
    ]
    return f"{over}: {len(sure)} differ beyond chance: {', '.join(words)}."
