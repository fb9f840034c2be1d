"""Lines over a common axis: training loss, fitness, errors. What is missing leaves a gap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from . import svg
from .numbers import finite, scientific

Place = tuple[float, float | None]
_INDENT = 8.0  # percent of the width: room for the labels of the vertical axis
_TOP, _HEIGHT = 38.0, 180.0
_DECADE = 10.0


@dataclass(frozen=True)
class Line:
    """One line: points from left to right, a gap where y is None, and one that is marked."""

    title: str
    points: Sequence[Place]
    cls: str = ""
    mark: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: its ends, and what is written under it and where."""

    low: float
    high: float
    labels: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Return the place of a value, from 0 to 1."""
        return (value - self.low) / ((self.high - self.low) or 1.0)


def lines(label: str, items: Sequence[Line], axis: Axis, *, y_name: str) -> str:
    """Return lines over one axis; the vertical one is logarithmic beyond a decade.

    A value between two gaps is a dot. Values that are not finite count as gaps.

    Args:
        label: The text alternative.
        items: What to draw, what lies below first.
        axis: The horizontal axis.
        y_name: Name of the vertical axis.
    """
    values = [y for item in items for run in _runs(item.points) for _, y in run]
    values += [item.mark[1] for item in items if item.mark is not None]
    if not values:
        return svg.sentence("no values were recorded", label=label, kind="curve")
    is_log = min(values) > 0 and max(values) / min(values) > _DECADE
    body, down = _upright(values, f"{y_name}, logarithmic" if is_log else y_name, is_log)
    drawn = "".join(shape for item in items for shape in _paths(item, axis, down))
    # a stretched inner picture: lines cannot be given in percentages
    body.append(
        f'<svg x="{svg.x(_INDENT)}" y="{svg.number(_TOP)}" width="{svg.x(100 - _INDENT)}" '
        f'height="{svg.number(_HEIGHT)}" viewBox="0 0 1000 {svg.number(_HEIGHT)}" '
        f'preserveAspectRatio="none" overflow="visible">{drawn}</svg>'
    )
    body.extend(dot for item in items for dot in _dots(item, axis, down))
    for value, words in axis.labels:
        place = axis.at(value)
        anchor: svg.Anchor = "start" if place <= 0 else "end" if place >= 1 else "middle"
        y = _TOP + _HEIGHT + 16
        body.append(svg.text(words, at=_across(place), y=y, cls="tick", anchor=anchor))
    return svg.document(body, height=_TOP + _HEIGHT + 22, label=label, kind="curve")


def curve(label: str, points: Sequence[tuple[float, float]], *, y_name: str, x_name: str) -> str:
    """Return one line through (x, y) points; points that are not finite are left out."""
    good = [(a, b) for a, b in points if finite(a) is not None and finite(b) is not None]
    if len(good) < 2:
        return svg.sentence("too few points for a curve", label=label, kind="curve")
    axis = span_of([a for a, _ in good], x_name)
    return lines(label, [Line("", good)], axis, y_name=y_name)


def span_of(values: Sequence[float], name: str) -> Axis:
    """Return the axis that spans values and names both of its ends."""
    low, high = min(values), max(values)
    ends = [low, high] if high > low else [low]
    return Axis(low, high, tuple((end, f"{name} {end:g}") for end in ends))


def _upright(
    values: Sequence[float], name: str, is_log: bool
) -> tuple[list[str], Callable[[float], float]]:
    """Return the grid with its labels, and what places a value on the vertical axis."""
    low, high = min(values), max(values)
    marks = _log_marks(low, high) if is_log else svg.ticks(low, high)
    show: Callable[[float], float] = math.log10 if is_log else float
    bottom, top = show(marks[0]), show(marks[-1])

    def down(value: float) -> float:
        return _TOP + _HEIGHT * (top - show(value)) / (top - bottom)

    body = [svg.text(name, at=0, y=12, cls="tick")]
    for mark in marks:
        words = _short(mark) if is_log else svg.tick(mark, marks)
        body.append(svg.line(x1=0, y1=down(mark), x2=100, y2=down(mark), cls="grid"))
        body.append(svg.text(words, at=0, y=down(mark) - 4, cls="tick"))
    return body, down


def _log_marks(low: float, high: float) -> list[float]:
    """Return 1-2-5 values where few cover the range, else powers of ten, at most eight."""
    marks = svg.log_ticks(low, high)
    if len(marks) <= 8:
        return marks
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = -(-(last - first) // 7)
    return [10.0**power for power in range(first, last + step, step)]


def _short(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    return scientific(value).replace("1.0\u00a0×\u00a0", "").replace(".0", "")


def _across(place: float) -> float:
    return _INDENT + (100 - _INDENT) * place


def _runs(points: Sequence[Place]) -> Iterator[list[tuple[float, float]]]:
    """Yield the stretches of a line between its gaps."""
    run: list[tuple[float, float]] = []
    for x, y in points:
        if y is not None and finite(y) is not None:
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _paths(item: Line, axis: Axis, down: Callable[[float], float]) -> Iterator[str]:
    title = f"<title>{escape(item.title)}</title>" if item.title else ""
    cls = f"path {item.cls}".rstrip()
    for run in _runs(item.points):
        if len(run) > 1:
            places = ((1000 * axis.at(x), down(y) - _TOP) for x, y in run)
            path = " ".join(f"{svg.number(x)},{svg.number(y)}" for x, y in places)
            yield (
                f'<polyline points="{path}" class="{cls}" vector-effect="non-scaling-stroke">'
                f"{title}</polyline>"
            )


def _dots(item: Line, axis: Axis, down: Callable[[float], float]) -> Iterator[str]:
    alone = [run[0] for run in _runs(item.points) if len(run) == 1]
    for x, y in [*alone, *([item.mark] if item.mark is not None else [])]:
        title = f"<title>{escape(item.title)}</title>" if item.title else ""
        side = "before" if "before" in item.cls.split() else "after"
        yield (
            f'<circle cx="{svg.x(_across(axis.at(x)))}" cy="{svg.number(down(y))}" r="4" '
            f'class="dot {side}">{title}</circle>'
        )
