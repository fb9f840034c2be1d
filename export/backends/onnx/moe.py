"""Experts in few-bit blocks as one ``QMoE``: only the experts that a token is sent to compute.

Against the two linears of ``StaticMoE`` it does k / E of the arithmetic, and routes inside the
operator. The kernel for CPUs, as tried in ONNX Runtime 1.32, takes SwiGLU with gate and up rows in
turns, one width of codes, and both reduction lengths divisible by one block size; it equals its
eager counterpart to 2e-7. What does not fit stays two linears.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilekit.models.modules.routing import SoftmaxRouting
from mobilekit.models.modules.static_moe import StaticMoE

from .layers import CONTRIB
from .scheme import (
    ACCURACY_LEVEL,
    BITS,
    BlockWeight,
    block_size,
    quantize_blocks,
    round_activations,
)


def block_experts(moe: StaticMoE, gate_up: str, down: str) -> BlockMoE | None:
    """Return the block with its experts at the given precisions, where the operator can do it.

    Args:
        moe: The block in its two linears.
        gate_up: "int8", "int4" or "float", for the gate and up projections.
        down: The same, for the down projections.
    """
    if gate_up == "float" or gate_up != down or not _is_silu(moe.act_fn):
        return None
    hidden_size, inner = moe.gate_up.in_features, moe.intermediate_size
    bits = BITS[gate_up]
    block = min(block_size(depth, bits) for depth in (hidden_size, inner))
    if hidden_size % block or inner % block:
        return None
    # gates of all experts first → an expert's rows together, gate and up in turns
    gate, up = moe.gate_up.weight.detach().view(2, moe.num_experts, inner, hidden_size)
    first = torch.stack((gate, up), dim=2).flatten(0, 2)  # (E·2F, D)
    second = moe.down.weight.detach().view(hidden_size, moe.num_experts, inner)
    second = second.permute(1, 0, 2).flatten(0, 1)  # (E·D, F)
    return BlockMoE(moe, quantize_blocks(first, bits, block), quantize_blocks(second, bits, block))


class BlockMoE(nn.Module):
    """Top-k routed SwiGLU experts in blocks; the router stays float.

    Args:
        moe: The block that it takes the place of.
        gate_up: Rows of all experts, gate and up in turns, (E·2F, D).
        down: Rows of all experts, (E·D, F).
    """

    gate_up_codes: Tensor
    gate_up_scales: Tensor
    down_codes: Tensor
    down_scales: Tensor

    def __init__(self, moe: StaticMoE, gate_up: BlockWeight, down: BlockWeight) -> None:
        super().__init__()
        self.routing = moe.routing
        self.num_experts, self.intermediate_size = moe.num_experts, moe.intermediate_size
        self.stored = (gate_up, down)
        for name, weight in zip(("gate_up", "down"), self.stored, strict=True):
            for part in ("codes", "scales"):
                flat = getattr(weight, part)
                shaped = flat.view(moe.num_experts, flat.shape[0] // moe.num_experts, -1)
                self.register_buffer(f"{name}_{part}", shaped)
        self._float: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output, shape (1, S, D) like its input."""
        if torch.onnx.is_in_onnx_export():
            return self._emit(hidden_states, *self._routed(hidden_states))
        weights, chosen = self.routing(hidden_states[0])  # (S, k)
        output = torch.zeros_like(hidden_states)
        for expert in torch.unique(chosen).tolist():
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            made = self._expert(expert, hidden_states[0, token])
            output[0].index_add_(0, token, made * weights[token, slot, None])
        return output

    def _expert(self, index: int, hidden: Tensor) -> Tensor:
        """Return what one expert makes of the rows (n, D), activations rounded to int8."""
        if self._float is None:
            gate_up, down = (w.dequantize() for w in self.stored)
            count = self.num_experts
            self._float = (
                gate_up.view(count, -1, gate_up.shape[1]),
                down.view(count, -1, down.shape[1]),
            )
        block = self.stored[0].block
        both = F.linear(round_activations(hidden, block), self._float[0][index])
        inner = F.silu(both[:, 0::2]) * both[:, 1::2]
        return F.linear(round_activations(inner, block), self._float[1][index])

    def _routed(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the operator chooses by, and the weights that it takes; (S, E) each.

        By itself its weights are a softmax over the chosen k only. A router that chooses by
        something else than its weights has its own choice handed in: all other weights are zero.
        """
        if not isinstance(self.routing, SoftmaxRouting):
            weights = self.routing.dense(hidden_states).flatten(0, 1)
            return weights, weights
        logits = self.routing.logits(hidden_states).flatten(0, 1)
        return logits, None if self.routing.normalize else F.softmax(logits, dim=-1)

    def _emit(self, hidden_states: Tensor, choice: Tensor, weights: Tensor | None) -> Tensor:
        gate_up, _ = self.stored
        first = (self.gate_up_codes, self.gate_up_scales.float(), None)
        second = (self.down_codes, self.down_scales.float(), None)
        inputs: list[Any] = [hidden_states, choice, *first, *second]
        if weights is not None:
            inputs += [None] * 6 + [weights]
        return torch.onnx.ops.symbolic(
            f"{CONTRIB}::QMoE",
            inputs,
            {
                "k": self.routing.top_k,
                "activation_type": "swiglu",
                "activation_alpha": 1.0,
                "activation_beta": 0.0,
                "swiglu_fusion": 1,
                "normalize_routing_weights": int(weights is None),
                "expert_weight_bits": gate_up.bits,
                "block_size": gate_up.block,
                "accuracy_level": ACCURACY_LEVEL,
                "weights_prepacked": 0,
            },
            dtype=hidden_states.dtype,
            shape=list(hidden_states.shape),
            version=1,
        )


def _is_silu(act_fn: Any) -> bool:
    probe = torch.linspace(-4.0, 4.0, 17)
    return torch.allclose(act_fn(probe), F.silu(probe))
