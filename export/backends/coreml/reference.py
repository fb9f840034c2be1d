"""The eager twin of a package: same stored weights, same fp16 cache, same chunks of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilekit.models.families import Family
from mobilekit.models.modules.routing import router_parts
from mobilekit.runtime.coreml import chunks
from mobilekit.runtime.eager import EagerProgram
from mobilekit.schema.manifest import LayerPrecision

from ..base import ExportSpec
from .scheme import SCHEMES
from .storage import StoredLayer, round_int4, stored_layers

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
    if SCHEMES[spec.precision.name].compute == "float16":
        store_(program.module, stored_layers(program, spec.precision))
    return program.module, int(program.inputs[0].shape[1]) if "prefill" in programs else None


def store_(module: nn.Module, layers: Mapping[str, StoredLayer]) -> None:
    """Replace the parameters of ``module`` by what a package in fp16 holds.

    The tensors themselves are not touched, since they are also the caller's.
    """
    exempt = router_parts(module)
    wanted: dict[int, LayerPrecision] = {id(la.module): la.precision for la in layers.values()}
    made: dict[tuple[int, str], nn.Parameter] = {}  # shared tensors stay shared
    for child in module.modules():
        if id(child) in exempt:
            continue
        for name, parameter in list(child._parameters.items()):
            if parameter is None:
                continue
            precision = wanted.get(id(child), "float") if name == "weight" else "float"
            key = id(parameter), precision
            if key not in made:
                made[key] = nn.Parameter(stored_value(parameter, precision), requires_grad=False)
            child._parameters[name] = made[key]


def stored_value(weight: Tensor, precision: LayerPrecision) -> Tensor:
    """Return what storage leaves of a parameter, in float32; shape (O, I) where not "float".

    Source, of int8: coremltools ``quantize_weight_by_dtype``, linear_symmetric: the largest
    magnitude of a row becomes the largest level. It scales in fp16, which a program's weights are
    in by then.
    """
    half = weight.detach().to(torch.float16)
    if precision == "float":
        return half.to(weight.dtype)
    if precision == "int4":
        codes, scale = round_int4(half)
        return (codes * scale.float().unsqueeze(-1)).half().float().view(weight.shape)
    # numpy's fp16 arithmetic rounds after every operation, and so does this
    largest = half.abs().amax(dim=-1, keepdim=True)
    scale = (largest + largest) / (2 * 127)
    levels = torch.round(half / scale).clamp(-127, 127)
    levels = torch.where(scale == 0, 0, levels).float()
    return (levels * scale.float()).to(torch.float16).float()


def round_to_fp16(value: Tensor) -> Tensor:
    """Round to what fp16 can hold."""
    return value.to(torch.float16).to(value.dtype)
