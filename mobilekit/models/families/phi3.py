"""Phi-3 and Phi-4-mini dense decoders: fused projections, partial or long rotary embeddings."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family

PHI3 = Family(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    task="causal-lm",
    program=decoder_program,
)
