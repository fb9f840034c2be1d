"""A tiny mixture of experts whose experts and routers weigh enough to be seen in the logits."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

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
