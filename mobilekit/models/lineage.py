"""Where a model in memory comes from: its checkpoint, and the plans applied since."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mobilekit.schema.plan import Plan

from .inspect import checkpoint_hash

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Provenance:
    """The history of one model.

    Attributes:
        source: Directory that it was loaded from or last saved to, or ``None``.
        plans: Every plan applied to it, in order, those of the checkpoint first.
        modified: Whether a plan was applied since ``source`` was read or written.
        known_hash: The content hash of ``source``, where it was found while reading it.
    """

    source: Path | None = None
    plans: tuple[Plan, ...] = ()
    modified: bool = field(default=False)
    known_hash: str | None = field(default=None)

    @cached_property
    def parent_hash(self) -> str | None:
        """Content hash of the checkpoint that the model equals, or ``None`` if it equals none.

        Weights that were changed in memory by anything but a plan are not noticed.
        """
        if self.source is None or self.modified or not self.source.is_dir():
            return None
        return self.known_hash or checkpoint_hash(self.source)

    def applied(self, plan: Plan) -> Provenance:
        """Return the history after one more plan."""
        return Provenance(self.source, (*self.plans, plan), modified=True)


# weak, so that the record never keeps a model alive
_RECORDS: weakref.WeakKeyDictionary[nn.Module, Provenance] = weakref.WeakKeyDictionary()


def provenance(model: nn.Module) -> Provenance:
    """Return the history of ``model``; an empty one where nothing is known."""
    return _RECORDS.get(model, Provenance())


def record(model: nn.Module, history: Provenance) -> None:
    """Set the history of ``model``."""
    _RECORDS[model] = history
