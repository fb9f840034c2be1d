import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mobilekit.core.errors import UnsupportedModelError, UsageError
from mobilekit.models import load, save
from mobilekit.models.families import family_of
from mobilekit.models.lineage import Provenance, record
from mobilekit.models.surgery import (
    check,
    copy_for,
    meta_copy,
    replay_,
    restructure_,
)
from mobilekit.schema.plan import Edit, KeepEdit, Plan, RemoveEdit, ReplaceEdit, read_plans

IDS = torch.arange(5, 25)[None]


def keep(layer: int, *indices: int, unit: str = "expert") -> KeepEdit:
    return KeepEdit(unit=unit, layer=layer, indices=indices)


def plan_of(*edits: Edit) -> Plan:
    return Plan(
        schema="mobilekit.plan/1",
        method="aimer",
        method_version=1,
        config={},
        seed=0,
        parent=None,
        edits=edits,
    )


def cut(model: nn.Module, *plans: Plan) -> nn.Module:
    """Carry out plans one after the other on a copy, and note them."""
    result = copy.deepcopy(model)
    for plan in plans:
        restructure_(result, plan.edits)
    record(result, Provenance(plans=plans))
    return result


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def expected_state(model: nn.Module, kept: dict[int, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Cut by plain indexing of the state dict: the oracle."""
    state = dict(model.state_dict())
    for layer, indices in kept.items():
        for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
            key = f"model.layers.{layer}.mlp.{name}"
            state[key] = state[key][list(indices)]
    return state


def equal_states(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_keep_cuts_experts_router_counters_and_config(tiny_qwen3_moe: Any) -> None:
    result: Any = cut(tiny_qwen3_moe, plan_of(keep(0, 0, 2, 5), keep(1, 1, 3, 7)))
    expected = expected_state(tiny_qwen3_moe, {0: (0, 2, 5), 1: (1, 3, 7)})
    assert equal_states(result.state_dict(), expected)
    assert result.config.num_experts == result.num_experts == 3
    assert result.config.to_dict()["num_local_experts"] == 3
    for layer in result.model.layers:
        assert layer.mlp.experts.num_experts == layer.mlp.gate.num_experts == 3
        assert layer.mlp.gate.top_k == 2
    assert torch.isfinite(logits(result)).all()


def test_layers_of_different_sizes_leave_the_config_alone(tiny_qwen3_moe: Any) -> None:
    result: Any = cut(tiny_qwen3_moe, plan_of(keep(1, 1, 3, 7)))
    assert result.config.num_experts == 8
    assert result.model.layers[0].mlp.experts.num_experts == 8
    assert result.model.layers[1].mlp.experts.num_experts == 3


def test_cut_tensors_are_new_memory_with_the_same_flags(tiny_qwen3_moe: nn.Module) -> None:
    model: Any = copy.deepcopy(tiny_qwen3_moe).to(torch.bfloat16).requires_grad_(False)
    before = model.model.layers[0].mlp.experts.gate_up_proj
    result: Any = copy_for(model, [keep(0, 0, 1)])
    restructure_(result, [keep(0, 0, 1)])
    after = result.model.layers[0].mlp.experts.gate_up_proj
    assert after.dtype == torch.bfloat16
    assert not after.requires_grad
    assert isinstance(after, nn.Parameter)
    assert after.is_contiguous()
    assert after.untyped_storage().nbytes() == after.numel() * 2
    assert before.shape[0] == 8
    ours = {t.untyped_storage().data_ptr() for t in result.state_dict().values()}
    theirs = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert not ours & theirs


def test_copy_for_keeps_ties_and_shares_only_what_will_be_cut(tiny_qwen3_moe: Any) -> None:
    result: Any = copy_for(tiny_qwen3_moe, [keep(0, 0, 1), keep(1, *range(8))])
    assert result.lm_head.weight is result.model.embed_tokens.weight
    first, second = (layer.mlp.experts.down_proj for layer in result.model.layers)
    assert first is tiny_qwen3_moe.model.layers[0].mlp.experts.down_proj
    assert second is not tiny_qwen3_moe.model.layers[1].mlp.experts.down_proj


def test_meta_tensors_get_the_same_shapes(tiny_qwen3_moe: Any) -> None:
    edits = [keep(0, 0, 2, 5), keep(1, 1, 3)]
    empty = meta_copy(tiny_qwen3_moe)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    restructure_(empty, edits)
    full = cut(tiny_qwen3_moe, plan_of(*edits))
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert {k: (v.shape, v.dtype) for k, v in empty.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in full.state_dict().items()
    }


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([keep(0, 7, 8)], "keeps expert 8 of layer 0, which has 8"),
        ([keep(0, 3)], "keeps 1 experts of layer 0, which needs 2"),
        ([keep(2, 0, 1)], "layer 2, which has none"),
        ([keep(0, 0, 1), keep(0, 0, 1)], "two edits keep experts of layer 0"),
        ([RemoveEdit(unit="block", layer=0)], "'remove' of block"),
        ([ReplaceEdit(path="model.norm", module="x")], "'replace' of model.norm"),
    ],
)
def test_illegal_edits_are_refused_before_anything_changes(
    tiny_qwen3_moe: nn.Module, edits: list[Edit], message: str
) -> None:
    model = copy.deepcopy(tiny_qwen3_moe)
    with pytest.raises(UsageError) as caught:
        restructure_(model, [keep(1, 0, 1), *edits])
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2
    assert equal_states(model.state_dict(), tiny_qwen3_moe.state_dict())


def test_units_that_the_family_lacks(tiny_qwen3: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match="qwen3_moe"):
        check(tiny_qwen3, [keep(0, 0, 1)])


def subset(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Any legal keep set of a layer with ``count`` experts and top-2 routing."""
    sets = st.sets(st.integers(0, count - 1), min_size=2)
    return sets.map(lambda chosen: tuple(sorted(chosen)))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.tuples(subset(8), subset(8)))
def test_any_legal_keep_set_goes_through_json_surgery_and_disk(
    tiny_qwen3_moe: nn.Module,
    tmp_path_factory: pytest.TempPathFactory,
    chosen: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    folder = tmp_path_factory.mktemp("any")
    plan = plan_of(*(keep(layer, *indices) for layer, indices in enumerate(chosen)))
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    assert read_plans(folder / "plan.json") == [plan]
    result = cut(tiny_qwen3_moe, *read_plans(folder / "plan.json"))
    expected = expected_state(tiny_qwen3_moe, dict(enumerate(chosen)))
    assert equal_states(result.state_dict(), expected)
    loaded = load(save(result, folder / "out"), device="cpu")
    assert equal_states(loaded.state_dict(), expected)
    assert torch.equal(logits(loaded), logits(result))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_sequence_of_plans_reloads(
    tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    counts, plans = {0: 8, 1: 8}, []
    for _ in range(data.draw(st.integers(1, 3))):
        edits = []
        for layer in data.draw(st.sampled_from([(0,), (1,), (0, 1)])):
            edits.append(keep(layer, *data.draw(subset(counts[layer]))))
            counts[layer] = len(edits[-1].indices)
        plans.append(plan_of(*edits))
    result: Any = cut(tiny_qwen3_moe, *plans)
    loaded: Any = load(save(result, tmp_path_factory.mktemp("seq") / "out"), device="cpu")
    assert equal_states(loaded.state_dict(), result.state_dict())
    assert torch.equal(logits(loaded), logits(result))
    assert loaded.config.num_experts == result.config.num_experts
    if counts[0] == counts[1]:
        assert loaded.config.num_experts == counts[0]


def test_replay_leaves_out_what_the_config_already_says(tiny_qwen3_moe: Any) -> None:
    uniform, later = plan_of(keep(0, 1, 2, 6, 7), keep(1, 0, 4, 5, 7)), plan_of(keep(1, 2, 3))
    model: Any = cut(tiny_qwen3_moe, uniform)
    fresh: Any = type(model)(model.config)  # as built from the saved config: 4 experts a layer
    replay_(fresh, [uniform, later])
    assert [layer.mlp.gate.weight.shape[0] for layer in fresh.model.layers] == [4, 2]


def test_reload_of_a_cut_model_forgets_nothing(tiny_qwen3_moe: nn.Module, tmp_path: Path) -> None:
    plans = (plan_of(keep(0, 0, 1, 2)), plan_of(keep(0, 1, 2), keep(1, 3, 4)))
    loaded = load(save(cut(tiny_qwen3_moe, *plans), tmp_path / "out"), device="cpu")
    again = load(save(loaded, tmp_path / "again"), device="cpu")
    assert read_plans(tmp_path / "again" / "plan.json") == list(plans)
    assert equal_states(again.state_dict(), loaded.state_dict())


def test_state_space_heads_are_cut_out_of_every_fused_tensor(tiny: Any, tmp_path: Path) -> None:
    """A cut model equals the whole one whose heads are silent, but for the norm's divisor."""
    config = copy.deepcopy(tiny("mamba2").config)
    config.n_groups = 1
    torch.manual_seed(4)
    whole: Any = type(tiny("mamba2"))(config).eval()
    whole.backbone.layers[0].mixer.norm.variance_epsilon = 0.0  # so that its divisor is a factor
    heads = [group.count for group in family_of(whole).units(whole, "ssm")]
    kept = [0, heads[0] - 1]
    small: Any = cut(whole, plan_of(keep(0, *kept, unit="ssm")))
    mixer = whole.backbone.layers[0].mixer
    dim, inner = mixer.head_dim, mixer.intermediate_size
    silent = [h * dim + i for h in range(heads[0]) if h not in kept for i in range(dim)]
    with torch.no_grad():
        mixer.in_proj.weight[[inner + i for i in silent]] = 0.0
        mixer.conv1d.weight[silent] = 0.0
        mixer.conv1d.bias[silent] = 0.0
        mixer.out_proj.weight *= (len(kept) / heads[0]) ** 0.5
    torch.testing.assert_close(logits(small), logits(whole), atol=1e-4, rtol=1e-4)
    loaded: Any = load(save(small, tmp_path / "out"), device="cpu")
    assert equal_states(loaded.state_dict(), small.state_dict())
    assert logits(loaded).isfinite().all()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_keep_set_of_grouped_experts_is_equal_in_each_group_or_refused(
    tiny: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Two groups of four, of which each must keep two."""
    model: Any = tiny("glm4_moe")
    size = data.draw(st.sampled_from([2, 3, 4]))
    part = st.sets(st.integers(0, 3), min_size=size, max_size=size)
    equal = st.tuples(part, part).map(lambda two: (*sorted(two[0]), *sorted(4 + i for i in two[1])))
    any_set = subset(8).filter(lambda kept: len(kept) > 3)
    chosen = {layer: data.draw(st.one_of(equal, equal, any_set)) for layer in (1, 2)}
    plan = plan_of(*(keep(layer, *indices) for layer, indices in chosen.items()))
    firsts = {layer: sum(i < 4 for i in indices) for layer, indices in chosen.items()}
    if any(2 * first != len(chosen[layer]) for layer, first in firsts.items()):
        with pytest.raises(UsageError, match="experts of the 2 groups of layer"):
            check(model, plan.edits)
        return
    result: Any = cut(model, plan)
    expected = expected_state(model, chosen)
    for layer, indices in chosen.items():
        key = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
        expected[key] = expected[key][list(indices)]
    assert equal_states(result.state_dict(), expected)
    loaded = load(save(result, tmp_path_factory.mktemp("grouped") / "out"), device="cpu")
    assert equal_states(loaded.state_dict(), expected)
    result.set_experts_implementation("eager")
    assert torch.equal(logits(loaded), logits(result))
