"""Load, save and describe checkpoints; families, modules and surgery lie beside it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import describe, load, max_positions, save
    from .inspect import (
        checkpoint_hash,
        embedded_path,
        has_tokenizer,
        licences,
        require_tokenizer,
        resolve,
    )
    from .lineage import Provenance, provenance
    from .weights import tensor_table

# name -> module; imported at first use, so that this room is light until a model is touched
_PUBLIC = {
    "Provenance": ".lineage",
    "checkpoint_hash": ".inspect",
    "describe": ".checkpoint",
    "embedded_path": ".inspect",
    "has_tokenizer": ".inspect",
    "licences": ".inspect",
    "load": ".checkpoint",
    "max_positions": ".checkpoint",
    "provenance": ".lineage",
    "require_tokenizer": ".inspect",
    "resolve": ".inspect",
    "save": ".checkpoint",
    "tensor_table": ".weights",
}

__all__ = [
    "Provenance",
    "checkpoint_hash",
    "describe",
    "embedded_path",
    "has_tokenizer",
    "licences",
    "load",
    "max_positions",
    "provenance",
    "require_tokenizer",
    "resolve",
    "save",
    "tensor_table",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module 'mobilekit.models' has no attribute '{name}'")
