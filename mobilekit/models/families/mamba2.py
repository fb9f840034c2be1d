"""Mamba-2 language models: a running state instead of a key-value cache."""

from __future__ import annotations

from mobilekit.models.modules.recurrent_program import recurrent_program

from .base import Family

MAMBA2 = Family(
    name="mamba2",
    classes=("Mamba2ForCausalLM",),
    task="causal-lm",
    program=recurrent_program,
    is_recurrent=True,
)
