"""Mixtral mixture-of-experts decoders."""

from __future__ import annotations

from .base import Family
from .dense_config import HEADS, SET_HEADS
from .experts import ExpertLayout
from .sparse_program import softmax_routing, sparse_program
from .sub_blocks import ATTENTION_BLOCKS

_LAYOUT = ExpertLayout("num_local_experts")

MIXTRAL = Family(
    name="mixtral",
    classes=("MixtralForCausalLM",),
    task="causal-lm",
    program=sparse_program(softmax_routing),
    units_of={"expert": _LAYOUT.units, **HEADS},
    set_count={"expert": _LAYOUT.set_count, **SET_HEADS},
    blocks_of=ATTENTION_BLOCKS,
)
