"""Which edits of heads, channels and sub-blocks are legal; copies, groups, files."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.models import describe, load, save
from mobilekit.models.families import family_of
from mobilekit.models.lineage import Provenance, provenance, record
from mobilekit.models.modules.uneven import LayerConfig
from mobilekit.models.rewrite import save_cut
from mobilekit.models.stored import open_stored
from mobilekit.models.surgery import check, copy_for, meta_copy, restructure_
from mobilekit.models.tiny import make_tiny
from mobilekit.schema.plan import Edit, KeepEdit, ReplaceEdit

from .narrowed import (
    CLASSES,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    WIDTH,
    channel,
    head,
    kv_head,
    logits,
    narrowed,
    parameters,
    plan_of,
    remove,
    wide,
)

MODELS = cache(wide)


def states(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([head(0, 7, 8)], "keeps head 8 of layer 0, which has 8"),
        ([kv_head(0, 4)], "keeps kv_head 4 of layer 0, which has 4"),
        ([channel(1, 3, WIDTH)], f"keeps channel {WIDTH} of layer 1, which has {WIDTH}"),
        ([head(LAYERS, 0)], f"keeps heads of layer {LAYERS}, which has none"),
        ([head(0, 1), head(0, 1)], "two edits keep heads of layer 0"),
        ([head(0, 1), kv_head(0, 1)], "heads and kv_heads of layer 0, which lie in the same"),
        ([remove("attention", 0), head(0, 1)], "keeps heads of layer 0 and removes its attention"),
        ([kv_head(1, 1), remove("attention", 1)], "kv_heads of layer 1 and removes its attention"),
        ([channel(1, 1), remove("mlp", 1)], "keeps channels of layer 1 and removes its mlp"),
        ([remove("mlp", LAYERS)], f"removes the mlp of layer {LAYERS}, which has none"),
        ([remove("mlp", 1), remove("mlp", 1)], "two edits remove the mlp of layer 1"),
        ([remove("attention", i) for i in range(LAYERS)], "no token would see another"),
        ([remove("block", 0)], "'remove' of block, which is not available for family llama"),
        ([ReplaceEdit(path="model.norm", module="x")], "'replace' of model.norm"),
    ],
)
def test_illegal_edits_are_refused_before_anything_changes(edits: list[Edit], message: str) -> None:
    model = copy.deepcopy(MODELS("llama"))
    with pytest.raises(UsageError) as caught:
        restructure_(model, [channel(0, 1, 2), *edits])
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2
    assert states(model) == states(MODELS("llama"))


def test_edits_of_what_an_earlier_plan_took_are_refused() -> None:
    small = narrowed(
        MODELS("llama"),
        [head(1, 0, 1, 2), remove("attention", 0), remove("mlp", 0), channel(1, 4, 5)],
    )
    for edit, message in (
        (remove("attention", 0), "removes the attention of layer 0, which has none"),
        (remove("mlp", 0), "removes the mlp of layer 0, which has none"),
        (head(0, 1), "keeps heads of layer 0, which has none"),
        (channel(0, 1), "keeps channels of layer 0, which has none"),
        (channel(1, 2), "keeps channel 2 of layer 1, which has 2"),
    ):
        with pytest.raises(UsageError, match=message):
            check(small, [edit])
    with pytest.raises(UsageError) as caught:
        check(small, [kv_head(1, 0)])
    assert "keeps kv_heads of layer 1, which has none" in caught.value.message
    assert "Layers with kv_heads: 2. A layer that lost heads unevenly" in caught.value.hint
    with pytest.raises(UsageError, match="no token would see another"):
        check(small, [remove("attention", 1), remove("attention", 2)])


def test_families_say_what_they_have() -> None:
    with pytest.raises(UnsupportedModelError, match="has no heads") as caught:
        check(make_tiny("olmoe"), [head(0, 0)])
    assert all(name in caught.value.hint for name in ("llama", "phi3", "qwen3_moe"))
    with pytest.raises(UsageError) as refused:
        check(make_tiny("mixtral"), [remove("mlp", 0)])
    assert "'remove' of mlp" in refused.value.message
    assert refused.value.hint == "Available are 'keep', and 'remove' of attention."
    with pytest.raises(UsageError) as refused:
        check(make_tiny("mamba2"), [remove("attention", 0)])
    assert refused.value.hint == "Available are 'keep'."


def test_unknown_tensors_are_refused() -> None:
    model = copy.deepcopy(MODELS("llama"))
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    attention.register_parameter("sinks", nn.Parameter(torch.zeros(HEADS)))
    mlp.register_buffer("scale", torch.ones(WIDTH))
    model.model.layers[1].register_module("extra", nn.Linear(2, 2))
    for edit, message in (
        (head(0, 1), "self_attn has a tensor 'sinks', which is not known"),
        (channel(0, 1), "mlp has a tensor 'scale', which is not known"),
        (remove("mlp", 0), "model.layers.1 has a part 'extra', which is not known"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            check(model, [edit])


def test_a_norm_across_heads_is_refused() -> None:
    model: Any = make_tiny("olmoe")
    from mobilekit.models.families.dense import query_heads

    with pytest.raises(UnsupportedModelError, match="normalizes queries and keys across heads"):
        query_heads(model)


@pytest.mark.parametrize("name", CLASSES)
def test_groups_describe_the_output_projection_and_what_is_shared(name: str) -> None:
    model = MODELS(name)
    family, width = family_of(model), model.config.hidden_size
    shares = {"head": KV_HEADS, "kv_head": 1, "channel": 1}
    sizes = {"head": HEADS, "kv_head": KV_HEADS, "channel": WIDTH}
    bias = int(any("_proj.bias" in key for key in model.state_dict()))
    gate_bias = int(any("mlp" in key and key.endswith("bias") for key in model.state_dict()))
    own = {
        "head": HEAD_DIM * (2 * width + bias),
        "kv_head": 2 * HEAD_DIM * (2 * width + bias) + 2 * HEAD_DIM * 0,
        "channel": 3 * width + 2 * gate_bias,
    }
    own["kv_head"] = 2 * own["head"] + 2 * HEAD_DIM * (width + bias)
    for kind, size in sizes.items():
        groups = family.units(model, kind)
        assert [group.layer for group in groups] == list(range(LAYERS))
        for group in groups:
            assert (group.count, group.minimum, group.shares) == (size, 1, shares[kind])
            (output,) = [piece for piece in group.slices if piece.dim == 1]
            tensor = model.get_submodule(output.module).weight
            assert output.module.endswith(("o_proj", "down_proj"))
            assert tensor.shape[1] == output.width * group.count
            assert group.own_size(model) == own[kind]


def test_cut_tensors_are_new_memory_and_removed_ones_are_not_copied() -> None:
    model = copy.deepcopy(MODELS("phi3")).to(torch.bfloat16).requires_grad_(False)
    edits = [head(1, 0, 1, 2), channel(0, 5, 6), remove("attention", 0), remove("mlp", 2)]
    result: Any = copy_for(model, edits)
    first, last = model.model.layers[0], model.model.layers[2]
    assert result.model.layers[0].self_attn.o_proj.weight is first.self_attn.o_proj.weight
    assert result.model.layers[0].input_layernorm.weight is first.input_layernorm.weight
    assert result.model.layers[2].mlp.down_proj.weight is last.mlp.down_proj.weight
    assert result.model.layers[2].self_attn.o_proj.weight is not last.self_attn.o_proj.weight
    restructure_(result, edits)
    for tensor in result.state_dict().values():
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert not any(parameter.requires_grad for parameter in result.parameters())
    ours = {t.untyped_storage().data_ptr() for t in result.state_dict().values()}
    assert not ours & {t.untyped_storage().data_ptr() for t in model.state_dict().values()}


@pytest.mark.parametrize("name", ["llama-bias", "gemma2", "phi3"])
def test_meta_tensors_get_the_same_shapes_and_sizes(name: str, tmp_path: Path) -> None:
    edits = [head(1, 0, 1, 3), kv_head(2, 1), channel(0, 3, 4), remove("attention", 0)]
    empty = meta_copy(MODELS(name))
    restructure_(empty, edits)
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    full = narrowed(MODELS(name), edits)
    assert states(empty) == states(full)
    assert describe(empty) == describe(full) == describe(save(full, tmp_path / "out"))
    assert describe(full)["parameters"] == parameters(full)
    for (path, one), (_, other) in zip(full.named_modules(), empty.named_modules(), strict=True):
        for attribute in ("in_features", "out_features", "num_key_value_groups"):
            assert getattr(one, attribute, None) == getattr(other, attribute, None), path


def test_a_layer_without_anything_left_reloads(tmp_path: Path) -> None:
    small = narrowed(MODELS("qwen2"), [remove("attention", 1), remove("mlp", 1)])
    assert not any(name.startswith("model.layers.1.") for name in small.state_dict())
    path = save(small, tmp_path / "out")
    assert torch.equal(logits(load(path, device="cpu")), logits(small))
    (path / "plan.json").unlink()
    with pytest.raises(InvalidInputError, match=r"tensors of 2 layers, but config.json asks for 3"):
        load(path, device="cpu")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"op": "keep", "unit": "head", "layer": 1, "indices": [0, 8]}, "keeps head 8 of layer 1"),
        ({"op": "keep", "unit": "head", "layer": 1, "indices": [0]}, "o_proj.weight in"),
        ({"op": "remove", "unit": "mlp", "layer": 1}, "which config.json has no place for"),
        ({"op": "remove", "unit": "attention", "layer": 9}, "removes the attention of layer 9"),
        ({"op": "remove", "unit": "expert", "layer": 1}, "'remove' of expert"),
    ],
)
def test_a_changed_plan_is_refused(edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(narrowed(MODELS("llama"), [head(1, 0, 1, 2)]), tmp_path / "out")
    plans = json.loads((path / "plan.json").read_text())
    plans[0]["edits"] = [edit]
    (path / "plan.json").write_text(json.dumps(plans))
    with pytest.raises(InvalidInputError) as caught:
        load(path, device="cpu")
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2


def test_a_layer_config_reads_its_own_values_and_writes_the_models() -> None:
    shared: Any = MODELS("phi3").config
    view = LayerConfig(shared, num_attention_heads=3)
    assert (view.num_attention_heads, view.hidden_size) == (3, 64)
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = view.no_such_field
    small = narrowed(MODELS("phi3"), [head(0, 0, 1, 2), head(1, 0, 2, 4, 6)])
    copied = copy.deepcopy(small)
    for model in (small, copied):
        configs = [layer.self_attn.config for layer in model.model.layers]
        assert [config.num_attention_heads for config in configs] == [3, 4, HEADS]
        assert configs[0].shared is configs[1].shared is configs[2] is model.config
    copied.model.layers[0].self_attn.config.attention_dropout = 0.25
    assert (copied.config.attention_dropout, small.config.attention_dropout) == (0.25, 0.0)


def _units(edits: list[Edit]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(e.unit, e.layer): e.indices for e in edits if isinstance(e, KeepEdit)}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "edits",
    [
        [head(0, 0, 1, 2, 5), head(1, 0, 2, 4, 6), channel(2, 1, 8), remove("mlp", 1)],
        [kv_head(0, 1, 2), channel(0, *range(50)), remove("attention", 2)],
        [kv_head(i, 0, 3) for i in range(LAYERS)],
    ],
)
def test_files_are_cut_to_what_memory_gives(name: str, edits: list[Edit], tmp_path: Path) -> None:
    source = save(copy.deepcopy(MODELS(name)), tmp_path / "source")
    through_memory = save(narrowed(load(source, device="cpu"), edits), tmp_path / "memory")
    stored = open_stored(source)
    result = copy_for(stored.model, edits)
    restructure_(result, edits)
    record(result, provenance(stored.model).applied(plan_of(edits)))
    path = save_cut(stored, result, _units(edits), tmp_path / "file")
    for file in ("model.safetensors", "config.json", "plan.json"):
        assert (path / file).read_bytes() == (through_memory / file).read_bytes()


def test_what_was_cut_and_then_removed_leaves_the_files_too(tmp_path: Path) -> None:
    source = save(copy.deepcopy(MODELS("gemma3")), tmp_path / "source")
    steps: list[list[Edit]] = [
        [head(0, 0, 1, 2), channel(1, 4, 5, 6), channel(2, 0, 3)],
        [remove("attention", 0), channel(1, 0, 2), remove("mlp", 2)],
    ]
    through_memory = save(narrowed(load(source, device="cpu"), *steps), tmp_path / "memory")
    assert torch.isfinite(logits(load(through_memory, device="cpu"))).all()
    stored = open_stored(source)
    result = stored.model
    for edits in steps:
        result = copy_for(result, edits)
        restructure_(result, edits)
    record(result, narrowed_history(stored.model, steps))
    kept = {**_units(steps[0]), ("channel", 1): (4, 6)}
    path = save_cut(stored, result, kept, tmp_path / "file")
    for file in ("model.safetensors", "config.json", "plan.json"):
        assert (path / file).read_bytes() == (through_memory / file).read_bytes()


def narrowed_history(model: nn.Module, steps: list[list[Edit]]) -> Provenance:
    history = provenance(model)
    for edits in steps:
        history = history.applied(plan_of(edits))
    return history


def test_heads_cut_in_two_ways_cannot_be_traced_on_disk(tmp_path: Path) -> None:
    source = save(copy.deepcopy(MODELS("llama")), tmp_path / "source")
    stored = open_stored(source)
    result = stored.model
    steps: list[list[Edit]] = [[kv_head(0, 1, 2, 3)], [head(0, 0, 2, 4)]]
    for edits in steps:
        result = copy_for(result, edits)
        restructure_(result, edits)
    kept = {**_units(steps[0]), **_units(steps[1])}
    with pytest.raises(UnsupportedModelError, match="cannot be told apart on disk"):
        save_cut(stored, result, kept, tmp_path / "out")
