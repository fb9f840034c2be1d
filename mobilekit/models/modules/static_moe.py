"""A sparse MoE block as two linears: no data-dependent shapes, and ordinary weights to quantize.

Every expert computes every token; the routing weights, zero for the experts that the router did
not choose, are multiplied into the hidden between the two linears. Exact for any top-k router
whose experts are bias-free gated MLPs. The price is E / k times the arithmetic of the sparse
form; what it buys is measured in ``benchmarks/moe_form.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .plain_linear import plain_linear
from .routing import Routing


class StaticMoE(nn.Module):
    """Top-k routed gated experts as ``gate_up`` (D → E·2F) and ``down`` (E·F → D).

    Args:
        routing: Chooses experts and their weights.
        gate_up: Fused gate and up projections, shape (E, 2F, D), gate rows first.
        down: Down projections, shape (E, D, F).
        act_fn: Activation of the gate.
    """

    def __init__(
        self,
        routing: Routing,
        gate_up: Tensor,
        down: Tensor,
        *,
        act_fn: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.num_experts, double, hidden_size = gate_up.shape
        self.intermediate_size = double // 2
        self.routing, self.act_fn = routing, act_fn
        gate, up = gate_up.detach().chunk(2, dim=1)
        # all gates first, then all ups: one contiguous split in the forward instead of E
        rows = torch.cat([gate.reshape(-1, hidden_size), up.reshape(-1, hidden_size)])
        self.gate_up = plain_linear(rows)
        self.down = plain_linear(down.detach().permute(1, 0, 2).reshape(hidden_size, -1))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output, shape (B, S, D) like its input."""
        batch, length, _ = hidden_states.shape
        weights = self.routing.dense(hidden_states).to(hidden_states.dtype)  # (B, S, E)
        gate, up = self.gate_up(hidden_states).chunk(2, dim=-1)  # (B, S, E·F) each
        hidden = self.act_fn(gate) * up
        per_expert = hidden.view(batch, length, self.num_experts, self.intermediate_size)
        weighted = per_expert * weights.unsqueeze(-1)
        return self.down(weighted.reshape(batch, length, -1))  # type: ignore[no-any-return]


class SharedExpertMoE(nn.Module):
    """Routed experts beside one that every token goes to.

    Args:
        experts: The routed ones.
        shared: The other, (B, S, D) → (B, S, D).
        name: What it is called in the checkpoint.
        gate: D → 1; its sigmoid scales the other's output. 1 where ``None``.
    """

    def __init__(
        self, experts: StaticMoE, shared: nn.Module, *, name: str, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.experts, self.shared_expert_gate = experts, gate
        self.add_module(name, shared)
        self._name = name

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output, shape (B, S, D) like its input."""
        shared: Tensor = self.get_submodule(self._name)(hidden_states)
        if self.shared_expert_gate is not None:
            shared = self.shared_expert_gate(hidden_states).sigmoid() * shared
        return self.experts(hidden_states) + shared  # type: ignore[no-any-return]
