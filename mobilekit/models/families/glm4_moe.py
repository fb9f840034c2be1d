"""GLM-4 mixture-of-experts decoders: sigmoid routers that choose groups first, shared experts."""

from __future__ import annotations

from typing import Any

from mobilekit.models.modules.routing import Routing, SigmoidRouting

from .base import Family
from .dense_config import HEADS, SET_HEADS
from .experts import ExpertLayout, after_dense_layers, grouped_by_best_two, later_layers
from .sparse_program import sparse_program
from .sub_blocks import ATTENTION_BLOCKS


def _routing(router: Any) -> Routing:
    return SigmoidRouting(
        router.weight,
        router.e_score_correction_bias,
        top_k=router.top_k,
        groups=router.num_group,
        chosen_groups=router.topk_group,
        normalize=router.norm_topk_prob,
        scale=router.routed_scaling_factor,
    )


_LAYOUT = ExpertLayout(
    "n_routed_experts", is_sparse=after_dense_layers, grouping=grouped_by_best_two
)

GLM4_MOE = Family(
    name="glm4_moe",
    classes=("Glm4MoeForCausalLM",),
    task="causal-lm",
    program=sparse_program(_routing),
    units_of={"expert": _LAYOUT.units, **HEADS},
    set_count={"expert": _LAYOUT.set_count, **SET_HEADS},
    blocks_of=ATTENTION_BLOCKS,
    unused=later_layers,
)
