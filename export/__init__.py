"""Export: capture → quantize → lower → serialise → verify. Imported as ``mobilekit.export``."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "PRECISIONS": "builder",
    "TARGETS": "builder",
    "build": "builder",
    "check_context": "builder",
    "check_files": "parity",
    "is_origin": "parity",
    "verify": "parity",
}

__all__ = ["PRECISIONS", "TARGETS", "build", "check_context", "check_files", "is_origin", "verify"]  # noqa: F822 - lazy


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mobilekit.export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mobilekit.export.{_PUBLIC[name]}"), name)
