"""GPT-OSS mixture-of-experts decoders: experts with biases, fused on disk as in memory."""

from __future__ import annotations

from .base import Family
from .experts import ExpertLayout

_LAYOUT = ExpertLayout("num_local_experts")

GPT_OSS = Family(
    name="gpt_oss",
    classes=("GptOssForCausalLM",),
    task="causal-lm",
    program=None,
    obstacle="attention with a sink a head, and experts with biases and a clamped activation, "
    "have no form for capture",
    units_of={"expert": _LAYOUT.units},
    set_count={"expert": _LAYOUT.set_count},
)
