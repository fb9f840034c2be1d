"""Grouped columns, such as how often each letter was chosen, before beside after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import svg
from .charts import Kind
from .numbers import finite, percent

_TOP, _HEIGHT = 22.0, 150.0
_ROOM = 88.0  # percent of the width for columns; the rest names the line


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
    top = max(*shares, 1.5 * reference)
    body = [svg.line(x1=0, y1=_TOP + _HEIGHT, x2=_ROOM, y2=_TOP + _HEIGHT, cls="grid")]
    width = _ROOM / len(groups)
    at = _TOP + _HEIGHT * (1 - reference / top)
    line = svg.line(x1=0, y1=at, x2=_ROOM, y2=at, cls="reference")
    names = []
    for index, (name, group) in enumerate(groups):
        drawn, figures = _group(index * width, width, group, top)
        body += drawn
        names += figures
        middle = (index + 0.47) * width
        foot = _TOP + _HEIGHT + 17
        names.append(svg.text(name, at=middle, y=foot, cls="label", anchor="middle"))
    words = percent(reference, 0)
    names.append(svg.text(words, at=100, y=at + 4, cls="tick marked", anchor="end"))
    body += [line, *names]  # figures over the line, the line over the columns
    return svg.document(body, height=_TOP + _HEIGHT + 22, label=label, kind="columns")


def _group(
    left: float, width: float, group: Sequence[Column], top: float
) -> tuple[list[str], list[str]]:
    """Return one group's columns, and the figures above them."""
    body, figures = [], []
    each = 0.62 * width / max(1, len(group))
    for place, column in enumerate(group):
        tall = _HEIGHT * min(max(column.share / top, 0.0), 1.0)
        at, y = left + 0.16 * width + place * each, _TOP + _HEIGHT - tall
        inside = {"at": at + 0.06 * each, "width": 0.88 * each, "y": y, "height": tall}
        body.append(svg.rect(**inside, cls=f"bar {column.kind}", title=column.title))
        figure, cls = f"{column.share * 100:.0f}", f"tick {column.kind}"
        figures.append(svg.text(figure, at=at + each / 2, y=y - 5, cls=cls, anchor="middle"))
    return body, figures
