"""8-bit weights by torchao: linears with dynamic int8 activations, embeddings weight-only."""

from __future__ import annotations

import logging
from typing import Any

# registers quantized_decomposed::embedding_byte, the operator that the runtime has a kernel for
import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401
import torch
from torch import Tensor, nn

from mobilekit.models.modules.static_moe import StaticMoE

logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of each CUDA kernel it lacks


class Int8Embedding(nn.Module):
    """An embedding table of int8 rows with one scale each.

    Args:
        values: Shape (V, D), int8.
        scales: Shape (V,), float32.
    """

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.values: Tensor
        self.scales: Tensor
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of ``tokens``, shape (…, D), float32."""
        if torch.compiler.is_exporting():
            low, high = -128, 127
            return torch.ops.quantized_decomposed.embedding_byte.default(  # type: ignore[no-any-return]
                self.values, self.scales, None, low, high, tokens
            )
        # eagerly that operator would dequantize the whole table for every call
        return self.values[tokens].to(self.scales.dtype) * self.scales[tokens].unsqueeze(-1)


def quantize_int8_(module: nn.Module) -> None:
    """Quantize every linear and embedding of a program's module, in place.

    Routers stay as they are: they are tiny, and a rounded score sends a token to another expert.

    Args:
        module: A program's module, which must not share modules (it may share tensors) with the
            caller's model.
    """
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    _untie_(module)
    routers = {id(child.router) for child in module.modules() if isinstance(child, StaticMoE)}
    quantize_(
        module,
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int8, weight_granularity=PerAxis(0)
        ),
        filter_fn=lambda child, _: isinstance(child, nn.Linear) and id(child) not in routers,
    )
    for path, child in list(module.named_modules()):
        if isinstance(child, nn.Embedding):
            module.set_submodule(path, _quantized_embedding(child))


def _quantized_embedding(embedding: nn.Embedding) -> Int8Embedding:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    holder = nn.ModuleList([nn.Embedding(1, 1)])
    holder[0].weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    quantize_(
        holder,
        IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)),
        filter_fn=lambda child, _: isinstance(child, nn.Embedding),
    )
    weight: Any = holder[0].weight  # torchao's tensor subclass
    return Int8Embedding(weight.qdata, weight.scale.reshape(-1))


def _untie_(module: nn.Module) -> None:
    """Give each linear and embedding a parameter object of its own, values still shared."""
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.Embedding)):
            child.weight = nn.Parameter(child.weight.detach(), requires_grad=False)
