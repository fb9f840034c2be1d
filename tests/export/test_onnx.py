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


def _lower(model: nn.Module, precision: str, out: Path) -> Artifact:
    spec = ExportSpec(
        Precision(precision), T, bos_token_id=None, eos_token_ids=(0,), pad_token_id=None
    )
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


def test_int8_is_near_its_own_reference_and_less_so_to_fp32(moe_int8: Artifact) -> None:
    family, spec = family_of(moe_int8.model), moe_int8.spec
    same = ONNX.reference(moe_int8.model, family, spec)
    tokens, runtime = _tokens(T), moe_int8.runtime()
    errors = {"same": 0.0, "fp32": 0.0}
    exact = _full_logits(moe_int8.model, tokens)
    for position, token in enumerate(tokens):
        found = runtime.forward(np.array([token]), position)
        expected = same.forward(np.array([token]), position)
        errors["same"] = max(errors["same"], float(np.abs(found - expected).max()))
        errors["fp32"] = max(errors["fp32"], float(np.abs(found - exact[position]).max()))
    assert errors["same"] <= ONNX.tolerance(spec).max_abs
    assert 1e-4 < errors["fp32"] < 0.1 * np.abs(exact).max()
    assert errors["same"] < errors["fp32"] / 2


def test_int8_matches_its_reference_exactly_before_any_rounding_tie(moe_int8: Artifact) -> None:
    same = ONNX.reference(moe_int8.model, family_of(moe_int8.model), moe_int8.spec)
    runtime, errors = moe_int8.runtime(), []
    for token in range(0, V, 8):
        runtime.reset()
        same.reset()
        ids = np.array([token])
        errors.append(np.abs(runtime.forward(ids, 0) - same.forward(ids, 0)).max())
    assert np.median(errors) < 1e-5


def test_int8_stores_95_percent_experts_and_embedding_included(
    moe_int8: Artifact, moe_fp32: Artifact
) -> None:
    weights = moe_int8.lowered.weights
    assert weights.share_at_precision >= 0.95
    elements = sum(p.numel() for p in moe_int8.model.parameters())
    routers = 2 * 8 * 64  # layers, experts, hidden
    assert elements - routers - 600 < weights.bytes_by_dtype["uint8"] < elements  # 600: norms
    assert moe_fp32.lowered.weights.share_at_precision == 1.0
    assert moe_int8.path.stat().st_size < moe_fp32.path.stat().st_size / 3


def test_only_the_routers_multiply_in_float(moe_int8: Artifact) -> None:
    operators = moe_int8.lowered.settings["operators"]
    assert operators["MatMul"] == 2
    assert operators["MatMulNBits"] == 2 * (4 + 2) + 1
    assert operators["GatherBlockQuantized"] == 1
    assert "Gather" not in operators
    shapes = {tuple(i.dims) for i in onnx.load(moe_int8.path).graph.initializer if i.data_type == 1}
    assert (64, 8) in shapes  # the router, as MatMul wants it


@pytest.mark.parametrize("name", ["dense_fp32", "moe_fp32", "moe_int8"])
def test_attention_norms_and_rotations_are_one_operator_each(
    name: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    operators = artifact.lowered.settings["operators"]
    assert operators["GroupQueryAttention"] == 2
    assert operators["RotaryEmbedding"] == 4
    assert operators["SimplifiedLayerNormalization"] == 1 + 2 * 2
    assert operators["SkipSimplifiedLayerNormalization"] == 2 * 2
    assert not {"Pow", "Neg", "Expand", "Where"} & set(operators)


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


@pytest.mark.parametrize("name", ["moe_fp32", "moe_int8"])
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
