"""Programs of decoders with routed experts: their blocks captured as ordinary linears."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mobilekit.models.modules.copies import shallow_copy
from mobilekit.models.modules.decoder_program import decoder_program
from mobilekit.models.modules.routing import Routing, SoftmaxRouting
from mobilekit.models.modules.static_moe import SharedExpertMoE, StaticMoE

from .base import Phase, Program
from .experts import SparseBlock, sparse_blocks

if TYPE_CHECKING:
    from torch import nn

ReadRouting = Callable[[Any], Routing]
_SHARED = ("shared_expert", "shared_experts")


def sparse_program(read_routing: ReadRouting) -> Callable[[nn.Module, Phase], Program]:
    """Return the function that wraps a model of a family for capture.

    Args:
        read_routing: Makes the module that routes as a router of the family does.
    """

    def program(model: nn.Module, phase: Phase) -> Program:
        blocks = sparse_blocks(model)
        replaced = {block.path: _static(block, read_routing(block.router)) for block in blocks}
        return decoder_program(model, phase, replaced)

    return program


def softmax_routing(router: Any) -> Routing:
    """Read a softmax router; one without a flag for it normalizes what it chose."""
    normalize = bool(getattr(router, "norm_topk_prob", True))
    return SoftmaxRouting(router.weight, top_k=router.top_k, normalize=normalize)


def _static(block: SparseBlock, routing: Routing) -> nn.Module:
    experts = block.experts
    moe = StaticMoE(routing, experts.gate_up_proj, experts.down_proj, act_fn=experts.act_fn)
    for name in _SHARED:
        if (shared := getattr(block.module, name, None)) is not None:
            gate = getattr(block.module, "shared_expert_gate", None)
            gate = None if gate is None else shallow_copy(gate)
            return SharedExpertMoE(moe, shallow_copy(shared), name=name, gate=gate)
    return moe
