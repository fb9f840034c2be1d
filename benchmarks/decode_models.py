"""The models of ``decode.py``: real transformers classes at real shapes, random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

# Qwen/Qwen3-0.6B's config.json
_QWEN3_06B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}


def shapes() -> dict[str, dict[str, Any]]:
    """Return the shapes by name; ``widths`` is each layer's feed-forward (or expert) width."""
    # as structured pruning leaves a model: half of the width gone in the middle, less at the ends
    pruned = [3072 - 128 * min(i, 27 - i) for i in range(28)]
    small = {**_QWEN3_06B, "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 2}
    return {
        "qwen3-0.6b": {**_QWEN3_06B, "widths": [3072] * 28},
        "non-uniform": {**_QWEN3_06B, "widths": pruned},
        "moe": {
            **_QWEN3_06B,
            "num_hidden_layers": 12,
            "widths": [768] * 12,
            "num_experts": 16,
            "num_experts_per_tok": 4,
        },
        "small": {**small, "num_attention_heads": 4, "num_key_value_heads": 2, "widths": [512] * 2},
    }


def build(shape: dict[str, Any]) -> nn.Module:
    """Return the model of a shape, float32, tied embeddings."""
    settings = {k: v for k, v in shape.items() if k != "widths"}
    common: dict[str, Any] = {**settings, "tie_word_embeddings": True, "rope_theta": 1e6}
    torch.manual_seed(0)
    model: nn.Module
    if shape.get("num_experts"):
        width = shape["widths"][0]
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**common, moe_intermediate_size=width))
        model.set_experts_implementation("eager")
    else:
        widest = max(shape["widths"])
        model = Qwen3ForCausalLM(Qwen3Config(**common, intermediate_size=widest))
        for layer, width in zip(model.model.layers, shape["widths"], strict=True):
            narrow_(layer.mlp, width)
    return model.eval().requires_grad_(False)


def narrow_(mlp: Any, width: int) -> None:
    """Keep the first ``width`` channels of a gated MLP, as structured pruning would."""
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight = nn.Parameter(linear.weight.detach()[:width].clone(), requires_grad=False)
        linear.out_features = width
    kept = mlp.down_proj.weight.detach()[:, :width].clone()
    mlp.down_proj.weight = nn.Parameter(kept, requires_grad=False)
    mlp.down_proj.in_features = width
