"""Real lowerings of the tiny models, run by ExecuTorch itself and held to eager."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from mobilekit.export.backends import BACKENDS
from mobilekit.export.backends.base import ExportSpec, Lowered
from mobilekit.export.backends.executorch.attention import grouped_attention
from mobilekit.export.backends.executorch.weights import read_pte, stored_constants
from mobilekit.export.precision import Precision
from torch import nn

from mobilekit.core.errors import InvalidInputError
from mobilekit.models.families import family_of
from mobilekit.models.families.experts import sparse_blocks
from mobilekit.models.modules.static_moe import StaticMoE
from mobilekit.models.tiny import make_tiny
from mobilekit.runtime.executorch import ExecutorchRuntime
from mobilekit.runtime.torch import TorchRuntime

if TYPE_CHECKING:
    from mobilekit.runtime.base import TokenLogits

T, V = 48, 256
SPANS = [(0, 13), (13, 14), (14, 15), (15, 22), (22, 23), (23, 40)]
EXECUTORCH = BACKENDS.get("executorch")


@dataclass(frozen=True)
class Artifact:
    model: Any
    spec: ExportSpec
    path: Path
    lowered: Lowered

    def runtime(self) -> ExecutorchRuntime:
        return ExecutorchRuntime(self.path, context_length=T, vocab_size=V, threads=1)

    def reference(self) -> TokenLogits:
        return EXECUTORCH.reference(self.model, family_of(self.model), self.spec)

    def diagnose(self, model: nn.Module, path: Path | None = None) -> str | None:
        tokens = list(range(7, 27))
        return EXECUTORCH.diagnose(path or self.path, model, family_of(model), self.spec, tokens)


def _lower(model: nn.Module, precision: str | Precision, out: Path) -> Artifact:
    if isinstance(precision, str):
        precision = Precision(precision)
    spec = ExportSpec(precision, T, bos_token_id=5, eos_token_ids=(0, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    implementation = model.config._attn_implementation  # type: ignore[union-attr]
    lowered = EXECUTORCH.lower(model, family_of(model), spec, out)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.config._attn_implementation == implementation  # type: ignore[union-attr]
    assert all(type(p) is nn.Parameter for p in model.parameters())
    return Artifact(model, spec, out / lowered.files[0], lowered)


@pytest.fixture(scope="module")
def moe_model(tiny_qwen3_moe: nn.Module) -> nn.Module:
    """The tiny model with norms that differ: equal constants are stored only once."""
    model = copy.deepcopy(tiny_qwen3_moe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def moe_fp32(moe_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(moe_model, "fp32", tmp_path_factory.mktemp("moe_fp32"))


@pytest.fixture(scope="module")
def moe_int8(moe_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(moe_model, "int8", tmp_path_factory.mktemp("moe_int8"))


@pytest.fixture(scope="module")
def moe_int4(moe_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Mixed: a layer is left in float, another in 8 bits."""
    overrides = (("model.layers.0.self_attn.v_proj", "float"), ("*.k_proj", "int8"))
    return _lower(moe_model, Precision("int4", overrides), tmp_path_factory.mktemp("moe_int4"))


@pytest.fixture(scope="module")
def dense_fp32(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3, "fp32", tmp_path_factory.mktemp("dense_fp32"))


@pytest.fixture(scope="module")
def moe_fp16(moe_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(moe_model, "fp16", tmp_path_factory.mktemp("moe_fp16"))


@pytest.fixture(scope="module")
def dense_fp16(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3, "fp16", tmp_path_factory.mktemp("dense_fp16"))


@pytest.fixture(scope="module")
def dense_int8(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _lower(tiny_qwen3, "int8", tmp_path_factory.mktemp("dense_int8"))


def _tokens(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, V, SPANS[-1][1])


def _both(one: TokenLogits, other: TokenLogits) -> tuple[Any, Any]:
    """Prefill, single steps and longer pieces, each continuing the last: logits (N, V) of both."""
    tokens = _tokens()
    one.reset(), other.reset()
    pairs = [(one.forward(tokens[a:b], a), other.forward(tokens[a:b], a)) for a, b in SPANS]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def _mean_kl(reference: Any, logits: Any) -> float:
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (reference, logits))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", ["moe_fp32", "dense_fp32"])
def test_fp32_equals_eager_at_every_length(name: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    expected, logits = _both(artifact.reference(), artifact.runtime())
    assert np.abs(expected - logits).max() <= 1e-5
    # and transformers' own forward with its own cache, nothing of ours in between
    stock, logits = _both(TorchRuntime(artifact.model, T), artifact.runtime())
    assert np.abs(stock - logits).max() <= 1e-5


def test_going_back_hides_what_was_after(moe_fp32: Artifact) -> None:
    runtime, tokens = moe_fp32.runtime(), _tokens()
    first = runtime.forward(tokens[:20], 0)
    runtime.forward(_tokens(1), 0)  # fills later slots with other tokens
    assert np.abs(runtime.forward(tokens[:20], 0) - first).max() <= 1e-6


def test_a_prompt_of_the_whole_context_runs(moe_fp32: Artifact) -> None:
    tokens = np.arange(T) % V
    expected = TorchRuntime(moe_fp32.model, T).forward(tokens, 0)
    assert np.abs(moe_fp32.runtime().forward(tokens, 0) - expected).max() <= 1e-5


def _assert_close(artifact: Artifact, *, own_error: float) -> None:
    """Hold the file to its reference, and its quantization itself to a mean KL of ``own_error``."""
    tolerance = EXECUTORCH.tolerance(artifact.spec)
    expected, logits = _both(artifact.reference(), artifact.runtime())
    assert np.abs(expected - logits).max() <= 0.1  # logits reach 1 here
    assert _mean_kl(expected, logits) <= min(1e-3, tolerance.kl)
    fp32 = EXECUTORCH.reference(
        artifact.model, family_of(artifact.model), ExportSpec(Precision("fp32"), T)
    )
    exact, _ = _both(fp32, artifact.runtime())
    assert 1e-6 <= _mean_kl(exact, logits) <= own_error


def test_int8_is_close_to_quantized_eager(moe_int8: Artifact) -> None:
    _assert_close(moe_int8, own_error=0.01)


def test_int4_is_close_to_quantized_eager(moe_int4: Artifact) -> None:
    _assert_close(moe_int4, own_error=0.05)


def test_fp16_is_close_to_half_precision_eager(dense_fp16: Artifact) -> None:
    expected, logits = _both(dense_fp16.reference(), dense_fp16.runtime())
    assert np.abs(expected - logits).max() <= 0.01  # logits reach 3 here
    exact, _ = _both(TorchRuntime(dense_fp16.model, T), dense_fp16.runtime())
    assert 1e-5 <= np.abs(exact - logits).max() <= 0.02
    c = dense_fp16.model.config
    layer = (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim * c.hidden_size
    layer += 3 * c.hidden_size * c.intermediate_size
    norms = c.head_dim, c.hidden_size  # all ones, and equal constants are stored once
    weights = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size + sum(norms)
    assert dense_fp16.lowered.weights.bytes_by_dtype == {"float16": 2 * weights}
    assert dense_fp16.lowered.settings["delegates"] <= 5 * 2
    (program,) = dense_fp16.lowered.programs.values()
    assert {(s.dtype, s.shape) for s in program.states} == {
        ("float32", (1, T, c.num_key_value_heads, c.head_dim))
    }
    assert "no float16" in str(dense_fp16.diagnose(dense_fp16.model))


def test_experts_in_half_precision(moe_fp16: Artifact) -> None:
    expected, logits = _both(moe_fp16.reference(), moe_fp16.runtime())
    assert np.abs(expected - logits).max() <= 0.01
    quantized, kept = _moe_parameter_counts(moe_fp16.model)
    c = moe_fp16.model.config
    routers = c.num_hidden_layers * c.num_experts * c.hidden_size
    stored = moe_fp16.lowered.weights.bytes_by_dtype
    assert stored["float32"] == 4 * routers
    assert stored["float16"] <= 2 * (quantized + kept - routers)  # norms are equal, and stored once
    assert moe_fp16.lowered.weights.share_at_precision >= 0.95


@pytest.mark.parametrize("residual_in_fp32", [True, False])
def test_a_running_state_stays_float32(residual_in_fp32: bool, tmp_path: Path) -> None:
    model: Any = make_tiny("mamba2")
    for block in model.backbone.layers:
        block.residual_in_fp32 = residual_in_fp32
    artifact = _lower(model, "fp16", tmp_path)
    expected, logits = _both(artifact.reference(), artifact.runtime())
    assert np.abs(expected - logits).max() <= 0.01  # logits reach 4 here
    exact, logits = _both(TorchRuntime(model, T), artifact.runtime())
    assert 1e-4 <= np.abs(exact - logits).max() <= 0.03
    (program,) = artifact.lowered.programs.values()
    assert {state.dtype for state in program.states} == {"float32"}
    vectors = 0  # of the recurrences: a tap's weights and bias, step bias, skip and rate a head
    for block in model.backbone.layers:
        mixer = block.mixer
        vectors += mixer.conv1d.weight.numel() + mixer.conv1d.bias.numel() + 3 * mixer.num_heads
    parameters = sum(p.numel() for p in model.parameters())  # tied ones once
    assert artifact.lowered.weights.bytes_by_dtype == {
        "float16": 2 * (parameters - vectors),
        "float32": 4 * vectors,
    }


def _moe_parameter_counts(model: Any) -> tuple[int, int]:
    """Return the elements that are to be quantized and fp32, from the shapes in the config."""
    c = model.config
    heads = (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim * c.hidden_size
    experts = c.num_experts * 3 * c.moe_intermediate_size * c.hidden_size
    quantized = c.num_hidden_layers * (heads + experts) + c.vocab_size * c.hidden_size  # tied
    router = c.num_experts * c.hidden_size
    norms = 2 * c.hidden_size + 2 * c.head_dim
    return quantized, c.num_hidden_layers * (router + norms) + c.hidden_size


def test_int8_share_counts_what_the_file_stores(moe_int8: Artifact) -> None:
    quantized, kept = _moe_parameter_counts(moe_int8.model)
    weights = moe_int8.lowered.weights
    assert weights.bytes_by_dtype["int8"] == quantized
    assert weights.bytes_by_dtype["float32"] == 4 * kept
    assert weights.share_at_precision == pytest.approx(quantized / (quantized + 4 * kept))
    assert weights.share_at_precision >= 0.95
    # one scale an output row, float32: rows of all quantized matrices
    c = moe_int8.model.config
    rows = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim + c.hidden_size
    rows += c.num_experts * (2 * c.moe_intermediate_size + c.hidden_size)
    assert weights.bytes_by_dtype["scales"] == 4 * (c.num_hidden_layers * rows + c.vocab_size)


def test_int4_share_counts_each_layer_at_its_own_precision(moe_int4: Artifact) -> None:
    quantized, kept = _moe_parameter_counts(moe_int4.model)
    c = moe_int4.model.config
    projection = c.num_key_value_heads * c.head_dim * c.hidden_size
    stored = moe_int4.lowered.weights.bytes_by_dtype
    assert stored["int8"] == c.num_hidden_layers * projection
    assert stored["float32"] == 4 * (kept + projection)  # one v_proj was asked for in float
    assert stored["int4"] == (quantized - projection * (c.num_hidden_layers + 1)) / 2
    share = stored["int4"] / sum(stored[name] for name in ("int4", "int8", "float32"))
    assert moe_int4.lowered.weights.share_at_precision == pytest.approx(share)


def test_tied_weights_are_in_the_file_once(moe_fp32: Artifact, moe_int8: Artifact) -> None:
    table = moe_fp32.model.model.embed_tokens.weight.detach().numpy()
    assert moe_fp32.path.read_bytes().count(table.tobytes()) == 1
    blobs = [c.data for c in stored_constants(read_pte(moe_int8.path)) if c.dtype == "int8"]
    weight = moe_fp32.model.model.embed_tokens.weight.detach()
    (blob,) = [blob for blob in blobs if _dequantizes_to(blob, weight)]
    assert moe_int8.path.read_bytes().count(blob) == 1


def test_fp32_file_stores_each_parameter_once(moe_fp32: Artifact) -> None:
    quantized, kept = _moe_parameter_counts(moe_fp32.model)
    stored = moe_fp32.lowered.weights.bytes_by_dtype
    assert stored == {"float32": 4 * (quantized + kept)}


@pytest.mark.parametrize("name", ["moe_fp32", "moe_int8"])
def test_counted_bytes_are_the_file(name: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(name)
    size, config = artifact.path.stat().st_size, artifact.model.config
    stored = sum(len(constant.data) for constant in stored_constants(read_pte(artifact.path)))
    counted = sum(artifact.lowered.weights.bytes_by_dtype.values())
    assert counted <= stored <= size
    # graphs and alignment, the same for any width; an expert has a graph of its own
    assert size - stored < 90_000 + 2_000 * config.num_hidden_layers * config.num_experts


def test_experts_are_stored_as_int8(moe_int8: Artifact) -> None:
    blobs = [c.data for c in stored_constants(read_pte(moe_int8.path)) if c.dtype == "int8"]
    for block in sparse_blocks(moe_int8.model):
        for tensor in (block.experts.gate_up_proj, block.experts.down_proj):
            for weight in tensor.detach():
                assert any(_dequantizes_to(blob, weight) for blob in blobs), block.path


def _dequantizes_to(blob: bytes, weight: torch.Tensor) -> bool:
    """Tell whether the bytes are the matrix on a symmetric grid of 255 steps a row."""
    if len(blob) != weight.numel():
        return False
    steps = torch.frombuffer(bytearray(blob), dtype=torch.int8).view_as(weight).double()
    scale = weight.double().abs().amax(1, keepdim=True) / 127.5
    return bool(((steps * scale - weight).abs() <= 0.501 * scale).all())


def test_routers_stay_in_fp32(moe_int8: Artifact) -> None:
    blobs = [c.data for c in stored_constants(read_pte(moe_int8.path)) if c.dtype == "float32"]
    for block in sparse_blocks(moe_int8.model):
        assert block.router.weight.detach().numpy().tobytes() in blobs, block.path


def test_metadata_methods_of_the_stock_runner(moe_fp32: Artifact) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(moe_fp32.path)

    def value(name: str) -> Any:
        got = list(program.load_method(name).execute([]))
        return got if name == "get_eos_ids" else got[0]

    assert {name: value(name) for name in program.method_names - {"forward"}} == {
        "get_vocab_size": V,
        "get_max_seq_len": T - 1,
        "get_max_context_len": T,
        "get_n_layers": 2,
        "get_bos_id": 5,
        "get_eos_ids": [0, 3],
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    # what is declared runs, in one call
    tokens = torch.ones(1, T - 1, dtype=torch.long)
    (logits,) = program.load_method("forward").execute([tokens, torch.zeros(1, dtype=torch.long)])
    assert logits.shape == (1, 1, V)


def test_few_delegates(moe_fp32: Artifact, moe_int8: Artifact, moe_int4: Artifact) -> None:
    """Each cut costs time at every token; an expert is a delegate of its own."""
    for artifact in (moe_fp32, moe_int8, moe_int4):
        config = artifact.model.config
        allowed = config.num_hidden_layers * (6 + config.num_experts)
        assert artifact.lowered.settings["delegates"] <= allowed


def test_a_sound_file_has_no_diverging_layer(
    moe_fp32: Artifact, moe_int8: Artifact, moe_int4: Artifact
) -> None:
    for artifact in (moe_fp32, moe_int8, moe_int4):
        assert artifact.diagnose(artifact.model) is None


@pytest.mark.parametrize("layer", [0, 1])
def test_a_changed_layer_of_the_file_is_named(
    moe_fp32: Artifact, tmp_path: Path, layer: int
) -> None:
    weight = moe_fp32.model.model.layers[layer].self_attn.o_proj.weight.detach().numpy()
    data = moe_fp32.path.read_bytes()
    assert data.count(weight.tobytes()) == 1
    broken = tmp_path / "model.pte"
    broken.write_bytes(data.replace(weight.tobytes(), (1.5 * weight).tobytes()))
    assert moe_fp32.diagnose(moe_fp32.model, broken) == f"model.layers.{layer}"


@pytest.mark.parametrize("layer", [0, 1])
def test_a_changed_layer_is_named_in_int8(moe_int8: Artifact, layer: int) -> None:
    changed = copy.deepcopy(moe_int8.model)
    with torch.no_grad():
        changed.model.layers[layer].self_attn.o_proj.weight.mul_(-20)
    assert moe_int8.diagnose(changed) == f"model.layers.{layer}"


def test_a_changed_embedding_is_named(moe_fp32: Artifact) -> None:
    changed = copy.deepcopy(moe_fp32.model)
    with torch.no_grad():
        changed.model.embed_tokens.weight.mul_(2)
    assert moe_fp32.diagnose(changed) == "model.embed_tokens"


def test_a_damaged_file_cannot_be_read(moe_fp32: Artifact, tmp_path: Path) -> None:
    broken = tmp_path / "model.pte"
    broken.write_bytes(moe_fp32.path.read_bytes()[:5000])
    with pytest.raises(InvalidInputError):
        read_pte(broken)


def test_grouped_attention_is_soft_capped_attention() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for heads, groups, length, slots in [(4, 2, 3, 7), (6, 2, 1, 5), (4, 4, 5, 5), (7, 1, 2, 9)]:
        query, key, value = (
            normal(1, heads, length, 8),
            normal(1, slots, groups, 8),
            normal(1, slots, groups, 8),
        )
        mask = torch.arange(slots)[None] <= torch.arange(slots - length, slots)[:, None]
        bias = torch.zeros(length, slots).masked_fill(~mask, -1e4)[None, None]
        output = grouped_attention(query, key, value, bias, 0.3, 1.5)
        for head in range(heads):
            k, v = (x[0, :, head * groups // heads] for x in (key, value))
            scores = 1.5 * torch.tanh(0.3 * query[0, head] @ k.T / 1.5)
            expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
            assert torch.allclose(output[0, :, head], expected, atol=1e-6)


def test_reference_does_not_touch_the_model(tiny_qwen3_moe: nn.Module) -> None:
    before = {name: value.clone() for name, value in tiny_qwen3_moe.state_dict().items()}
    for precision in EXECUTORCH.precisions:
        EXECUTORCH.reference(
            tiny_qwen3_moe, family_of(tiny_qwen3_moe), ExportSpec(Precision(precision), T)
        )
    after = tiny_qwen3_moe.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(isinstance(m, StaticMoE) for m in tiny_qwen3_moe.modules())


@pytest.mark.slow
def test_dense_int8_is_close_to_quantized_eager(dense_int8: Artifact) -> None:
    _assert_close(dense_int8, own_error=0.01)
    assert dense_int8.lowered.weights.share_at_precision >= 0.95
    assert dense_int8.diagnose(dense_int8.model) is None
