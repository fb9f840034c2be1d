"""Phi-3 and Phi-4-mini dense decoders: fused projections, partial or long rotary embeddings."""

from __future__ import annotations

from mobilekit.models.modules.decoder_program import decoder_program

from .base import Family
from .dense_config import DENSE_UNITS, SET_DENSE
from .sub_blocks import DENSE_BLOCKS

PHI3 = Family(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    task="causal-lm",
    program=decoder_program,
    units_of=DENSE_UNITS,
    set_count=SET_DENSE,
    blocks_of=DENSE_BLOCKS,
)
