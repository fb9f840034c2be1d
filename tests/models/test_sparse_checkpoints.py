"""Checkpoints of classes with experts: what they hold besides, and configs that cannot be true."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mobilekit.core.errors import InvalidInputError, UnsupportedModelError
from mobilekit.models import describe, load, save
from mobilekit.models.families import family_of
from mobilekit.models.families.experts import ExpertLayout
from mobilekit.models.tiny import TINY_MODELS, tiny_family

IDS = torch.arange(3, 27)[None]
SPARSE = [name for name in TINY_MODELS if "expert" in tiny_family(name).units_of]
KEPT_IN_FLOAT32 = ["ernie4_5_moe", "glm4_moe", "deepseek_v2", "deepseek_v3"]


@pytest.fixture
def checkpoint(
    request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> Path:
    """A saved tiny model, by its name, to change."""
    return save(copy.deepcopy(tiny(request.param)), tmp_path / "checkpoint")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def add_tensors(path: Path, *names: str) -> None:
    file = path / "model.safetensors"
    more = {name: torch.full((4, 8), 0.5) for name in names}
    save_file({**load_file(file), **more}, file, metadata={"format": "pt"})


MTP = {
    "glm4_moe": ("model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight"),
    "deepseek_v3": ("model.layers.3.enorm.weight", "model.layers.3.mlp.gate.weight"),
    "ernie4_5_moe": ("model.mtp_block.0.mlp.up_proj.weight", "model.mtp_emb_norm.0.weight"),
}


@pytest.mark.parametrize(("checkpoint", "name"), [(n, n) for n in MTP], indirect=["checkpoint"])
def test_heads_for_multi_token_prediction_are_left_out_aloud(
    checkpoint: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, facts = load(checkpoint, device="cpu"), describe(checkpoint)
    capsys.readouterr()
    edit_config(checkpoint, num_nextn_predict_layers=1)
    add_tensors(checkpoint, *MTP[name])
    loaded: Any = load(checkpoint, device="cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert "2 tensors for multi-token prediction" in said
    assert min(MTP[name]) in said
    assert torch.equal(logits(loaded), logits(plain))
    assert describe(checkpoint) == facts
    again = save(loaded, tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["num_nextn_predict_layers"] == 0
    stock = AutoModelForCausalLM.from_pretrained(again, experts_implementation="eager")
    assert torch.equal(logits(stock), logits(loaded))


@pytest.mark.parametrize(
    ("checkpoint", "extra"),
    [
        ("glm4_moe", "model.layers.3.eh_proj.weight"),  # the config says that there are no heads
        ("deepseek_v2", "model.layers.3.eh_proj.weight"),  # the class never has them
        ("deepseek_v3", "model.layers.2.mlp.extra.weight"),
        ("mixtral", "model.mtp_block.0.weight"),
    ],
    indirect=["checkpoint"],
)
def test_other_tensors_are_still_refused(checkpoint: Path, extra: str) -> None:
    add_tensors(checkpoint, extra)
    with pytest.raises(InvalidInputError, match="which config.json has no place for"):
        load(checkpoint, device="cpu")


@pytest.mark.parametrize("checkpoint", KEPT_IN_FLOAT32, indirect=True)
def test_a_router_in_float32_does_not_widen_the_rest(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    path = save(half, tmp_path / "half")
    loaded: Any = load(path, device="cpu")
    assert loaded.dtype == torch.bfloat16
    kept = {n for n, v in loaded.state_dict().items() if v.dtype == torch.float32}
    assert kept
    assert all("gate." in name for name in kept)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in half.state_dict().items())
    assert describe(path)["dtype"] == "bfloat16"
    assert describe(path) == describe(loaded)
    assert "all of it is loaded" not in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint", ["gpt_oss"], indirect=True)
def test_norms_in_float32_do_not_widen_half_precision(checkpoint: Path, tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float16)
    loaded: Any = load(save(half, tmp_path / "half"), device="cpu")
    assert loaded.dtype == torch.float16
    assert loaded.model.norm.weight.dtype == torch.float32
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in half.state_dict().items())


@pytest.mark.parametrize(
    ("checkpoint", "changes", "message"),
    [
        ("glm4_moe", {"n_group": 3}, "8 experts, which cannot be 3 equal groups"),
        ("glm4_moe", {"topk_group": 3}, "2 equal groups of which 3 are chosen"),
        ("glm4_moe", {"topk_group": 0}, "2 equal groups of which 0 are chosen"),
        ("deepseek_v3", {"n_group": None}, "cannot be None equal groups"),
        ("deepseek_v3", {"n_group": 8}, "2 experts a token, and so for 16 a layer, it has 8"),
        ("deepseek_v2", {"num_experts_per_tok": 5}, "5 experts a token, and so for 10 a layer"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
        ("gpt_oss", {"num_experts_per_tok": 9}, "asks for 9 experts a token, it has 8"),
        ("ernie4_5_moe", {"moe_k": 0}, "asks for 0 experts a token, it has 8"),
    ],
    indirect=["checkpoint"],
)
def test_configs_that_no_router_can_obey(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(InvalidInputError) as caught:
        load(checkpoint, device="cpu")
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("checkpoint", ["deepseek_v3"], indirect=True)
def test_a_correction_that_is_not_finite_is_refused(checkpoint: Path) -> None:
    file, key = checkpoint / "model.safetensors", "model.layers.1.mlp.gate.e_score_correction_bias"
    tensors = load_file(file)
    tensors[key][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"e_score_correction_bias .* NaN or infinite"):
        load(checkpoint, device="cpu")


def test_greedy_routers_of_deepseek_v2_know_no_groups(tiny: Callable[[str], nn.Module]) -> None:
    model: Any = copy.deepcopy(tiny("deepseek_v2"))
    config = type(model.config).from_dict({**model.config.to_dict(), "topk_method": "greedy"})
    greedy = type(model)(config)
    for group in family_of(greedy).units(greedy, "expert"):
        assert (group.partitions, group.minimum) == (1, 2)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("deepseek_v3", "num_experts"),  # a junk attribute
        ("glm4_moe", "num_experts"),
        ("granite_moe", "num_experts"),
        ("mixtral", "num_experts"),  # an alias
        ("ernie4_5_moe", "num_experts"),
    ],
)
def test_a_count_goes_to_the_key_that_is_saved_only(
    name: str, field: str, tiny: Callable[[str], nn.Module]
) -> None:
    model: Any = copy.deepcopy(tiny(name))
    before = model.config.to_dict()
    with pytest.raises(UnsupportedModelError, match=f"as '{field}'"):
        ExpertLayout(field).set_count(model, 3)
    assert model.config.to_dict() == before
    family_of(model).set_count["expert"](model, 3)
    after = model.config.to_dict()
    assert after.keys() == before.keys()
    assert [after[key] for key in after if after[key] != before[key]] == [3]


@pytest.mark.parametrize("name", SPARSE)
def test_an_unknown_tensor_of_a_block_is_not_left_uncut(
    name: str, tiny: Callable[[str], nn.Module]
) -> None:
    model = copy.deepcopy(tiny(name))
    family = family_of(model)
    owner = family.units(model, "expert")[0].slices[0].module  # the container of the experts
    for path in (owner, owner.rpartition(".")[0]):
        changed = copy.deepcopy(model)
        changed.get_submodule(path).register_buffer("scale_inv", torch.ones(8))
        with pytest.raises(UnsupportedModelError, match=f"{path} has a tensor 'scale_inv'"):
            family.units(changed, "expert")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3_moe", {"mlp_only_layers": []}),
        ("qwen2_moe", {"decoder_sparse_step": 2}),
        ("ernie4_5_moe", {"moe_layer_start_index": 2}),
        ("deepseek_v3", {"first_k_dense_replace": 0}),
    ],
)
def test_the_rule_of_the_config_is_held_against_the_modules(
    name: str, changes: dict[str, Any], tiny: Callable[[str], nn.Module]
) -> None:
    model: Any = copy.deepcopy(tiny(name))
    for key, value in changes.items():
        setattr(model.config, key, value)
    with pytest.raises(UnsupportedModelError, match="has experts in layers"):
        family_of(model).units(model, "expert")
