"""How a written Core ML package stores its weights, and that the reference holds the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from coremltools.converters.mil.mil import types  # noqa: E402 - after the skip
from mobilekit.export.backends.base import ExportSpec  # noqa: E402
from mobilekit.export.backends.coreml.backend import export_programs  # noqa: E402
from mobilekit.export.backends.coreml.convert import convert  # noqa: E402
from mobilekit.export.backends.coreml.quantize import Quantizer, quantized  # noqa: E402
from mobilekit.export.backends.coreml.reference import eager_module, stored_value  # noqa: E402
from mobilekit.export.backends.coreml.scheme import SCHEMES  # noqa: E402
from mobilekit.export.backends.coreml.storage import stored_layers  # noqa: E402
from mobilekit.export.precision import Precision  # noqa: E402

from mobilekit.core.errors import UnsupportedModelError  # noqa: E402
from mobilekit.models.families import family_of  # noqa: E402
from mobilekit.runtime.mil import load_program  # noqa: E402
from mobilekit.schema.manifest import LayerPrecision  # noqa: E402

CONTEXT = 64
CASES = ["moe_fp32", "dense_fp16", "moe_int8", "dense_int4", "moe_mixed"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def _counted(package: Any) -> dict[str, int]:
    """Count the package's weights another way: through coremltools' loader, by value."""
    seen: dict[tuple[str, bytes], int] = {}
    for function in load_program(package).functions.values():
        for op in function.operations:
            if op.op_type != "const" or not isinstance(op.outputs[0].val, np.ndarray):
                continue
            value, readers = op.outputs[0].val, op.outputs[0].child_ops
            if value.size < 10 or value.dtype.kind not in "fi" or value.dtype.itemsize > 4:
                continue
            if value.dtype.kind == "i" and value.dtype != np.int8:
                continue
            nibbles = types.builtin_to_string(op.outputs[0].dtype) == "int4"
            scale = any(r.op_type.startswith("constexpr") and r.scale.op is op for r in readers)
            kind = "scales" if scale else "int4" if nibbles else value.dtype.name
            size = value.nbytes // 2 if nibbles else value.nbytes
            seen[kind, value.tobytes() + str(value.shape).encode()] = size
    totals: dict[str, int] = {}
    for (kind, _), size in seen.items():
        totals[kind] = totals.get(kind, 0) + size
    return totals


def test_storage_is_as_recorded(case: Any) -> None:
    assert case.lowered.weights.bytes_by_dtype == _counted(case.package)


@pytest.mark.parametrize(
    ("fixture", "dtype", "share"),
    [("dense_fp16", "float16", 1), ("moe_int8", "int8", 0.95), ("dense_int4", "int4", 0.7)],
)
def test_weights_are_stored_at_the_precision(
    fixture: str, dtype: str, share: float, request: pytest.FixtureRequest
) -> None:
    case: Any = request.getfixturevalue(fixture)
    assert case.lowered.weights.share_at_precision >= share
    stored, expected = case.lowered.weights.bytes_by_dtype[dtype], _expected_bytes(case)[dtype]
    # fp16 holds the zero biases besides, which MIL's linear cannot be without
    assert stored == expected or (dtype == "float16" and expected < stored < 1.01 * expected)


def _expected_bytes(case: Any) -> dict[str, int]:
    """Count what the model's own parameters take, equal ones once a precision."""
    program = export_programs(case.model, case.family, case.spec)["decode"]
    layers = stored_layers(program, case.spec.precision)
    owners = {id(layer.module.weight): layer for layer in layers.values()}
    totals = dict.fromkeys(("float16", "int8", "int4"), 0)
    different = {p.numpy().tobytes(): p for p in program.module.parameters()}
    for parameter in different.values():
        layer = owners.get(id(parameter))
        if layer is None or layer.precision == "float":
            totals["float16"] += 2 * parameter.numel()
        else:
            totals[layer.precision] += parameter.numel() // (1 + (layer.precision == "int4"))
    return totals


def test_what_int4_cannot_divide_is_int8_and_named(dense_int4: Any) -> None:
    odd = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert dense_int4.lowered.settings["int8_for_int4"] == odd
    assert dense_int4.lowered.weights.bytes_by_dtype["int8"] == 2 * 64 * 80


def _stored_dtypes(case: Any, function: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (operation, dtype of its stored weight, shape) of each linear and embedding."""
    found = []
    for op in load_program(case.package).functions[function].operations:
        if op.op_type in ("linear", "gather"):
            weight = op.weight if op.op_type == "linear" else op.x
            made_by = weight.op
            kind = made_by.data.dtype if made_by.op_type != "const" else weight.dtype
            found.append((op.op_type, types.builtin_to_string(kind), weight.shape))
    return found


@pytest.mark.parametrize("function", ["decode", "prefill"])
def test_overrides_reach_the_very_layers(moe_mixed: Any, function: str) -> None:
    table, heads = (256, 64), {"q": (64, 64), "kv": (32, 64), "o": (64, 64)}
    float_attention = [("linear", "fp16", heads[n]) for n in ("q", "kv", "kv", "o")]
    attention = [("linear", "int4", heads[n]) for n in ("q", "kv", "kv", "o")]
    router = ("linear", "fp32", (8, 64))
    expected = [
        ("gather", "int4", table),
        *float_attention,
        router,
        *[("linear", "int4", shape) for shape in ((512, 64), (64, 256))],
        *attention,
        router,
        *[("linear", "int8", shape) for shape in ((512, 64), (64, 256))],
        ("linear", "int8", table),
    ]
    assert sorted(_stored_dtypes(moe_mixed, function)) == sorted(expected)


def test_tied_weights_are_one_constant(moe_int8: Any) -> None:
    for function in load_program(moe_int8.package).functions.values():
        (table,) = [op.x for op in function.operations if op.op_type == "gather"]
        assert {reader.op_type for reader in table.child_ops} == {"gather", "linear"}


def test_weights_are_stored_once(moe_fp32: Any) -> None:
    parameters = sum(p.numel() for p in moe_fp32.model.parameters())
    stored = sum(p.stat().st_size for p in moe_fp32.out.rglob("weight.bin"))
    assert 4 * parameters < stored < 1.1 * 4 * parameters


@pytest.mark.parametrize("fixture", CASES[1:])
def test_reference_holds_the_very_weights_of_the_package(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    case: Any = request.getfixturevalue(fixture)
    module, _ = eager_module(case.model, case.family, case.spec)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    known = [m.weight.detach().numpy() for m in layers]
    for function in load_program(case.package).functions.values():
        found = []
        for op in function.operations:
            if op.op_type in ("linear", "gather"):
                weight = op.weight if op.op_type == "linear" else op.x
                # coremltools' own decompression, where there is any
                value = weight.op.materialized_val_inference() if weight.val is None else weight.val
                found.append(value.astype(np.float32))
        assert len(found) == len(known)
        for value in found:
            assert any(w.shape == value.shape and np.array_equal(w, value) for w in known)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_int8_is_coremltools_own(scale: float) -> None:
    from coremltools.optimize import _utils

    weight = scale * torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    data, scales, _ = _utils.compute_qparams_by_dtype(
        weight.half().numpy(), types.int8, "LINEAR_SYMMETRIC", [1, 0]
    )
    expected = _utils.dequantize_by_scale_and_zp(data, scales, None).astype(np.float32)
    np.testing.assert_array_equal(stored_value(weight, "int8").numpy(), expected)


def test_int4_errs_less_than_coremltools_own() -> None:
    from coremltools.optimize import _utils

    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    data, scales, _ = _utils.compute_qparams_by_dtype(
        weight.half().numpy(), types.int4, "LINEAR_SYMMETRIC", [1, 32]
    )
    theirs = torch.from_numpy(_utils.dequantize_by_scale_and_zp(data, scales, None)).float()
    ours = stored_value(weight, "int4")
    assert (ours - weight).square().mean() < 0.9 * (theirs - weight).square().mean()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_zeros_stay_zero(precision: LayerPrecision) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    weight[2, 32:] = 0
    weight[3] = 1e-8  # a scale that fp16 cannot hold
    data, scales = quantized(weight.half().numpy(), precision)
    found = stored_value(weight, precision).numpy()
    assert (found[1] == 0).all()
    assert (found[2, 32:] == 0).all()
    assert (found[3] == 0).all()
    wide = np.repeat(scales.astype(np.float32), 64 // scales.shape[1], axis=1)
    exact = (data.astype(np.float32) * wide).astype(np.float16)
    np.testing.assert_array_equal(found, exact.astype(np.float32))


def test_a_layer_that_is_not_found_is_named(tiny_qwen3: nn.Module) -> None:
    model = copy.deepcopy(tiny_qwen3)
    spec, family = ExportSpec(Precision("int4"), CONTEXT), family_of(model)
    program = export_programs(model, family, spec)["decode"]
    layers = stored_layers(program, spec.precision)
    function = convert(program, SCHEMES["int4"], Quantizer({})).function
    path = "model.layers.1.mlp.up_proj"
    parameter = f"model.{path}.weight"
    constants = {parameter: "p_" + parameter.replace(".", "_")}
    with pytest.raises(UnsupportedModelError, match=f"'{path}' is not found"):
        Quantizer({path: layers[path]}).apply_(function, {})
    with torch.no_grad():
        layers[path].module.weight[0, 0] += 1
    with pytest.raises(UnsupportedModelError, match=f"'{path}' has other values"):
        Quantizer({path: layers[path]}).apply_(function, constants)
