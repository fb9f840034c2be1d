"""Models with fewer heads, channels and sub-blocks against the whole ones with silent units."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mobilekit.core.errors import InvalidInputError
from mobilekit.models import load, save
from mobilekit.models.families import family_of
from mobilekit.models.modules.removed import RemovedAttention, has_attention
from mobilekit.models.modules.uneven import HeadSlots, shared_config
from mobilekit.runtime.torch import TorchRuntime
from mobilekit.schema.plan import Edit

from .narrowed import (
    CLASSES,
    HEAD_DIM,
    HEADS,
    IDS,
    KV_HEADS,
    LAYERS,
    WIDTH,
    channel,
    expected_parameters,
    generated,
    head,
    kv_head,
    logits,
    narrowed,
    parameters,
    remove,
    silenced,
    wide,
)

MODELS = cache(wide)
THIRDS = tuple(range(0, WIDTH, 3))
STEPS: dict[str, list[list[Edit]]] = {
    "even": [[head(0, 1, 2, 4, 7), head(2, 0, 1, 2, 3, 4, 5, 6, 7)]],
    "uneven": [[head(0, 0, 1, 2, 5), head(1, 1, 4, 5, 6, 7), channel(1, *THIRDS)]],
    "one head": [[head(1, 5), channel(1, 7)]],
    "whole": [[kv_head(0, 1, 3), kv_head(2, 2), channel(0, *THIRDS)]],
    "removed": [[remove("attention", 0), remove("mlp", 2)]],
    "one attention left": [[remove("attention", 0), remove("attention", 1), remove("mlp", 1)]],
    "all at once": [
        [
            remove("attention", 0),
            head(1, 0, 1, 3),
            kv_head(2, 0, 3),
            channel(0, *THIRDS),
            remove("mlp", 1),
        ]
    ],
    "one after the other": [
        [head(0, 0, 1, 2, 3, 5), kv_head(1, 0, 2), channel(1, *THIRDS), head(2, 2, 3, 4)],
        [head(0, 0, 2, 4), head(1, 0, 1, 2), channel(1, 1, 2, 30), remove("attention", 2)],
        [head(0, 1, 2), remove("mlp", 1)],
    ],
}


def counts(config: Any) -> list[Any]:
    """Return what a config says of heads and channels."""
    fields = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    return [getattr(config, name, None) for name in fields]


@pytest.fixture(params=STEPS.values(), ids=STEPS.keys())
def steps(request: pytest.FixtureRequest) -> list[list[Edit]]:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CLASSES)
def test_it_computes_what_the_whole_model_does_with_silent_units(
    name: str, steps: list[list[Edit]], tmp_path: Path
) -> None:
    model = MODELS(name)
    small, whole = narrowed(model, *steps), silenced(model, steps)
    found = logits(small)
    torch.testing.assert_close(found, logits(whole), atol=1e-5, rtol=1e-5)
    assert (found - logits(model)).abs().max() > 1e-3
    assert parameters(small) == expected_parameters(model, steps)
    wanted = generated(whole, use_cache=False)
    assert torch.equal(generated(small, use_cache=False), wanted)
    assert torch.equal(generated(small), wanted)
    loaded: Any = load(save(small, tmp_path / "out"), device="cpu")
    assert torch.equal(logits(loaded), found)
    assert torch.equal(generated(loaded), wanted)
    attentions = [one.self_attn for one in loaded.model.layers if has_attention(one)]
    assert all(shared_config(attention) is loaded.config for attention in attentions)
    assert counts(loaded.config) == counts(small.config)
    again = load(save(loaded, tmp_path / "again"), device="cpu")
    assert torch.equal(logits(again), found)


@pytest.mark.parametrize("name", CLASSES)
def test_heads_that_have_keys_to_themselves_take_them_along(name: str, tmp_path: Path) -> None:
    model: Any = wide(name, kv_heads=HEADS)
    steps = [[head(0, 1, 2, 7), head(1, 0, 4)], [head(1, 1), kv_head(0, 0, 1)]]
    small = narrowed(model, *steps)
    kept = [[1, 2], [4], list(range(HEADS))]
    for layer, heads in zip(small.model.layers, kept, strict=True):
        assert layer.self_attn.num_key_value_groups == 1
        assert layer.self_attn.o_proj.in_features == len(heads) * HEAD_DIM
    (group, *_) = family_of(small).units(small, "head")
    assert group.shares == 1
    lost = 6 + 7
    biased = any(
        "_proj.bias" in name for name, _ in small.model.layers[0].self_attn.named_parameters()
    )
    per_head = HEAD_DIM * (4 * 64 + 3 * biased)
    assert parameters(model) - parameters(small) == lost * per_head
    whole = silenced(model, steps, kv_heads=HEADS)
    torch.testing.assert_close(logits(small), logits(whole), atol=1e-5, rtol=1e-5)
    assert torch.equal(generated(small), generated(whole, use_cache=False))
    loaded = load(save(small, tmp_path / "out"), device="cpu")
    assert torch.equal(logits(loaded), logits(small))


@pytest.mark.parametrize("name", CLASSES)
def test_keeping_everything_changes_no_bit(name: str) -> None:
    model = MODELS(name)
    everything: list[Edit] = []
    for layer in range(LAYERS):
        everything += [head(layer, *range(HEADS)), channel(layer, *range(WIDTH))]
    small = narrowed(model, everything, [kv_head(i, *range(KV_HEADS)) for i in range(LAYERS)])
    assert torch.equal(logits(small), logits(model))
    assert counts(small.config) == counts(model.config)
    assert {k: v.shape for k, v in small.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


ALIKE: dict[str, list[Edit]] = {
    "even": [head(i, 0 + i % 2, 2, 5, 6) for i in range(LAYERS)],
    "whole": [kv_head(i, 0, 3) for i in range(LAYERS)],
    "one group": [kv_head(i, i) for i in range(LAYERS)],
    "channels": [channel(i, *range(i, WIDTH, 3)) for i in range(LAYERS)],
}


@pytest.mark.parametrize("edits", ALIKE.values(), ids=ALIKE.keys())
@pytest.mark.parametrize("name", CLASSES)
def test_plain_transformers_reloads_what_is_alike_in_all_layers(
    name: str, edits: list[Edit], tmp_path: Path
) -> None:
    small = narrowed(MODELS(name), edits)
    path = save(small, tmp_path / "out")
    stock: Any = AutoModelForCausalLM.from_pretrained(path)
    assert type(stock) is type(MODELS(name))
    assert torch.equal(logits(stock), logits(small))
    stock.generation_config = small.generation_config
    assert torch.equal(generated(stock), generated(small))
    assert torch.equal(logits(load(path, device="cpu")), logits(small))
    # and on from there, in a way that no config can say
    smaller = narrowed(load(path, device="cpu"), [head(1, 0), remove("attention", 0)])
    assert torch.equal(logits(load(save(smaller, tmp_path / "b"), device="cpu")), logits(smaller))


def test_layers_that_are_alike_once_another_is_gone_are_in_the_config(tmp_path: Path) -> None:
    cut = [head(1, 0, 2, 4, 6), head(2, 1, 3, 5, 7), channel(0, 1, 2), channel(2, 5, 6)]
    small = narrowed(MODELS("qwen2"), cut, [remove("attention", 0), remove("mlp", 1)])
    assert counts(small.config) == [4, KV_HEADS, HEAD_DIM, 2]
    loaded = load(save(small, tmp_path / "out"), device="cpu")
    assert torch.equal(logits(loaded), logits(small))
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": WIDTH}))
    with pytest.raises(InvalidInputError, match=r"leave 2 channels .* config.json asks for 96"):
        load(tmp_path / "out", device="cpu")


def test_a_config_that_the_class_refuses_stays_as_it_was(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """Three heads do not divide 64; long rotary factors are checked against another head size."""
    thirds = [kv_head(i, 0, 1, 3) for i in range(LAYERS)]
    halves = [head(i, 0, 3) for i in range(2)]
    for model, edits in ((MODELS("gemma3"), thirds), (tiny("phi3-longrope"), halves)):
        small = narrowed(model, edits)
        assert counts(small.config) == counts(model.config)
        loaded = load(save(small, tmp_path / type(model).__name__), device="cpu")
        assert torch.equal(logits(loaded), logits(small))
        further = narrowed(loaded, [channel(0, 3, 4)])
        again = load(save(further, tmp_path / f"{type(model).__name__}2"), device="cpu")
        assert torch.equal(logits(again), logits(further))


def test_a_layer_that_is_even_again_is_stock_again() -> None:
    small = narrowed(MODELS("qwen3"), [head(1, 0, 1, 2, 5, 7)])
    attention = small.model.layers[1].self_attn
    assert isinstance(attention.head_slots, HeadSlots)
    assert attention.head_slots.kv_index == (0, 0, 1, 2, 3)
    assert small.model.layers[0].self_attn.config is small.config
    group = family_of(small).units(small, "head")[1]
    assert (group.count, group.shares) == (5, 0)
    assert [g.layer for g in family_of(small).units(small, "kv_head")] == [0, 2]
    even = narrowed(small, [head(1, 1, 2, 3, 4)])
    attention = even.model.layers[1].self_attn
    assert not hasattr(attention, "head_slots")
    assert attention.config is even.config
    assert attention.num_key_value_groups == 1
    once = narrowed(MODELS("qwen3"), [head(1, 1, 2, 5, 7)])
    assert torch.equal(logits(even), logits(once))


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_every_attention_function_works_on_uneven_heads(name: str) -> None:
    model = MODELS(name)
    steps: list[list[Edit]] = [[head(0, 0, 1, 2, 5), head(2, 6, 7)]]
    small, whole = narrowed(model, *steps), silenced(model, steps)
    for function in ["eager", *(["sdpa"] if model._supports_sdpa else [])]:
        small.set_attn_implementation(function)
        whole.set_attn_implementation(function)
        torch.testing.assert_close(logits(small), logits(whole), atol=1e-5, rtol=1e-5)
        assert small.model.layers[0].self_attn.config.shared is small.config
    small.set_attn_implementation("eager")
    with torch.no_grad():
        weights = small(IDS, output_attentions=True).attentions
    assert [w.shape[1] for w in weights] == [4, 8, 2]
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(1, 4, IDS.shape[1]))


def test_gradients_flow_past_what_is_gone_and_through_uneven_heads() -> None:
    small = narrowed(
        MODELS("llama-bias"), [remove("attention", 0), head(1, 0, 1, 3), remove("mlp", 2)]
    )
    whole = silenced(
        MODELS("llama-bias"), [[remove("attention", 0), head(1, 0, 1, 3), remove("mlp", 2)]]
    )
    for model in (small, whole):
        model.train()
        model(IDS, labels=IDS).loss.backward()
    found, wanted = small.model.embed_tokens.weight.grad, whole.model.embed_tokens.weight.grad
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert all(
        p.grad is not None and bool(p.grad.any()) for p in small.model.layers[1].parameters()
    )


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
def test_it_compiles_to_one_graph(name: str) -> None:
    edits: list[Edit] = [remove("attention", 0), head(1, 0, 1, 3), remove("mlp", 2)]
    small = narrowed(MODELS(name), edits)
    compiled: Any = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(small), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2-window", "gemma2", "gemma3"])
@pytest.mark.parametrize("gone", [(0,), (0, 1), (0, 2), (1, 2)])
def test_lengths_stay_true_in_every_cache(name: str, gone: tuple[int, ...]) -> None:
    edits = [remove("attention", layer) for layer in gone]
    small = narrowed(MODELS(name), edits)
    wanted = generated(small, use_cache=False)
    assert torch.equal(generated(small), wanted)
    static = generated(small, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, wanted)
    beams = {"num_beams": 3, "length_penalty": 0.5}
    assert torch.equal(generated(small, **beams), generated(small, use_cache=False, **beams))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS[:, :-4]], dim=1)
    mask = (torch.arange(IDS.shape[1])[None] >= 4).long()
    both = torch.cat([padded, IDS]), torch.cat([mask, torch.ones_like(mask)])
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": both[1]}
    cached = small.generate(both[0], use_cache=True, **options)
    assert torch.equal(cached, small.generate(both[0], use_cache=False, **options))


def test_the_torch_runtime_goes_on_and_back(tiny: Callable[[str], Any]) -> None:
    small = narrowed(tiny("gemma2"), [remove("attention", 0), head(1, 0, 1, 3)])
    runtime, tokens, wanted = TorchRuntime(small), IDS[0].numpy(), logits(small)[0]
    runtime.forward(tokens[:13], 0)
    for start, end in ((13, 20), (4, 9), (9, 20)):
        found = torch.from_numpy(runtime.forward(tokens[start:end], start))
        torch.testing.assert_close(found, wanted[end - 1], atol=2e-5, rtol=1e-4)


MOE = ["mixtral", "qwen2_moe", "qwen3_moe", "granite_moe", "ernie4_5_moe", "glm4_moe"]


@pytest.mark.parametrize("name", MOE)
def test_attention_of_expert_models_is_cut_alike(
    name: str, tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny(name))
    model.set_experts_implementation("eager")
    model.generation_config.eos_token_id = None
    last = len(model.model.layers) - 1
    small = narrowed(model, [remove("attention", 0), head(last, 0, 1, 3)])
    whole: Any = copy.deepcopy(model)
    with torch.no_grad():
        whole.model.layers[0].self_attn.o_proj.weight.zero_()
        whole.model.layers[last].self_attn.o_proj.weight[:, 32:48] = 0
    torch.testing.assert_close(logits(small), logits(whole), atol=1e-5, rtol=1e-5)
    assert torch.equal(generated(small), generated(whole, use_cache=False))
    assert isinstance(small.model.layers[0].self_attn, RemovedAttention)
    loaded = load(save(small, tmp_path / "out"), device="cpu")
    assert torch.equal(logits(loaded), logits(small))
    alike = narrowed(model, [kv_head(i, 1) for i in range(last + 1)])
    stock: Any = AutoModelForCausalLM.from_pretrained(save(alike, tmp_path / "alike"))
    stock.set_experts_implementation("eager")
    state = alike.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in stock.state_dict().items())
    torch.testing.assert_close(logits(stock), logits(alike), atol=1e-6, rtol=1e-6)
