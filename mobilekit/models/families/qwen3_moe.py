"""Qwen3 mixture-of-experts decoders; layers of ``mlp_only_layers`` are dense."""

from __future__ import annotations

from typing import Any

from .base import Family
from .dense_config import HEADS, SET_HEADS
from .experts import ExpertLayout
from .sparse_program import softmax_routing, sparse_program
from .sub_blocks import ATTENTION_BLOCKS


def every_sparse_step(config: Any, layer: int) -> bool:
    """Say that each ``decoder_sparse_step``-th layer has experts, but ``mlp_only_layers``."""
    is_step = (layer + 1) % config.decoder_sparse_step == 0
    return is_step and layer not in config.mlp_only_layers and config.num_experts > 0


_LAYOUT = ExpertLayout("num_local_experts", is_sparse=every_sparse_step)

QWEN3_MOE = Family(
    name="qwen3_moe",
    classes=("Qwen3MoeForCausalLM",),
    task="causal-lm",
    program=sparse_program(softmax_routing),
    units_of={"expert": _LAYOUT.units, **HEADS},
    set_count={"expert": _LAYOUT.set_count, **SET_HEADS},
    blocks_of=ATTENTION_BLOCKS,
)
