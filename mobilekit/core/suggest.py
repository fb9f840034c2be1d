"""Did-you-mean for every name that a user types."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(given: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name most like ``given``, if any is at least ``cutoff`` of 1 alike."""
    match = difflib.get_close_matches(given, sorted(known), n=1, cutoff=cutoff)
    return match[0] if match else None


def did_you_mean(given: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or an empty string."""
    match = closest(given, known, cutoff=cutoff)
    return f"; did you mean '{match}'?" if match is not None else ""
