"""What every family gives beside its programs: loading, saving, counts, units, runtime."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.models import describe, load, max_positions, save
from mobilekit.models.families import FAMILIES, all_families, family_for_class, family_of
from mobilekit.runtime.torch import TorchRuntime

IDS = torch.arange(3, 27)[None]


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def test_every_family_has_a_tiny_model(tiny_names: list[str]) -> None:
    assert {name.partition("-")[0] for name in tiny_names} == set(FAMILIES.names())


def test_an_unknown_class_is_refused_with_all_that_are_known() -> None:
    with pytest.raises(UnsupportedModelError, match="did you mean 'Gemma2ForCausalLM'") as caught:
        family_for_class("Gemma22ForCausalLM")
    assert all(name in caught.value.hint for family in all_families() for name in family.classes)


def as_trained(model: nn.Module, dtype: torch.dtype) -> Any:
    """Return a copy in a dtype, but for what its class keeps in float32: routers, mostly."""
    result: Any = copy.deepcopy(model)
    kept = tuple(result._keep_in_fp32_modules_strict)
    for name, tensor in (*result.named_parameters(), *result.named_buffers()):
        if not any(part in name for part in kept):
            tensor.data = tensor.data.to(dtype)
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reload_is_bit_exact_here_and_in_transformers(
    tiny_model: nn.Module, dtype: str, tmp_path: Path
) -> None:
    model: Any = as_trained(tiny_model, getattr(torch, dtype))
    model.generation_config.max_new_tokens = 7
    path = save(model, tmp_path / "a")
    loaded: Any = load(path, device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    for other in (loaded, stock):
        assert type(other) is type(model)
        state = other.state_dict()
        assert other.dtype == getattr(torch, dtype)
        assert all(v.dtype == state[k].dtype for k, v in model.state_dict().items())
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert other.generation_config.max_new_tokens == 7
    if "expert" in family_of(model).units_of:  # each form sums in an order of its own
        stock.set_experts_implementation("eager")
    assert torch.equal(logits(loaded), logits(stock))
    again = save(loaded, tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (path / name).read_bytes()


def test_size_is_the_same_on_disk_and_in_memory(tiny_model: nn.Module, tmp_path: Path) -> None:
    model: Any = copy.deepcopy(tiny_model)
    path = save(model, tmp_path / "out")
    facts = describe(path)
    assert facts == describe(model)
    unique = {id(p): p.numel() for p in model.parameters()}
    assert facts["parameters"] == sum(unique.values())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == bool(model.config.tie_word_embeddings)


def test_active_parameters_leave_out_what_the_router_does_not_choose(
    tiny: Callable[[str], nn.Module],
) -> None:
    expert = 3 * 32 * 64
    biased = 3 * 16 * 32 + 2 * 16 + 32
    for name, idle in (
        ("olmoe", 2 * 6 * expert),
        ("qwen3_moe", 1 * 2 * expert),
        ("glm4_moe", 2 * 6 * expert),  # not by what its groups must keep
        ("gpt_oss", 2 * 6 * biased),
        ("gemma2", 0),
        ("mamba2", 0),
    ):
        facts = describe(tiny(name))
        assert facts["parameters"] - facts["active_parameters"] == idle


def test_chat_template_goes_along(
    tiny: Callable[[str], nn.Module], byte_tokenizer: Path, tmp_path: Path
) -> None:
    path = save(copy.deepcopy(tiny("gemma3")), tmp_path / "a", tokenizer_from=None)
    for file in byte_tokenizer.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    again = save(load(path, device="cpu"), tmp_path / "b")
    assert (again / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_positions_end_where_the_model_or_its_rotary_frequencies_do(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    for name, most in (("llama", 128), ("phi3-longrope", 64), ("mamba2", None)):
        path = save(copy.deepcopy(tiny(name)), tmp_path / name)
        assert max_positions(path) == most
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    del config["max_position_embeddings"]  # many published configs leave defaults out
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config))
    assert max_positions(tmp_path / "llama") == 2048


def test_infinity_in_a_config_reads_in_both_spellings(
    tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    path = save(copy.deepcopy(tiny("mamba2")), tmp_path / "out")
    file = path / "config.json"
    config = json.loads(file.read_text())
    for spelling in ({"__float__": "Infinity"}, float("inf")):
        file.write_text(json.dumps({**config, "time_step_limit": [0.0, spelling]}))
        model: Any = load(path, device="cpu")
        assert list(model.config.time_step_limit) == [0.0, float("inf")]
    file.write_text(json.dumps({**config, "time_step_limit": [0.0, {"__float__": "huge"}]}))
    with pytest.raises(InvalidInputError, match="time_step_limit"):
        load(path, device="cpu")


def test_torch_runtime_goes_on_and_back(tiny_model: nn.Module) -> None:
    runtime = TorchRuntime(tiny_model)
    tokens = IDS[0].numpy()
    wanted = logits(tiny_model)[0].numpy()

    def near(found: Any, position: int) -> None:
        np.testing.assert_allclose(found, wanted[position], atol=2e-5, rtol=1e-4)

    near(runtime.forward(tokens[:9], 0), 8)
    near(runtime.forward(tokens[9:20], 9), 19)
    near(runtime.forward(tokens[:3], 0), 2)
    near(runtime.forward(tokens[3:20], 3), 19)
    with pytest.raises(UsageError, match="holds 20 tokens"):
        runtime.forward(tokens[:1], 21)
    if family_of(tiny_model).is_recurrent:
        with pytest.raises(UsageError, match="cannot go back"):
            runtime.forward(tokens[7:], 7)
    else:
        near(runtime.forward(tokens[7:], 7), 23)  # further back than a window
