"""RMS norms as one operator each, recognised by what they compute.

Families write the norm in their own ways (Gemma multiplies by 1 + weight, some widen to float32
first), so a module is recognised by running it, not by its name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NORM = "SimplifiedLayerNormalization"  # ONNX Runtime's name of an RMS norm


class EmittedNorm(nn.Module):
    """``SimplifiedLayerNormalization`` over the last axis, for capture only.

    Args:
        gain: What the normalized values are multiplied by, (D,).
        eps: Added to the mean square.
    """

    gain: Tensor

    def __init__(self, gain: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("gain", gain)
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalized states, of the input's shape."""
        return torch.onnx.ops.symbolic(
            NORM,
            (hidden_states, self.gain),
            {"axis": -1, "epsilon": self.eps, "stash_type": 1},
            dtype=hidden_states.dtype,
            shape=list(hidden_states.shape),
            version=1,
        )


def replace_norms(body: nn.Module) -> None:
    """Replace every RMS norm of a program's private copy."""
    for path, module in list(body.named_modules()):
        if (found := recognise(module)) is not None:
            body.set_submodule(path, found)


def recognise(module: nn.Module) -> EmittedNorm | None:
    """Return the operator that computes what ``module`` does, if it is an RMS norm."""
    weight: Any = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    only = [name for name, _ in (*module.named_parameters(), *module.named_buffers())] == ["weight"]
    if not only or not isinstance(eps, float) or weight.dim() != 1:
        return None
    # about as large as the root of eps, so that a wrong eps shows
    probe = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)) * eps**0.5
    found = module(probe)
    normalized = probe * torch.rsqrt(probe.pow(2).mean(-1, keepdim=True) + eps)
    for gain in (weight.detach().float(), 1.0 + weight.detach().float()):
        if torch.allclose(found, normalized * gain, rtol=1e-4, atol=1e-6):
            return EmittedNorm(gain.clone(), eps)
    return None
