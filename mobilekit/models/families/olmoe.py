"""OLMoE mixture-of-experts decoders."""

from __future__ import annotations

from .base import Family
from .softmax_experts import experts, program, set_expert_count

OLMOE = Family(
    name="olmoe",
    classes=("OlmoeForCausalLM",),
    task="causal-lm",
    program=program,
    units_of={"expert": experts},
    set_count={"expert": set_expert_count},
)
