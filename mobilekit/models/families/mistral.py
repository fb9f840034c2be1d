"""Mistral dense decoders; one sliding window for all layers, or none."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family

MISTRAL = Family(
    name="mistral",
    classes=("MistralForCausalLM",),
    task="causal-lm",
    program=decoder_program,
)
