"""The int8 scheme against oracles: ONNX Runtime's own kernels, and arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mobilekit.export.backends.onnx import quantize, reference
from onnx import helper, numpy_helper


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=4))
def test_block_size_is_the_largest_that_divides_all(depths: list[int]) -> None:
    dividing = [b for b in (16, 32, 64, 128) if all(depth % b == 0 for depth in depths)]
    assert quantize.block_size(depths) == (max(dividing) if dividing else 16)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 5), st.integers(1, 70), st.sampled_from([16, 32, 64]), st.integers(0, 2**32 - 1)
)
def test_codes_are_nearest_levels_of_a_symmetric_block_scale(
    rows: int, depth: int, block: int, seed: int
) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, depth)).astype(np.float32)
    codes, scales = quantize.quantize_weight(weight, block)
    read = quantize.dequantize(codes, scales, depth)
    assert read.shape == weight.shape
    step = np.repeat(np.abs(scales), block, axis=1)[:, :depth]
    # half a step, but where the level opposite to the largest, 128, does not exist
    clipped = codes.reshape(rows, -1)[:, :depth] == 255
    assert (np.abs(read - weight) <= np.where(clipped, 1.01, 0.51) * step).all()
    padded = np.pad(np.abs(weight), ((0, 0), (0, -depth % block)))
    largest = padded.reshape(rows, -1, block).max(-1)
    np.testing.assert_allclose(np.abs(scales), largest / 128, rtol=1e-2)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.sampled_from([16, 48, 64, 128, 200, 256]), st.integers(0, 2**32 - 1))
def test_reference_linear_computes_what_the_kernel_does(rows: int, depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    linear = torch.nn.Linear(depth, 24, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.from_numpy(rng.normal(size=(24, depth)).astype(np.float32)))
    hidden = rng.normal(size=(1, rows, depth)).astype(np.float32)
    block = quantize.block_size([depth])
    expected = reference.BlockQuantizedLinear(linear, block)(torch.from_numpy(hidden)).numpy()
    found = _run_tool(linear.weight.numpy().T.copy(), hidden)
    one_step = np.abs(hidden).max() / 127 * np.abs(linear.weight.numpy()).max()
    # equal, but for an activation or two at the middle between two levels
    assert np.median(np.abs(found - expected)) < 1e-4
    assert np.abs(found - expected).max() < 3 * one_step


def _run_tool(weight: Any, hidden: Any) -> Any:
    """Quantize a one-product graph with our entry point, and run it in ONNX Runtime."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [info("x", 1, [1, "s", weight.shape[0]])],
        [info("y", 1, [1, "s", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantized, _ = quantize.quantize_model(model, exclude=())
    assert [node.op_type for node in quantized.graph.node] == ["MatMulNBits"]
    session = onnxruntime.InferenceSession(
        quantized.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": hidden})[0]


@pytest.mark.parametrize(("tied", "depth"), [(True, 64), (False, 64), (True, 40), (False, 40)])
def test_embedding_rows_are_looked_up_in_int8(tied: bool, depth: int) -> None:
    rng = np.random.default_rng(depth)
    table, head = (rng.normal(size=(20, depth)).astype(np.float32) for _ in range(2))
    info, make = helper.make_tensor_value_info, helper.make_node
    nodes = [
        make("Gather", ["table", "ids"], ["rows"], name="embedding"),
        make("Transpose", ["table" if tied else "head"], ["turned"], name="turn", perm=[1, 0]),
        make("MatMul", ["rows", "turned"], ["logits"], name="head"),
    ]
    weights = {"table": table} if tied else {"table": table, "head": head}
    graph = helper.make_graph(
        nodes,
        "g",
        [info("ids", 7, [1, "s"])],
        [info("logits", 1, [1, "s", 20]), info("rows", 1, [1, "s", depth])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantized, block = quantize.quantize_model(model, exclude=())
    session = onnxruntime.InferenceSession(
        quantized.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ids = np.array([[3, 19, 0]])
    rows = session.run(["rows"], {"ids": ids})[0]
    stored = quantize.dequantize(*quantize.quantize_weight(table, block), depth)
    np.testing.assert_allclose(rows[0], stored[ids[0]], atol=1e-6)
    codes = [i for i in quantized.graph.initializer if i.data_type == onnx.TensorProto.UINT8]
    assert len(codes) == (1 if tied else 2)  # a tied table is stored once
    assert all(i.data_type != 1 or i.dims[0] == 20 for i in quantized.graph.initializer)
