from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from mobilekit.export.backends import BACKENDS
from mobilekit.export.backends.base import ExportSpec, Lowered
from mobilekit.export.backends.onnx import write
from mobilekit.export.precision import Precision

from mobilekit.models.families import family_of
from mobilekit.runtime.generate import greedy
from mobilekit.runtime.onnx import OnnxRuntime

if TYPE_CHECKING:
    from torch import nn

T, V = 48, 256
ONNX = BACKENDS.get("onnx")


@dataclass(frozen=True)
class Artifact:
    model: nn.Module
    spec: ExportSpec
    out: Path
    lowered: Lowered

    @property
    def path(self) -> Path:
        return self.out / self.lowered.files[0]

    def runtime(self) -> OnnxRuntime:
        return OnnxRuntime(self.path, context_length=T, vocab_size=V, threads=1)


def _lower(model: nn.Module, precision: str, out: Path, **overrides: Any) -> Artifact:
    chosen = Precision(precision, tuple(overrides.items()))
    spec = ExportSpec(chosen, T, bos_token_id=None, eos_token_ids=(0,), pad_token_id=None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    implementation = model.config._attn_implementation  # type: ignore[union-attr]
    lowered = ONNX.lower(model, family_of(model), spec, out)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.config._attn_implementation == implementation  # type: ignore[union-attr]
    return Artifact(model, spec, out, lowered)


@pytest.fixture(scope="module")
def dense_fp32(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3, "fp32", tmp_path_factory.mktemp("dense_fp32"))


@pytest.fixture(scope="module")
def moe_fp32(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3_moe, "fp32", tmp_path_factory.mktemp("moe_fp32"))


@pytest.fixture(scope="module")
def moe_int8(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3_moe, "int8", tmp_path_factory.mktemp("moe_int8"))


@pytest.fixture(scope="module")
def moe_int4(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3_moe, "int4", tmp_path_factory.mktemp("moe_int4"))


@pytest.fixture(scope="module")
def dense_mixed(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """int4, but the head in int8 and one layer's attention in float; a layer is narrower."""
    overrides: Any = {"lm_head": "int8", "*.0.self_attn.*": "float"}
    model: Any = copy.deepcopy(tiny_qwen3)
    mlp = model.model.layers[1].mlp
    for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        linear = mlp.get_submodule(name)
        linear.weight.data = linear.weight.data.narrow(dim, 0, 64).contiguous()
        linear.out_features, linear.in_features = linear.weight.shape
    return _lower(model, "int4", tmp_path_factory.mktemp("dense_mixed"), **overrides)


@pytest.fixture(scope="module")
def moe_fp16(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3_moe, "fp16", tmp_path_factory.mktemp("moe_fp16"))


def _tokens(count: int) -> Any:
    return np.random.default_rng(count).integers(0, V, count)


def _full_logits(model: nn.Module, tokens: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)[None]).logits[0].numpy()


@pytest.mark.parametrize("name", ["dense_fp32", "moe_fp32"])
def test_fp32_equals_the_model_over_prefill_decode_and_chunks(
    name: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    tokens = _tokens(T)
    expected = _full_logits(artifact.model, tokens)
    runtime = artifact.runtime()
    for chunks in ([T], [1] * T, [7, 1, 1, 20, 3, 1, 15]):
        runtime.reset()
        position = 0
        for count in chunks:
            found = runtime.forward(tokens[position : position + count], position)
            position += count
            np.testing.assert_allclose(found, expected[position - 1], atol=1e-4)
        assert position == T


def test_going_back_discards_what_was_after(moe_fp32: Artifact) -> None:
    runtime, tokens = moe_fp32.runtime(), _tokens(30)
    runtime.forward(tokens, 0)
    other = np.concatenate([tokens[:10], _tokens(7)])
    found = runtime.forward(other[10:], 10)
    np.testing.assert_allclose(found, _full_logits(moe_fp32.model, other)[-1], atol=1e-4)


def test_fp32_reference_agrees_and_greedy_continuations_are_equal(moe_fp32: Artifact) -> None:
    family = family_of(moe_fp32.model)
    eager = ONNX.reference(moe_fp32.model, family, moe_fp32.spec)
    prompt = _tokens(5).tolist()
    assert greedy(moe_fp32.runtime(), prompt, 20) == greedy(eager, prompt, 20)


def test_fp16_stores_halves_and_equals_its_reference(
    moe_fp16: Artifact, moe_fp32: Artifact
) -> None:
    weights = moe_fp16.lowered.weights
    assert weights.share_at_precision >= 0.98
    assert set(weights.bytes_by_dtype) == {"float16", "float32"}  # norms
    assert moe_fp16.path.stat().st_size < 0.6 * moe_fp32.path.stat().st_size
    tokens = _tokens(T)
    same = ONNX.reference(moe_fp16.model, family_of(moe_fp16.model), moe_fp16.spec)
    found = moe_fp16.runtime().forward(tokens, 0)
    np.testing.assert_allclose(found, same.forward(tokens, 0), atol=1e-4)
    difference = np.abs(found - _full_logits(moe_fp16.model, tokens)[-1]).max()
    assert 1e-5 < difference < 1e-2


QUANTIZED = pytest.mark.parametrize("name", ["moe_int8", "moe_int4", "dense_mixed"])


@QUANTIZED
def test_it_is_near_its_own_reference_and_less_so_to_fp32(
    name: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    family, spec = family_of(artifact.model), artifact.spec
    same = ONNX.reference(artifact.model, family, spec)
    tokens, runtime = _tokens(T), artifact.runtime()
    errors: dict[str, list[float]] = {"same": [], "fp32": []}
    exact = _full_logits(artifact.model, tokens)
    for position, token in enumerate(tokens):
        found = runtime.forward(np.array([token]), position)
        expected = same.forward(np.array([token]), position)
        errors["same"].append(float(np.abs(found - expected).max()))
        errors["fp32"].append(float(np.abs(found - exact[position]).max()))
    assert max(errors["same"]) <= ONNX.tolerance(spec).max_abs
    assert 1e-4 < max(errors["fp32"]) < (0.1 if spec.precision.name == "int8" else 0.4)
    # the median: at a near-tie of a router another expert runs, and the largest says little
    assert np.median(errors["same"]) < 0.75 * np.median(errors["fp32"])


@QUANTIZED
def test_it_matches_its_reference_exactly_before_any_rounding_tie(
    name: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    same = ONNX.reference(artifact.model, family_of(artifact.model), artifact.spec)
    runtime, errors = artifact.runtime(), []
    for token in range(0, V, 8):
        runtime.reset()
        same.reset()
        ids = np.array([token])
        errors.append(np.abs(runtime.forward(ids, 0) - same.forward(ids, 0)).max())
    assert np.median(errors) < 1e-5


@pytest.mark.parametrize(
    ("name", "dtype", "bits"), [("moe_int8", "uint8", 8), ("moe_int4", "uint4", 4)]
)
def test_weights_are_stored_in_few_bits_experts_and_embedding_included(
    name: str, dtype: str, bits: int, moe_fp32: Artifact, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    weights = artifact.lowered.weights
    assert weights.share_at_precision >= 0.94  # the routers are 1 / 63 of this tiny model
    elements = sum(p.numel() for p in artifact.model.parameters())
    routers = 2 * 8 * 64  # layers, experts, hidden
    stored = weights.bytes_by_dtype[dtype] * 8 // bits
    assert elements - routers - 600 < stored < elements  # 600: norms
    assert moe_fp32.lowered.weights.share_at_precision == 1.0
    assert artifact.path.stat().st_size < moe_fp32.path.stat().st_size / 3


def test_overrides_are_stored_as_asked(dense_mixed: Artifact) -> None:
    stored = dense_mixed.lowered.weights.bytes_by_dtype
    attention = 2 * 64 * 64 + 2 * 64 * 32
    mlps = 3 * 64 * (96 + 64)
    assert stored["uint8"] == V * 64
    assert stored["uint4"] * 2 == V * 64 + attention + mlps
    assert 0 <= stored["float32"] - 4 * attention < 4 * 600
    assert dense_mixed.lowered.settings["quantizer"]["weights_stored_twice"] == 1


def test_a_tied_table_is_stored_once(moe_int4: Artifact) -> None:
    nodes = {n.op_type: n for n in onnx.load(moe_int4.path).graph.node}
    head = onnx.load(moe_int4.path).graph.node[-1]
    assert head.op_type == "MatMulNBits"
    assert nodes["GatherBlockQuantized"].input[0] == head.input[1]


def test_only_the_routers_multiply_in_float(moe_int4: Artifact) -> None:
    operators = moe_int4.lowered.settings["operators"]
    assert operators["MatMul"] == operators["QMoE"] == 2
    assert operators["MatMulNBits"] == 2 * 2 + 1  # one for queries, keys and values
    assert operators["GatherBlockQuantized"] == 1
    assert not {"Gather", "TopK", "Softmax"} & set(operators)
    graph = onnx.load(moe_int4.path).graph
    assert (64, 8) in {tuple(i.dims) for i in graph.initializer}  # the router, as MatMul wants it


@pytest.mark.parametrize("name", ["dense_fp32", "moe_fp32", "moe_int8", "dense_mixed"])
def test_attention_norms_and_rotations_are_one_operator_each(
    name: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    operators = artifact.lowered.settings["operators"]
    assert operators["GroupQueryAttention"] == 2
    assert operators["SimplifiedLayerNormalization"] == 1 + 2 * 2
    assert operators["SkipSimplifiedLayerNormalization"] == 2 * 2
    assert not {"Pow", "Neg", "Cos", "Sin", "Expand", "Where"} & set(operators)


@pytest.mark.parametrize(("name", "oldest"), [("dense_mixed", "1.23"), ("moe_int4", "1.32")])
def test_the_oldest_runtime_depends_on_the_operators(
    name: str, oldest: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    assert artifact.lowered.runtime.min == oldest


def test_genai_config_names_what_the_graph_has(moe_fp32: Artifact) -> None:
    written = json.loads((moe_fp32.out / "genai_config.json").read_text())
    decoder = written["model"]["decoder"]
    session = moe_fp32.runtime()._session
    inputs = {value.name for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    for key, pattern in decoder["inputs"].items():
        assert (pattern % 1 if key.startswith("past") else pattern) in inputs
    for key, pattern in decoder["outputs"].items():
        assert (pattern % 1 if key.startswith("present") else pattern) in outputs
    assert (moe_fp32.out / decoder["filename"]).is_file()
    shape = (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"])
    assert shape == (2, 2, 16)
    assert written["model"]["context_length"] == written["search"]["max_length"] == T
    assert written["model"]["eos_token_id"] == [0]
    assert "bos_token_id" not in written["model"]
    assert written["model"]["type"] == "decoder"


@pytest.mark.parametrize("name", ["dense_fp32", "moe_fp16", "moe_int8", "moe_int4"])
def test_the_stock_runner_generates_what_we_do(name: str, request: pytest.FixtureRequest) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    artifact: Artifact = request.getfixturevalue(name)
    prompt = _tokens(6).tolist()
    model = genai.Model(str(artifact.out))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=T - 8, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)]
    ours = greedy(artifact.runtime(), prompt, T - 8 - 6, stop=frozenset({0}))
    assert found == prompt + ours


def test_the_record_names_inputs_and_outputs_of_the_file(dense_fp32: Artifact) -> None:
    program = dense_fp32.lowered.programs["forward"]
    graph = onnx.load(dense_fp32.path).graph
    assert [i.name for i in graph.input] == [spec.name for spec in program.inputs]
    assert [o.name for o in graph.output] == [spec.name for spec in program.outputs]
    for value, spec in zip(graph.input, program.inputs, strict=True):
        dims = value.type.tensor_type.shape.dim
        assert tuple(d.dim_param or d.dim_value for d in dims) == spec.shape


def test_the_file_says_nothing_of_the_exporting_machine(dense_fp32: Artifact) -> None:
    data = dense_fp32.path.read_bytes()
    assert b"site-packages" not in data
    assert str(Path(torch.__file__).parent).encode() not in data


@pytest.mark.parametrize("name", ["moe_fp32", "moe_fp16", "moe_int8", "moe_int4"])
def test_diagnose_names_the_layer_whose_weight_differs(
    name: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    model, spec, tokens = artifact.model, artifact.spec, _tokens(16).tolist()
    family = family_of(model)
    assert ONNX.diagnose(artifact.path, model, family, spec, tokens) is None
    for layer in (0, 1):
        changed: Any = copy.deepcopy(model)
        with torch.no_grad():
            changed.model.layers[layer].self_attn.o_proj.weight[3] *= -1
        found = ONNX.diagnose(artifact.path, changed, family, spec, tokens)
        assert found == f"model.layers.{layer}"


def test_diagnose_finds_no_layer_where_the_head_differs(moe_fp32: Artifact) -> None:
    changed: Any = copy.deepcopy(moe_fp32.model)
    with torch.no_grad():
        changed.model.norm.weight[:] = 2.0
    family = family_of(changed)
    spec, tokens = moe_fp32.spec, _tokens(8).tolist()
    assert ONNX.diagnose(moe_fp32.path, changed, family, spec, tokens) is None


def test_large_weights_go_to_a_second_file(dense_fp32: Artifact, tmp_path: Path) -> None:
    names = write.save(onnx.load(dense_fp32.path), tmp_path, inline_limit=1)
    assert names == ["model.onnx", "model.onnx.data"]
    path = tmp_path / names[0]
    assert path.stat().st_size < (tmp_path / names[1]).stat().st_size
    tokens = _tokens(9)
    found = OnnxRuntime(path, context_length=T, vocab_size=V).forward(tokens, 0)
    np.testing.assert_allclose(found, _full_logits(dense_fp32.model, tokens)[-1], atol=1e-4)
    family = family_of(dense_fp32.model)
    layer = ONNX.diagnose(path, dense_fp32.model, family, dense_fp32.spec, tokens.tolist())
    assert layer is None
    assert write.weight_record(path, "fp32") == dense_fp32.lowered.weights
