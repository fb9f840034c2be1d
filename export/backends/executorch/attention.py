"""Attention as XNNPACK takes it: no repeated keys, no boolean logic, one free dimension a view.

The stock attention repeats every key and value for its group of query heads and guards the
softmax against fully masked rows; each of these steps leaves the delegate. Here the query heads
of a group are stacked along the length instead, which is the same product without the copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "mobilekit_grouped"
_MASKED = 1e4  # exp(-1e4) is exactly 0 in float32


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output, shape (1, S, H, Dh), and no weights.

    Args:
        module: The attention module; not used.
        query: Shape (1, H, S, Dh).
        key: Shape (1, Hk, T, Dh), H a multiple of Hk.
        value: Shape (1, Hk, T, Dh).
        attention_mask: Shape (1, 1, S, T), bool, true where visible; each row has one true.
        scaling: Factor of the scores.
        unused: What else the models hand to an attention (dropout, sliding window); the mask
            says all of it for a program in eval mode.
    """
    _, heads, length, head_dim = query.shape
    groups, slots = key.shape[1:3]
    per_group = heads // groups
    bias = (attention_mask.to(query.dtype) - 1.0) * _MASKED
    stacked = (query * scaling).contiguous().view(groups, per_group * length, head_dim)
    scores = torch.bmm(stacked, key.view(groups, slots, head_dim).transpose(1, 2))
    scores = scores.view(groups, per_group, length, slots) + bias
    weights = torch.softmax(scores, dim=-1).view(groups, per_group * length, slots)
    output = torch.bmm(weights, value.view(groups, slots, head_dim))
    # two steps: in one, torch.export guards on the stride of the merged heads
    output = output.view(groups, per_group, length, head_dim).flatten(0, 1)[None]
    return output.transpose(1, 2), None


def use_grouped_attention_(module: nn.Module) -> None:
    """Make every ``transformers`` model inside ``module`` attend by :func:`grouped_attention`.

    Args:
        module: A program's module, which owns its models' configs.
    """
    AttentionInterface.register(NAME, grouped_attention)
    for child in module.modules():
        config: Any = getattr(child, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = NAME
