"""Figures that others published: for a column of their own, never beside measured ones."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib import resources
from typing import Any

from mobilekit.schema.published import PublishedAccuracy, PublishedFigures

__all__ = ["PUBLISHED_LABEL", "published", "published_on"]

PUBLISHED_LABEL = "published, other hardware/harness"
_SOURCE = "Mobile-MMLU project page, github VILA-Lab/Mobile_MMLU (arXiv 2503.20786)"
# the page says no more than "zero-shot"; the scorer is a third party's statement
_PROTOCOL = (
    "zero-shot, by the letters' log-likelihoods in lm-eval without a chat template, as a third "
    "party reports; hardware, precision and version are not stated"
)


def published() -> dict[str, Any]:
    """Return the published zero-shot accuracies, as shares; none of them was measured here.

    Returns:
        ``label`` to show them under, ``source``, ``models`` (name, group, and the accuracies
        ``mmlu``, ``mmlu_pro``, ``mobile_mmlu``), and ``fields``: accuracy by field and model.

    Source: results figure and heat map of the Mobile-MMLU project page, transcribed.
    """
    from .suites.mobile_mmlu.fields import find_field

    models = [
        {
            "model": row["model"],
            "group": row["group"],
            **{name: _share(row[f"{name}_0shot"]) for name in ("mmlu", "mmlu_pro", "mobile_mmlu")},
        }
        for row in _rows("published_accuracy.csv")
    ]
    fields = {
        find_field(row.pop("field_title")).name: {model: _share(v) for model, v in row.items()}
        for row in _rows("published_field_accuracy.csv")
    }
    return {"label": PUBLISHED_LABEL, "source": _SOURCE, "models": models, "fields": fields}


def published_on(dataset: Mapping[str, Any]) -> PublishedFigures | None:
    """Return what was published on the set that a result names, None on any other set.

    Args:
        dataset: The record of the set: ``metrics["dataset"]`` of a result. A set counts as a
            published one where the loader recognised it, whatever its files are called.
    """
    from .suites.mobile_mmlu.sources import MOBILE_MMLU, PRO

    if dataset.get("is_mobile_mmlu") is not True:
        return None
    known = next((one for one in (MOBILE_MMLU, PRO) if one.name == dataset.get("name")), None)
    if known is None:
        return None
    models: tuple[PublishedAccuracy, ...] = ()
    if known is MOBILE_MMLU:
        models = tuple(
            PublishedAccuracy(model=one["model"], group=one["group"], accuracy=one["mobile_mmlu"])
            for one in published()["models"]
        )
    return PublishedFigures(
        dataset=known.name,
        questions=known.questions,
        protocol=_PROTOCOL,
        source=_SOURCE,
        models=models,
        reason=None if models else f"figures are known on {MOBILE_MMLU.name} alone",
    )


def _share(percent: str) -> float:
    return round(float(percent) / 100, 6)


def _rows(name: str) -> list[dict[str, str]]:
    file = resources.files("mobilekit.data") / "mobile_mmlu" / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
