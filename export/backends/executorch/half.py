"""Weights, activations in float16; positions, norms, attention, recurrences, routers in float32."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mobilekit.models.families import Program
from mobilekit.models.modules.mamba2 import Mamba2Step
from mobilekit.models.modules.routing import router_parts


def halve_(program: Program) -> None:
    """Convert a program's weights and caches to float16 in place; its logits stay float32.

    Rotary frequencies and other constants stay float32: rounded, they would be wrong by whole
    radians at the end of a long context. Routers stay float32, or their choice would flip; so do
    recurrences, their vectors and running states, which sum over the whole text.

    Args:
        program: A program whose module shares no modules (it may share tensors) with the caller's
            model.
    """
    module: Any = program.module
    halves: dict[int, nn.Parameter] = {}
    whole = router_parts(module)
    whole |= {id(m) for m in module.modules() if isinstance(m, Mamba2Step)}  # not its linears
    for child in [m for m in module.modules() if id(m) not in whole]:
        for name, weight in list(child.named_parameters(recurse=False)):
            if weight.is_floating_point():
                half = halves.setdefault(
                    id(weight), nn.Parameter(weight.detach().half(), requires_grad=False)
                )
                setattr(child, name, half)
    for state in () if program.is_recurrent else program.states:
        setattr(module, state.name, getattr(module, state.name).half())
    module.register_forward_hook(_to_float)


def _to_float(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
    return logits.float()
