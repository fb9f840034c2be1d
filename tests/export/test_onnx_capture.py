"""Attention, rotations and norms at capture, against eager transformers and brute force."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from mobilekit.export.backends.base import ExportSpec
from mobilekit.export.backends.onnx import ONNX, norms, rotary
from mobilekit.export.backends.onnx.attention import AttentionRun, group_query_attention
from mobilekit.export.precision import Precision
from torch import Tensor, nn
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen3 import modeling_qwen3

from mobilekit.models.families import family_of
from mobilekit.models.tiny import make_tiny
from mobilekit.runtime.onnx import OnnxRuntime

T, HEADS, KV_HEADS, HEAD_DIM = 24, 4, 2, 16


class _Attention(nn.Module):
    """One attention call, as a model makes it."""

    layer_idx = 0

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, past: list[Tensor], mask: Tensor) -> Any:
        last = (mask.sum(dim=1) - 1).to(torch.int32)
        total = torch.full((), mask.shape[1], dtype=torch.int32)
        rotation = rotary.Rotation(_Bare(), T)
        run = AttentionRun(past, last, total, rotation)
        output, _ = group_query_attention(self, q, k, v, None, run=run, **self.options)
        return output, run.present


class _Bare(nn.Module):
    """A model without rotary modules."""

    config = None


def _session(module: nn.Module, arguments: Any, shapes: Any, path: Path) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            module, arguments, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    program.save(path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _brute_force(q: Any, k: Any, v: Any, scaling: float, window: int | None, cap: float | None):  # type: ignore[no-untyped-def]
    """Attend in float64; q (H, S, Dh) are the last S of the T positions of k, v (Hkv, T, Dh)."""
    out = np.zeros(q.shape)
    length, total = q.shape[1], k.shape[1]
    for head in range(len(q)):
        shared = head * len(k) // len(q)
        for row in range(length):
            position = total - length + row
            first = 0 if window is None else max(0, position - window + 1)
            scores = k[shared, first : position + 1].astype(np.float64) @ q[head, row] * scaling
            if cap is not None:
                scores = cap * np.tanh(scores / cap)
            weights = np.exp(scores - scores.max())
            out[head, row] = weights / weights.sum() @ v[shared, first : position + 1]
    return out


@pytest.mark.parametrize(
    ("scaling", "window", "cap"),
    [(0.25, None, None), (0.1, 5, None), (0.3, None, 2.0), (0.2, 4, 3.0)],
)
def test_attention_scales_caps_and_windows_as_called(
    scaling: float, window: int | None, cap: float | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)

    def states(heads: int, length: int) -> Any:
        return rng.normal(size=(1, heads, length, HEAD_DIM)).astype(np.float32)

    module = _Attention(scaling=scaling, sliding_window=window, softcap=cap)
    seq, held = torch.export.Dim("seq", min=1, max=T), torch.export.Dim("past", min=0, max=T)
    example = (states(HEADS, 3), states(KV_HEADS, 3), states(KV_HEADS, 3))
    tensors = [torch.from_numpy(value) for value in example]
    past = [torch.zeros(1, KV_HEADS, 2, HEAD_DIM)] * 2
    shapes = ({2: seq}, {2: seq}, {2: seq}, [{2: held}] * 2, {1: torch.export.Dim.AUTO})
    mask = torch.ones(1, 5, dtype=torch.long)
    session = _session(module, (*tensors, past, mask), shapes, tmp_path / "a.onnx")
    names = [value.name for value in session.get_inputs()]
    cache = [np.zeros((1, KV_HEADS, 0, HEAD_DIM), dtype=np.float32)] * 2
    for length in (11, 1, 4, 1):
        q, k, v = states(HEADS, length), states(KV_HEADS, length), states(KV_HEADS, length)
        total = cache[0].shape[2] + length
        feeds = (q, k, v, *cache, np.ones((1, total), dtype=np.int64))
        found, *cache = session.run(None, dict(zip(names, feeds, strict=True)))
        expected = _brute_force(q[0], cache[0][0], cache[1][0], scaling, window, cap)
        np.testing.assert_allclose(found[0].swapaxes(0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("module", [modeling_llama, modeling_qwen3, modeling_phi3, modeling_gemma3])
def test_common_rotations_are_recognised(module: Any) -> None:
    assert rotary._rotates_halves(module.apply_rotary_pos_emb)


def test_another_rotation_is_not() -> None:
    def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned = [torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) for x in (q, k)]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + turned[0] * sin, k * cos + turned[1] * sin

    assert not rotary._rotates_halves(interleaved)


@pytest.mark.parametrize(
    ("norm", "gain"),
    [
        (modeling_llama.LlamaRMSNorm, 0.0),
        (modeling_qwen3.Qwen3RMSNorm, 0.0),
        (modeling_gemma3.Gemma3RMSNorm, 1.0),
    ],
)
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_rms_norms_are_recognised_by_what_they_compute(norm: Any, gain: float, eps: float) -> None:
    module = norm(32, eps=eps).requires_grad_(False)
    module.weight.copy_(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    found = norms.recognise(module)
    assert found is not None
    assert found.eps == eps
    torch.testing.assert_close(found.gain, module.weight + gain)


@pytest.mark.parametrize(
    "other", [nn.LayerNorm(32), nn.Linear(4, 4), nn.Embedding(3, 3), nn.SiLU()]
)
def test_nothing_else_is_taken_for_an_rms_norm(other: nn.Module) -> None:
    assert norms.recognise(other.requires_grad_(False)) is None


def test_a_norm_of_its_own_kind_stays(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + self.eps)

    assert norms.recognise(Odd().requires_grad_(False)) is None


def test_tables_hold_what_the_rotary_module_computes() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    )
    module = modeling_llama.LlamaRotaryEmbedding(config)
    tables = rotary.TableRotary(module, (), T)
    ids, probe = torch.tensor([[3, 23, 7]]), torch.zeros(1, 3, 64)
    for found, expected in zip(tables(probe, ids), module(probe, ids), strict=True):
        torch.testing.assert_close(found, expected)
    assert math.prod(tables.cos0.shape) == T * 8


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "phi3"])
def test_half_precision_rounds_what_the_reference_rounds(name: str, tmp_path: Path) -> None:
    """Norms by 1 + weight, tables of a partial rotation, a rotation for each kind of layer."""
    model = make_tiny(name)
    family, spec = family_of(model), ExportSpec(Precision("fp16"), 32)
    (file, *_) = ONNX.lower(model, family, spec, tmp_path).files
    tokens = np.arange(1, 13)
    runtime = OnnxRuntime(tmp_path / file, context_length=32, vocab_size=model.config.vocab_size)
    expected = ONNX.reference(model, family, spec).forward(tokens, 0)
    np.testing.assert_allclose(runtime.forward(tokens, 0), expected, atol=1e-4)
