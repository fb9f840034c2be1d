"""The eager program that computes what the artifact should: its precision, its scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilekit.models.families import Phase, Program, StateForm
from mobilekit.models.modules.static_moe import StaticMoE

from .quantize import block_size, dequantize, quantize_weight

if TYPE_CHECKING:
    from mobilekit.models.families import Family


class BlockQuantizedLinear(nn.Module):
    """A linear as ``MatMulNBits`` computes it at accuracy level 4.

    Args:
        linear: The float layer.
        block: Elements that share a scale, in weights and activations.
    """

    def __init__(self, linear: nn.Linear, block: int) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("weight", quantize_dequantize(linear.weight, block))
        self.bias = linear.bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the product with activations rounded to int8, row by row and block by block."""
        rounded = round_activations(hidden_states, self.block)
        return F.linear(rounded, self.weight, self.bias)  # type: ignore[arg-type]


def round_activations(hidden: Tensor, block: int) -> Tensor:
    """Round to the 255 levels of a symmetric int8, one scale a row and block of the last axis."""
    depth = hidden.shape[-1]
    padded = F.pad(hidden, (0, -depth % block))
    blocks = padded.reshape(*padded.shape[:-1], -1, block)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))
    levels = torch.round(blocks * inverse)  # ties to even, as the kernels do
    rounded: Tensor = levels * (largest / 127.0)
    return rounded.flatten(-2)[..., :depth]


def quantize_dequantize(weight: Tensor, block: int) -> Tensor:
    """Return ``weight`` (N, K) as the artifact stores it, read back, float32."""
    codes, scales = quantize_weight(weight.detach().float().numpy(), block)
    return torch.from_numpy(dequantize(codes, scales, weight.shape[1]))


def reference_program(model: nn.Module, family: Family, spec: Any) -> Program:
    """Return the resident-cache program of the spec's precision; ``model`` stays as it is."""
    phase = Phase("forward", StateForm.RESIDENT, spec.context_length)
    program = family.export_program(model, phase)
    if spec.precision.name == "int8":
        quantize_program(program)
    return program


def quantize_program(program: Program) -> None:
    """Replace the linears and the embedding of a program's private copy; routers stay as is."""
    body = program.module
    routers = {f"{n}.router" for n, m in body.named_modules() if isinstance(m, StaticMoE)}
    linears = {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear) and name not in routers
    }
    block = block_size([linear.in_features for linear in linears.values()])
    for name, linear in linears.items():
        body.set_submodule(name, BlockQuantizedLinear(linear, block))
    for name, table in [(n, m) for n, m in body.named_modules() if isinstance(m, nn.Embedding)]:
        rows = quantize_dequantize(table.weight, block)
        stored = nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows, _freeze=True)
        body.set_submodule(name, stored)
