"""Qwen3 mixture-of-experts decoders; layers of ``mlp_only_layers`` are dense."""

from __future__ import annotations

from .base import Family
from .softmax_experts import experts, program, set_expert_count

QWEN3_MOE = Family(
    name="qwen3_moe",
    classes=("Qwen3MoeForCausalLM",),
    task="causal-lm",
    program=program,
    units_of={"expert": experts},
    set_count={"expert": set_expert_count},
)
