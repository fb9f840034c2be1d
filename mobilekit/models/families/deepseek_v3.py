"""DeepSeek-V3 decoders: latent attention, sigmoid routers that choose groups first."""

from __future__ import annotations

from .base import Family
from .deepseek_v2 import LATENT_ATTENTION
from .experts import ExpertLayout, after_dense_layers, grouped_by_best_two, later_layers

_LAYOUT = ExpertLayout(
    "n_routed_experts", is_sparse=after_dense_layers, grouping=grouped_by_best_two
)

DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    classes=("DeepseekV3ForCausalLM",),
    task="causal-lm",
    program=None,
    obstacle=LATENT_ATTENTION,
    units_of={"expert": _LAYOUT.units},
    set_count={"expert": _LAYOUT.set_count},
    unused=later_layers,
)
