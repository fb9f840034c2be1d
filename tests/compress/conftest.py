"""Mixtures of experts: a lively one in memory, one in shards on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .on_disk import stored

if TYPE_CHECKING:
    from torch import nn


@pytest.fixture(scope="session")
def lively_moe(tiny_qwen3_moe: nn.Module) -> nn.Module:
    """The tiny Qwen3-MoE, experts ten and routers thirty times as large; copy before changing."""
    import torch

    model: Any = copy.deepcopy(tiny_qwen3_moe)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj *= 10
            layer.mlp.experts.down_proj *= 10
            layer.mlp.gate.weight *= 30
    return model  # type: ignore[no-any-return]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which no file was read before; the kernel is where it was."""
    from mobilekit.compress.aimer import kernel

    kernel.native.library()
    monkeypatch.setenv("MOBILEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A tiny Qwen3-MoE in bf16, in several shards."""
    import torch

    from mobilekit.models.tiny import make_tiny

    return stored(make_tiny("qwen3_moe").to(torch.bfloat16), tmp_path / "sharded", "30KB")
