"""What only the model card shows; the rest it shares with the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mobilekit.schema.manifest import Manifest

from .evidence import Evidence
from .numbers import count, size

# identifiers that the hub knows; another licence is its "other", under its own name
_HUB_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "cc0-1.0", "unlicense"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "openrail", "unknown"),
}
_PIPELINES = {"causal-lm": "text-generation"}
# a repository of the hub, as a recipe names it where it names no directory
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Card:
    """Front matter, the models before and after, licences, and the command as a code block."""

    licence: str
    licence_name: str | None
    tags: tuple[str, ...]
    pipeline: str | None
    base_model: str | None
    models: tuple[tuple[str, str, str], ...]
    licences: tuple[str, ...]
    command: Markup


def card(evidence: Evidence, base_model: str | None = None) -> Card:
    """Return the parts of a run's card.

    Args:
        evidence: What was recorded.
        base_model: Hub id of the source; the recipe's own where ``None``, if it names one.
    """
    methods = [plan.method for plan in evidence.plans]
    front = _front(evidence.manifest, methods, base_model or _source(evidence))
    return Card(**front, models=_models(evidence), command=code_block(evidence.run.command))


def card_of_bundle(manifest: Manifest, command: str, base_model: str | None) -> Card:
    """Return the parts of the card of a bundle without its run."""
    methods = [str(plan.get("method")) for plan in manifest.plans]
    return Card(**_front(manifest, methods, base_model), models=(), command=code_block(command))


def _front(
    manifest: Manifest | None, methods: Sequence[str], base_model: str | None
) -> dict[str, Any]:
    """Return what both cards begin with; no licence reads ``unknown``, several ``other``."""
    licences = manifest.licences if manifest else ()
    named = licences[0].lower() if len(licences) == 1 else "other" if licences else "unknown"
    is_known = named in _HUB_LICENCES
    artifacts = manifest.artifacts if manifest else ()
    return {
        "licence": named if is_known else "other",
        "licence_name": None if is_known or named == "other" else named,
        "tags": ("mobilekit", *methods, *sorted({item.format for item in artifacts})),
        "pipeline": _PIPELINES.get(manifest.task) if manifest else None,
        "base_model": base_model,
        "licences": licences,
    }


def _source(evidence: Evidence) -> str | None:
    model = evidence.run.recipe.get("model")
    source = model.get("source") if isinstance(model, dict) else None
    is_id = isinstance(source, str) and _HUB_ID.fullmatch(source) and not Path(source).exists()
    return source if is_id else None


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


def code_block(command: str) -> Markup:
    """Return a command in a fence longer than any run of backticks inside it."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}sh\n{command}\n{fence}")  # a fenced block shows its text literally
