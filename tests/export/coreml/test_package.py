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

from coremltools.converters.mil.mil import types  # noqa: E402 - after the skip

from mobilekit.export.backends.base import ExportSpec, Lowered  # noqa: E402
from mobilekit.export.backends.coreml import COREML  # noqa: E402
from mobilekit.export.backends.coreml.backend import export_programs  # noqa: E402
from mobilekit.core.errors import UnsupportedModelError  # noqa: E402
from mobilekit.core.files import sha256_tree  # noqa: E402
from mobilekit.export.backends.coreml.convert import capture, convert  # noqa: E402
from mobilekit.export.backends.coreml.quantize import Quantizer, quantized  # noqa: E402
from mobilekit.export.backends.coreml.reference import eager_module, stored_value  # noqa: E402
from mobilekit.export.backends.coreml.scheme import SCHEMES  # noqa: E402
from mobilekit.export.backends.coreml.storage import stored_layers  # noqa: E402
from mobilekit.export.precision import Precision  # noqa: E402
from mobilekit.models.families import Family, family_of  # noqa: E402
from mobilekit.runtime.coreml import CoreMLRuntime  # noqa: E402
from mobilekit.runtime.mil import load_program, load_spec  # noqa: E402
from mobilekit.schema.manifest import LayerPrecision  # noqa: E402

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


def _lower(
    model: nn.Module, precision: str, out: Path, overrides: dict[str, LayerPrecision] | None = None
) -> Case:
    spec = ExportSpec(Precision(precision, tuple((overrides or {}).items())), CONTEXT)
    family = family_of(model)
    lowered = COREML.lower(model, family, spec, out)
    return Case(model, family, spec, lowered, out / "model.mlpackage", out)


@pytest.fixture(scope="module")
def moe_fp32(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3_moe), "fp32", tmp_path_factory.mktemp("moe-fp32"))


@pytest.fixture(scope="module")
def dense_fp16(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3), "fp16", tmp_path_factory.mktemp("dense-fp16"))


@pytest.fixture(scope="module")
def moe_int8(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3_moe), "int8", tmp_path_factory.mktemp("moe-int8"))


@pytest.fixture(scope="module")
def dense_int4(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Untied, a row of zeros in the embedding, equal weights in two layers, an odd width."""
    torch.manual_seed(1)
    config = copy.deepcopy(tiny_qwen3.config)
    config.tie_word_embeddings, config.intermediate_size = False, 80
    model = _lively(type(tiny_qwen3)(config).eval())
    with torch.no_grad():
        first, second = model.model.layers  # type: ignore[union-attr,misc]
        second.self_attn.q_proj.weight.copy_(first.self_attn.q_proj.weight)
        model.model.embed_tokens.weight[TOKENS[0]] = 0  # type: ignore[union-attr,index]
    return _lower(model, "int4", tmp_path_factory.mktemp("dense-int4"))


@pytest.fixture(scope="module")
def moe_mixed(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Tied embedding and lm_head at different precisions, a layer in float, another in int8."""
    overrides: dict[str, LayerPrecision] = {
        "lm_head": "int8",
        "model.layers.0.self_attn.*": "float",
        "model.layers.1.mlp.*": "int8",
    }
    folder = tmp_path_factory.mktemp("moe-mixed")
    return _lower(_lively(tiny_qwen3_moe), "int4", folder, overrides)


CASES = ["moe_fp32", "dense_fp16", "moe_int8", "dense_int4", "moe_mixed"]


@pytest.fixture(params=CASES)
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
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-2, "int4": 1e-2}


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
            nibbles = types.builtin_to_string(op.outputs[0].dtype) == "int4"
            scale = any(r.op_type.startswith("constexpr") and r.scale.op is op for r in readers)
            kind = "scales" if scale else "int4" if nibbles else value.dtype.name
            size = value.nbytes // 2 if nibbles else value.nbytes
            seen[kind, value.tobytes() + str(value.shape).encode()] = size
    totals: dict[str, int] = {}
    for (kind, _), size in seen.items():
        totals[kind] = totals.get(kind, 0) + size
    return totals


def test_storage_is_as_recorded(case: Case) -> None:
    assert case.lowered.weights.bytes_by_dtype == _counted(case.package)


@pytest.mark.parametrize(
    ("fixture", "dtype", "share"),
    [("dense_fp16", "float16", 1), ("moe_int8", "int8", 0.95), ("dense_int4", "int4", 0.7)],
)
def test_weights_are_stored_at_the_precision(
    fixture: str, dtype: str, share: float, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(fixture)
    assert case.lowered.weights.share_at_precision >= share
    stored, expected = case.lowered.weights.bytes_by_dtype[dtype], _expected_bytes(case)[dtype]
    # fp16 holds the zero biases besides, which MIL's linear cannot be without
    assert stored == expected or (dtype == "float16" and expected < stored < 1.01 * expected)


def _expected_bytes(case: Case) -> dict[str, int]:
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


def test_what_int4_cannot_divide_is_int8_and_named(dense_int4: Case) -> None:
    odd = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert dense_int4.lowered.settings["int8_for_int4"] == odd
    assert dense_int4.lowered.weights.bytes_by_dtype["int8"] == 2 * 64 * 80


def _stored_dtypes(case: Case, function: str) -> list[tuple[str, str, tuple[int, ...]]]:
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
def test_overrides_reach_the_very_layers(moe_mixed: Case, function: str) -> None:
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


def test_tied_weights_are_one_constant(moe_int8: Case) -> None:
    for function in load_program(moe_int8.package).functions.values():
        (table,) = [op.x for op in function.operations if op.op_type == "gather"]
        assert {reader.op_type for reader in table.child_ops} == {"gather", "linear"}


def test_weights_are_stored_once(moe_fp32: Case) -> None:
    parameters = sum(p.numel() for p in moe_fp32.model.parameters())
    stored = sum(p.stat().st_size for p in moe_fp32.out.rglob("weight.bin"))
    assert 4 * parameters < stored < 1.1 * 4 * parameters


@pytest.mark.parametrize("fixture", CASES[1:])
def test_reference_holds_the_very_weights_of_the_package(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(fixture)
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
@pytest.mark.parametrize(("precision", "block"), [("int8", 0), ("int4", 32)])
def test_stored_value_is_coremltools_own(
    scale: float, precision: LayerPrecision, block: int
) -> None:
    from coremltools.optimize import _utils

    weight = scale * torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    data, scales, _ = _utils.compute_qparams_by_dtype(
        weight.half().numpy(), getattr(types, precision), "LINEAR_SYMMETRIC", [1, block]
    )
    expected = _utils.dequantize_by_scale_and_zp(data, scales, None).astype(np.float32)
    np.testing.assert_array_equal(stored_value(weight, precision).numpy(), expected)


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


def test_a_layer_that_is_not_found_is_named(tiny_qwen3: nn.Module, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_qwen3)
    spec, family = ExportSpec(Precision("int4"), CONTEXT), family_of(model)
    program = export_programs(model, family, spec)["decode"]
    converted = convert(program, SCHEMES["int4"])
    layers = stored_layers(program, spec.precision)
    function = converted.model._mil_program.functions["main"]
    path = "model.layers.1.mlp.up_proj"
    missing = {k: v for k, v in converted.constants.items() if path not in k}
    with pytest.raises(UnsupportedModelError, match=f"'{path}' is not found"):
        Quantizer({path: layers[path]}).apply_(function, missing)
    with torch.no_grad():
        layers[path].module.weight[0, 0] += 1
    with pytest.raises(UnsupportedModelError, match=f"'{path}' has other values"):
        Quantizer({path: layers[path]}).apply_(function, converted.constants)


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
