"""Put few-bit layers in the place of a program's own, each at the precision it is asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilekit.core.errors import UnsupportedModelError

from ...precision import Precision, weight_layers
from .layers import BlockEmbedding, BlockLinear
from .scheme import ACCURACY_LEVEL, BITS, BlockWeight, block_size, quantize_blocks

if TYPE_CHECKING:
    from mobilekit.models.families import Program

_Stored = dict[tuple[int, int], BlockWeight]  # (address of the float weight, bits) → its blocks


def quantize_program(program: Program, precision: Precision) -> dict[str, Any]:
    """Replace the layers of a program's private copy by few-bit ones; routers stay as they are.

    A tied embedding and head are stored once, and twice where they are at different precisions.

    Returns:
        The record of what was done, for the artifact's settings.
    """
    stored: _Stored = {}
    kept: list[str] = []
    counts: Counter[str] = Counter()
    body, prefix = program.module, "model."
    for path, module in weight_layers(program).items():
        chosen = precision.at(path)
        counts[chosen] += 1
        if chosen == "float":
            kept.append(path)
            continue
        blocks = _blocks(module.weight, BITS[chosen], stored)
        body.set_submodule(prefix + path, _layer(path, module, blocks))
    return _record(counts, kept, stored)


def _blocks(weight: Tensor, bits: int, stored: _Stored) -> BlockWeight:
    key = (weight.data_ptr(), bits)
    if key not in stored:
        stored[key] = quantize_blocks(weight, bits, block_size(weight.shape[1], bits))
    return stored[key]


def _layer(path: str, module: nn.Linear | nn.Embedding, blocks: BlockWeight) -> nn.Module:
    if isinstance(module, nn.Linear):
        return BlockLinear(blocks, module.bias)
    return BlockEmbedding(blocks, _embedding_scale(path, module))


def _embedding_scale(path: str, module: nn.Embedding) -> float:
    """Return the constant that an embedding multiplies its rows by.

    Raises:
        UnsupportedModelError: If it does something else to them.
    """
    ids = torch.arange(min(4, module.num_embeddings))
    scale = float(getattr(module, "embed_scale", 1.0))
    if not torch.allclose(module(ids), module.weight[ids] * scale, rtol=1e-5):
        raise UnsupportedModelError(
            f"{path} ({type(module).__name__}) does more than look rows up",
            hint=f"Leave it in float: --override '{path}=float'.",
        )
    return scale


def _record(counts: Counter[str], kept: list[str], stored: _Stored) -> dict[str, Any]:
    addresses = [address for address, _ in stored]
    blocks = {f"int{bits}": set[int]() for _, bits in stored}
    for (_, bits), weight in stored.items():
        blocks[f"int{bits}"].add(weight.block)
    return {
        "tool": "onnxruntime.quantization MatMulNBits",
        "symmetric": True,
        "layers": dict(counts),
        "block_sizes": {name: sorted(sizes) for name, sizes in blocks.items()},
        "scales": "float16",
        "activations": "int8 a row and block" if ACCURACY_LEVEL == 4 else "float32",
        "float32_layers": kept,
        "weights_stored_twice": len(addresses) - len(set(addresses)),
    }
