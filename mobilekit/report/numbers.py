"""Numbers as people read them: units, significant figures, real minus signs, no fake zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

MISSING = "–"
_SPACE = "\u00a0"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Verdict = Literal["better", "worse", "same", "unclear"]


@dataclass(frozen=True)
class Change:
    """How a figure moved, and whether that is good; ``unclear`` where noise could explain it."""

    text: str
    verdict: Verdict


def finite(value: object) -> float | None:
    """Return ``value`` as a float where it is a finite number (and not a bool), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the range of a float
        return None
    return number if math.isfinite(number) else None


def significant(value: float | None, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant figures and thin grouping, no exponent."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    # rounding may carry into a new leading digit: 9.996 -> "10.0", not "10.00"
    rounded = round(value, places)
    if rounded:
        places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{places}f}".replace(",", "\u202f").replace("-", "−")


def _scaled(value: float | None, steps: tuple[tuple[float, str], ...], digits: int) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    for factor, unit in steps:
        if abs(value) >= factor * 0.9995:
            return f"{significant(value / factor, digits)}{_SPACE}{unit}".rstrip(_SPACE)
    factor, unit = steps[-1]
    return f"{significant(value / factor, digits)}{_SPACE}{unit}".rstrip(_SPACE)


def count(value: float | None, digits: int = 3) -> str:
    """Return a count with the suffix k, M or B: ``4.06 M``."""
    return _scaled(value, ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")), digits)


def size(value: float | None, digits: int = 3) -> str:
    """Return bytes with a decimal unit (1 MB is 1 000 000 bytes)."""
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")), digits)


def milliseconds(value: float | None, digits: int = 3) -> str:
    """Return a time given in milliseconds, as s, ms or µs."""
    return _scaled(value, ((1e3, "s"), (1.0, "ms"), (1e-3, "µs")), digits)


def plain_ms(value: float | None, digits: int = 3) -> str:
    """Return a time in milliseconds whatever its size, so that a column keeps one unit."""
    text = significant(value, digits)
    return text if text == MISSING else f"{text}{_SPACE}ms"


def seconds(value: float | None) -> str:
    """Return a wall time given in seconds: ``0.6 s``, ``4 min 02 s``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value >= 60:
        whole = round(value)
        return f"{whole // 60}{_SPACE}min{_SPACE}{whole % 60:02d}{_SPACE}s"
    return f"{value:.1f}{_SPACE}s" if value >= 0.05 else f"<{_SPACE}0.1{_SPACE}s"


def rate(value: float | None, unit: str = "tok/s") -> str:
    """Return a rate with three significant figures and its unit."""
    return MISSING if value is None else f"{significant(value)}{_SPACE}{unit}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as a percentage; 1 is ``100 %``, and nothing less rounds to it."""
    if share is None or not math.isfinite(share):
        return MISSING
    if share in (0, 1):
        return f"{share * 100:.0f}{_SPACE}%"
    text = f"{share * 100:.{digits}f}"
    if float(text) == 100 and share < 1:
        text = f">{_SPACE}{100 - 10.0**-digits:.{digits}f}"
    if float(text.split(_SPACE)[-1]) == 0:
        text = f"<{_SPACE}{10.0**-digits:.{digits}f}"
    return f"{text}{_SPACE}%"


def scientific(value: float | None) -> str:
    """Return a small error as ``2.1 × 10⁻⁶``; exact zero stays ``0``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return significant(value, 2)
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    power = str(int(exponent)).translate(_SUPERSCRIPT)
    return f"{mantissa.replace('-', '−')}{_SPACE}×{_SPACE}10{power}"


def moment(stamp: str) -> str:
    """Return an ISO 8601 time in UTC to the minute; what is no such time stays as it is."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    if when.tzinfo is None:
        return stamp
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def p_value(value: float | None) -> str:
    """Return ``p = 0.62`` or ``p < 0.001``."""
    if value is None or not math.isfinite(value):
        return f"p{_SPACE}{MISSING}"
    return f"p{_SPACE}<{_SPACE}0.001" if value < 0.001 else f"p{_SPACE}={_SPACE}{value:.2g}"


def change(
    before: float | None, after: float | None, *, better: Literal["lower", "higher"]
) -> Change | None:
    """Return the relative change from ``before`` to ``after``, or None where one is missing.

    Large changes upwards read as a factor (``×3.4``) instead of a percentage.
    """
    old, new = finite(before), finite(after)
    if old is None or new is None or old == 0:
        return None
    relative = new / old - 1
    if abs(relative) < 5e-5:
        return Change("no change", "same")
    sign = "+" if relative > 0 else "−"
    text = f"{sign}{abs(relative) * 100:.{1 if abs(relative) < 1 else 0}f}{_SPACE}%"
    if new / old >= 3:
        text = f"×{significant(new / old, 2)}"
    return Change(text, "better" if (relative < 0) == (better == "lower") else "worse")
