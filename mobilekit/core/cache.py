"""The cache of slow results: directories named by the hash of all that went into them."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return where slow results are kept: ``$MOBILEKIT_CACHE``, or the user's cache directory."""
    chosen = os.environ.get("MOBILEKIT_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mobilekit"
