"""The few-bit layers against oracles: ONNX Runtime's own kernels, and arithmetic."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mobilekit.export.backends.onnx import scheme
from mobilekit.export.backends.onnx.layers import BlockEmbedding, BlockLinear
from mobilekit.export.backends.onnx.moe import BlockMoE, block_experts
from mobilekit.export.int4 import round_groups
from torch import nn

from mobilekit.core.errors import InvalidInputError
from mobilekit.models.modules.routing import (
    CorrectedSoftmaxRouting,
    Routing,
    SigmoidRouting,
    SoftmaxRouting,
)
from mobilekit.models.modules.static_moe import StaticMoE

BITS = pytest.mark.parametrize("bits", [4, 8])


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _run(module: nn.Module, example: torch.Tensor, path: Path) -> Any:
    """Export one module and return (what ONNX Runtime computes on ``example``, the operators)."""
    seq = torch.export.Dim("seq", min=1, max=64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes=({1: seq},), verbose=False
        )
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: example.numpy()}
    return session.run(None, feeds)[0], [n.op_type for n in onnx.load(path).graph.node]


@given(st.integers(1, 4096))
def test_block_size_is_the_largest_that_divides(depth: int) -> None:
    dividing = [b for b in (16, 32, 64, 128) if depth % b == 0]
    assert scheme.block_size(depth, 8) == (max(dividing) if dividing else 16)
    assert scheme.block_size(depth, 4) == (64 if depth % 64 == 0 else 32)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([16, 32, 64]),
    st.integers(0, 2**31),
)
def test_bytes_are_nearest_levels_of_a_symmetric_block_scale(
    rows: int, depth: int, block: int, seed: int
) -> None:
    weight = _normal(rows, depth, seed=seed)
    stored = scheme.quantize_blocks(weight, 8, block)
    assert (stored.block, stored.depth) == (block, depth)
    read = stored.dequantize()
    assert read.shape == weight.shape
    half = 128
    padded = nn.functional.pad(weight, (0, -depth % block)).view(rows, -1, block)
    largest = padded.abs().amax(-1)
    torch.testing.assert_close(stored.scales.float().abs(), largest / half, rtol=2e-3, atol=1e-7)
    step = stored.scales.float().abs().repeat_interleave(block, dim=1)[:, :depth]
    # half a step; but a whole one where the level opposite to the largest does not exist
    near_edge = weight.abs() > (half - 1) * step
    assert ((read - weight).abs() <= torch.where(near_edge, 1.1, 0.51 + 1e-3 * half) * step).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 140), st.sampled_from([32, 64]))
def test_half_bytes_hold_the_codes_of_groups(rows: int, depth: int, block: int) -> None:
    weight = _normal(rows, depth)
    stored = scheme.quantize_blocks(weight, 4, block)
    assert (stored.block, stored.depth) == (block, depth)
    codes, scales = round_groups(weight, block, torch.float16, is_signed=True)
    assert torch.equal(stored.scales, scales)
    assert torch.equal(
        stored.dequantize(), (codes * scales.float()[..., None]).flatten(1)[:, :depth]
    )


def test_rows_are_quantized_the_same_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = _normal(40, 64)
    whole = scheme.quantize_blocks(weight, 8, 32)
    monkeypatch.setattr(scheme, "_ROWS_AT_ONCE", 7)
    parts = scheme.quantize_blocks(weight, 8, 32)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scales, parts.scales)


@BITS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_a_scale_that_half_precision_cannot_hold_is_refused(bits: int, value: float) -> None:
    weight = _normal(2, 32)
    weight[1, 3] = value
    with pytest.raises(InvalidInputError, match="not finite, or too large"):
        scheme.quantize_blocks(weight, bits, 32)


@BITS
@pytest.mark.parametrize(("depth", "bias"), [(64, False), (200, True)])
def test_a_linear_computes_what_the_kernel_does(
    bits: int, depth: int, bias: bool, tmp_path: Path
) -> None:
    weight, offset = _normal(24, depth), _normal(24, seed=1) if bias else None
    stored = scheme.quantize_blocks(weight, bits, scheme.block_size(depth, bits))
    layer, hidden = BlockLinear(stored, offset), _normal(1, 7, depth, seed=2)
    found, operators = _run(layer, hidden, tmp_path / "m.onnx")
    assert "MatMulNBits" in operators
    assert "Add" not in operators
    # equal, but for an activation or two at the middle between two levels
    difference = np.abs(found - layer(hidden).numpy())
    assert np.median(difference) < 1e-5
    exact = nn.functional.linear(hidden, stored.dequantize(), offset).numpy()
    assert difference.max() < np.abs(found - exact).max() / 2


@BITS
@pytest.mark.parametrize(("depth", "scale"), [(64, 1.0), (40, 8.0)])
def test_an_embedding_looks_rows_up(bits: int, depth: int, scale: float, tmp_path: Path) -> None:
    stored = scheme.quantize_blocks(_normal(20, depth), bits, scheme.block_size(depth, bits))
    layer, ids = BlockEmbedding(stored, scale), torch.tensor([[3, 19, 0]])
    found, operators = _run(layer, ids, tmp_path / "m.onnx")
    assert "GatherBlockQuantized" in operators
    np.testing.assert_allclose(found, layer(ids).numpy(), atol=1e-6)
    np.testing.assert_allclose(found[0], stored.dequantize()[ids[0]].numpy() * scale, atol=1e-5)


def _routing(kind: str, experts: int, hidden: int) -> Routing:
    rows, correction = _normal(experts, hidden, seed=3), _normal(experts, seed=7) * 0.2
    if kind == "corrected":
        return CorrectedSoftmaxRouting(rows, correction, top_k=2, smallest_sum=1e-12)
    if kind == "grouped":
        how = {"groups": 4, "chosen_groups": 2, "normalize": True, "scale": 1.5}
        return SigmoidRouting(rows, correction, top_k=2, **how)
    return SoftmaxRouting(rows, top_k=2, normalize=kind == "normalized")


def _moe(
    kind: str = "normalized", *, hidden: int = 64, inner: int = 32, act: Any = None
) -> StaticMoE:
    experts = 8
    return StaticMoE(
        _routing(kind, experts, hidden),
        _normal(experts, 2 * inner, hidden, seed=4) * 0.1,
        _normal(experts, hidden, inner, seed=5) * 0.1,
        act_fn=act or nn.SiLU(),
    ).requires_grad_(False)


def _with_stored_weights(moe: StaticMoE, made: BlockMoE) -> StaticMoE:
    """Return the two-linear form of the experts as they are stored: an oracle for the routing."""
    gate_up, down = (weight.dequantize() for weight in made.stored)
    rows = gate_up.view(moe.num_experts, -1, gate_up.shape[1])
    return StaticMoE(
        moe.routing,
        torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1),
        down.view(moe.num_experts, -1, down.shape[1]),
        act_fn=moe.act_fn,
    )


@BITS
@pytest.mark.parametrize("kind", ["normalized", "plain", "corrected", "grouped"])
def test_experts_are_routed_and_computed_as_the_kernel_does(
    bits: int, kind: str, tmp_path: Path
) -> None:
    moe, hidden = _moe(kind), _normal(1, 9, 64, seed=6)
    made = block_experts(moe, f"int{bits}", f"int{bits}")
    assert made is not None
    found, operators = _run(made, hidden, tmp_path / "m.onnx")
    assert operators.count("QMoE") == 1
    difference = np.abs(found - made(hidden).numpy())
    assert np.median(difference) < 1e-6
    oracle = _with_stored_weights(moe, made)(hidden).detach().numpy()
    rounding = np.abs(made(hidden).numpy() - oracle).max()
    assert 0 < rounding < 0.05 * np.abs(oracle).max()
    assert difference.max() < rounding


def test_experts_that_the_kernel_cannot_do_stay_two_linears() -> None:
    assert block_experts(_moe(), "int4", "int8") is None
    assert block_experts(_moe(), "float", "int4") is None
    assert block_experts(_moe(inner=24), "int4", "int4") is None
    assert block_experts(_moe(inner=24), "int8", "int8") is None
    assert block_experts(_moe(act=nn.GELU()), "int4", "int4") is None
