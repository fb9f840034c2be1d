"""Softmax top-k routed SwiGLU experts in fused tensors, as several families have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mobilekit.models.modules.decoder_program import decoder_program
from mobilekit.models.modules.static_moe import StaticMoE

from .base import Counter, Phase, Program, Slice, UnitGroup

if TYPE_CHECKING:
    from torch import nn


def experts(model: nn.Module) -> list[UnitGroup]:
    """Return one group a sparse layer; dense layers have none."""
    return [_group(layer, path, block) for layer, path, block in sparse_blocks(model)]


def sparse_blocks(model: nn.Module) -> list[tuple[int, str, Any]]:
    """Return (layer index, module path, block) of every MLP that has a router and experts."""
    found = []
    layers: Any = model.get_submodule("model.layers")
    for index, layer in enumerate(layers):
        block = layer.mlp
        if hasattr(block, "experts") and hasattr(block, "gate"):
            found.append((index, f"model.layers.{index}.mlp", block))
    return found


def _group(layer: int, path: str, block: Any) -> UnitGroup:
    return UnitGroup(
        kind="expert",
        layer=layer,
        count=block.experts.gate_up_proj.shape[0],
        minimum=block.gate.top_k,
        slices=(
            Slice(f"{path}.experts", "gate_up_proj", scored=True),
            Slice(f"{path}.experts", "down_proj", scored=True),
            Slice(f"{path}.gate", "weight"),
        ),
        counters=(
            Counter(f"{path}.experts", "num_experts"),
            Counter(f"{path}.gate", "num_experts"),
        ),
    )


def set_expert_count(model: Any, count: int) -> None:
    """Write the number of experts that all layers now have where transformers reads it."""
    model.config.num_experts = count
    model.num_experts = count  # the auxiliary loss reads this one


def program(model: nn.Module, phase: Phase) -> Program:
    """Wrap the model for capture, its sparse blocks as :class:`StaticMoE`."""
    replaced = {
        path: StaticMoE(
            router=block.gate.weight,
            gate_up=block.experts.gate_up_proj,
            down=block.experts.down_proj,
            top_k=block.gate.top_k,
            normalize=block.gate.norm_topk_prob,
            act_fn=block.experts.act_fn,
        )
        for _, path, block in sparse_blocks(model)
    }
    return decoder_program(model, phase, replaced)
