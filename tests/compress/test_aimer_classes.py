"""Expert pruning on every real class with experts, each held to the same exact oracles."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

import mobilekit as mk
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.models import describe, tensor_table
from mobilekit.models.families import UnitGroup, family_of
from mobilekit.models.families.experts import sparse_blocks
from mobilekit.models.tiny import TINY_MODELS, tiny_family
from mobilekit.schema.plan import KeepEdit, Plan

NAMES = [name for name in TINY_MODELS if "expert" in tiny_family(name).units_of]
GROUPED = ["glm4_moe", "deepseek_v2", "deepseek_v3"]
IDS = torch.arange(7, 39).reshape(2, 16)

# key of config.json that says how many experts a layer has: the table of the specification
COUNT_KEYS = {
    "qwen3_moe": "num_local_experts",
    "olmoe": "num_experts",
    "mixtral": "num_local_experts",
    "qwen2_moe": "num_experts",
    "granite_moe": "num_local_experts",
    "ernie4_5_moe": "moe_num_experts",
    "glm4_moe": "n_routed_experts",
    "deepseek_v2": "n_routed_experts",
    "deepseek_v3": "n_routed_experts",
    "gpt_oss": "num_local_experts",
}
# the end of a tensor's name → the dimension along which the experts lie
PER_EXPERT = {
    ".experts.gate_up_proj": 0,
    ".experts.down_proj": 0,
    ".experts.gate_up_proj_bias": 0,
    ".experts.down_proj_bias": 0,
    ".gate.weight": 0,
    ".router.weight": 0,
    ".router.bias": 0,
    ".gate.e_score_correction_bias": 0,
    ".gate.moe_statics.e_score_correction_bias": 1,
}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """The name of every tiny model with experts, in turn."""
    return str(request.param)


@pytest.fixture
def dense(name: str, tiny: Callable[[str], nn.Module]) -> Any:
    """A fresh copy of that model."""
    return copy.deepcopy(tiny(name))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def groups_of(model: nn.Module) -> list[UnitGroup]:
    return family_of(model).units(model, "expert")


def scores_of(model: nn.Module) -> dict[int, list[float]]:
    records = mk.plan(model, "aimer", sparsity=0.0).scores["layers"]
    return {record["layer"]: record["scores"] for record in records}


def halved(model: nn.Module) -> Plan:
    """Plan to keep half of the experts of every layer, as many of each group of the router."""
    return mk.plan(model, "aimer", sparsity=0.5)


def kept_by_layer(plan: Plan) -> dict[int, tuple[int, ...]]:
    return {edit.layer: edit.indices for edit in plan.edits if isinstance(edit, KeepEdit)}


def select(model: nn.Module, chosen: dict[int, Any]) -> dict[str, Tensor]:
    """Index the state dict of ``model`` by expert, knowing names only."""
    state = dict(model.state_dict())
    for key, layer in itertools.product(list(state), chosen):
        for end, dim in PER_EXPERT.items():
            if f".layers.{layer}." in key and key.endswith(end):
                index = torch.as_tensor(chosen[layer])
                state[key] = state[key].index_select(dim, index)
    return state


def equal_states(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class _Masked(TorchFunctionMode):
    """Sets logits of routers to −∞ in whatever code computes them."""

    def __init__(self, removed: dict[int, list[int]]) -> None:
        super().__init__()
        self.removed = removed  # address of a router's weight → its experts that are gone

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear and args[1].data_ptr() in self.removed:
            result[..., self.removed[args[1].data_ptr()]] = -math.inf
        return result


@contextmanager
def masked(model: nn.Module, kept: dict[int, tuple[int, ...]]) -> Iterator[None]:
    """Let the model's own routers run as if all but the kept experts could not be chosen."""
    removed = {}
    for block in sparse_blocks(model):
        gone = [i for i in range(block.router.weight.shape[0]) if i not in kept[block.layer]]
        removed[block.router.weight.data_ptr()] = gone
        for part in block.router.modules():
            if hasattr(part, "e_score_correction_bias"):  # a score of 0 may still be chosen
                part.e_score_correction_bias.data[..., gone] = -math.inf
    with _Masked(removed):
        yield


def normalizes(model: nn.Module) -> list[bool | None]:
    """Return the settings of ``norm_topk_prob`` that the routers read; None where they do not."""
    has = all(hasattr(block.router, "norm_topk_prob") for block in sparse_blocks(model))
    return [True, False] if has else [None]


def test_equals_the_dense_model_with_the_removed_experts_masked(dense: Any) -> None:
    plan = halved(dense)
    for setting in normalizes(dense):
        model = copy.deepcopy(dense)
        for block in sparse_blocks(model) if setting is not None else ():
            block.router.norm_topk_prob = setting
        pruned, untouched = mk.apply(model, plan), logits(model)
        with masked(model, kept_by_layer(plan)):
            expected = logits(model)
        assert (logits(pruned) - expected).abs().max() <= 1e-5, setting
        assert (logits(pruned) - untouched).abs().max() > 1e-2, setting  # they did matter


def test_only_the_tensors_of_experts_are_cut_and_shared_ones_are_not(name: str, dense: Any) -> None:
    plan = halved(dense)
    result = mk.apply(dense, plan)
    assert equal_states(dict(result.state_dict()), select(dense, kept_by_layer(plan)))
    shared = [k for k in result.state_dict() if ".shared_expert" in k]
    assert bool(shared) == (name in {"qwen2_moe", "ernie4_5_moe", *GROUPED})


def test_nothing_in_the_model_says_the_old_count(name: str, dense: Any) -> None:
    before = groups_of(dense)[0].count
    result: Any = mk.apply(dense, halved(dense))
    counts = {
        (path, key): value
        for path, module in result.named_modules()
        for key, value in vars(module).items()
        if "experts" in key and key != "num_experts_per_tok" and isinstance(value, int)
    }
    assert counts
    assert set(counts.values()) == {before // 2}
    settings = result.config.to_dict()
    assert settings[COUNT_KEYS[name]] == before // 2
    assert settings.keys() == dense.config.to_dict().keys()  # no key that nobody reads


def test_sparsity_zero_is_the_identity(dense: Any) -> None:
    plan = mk.plan(dense, "aimer", sparsity=0.0)
    result = mk.apply(dense, plan)
    assert plan.warnings == ()
    assert equal_states(dict(result.state_dict()), dict(dense.state_dict()))
    assert torch.equal(logits(result), logits(dense))


def test_parameters_are_those_of_the_formula(name: str, dense: Any) -> None:
    plan = halved(dense)
    result = mk.apply(dense, plan)
    config, groups = dense.config, groups_of(dense)
    hidden = config.hidden_size
    inner = getattr(config, "moe_intermediate_size", config.intermediate_size)
    an_expert = 3 * inner * hidden + hidden  # its matrices and its router row
    # an entry of the correction; biases of both projections and of the router
    an_expert += {"ernie4_5_moe": 1, "gpt_oss": 2 * inner + hidden + 1}.get(name, 0)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (dense, result))
    assert before - after == len(groups) * (groups[0].count // 2) * an_expert


def test_plain_transformers_loads_the_result_bit_for_bit(
    name: str, dense: Any, tmp_path: Path
) -> None:
    pruned = mk.apply(dense, halved(dense))
    path = mk.save(pruned, tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(path)
    assert type(stock) is type(dense)
    assert torch.equal(logits(stock), logits(pruned))
    assert equal_states(dict(stock.state_dict()), dict(pruned.state_dict()))
    config = json.loads((path / "config.json").read_text())
    assert config[COUNT_KEYS[name]] == groups_of(dense)[0].count // 2
    ours: Any = mk.load(path, device="cpu")
    assert equal_states(dict(ours.state_dict()), dict(pruned.state_dict()))
    pruned.set_experts_implementation("eager")
    assert torch.equal(logits(ours), logits(pruned))
    stored = sum(entry.nbytes for entry in tensor_table(path).values())
    assert stored == describe(pruned)["weight_bytes"]
    header = 100 * len(tensor_table(path)) + 300
    assert stored < (path / "model.safetensors").stat().st_size < stored + 2 * header


def test_a_stale_config_loads_nowhere(name: str, dense: Any, tmp_path: Path) -> None:
    before = groups_of(dense)[0].count
    path = mk.save(mk.apply(dense, halved(dense)), tmp_path / "out")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, COUNT_KEYS[name]: before}))
    with pytest.raises(InvalidInputError, match=r"model\.layers\..*(lack|config\.json asks for)"):
        mk.load(path, device="cpu")
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(path)


def test_permuted_experts_give_a_model_that_computes_the_same(dense: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    order = {}
    for group in groups_of(dense):
        size = group.count // group.partitions
        starts = range(0, group.count, size)
        parts = [torch.randperm(size, generator=generator) + start for start in starts]
        order[group.layer] = torch.cat(parts)
    shuffled = copy.deepcopy(dense)
    shuffled.load_state_dict(select(dense, order))
    straight, mapped = scores_of(dense), scores_of(shuffled)
    for layer, permutation in order.items():
        assert mapped[layer] == [straight[layer][i] for i in permutation.tolist()]
    plans = [halved(model) for model in (dense, shuffled)]
    for layer, permutation in order.items():
        first, second = (kept_by_layer(plan)[layer] for plan in plans)
        assert {int(permutation[i]) for i in second} == set(first)
    results = [mk.apply(m, p) for m, p in zip((dense, shuffled), plans, strict=True)]
    torch.testing.assert_close(logits(results[0]), logits(results[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [10.0, -1.0])
def test_a_scaled_expert_scores_the_same(dense: Any, factor: float) -> None:
    before = scores_of(dense)
    block = sparse_blocks(dense)[0]
    with torch.no_grad():
        block.experts.gate_up_proj[2] *= factor
        block.experts.down_proj[2] *= factor
    assert scores_of(dense)[block.layer] == pytest.approx(before[block.layer], abs=1e-6)


def test_heavy_tailed_experts_stay_and_gaussian_ones_go(dense: Any) -> None:
    generator = torch.Generator().manual_seed(11)
    count = groups_of(dense)[0].count
    heavy = (1, 3, 4, 6)[: count // 2]
    for block in sparse_blocks(dense):
        for weight in (block.experts.gate_up_proj, block.experts.down_proj):
            for expert in range(count):
                drawn = torch.randn(weight.shape[1:], generator=generator)
                # over an independent scale: Student-t like, heavy tails
                scale = torch.rand(weight.shape[1:], generator=generator).add(0.05)
                weight.data[expert] = (drawn / scale if expert in heavy else drawn) * 0.1
    assert set(kept_by_layer(halved(dense)).values()) == {heavy}


def test_the_choice_is_the_best_of_all(dense: Any) -> None:
    """Brute force: of all legal sets of that size, the kept one has the smallest sum of scores."""
    plan, scores = halved(dense), scores_of(dense)
    for group in groups_of(dense):
        kept = kept_by_layer(plan)[group.layer]
        size, each = group.count // group.partitions, len(kept) // group.partitions

        def legal(chosen: tuple[int, ...], size: int = size, each: int = each) -> bool:
            parts = [index // size for index in chosen]
            return all(parts.count(part) == each for part in set(parts))

        every = itertools.combinations(range(group.count), len(kept))
        layer = scores[group.layer]
        best = min(filter(legal, every), key=lambda chosen: sum(layer[i] for i in chosen))
        assert kept == best


@pytest.mark.parametrize("name", GROUPED)
def test_experts_stay_in_their_groups(dense: Any) -> None:
    for group in groups_of(dense):
        assert (group.count, group.partitions, group.minimum, group.active) == (8, 2, 4, 2)
    plan = halved(dense)
    for kept in kept_by_layer(plan).values():
        assert [index // 4 for index in kept] == [0, 0, 1, 1]
    result: Any = mk.apply(dense, plan)
    assert {group.count for group in groups_of(result)} == {4}
    assert [b.router.num_group for b in sparse_blocks(result)] == [2, 2]
    assert logits(result).isfinite().all()


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((0, 1, 2, 4), "keeps 3, 1 experts of the 2 groups of layer 1"),
        ((0, 1, 2, 3), "keeps 4, 0 experts of the 2 groups of layer 1"),
        ((0, 1, 2, 4, 5), "keeps 3, 2 experts of the 2 groups of layer 1"),
        ((0, 4), "keeps 2 experts of layer 1, which needs 4"),
    ],
)
def test_a_plan_that_breaks_the_groups_is_refused(
    dense: Any, kept: tuple[int, ...], message: str
) -> None:
    plan = mk.plan(dense, "aimer", sparsity=0.0)
    edits = (KeepEdit(unit="expert", layer=1, indices=kept), *plan.edits[1:])
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        mk.apply(dense, plan.model_copy(update={"edits": edits}))
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2
    assert equal_states(dict(dense.state_dict()), before)
