"""Gemma 3 text decoders: a pattern of windows with a rotary base each, scaled embeddings."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family
from .dense_config import DENSE_UNITS, SET_DENSE
from .sub_blocks import DENSE_BLOCKS

GEMMA3 = Family(
    name="gemma3",
    classes=("Gemma3ForCausalLM",),
    task="causal-lm",
    program=decoder_program,
    units_of=DENSE_UNITS,
    set_count=SET_DENSE,
    blocks_of=DENSE_BLOCKS,
)
