"""A linear without a bias that owns its weight."""

from __future__ import annotations

from torch import Tensor, nn


def plain_linear(weight: Tensor) -> nn.Linear:
    """Return a bias-free linear that owns a contiguous copy of ``weight``."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    return linear
