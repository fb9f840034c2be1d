"""Gemma 2 decoders: alternating windows, capped scores and logits, scaled embeddings."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family
from .dense_config import DENSE_UNITS, SET_DENSE
from .sub_blocks import DENSE_BLOCKS

GEMMA2 = Family(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    task="causal-lm",
    program=decoder_program,
    units_of=DENSE_UNITS,
    set_count=SET_DENSE,
    blocks_of=DENSE_BLOCKS,
)
