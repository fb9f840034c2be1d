"""The ladder as a picture for the README: accuracy against size and against latency."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ladder_report import busy_sentence

from mobilekit.report import maps, svg

WIDTH, HEIGHT, PANEL, GAP, MARGIN = 880, 540, 400, 40, 20
DEEP = 360  # pixels from the top of a panel to its horizontal axis
CHANCE = 25.0
MARKS: dict[str, tuple[maps.Shape, str]] = {
    "fp32": ("circle", "after hollow"),
    "int8": ("square", "after"),
    "int4": ("diamond", "before"),
}
# a picture of its own has no style sheet beside it: the report's colours, light and dark
STYLE = """
svg { --paper: #fbfaf7; --ink: #17191f; --soft: #5c5f68; --line: #dedad1; --after: #2242d6;
  --before: #b3541a; --gone: #b93a12;
  font-family: "Inter", "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #131418; --ink: #eceae4; --soft: #a5a49d; --line: #30323a; --after: #8ea5ff;
    --before: #f0a068; --gone: #ff9468; }
}
.ground { fill: var(--paper); } svg { overflow: visible; }
text { fill: var(--ink); font-size: 13px; paint-order: stroke; stroke: var(--paper);
  stroke-width: 4px; stroke-linejoin: round; }
.title { font-size: 15px; font-weight: 640; } .soft, .tick, .axis { fill: var(--soft); }
.tick, .axis { font-size: 12px; } .number { font-size: 12px; font-weight: 640; }
.grid { stroke: var(--line); }
.reference { stroke: var(--gone); stroke-width: 1.5; stroke-dasharray: 3 3; }
.tick.marked { fill: var(--gone); font-weight: 600; }
.mark { stroke-width: 2; } .mark.after { fill: var(--after); stroke: var(--after); }
.mark.before { fill: var(--before); stroke: var(--before); } .mark.hollow { fill: var(--paper); }
.whisker { stroke-width: 1.5; opacity: .55; } .rung { stroke-width: 1; opacity: .45; }
.whisker.after, .rung.after { stroke: var(--after); }
.whisker.before, .rung.before { stroke: var(--before); }
"""


@dataclass(frozen=True)
class Place:
    """One variant on a panel: its cost, its accuracy in percent, and the ends of its line."""

    experts: int
    x: float
    y: float
    low: float
    high: float


def figure(found: dict[str, Any]) -> str:
    """Return the picture of a whole ladder as one SVG document."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for one in found["variants"]:
        groups[one["precision"], one["experts"]].append(one)
    prompt = f"prefill of a question ({found['prompt_tokens']} tokens), ms"
    sizes = _ladders(groups, lambda one: one["bytes"] / 1e6)
    times = _ladders(groups, lambda one: one["prefill_ms"]["p50"])
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    panels = [
        _panel("Accuracy against file size", "file size, MB, logarithmic", sizes),
        _panel(
            f"Accuracy against latency, {threads}", f"{prompt}, logarithmic", times, is_crowded=True
        ),
    ]
    body = [f'<rect width="{WIDTH}" height="{HEIGHT}" class="ground"/>']
    for index, panel in enumerate(panels):
        left = MARGIN + index * (PANEL + GAP)
        body.append(f'<svg x="{left}" y="12" width="{PANEL}" height="{DEEP + 60}">{panel}</svg>')
    body.extend(_legend(found, len(found["seeds"])))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Accuracy of the compression '
        f'ladder against file size and latency"><style>{STYLE}</style>{"".join(body)}</svg>\n'
    )


def _ladders(
    groups: dict[tuple[str, int], list[dict[str, Any]]], cost: Callable[[dict[str, Any]], float]
) -> dict[str, list[Place]]:
    """Return the places of each precision, most experts first."""
    found: dict[str, list[Place]] = defaultdict(list)
    for (precision, experts), group in sorted(groups.items(), reverse=True):
        found[precision].append(_place(experts, group, cost))
    return found


def _place(
    experts: int, group: Sequence[dict[str, Any]], cost: Callable[[dict[str, Any]], float]
) -> Place:
    """Return the mean over seeds with their range, or one seed with its interval."""
    shares = [100 * one["accuracy"] for one in group]
    low, high = min(shares), max(shares)
    if len(group) == 1:
        low, high = (100 * end for end in group[0]["interval"])
    x = statistics.median(cost(one) for one in group)
    return Place(experts, x, statistics.fmean(shares), low, high)


def _panel(
    title: str, axis: str, ladders: dict[str, list[Place]], *, is_crowded: bool = False
) -> str:
    """Return one chart: a line of marks a precision, logarithmic to the right.

    Where it is crowded, only the ends of a line have their number.
    """
    places = [place for ladder in ladders.values() for place in ladder]
    xs = svg.log_ticks(min(p.x for p in places), max(p.x for p in places))
    ends = [CHANCE, *(p.low for p in places), *(p.high for p in places)]
    ys = svg.ticks(min(ends) - 2, min(100.0, max(ends) + 2), wanted=6)

    def across(value: float) -> float:
        whole = math.log(xs[-1] / xs[0]) or 1.0
        return 9 + 86 * math.log(value / xs[0]) / whole

    def down(value: float) -> float:
        return 64 + (DEEP - 64) * (ys[-1] - value) / (ys[-1] - ys[0])

    body = [svg.text(title, at=0, y=18, cls="title")]
    body.append(svg.text("↑ right answers, %", at=0, y=38, cls="axis"))
    for mark in ys:
        body.append(svg.line(x1=0, y1=down(mark), x2=100, y2=down(mark), cls="grid"))
        body.append(svg.text(svg.tick(mark, ys), at=0, y=down(mark) - 4, cls="tick"))
    for mark in xs:
        words = f"{mark:g}"
        body.append(svg.text(words, at=across(mark), y=DEEP + 18, cls="tick", anchor="middle"))
    body.append(svg.text(f"{axis} →", at=100, y=DEEP + 38, cls="axis", anchor="end"))
    chance = down(CHANCE)
    body.append(svg.line(x1=0, y1=chance, x2=100, y2=chance, cls="reference"))
    body.append(svg.text("chance", at=100, y=chance - 5, cls="tick marked", anchor="end"))
    for precision, ladder in ladders.items():
        body.extend(_ladder(precision, ladder, across, down, is_crowded=is_crowded))
    return "".join(body)


def _ladder(
    precision: str,
    ladder: Sequence[Place],
    across: Callable[[float], float],
    down: Callable[[float], float],
    *,
    is_crowded: bool,
) -> list[str]:
    """Return one precision: a thin line from rung to rung, intervals, marks and their numbers."""
    shape, cls = MARKS[precision]
    side = cls.split()[0]
    body = []
    for one, two in zip(ladder, ladder[1:], strict=False):
        ends = {"x1": across(one.x), "y1": down(one.y), "x2": across(two.x), "y2": down(two.y)}
        body.append(svg.line(**ends, cls=f"rung {side}"))
    for place in ladder:
        at = across(place.x)
        ends = {"x1": at, "y1": down(place.low), "x2": at, "y2": down(place.high)}
        body.append(svg.line(**ends, cls=f"whisker {side}"))
    for place in ladder:
        at, y = across(place.x), down(place.y)
        title = f"<title>{place.experts} experts a layer, {precision}: {place.y:.1f} %</title>"
        mark = maps.shape(shape, cls, title)
        body.append(f'<svg x="{svg.x(at)}" y="{svg.number(y)}" overflow="visible">{mark}</svg>')
    spots = [(across(place.x), down(place.y), place.experts) for place in ladder]
    for at, y, experts in spots:
        if is_crowded and experts not in (ladder[0].experts, ladder[-1].experts):
            continue
        # to the left where a mark of the same ladder is just right of this one
        taken = any(0 < other - at < 7 and abs(high - y) < 12 for other, high, _ in spots)
        anchor: svg.Anchor = "end" if taken else "start"
        dx = -10 if taken else 10
        words = str(experts)
        body.append(svg.text(words, at=at, y=y + 4, dx=dx, cls="number", anchor=anchor))
    return body


def _legend(found: dict[str, Any], seeds: int) -> list[str]:
    """Return the key of marks, and the sentence that says what the questions are."""
    body = []
    for index, (precision, (shape, cls)) in enumerate(MARKS.items()):
        mark = maps.shape(shape, cls)
        left = MARGIN + 8 + index * 80
        body.append(f'<g transform="translate({left} 444)">{mark}</g>')
        body.append(f'<text x="{left + 14}" y="449">{precision}</text>')
    lines = "range over seeds" if seeds > 1 else "95 % interval"
    notes = (
        f"number: experts left of 16 in each layer, pruned by AIMER without recovery · upright "
        f"line: {lines}",
        f"{found['variants'][0]['n']} synthetic four-option questions on invented facts, "
        f"{seeds} training seed{'s' if seeds > 1 else ''}; not Mobile-MMLU",
    )
    for index, note in enumerate([*notes, *busy_sentence(found)]):
        body.append(f'<text x="{MARGIN}" y="{476 + 22 * index}" class="soft">{note}</text>')
    return body
