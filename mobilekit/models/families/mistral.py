"""Mistral dense decoders; one sliding window for all layers, or none."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family
from .dense_config import DENSE_UNITS, SET_DENSE
from .sub_blocks import DENSE_BLOCKS

MISTRAL = Family(
    name="mistral",
    classes=("MistralForCausalLM",),
    task="causal-lm",
    program=decoder_program,
    units_of=DENSE_UNITS,
    set_count=SET_DENSE,
    blocks_of=DENSE_BLOCKS,
)
