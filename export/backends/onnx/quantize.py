"""Put few-bit layers in the place of a program's own, each at the precision it is asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.models.modules.static_moe import StaticMoE
from mobilekit.schema.manifest import LayerPrecision

from ...precision import Precision, checkpoint_path, weight_layers
from .layers import BlockEmbedding, BlockLinear
from .moe import block_experts
from .scheme import BITS, BlockWeight, block_size, quantize_blocks

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
    layers = weight_layers(program)
    chosen = {path: precision.at(path) for path in layers}
    body, prefix = program.module, "model."
    experts = _replace_experts(body, chosen)
    for path, module in layers.items():
        if chosen[path] == "float" or path.rpartition(".")[0] in experts:
            continue
        blocks = _blocks(module.weight, BITS[chosen[path]], stored)
        body.set_submodule(prefix + path, _layer(path, module, blocks))
    return _record(chosen, stored, len(experts))


def _replace_experts(body: nn.Module, chosen: dict[str, LayerPrecision]) -> set[str]:
    """Replace the sparse blocks that one operator can do; return their paths."""
    replaced = set()
    blocks = [(n, m) for n, m in body.named_modules() if isinstance(m, StaticMoE)]
    for name, moe in blocks:
        path = checkpoint_path(name)
        made = block_experts(moe, chosen[f"{path}.gate_up"], chosen[f"{path}.down"])
        if made is not None:
            body.set_submodule(name, made)
            replaced.add(path)
    return replaced


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


def _record(
    chosen: dict[str, LayerPrecision], stored: _Stored, sparse_blocks: int
) -> dict[str, Any]:
    addresses = [address for address, _ in stored]
    return {
        "tool": "int8: onnxruntime.quantization MatMulNBits; int4: scales searched",
        "symmetric": True,
        "layers": dict(Counter(chosen.values())),
        "block_sizes": sorted({(f"int{w.bits}", w.block) for w in stored.values()}),
        "scales": "float16",
        "activations": "int8 a row and block",
        "float32_layers": [path for path, precision in chosen.items() if precision == "float"],
        "weights_stored_twice": len(addresses) - len(set(addresses)),
        "sparse_expert_blocks": sparse_blocks,
    }
