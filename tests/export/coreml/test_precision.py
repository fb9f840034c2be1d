"""What a half-precision package computes in fp32, and that it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402 - after the skip
from mobilekit.export.backends.base import ExportSpec  # noqa: E402
from mobilekit.export.backends.coreml import COREML  # noqa: E402
from mobilekit.export.backends.coreml.precision import kept_operations  # noqa: E402
from mobilekit.export.precision import Precision  # noqa: E402

from mobilekit.models.families import Family, family_of  # noqa: E402
from mobilekit.models.modules.decoder_program import decoder_program  # noqa: E402
from mobilekit.runtime.coreml import CoreMLRuntime  # noqa: E402
from mobilekit.runtime.mil import load_program  # noqa: E402

CONTEXT = 64
TOKENS = np.random.default_rng(3).integers(0, 256, size=40)
EYE = np.eye(4, dtype=np.float32)


def _kept(build: Any) -> set[str]:
    specs = [mb.TensorSpec(shape=(1, 4)) for _ in range(2)]
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    return {op.name for op in kept_operations(program(build).functions["main"])}


def test_residual_stream_and_norms_stay_in_fp32_between_linears() -> None:
    def build(x: Any, y: Any) -> Any:
        branch = mb.linear(x=y, weight=EYE, name="branch")
        scaled = mb.mul(x=branch, y=np.float32(3), name="scaled_branch")
        hidden = mb.add(x=x, y=scaled, name="residual")
        square = mb.pow(x=hidden, y=np.float32(2), name="square")
        mean = mb.reduce_mean(x=square, axes=[-1], keep_dims=True, name="mean")
        root = mb.rsqrt(x=mb.add(x=mean, y=np.float32(1e-6), name="shifted"), name="root")
        normed = mb.mul(x=hidden, y=root, name="normed")
        weighted = mb.mul(x=normed, y=np.float32(2) * EYE[0], name="weighted")
        return mb.linear(x=weighted, weight=EYE, name="out"), mb.relu(x=hidden, name="next")

    expected = {"scaled_branch", "residual", "square", "mean", "shifted", "root", "normed"}
    assert _kept(build) == expected


def test_soft_cap_stays_in_fp32() -> None:
    def build(x: Any, y: Any) -> Any:
        scores = mb.matmul(x=x, y=y, transpose_y=True, name="scores")
        ratio = mb.mul(x=scores, y=np.float32(0.02), name="ratio")
        capped = mb.mul(x=mb.tanh(x=ratio, name="tanh"), y=np.float32(50), name="capped")
        return mb.softmax(x=capped, name="weights")

    assert _kept(build) == {"ratio", "tanh", "capped"}


def test_decays_of_a_state_space_stay_in_fp32() -> None:
    def build(x: Any, y: Any) -> Any:
        projected = mb.linear(x=x, weight=np.tile(EYE, (2, 1)), name="in_proj")
        dt, gate = mb.split(x=projected, num_splits=2, axis=-1, name="parts")
        dt = mb.softplus(x=mb.add(x=dt, y=EYE[1], name="shifted"), name="dt")
        decay = mb.exp(x=mb.mul(x=dt, y=-EYE[0], name="exponent"), name="decay")
        kept = mb.mul(x=decay, y=y, name="kept_state")
        state = mb.add(x=kept, y=mb.mul(x=dt, y=x, name="new"), name="state")
        read = mb.reduce_sum(x=state, axes=[-1], keep_dims=True, name="read")
        return mb.mul(x=read, y=mb.silu(x=gate, name="silu"), name="gated")

    expected = {"shifted", "dt", "exponent", "decay", "kept_state", "new", "state"}
    assert _kept(build) == expected


@pytest.mark.parametrize("name", ["ernie4_5_moe", "glm4_moe"])
def test_routers_that_correct_their_choice_stay_in_fp32(
    tiny: Any, name: str, tmp_path: Path
) -> None:
    model = tiny(name)
    COREML.lower(model, family_of(model), ExportSpec(Precision("fp16"), CONTEXT), tmp_path)
    for function in load_program(tmp_path / "model.mlpackage").functions.values():
        routers = [
            op.outputs[0].dtype.__name__
            for op in function.operations
            if op.op_type == "linear" and op.outputs[0].shape[-1] == 8  # experts
        ]
        assert routers == ["fp32", "fp32"]
        gathers = [op for op in function.operations if op.op_type == "gather_along_axis"]
        assert [op.outputs[0].dtype.__name__ for op in gathers] == ["fp32", "fp32"]


@pytest.fixture(scope="module")
def loud_gemma(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gemma 2 whose hidden state passes what fp16 can hold, as that of trained ones does."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(1)
    config = Gemma2Config(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        layer_types=["full_attention"] * 2, final_logit_softcapping=5.0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_feedforward_layernorm.weight.fill_(3e4)
    family = Family("gemma2", ("Gemma2ForCausalLM",), task="causal-lm", program=decoder_program)
    spec = ExportSpec(Precision("fp16"), CONTEXT)
    folder = tmp_path_factory.mktemp("gemma")
    COREML.lower(model, family, spec, folder)
    return model, family, spec, folder / "model.mlpackage"


def test_hidden_state_beyond_fp16_is_no_infinity(loud_gemma: Any) -> None:
    model, family, spec, package = loud_gemma
    with torch.no_grad():
        hidden = model(torch.from_numpy(TOKENS)[None], output_hidden_states=True).hidden_states
    assert float(hidden[1].abs().max()) > 65_504
    runtime = CoreMLRuntime(package, context_length=CONTEXT, vocab_size=256)
    reference = COREML.reference(model, family, spec)
    for start, stop in [(0, 37), (37, 38), (38, 40)]:
        found = runtime.forward(TOKENS[start:stop], start)
        expected = reference.forward(TOKENS[start:stop], start)
        # measured 4e-3, on logits up to 2
        np.testing.assert_allclose(found, expected, atol=2e-2)


def test_soft_caps_of_a_package_are_fp32(loud_gemma: Any) -> None:
    for function in load_program(loud_gemma[3]).functions.values():
        caps = [op for op in function.operations if op.op_type == "tanh"]
        assert len(caps) == 3  # two layers' scores, and the logits
        assert {op.outputs[0].dtype.__name__ for op in caps} == {"fp32"}


def test_what_fp16_cannot_hold_is_computed_in_fp32(moe_int8: Any) -> None:
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
