"""Which precision each layer gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mobilekit.export.precision import Precision, check_overrides, weight_layers
from torch import nn

from mobilekit.core.errors import UsageError
from mobilekit.models.families import Phase, StateForm, family_of


def test_the_first_pattern_that_matches_wins() -> None:
    precision = Precision("int4", (("lm_head", "int8"), ("*.0.*", "float"), ("*", "int8")))
    assert precision.at("lm_head") == "int8"
    assert precision.at("model.layers.0.mlp.down") == "float"
    assert precision.at("model.layers.1.mlp.down") == "int8"


@given(st.text())
def test_a_float_artifact_is_float_throughout(path: str) -> None:
    assert Precision("fp32", (("*", "int4"),)).at(path) == "float"


@given(st.text(), st.sampled_from(["int8", "int4"]))
def test_a_layer_without_override_has_the_artifacts_precision(path: str, name: str) -> None:
    assert Precision(name).at(path) == name


def test_routers_are_no_weight_layers(tiny_qwen3_moe: nn.Module) -> None:
    phase = Phase("forward", StateForm.RESIDENT, 32)
    program = family_of(tiny_qwen3_moe).export_program(tiny_qwen3_moe, phase)
    paths = set(weight_layers(program))
    assert {"lm_head", "model.embed_tokens", "model.layers.0.mlp.gate_up"} <= paths
    assert not [path for path in paths if "routing" in path or path.endswith("gate")]


@pytest.mark.parametrize("name", ["qwen2_moe", "ernie4_5_moe", "glm4_moe"])
def test_layers_beside_the_experts_are_called_as_in_the_checkpoint(
    name: str, tiny: Callable[[str], nn.Module]
) -> None:
    model = tiny(name)
    program = family_of(model).export_program(model, Phase("forward", StateForm.RESIDENT, 32))
    layers = weight_layers(program)
    merged = {path for path in layers if path.endswith((".experts.gate_up", ".experts.down"))}
    assert len(merged) == 4  # two layers with experts
    own = {id(module) for module in model.modules()}
    for path in layers.keys() - merged:
        assert model.get_submodule(path).weight.shape == layers[path].weight.shape
        assert id(layers[path]) not in own  # what is quantized is a private copy
    assert any(".shared_expert" in path for path in layers)


def test_an_override_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'lmhead' matches no layer.*did you mean 'lm_head'"):
        check_overrides({"lmhead": "int8"}, ["lm_head", "model.layers.0.mlp.down"])
