"""What only the model card shows; the rest it shares with the page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup

from .evidence import Evidence
from .numbers import count, size


@dataclass(frozen=True)
class Card:
    """Front matter, the models before and after, licences, and the command as a code block."""

    licence: str
    tags: tuple[str, ...]
    models: tuple[tuple[str, str, str], ...]
    licences: tuple[str, ...]
    command: Markup


def card(evidence: Evidence) -> Card:
    """Return the parts of the card; an unknown licence reads ``unknown``, several ``other``."""
    licences = evidence.manifest.licences if evidence.manifest else ()
    one = licences[0].lower() if len(licences) == 1 else "other" if licences else "unknown"
    methods = [plan.method for plan in evidence.plans]
    artifacts = evidence.manifest.artifacts if evidence.manifest else ()
    formats = sorted({item.format for item in artifacts})
    tags = ("mobilekit", *methods, *formats)
    return Card(one, tags, _models(evidence), licences, _block(evidence))


def _models(evidence: Evidence) -> tuple[tuple[str, str, str], ...]:
    models = evidence.run.models
    if models is None:
        return (("checkpoint", "not recorded", "not recorded"),)
    before, after = models.before, models.after or models.before
    return (
        ("class", before.class_, after.class_),
        ("parameters", count(before.parameters), count(after.parameters)),
        ("active for a token", count(before.active_parameters), count(after.active_parameters)),
        ("weights", size(before.weight_bytes), size(after.weight_bytes)),
        ("content hash", before.hash, after.hash),
    )


def _block(evidence: Evidence) -> Markup:
    """Return the command in a fence longer than any run of backticks inside it."""
    command = evidence.run.command
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}sh\n{command}\n{fence}")  # a fenced block shows its text literally
