"""Two-dimensional charts: the Pareto scatter and the expert heat map."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from markupsafe import Markup

from . import svg
from .numbers import finite

Shape = Literal["circle", "square", "diamond", "cross"]
_HEIGHT = 300.0
_LEVELS = 6
_MAX_COLUMNS = 64


@dataclass(frozen=True)
class Point:
    """One point of a scatter; its number refers to the key beside the chart.

    ``low`` and ``high`` are the ends of the interval of ``y``, where it has one.
    """

    number: int
    label: str
    x: float
    y: float
    shape: Shape
    cls: str
    low: float | None = None
    high: float | None = None


def scatter(
    label: str,
    points: Sequence[Point],
    *,
    x_name: str,
    y_name: str,
    better: Literal["lower", "higher"] = "lower",
    reference: float | None = None,
) -> str:
    """Return a scatter in which less of x is better; a dotted line marks the frontier.

    Points that another beats on both axes are drawn lighter. Points that would lie on one another
    share one label. Points that are not finite are left out.

    Args:
        label: The text alternative.
        points: What to draw.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis.
        better: Which direction of y is better.
        reference: Where a dashed line across is drawn, such as chance.
    """
    good = [p for p in points if finite(p.x) is not None and finite(p.y) is not None]
    if not good:
        return svg.sentence("no points", label=label, kind="scatter")
    xs = svg.ticks(0, max(p.x for p in good), wanted=6)
    shown = [v for p in good for v in _span(p)] + ([reference] if reference is not None else [])
    ys = svg.ticks(*_padded(shown), wanted=5)

    def across(value: float) -> float:
        return 12 + 84 * (value - xs[0]) / (xs[-1] - xs[0])

    def down(value: float) -> float:
        return 40 + (_HEIGHT - 40) * (ys[-1] - value) / (ys[-1] - ys[0])

    body = _axes(xs, ys, across, down, names=(x_name, y_name))
    if reference is not None:
        at = down(reference)
        body.append(svg.line(x1=0, y1=at, x2=100, y2=at, cls="reference"))
    sign = 1 if better == "lower" else -1
    best = frontier([(p.x, sign * p.y) for p in good])
    body.extend(_frontier([(x, sign * y) for x, y in best], across, down))
    body.extend(_whisker(p, across(p.x), down) for p in good if _has_interval(p))
    for p in good:
        is_beaten = (p.x, sign * p.y) not in best
        body.append(_marker(p, across(p.x), down(p.y), is_beaten=is_beaten))
    body.extend(_numbers([(across(p.x), _above(p, down), p.number) for p in good]))
    return svg.document(body, height=_HEIGHT + 40, label=label, kind="scatter")


def _numbers(marks: Sequence[tuple[float, float, int]]) -> list[str]:
    """Return the numbers of all points, those of points on one spot together."""
    body = []
    for group in _together(marks):
        middle = (min(item[0] for item in group) + max(item[0] for item in group)) / 2
        top = min(item[1] for item in group)
        words = " ".join(str(item[2]) for item in sorted(group, key=lambda item: item[2]))
        body.append(svg.text(words, at=middle, y=top, cls="number", anchor="middle"))
    return body


def _span(point: Point) -> tuple[float, ...]:
    return tuple(v for v in (point.low, point.y, point.high) if v is not None and finite(v) == v)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.15 or abs(high) * 0.02 or 1.0
    bottom = low - pad
    return max(0.0, bottom) if low >= 0 else bottom, high + pad


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats on both axes (less is better), ascending in x."""
    best: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def _frontier(
    best: Sequence[tuple[float, float]],
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> list[str]:
    lines = []
    for (x1, y1), (x2, y2) in zip(best, best[1:], strict=False):
        corner = {"x1": across(x1), "y1": down(y1), "x2": across(x2), "y2": down(y1)}
        lines.append(svg.line(**corner, cls="frontier"))
        corner = {"x1": across(x2), "y1": down(y1), "x2": across(x2), "y2": down(y2)}
        lines.append(svg.line(**corner, cls="frontier"))
    return lines


def _has_interval(point: Point) -> bool:
    return finite(point.low) is not None and finite(point.high) is not None


def _axes(
    xs: Sequence[float],
    ys: Sequence[float],
    across: Callable[[float], float],
    down: Callable[[float], float],
    *,
    names: tuple[str, str],
) -> list[str]:
    """Return the grid with its ticks, and the names of both axes."""
    body = [svg.text(f"↑ {names[1]}", at=0, y=12, cls="axis")]
    for mark in ys:
        body.append(svg.line(x1=0, y1=down(mark), x2=100, y2=down(mark), cls="grid"))
        body.append(svg.text(svg.tick(mark, ys), at=0, y=down(mark) - 4, cls="tick"))
    for mark in xs:
        words, at = svg.tick(mark, xs), across(mark)
        body.append(svg.text(words, at=at, y=_HEIGHT + 16, cls="tick", anchor="middle"))
    body.append(svg.text(f"{names[0]} →", at=100, y=_HEIGHT + 34, cls="axis", anchor="end"))
    return body


def _above(point: Point, down: Callable[[float], float]) -> float:
    """Return where the number of a point stands: above its marker, and above its interval."""
    top = down(point.y) - 11
    return min(top, down(point.high or 0.0) - 4) if _has_interval(point) else top


def _whisker(point: Point, at: float, down: Callable[[float], float]) -> str:
    """Return the interval of a point as an upright line."""
    low, high = point.low or 0.0, point.high or 0.0
    side = "before" if "before" in point.cls.split() else "after"
    return svg.line(x1=at, y1=down(low), x2=at, y2=down(high), cls=f"whisker {side}")


def _together(marks: Sequence[tuple[float, float, int]]) -> list[list[tuple[float, float, int]]]:
    """Group marks within 6 % of the width and 14 pixels of one another."""
    groups: list[list[tuple[float, float, int]]] = []
    for mark in sorted(marks):
        for group in groups:
            if any(abs(mark[0] - o[0]) < 6 and abs(mark[1] - o[1]) < 14 for o in group):
                group.append(mark)
                break
        else:
            groups.append([mark])
    return groups


def _marker(point: Point, at: float, y: float, *, is_beaten: bool) -> str:
    title = f"<title>{escape(point.label)}</title>"
    cls = f"{point.cls} beaten" if is_beaten else point.cls
    return (
        f'<svg x="{svg.x(at)}" y="{svg.number(y)}" width="1" height="1" overflow="visible">'
        f"{shape(point.shape, cls, title)}</svg>"
    )


def shape(kind: Shape, cls: str, inner: str = "") -> str:
    """Return one marker centred on the origin, about 12 pixels wide."""
    paths = {
        "circle": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
        "square": "M-5.5-5.5h11v11h-11z",
        "diamond": "M0-7.5L7.5 0L0 7.5L-7.5 0z",
        "cross": "M-6-2.2h3.8v-3.8h4.4v3.8h3.8v4.4h-3.8v3.8h-4.4v-3.8h-3.8z",
    }
    return f'<path d="{paths[kind]}" class="mark {cls}">{inner}</path>'


def marker_icon(kind: Shape, cls: str) -> Markup:
    """Return one marker as a picture of its own, for a key."""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="icon" width="18" height="18" '
        f'viewBox="-9 -9 18 18" aria-hidden="true">{shape(kind, cls)}</svg>'
    )


@dataclass(frozen=True)
class ExpertRow:
    """The scores of one layer's experts and which of them went."""

    layer: int
    scores: Sequence[float | None]
    pruned: frozenset[int]


def heatmap(
    label: str, rows: Sequence[ExpertRow], *, larger_is_removable: bool, unit: str = "expert"
) -> str:
    """Return one cell an expert: the shade is its rank within the layer, a cross is pruned.

    A layer of more than 64 experts takes several lines. Cells without a score stay hatched.
    """
    columns = min(_MAX_COLUMNS, max((len(row.scores) for row in rows), default=1) or 1)
    cell = max(14.0, min(30.0, 480.0 / columns))
    every = 1 if columns <= 20 else 8
    body = [
        svg.text(str(i), at=100 * (i + 0.5) / columns, y=11, cls="tick", anchor="middle")
        for i in range(0, columns, every)
    ]
    y = 22.0
    for row in rows:
        body.append(svg.text(_row_title(row), at=0, y=y + 12, cls="label"))
        lines = -(-len(row.scores) // columns) or 1
        scale = _scale(row.scores, larger_is_removable)
        for index in range(len(row.scores)):
            at, top = 100 * (index % columns) / columns, y + 19 + (index // columns) * cell
            body.append(_cell(row, index, (at, top, 100 / columns, cell), scale, unit))
        y += 19 + lines * cell + 10
    return svg.document(body, height=max(y, 20), label=label, kind="heatmap")


def _row_title(row: ExpertRow) -> str:
    kept = len(row.scores) - len(row.pruned)
    return f"layer {row.layer} · {kept} of {len(row.scores)} kept"


def _scale(scores: Sequence[float | None], larger_is_removable: bool) -> Callable[[float], int]:
    """Return the shade of a score: its rank in the layer, equal scores sharing the middle rank."""
    known = sorted(s for s in (finite(s) for s in scores) if s is not None)

    def level(score: float) -> int:
        below, upto = bisect_left(known, score), bisect_right(known, score)
        share = (below + upto - 1) / 2 / (len(known) - 1) if len(known) > 1 else 0.5
        share = share if larger_is_removable else 1 - share
        return min(_LEVELS - 1, int(share * _LEVELS))

    return level


def _cell(
    row: ExpertRow,
    index: int,
    box: tuple[float, float, float, float],
    scale: Callable[[float], int],
    unit: str,
) -> str:
    at, top, width, height = box
    score, gone = finite(row.scores[index]), index in row.pruned
    words = "no score" if score is None else f"score {score:.4f}"
    state = "pruned" if gone else "kept"
    title = f"layer {row.layer} · {unit} {index} · {words} · {state}"
    cls = "cell none" if score is None else f"cell s{scale(score)}"
    parts = [svg.rect(at=at, y=top, width=width, height=height, cls=cls, title=title)]
    if gone:
        middle, y = at + width / 2, top + height / 2
        parts.append(
            f'<svg x="{svg.x(middle)}" y="{svg.number(y)}" width="1" height="1" '
            'overflow="visible"><path d="M-4-4L4 4M-4 4L4-4" class="gone"/></svg>'
        )
    return "".join(parts)
