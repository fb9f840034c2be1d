"""Qwen2 (and 1.5) mixture-of-experts decoders, with a shared expert behind a gate of its own."""

from __future__ import annotations

from .base import Family
from .dense_config import HEADS, SET_HEADS
from .experts import ExpertLayout
from .qwen3_moe import every_sparse_step
from .sparse_program import softmax_routing, sparse_program
from .sub_blocks import ATTENTION_BLOCKS

_LAYOUT = ExpertLayout("num_experts", is_sparse=every_sparse_step)

QWEN2_MOE = Family(
    name="qwen2_moe",
    classes=("Qwen2MoeForCausalLM",),
    task="causal-lm",
    program=sparse_program(softmax_routing),
    units_of={"expert": _LAYOUT.units, **HEADS},
    set_count={"expert": _LAYOUT.set_count, **SET_HEADS},
    blocks_of=ATTENTION_BLOCKS,
)
