"""What a run ran with: versions of packages and the host."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "safetensors",
    "executorch",
    "torchao",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "coremltools",
)


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that a result can depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """Return what the run record says about the machine."""
    return {
        "class": f"host-{platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
    }
