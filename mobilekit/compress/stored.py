"""Compress a checkpoint file to file: the model is never in memory, and the result is the same.

Plans are made and applied by the same code as for a model in memory; what it gets is the model on
the meta device, with what the method has read from the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilekit.core import console
from mobilekit.core.device import choose_device
from mobilekit.models.rewrite import save_cut
from mobilekit.models.stored import StoredModel, open_stored
from mobilekit.models.stored_units import Key
from mobilekit.schema.plan import KeepEdit, Plan

from . import METHODS, apply, plan
from .base import Method, check_units


def plans_from_disk(method: Method[Any], variant: str | None) -> bool:
    """Tell whether a method, as it declares, plans for a stored checkpoint with this variant."""
    return method.cuts_only and variant in method.weight_only


def applies_on_disk(plans: Sequence[Plan]) -> bool:
    """Tell whether plans, as their methods declare, only cut."""
    return all(METHODS.get(step.method).cuts_only for step in plans)


def plan_stored(source: str | Path, method: str, *, device: str = "auto", **settings: Any) -> Plan:
    """Decide what ``method`` would do to a checkpoint; the same plan as ``plan`` gives.

    Args:
        source: Checkpoint directory, "embedded", or a hub id that is in the local cache.
        method: Name of a registered method that plans from disk.
        device: Where weights are worked on, a block at a time.
        settings: Fields of the method's ``Config``.

    Raises:
        UsageError: As ``plan``.
        InvalidInputError: As ``plan``; also if a file is damaged, or a weight not finite.
        UnsupportedModelError: As ``plan``; also if units cannot be told apart on disk.
    """
    return plan(_read(source, METHODS.get(method), device).model, method, **settings)


def compress_stored(
    source: str | Path,
    out: str | Path,
    *,
    method: str | None = None,
    plans: Sequence[Plan] = (),
    device: str = "auto",
    **settings: Any,
) -> list[Plan]:
    """Write the compressed checkpoint; the same as loading, applying and saving it.

    Interrupted, it goes on with the next call: files that were read, and files that are whole,
    are kept.

    Args:
        source: Checkpoint directory, "embedded", or a hub id that is in the local cache.
        out: Directory to create.
        method: Method to plan with, or ``None``.
        plans: Plans to carry out where there is no method, in order.
        device: Where weights are worked on, a block at a time.
        settings: Fields of the method's ``Config``.

    Returns:
        The plans that were carried out.

    Raises:
        UsageError: As ``plan``, ``apply`` and ``save``; also if the disk is too small.
        InvalidInputError: If a file is damaged, or a weight not finite.
        UnsupportedModelError: If units cannot be told apart on disk.
        OutputError: If ``out`` cannot be written.
    """
    stored = _read(source, METHODS.get(method or plans[0].method), device)
    steps = [plan(stored.model, method, **settings)] if method is not None else list(plans)
    result = stored.model
    kept: dict[Key, tuple[int, ...]] = {}
    for step in steps:
        for warning in step.warnings:
            console.warn(warning)
        result = apply(result, step)
        kept = _after(kept, step)
    save_cut(stored, result, kept, out)
    return steps


def _read(source: str | Path, method: Method[Any], device: str) -> StoredModel:
    stored, chosen = open_stored(source), choose_device(device)
    check_units(method, stored.model)  # before anything is read
    method.read(stored, chosen)
    return stored


def _after(kept: dict[Key, tuple[int, ...]], step: Plan) -> dict[Key, tuple[int, ...]]:
    """Return which of the stored units are left after one more plan."""
    left = dict(kept)
    for edit in step.edits:
        if isinstance(edit, KeepEdit):
            key = (edit.unit, edit.layer)
            before = kept.get(key)
            left[key] = tuple(before[i] for i in edit.indices) if before else edit.indices
    return left
