"""MobileKit: compress a model, export it to a phone, and prove that it got there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "export").exists() and (_checkout / "export/__init__.py").exists():
    __path__.append(str(_checkout))  # a checkout keeps `export/` beside `mobilekit/`

# name -> (module, attribute); imported at first use, so that `import mobilekit` stays light
_PUBLIC = {
    "apply": ("mobilekit.compress", "apply"),
    "load": ("mobilekit.models", "load"),
    "plan": ("mobilekit.compress", "plan"),
    "run": ("mobilekit.pipeline", "run"),
    "save": ("mobilekit.models", "save"),
}
_ROOMS = {
    *("compress", "doctor", "evaluate", "export", "hub", "models", "profile", "report"),
    *("runtime", "train"),
}

__all__ = [  # noqa: F822 - these names are resolved by __getattr__
    "__version__",
    "apply",
    "compress",
    "doctor",
    "evaluate",
    "export",
    "hub",
    "load",
    "models",
    "plan",
    "profile",
    "report",
    "run",
    "runtime",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(importlib.import_module(module), attribute)
    if name in _ROOMS:
        return importlib.import_module(f"mobilekit.{name}")
    raise AttributeError(f"module 'mobilekit' has no attribute '{name}'")
