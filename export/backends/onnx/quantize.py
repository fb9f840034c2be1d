"""int8 by ONNX Runtime's own tool: eight-bit blocks in ``MatMulNBits``, int8 arithmetic.

Two schemes of ``onnxruntime.quantization`` were measured on the embedded model (hidden 128, 4
layers, 16 experts; one thread, x86-64 with int8 dot products; divergence from fp32 on 512 tokens):

===========================  =======  =========  ==============  =================
scheme                       file MB  decode     prefill of 128  mean KL in nats
===========================  =======  =========  ==============  =================
fp32                         11.3     1.00       1.00            0
MatMulNBits, blocks of 128    3.0     3.7        1.2             0.0010
MatMulNBits, blocks of 32     3.2     3.3        1.1             0.0005
quantize_dynamic              3.3     2.9        1.8             0.0021 to 0.0046
===========================  =======  =========  ==============  =================

``MatMulNBits`` was chosen over ``quantize_dynamic`` (``MatMulInteger``). It decodes faster and errs
less: it scales each row of activations by itself, where the other takes one scale for all tokens of
a call, so that one outlier spoils a whole prompt (the larger of the two figures) and the result
depends on how a prompt is cut. It lets a tied table be stored once, and its arithmetic can be
reproduced exactly (see ``reference``). The price is a slower prefill.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .capture import CONTRIB

BITS = 8
ZERO_POINT = 1 << (BITS - 1)  # what unsigned storage calls zero in the symmetric scheme
ACCURACY_LEVEL = 4  # quantize the activations to int8 too, and multiply in integers
_BLOCK_SIZES = (128, 64, 32, 16)

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def block_size(depths: Sequence[int]) -> int:
    """Return the largest block that divides every reduction length; the smallest if none does.

    Large blocks store fewer scales and multiply faster, for an error that is small either way.
    """
    fitting = (size for size in _BLOCK_SIZES if all(depth % size == 0 for depth in depths))
    return next(fitting, _BLOCK_SIZES[-1])


def quantize_weight(weight: Floats, block: int) -> tuple[Bytes, Floats]:
    """Quantize one weight as the tool does.

    Args:
        weight: Shape (N, K), as ``nn.Linear`` and ``nn.Embedding`` hold it.
        block: Elements of K that share a scale.

    Returns:
        Codes (N, K / block rounded up, block), uint8 around 128, and scales (N, K / block).
    """
    tool = _tool()
    config = tool.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=BITS)
    columns = np.ascontiguousarray(weight.T, dtype=np.float32)  # (K, N), the layout of MatMul
    codes, scales, _ = tool.DefaultWeightOnlyQuantizer(config).qbits_block_quant(columns)
    return codes, scales


def dequantize(codes: Bytes, scales: Floats, depth: int) -> Floats:
    """Return the weight that the kernels compute with, shape (N, depth), float32."""
    values = (codes.astype(np.float32) - ZERO_POINT) * scales[..., None]
    return np.ascontiguousarray(values.reshape(len(codes), -1)[:, :depth])


def quantize_model(
    model: onnx.ModelProto, *, exclude: Sequence[str]
) -> tuple[onnx.ModelProto, int]:
    """Quantize every constant-weight ``MatMul`` and the embedding of ``model``, in place.

    Args:
        model: Float32 graph.
        exclude: Names of nodes to leave in float32 (the routers: 0.5 % of the weights, and a
            flipped expert costs more than any rounding).

    Returns:
        The quantized graph and the block size.
    """
    _fold_transposes(model.graph)
    weights = {i.name: i for i in model.graph.initializer}
    depths = [
        weights[node.input[1]].dims[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and node.name not in exclude
    ]
    block = block_size(depths)
    tables = _embedding_nodes(model.graph)
    tool = _tool().MatMulNBitsQuantizer(
        model,
        bits=BITS,
        block_size=block,
        is_symmetric=True,
        accuracy_level=ACCURACY_LEVEL,
        nodes_to_exclude=list(exclude),
        op_types_to_quantize=("MatMul",),
    )
    tool.process()
    quantized: onnx.ModelProto = tool.model.model
    for node in tables:
        _quantize_embedding(quantized.graph, node.output[0], block)
    return quantized, block


def _fold_transposes(graph: onnx.GraphProto) -> None:
    """Turn ``MatMul(x, Transpose(weight))`` into a product with a constant, which the tool sees.

    The folded constant is named after its weight, so that a tied embedding finds its codes.
    """
    weights = {i.name: i for i in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in weights]:
        folded = numpy_helper.to_array(weights[node.input[0]]).T
        name = _transposed(node.input[0])
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(folded), name))
        _replace_input(graph, node.output[0], name)
        graph.node.remove(node)


def _transposed(name: str) -> str:
    return f"{name}.T"


def _replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _embedding_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the ``Gather`` nodes that look tokens up in a float table (V, D)."""
    tables = {i.name for i in graph.initializer if len(i.dims) == 2}
    return [n for n in graph.node if n.op_type == "Gather" and n.input[0] in tables]


def _quantize_embedding(graph: onnx.GraphProto, output: str, block: int) -> None:
    """Look rows up by ``GatherBlockQuantized``, in the output head's codes where they are tied.

    The tool offers this operator for 4 bits only. Its codes (V, K / block, block) serve it as they
    are, with the block axis last, so that a tied table is stored once.
    """
    index = next(i for i, n in enumerate(graph.node) if output in n.output)
    node = graph.node[index]
    table = next(i for i in graph.initializer if i.name == node.input[0])
    codes, scales = f"{_transposed(table.name)}_Q{BITS}", f"{_transposed(table.name)}_scales"
    if codes not in {i.name for i in graph.initializer}:  # not tied
        packed, steps = quantize_weight(numpy_helper.to_array(table), block)
        graph.initializer.append(numpy_helper.from_array(packed, codes))
        graph.initializer.append(numpy_helper.from_array(steps, scales))
    lookup = _Lookup(graph, node, depth=table.dims[1], block=block)
    graph.initializer.remove(table)
    del graph.node[index]
    for offset, new in enumerate(lookup.nodes(codes, scales)):
        graph.node.insert(index + offset, new)


class _Lookup:
    """The nodes that take the place of one ``Gather``: look-up, join of blocks, cut of padding."""

    def __init__(
        self, graph: onnx.GraphProto, gather: onnx.NodeProto, *, depth: int, block: int
    ) -> None:
        self.graph, self.ids, self.output = graph, gather.input[1], gather.output[0]
        self.depth, self.block = depth, block

    def nodes(self, codes: str, scales: str) -> list[onnx.NodeProto]:
        """Return the nodes in order, their constants added to the graph."""
        columns, blocks = "embedding.scales", "embedding.blocks"
        joined = self.output if self.depth % self.block == 0 else "embedding.padded"
        last = self._constant("last_axis", -1)
        gather: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 2, "domain": CONTRIB}
        made = [
            self._node("Unsqueeze", [scales, last], columns),
            self._node(
                "GatherBlockQuantized",
                [codes, self.ids, columns],
                blocks,
                bits=BITS,
                block_size=self.block,
                **gather,
            ),
            self._node("Reshape", [blocks, self._constant("rows", 0, 0, -1)], joined),
        ]
        if joined != self.output:
            bounds = [self._constant("start", 0), self._constant("end", self.depth), last]
            made.append(self._node("Slice", [joined, *bounds], self.output))
        return made

    def _constant(self, name: str, *values: int) -> str:
        name = f"embedding.{name}"
        array = np.array(values, dtype=np.int64)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    @staticmethod
    def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=f"embedding_{op}", **attributes)


def _tool() -> Any:
    """Import the quantizer; it turns on logging for the whole process, which is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    from onnxruntime.quantization import matmul_nbits_quantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger(matmul_nbits_quantizer.__name__).setLevel(logging.ERROR)
    return matmul_nbits_quantizer
