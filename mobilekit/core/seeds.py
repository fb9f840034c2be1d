"""Random choices that can be repeated: one generator a purpose, derived from one seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator for ``purpose``; the same pair gives the same stream anywhere."""
    import torch

    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
