"""DeepSeek-V2 decoders: latent attention, softmax routers that may choose groups first."""

from __future__ import annotations

from typing import Any

from mobilekit.core.errors import InvalidInputError

from .base import Family
from .experts import ExpertLayout, Grouping, after_dense_layers

LATENT_ATTENTION = "attention over compressed latents (MLA) has no form for capture"


def _grouping(router: Any) -> Grouping:
    """Score a group by its best expert, where the router is limited to groups at all."""
    if router.topk_method == "greedy":
        return Grouping()
    if router.topk_method == "group_limited_greedy":
        return Grouping(router.num_group, router.topk_group)
    raise InvalidInputError(
        f"config.json asks for topk_method {router.topk_method!r}, which DeepSeek-V2 does not have",
        hint="It has 'greedy' and 'group_limited_greedy': restore the original config.json.",
    )


_LAYOUT = ExpertLayout("n_routed_experts", is_sparse=after_dense_layers, grouping=_grouping)

DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    classes=("DeepseekV2ForCausalLM",),
    task="causal-lm",
    program=None,
    obstacle=LATENT_ATTENTION,
    units_of={"expert": _LAYOUT.units},
    set_count={"expert": _LAYOUT.set_count},
)
