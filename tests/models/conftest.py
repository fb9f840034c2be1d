"""Saved checkpoints of the tiny models, to be copied before they are damaged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn


@pytest.fixture(scope="session")
def moe_checkpoint(
    tiny_qwen3_moe: nn.Module, byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny Qwen3-MoE as this SDK saves it, tokenizer included; copy it before changing it."""
    return _saved(tiny_qwen3_moe, byte_tokenizer, tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="session")
def dense_checkpoint(
    tiny_qwen3: nn.Module, byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny dense Qwen3 as this SDK saves it, tokenizer included; copy it before changing it."""
    return _saved(tiny_qwen3, byte_tokenizer, tmp_path_factory.mktemp("dense"))


@pytest.fixture
def damaged(moe_checkpoint: Path, tmp_path: Path) -> Path:
    """A fresh copy of the MoE checkpoint, to change or damage."""
    import shutil

    return Path(shutil.copytree(moe_checkpoint, tmp_path / "model"))


def _saved(model: nn.Module, tokenizer: Path, into: Path) -> Path:
    import shutil

    from mobilekit.models import save

    out = save(copy.deepcopy(model), into / "checkpoint")
    for file in tokenizer.iterdir():
        shutil.copyfile(file, out / file.name)
    return out
