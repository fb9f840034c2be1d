"""Many prompts on a torch checkpoint: whatever the batches, each prompt is as if it were alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mobilekit.models.tiny import TINY
from mobilekit.runtime.base import Tokens
from mobilekit.runtime.batches import batched_logits
from mobilekit.runtime.packed import is_packable
from mobilekit.runtime.prompts import prompt_logits
from mobilekit.runtime.torch import TorchRuntime

V = 256
Lengths = list[tuple[int, int, int]]


def prompts_of(lengths: Lengths, *, seed: int = 0) -> list[Tokens]:
    """Give a prompt for each (head, tokens shared with it, tokens of its own)."""
    rng = np.random.default_rng(seed)
    heads = rng.integers(1, V, (3, 40))
    own = [rng.integers(1, V, new) for _, _, new in lengths]
    pairs = zip(lengths, own, strict=True)
    return [np.concatenate([heads[head, :shared], tail]) for (head, shared, _), tail in pairs]


# windows of the tiny models are 5, the rotary switch of one is at 64, the context is 128
MIXED: Lengths = [(0, 21, 43), (0, 21, 43), (0, 21, 44), (1, 40, 70), (1, 37, 88), (2, 0, 1)]
MIXED += [(0, 7, 1), (0, 8, 2), (0, 40, 3), (1, 3, 5), (2, 13, 31), (2, 14, 60), (1, 40, 1)]


def alone(model: nn.Module, prompts: list[Tokens]) -> list[Any]:
    runtime = TorchRuntime(model, 256)
    return [runtime.forward(tokens, 0) for tokens in prompts]


@pytest.mark.parametrize("max_tokens", [1, 50, 4096])
def test_logits_are_those_of_one_by_one(tiny_model: nn.Module, max_tokens: int) -> None:
    prompts = prompts_of(MIXED)
    prompts += [prompts[3], prompts[3][:17]]
    found = dict(batched_logits(tiny_model, prompts, max_tokens=max_tokens, max_prompts=4))
    assert sorted(found) == list(range(len(prompts)))
    for index, expected in enumerate(alone(tiny_model, prompts)):
        assert found[index].dtype == np.float32
        np.testing.assert_allclose(found[index], expected, atol=1e-4)
        assert np.argmax(found[index]) == np.argmax(expected)


def test_every_decoder_is_packed_and_mamba_is_not(tiny_name: str, tiny_model: nn.Module) -> None:
    assert is_packable(tiny_model) == (tiny_name != "mamba2")


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 60)), max_size=9
    ),
    max_tokens=st.integers(1, 300),
    max_prompts=st.integers(1, 5),
)
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mamba2"])
def test_any_prompts_in_any_batches(
    name: str, lengths: Lengths, max_tokens: int, max_prompts: int
) -> None:
    model = MODELS(name)
    prompts = prompts_of(lengths, seed=1)
    limits = {"max_tokens": max_tokens, "max_prompts": max_prompts}
    found = dict(batched_logits(model, prompts, **limits))
    assert len(found) == len(prompts)
    for index, expected in enumerate(alone(model, prompts)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4)


MODELS: Callable[[str], nn.Module]


@pytest.fixture(autouse=True)
def _share(tiny: Callable[[str], nn.Module]) -> None:
    global MODELS  # noqa: PLW0603 - hypothesis does not mix with fixtures of a wider scope
    MODELS = tiny


_MOE: dict[str, Any] = {**TINY, "intermediate_size": 96, "num_experts_per_tok": 2}
_LATENT = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
# attention with more to it than the families' so far
FURTHER: dict[str, dict[str, Any]] = {
    "GptOss": {**_MOE, "num_local_experts": 4, "sliding_window": 7},  # sinks
    "DeepseekV3": {**_MOE, **_LATENT},  # values narrower than keys
}


@pytest.mark.parametrize("name", FURTHER)
def test_sinks_and_latent_keys_reach_the_models_own_attention(name: str) -> None:
    cls = getattr(transformers, f"{name}ForCausalLM")
    settings = {key: value for key, value in FURTHER[name].items() if key != "tie_word_embeddings"}
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert is_packable(model)
    prompts = prompts_of(MIXED[:9])
    found = dict(batched_logits(model, prompts, max_tokens=150))
    for index, tokens in enumerate(prompts):
        with torch.inference_mode():
            expected = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits
        np.testing.assert_allclose(found[index], expected[0, -1].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mamba2"])
def test_half_precision_is_no_less_exact_than_one_by_one(
    tiny: Callable[[str], nn.Module], name: str
) -> None:
    half = copy.deepcopy(tiny(name)).bfloat16()
    prompts = prompts_of(MIXED)
    exact = np.stack(alone(copy.deepcopy(half).float(), prompts))
    batched = dict(batched_logits(half, prompts))
    errors = np.abs(np.stack([batched[i] for i in range(len(prompts))]) - exact)
    usual = np.abs(np.stack(alone(half, prompts)) - exact)
    assert errors.mean() < 1.5 * usual.mean()
    assert errors.max() < 2 * usual.max()


def counted(model: nn.Module) -> tuple[list[tuple[int, ...]], Any]:
    """Record the shape of what goes into the head; returns the record and the hook."""
    seen: list[tuple[int, ...]] = []
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return seen, head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))


@pytest.mark.parametrize("name", ["qwen3", "mamba2"])
def test_only_last_positions_reach_the_head(tiny: Callable[[str], nn.Module], name: str) -> None:
    model, prompts = copy.deepcopy(tiny(name)), prompts_of(MIXED)
    seen, _ = counted(model)
    list(batched_logits(model, prompts))
    distinct = {tokens.tobytes() for tokens in prompts}
    assert sum(shape[0] * shape[1] for shape in seen) == len(distinct)


def test_shared_tokens_are_computed_once_over_all_passes(tiny_qwen3: nn.Module) -> None:
    model, prompts = copy.deepcopy(tiny_qwen3), prompts_of(MIXED)
    tokens: list[int] = []
    body: Any = model.get_submodule("model.layers.0.mlp")
    body.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[1]))
    list(batched_logits(model, prompts, max_tokens=60))
    nodes = {p[:end].tobytes() for p in prompts for end in range(1, len(p) + 1)}
    assert len(tokens) > 3
    assert sum(tokens) == len(nodes)


def test_the_runtime_is_batched_and_its_cache_untouched(tiny_qwen3: nn.Module) -> None:
    model = copy.deepcopy(tiny_qwen3)
    runtime, before = TorchRuntime(model, 128), model.config._attn_implementation  # type: ignore[union-attr]
    tokens = np.arange(1, 9)
    runtime.forward(tokens[:5], 0)
    assert len(dict(prompt_logits(runtime, [[3, 4], [3, 4, 5]]))) == 2
    assert model.config._attn_implementation == before  # type: ignore[union-attr]
    after = runtime.forward(tokens[5:], 5)
    np.testing.assert_allclose(after, TorchRuntime(model).forward(tokens, 0), atol=1e-5)


def test_attention_is_put_back_after_a_pass_that_failed(tiny_qwen3: nn.Module) -> None:
    model: Any = copy.deepcopy(tiny_qwen3)
    before = model.config._attn_implementation
    model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(batched_logits(model, prompts_of(MIXED)))
    assert model.config._attn_implementation == before


def test_a_model_whose_frequencies_follow_the_length_keeps_lengths_apart() -> None:
    settings: dict[str, Any] = {**TINY, "intermediate_size": 96, "max_position_embeddings": 32}
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**settings, rope_parameters=rope)).eval()
    prompts = prompts_of([(0, 10, 60), (0, 12, 58), (0, 10, 30), (0, 5, 5), (1, 40, 40)])
    found = dict(batched_logits(model, prompts))
    for index, tokens in enumerate(prompts):
        runtime = TorchRuntime(model, 256)
        runtime.forward(np.array([1]), 0)  # forgets the frequencies of the prompt before
        np.testing.assert_allclose(found[index], runtime.forward(tokens, 0), atol=1e-4)


def test_no_prompts_give_no_answers(tiny_qwen3: nn.Module) -> None:
    assert list(prompt_logits(TorchRuntime(tiny_qwen3), [])) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_answers_of_the_processor(tiny_qwen3: nn.Module) -> None:
    prompts = prompts_of(MIXED)
    model = copy.deepcopy(tiny_qwen3).cuda()
    found = dict(batched_logits(model, prompts))
    for index, expected in enumerate(alone(tiny_qwen3, prompts)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4)
