import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

import mobilekit as mk
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.models import checkpoint_hash, provenance, tensor_table
from mobilekit.models.surgery import meta_copy
from mobilekit.schema.plan import KeepEdit, Plan, read_plans

IDS = torch.arange(7, 39).reshape(2, 16)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def kept_by_layer(plan: Plan) -> dict[int, tuple[int, ...]]:
    return {edit.layer: edit.indices for edit in plan.edits if isinstance(edit, KeepEdit)}


def with_experts(model: Any, count: int, **changes: Any) -> Any:
    """A fresh model of the same shape but for its config."""
    config = copy.deepcopy(model.config)
    config.num_experts = count
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(5)
    return Qwen3MoeForCausalLM(config).eval()


class MaskedRouter(nn.Module):
    """The dense model's router with the logits of some experts forced to −∞ before the softmax."""

    def __init__(self, gate: Any, removed: list[int]) -> None:
        super().__init__()
        self.gate, self.removed = gate, removed

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = F.linear(hidden_states, self.gate.weight)
        router_logits[:, self.removed] = -math.inf
        probabilities = router_logits.float().softmax(dim=-1)
        value, index = probabilities.topk(self.gate.top_k, dim=-1)
        if self.gate.norm_topk_prob:
            value = value / value.sum(dim=-1, keepdim=True)
        return router_logits, value.to(router_logits.dtype), index


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("variant", ["aimer", "magnitude", "random"])
def test_equals_the_dense_model_with_the_removed_experts_masked(
    lively_moe: nn.Module, norm_topk_prob: bool, variant: str
) -> None:
    dense: Any = copy.deepcopy(lively_moe)
    for layer in dense.model.layers:
        layer.mlp.gate.norm_topk_prob = norm_topk_prob
    plan = mk.plan(dense, "aimer", sparsity=0.5, variant=variant)
    pruned = mk.apply(dense, plan)
    untouched = logits(dense)
    for layer, kept in kept_by_layer(plan).items():
        block = dense.model.layers[layer].mlp
        block.gate = MaskedRouter(block.gate, [i for i in range(8) if i not in kept])
    assert (logits(pruned) - logits(dense)).abs().max() <= 1e-5
    assert (logits(pruned) - untouched).abs().max() > 1e-2  # the removed experts did matter


def test_sparsity_zero_is_the_identity(lively_moe: nn.Module) -> None:
    plan = mk.plan(lively_moe, "aimer", sparsity=0.0)
    result = mk.apply(lively_moe, plan)
    assert plan.warnings == ()
    assert kept_by_layer(plan) == {0: tuple(range(8)), 1: tuple(range(8))}
    assert all(
        torch.equal(a, b)
        for a, b in zip(result.state_dict().values(), lively_moe.state_dict().values(), strict=True)
    )
    assert torch.equal(logits(result), logits(lively_moe))
    assert plan.summary["parameters_before"] == plan.summary["parameters_after"]


def test_sizes_are_exact(lively_moe: nn.Module, tmp_path: Path) -> None:
    plan = mk.plan(lively_moe, "aimer", sparsity=0.375)
    result = mk.apply(lively_moe, plan)
    dense = sum(p.numel() for p in lively_moe.parameters())
    gone = 2 * 3 * (3 * 32 * 64 + 64)  # layers · removed · (3·m·d + a router row)
    assert plan.summary == {
        "parameters_before": dense,
        "parameters_after": dense - gone,
        "active_parameters_before": dense - 2 * 6 * 3 * 32 * 64,
        "active_parameters_after": dense - 2 * 6 * 3 * 32 * 64 - 2 * 3 * 64,
        "routed_experts_before": 16,
        "routed_experts_after": 10,
        "routed_experts_original": 16,
        "routed_experts_removed_of_original": 0.375,
        "parameters_original": dense,
        "parameters_removed_of_original": round(gone / dense, 6),
        "bytes_before": 4 * dense,
        "bytes_after": 4 * (dense - gone),
    }
    assert sum(p.numel() for p in result.parameters()) == dense - gone
    path = mk.save(result, tmp_path / "out")
    assert sum(entry.nbytes for entry in tensor_table(path).values()) == 4 * (dense - gone)
    size = (path / "model.safetensors").stat().st_size
    assert size == pytest.approx(4 * (dense - gone), rel=0.02)


def test_planning_and_applying_leave_the_model_alone(lively_moe: nn.Module) -> None:
    before = {k: v.clone() for k, v in lively_moe.state_dict().items()}
    mk.apply(lively_moe, mk.plan(lively_moe, "aimer", sparsity=0.5))
    after = lively_moe.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert lively_moe.config.num_experts == 8  # type: ignore[union-attr]


@pytest.mark.parametrize("heavy", [(1, 4), (0, 2, 7), (3,)])
def test_heavy_tailed_experts_stay_and_gaussian_ones_go(
    lively_moe: Any, heavy: tuple[int, ...]
) -> None:
    model = with_experts(lively_moe, 8, num_experts_per_tok=1)
    generator = torch.Generator().manual_seed(11)
    for layer in model.model.layers:
        for expert in range(8):
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                drawn = torch.randn(weight.shape[1:], generator=generator)
                # a Gaussian over an independent scale of its own kind: Student-t like, heavy tails
                scale = torch.rand(weight.shape[1:], generator=generator).add(0.05)
                weight.data[expert] = (drawn / scale if expert in heavy else drawn) * 0.1
    plan = mk.plan(model, "aimer", sparsity=1 - len(heavy) / 8)
    assert kept_by_layer(plan) == {0: heavy, 1: heavy}


def test_magnitude_keeps_the_largest_and_random_follows_the_seed(lively_moe: Any) -> None:
    model = copy.deepcopy(lively_moe)
    for layer in model.model.layers:
        for expert in range(8):
            layer.mlp.experts.gate_up_proj.data[expert].normal_().mul_(1 + expert % 4)
            layer.mlp.experts.down_proj.data[expert].normal_().mul_(1 + expert % 4)
    plan = mk.plan(model, "aimer", variant="magnitude", sparsity=0.5)
    assert set(kept_by_layer(plan).values()) == {(2, 3, 6, 7)}
    assert plan.scores["larger_is"] == "important"
    draws = [mk.plan(model, "aimer", variant="random", sparsity=0.5, seed=s) for s in (0, 0, 1, 2)]
    assert draws[0].to_json() == draws[1].to_json()
    assert len({json.dumps(d.to_json()["edits"]) for d in draws}) == 3
    first, second = draws[0].scores["layers"]
    assert first["scores"] != second["scores"]  # each layer has its own stream


def test_scores_are_recorded_with_what_was_kept(lively_moe: nn.Module) -> None:
    plan = mk.plan(lively_moe, "aimer", sparsity=0.25)
    assert plan.scores["criterion"] == "aimer"
    assert plan.scores["larger_is"] == "removable"
    for record in plan.scores["layers"]:
        ranked = sorted(range(8), key=lambda i: (-record["scores"][i], i))
        assert record["pruned"] == sorted(ranked[:2])
        assert record["kept"] == [i for i in range(8) if i not in record["pruned"]]
        assert kept_by_layer(plan)[record["layer"]] == tuple(record["kept"])


def test_permuted_experts_give_a_model_that_computes_the_same(lively_moe: Any) -> None:
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = copy.deepcopy(lively_moe)
    for layer in shuffled.model.layers:
        for tensor in (
            layer.mlp.experts.gate_up_proj,
            layer.mlp.experts.down_proj,
            layer.mlp.gate.weight,
        ):
            tensor.data = tensor.data[order].clone()
    plans = [mk.plan(model, "aimer", sparsity=0.5) for model in (lively_moe, shuffled)]
    for layer in (0, 1):
        straight, mapped = (kept_by_layer(plan)[layer] for plan in plans)
        assert {int(order[i]) for i in mapped} == set(straight)
    results = [mk.apply(m, p) for m, p in zip((lively_moe, shuffled), plans, strict=True)]
    torch.testing.assert_close(logits(results[0]), logits(results[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_transformers_loads_the_result(
    lively_moe: nn.Module, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = mk.save(copy.deepcopy(lively_moe).to(dtype), tmp_path / "dense")
    dense = mk.load(path, device="cpu")
    pruned = mk.apply(dense, mk.plan(dense, "aimer", sparsity=0.5))
    mk.save(pruned, tmp_path / "pruned")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    ours = mk.load(tmp_path / "pruned", device="cpu")
    assert stock.config.num_experts == 4
    assert stock.dtype == dtype
    assert torch.equal(logits(stock), logits(pruned))
    assert torch.equal(logits(ours), logits(pruned))


def test_stock_loading_fails_where_the_config_is_stale(
    lively_moe: nn.Module, tmp_path: Path
) -> None:
    path = mk.save(mk.apply(lively_moe, mk.plan(lively_moe, "aimer", sparsity=0.5)), tmp_path / "p")
    config = json.loads((path / "config.json").read_text())
    assert config["num_local_experts"] == 4
    (path / "config.json").write_text(json.dumps({**config, "num_local_experts": 8}))
    with pytest.raises(InvalidInputError, match="the plans leave 4 experts"):
        mk.load(path, device="cpu")


def test_pruning_twice_is_recorded_in_order(lively_moe: nn.Module, tmp_path: Path) -> None:
    first = mk.save(copy.deepcopy(lively_moe), tmp_path / "0")
    model = mk.load(first, device="cpu")
    for step in ("1", "2"):
        plan = mk.plan(model, "aimer", sparsity=0.25)
        mk.save(mk.apply(model, plan), tmp_path / step)
        model = mk.load(tmp_path / step, device="cpu")
    plans = read_plans(tmp_path / "2" / "plan.json")
    assert [p.parent for p in plans] == [checkpoint_hash(tmp_path / n) for n in ("0", "1")]
    assert [p.summary["routed_experts_after"] for p in plans] == [12, 10]  # 3 of 12: 1 or 2 a layer
    assert plans[0].warnings == ()
    assert plans[1].warnings[0] == (
        "this model was pruned by aimer before (from 16 routed experts, of which 37.5% will be "
        "gone); the sparsity is of those that are left"
    )
    dense = plans[0].summary["parameters_before"]
    for plan in plans:
        summary = plan.summary
        assert summary["routed_experts_original"] == 16
        assert summary["parameters_original"] == dense
        gone = 1 - summary["routed_experts_after"] / 16
        assert summary["routed_experts_removed_of_original"] == gone
        gone = 1 - summary["parameters_after"] / dense
        assert summary["parameters_removed_of_original"] == pytest.approx(gone, abs=1e-6)
    assert provenance(model).plans == tuple(plans)
    assert model.config.num_experts == 5  # type: ignore[union-attr]


def test_plan_in_memory_after_apply_has_no_parent(lively_moe: nn.Module, tmp_path: Path) -> None:
    model = mk.load(mk.save(copy.deepcopy(lively_moe), tmp_path / "0"), device="cpu")
    pruned = mk.apply(model, mk.plan(model, "aimer", sparsity=0.25))
    plan = mk.plan(pruned, "aimer", sparsity=0.25)
    assert plan.parent is None
    assert len(provenance(mk.apply(pruned, plan)).plans) == 2


def test_plan_made_for_other_weights_is_refused_unless_its_parent_is_cleared(
    lively_moe: nn.Module, tiny_qwen3_moe: nn.Module, tmp_path: Path
) -> None:
    one = mk.load(mk.save(copy.deepcopy(lively_moe), tmp_path / "1"), device="cpu")
    other = mk.load(mk.save(copy.deepcopy(tiny_qwen3_moe), tmp_path / "2"), device="cpu")
    plan = mk.plan(one, "aimer", sparsity=0.25)
    with pytest.raises(UsageError, match="the plan was made for checkpoint sha256:"):
        mk.apply(other, plan)
    result: Any = mk.apply(other, plan.model_copy(update={"parent": None}))
    assert result.config.num_experts == 6


def test_edited_plan_is_carried_out_and_its_sizes_found_anew(lively_moe: nn.Module) -> None:
    plan = mk.plan(lively_moe, "aimer", sparsity=0.25)
    edits = (KeepEdit(unit="expert", layer=0, indices=(3, 4)), plan.edits[1])
    result: Any = mk.apply(lively_moe, plan.model_copy(update={"edits": edits}))
    assert [layer.mlp.gate.weight.shape[0] for layer in result.model.layers] == [2, 6]
    recorded = provenance(result).plans[0]
    assert recorded.edits == edits
    assert recorded.summary["routed_experts_after"] == 8
    assert recorded.summary["parameters_after"] == sum(p.numel() for p in result.parameters())


def test_dead_experts_go_first_with_a_warning(lively_moe: Any) -> None:
    model = copy.deepcopy(lively_moe)
    model.model.layers[1].mlp.experts.gate_up_proj.data[3] = 0
    model.model.layers[1].mlp.experts.down_proj.data[3] = 0
    for variant in ("aimer", "magnitude"):
        plan = mk.plan(model, "aimer", sparsity=0.125, variant=variant)
        assert 3 not in kept_by_layer(plan)[1]
    plan = mk.plan(model, "aimer", sparsity=0.125)
    assert plan.scores["layers"][1]["scores"][3] is None
    assert "layer 1" in plan.warnings[0]
    json.dumps(plan.to_json(), allow_nan=False)


@pytest.mark.parametrize("variant", ["aimer", "magnitude"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_name_layer_and_expert(
    lively_moe: Any, variant: str, value: float
) -> None:
    model = copy.deepcopy(lively_moe)
    model.model.layers[1].mlp.experts.down_proj.data[6, 2, 2] = value
    with pytest.raises(InvalidInputError, match="expert 6 of layer 1"):
        mk.plan(model, "aimer", variant=variant)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, math.inf, "much"])
def test_sparsity_outside_of_its_range(lively_moe: nn.Module, sparsity: object) -> None:
    with pytest.raises(InvalidInputError, match="'sparsity' is") as caught:
        mk.plan(lively_moe, "aimer", sparsity=sparsity)
    assert len(str(caught.value).splitlines()) == 2


def test_misspelt_settings_methods_and_variants(lively_moe: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'sparsity'"):
        mk.plan(lively_moe, "aimer", sparsty=0.5)
    with pytest.raises(UsageError, match="did you mean 'aimer'"):
        mk.plan(lively_moe, "aimmer")
    with pytest.raises(
        InvalidInputError, match="'variant' is 'magnitud'; did you mean 'magnitude'"
    ):
        mk.plan(lively_moe, "aimer", variant="magnitud")


def test_keeping_fewer_than_top_k_is_refused_or_clipped(lively_moe: nn.Module) -> None:
    with pytest.raises(UsageError, match="leaves 1 of 8 experts a layer") as caught:
        mk.plan(lively_moe, "aimer", sparsity=0.9)
    assert "at most 0.75" in caught.value.hint
    legal = mk.plan(lively_moe, "aimer", sparsity=0.75)
    assert legal.warnings == ()
    clipped = mk.plan(lively_moe, "aimer", sparsity=0.9, clip=True)
    assert kept_by_layer(clipped) == kept_by_layer(legal)
    assert "clipped to 6" in clipped.warnings[0]


def test_counts_that_are_not_exact_are_said(lively_moe: nn.Module) -> None:
    assert "asks for 5 of 16 experts" in mk.plan(lively_moe, "aimer", sparsity=0.3).warnings[0]
    warnings = mk.plan(lively_moe, "aimer", sparsity=0.01).warnings
    assert warnings == ("sparsity 0.01 removes no expert at all",)


def test_dense_models_are_told_which_families_have_experts(
    tiny_qwen3: nn.Module, lively_moe: Any
) -> None:
    with pytest.raises(UnsupportedModelError, match="has no experts") as caught:
        mk.plan(tiny_qwen3, "aimer")
    assert "Qwen3MoeForCausalLM" in caught.value.hint
    all_dense = with_experts(lively_moe, 8, mlp_only_layers=[0, 1])
    with pytest.raises(UsageError, match="no layer of this Qwen3MoeForCausalLM has any"):
        mk.plan(all_dense, "aimer")


def test_dense_layers_of_a_sparse_model_are_left_alone(lively_moe: Any) -> None:
    mixed = with_experts(lively_moe, 8, mlp_only_layers=[0])
    plan = mk.plan(mixed, "aimer", sparsity=0.5)
    assert list(kept_by_layer(plan)) == [1]
    result: Any = mk.apply(mixed, plan)
    assert result.config.num_experts == 4
    assert torch.isfinite(logits(result)).all()


def test_layers_with_different_expert_counts(lively_moe: nn.Module) -> None:
    plan = mk.plan(lively_moe, "aimer", sparsity=0.25)
    uneven = mk.apply(lively_moe, plan.model_copy(update={"edits": plan.edits[:1]}))
    with pytest.raises(UsageError, match=r"different numbers of experts \(6 to 8\)"):
        mk.plan(uneven, "aimer", sparsity=0.25)


def test_quantized_and_absent_weights(lively_moe: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="are not loaded"):
        mk.plan(meta_copy(lively_moe), "aimer")
    packed = copy.deepcopy(lively_moe)
    experts = packed.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.data.to(torch.float8_e4m3fn), False)
    with pytest.raises(UnsupportedModelError, match="float8_e4m3fn"):
        mk.plan(packed, "aimer")


def test_plan_of_a_newer_version_is_refused(lively_moe: nn.Module) -> None:
    plan = mk.plan(lively_moe, "aimer").model_copy(update={"method_version": 99})
    with pytest.raises(UsageError, match="version 99"):
        mk.apply(lively_moe, plan)
