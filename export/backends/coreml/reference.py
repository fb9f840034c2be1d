"""The eager twin of a package: same stored weights, same fp16 cache, same chunks of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilekit.models.families import Family
from mobilekit.models.modules.static_moe import StaticMoE
from mobilekit.runtime.coreml import chunks
from mobilekit.runtime.eager import EagerProgram

from ..base import ExportSpec
from .scheme import SCHEMES, WEIGHT_THRESHOLD, Scheme

if TYPE_CHECKING:
    from mobilekit.runtime.base import TokenLogits


class EagerPackage(nn.Module):
    """Runs an arithmetic-state program as a package runs: in chunks, its cache kept in fp16.

    Args:
        program: The program's module, int32 inputs; it takes any length when run eagerly.
        chunk: Length of the package's prefill function, ``None`` where it has none.
    """

    def __init__(self, program: Any, chunk: int | None) -> None:
        super().__init__()
        self.program = program
        self.chunk = chunk

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Take tokens (1, S) and input_pos (1,); return the last logits, (1, 1, V)."""
        logits = torch.empty(0)
        for _, start, stop in chunks(tokens.shape[1], self.chunk):
            logits = self.program(tokens[:, start:stop].int(), (input_pos + start).int())
            for buffer in self.program.buffers(recurse=False):
                buffer.copy_(round_to_fp16(buffer))
        return logits

    def reset(self) -> None:
        """Set the cache to zero."""
        self.program.reset()


def eager_reference(model: nn.Module, family: Family, spec: ExportSpec) -> TokenLogits:
    """Return the runtime that a package of ``spec`` is compared with."""
    module, chunk = eager_module(model, family, spec)
    return EagerProgram(
        EagerPackage(module, chunk),
        context_length=spec.context_length,
        vocab_size=module.vocab_size,
        name=f"eager-{spec.precision.name}",
    )


def eager_module(model: nn.Module, family: Family, spec: ExportSpec) -> tuple[Any, int | None]:
    """Return the program's module with the package's weights, and the length of a chunk."""
    from .backend import export_programs

    programs = export_programs(model, family, spec)
    program = programs.get("prefill", programs["decode"])
    store_as(program.module, SCHEMES[spec.precision.name])
    return program.module, int(program.inputs[0].shape[1]) if "prefill" in programs else None


def store_as(module: nn.Module, scheme: Scheme) -> None:
    """Replace the weights of ``module`` by what the package holds; shared tensors stay shared.

    The tensors themselves are not touched, since they are also the caller's.
    """
    if scheme.compute == "float32" and not scheme.quantized:
        return
    exempt = {id(m.router) for m in module.modules() if isinstance(m, StaticMoE)}
    stored: dict[int, nn.Parameter] = {}
    for child in module.modules():
        if id(child) in exempt:
            continue
        for name, weight in list(child._parameters.items()):
            if weight is None:
                continue
            is_large = isinstance(child, nn.Linear | nn.Embedding) and name == "weight"
            if id(weight) not in stored:
                quantize = scheme.quantized and is_large and weight.numel() > WEIGHT_THRESHOLD
                value = fake_quantize(weight) if quantize else round_to_fp16(weight)
                stored[id(weight)] = nn.Parameter(value, requires_grad=False)
            child._parameters[name] = stored[id(weight)]


def fake_quantize(weight: Tensor) -> Tensor:
    """Return what int8 storage leaves of a weight, shape (O, I), float32.

    Source: coremltools ``quantize_weight_by_dtype``, linear_symmetric: the row's largest
    magnitude becomes ±127. Rows are scaled in fp16, which the program's weights are in by then.
    """
    half = weight.detach().to(torch.float16)
    # numpy's fp16 arithmetic rounds after every operation, and so does this
    largest = half.abs().amax(dim=1, keepdim=True)
    scale = (largest + largest) / 254
    levels = torch.round(half / scale).clamp(-127, 127)
    return (levels.float() * scale.float()).to(torch.float16).float()


def round_to_fp16(value: Tensor) -> Tensor:
    """Round to what fp16 can hold."""
    return value.to(torch.float16).to(value.dtype)
