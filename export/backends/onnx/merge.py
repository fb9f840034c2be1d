"""One product in the place of several that read the same input: queries, keys and values; gate, up.

The rows of the weights are put under one another, so every result is the same to the last bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SAME = ("K", "bits", "block_size", "accuracy_level")
_CODES, _SCALES, _BIAS = 1, 2, 5  # inputs of MatMulNBits


def merge_products(model: ir.Model) -> int:
    """Merge the ``MatMulNBits`` of each input in place; return how many nodes that saved."""
    saved = 0
    for nodes in _groups(model.graph):
        _merge(model.graph, nodes)
        saved += len(nodes) - 1
    return saved


def pack_attention_inputs(model: ir.Model) -> None:
    """Hand ``GroupQueryAttention`` the merged product itself where nothing stands between them."""
    for node in model.graph:
        if node.op_type != "GroupQueryAttention":
            continue
        query, key, value = node.inputs[:3]
        split = query.producer() if query is not None else None
        if split is None or split.op_type != "Split" or list(split.outputs) != [query, key, value]:
            continue
        node.replace_input_with(0, split.inputs[0])
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)


def _groups(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    found = defaultdict(list)
    for node in graph:
        if node.op_type == "MatMulNBits":
            shared = tuple(node.attributes[name].as_int() for name in _SAME)
            found[id(node.inputs[0]), shared, len(node.inputs)].append(node)
    yield from (nodes for nodes in found.values() if len(nodes) > 1)


def _merge(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    first = nodes[0]
    sizes = [node.attributes["N"].as_int() for node in nodes]
    name = "+".join(_initializer(node, _CODES).name or "" for node in nodes)
    inputs = list(first.inputs)
    for index in (_CODES, _SCALES, _BIAS):
        if index < len(inputs):
            inputs[index] = _stacked(graph, nodes, index, f"{name}.{index}")
    merged = ir.node(
        "MatMulNBits",
        inputs,
        {**{a: first.attributes[a] for a in _SAME}, "N": sum(sizes)},
        domain=first.domain,
    )
    lengths = _constant(graph, np.array(sizes, dtype=np.int64), f"{name}.sizes")
    split = ir.node("Split", [merged.outputs[0], lengths], {"axis": -1}, num_outputs=len(nodes))
    product = merged.outputs[0]
    product.type, product.shape = first.outputs[0].type, _width(first, sum(sizes))
    graph.insert_before(first, [merged, split])
    for node, output in zip(nodes, split.outputs, strict=True):
        output.type, output.shape = node.outputs[0].type, node.outputs[0].shape
        ir.convenience.replace_all_uses_with(node.outputs[0], output)
        graph.remove(node, safe=True)


def _width(node: ir.Node, rows: int) -> ir.Shape:
    shape = node.outputs[0].shape
    assert shape is not None
    return ir.Shape([*list(shape)[:-1], rows])


def _stacked(graph: ir.Graph, nodes: list[ir.Node], index: int, name: str) -> ir.Value:
    """Return one value of the nodes' constants, widened to float32 where theirs were."""
    values = [_initializer(node, index) for node in nodes]
    arrays = [value.const_value.numpy() for value in values if value.const_value is not None]
    stacked = _constant(graph, np.concatenate(arrays), name)
    if index != _SCALES or stacked.dtype == ir.DataType.FLOAT:
        return stacked
    cast = ir.node("Cast", [stacked], {"to": ir.DataType.FLOAT.value})
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, stacked.shape
    graph.insert_before(nodes[0], [cast])
    return cast.outputs[0]


def _initializer(node: ir.Node, index: int) -> ir.Value:
    """Return the constant behind an input, which scales reach through a ``Cast``."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if producer is not None:
        value = producer.inputs[0]
    assert value is not None
    return value


def _constant(graph: ir.Graph, array: NDArray[Any], name: str) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value
