"""The ladder as a picture for the README: accuracy against size and against latency."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mobilekit.report import maps, svg

WIDTH, PANEL, GAP, MARGIN = 880, 400, 40, 20
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
.grid { stroke: var(--line); } .frontier { stroke: var(--soft); stroke-dasharray: 2 4; }
.reference { stroke: var(--gone); stroke-width: 1.5; stroke-dasharray: 3 3; }
.tick.marked { fill: var(--gone); font-weight: 600; }
.mark { stroke-width: 2; } .mark.after { fill: var(--after); stroke: var(--after); }
.mark.before { fill: var(--before); stroke: var(--before); } .mark.hollow { fill: var(--paper); }
.mark.beaten { opacity: .42; } .whisker { stroke-width: 1.5; opacity: .55; }
.whisker.after { stroke: var(--after); } .whisker.before { stroke: var(--before); }
"""


def figure(found: dict[str, Any]) -> str:
    """Return the picture of a whole ladder as one SVG document."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for one in found["variants"]:
        groups[one["experts"], one["precision"]].append(one)
    panels = [
        ("Accuracy against file size", "file size, MB", lambda one: one["bytes"] / 1e6),
        (
            f"Accuracy against latency, {found['threads']} thread",
            f"prefill of a question ({found['prompt_tokens']} tokens), ms",
            lambda one: one["prefill_ms"]["p50"],
        ),
    ]
    body = [svg.rect(at=0, y=0, width=100, height=500, cls="ground")]
    for index, (title, axis, cost) in enumerate(panels):
        chart = maps.scatter(
            title,
            [_point(group, cost) for group in groups.values()],
            x_name=axis,
            y_name="right answers, %",
            better="higher",
            reference=25,
        )
        left = MARGIN + index * (PANEL + GAP)
        heading = svg.text(title, at=0, y=30, cls="title")
        inner = f'<svg y="48" width="{PANEL}" height="350">{chart}</svg>'
        body.append(f'<svg x="{left}" width="{PANEL}" height="400">{heading}{inner}</svg>')
    body.extend(_legend(found, len(found["seeds"])))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="500" '
        f'viewBox="0 0 {WIDTH} 500" role="img" aria-label="Accuracy of the compression ladder '
        f'against file size and latency"><style>{STYLE}</style>{"".join(body)}</svg>\n'
    )


def _point(group: Sequence[dict[str, Any]], cost: Any) -> maps.Point:
    """Return one variant: the mean over seeds with their range, or one seed with its interval."""
    first = group[0]
    shares = [100 * one["accuracy"] for one in group]
    ends = (min(shares), max(shares)) if len(group) > 1 else [100 * v for v in first["interval"]]
    mean, x = statistics.fmean(shares), statistics.median(cost(one) for one in group)
    label = f"{first['experts']} experts a layer, {first['precision']}: {mean:.1f} %"
    shape, cls = MARKS[first["precision"]]
    return maps.Point(first["experts"], label, x, mean, shape, cls, ends[0], ends[1])


def _legend(found: dict[str, Any], seeds: int) -> list[str]:
    """Return the key of marks, and the sentence that says what the questions are."""
    body = []
    for index, (precision, (shape, cls)) in enumerate(MARKS.items()):
        mark = maps.shape(shape, cls)
        left = MARGIN + 8 + index * 80
        body.append(f'<g transform="translate({left} 424)">{mark}</g>')
        body.append(f'<text x="{left + 14}" y="429">{precision}</text>')
    lines = "range over seeds" if seeds > 1 else "95 % interval"
    notes = (
        f"number: experts left of 16 in each layer · upright line: {lines} · lighter: beaten on "
        "both axes",
        f"{found['variants'][0]['n']} synthetic four-option questions on invented facts, "
        f"{seeds} training seed{'s' if seeds > 1 else ''}; not Mobile-MMLU",
    )
    for index, note in enumerate(notes):
        body.append(f'<text x="{MARGIN}" y="{456 + 22 * index}" class="soft">{note}</text>')
    return body
