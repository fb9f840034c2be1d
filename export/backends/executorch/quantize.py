"""Weights in 8 or 4 bits by torchao: linears with dynamic int8 activations, embeddings alone."""

from __future__ import annotations

import logging
from typing import Any

# registers quantized_decomposed::embedding_byte and _4bit, which the runtime has kernels for
import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401
import torch
from torch import Tensor, nn

from mobilekit.models.families import Program

from ...int4 import round_groups
from ...precision import Precision, checkpoint_path, weight_layers
from .experts import split_experts_

GROUP = 32  # input channels that share a scale in 4 bits
_INT4 = getattr(torch, "int4")  # noqa: B009 - torch's stubs do not know it
logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of each CUDA kernel it lacks


class QuantizedEmbedding(nn.Module):
    """An embedding table in 8 or 4 bits.

    Args:
        values: Shape (V, D), int8; in 4 bits they are in -8 … 7.
        scales: Shape (V, D / group), float32: one scale a row in 8 bits, one a group in 4.
        bits: 8 or 4.
    """

    def __init__(self, values: Tensor, scales: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.values: Tensor
        self.scales: Tensor
        self.register_buffer("values", _pack(values) if bits == 4 else values)
        # a bfloat16 has fewer digits than a float16: the same scale in half the bytes
        self.register_buffer("scales", scales.half() if bits == 4 else scales.reshape(-1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of ``tokens``, shape (…, D), float32."""
        if torch.compiler.is_exporting():
            return self._by_operator(tokens)
        # eagerly that operator would dequantize the whole table for every call
        rows, scales = self.values[tokens], self.scales[tokens].float()
        if self.bits == 8:
            return rows.float() * scales.unsqueeze(-1)
        low, high = (rows & 0xF).float() - 8.0, (rows >> 4).float() - 8.0
        values = torch.stack([low, high], dim=-1).flatten(-2)
        groups = values.view(*values.shape[:-1], scales.shape[-1], -1)
        return (groups * scales.unsqueeze(-1)).flatten(-2)

    def _by_operator(self, tokens: Tensor) -> Tensor:
        decomposed = torch.ops.quantized_decomposed
        if self.bits == 8:
            rows: Tensor = decomposed.embedding_byte.default(
                self.values, self.scales, None, -128, 127, tokens
            )
            return rows
        swapped: Tensor = decomposed.embedding_4bit.dtype(
            self.values, self.scales, None, -8, 7, tokens, dtype=torch.float32
        )
        # the operator takes the first of two values from the high bits, a linear from the low
        return swapped.view(*swapped.shape[:-1], -1, 2).flip(-1).flatten(-2)


def quantize_(program: Program, precision: Precision) -> tuple[Program, list[str]]:
    """Quantize a program's linears and embeddings in place, each at its own precision.

    Args:
        program: A program whose module shares no modules (it may share tensors) with the caller's
            model.
        precision: Says which layer gets what.

    Returns:
        The program, its experts apart, and the paths of the layers that are int8 because 4 bits
        cannot group their input.
    """
    chosen = {path: precision.at(path) for path in weight_layers(program)}
    program, origin = split_experts_(program)
    part_of = {checkpoint_path(part): checkpoint_path(whole) for part, whole in origin.items()}
    layers = weight_layers(program)
    at = {path: chosen[part_of.get(path, path)] for path in layers}
    ungrouped = [
        path
        for path, layer in layers.items()
        if at[path] == "int4" and layer.weight.shape[1] % GROUP
    ]
    at.update(dict.fromkeys(ungrouped, "int8"))
    _untie_(program.module)
    for bits in (8, 4):
        ids = {id(layers[path]) for path, name in at.items() if name == f"int{bits}"}
        _quantize_linears_(program.module, ids, bits)
        for path, child in list(program.module.named_modules()):
            if isinstance(child, nn.Embedding) and id(child) in ids:
                program.module.set_submodule(path, _quantized_embedding(child, bits))
    return program, sorted({part_of.get(path, path) for path in ungrouped})


def _quantize_linears_(module: nn.Module, chosen: set[int], bits: int) -> None:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    linears = [m for m in module.modules() if isinstance(m, nn.Linear) and id(m) in chosen]
    weights = [linear.weight for linear in linears]
    quantize_(
        module,
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=_INT4 if bits == 4 else torch.int8,
            weight_granularity=PerGroup(GROUP) if bits == 4 else PerAxis(0),
        ),
        filter_fn=lambda child, _: isinstance(child, nn.Linear) and id(child) in chosen,
    )
    for linear, weight in zip(linears, weights, strict=True) if bits == 4 else ():
        _search_scales_(linear.weight, weight)


def _search_scales_(quantized: Any, weight: Tensor) -> None:
    """Put better codes and scales into a torchao weight.

    XNNPACK stores the scales of groups as bfloat16 and wants them positive.
    """
    codes, scales = round_groups(weight, GROUP, torch.bfloat16, is_signed=False)
    quantized.qdata.copy_(codes.flatten(1))
    quantized.scale.copy_(scales)


def _quantized_embedding(embedding: nn.Embedding, bits: int) -> QuantizedEmbedding:
    """Quantize by the same function as a linear, so that tied weights stay equal."""
    holder = nn.ModuleList([nn.Linear(1, 1, bias=False)])
    holder[0].weight = nn.Parameter(embedding.weight.detach(), requires_grad=False)
    _quantize_linears_(holder, {id(holder[0])}, bits)
    weight: Any = holder[0].weight  # torchao's tensor subclass
    return QuantizedEmbedding(weight.qdata, weight.scale, bits)


def _pack(values: Tensor) -> Tensor:
    """Return two values a byte, the first in the low bits as XNNPACK packs a linear's."""
    shifted = (values + 8).view(torch.uint8)
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def _untie_(module: nn.Module) -> None:
    """Give each linear and embedding a parameter object of its own, values still shared."""
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.Embedding)):
            child.weight = nn.Parameter(child.weight.detach(), requires_grad=False)
