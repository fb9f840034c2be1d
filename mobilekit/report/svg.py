"""The few SVG parts that every chart uses.

Charts are fluid: horizontal positions are percentages and vertical ones pixels, with no viewBox.
So a chart fills a phone and a desktop alike while its text keeps one readable size. Colours come
from classes of the page's style sheet, which knows light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Literal

from markupsafe import Markup

from .numbers import scientific

Anchor = Literal["start", "middle", "end"]


def number(value: float) -> str:
    """Return a coordinate: two decimals at most, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def x(percent: float) -> str:
    """Return a horizontal position or length as a percentage of the chart's width."""
    return f"{number(percent)}%"


def document(body: Sequence[str], *, height: float, label: str, kind: str) -> Markup:
    """Return a whole chart whose text alternative is ``label``; texts in it are escaped."""
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart {kind}" role="img" '
        f'width="100%" height="{number(height)}" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def sentence(words: str, *, label: str, kind: str) -> Markup:
    """Return a chart that only says why there is nothing to draw."""
    return document([text(words, at=0, y=13, cls="missing")], height=20, label=label, kind=kind)


def text(
    content: str, *, at: float, y: float, cls: str = "", anchor: Anchor = "start", dx: float = 0
) -> str:
    """Return a text at ``at`` percent, its baseline at ``y`` pixels."""
    shift = f' dx="{number(dx)}"' if dx else ""
    return (
        f'<text x="{x(at)}" y="{number(y)}"{shift} text-anchor="{anchor}" '
        f'class="{cls}">{escape(content)}</text>'
    )


def rect(*, at: float, y: float, width: float, height: float, cls: str, title: str = "") -> str:
    """Return a rectangle; ``at`` and ``width`` in percent, ``y`` and ``height`` in pixels."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x(at)}" y="{number(y)}" width="{x(width)}" height="{number(height)}" '
        f'class="{cls}">{inner}</rect>'
    )


def line(*, x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """Return a line; horizontal positions in percent, vertical ones in pixels."""
    return f'<line x1="{x(x1)}" y1="{number(y1)}" x2="{x(x2)}" y2="{number(y2)}" class="{cls}"/>'


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round values from at or below ``low`` to at or above ``high``, evenly spaced."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # closer than floats can be divided
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(1, wanted)
    exponent = math.floor(math.log10(rough))
    power = 10.0**exponent
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 2 - exponent) for i in range(first, last + 1)]


def tick(value: float, every: Sequence[float]) -> str:
    """Return a tick's label with as many decimals as the closest two ticks need, six at most."""
    step = min((b - a for a, b in zip(every, every[1:], strict=False)), default=1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    places += round(step * 10**places, 6) % 1 > 0  # 2.5 needs one more than 2
    if places > 6:
        return scientific(value)
    return f"{value:.{places}f}".replace("-", "−")


def log_ticks(low: float, high: float) -> list[float]:
    """Return the 1-2-5 values inside [low, high], with the nearest one beyond each end."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    below = max(v for v in every if v <= low * 1.0001)
    above = min(v for v in every if v >= high * 0.9999)
    return [v for v in every if below <= v <= above]
