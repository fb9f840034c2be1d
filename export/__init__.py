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
    "facts_of": "preflight",
    "is_origin": "parity",
    "places": "preflight",
    "plan_export": "preflight",
    "prepare": "builder",
    "verify": "parity",
}

__all__ = [  # noqa: F822 - lazy
    "PRECISIONS",
    "TARGETS",
    "build",
    "check_context",
    "check_files",
    "facts_of",
    "is_origin",
    "places",
    "plan_export",
    "prepare",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mobilekit.export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mobilekit.export.{_PUBLIC[name]}"), name)
