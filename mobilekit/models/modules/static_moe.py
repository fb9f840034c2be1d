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
from torch.nn import functional as F


class StaticMoE(nn.Module):
    """Softmax top-k routed SwiGLU experts as ``gate_up`` (D → E·2F) and ``down`` (E·F → D).

    Args:
        router: Router rows, shape (E, D).
        gate_up: Fused gate and up projections, shape (E, 2F, D), gate rows first.
        down: Down projections, shape (E, D, F).
        top_k: Experts a token.
        normalize: Whether the top-k probabilities are divided by their sum.
        act_fn: Activation of the gate.
    """

    def __init__(
        self,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        *,
        top_k: int,
        normalize: bool,
        act_fn: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.num_experts, double, hidden_size = gate_up.shape
        self.intermediate_size = double // 2
        self.top_k, self.normalize, self.act_fn = top_k, normalize, act_fn
        self.router = plain_linear(router)
        gate, up = gate_up.detach().chunk(2, dim=1)
        # all gates first, then all ups: one contiguous split in the forward instead of E
        rows = torch.cat([gate.reshape(-1, hidden_size), up.reshape(-1, hidden_size)])
        self.gate_up = plain_linear(rows)
        self.down = plain_linear(down.detach().permute(1, 0, 2).reshape(hidden_size, -1))
        self.register_buffer("expert_ids", torch.arange(self.num_experts), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output, shape (B, S, D) like its input."""
        batch, length, _ = hidden_states.shape
        weights = self.routing_weights(hidden_states)  # (B, S, E)
        gate, up = self.gate_up(hidden_states).chunk(2, dim=-1)  # (B, S, E·F) each
        hidden = self.act_fn(gate) * up
        per_expert = hidden.view(batch, length, self.num_experts, self.intermediate_size)
        weighted = per_expert * weights.unsqueeze(-1)
        return self.down(weighted.reshape(batch, length, -1))  # type: ignore[no-any-return]

    def routing_weights(self, hidden_states: Tensor) -> Tensor:
        """Return the weight of every expert, shape (B, S, E), zero where it was not chosen."""
        scores = self.router(hidden_states.to(self.router.weight.dtype))
        probabilities = F.softmax(scores, dim=-1, dtype=torch.float32)
        value, index = torch.topk(probabilities, self.top_k, dim=-1)  # (B, S, k)
        if self.normalize:
            value = value / value.sum(dim=-1, keepdim=True)
        chosen = index.unsqueeze(-1) == self.expert_ids  # (B, S, k, E)
        return (chosen * value.unsqueeze(-1)).sum(dim=-2).to(hidden_states.dtype)


def plain_linear(weight: Tensor) -> nn.Linear:
    """Return a bias-free linear that owns a contiguous copy of ``weight``."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    return linear
