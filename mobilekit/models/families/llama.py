"""Llama dense decoders."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family

LLAMA = Family(
    name="llama",
    classes=("LlamaForCausalLM",),
    task="causal-lm",
    program=decoder_program,
)
