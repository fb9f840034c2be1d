"""A written Core ML package against the eager model: logits, storage, determinism, diagnosis."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from mobilekit.export.backends.base import ExportSpec, Lowered  # noqa: E402
from mobilekit.export.backends.coreml import COREML  # noqa: E402
from mobilekit.export.backends.coreml.backend import export_programs  # noqa: E402
from mobilekit.export.backends.coreml.convert import capture  # noqa: E402
from mobilekit.export.backends.coreml.reference import (  # noqa: E402
    eager_module,
    fake_quantize,
)
from mobilekit.export.precision import Precision

from mobilekit.core.files import sha256_tree  # noqa: E402 - after the skip
from mobilekit.models.families import Family, family_of  # noqa: E402
from mobilekit.runtime.coreml import CoreMLRuntime  # noqa: E402
from mobilekit.runtime.mil import load_program, load_spec  # noqa: E402

CONTEXT = 64
TOKENS = np.random.default_rng(3).integers(0, 256, size=60)


@dataclass(frozen=True)
class Case:
    model: nn.Module
    family: Family
    spec: ExportSpec
    lowered: Lowered
    package: Path
    out: Path


def _lively(model: nn.Module) -> nn.Module:
    """A copy whose norms scale and whose router decides, as in a trained model."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
            elif "embed" not in name:
                weight.mul_(4)
    return model


def _lower(model: nn.Module, precision: str, out: Path) -> Case:
    spec, family = ExportSpec(Precision(precision), CONTEXT), family_of(model)
    lowered = COREML.lower(model, family, spec, out)
    return Case(model, family, spec, lowered, out / "model.mlpackage", out)


@pytest.fixture(scope="module")
def moe_fp32(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3_moe), "fp32", tmp_path_factory.mktemp("moe-fp32"))


@pytest.fixture(scope="module")
def moe_int8(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3_moe), "int8", tmp_path_factory.mktemp("moe-int8"))


@pytest.fixture(scope="module")
def dense_int8(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3), "int8", tmp_path_factory.mktemp("dense-int8"))


@pytest.fixture(params=["moe_fp32", "moe_int8", "dense_int8"])
def case(request: pytest.FixtureRequest) -> Case:
    value: Case = request.getfixturevalue(request.param)
    return value


def _open(case: Case) -> CoreMLRuntime:
    return CoreMLRuntime(case.package, context_length=CONTEXT, vocab_size=256)


def _calls() -> list[tuple[int, int]]:
    """A prompt of one prefill chunk and five steps, then single steps."""
    return [(0, 37), *((i, i + 1) for i in range(37, 60))]


def _errors(one: Any, other: Any) -> np.ndarray:
    one.reset()
    other.reset()
    return np.asarray(
        [
            np.abs(one.forward(TOKENS[a:b], a) - other.forward(TOKENS[a:b], a)).max()
            for a, b in _calls()
        ]
    )


# measured 6e-6 in fp32 and 1.7e-3 with fp16 arithmetic, on logits up to 0.5
BOUNDS = {"fp32": 1e-4, "int8": 1e-2}


def test_logits_equal_the_reference_of_the_same_precision(case: Case) -> None:
    reference = COREML.reference(case.model, case.family, case.spec)
    errors = _errors(_open(case), reference)
    assert errors.max() < BOUNDS[case.spec.precision.name]
    assert errors.max() < COREML.tolerance(case.spec).max_abs


def test_fp32_package_equals_the_model_up_to_its_fp16_cache(moe_fp32: Case) -> None:
    with torch.no_grad():
        full = moe_fp32.model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    runtime = _open(moe_fp32)
    errors = [np.abs(runtime.forward(TOKENS[a:b], a) - full[b - 1]).max() for a, b in _calls()]
    assert errors[0] < 1e-2
    assert max(errors) < 1e-2 * np.abs(full).max()


def test_going_back_gives_the_same_logits_again(moe_fp32: Case) -> None:
    runtime = _open(moe_fp32)
    runtime.forward(TOKENS[:37], 0)
    first = runtime.forward(TOKENS[37:40], 37)
    runtime.forward(TOKENS[:8], 40)
    np.testing.assert_array_equal(runtime.forward(TOKENS[37:40], 37), first)
    runtime.reset()
    runtime.forward(TOKENS[:37], 0)
    np.testing.assert_array_equal(runtime.forward(TOKENS[37:40], 37), first)


def test_a_changed_weight_is_seen(moe_fp32: Case) -> None:
    other = copy.deepcopy(moe_fp32.model)
    with torch.no_grad():
        other.model.layers[1].self_attn.v_proj.weight.mul_(1.05)  # type: ignore[union-attr,index]
    reference = COREML.reference(other, moe_fp32.family, moe_fp32.spec)
    assert _errors(_open(moe_fp32), reference).max() > COREML.tolerance(moe_fp32.spec).max_abs


@pytest.mark.parametrize("fixture", ["moe_fp32", "moe_int8"])
@pytest.mark.parametrize("layer", [0, 1])
def test_diagnosis_names_the_changed_layer(
    fixture: str, layer: int, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(fixture)
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        other.model.layers[layer].mlp.experts.down_proj.mul_(1.3)  # type: ignore[union-attr,index]
    found = COREML.diagnose(case.package, other, case.family, case.spec, TOKENS[:40].tolist())
    assert found == f"model.layers.{layer}"


def test_diagnosis_finds_nothing_in_a_sound_package(case: Case) -> None:
    tokens = TOKENS[:40].tolist()
    assert COREML.diagnose(case.package, case.model, case.family, case.spec, tokens) is None


def test_diagnosis_leaves_what_is_after_the_layers_to_the_caller(moe_fp32: Case) -> None:
    other = copy.deepcopy(moe_fp32.model)
    with torch.no_grad():
        other.model.norm.weight.mul_(2)  # type: ignore[union-attr]
    tokens = TOKENS[:33].tolist()
    found = COREML.diagnose(moe_fp32.package, other, moe_fp32.family, moe_fp32.spec, tokens)
    assert found is None


def test_package_is_one_stateful_model_with_two_functions(case: Case) -> None:
    spec = load_spec(case.package)
    assert spec.specificationVersion == 9
    assert {f.name for f in spec.description.functions} == {"prefill", "decode"}
    assert spec.description.defaultFunctionName == "decode"
    for function in spec.description.functions:
        record = case.lowered.programs[function.name]
        assert [i.name for i in function.input] == [i.name for i in record.inputs]
        shapes = [tuple(i.type.multiArrayType.shape) for i in function.input]
        assert shapes == [i.shape for i in record.inputs]
        assert [o.name for o in function.output] == ["logits"]
        states = {s.name: tuple(s.type.stateType.arrayType.shape) for s in function.state}
        assert states == {s.name: s.shape for s in record.states}
        assert {s.dtype for s in record.states} == {"float16"}


def test_files_are_listed_manifest_first(case: Case) -> None:
    files = case.lowered.files
    assert files[0] == "model.mlpackage/Manifest.json"
    on_disk = {p.relative_to(case.out).as_posix() for p in case.out.rglob("*") if p.is_file()}
    assert set(files) == on_disk
    assert len(files) == len(on_disk)


def _counted(package: Path) -> dict[str, int]:
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
            scale = any(r.op_type.startswith("constexpr") and r.scale.op is op for r in readers)
            kind = "scales" if scale else value.dtype.name
            seen[kind, value.tobytes() + str(value.shape).encode()] = value.nbytes
    totals: dict[str, int] = {}
    for (kind, _), size in seen.items():
        totals[kind] = totals.get(kind, 0) + size
    return totals


def test_storage_is_as_recorded(case: Case) -> None:
    assert case.lowered.weights.bytes_by_dtype == _counted(case.package)


@pytest.mark.parametrize("fixture", ["moe_int8", "dense_int8"])
def test_weights_are_int8(fixture: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(fixture)
    assert case.lowered.weights.share_at_precision >= 0.95
    parameters = sum(p.numel() for p in case.model.parameters())
    assert case.lowered.weights.bytes_by_dtype["int8"] > 0.95 * parameters


def test_weights_are_stored_once(moe_fp32: Case) -> None:
    parameters = sum(p.numel() for p in moe_fp32.model.parameters())
    stored = sum(p.stat().st_size for p in moe_fp32.out.rglob("weight.bin"))
    assert 4 * parameters < stored < 1.1 * 4 * parameters


def test_reference_holds_the_very_weights_of_the_package(moe_int8: Case) -> None:
    module, _ = eager_module(moe_int8.model, moe_int8.family, moe_int8.spec)
    linears = [m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    known = [w.detach().numpy() for w in linears]
    compressed = [
        op.materialized_val_inference()  # coremltools' own decompression
        for op in load_program(moe_int8.package).functions["decode"].operations
        if op.op_type == "constexpr_blockwise_shift_scale"
    ]
    # q, k, v, o, gate_up, down of two layers, and the tied embedding
    assert len(compressed) == 13
    for value in compressed:
        wide = value.astype(np.float32)
        assert any(w.shape == wide.shape and np.array_equal(w, wide) for w in known)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_fake_quantization_is_coremltools_own(scale: float) -> None:
    from coremltools.converters.mil.mil import types
    from coremltools.optimize import _utils

    weight = scale * torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    data, scales, _ = _utils.compute_qparams_by_dtype(
        weight.half().numpy(), types.int8, "LINEAR_SYMMETRIC", [1, 0]
    )
    expected = _utils.dequantize_by_scale_and_zp(data, scales, None).astype(np.float32)
    np.testing.assert_array_equal(fake_quantize(weight).numpy(), expected)


def test_what_fp16_cannot_hold_is_computed_in_fp32(moe_int8: Case) -> None:
    for function in load_program(moe_int8.package).functions.values():
        dtypes: dict[str, set[str]] = {}
        for op in function.operations:
            if op.outputs:
                dtypes.setdefault(op.op_type, set()).add(op.outputs[0].dtype.__name__)
        for kind in ("cos", "sin", "reduce_mean", "rsqrt", "topk"):
            assert dtypes[kind] == {"fp32"}, kind
        assert dtypes["linear"] == {"fp16", "fp32"}  # fp32: the two routers
        for kind in ("matmul", "silu", "gather"):
            assert dtypes[kind] == {"fp16"}, kind


def test_model_is_left_as_it_was(tiny_qwen3: nn.Module) -> None:
    model = copy.deepcopy(tiny_qwen3)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modules = [(n, type(m)) for n, m in model.named_modules()]
    family, spec = family_of(model), ExportSpec(Precision("int8"), CONTEXT)
    COREML.reference(model, family, spec).forward(TOKENS[:5], 0)
    for program in export_programs(model, family, spec).values():
        capture(program)
    assert [(n, type(m)) for n, m in model.named_modules()] == modules
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_prefill_is_no_longer_than_the_context(tiny_qwen3: nn.Module) -> None:
    programs = export_programs(tiny_qwen3, family_of(tiny_qwen3), ExportSpec(Precision("fp32"), 8))
    assert programs["prefill"].inputs[0].shape == (1, 8)


@pytest.mark.slow
def test_same_model_gives_the_same_bytes_quietly(
    moe_int8: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from coremltools.converters.mil.frontend.torch import torch_op_registry
    from coremltools.converters.mil.mil import Program

    validate = Program.validate
    COREML.lower(moe_int8.model, moe_int8.family, moe_int8.spec, tmp_path)
    assert sha256_tree(tmp_path) == sha256_tree(moe_int8.out)
    output = capfd.readouterr()
    assert output.out == ""
    assert "passes/s" not in output.err
    assert "Core ML only supports" not in output.err
    assert Program.validate is validate
    assert "alias" not in torch_op_registry._TORCH_OPS_REGISTRY.name_to_func_mapping
