"""DarwinLM on tiny models: every variant, what it may not touch, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mobilekit as mk
from mobilekit.compress.darwinlm import search as searching
from mobilekit.compress.darwinlm.config import SEARCHES, VARIANTS, DarwinConfig
from mobilekit.compress.darwinlm.database import INDEX, Database
from mobilekit.compress.darwinlm.grid import grids
from mobilekit.compress.darwinlm.search import Search
from mobilekit.compress.darwinlm.stitch import choice, parameter_costs, stitched
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.models.tiny import make_tiny
from mobilekit.schema.plan import Plan, RemoveEdit, read_plans

SMALL: dict[str, Any] = {"levels": 5, "channel_multiple": 8}
SEARCH: dict[str, Any] = {
    "offspring": 3,
    "generations": 4,
    "survivors": [2, 1],
    "fitness_tokens": [64, 128],
    "tolerance": 0.2,
}
FINETUNE: dict[str, Any] = {"finetune_tokens": [32, 64], "finetune_learning_rate": 1e-3}


def tokens(rows: int = 24, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(1, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def all_settings(**settings: Any) -> dict[str, Any]:
    """Small settings of the kind that a variant has."""
    variant = settings.get("variant", "darwin")
    found = dict(SMALL)
    if variant in SEARCHES:
        found |= SEARCH
    if variant == "darwin":
        found |= FINETUNE
    return {**found, **settings}


def make(model: nn.Module, folder: Path, **settings: Any) -> Plan:
    data = settings.pop("data", [tokens()])
    return mk.plan(model, "darwinlm", data=data, workdir=folder, **all_settings(**settings))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(2, seed=9)).logits


def parts(model: nn.Module, folder: Path, **settings: Any) -> tuple[Search, list[Any], Database]:
    """A search over the database that a plan left."""
    config = DarwinConfig.parse(all_settings(**settings), "test")
    layers, _ = grids(model, config)
    identity = json.loads((folder / INDEX).read_text())["identity"]
    del identity["format"]
    database = Database(folder, identity)
    costs = parameter_costs(model, layers)
    rows = tokens()
    return Search(model, layers, database, config, (rows, rows), costs), layers, database


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_meets_the_target(
    variant: str, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = make(model, tmp_path / "db", variant=variant)
    result = mk.apply(model, plan)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    count = sum(p.numel() for p in result.parameters())
    assert count == plan.summary["parameters_after"]
    search, layers, database = parts(model, tmp_path / "db", variant=variant)
    uniform = mk.apply(model, make(model, tmp_path / "db2", variant="uniform"))
    target = sum(p.numel() for p in uniform.parameters())
    prunable = sum(row[0] for row in search._costs)
    assert abs(count - target) <= 0.2 * prunable
    if variant not in ("zip_dp",):
        for unit in ("head", "channel"):
            rows = [row for row in plan.scores["layers"] if row["unit"] == unit]
            most = [grid.most for grid in layers if grid.unit == unit]
            assert sum(row["level"] for row in rows) == round(0.5 * sum(most))
    database.check(layers)
    assert not torch.equal(logits(result), logits(model))


@pytest.mark.parametrize("mode", ["even", "whole", "free"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3"])
def test_result_is_the_stitched_model_and_reloads(
    family: str, mode: str, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = tiny(family)
    plan = make(model, tmp_path / "db", variant="evopress", group_mode=mode)
    result = mk.apply(model, plan)
    _, layers, database = parts(model, tmp_path / "db", variant="evopress", group_mode=mode)
    levels = [row["level"] for row in plan.scores["layers"]]
    picked = choice(layers, (tuple(levels),))
    candidate = stitched(model, picked, database, trainable=False)
    assert torch.equal(logits(candidate), logits(result))
    path = mk.save(result, tmp_path / "out")
    loaded = mk.load(path, device="cpu")
    assert torch.equal(logits(loaded), logits(result))
    (kept,) = read_plans(path / "plan.json")
    assert kept.tensors is not None
    assert str(tmp_path / "db") not in (path / "plan.json").read_text()


def test_costs_are_those_of_the_models(tiny: Callable[[str], nn.Module], tmp_path: Path) -> None:
    model = tiny("qwen3")
    make(model, tmp_path / "db", variant="uniform")
    search, layers, database = parts(model, tmp_path / "db", variant="uniform")
    dense = sum(p.numel() for p in model.parameters())
    full = sum(row[0] for row in search._costs)
    for number, grid in enumerate(layers):
        for level in range(len(grid.removed)):
            levels = [level if n == number else 0 for n in range(len(layers))]
            small = stitched(model, choice(layers, (tuple(levels),)), database, trainable=False)
            count = sum(p.numel() for p in small.parameters())
            costs = sum(row[at] for row, at in zip(search._costs, levels, strict=True))
            assert dense - count == full - costs


def test_repair_beats_its_absence(tiny: Callable[[str], nn.Module], tmp_path: Path) -> None:
    """By the layer errors; what it does for the model is the benchmark's question."""
    model = tiny("llama")
    plans = {
        variant: make(model, tmp_path / variant, variant=variant)
        for variant in ("uniform", "uniform_magnitude", "uniform_wanda")
    }
    for number, row in enumerate(plans["uniform"].scores["layers"]):
        for variant in ("uniform_magnitude", "uniform_wanda"):
            other = plans[variant].scores["layers"][number]["errors"]
            assert row["errors"][1] <= other[1] * 1.05  # damped against undamped


def test_candidates_are_small_and_forgotten(
    tiny: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    seen: list[dict[str, tuple[int, ...]]] = []
    real = searching.finetune

    def finetune(candidate: nn.Module, batches: Any, rate: float) -> float:
        before = {name: value.clone() for name, value in candidate.named_parameters()}
        loss = real(candidate, batches, rate)
        after = dict(candidate.named_parameters())
        assert any(not torch.equal(before[name], after[name]) for name in before)
        seen.append({name: tuple(value.shape) for name, value in after.items()})
        return loss

    monkeypatch.setattr(searching, "finetune", finetune)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = make(model, tmp_path / "db", variant="darwin")
    assert seen
    dense = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for shapes in seen:  # what was removed is not there: it cannot grow again
        smaller = [
            n for n in dense if n not in shapes or math.prod(shapes[n]) < math.prod(dense[n])
        ]
        assert smaller
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    _, layers, database = parts(model, tmp_path / "db", variant="darwin")
    database.check(layers)
    result = mk.apply(model, plan)  # the weights of the database, not those of a fine-tune
    levels = tuple(row["level"] for row in plan.scores["layers"])
    plain = stitched(model, choice(layers, (levels,)), database, trainable=False)
    assert torch.equal(logits(result), logits(plain))


def test_tokens_of_a_generation_are_the_published_ones(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = tiny("llama")
    make(model, tmp_path / "db", variant="uniform")
    _, layers, database = parts(model, tmp_path / "db", variant="uniform")
    config = DarwinConfig(levels=5, channel_multiple=8)
    pool = torch.zeros(60_000, 2, dtype=torch.long)
    found = Search(model, layers, database, config, (pool, torch.zeros(200_000, 1)), []).tokens()
    assert found["train"] == 16 * 10_000 + 8 * 50_000 + 4 * 100_000 + 3 * 200_000
    assert found["fitness"] == 16 * 1024 + 8 * 2048 + 4 * 4096 + 3 * 8192


def test_the_start_is_never_beaten_by_the_result_on_the_same_data(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    plan = make(tiny("llama"), tmp_path / "db", variant="evopress", generations=6)
    generations = plan.scores["search"]["generations"]
    assert [entry["generation"] for entry in generations] == list(range(6))
    assert all(entry["fitness"] <= entry["parent"] for entry in generations)


def test_one_layer_is_pruned_by_rule_but_not_searched(tmp_path: Path) -> None:
    model = make_tiny("llama", num_hidden_layers=1)
    result = mk.apply(model, make(model, tmp_path / "db", variant="uniform"))
    assert logits(result).isfinite().all()
    with pytest.raises(UsageError, match="no two layers can exchange a level"):
        make(model, tmp_path / "db", variant="evopress")


def test_random_allocations_are_all_random(
    tiny: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = ((2, 0), (4, 0))
    monkeypatch.setattr(searching, "random_states", lambda *_, **__: [drawn])
    plan = make(tiny("llama"), tmp_path / "db", variant="random")
    assert [row["level"] for row in plan.scores["layers"]] == [2, 0, 4, 0]
    monkeypatch.setattr(searching, "random_states", lambda *_, **__: [((2, 0), (0, 0))])
    with pytest.raises(UsageError, match="comes near enough to the target"):
        make(tiny("llama"), tmp_path / "db", variant="random")


def test_a_search_can_begin_at_the_layer_errors(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = tiny("llama")
    least = make(model, tmp_path / "db", variant="zip_dp")
    plan = make(model, tmp_path / "db", variant="evopress", start="zip_dp")
    for unit in ("head", "channel"):
        expected, found = (
            sum(row["level"] for row in p.scores["layers"] if row["unit"] == unit)
            for p in (least, plan)
        )
        assert found == expected
    assert least.edits != make(model, tmp_path / "db", variant="uniform").edits


def test_two_plans_are_the_same_and_the_second_uses_what_is_there(
    tiny: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    first = make(model, tmp_path / "db", variant="evopress")
    other = make(model, tmp_path / "elsewhere", variant="evopress")
    assert first.edits == other.edits
    assert first.scores == other.scores
    assert first.tensors is not None
    assert other.tensors is not None
    assert first.tensors.sha256 == other.tensors.sha256
    monkeypatch.setattr("mobilekit.compress.darwinlm.build.LayerWalk", None)
    monkeypatch.setattr(Search, "fitness", None)
    assert make(model, tmp_path / "db", variant="evopress") == first


@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_some_attention_always_stays(
    sparsity: float, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = tiny("llama")
    try:
        plan = make(model, tmp_path / "db", variant="evopress", sparsity=sparsity)
    except UsageError as error:
        assert "attention" in error.message
        return
    gone = [e for e in plan.edits if isinstance(e, RemoveEdit) and e.unit == "attention"]
    assert len(gone) < 2


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "few tokens": ({"data": [tokens(2)]}, "32 calibration tokens cannot tell apart"),
    "lengths": ({"data": [tokens(8), tokens(8, 12)]}, "sequences of 12, 16 tokens"),
    "vocabulary": ({"data": [tokens() + 300]}, "calibration tokens have ids from"),
    "target": ({"sparsity": 0.001}, "less than half a level of one layer"),
    "levels": ({"sparsity": 0.95, "remove_blocks": False}, "beyond the last levels of heads"),
    "survivors": ({"survivors": [2, 2], "variant": "evopress"}, "survivor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained(
    case: str, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    settings, match = BAD[case]
    with pytest.raises((UsageError, InvalidInputError), match=match):
        make(tiny("llama"), tmp_path / "db", **settings)


def test_padding_is_refused(tiny: Callable[[str], nn.Module], tmp_path: Path) -> None:
    model: Any = copy.deepcopy(tiny("llama"))
    model.config.pad_token_id = 255
    with pytest.raises(UsageError, match=r"padding tokens \(id 255\)"):
        make(model, tmp_path / "db", data=[torch.full((24, 16), 255)])
    model.config.eos_token_id = 255  # then it is an end like any other
    assert make(model, tmp_path / "db", data=[tokens()], variant="uniform").edits


def test_activations_that_are_not_finite_are_refused(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model: Any = copy.deepcopy(tiny("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = math.inf
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        make(model, tmp_path / "db", variant="uniform")


def test_another_models_database_is_refused(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    make(tiny("llama"), tmp_path / "db", variant="uniform")
    other = copy.deepcopy(tiny("llama"))
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(UsageError, match="was made for another checkpoint"):
        make(other, tmp_path / "db", variant="uniform")


def test_models_with_experts_lose_heads_only_and_say_so(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    plan = make(tiny("qwen3_moe"), tmp_path / "db", variant="uniform")
    assert {row["unit"] for row in plan.scores["layers"]} == {"head"}
    assert any("have no channels" in line for line in plan.scores["skipped"])
    assert any("have no channels" in line for line in plan.warnings)


@pytest.mark.parametrize("damage", ["missing", "changed", "another's"])
def test_tensors_are_checked_before_they_are_used(
    damage: str, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = tiny("llama")
    plan = make(model, tmp_path / "db", variant="uniform")
    assert plan.tensors is not None
    file = Path(plan.tensors.path)
    if damage == "missing":
        file.unlink()
        match = "are not at"
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
        match = "its checksum differs"
    else:
        other = make(model, tmp_path / "db", variant="uniform", sparsity=0.25)
        plan = plan.model_copy(update={"tensors": other.tensors})
        match = "do not|the model has"
    with pytest.raises(InvalidInputError, match=match):
        mk.apply(model, plan)
