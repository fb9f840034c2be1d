"""Grouped columns, such as how often each letter was chosen, before beside after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import svg
from .charts import Kind
from .numbers import finite, percent

_TOP, _HEIGHT = 22.0, 150.0


@dataclass(frozen=True)
class Column:
    """One column: a share in [0, 1], and what it is a share of."""

    kind: Kind
    share: float
    title: str


def columns(label: str, groups: Sequence[tuple[str, Sequence[Column]]], *, reference: float) -> str:
    """Return columns from zero, one group a name, with a dashed line at ``reference``."""
    shares = [c.share for _, group in groups for c in group if finite(c.share) is not None]
    if not shares:
        return svg.sentence("no columns", label=label, kind="columns")
    top = max(*shares, reference) * 1.08
    body = [svg.line(x1=0, y1=_TOP + _HEIGHT, x2=100, y2=_TOP + _HEIGHT, cls="grid")]
    width = 100 / len(groups)
    for index, (name, group) in enumerate(groups):
        body.extend(_group(index * width, width, name, group, top))
    at = _TOP + _HEIGHT * (1 - reference / top)
    body.append(svg.line(x1=0, y1=at, x2=100, y2=at, cls="reference"))
    words = f"even, {percent(reference, 0)}"
    body.append(svg.text(words, at=100, y=at - 5, cls="tick marked", anchor="end"))
    return svg.document(body, height=_TOP + _HEIGHT + 22, label=label, kind="columns")


def _group(left: float, width: float, name: str, group: Sequence[Column], top: float) -> list[str]:
    """Return one group's columns with their figures above, and its name below."""
    body = []
    each = 0.62 * width / max(1, len(group))
    for place, column in enumerate(group):
        tall = _HEIGHT * min(max(column.share / top, 0.0), 1.0)
        at, y = left + 0.16 * width + place * each, _TOP + _HEIGHT - tall
        inside = {"at": at + 0.06 * each, "width": 0.88 * each, "y": y, "height": tall}
        body.append(svg.rect(**inside, cls=f"bar {column.kind}", title=column.title))
        figure = f"{column.share * 100:.0f}"
        cls = f"tick {column.kind}"
        body.append(svg.text(figure, at=at + each / 2, y=y - 5, cls=cls, anchor="middle"))
    body.append(
        svg.text(name, at=left + width * 0.47, y=_TOP + _HEIGHT + 17, cls="label", anchor="middle")
    )
    return body
