"""Granite mixture-of-experts decoders; their router's softmax is over the chosen experts only."""

from __future__ import annotations

from .base import Family
from .dense_config import HEADS, SET_HEADS
from .experts import ExpertLayout
from .sparse_program import softmax_routing, sparse_program
from .sub_blocks import ATTENTION_BLOCKS

_LAYOUT = ExpertLayout("num_local_experts")

GRANITE_MOE = Family(
    name="granite_moe",
    classes=("GraniteMoeForCausalLM",),
    task="causal-lm",
    program=sparse_program(softmax_routing),
    units_of={"expert": _LAYOUT.units, **HEADS},
    set_count={"expert": _LAYOUT.set_count, **SET_HEADS},
    blocks_of=ATTENTION_BLOCKS,
)
