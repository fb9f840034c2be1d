"""Weights in half precision, widened to float32 when the file is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from torch import nn

from mobilekit.core.errors import InvalidInputError

if TYPE_CHECKING:
    from mobilekit.models.families import Program

# operators that read cos and sin, which are no weights, and by which inputs
_TABLE_INPUTS = {"GroupQueryAttention": (7, 8), "GatherND": (0,)}


def halve(model: ir.Model) -> None:
    """Store the float32 weights of ``model`` as float16 behind a ``Cast``, in place.

    Vectors stay as they are: they are a few bytes, and the graph may hold a norm's 1 + weight.

    Raises:
        InvalidInputError: If a weight exceeds half precision.
    """
    tables = {
        node.inputs[index]
        for node in model.graph
        for index in _TABLE_INPUTS.get(node.op_type, ())
        if index < len(node.inputs)
    }
    for value in list(model.graph.initializers.values()):
        is_weight = value.dtype == ir.DataType.FLOAT and value not in tables and value.uses()
        if not is_weight or value.shape is None or len(value.shape) < 2:
            continue
        _halve_one(model.graph, value)


def _halve_one(graph: ir.Graph, value: ir.Value) -> None:
    name = value.name
    assert name is not None
    assert value.const_value is not None
    with np.errstate(over="ignore"):
        halved = value.const_value.numpy().astype(np.float16)
    if not np.isfinite(halved).all():
        raise InvalidInputError(
            f"weight '{name}' is not finite, or too large for half precision",
            hint="Export it at fp32, or at int8.",
        )
    stored = ir.Value(name=f"{name}.half", const_value=ir.tensor(halved, name=f"{name}.half"))
    stored.dtype, stored.shape = ir.DataType.FLOAT16, value.shape
    widened = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value})
    widened.outputs[0].dtype, widened.outputs[0].shape = ir.DataType.FLOAT, value.shape
    graph.register_initializer(stored)
    graph.insert_before(graph[0], widened)
    ir.convenience.replace_all_uses_with(value, widened.outputs[0])
    del graph.initializers[name]


def round_to_half(program: Program) -> None:
    """Round the weights of a program's private copy to half precision, still float32."""
    rounded: dict[int, nn.Parameter] = {}  # a tied weight stays tied
    for module in program.module.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dim() < 2:
                continue
            if id(weight) not in rounded:
                halved = weight.detach().half().float()
                rounded[id(weight)] = nn.Parameter(halved, requires_grad=False)
            setattr(module, name, rounded[id(weight)])
