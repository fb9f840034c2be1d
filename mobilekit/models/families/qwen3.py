"""Qwen3 dense decoders."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family

QWEN3 = Family(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    task="causal-lm",
    program=decoder_program,
)
