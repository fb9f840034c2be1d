"""The variants of aimer that look at data, from settings to plan; the maths is tested beside it."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mobilekit as mk
from mobilekit.compress.aimer.config import VARIANTS, AimerConfig, data_variants
from mobilekit.compress.aimer.routing import expert_statistics
from mobilekit.compress.aimer.selection import choose_in_parts
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.models.families import family_for_class, family_of
from mobilekit.models.surgery import meta_copy
from mobilekit.models.tiny import TINY_MODELS
from mobilekit.schema.plan import KeepEdit, Plan

DATA = torch.arange(3, 195).reshape(8, 24)
CALIBRATED = data_variants()


def kept_by_layer(plan: Plan) -> dict[int, tuple[int, ...]]:
    return {edit.layer: edit.indices for edit in plan.edits if isinstance(edit, KeepEdit)}


@pytest.fixture(scope="module")
def exact_moe(lively_moe: nn.Module) -> nn.Module:
    """The lively MoE in float64, where the batch size changes nothing that a score shows."""
    model: Any = copy.deepcopy(lively_moe).double()
    model.set_experts_implementation("eager")
    return model  # type: ignore[no-any-return]


@pytest.fixture
def on_disk(lively_moe: nn.Module, byte_tokenizer: Path, tmp_path: Path) -> nn.Module:
    path = mk.save(copy.deepcopy(lively_moe), tmp_path / "model")
    shutil.copytree(byte_tokenizer, path, dirs_exist_ok=True)
    return mk.load(path, device="cpu")


@pytest.mark.parametrize("variant", CALIBRATED)
def test_the_experts_of_the_largest_importance_stay(exact_moe: nn.Module, variant: Any) -> None:
    plan = mk.plan(exact_moe, "aimer", variant=variant, sparsity=0.5, data=DATA)
    groups = family_of(exact_moe).units(exact_moe, "expert")
    statistics = expert_statistics(exact_moe, groups, [DATA], outputs=True)
    assert plan.scores["criterion"] == variant
    assert plan.scores["larger_is"] == "important"
    for record, found in zip(plan.scores["layers"], statistics, strict=True):
        expected = found.importance(variant).tolist()
        assert record["scores"] == pytest.approx(expected, rel=1e-9)
        ranked = sorted(range(8), key=lambda i: (expected[i], i))
        assert record["pruned"] == sorted(ranked[:4])
        assert kept_by_layer(plan)[record["layer"]] == tuple(sorted(ranked[4:]))


def test_criteria_are_not_all_the_same(exact_moe: nn.Module) -> None:
    plans = {
        variant: mk.plan(exact_moe, "aimer", variant=variant, sparsity=0.5, data=DATA)
        for variant in CALIBRATED
    }
    assert len({json.dumps(plan.scores["layers"]) for plan in plans.values()}) == len(CALIBRATED)


@pytest.mark.parametrize("variant", CALIBRATED)
def test_batch_size_changes_no_score(exact_moe: nn.Module, variant: str) -> None:
    plans = [
        mk.plan(exact_moe, "aimer", variant=variant, data=DATA, calibration_batch_size=size)
        for size in (1, 3, 8)
    ]
    assert plans[0].scores == plans[1].scores == plans[2].scores
    assert plans[0].edits == plans[1].edits == plans[2].edits


@pytest.mark.parametrize("variant", CALIBRATED)
def test_experts_that_get_all_tokens_stay(lively_moe: Any, variant: str) -> None:
    model = copy.deepcopy(lively_moe)
    for layer in model.model.layers:
        layer.mlp.gate.top_k = 1
        weight = layer.mlp.gate.weight.data.fill_(0.0)
        weight[2] = 3 * torch.randn(64, generator=torch.Generator().manual_seed(4))
        weight[5] = -weight[2]  # whatever a token is, one of the two is above all others
    plan = mk.plan(model, "aimer", variant=variant, sparsity=0.75, data=DATA)
    assert set(kept_by_layer(plan).values()) == {(2, 5)}
    for layer, warning in enumerate(plan.warnings):
        assert warning == (
            f"layer {layer}: no calibration token was routed to experts [0, 1, 3, 4, 6, 7], "
            "which score 0"
        )
    scores = plan.scores["layers"][1]["scores"]
    assert [scores[i] for i in (0, 1, 3, 4, 6, 7)] == [0.0] * 6


@pytest.mark.parametrize("variant", ["ean", "reap", "man", "msan"])
def test_experts_with_the_largest_outputs_stay(lively_moe: Any, variant: str) -> None:
    model = copy.deepcopy(lively_moe)
    loud = (1, 4, 6)
    for layer in model.model.layers:
        layer.mlp.gate.weight.data *= 0.02  # tokens spread over all experts
        layer.mlp.experts.down_proj.data[list(loud)] *= 1_000.0
    plan = mk.plan(model, "aimer", variant=variant, sparsity=0.625, data=DATA)
    assert set(kept_by_layer(plan).values()) == {loud}
    quiet = mk.plan(model, "aimer", variant="frequency", sparsity=0.625, data=DATA)
    assert set(kept_by_layer(quiet).values()) != {loud}  # counts do not hear it


@pytest.mark.parametrize("heavy", [(1, 4), (0, 2, 7)])
def test_the_score_upside_down_removes_exactly_the_heavy_tails(
    lively_moe: Any, heavy: tuple[int, ...]
) -> None:
    model = copy.deepcopy(lively_moe)
    generator = torch.Generator().manual_seed(12)
    for layer in model.model.layers:
        for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            drawn = torch.randn(weight.shape, generator=generator)
            tails = torch.rand(weight.shape, generator=generator).add(0.05).reciprocal()
            for expert in range(8):
                weight.data[expert] = drawn[expert] * (tails[expert] if expert in heavy else 1.0)
    plan = mk.plan(model, "aimer", sparsity=0.5)
    for layer in plan.scores["layers"]:
        upside_down = choose_in_parts([-score for score in layer["scores"]], len(heavy))
        assert tuple(upside_down) == heavy
        assert not set(layer["pruned"]) & set(heavy)


def test_what_was_looked_at_is_recorded(on_disk: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a text that is like what the model is for. " * 40)
    settings = {"variant": "ean", "calibration_tokens": 100, "calibration_length": 32}
    plan = mk.plan(on_disk, "aimer", calibration_data=str(tmp_path / "mine.txt"), **settings)
    assert plan.scores["calibration"]["name"] == "mine.txt"
    assert plan.scores["calibration"]["tokens"] == 128
    assert len(plan.scores["calibration"]["sha256"]) == 64
    again = mk.plan(on_disk, "aimer", calibration_data=str(tmp_path / "mine.txt"), **settings)
    assert again.to_json() == plan.to_json()
    embedded = mk.plan(on_disk, "aimer", **settings)
    assert embedded.scores["calibration"]["name"] == "cpython-training"
    given = mk.plan(on_disk, "aimer", variant="ean", data=DATA)
    assert given.scores["calibration"]["name"] == "given tokens"
    assert given.scores["calibration"]["tokens"] == DATA.numel()
    assert "calibration" not in mk.plan(on_disk, "aimer").scores


def test_a_plan_names_only_the_settings_that_led_to_it(on_disk: nn.Module) -> None:
    def named(**settings: Any) -> list[str]:
        return [key for key in mk.plan(on_disk, "aimer", **settings).config if "calib" in key]

    assert named() == []
    assert named(variant="ean", data=DATA) == ["calibration_batch_size"]
    text = {"calibration_tokens": 64, "calibration_length": 32}
    assert len(named(variant="ean", **text)) == 4


def test_the_text_of_a_model_that_was_pruned_in_memory(on_disk: nn.Module) -> None:
    settings = {"variant": "frequency", "calibration_tokens": 64, "calibration_length": 32}
    pruned = mk.apply(on_disk, mk.plan(on_disk, "aimer", sparsity=0.25))
    plan = mk.plan(pruned, "aimer", sparsity=0.25, **settings)
    assert [len(kept) for kept in kept_by_layer(plan).values()] == [5, 5]  # 3 of 12: 1 or 2 each
    assert plan.summary["routed_experts_original"] == 16


def test_data_that_nothing_would_look_at(lively_moe: nn.Module) -> None:
    for variant in ("aimer", "random", "magnitude"):
        with pytest.raises(UsageError, match=f"variant {variant} needs none"):
            mk.plan(lively_moe, "aimer", variant=variant, data=DATA)
    with pytest.raises(InvalidInputError, match="'calibration_tokens' has no effect with"):
        mk.plan(lively_moe, "aimer", calibration_tokens=5)
    with pytest.raises(UsageError, match="both data and a calibration text"):
        mk.plan(lively_moe, "aimer", variant="ean", data=DATA, calibration_data="x.txt")


def test_a_model_without_a_tokenizer_needs_token_ids(lively_moe: nn.Module) -> None:
    with pytest.raises(UsageError, match="needs a tokenizer") as caught:
        mk.plan(lively_moe, "aimer", variant="reap")
    assert "data=" in caught.value.hint


@pytest.mark.parametrize("variant", CALIBRATED)
def test_broken_and_absent_weights_are_named(lively_moe: Any, variant: str) -> None:
    model = copy.deepcopy(lively_moe)
    model.model.layers[1].mlp.experts.down_proj.data[6, 2, 2] = math.nan
    with pytest.raises(InvalidInputError, match="expert 6 of layer 1"):
        mk.plan(model, "aimer", variant=variant, data=DATA)
    with pytest.raises(UnsupportedModelError, match="are not loaded"):
        mk.plan(meta_copy(lively_moe), "aimer", variant=variant, data=DATA)
    packed = copy.deepcopy(lively_moe)
    experts = packed.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.data.to(torch.float8_e4m3fn), False)
    with pytest.raises(UnsupportedModelError, match="float8_e4m3fn"):
        mk.plan(packed, "aimer", variant=variant, data=DATA)


def test_dead_experts_are_named_where_weights_are_read(lively_moe: Any) -> None:
    model = copy.deepcopy(lively_moe)
    model.model.layers[1].mlp.experts.gate_up_proj.data[3] = 0
    model.model.layers[1].mlp.experts.down_proj.data[3] = 0
    for variant in ("aimer", "magnitude"):
        plan = mk.plan(model, "aimer", variant=variant, sparsity=0.125)
        assert plan.warnings == ("layer 1: experts [3] are all zeros, removed first",)
    for variant in ("ean", "man", "msan"):  # its outputs are nothing
        plan = mk.plan(model, "aimer", variant=variant, sparsity=0.125, data=DATA)
        assert 3 not in kept_by_layer(plan)[1]


def routed_names() -> list[str]:
    """Every tiny model that has routed experts, as far as families go."""
    classes = {name: f"{prefix}ForCausalLM" for name, (prefix, _) in TINY_MODELS.items()}
    return [n for n, cls in classes.items() if "expert" in family_for_class(cls).units_of]


@pytest.mark.parametrize("variant", ["aimer", "magnitude", "random", "frequency", "reap"])
@pytest.mark.parametrize("name", routed_names())
def test_every_family_by_group(name: str, variant: Any, tiny: Any) -> None:
    model: Any = copy.deepcopy(tiny(name))
    model.set_experts_implementation("eager")
    data = DATA if variant in CALIBRATED else None
    plan = mk.plan(model, "aimer", variant=variant, sparsity=0.5, clip=True, data=data)
    for group in family_of(model).units(model, "expert"):
        kept = kept_by_layer(plan)[group.layer]
        size = group.count // group.partitions
        in_part = [sum(index // size == part for index in kept) for part in range(group.partitions)]
        assert len(set(in_part)) == 1
        assert group.minimum <= len(kept) < group.count
    pruned: Any = mk.apply(model, plan)
    with torch.no_grad():
        assert pruned(DATA).logits.isfinite().all()


def test_clip_and_refusal_are_the_same_for_all_variants(lively_moe: nn.Module) -> None:
    with pytest.raises(UsageError, match="leaves 1 of 8 experts a layer"):
        mk.plan(lively_moe, "aimer", variant="reap", sparsity=0.9, data=DATA)
    plan = mk.plan(lively_moe, "aimer", variant="reap", sparsity=0.9, clip=True, data=DATA)
    assert {len(kept) for kept in kept_by_layer(plan).values()} == {2}
    assert "clipped to 6" in plan.warnings[0]


def test_the_note_is_given_once_and_only_where_it_helps(
    on_disk: nn.Module, lively_moe: nn.Module
) -> None:
    assert "(ean, frequency or seer)" in mk.plan(on_disk, "aimer").scores["note"]
    assert "note" not in mk.plan(lively_moe, "aimer").scores  # nothing to encode a text with
    assert "note" not in mk.plan(on_disk, "aimer", variant="magnitude").scores
    assert mk.plan(on_disk, "aimer").warnings == ()


def test_settings_know_what_they_read() -> None:
    assert AimerConfig().files() == ()
    assert not AimerConfig().needs_data
    assert AimerConfig(variant="ean").files() == ()
    assert AimerConfig(variant="ean").needs_data
    assert AimerConfig(variant="ean", calibration_data="a.txt").files() == ("a.txt",)
    assert set(CALIBRATED) == set(VARIANTS) - {"aimer", "random", "magnitude"}
