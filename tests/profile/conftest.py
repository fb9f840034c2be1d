from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def checkpoint(tiny_qwen3: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense Qwen3 as a directory."""
    folder = tmp_path_factory.mktemp("profile") / "checkpoint"
    tiny_qwen3.save_pretrained(folder)
    return folder
