"""ERNIE 4.5 mixture-of-experts decoders: a correction of the choice, shared experts."""

from __future__ import annotations

from typing import Any

from mobilekit.models.modules.routing import CorrectedSoftmaxRouting, Routing

from .base import Family
from .dense_config import HEADS, SET_HEADS
from .experts import ExpertLayout
from .sparse_program import sparse_program
from .sub_blocks import ATTENTION_BLOCKS


def _is_sparse(config: Any, layer: int) -> bool:
    inside = config.moe_layer_start_index <= layer <= config.moe_layer_end_index
    return bool(inside and (layer + 1) % config.moe_layer_interval == 0)


def _routing(router: Any) -> Routing:
    return CorrectedSoftmaxRouting(
        router.weight,
        router.moe_statics.e_score_correction_bias[0],
        top_k=router.top_k,
        smallest_sum=router.norm_min,
    )


def _prediction_heads(_config: Any) -> str:
    return r"^model\.mtp_"


_LAYOUT = ExpertLayout("moe_num_experts", is_sparse=_is_sparse)

ERNIE4_5_MOE = Family(
    name="ernie4_5_moe",
    classes=("Ernie4_5_MoeForCausalLM",),
    task="causal-lm",
    program=sparse_program(_routing),
    units_of={"expert": _LAYOUT.units, **HEADS},
    set_count={"expert": _LAYOUT.set_count, **SET_HEADS},
    blocks_of=ATTENTION_BLOCKS,
    unused=_prediction_heads,
)
