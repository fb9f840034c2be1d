"""Routers of programs against those of transformers, whatever their settings and weights."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Ernie4_5_MoeConfig,
    Glm4MoeConfig,
    GraniteMoeConfig,
    MixtralConfig,
    Qwen2MoeConfig,
)
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

from mobilekit.models.families.ernie4_5_moe import _routing as ernie_routing
from mobilekit.models.families.glm4_moe import _routing as glm_routing
from mobilekit.models.families.sparse_program import softmax_routing
from mobilekit.models.modules.routing import Routing, router_parts

D = 16


def drawn(router: Any, seed: int) -> Any:
    """Give a router random weights and corrections."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*router.parameters(), *router.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return router


def assert_routes_alike(router: Any, routing: Routing, seed: int) -> None:
    hidden = torch.randn(1, 11, D, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        _, weights, index = router(hidden.flatten(0, 1))
        value, chosen = routing(hidden)
        dense = routing.dense(hidden)
    count = router.weight.shape[0]
    expected = spread(index, weights, count)
    torch.testing.assert_close(dense[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spread(chosen[0], value[0], count), expected, rtol=1e-5, atol=1e-6)


def spread(index: Tensor, weights: Tensor, count: int) -> Tensor:
    return (F.one_hot(index, count) * weights[..., None]).sum(dim=-2)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 2**20))
def test_sigmoid_routers_with_groups(data: st.DataObject, seed: int) -> None:
    groups, size = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 4))
    chosen = data.draw(st.integers(1, groups))
    config = Glm4MoeConfig(
        hidden_size=D,
        n_routed_experts=groups * size,
        n_group=groups,
        topk_group=chosen,
        num_experts_per_tok=data.draw(st.integers(1, chosen * size)),
        norm_topk_prob=data.draw(st.booleans()),
        routed_scaling_factor=data.draw(st.sampled_from([1.0, 2.5])),
    )
    router = drawn(Glm4MoeTopkRouter(config), seed)
    assert_routes_alike(router, glm_routing(router), seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.data(), st.integers(0, 2**20))
def test_softmax_routers(count: int, data: st.DataObject, seed: int) -> None:
    top_k = data.draw(st.integers(1, count))
    common = {"hidden_size": D, "num_experts_per_tok": top_k}
    made: list[Any] = [
        MixtralTopKRouter(MixtralConfig(**common, num_local_experts=count)),
        GraniteMoeTopKRouter(GraniteMoeConfig(**common, num_local_experts=count)),
        *(
            Qwen2MoeTopKRouter(Qwen2MoeConfig(**common, num_experts=count, norm_topk_prob=norm))
            for norm in (True, False)
        ),
    ]
    for router in made:
        drawn(router, seed)
        assert_routes_alike(router, softmax_routing(router), seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.data(), st.integers(0, 2**20))
def test_corrected_softmax_routers(count: int, data: st.DataObject, seed: int) -> None:
    config = Ernie4_5_MoeConfig(
        hidden_size=D,
        moe_num_experts=count,
        moe_k=data.draw(st.integers(1, count)),
        moe_norm_min=data.draw(st.sampled_from([1e-12, 0.5, 2.0])),
    )
    router = drawn(Ernie4_5_MoeTopKRouter(config), seed)
    assert_routes_alike(router, ernie_routing(router), seed)


def test_parts_of_routers_are_told_from_others() -> None:
    router = drawn(MixtralTopKRouter(MixtralConfig(hidden_size=D)), 1)
    routing, other = softmax_routing(router), torch.nn.Linear(2, 2)
    parts = router_parts(torch.nn.ModuleList([routing, other]))
    assert parts == {id(routing), id(routing.linear)}
