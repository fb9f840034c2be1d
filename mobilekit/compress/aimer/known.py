"""Sums of weights that are not in memory: found while a checkpoint was read, kept by its model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.models.families import UnitGroup

    from .score import WeightSums

# weak, so that the record never keeps a model alive
_RECORDS: weakref.WeakKeyDictionary[nn.Module, Mapping[int, WeightSums]] = (
    weakref.WeakKeyDictionary()
)


def know_sums(model: nn.Module, sums: Mapping[int, WeightSums]) -> None:
    """Keep the sums of each expert layer of ``model``, by its index."""
    _RECORDS[model] = sums


def known_sums(model: nn.Module, group: UnitGroup) -> WeightSums | None:
    """Return the sums of a layer's experts, or ``None`` where the weights have to be asked."""
    return _RECORDS.get(model, {}).get(group.layer)
