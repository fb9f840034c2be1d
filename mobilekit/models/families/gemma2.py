"""Gemma 2 decoders: alternating windows, capped scores and logits, scaled embeddings."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family

GEMMA2 = Family(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    task="causal-lm",
    program=decoder_program,
)
