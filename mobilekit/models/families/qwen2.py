"""Qwen2 and Qwen2.5 dense decoders: biases on queries, keys and values."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family

QWEN2 = Family(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    task="causal-lm",
    program=decoder_program,
)
