"""Charts as pure functions: data in, one well-formed SVG out. Missing values stay visible."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from . import svg
from .numbers import finite

Kind = Literal["before", "after"]
_ROW = 38.0
_MAX_TICKS = 300
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Bar:
    """One bar: its value, how to print it, or why there is no value."""

    label: str
    value: float | None
    text: str
    kind: Kind = "after"
    missing: str = "not measured"


def bars(label: str, items: Sequence[Bar]) -> str:
    """Return horizontal bars from zero, one row an item; a missing value says so in words."""
    top = max((v for item in items if (v := finite(item.value)) is not None), default=0.0) or 1.0
    body: list[str] = []
    for index, item in enumerate(items):
        y = index * _ROW
        value = finite(item.value)
        words = item.text if value is not None else item.missing
        body.append(svg.text(item.label, at=0, y=y + 13, cls="label"))
        cls = f"value {item.kind}" if value is not None else "missing"
        body.append(svg.text(words, at=100, y=y + 13, cls=cls, anchor="end"))
        body.append(svg.rect(at=0, y=y + 20, width=100, height=8, cls="track"))
        if value is not None:
            width = 100 * min(max(value / top, 0.0), 1.0)
            title = f"{item.label}: {item.text}"
            body.append(
                svg.rect(at=0, y=y + 20, width=width, height=8, cls=f"bar {item.kind}", title=title)
            )
    return svg.document(body, height=max(1, len(items)) * _ROW, label=label, kind="bars")


@dataclass(frozen=True)
class Share:
    """One estimate of a share in [0, 1] with its interval."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    kind: Kind = "after"


def intervals(
    label: str, rows: Sequence[tuple[str, Sequence[Share]]], *, reference: float | None = None
) -> str:
    """Return a dot with its interval for every share; rows group what is to be compared."""
    y, body = 0.0, []
    for name, shares in rows:
        words = " → ".join(s.text for s in shares if finite(s.value) is not None)
        cls = "value" if words else "missing"
        body.append(svg.text(name, at=0, y=y + 13, cls="label"))
        body.append(svg.text(words or "not measured", at=100, y=y + 13, cls=cls, anchor="end"))
        if words:
            body.extend(_lane(y + 18, y + 22 + 10 * len(shares), reference))
        for offset, share in enumerate(shares):
            body.extend(_dot(share, y + 25 + 10 * offset))
        y += 28 + 10 * len(shares)
    for position in _QUARTERS:
        anchor: svg.Anchor = "start" if position == 0 else "end" if position == 1 else "middle"
        tick = f"{position:.0%}".replace("%", "\u00a0%")
        chance = position == reference
        cls, tick = ("tick marked", f"chance {tick}") if chance else ("tick", tick)
        body.append(svg.text(tick, at=100 * position, y=y + 14, cls=cls, anchor=anchor))
    return svg.document(body, height=y + 20, label=label, kind="intervals")


def _lane(top: float, bottom: float, reference: float | None) -> list[str]:
    """Return the grid behind one row's dots; it stops below the words, which stay readable."""
    lines = [
        svg.line(x1=100 * p, y1=top, x2=100 * p, y2=bottom, cls="grid")
        for p in _QUARTERS
        if p != reference
    ]
    if reference is not None:
        at = 100 * reference
        lines.append(svg.line(x1=at, y1=top, x2=at, y2=bottom, cls="reference"))
    return lines


def _dot(share: Share, y: float) -> list[str]:
    value = finite(share.value)
    if value is None:
        return []
    marks = [svg.rect(at=0, y=y, width=100, height=0.5, cls="hair")]
    low, high = finite(share.low), finite(share.high)
    if low is not None and high is not None:
        marks.append(
            svg.line(x1=100 * low, y1=y, x2=100 * high, y2=y, cls=f"interval {share.kind}")
        )
    marks.append(
        f'<circle cx="{svg.x(100 * value)}" cy="{svg.number(y)}" r="4" class="dot {share.kind}">'
        f"<title>{escape(share.name)}: {escape(share.text)}</title></circle>"
    )
    return marks


@dataclass(frozen=True)
class Strip:
    """Raw samples of one subject, all of one unit, in the order measured."""

    label: str
    values: Sequence[float]
    kind: Kind = "after"


def strips(label: str, rows: Sequence[Strip], *, show: Callable[[float, int], str]) -> str:
    """Return the raw samples of each row as hairlines on a log axis, with median and p10 to p90.

    Rows longer than 300 samples show every n-th one of the sorted samples, ends included.

    Args:
        label: The text alternative.
        rows: Positive values; others are left out.
        show: Prints a value with so many significant figures.
    """
    cleaned = [sorted(v for v in row.values if finite(v) is not None and v > 0) for row in rows]
    positive = [v for values in cleaned for v in values]
    if not positive:
        return svg.sentence("no samples", label=label, kind="strips")
    marks = svg.log_ticks(min(positive), max(positive))
    low, high = math.log(marks[0]), math.log(marks[-1] * (1.0001 if len(marks) == 1 else 1))

    def at(value: float) -> float:
        return 1 + 98 * (math.log(value) - low) / (high - low)

    height = len(rows) * 46.0
    body = [svg.line(x1=at(m), y1=0, x2=at(m), y2=height, cls="grid") for m in marks]
    for index, (row, values) in enumerate(zip(rows, cleaned, strict=True)):
        body.extend(_strip(row, values, index * 46.0, at, show))
    last = -100.0
    for mark in marks:
        if at(mark) - last >= (19 if at(mark) > 95 else 14):  # room for a label at 340 pixels
            last = at(mark)
            anchor: svg.Anchor = "start" if last < 5 else "end" if last > 95 else "middle"
            body.append(svg.text(show(mark, 1), at=last, y=height + 13, cls="tick", anchor=anchor))
    return svg.document(body, height=height + 20, label=label, kind="strips")


def _strip(
    row: Strip,
    values: Sequence[float],
    y: float,
    at: Callable[[float], float],
    show: Callable[[float, int], str],
) -> list[str]:
    body = [svg.text(row.label, at=0, y=y + 13, cls="label")]
    if not values:
        return [*body, svg.text("no samples", at=100, y=y + 13, cls="missing", anchor="end")]
    median = quantile(values, 0.5)
    words = f"median {show(median, 3)}"
    body.append(svg.text(words, at=100, y=y + 13, cls=f"value {row.kind}", anchor="end"))
    left, right = at(quantile(values, 0.1)), at(quantile(values, 0.9))
    body.append(
        svg.rect(at=left, y=y + 22, width=max(right - left, 0.3), height=14, cls=f"box {row.kind}")
    )
    every = max(1, -(-len(values) // _MAX_TICKS))
    shown = [*values[::every], values[-1]]
    body.extend(
        svg.line(x1=at(v), y1=y + 22, x2=at(v), y2=y + 36, cls=f"sample {row.kind}") for v in shown
    )
    middle = at(median)
    body.append(svg.line(x1=middle, y1=y + 19, x2=middle, y2=y + 39, cls=f"median {row.kind}"))
    return body


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of ascending values, linear between neighbours (numpy's default)."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
