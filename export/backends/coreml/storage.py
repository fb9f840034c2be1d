"""How each layer's weight is stored: decided once, for the package and its reference alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mobilekit.models.families import Program
from mobilekit.schema.manifest import LayerPrecision

from ...int4 import round_groups
from ...precision import Precision, weight_layers

if TYPE_CHECKING:
    from torch import nn

GROUP = 32  # weights of a row that share one int4 scale


@dataclass(frozen=True)
class StoredLayer:
    """One linear or embedding, and what its weight is stored as.

    Attributes:
        module: The layer; its weight has shape (O, I), an embedding's (V, D).
        parameters: Names, within the program's module, of all parameters that are this tensor:
            tied layers have one weight.
        precision: What it is stored as: "float" in the program's own dtype, "int8" with one scale
            a row, "int4" with one scale a group.
    """

    module: nn.Linear | nn.Embedding
    parameters: tuple[str, ...]
    precision: LayerPrecision


def stored_layers(program: Program, precision: Precision) -> dict[str, StoredLayer]:
    """Return every layer that quantized artifacts store in few bits, by path in the checkpoint."""
    names: dict[int, list[str]] = {}
    for name, parameter in program.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        path: StoredLayer(
            module,
            tuple(names[id(module.weight)]),
            _possible(precision.at(path), module),
        )
        for path, module in weight_layers(program).items()
    }


def undivided(program: Program, precision: Precision) -> list[str]:
    """Return the layers that should be int4, but whose rows are no whole number of groups."""
    return [
        path
        for path, layer in stored_layers(program, precision).items()
        if layer.precision != precision.at(path)
    ]


def _possible(wanted: LayerPrecision, module: nn.Linear | nn.Embedding) -> LayerPrecision:
    is_divisible = module.weight.shape[1] % GROUP == 0
    return "int8" if wanted == "int4" and not is_divisible else wanted


def round_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes (O, I / GROUP, GROUP) and fp16 scales (O, I / GROUP) of a weight (O, I)."""
    return round_groups(weight, GROUP, torch.float16, is_signed=False)
