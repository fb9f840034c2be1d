"""A tiny MoE checkpoint with a tokenizer, on disk, as a user would have it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from torch import nn


def write_checkpoint(model: nn.Module, tokenizer: Path, out: Path) -> Path:
    copy.deepcopy(model).save_pretrained(out)  # type: ignore[operator]
    for path in tokenizer.iterdir():
        shutil.copy(path, out / path.name)
    return out


@pytest.fixture(scope="session")
def moe_checkpoint(
    tiny_qwen3_moe: nn.Module, byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_checkpoint(tiny_qwen3_moe, byte_tokenizer, tmp_path_factory.mktemp("moe") / "c")


@pytest.fixture(scope="session")
def dense_checkpoint(
    tiny_qwen3: nn.Module, byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_checkpoint(tiny_qwen3, byte_tokenizer, tmp_path_factory.mktemp("dense") / "c")
