"""Figures that others published: for a column of their own, never beside measured ones."""

from __future__ import annotations

import csv
from importlib import resources
from typing import Any

__all__ = ["PUBLISHED_LABEL", "published"]

PUBLISHED_LABEL = "published, other hardware/harness"
_SOURCE = "Mobile-MMLU project page, github VILA-Lab/Mobile_MMLU (arXiv 2503.20786)"


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


def _share(percent: str) -> float:
    return round(float(percent) / 100, 6)


def _rows(name: str) -> list[dict[str, str]]:
    file = resources.files("mobilekit.data") / "mobile_mmlu" / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
